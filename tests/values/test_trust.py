"""The user's key is private, made once, and never half; a MAC binds a record to its run."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from nbflow.core.errors import Untrusted
from nbflow.values import trust

KEY = """
import sys
from nbflow.values.trust import user_key
heavy = {"numpy", "pandas", "pyarrow", "duckdb", "IPython", "jupyter_core"} & set(sys.modules)
assert not heavy, heavy
print(user_key().hex())
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a new data folder that this process and its children use."""
    monkeypatch.setattr(trust, "_cache", {})
    monkeypatch.setenv("NBFLOW_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


def test_the_key_is_made_once_and_private(folder: Path) -> None:
    """32 random bytes, mode 0600 in a 0700 folder, the same on every call, no draft left behind."""
    key = trust.user_key()
    assert len(key) == 32
    assert trust.user_key() == key
    assert (folder / "key").read_bytes() == key
    assert stat.S_IMODE((folder / "key").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert os.listdir(folder) == ["key"]


def test_two_folders_have_two_keys(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment variable is looked at on every call."""
    one = trust.user_key()
    monkeypatch.setenv("NBFLOW_DATA_DIR", str(folder / "other"))
    assert trust.user_key() != one


def test_many_processes_agree_on_one_key(folder: Path) -> None:
    """Processes that start at once on a new folder all get the same whole key."""
    started = [
        subprocess.Popen([sys.executable, "-c", KEY], stdout=subprocess.PIPE, text=True) for _ in range(8)
    ]
    keys = {process.communicate(timeout=60)[0].strip() for process in started}
    assert len(keys) == 1
    assert len(bytes.fromhex(keys.pop())) == 32
    assert os.listdir(folder) == ["key"]


def test_a_key_readable_by_others_is_made_private(folder: Path) -> None:
    """A mode that lets others read is tightened to 0600."""
    trust.user_key()
    (folder / "key").chmod(0o644)
    trust._cache.clear()
    trust.user_key()
    assert stat.S_IMODE((folder / "key").stat().st_mode) == 0o600


def test_a_key_others_may_write_is_refused(folder: Path) -> None:
    """A key that somebody else could have put there is not trusted."""
    trust.user_key()
    (folder / "key").chmod(0o666)
    trust._cache.clear()
    with pytest.raises(Untrusted, match="written by others"):
        trust.user_key()


@pytest.mark.parametrize("content", [b"", b"short", bytes(33)])
def test_a_damaged_key_is_refused_and_left_alone(folder: Path, content: bytes) -> None:
    """A key of another length is an error that names the file; it is not overwritten."""
    folder.mkdir()
    (folder / "key").write_bytes(content)
    (folder / "key").chmod(0o600)
    with pytest.raises(Untrusted, match="key"):
        trust.user_key()
    assert (folder / "key").read_bytes() == content


def test_a_link_in_place_of_the_key_is_refused(folder: Path, tmp_path: Path) -> None:
    """A symbolic link is not followed."""
    folder.mkdir()
    (tmp_path / "elsewhere").write_bytes(bytes(32))
    (folder / "key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Untrusted):
        trust.user_key()


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no key can be stored the error says how to name another folder."""
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(trust, "_cache", {})
    monkeypatch.setenv("NBFLOW_DATA_DIR", str(tmp_path / "file"))
    with pytest.raises(Untrusted, match="NBFLOW_DATA_DIR"):
        trust.user_key()


def test_the_default_folder_is_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the variable the key lies in the user's data folder, named nbflow."""
    monkeypatch.delenv("NBFLOW_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    assert trust.data_dir().name == "nbflow"
    assert tmp_path in trust.data_dir().parents


def test_a_mac_binds_body_context_and_key() -> None:
    """Any change of key, run or body changes the MAC; the split between context and body counts."""
    key, other = bytes(32), bytes(31) + b"\1"
    made = trust.mac(key, b"run", b"body")
    assert len(made) == 16
    assert made == trust.mac(key, b"run", memoryview(b"body"))
    variants = [
        trust.mac(other, b"run", b"body"),
        trust.mac(key, b"ru", b"nbody"),
        trust.mac(key, b"run", b"bodx"),
        trust.mac(key, b"ruN", b"body"),
    ]
    assert len({made, *variants}) == 5


def test_a_key_id_tells_keys_apart_and_not_the_key() -> None:
    """Eight bytes, different for different keys, no part of the key."""
    one, other = trust.key_id(b"a" * 32), trust.key_id(b"b" * 32)
    assert len(one) == 8
    assert one != other
    assert one not in b"a" * 64
