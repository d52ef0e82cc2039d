"""Leaf files: stored once, read as they were written, private to each reader, refused when damaged."""

from __future__ import annotations

import errno
import os
import threading

import numpy as np
import pytest
from blake3 import blake3

from nbflow.core import crashpoints
from nbflow.core.errors import CorruptLeaf, StoreError, StoreFull, StoreReadOnly
from nbflow.core.model import Checkpoint, LeafRef, StepCompleted
from nbflow.store.folder import RunFolder
from nbflow.store.leaves import ALIGNMENT, OWN_SEGMENT, LeafReader, references
from nbflow.values.leaf import Leaf
from tests.store.journal_kit import KEY, attached, leaf, owner, started


def segments(folder: RunFolder) -> list[str]:
    """Return the names of the run's leaf files."""
    return sorted(path.name for path in folder.path.glob("leaves.*"))


def test_leaves_come_back_as_they_were_put(tmp_path):
    """References come in the order given, aligned, and lead to the bytes, whatever the size."""
    folder, log = attached(tmp_path)
    data = [b"", b"a", os.urandom(63), os.urandom(64), os.urandom(100_001), os.urandom(OWN_SEGMENT + 5)]
    refs = log.put_leaves([leaf(each, form="f") for each in data])
    assert [ref.digest for ref in refs] == [blake3(each).digest() for each in data]
    assert all(ref.offset % ALIGNMENT == 0 and ref.form == "f" for ref in refs)
    assert [bytes(log.leaf(ref)) for ref in refs] == data
    assert [bytes(folder.leaf(ref)) for ref in refs] == data
    log.release()


def test_parts_are_one_after_the_other_the_leaf(tmp_path):
    """A leaf in several buffers of other item types is written as their bytes, without joining."""
    folder, log = attached(tmp_path)
    parts = [
        memoryview(np.arange(5.0)),
        memoryview(b""),
        memoryview(np.arange(3, dtype="i2")),
        memoryview(b"x"),
    ]
    data = b"".join(part.tobytes() for part in parts)
    many = [memoryview(bytes([n % 256])) for n in range(3000)]
    refs = log.put_leaves(
        [
            Leaf(blake3(data).digest(), len(data), parts),
            Leaf(blake3(b"".join(many)).digest(), 3000, many),
        ]
    )
    assert bytes(log.leaf(refs[0])) == data
    assert bytes(log.leaf(refs[1])) == b"".join(many)
    log.release()


def test_equal_leaves_are_written_once_also_over_generations(tmp_path):
    """The same digest costs no byte: within a call, in the next one, and after an attach, if a record names it."""
    folder, log = attached(tmp_path)
    data = os.urandom(30_000)
    one, two = log.put_leaves([leaf(data), leaf(data)])
    (three,) = log.put_leaves([leaf(data, form="other")])
    assert one == two
    assert (three.segment, three.offset, three.form) == (one.segment, one.offset, "other")
    execution = log.append(started(1))
    log.append(
        StepCompleted(execution=execution, step="step-1", checkpoint=Checkpoint("pickle", leaves=(one,)))
    )
    log.release()
    log = folder.attach(owner())
    before = segments(folder)
    assert log.put_leaves([leaf(data)]) == (one,)
    assert segments(folder) == before
    log.release()


def test_a_leaf_is_written_anew_when_its_segment_is_gone(tmp_path):
    """Deduplication never refers to bytes that are not there any more."""
    folder, log = attached(tmp_path)
    (ref,) = log.put_leaves([leaf(b"y" * 20_000)])
    log.append(StepCompleted(execution=1, step="s", checkpoint=Checkpoint("pickle", leaves=(ref,))))
    log.release()
    (folder.path / ref.segment).unlink()
    log = folder.attach(owner())
    (again,) = log.put_leaves([leaf(b"y" * 20_000)])
    assert bytes(log.leaf(again)) == b"y" * 20_000
    log.release()


def test_every_reader_gets_private_writable_memory(tmp_path):
    """Changing what was restored changes neither the file nor what the next restore gets, small or large."""
    folder, log = attached(tmp_path)
    for size in (1000, 400_000):
        data = os.urandom(size)
        neighbour = os.urandom(size)
        ref, other = log.put_leaves([leaf(data), leaf(neighbour)])
        views = [log.leaf(ref) for _ in range(4)]
        for number, view in enumerate(views):
            assert bytes(view) == data
            assert not view.readonly
            view[:] = bytes([number]) * size
        assert [bytes(view) for view in views] == [bytes([number]) * size for number in range(4)]
        assert bytes(log.leaf(other)) == neighbour
        assert bytes(folder.leaf(ref)) == data
    log.release()


def test_a_shared_segment_that_grew_is_read_to_its_new_end(tmp_path):
    """Small puts share a file; what was mapped before stays valid while it grows."""
    folder, log = attached(tmp_path)
    data = [os.urandom(20_000) for _ in range(30)]
    views = [log.leaf(log.put_leaves([leaf(each)])[0]) for each in data]
    assert segments(folder) == ["leaves.1.0"]
    assert [bytes(view) for view in views] == data
    log.release()


def test_thousands_of_restores_need_no_descriptor_each(tmp_path):
    """Restored memory that stays alive does not use up the process's open files."""
    descriptors = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    before = len(os.listdir(descriptors))
    folder, log = attached(tmp_path)
    refs = log.put_leaves([leaf(os.urandom(20_000)) for _ in range(300)])
    kept = [log.leaf(ref) for _ in range(10) for ref in refs]
    assert len(os.listdir(descriptors)) - before < 100
    assert len(kept) == 3000
    log.release()


@pytest.mark.parametrize("damage", ["missing", "cut", "altered", "foreign name"])
def test_a_damaged_leaf_is_a_typed_refusal(tmp_path, damage):
    """A leaf that is missing, cut or altered names run and digest and is never handed out."""
    folder, log = attached(tmp_path)
    ref, sound = log.put_leaves([leaf(os.urandom(50_000)), leaf(b"z" * 20_000)])
    log.release()
    path = folder.path / ref.segment
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        os.truncate(path, ref.offset + ref.size - 1)
    elif damage == "altered":
        raw = bytearray(path.read_bytes())
        raw[ref.offset + 25_000] ^= 1
        path.write_bytes(raw)
    else:
        ref = LeafRef(ref.digest, ref.size, "../generation", 0)
    for ask in (folder.leaf, folder.verify, RunFolder(folder.path, KEY, verify=False).verify):
        with pytest.raises(CorruptLeaf) as caught:
            ask(ref)
        assert (caught.value.run, caught.value.digest) == (folder.run, ref.digest)
    if damage == "altered":
        assert bytes(folder.leaf(sound)) == b"z" * 20_000


def test_any_flipped_byte_of_a_segment_is_found(tmp_path):
    """One byte flipped anywhere in a leaf is refused; in the padding it does not matter."""
    folder, log = attached(tmp_path)
    refs = log.put_leaves([leaf(b"abc" * 40), leaf(b"def" * 50)])
    log.release()
    path = folder.path / refs[0].segment
    good = path.read_bytes()
    for place in range(len(good)):
        bad = bytearray(good)
        bad[place] ^= 0x80
        path.write_bytes(bad)
        reader = LeafReader(folder.path, folder.run)
        for ref, data in zip(refs, (b"abc" * 40, b"def" * 50), strict=True):
            if ref.offset <= place < ref.offset + ref.size:
                with pytest.raises(CorruptLeaf):
                    reader.leaf(ref)
            else:
                assert bytes(reader.leaf(ref)) == data


def test_reclaim_deletes_stale_segments_and_nothing_that_is_kept(tmp_path):
    """Only segments without any needed leaf go; memory restored from them stays valid."""
    folder, log = attached(tmp_path)
    big = [os.urandom(OWN_SEGMENT + 1) for _ in range(3)]
    refs = [log.put_leaves([leaf(each)])[0] for each in big]
    small = log.put_leaves([leaf(b"s" * 20_000)])[0]
    held = log.leaf(refs[0])
    freed = log.reclaim({refs[1].digest})
    assert freed == 2 * (OWN_SEGMENT + 1)
    assert segments(folder) == sorted({refs[1].segment, small.segment})
    assert bytes(held) == big[0]
    assert bytes(log.leaf(refs[1])) == big[1]
    with pytest.raises(CorruptLeaf):
        log.leaf(refs[2])
    (again,) = log.put_leaves([leaf(big[2])])
    assert bytes(log.leaf(again)) == big[2]
    log.release()


def fail_at(name: str, number: int = errno.ENOSPC):
    """Return a hook that lets the disk refuse at a point."""

    def hook(passed: str) -> None:
        if passed == name:
            raise OSError(number, os.strerror(number))

    return hook


@pytest.mark.parametrize("point", ["leaves.write.before", "leaves.write.after", "leaves.sync.before"])
@pytest.mark.parametrize("size", [1000, OWN_SEGMENT + 1])
def test_a_full_disk_leaves_no_partial_segment_and_the_next_put_works(tmp_path, point, size):
    """`StoreFull`, the new file is gone, earlier leaves stay, and with room again the same put succeeds."""
    folder, log = attached(tmp_path)
    (early,) = log.put_leaves([leaf(b"early" * 1000)])
    before = segments(folder)
    data = os.urandom(size)
    with crashpoints.hooked(fail_at(point)), pytest.raises(StoreFull):
        log.put_leaves([leaf(data)])
    assert segments(folder) == before
    (ref,) = log.put_leaves([leaf(data)])
    assert bytes(log.leaf(ref)) == data
    assert bytes(log.leaf(early)) == b"early" * 1000
    with crashpoints.hooked(fail_at("leaves.write.before", errno.EROFS)), pytest.raises(StoreReadOnly):
        log.put_leaves([leaf(b"other" * 9)])
    log.release()


def test_a_leaf_whose_parts_are_not_its_size_is_refused(tmp_path):
    """Nothing is written under a wrong name."""
    folder, log = attached(tmp_path)
    with pytest.raises(StoreError):
        log.put_leaves([Leaf(bytes(32), 5, [memoryview(b"four")])])
    assert segments(folder) == []
    log.release()


def test_threads_put_and_read_at_once(tmp_path):
    """Eight threads share one writer and lose nothing."""
    folder, log = attached(tmp_path)
    bad = []

    def work(number: int) -> None:
        for turn in range(20):
            data = bytes([number, turn]) * 9000
            (ref,) = log.put_leaves([leaf(data)])
            if bytes(log.leaf(ref)) != data:
                bad.append((number, turn))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bad == []
    log.release()


def test_all_references_of_a_record_are_found(tmp_path):
    """Checkpoint, ambient state and display: whoever reclaims or deduplicates sees them all."""
    folder, log = attached(tmp_path)
    refs = log.put_leaves([leaf(bytes([n]) * 20_000) for n in range(3)])
    record = StepCompleted(
        execution=1,
        step="s",
        checkpoint=Checkpoint("pickle", leaves=refs[:1]),
        state=Checkpoint("pickle", leaves=refs[1:2]),
        display_leaf=refs[2],
    )
    log.append(record)
    assert tuple(references(folder.entries()[-1])) == refs
    log.release()


@pytest.mark.soak
def test_a_leaf_of_more_than_2_gib_works(tmp_path):
    """Larger than what one call of write takes."""
    folder, log = attached(tmp_path)
    chunk = memoryview(bytes(range(256)) * (1 << 20))
    parts = [chunk] * 8 + [chunk[:4096]]
    hasher = blake3(max_threads=blake3.AUTO)
    for part in parts:
        hasher.update(part)
    size = sum(part.nbytes for part in parts)
    (ref,) = log.put_leaves([Leaf(hasher.digest(), size, parts)])
    view = log.leaf(ref)
    assert view.nbytes == size
    assert bytes(view[-4096:]) == bytes(chunk[:4096])
    (one,) = log.put_leaves([Leaf(b"1" * 32, size - 4096, [memoryview(view)[: size - 4096]])])
    assert (folder.path / one.segment).stat().st_size == size - 4096
    log.release()
