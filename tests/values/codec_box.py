"""A store of one file for the codec's tests: leaves are written once and mapped copy-on-write at every fetch."""

from __future__ import annotations

import mmap
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from nbflow.core.model import Checkpoint, LeafRef
from nbflow.values.codec import Encoded, decode, encode
from nbflow.values.leaf import Leaf


class Box:
    """Keeps leaves by digest in `folder`, each at a multiple of 64 bytes of one file."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "leaves"
        self.refs: dict[bytes, LeafRef] = {}
        self.written = 0

    def put(self, leaves: tuple[Leaf, ...]) -> tuple[LeafRef, ...]:
        """Write the leaves that are new and return the references of all."""
        with self.path.open("ab") as file:
            for leaf in leaves:
                if leaf.digest in self.refs:
                    continue
                file.write(bytes(-file.tell() % 64))
                start = file.tell()
                for part in leaf.parts:
                    file.write(part)
                assert file.tell() - start == leaf.size
                self.written += leaf.size
                self.refs[leaf.digest] = LeafRef(leaf.digest, leaf.size, "leaves", start, leaf.form)
        return tuple(self.refs[leaf.digest] for leaf in leaves)

    def fetch(self, digest: bytes) -> memoryview:
        """Map a leaf: private, writable, lazy."""
        ref = self.refs[digest]
        with self.path.open("rb") as file:
            whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return memoryview(whole)[ref.offset : ref.offset + ref.size]

    def store(self, variables: dict[str, Any]) -> Checkpoint:
        """Encode and write."""
        encoded = encode(variables)
        return encoded.checkpoint(self.put(encoded.leaves))

    def back(self, **variables: Any) -> dict[str, Any]:
        """Return the variables after a round trip through the file."""
        return decode(self.store(variables), self.fetch)


def there_and_back(**variables: Any) -> dict[str, Any]:
    """Return the variables after a round trip through a file that is deleted afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        return Box(Path(folder)).back(**variables)


def save(encoded: Encoded, folder: Path) -> None:
    """Write a checkpoint and its leaves for another process (`LOAD`)."""
    box = Box(folder)
    checkpoint = encoded.checkpoint(box.put(encoded.leaves))
    (folder / "checkpoint").write_bytes(msgspec.msgpack.encode(checkpoint))


#: Defines `load(folder)` in another process.
LOAD = """
import msgspec
from pathlib import Path
from nbflow.core.model import Checkpoint
from nbflow.values.codec import decode, encode
from tests.values.codec_box import Box, save

def load(folder):
    folder = Path(folder)
    checkpoint = msgspec.msgpack.decode((folder / "checkpoint").read_bytes(), type=Checkpoint)
    box = Box(folder)
    box.refs = {ref.digest: ref for ref in checkpoint.leaves}
    return decode(checkpoint, box.fetch)
"""


def run(script: str, *arguments: object) -> str:
    """Run a script as `__main__` of a new process and return what it prints."""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", LOAD + script, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=root,
        env={**__import__("os").environ, "PYTHONPATH": str(root)},
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
