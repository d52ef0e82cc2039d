"""The folder for what must not stay of a batch belongs to this user alone."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from nbflow.headless.workers.scratch import make_scratch, remove_scratch

pytestmark = pytest.mark.skipif(not hasattr(os, "getuid"), reason="folders have no owners there")


def test_a_scratch_folder_is_for_this_user_alone_and_leaves_nothing(tmp_path: Path) -> None:
    """Both folders are private, making them twice is fine, and the outer one goes with the last inner one."""
    first, second = tmp_path / "batch" / "0-1", tmp_path / "batch" / "1-1"
    for folder in (first, first, second):
        make_scratch(folder)
    modes = {stat.S_IMODE(folder.stat().st_mode) for folder in (first, second, first.parent)}
    assert modes == {0o700}
    remove_scratch(first)
    assert second.parent.exists()
    remove_scratch(second)
    assert not second.parent.exists()


def test_a_folder_that_others_may_change_is_refused(tmp_path: Path) -> None:
    """Who can write in the batch's folder could put another one in a job's place and read a kernel's key."""
    outer = tmp_path / "batch"
    outer.mkdir()
    outer.chmod(0o777)
    with pytest.raises(PermissionError, match="by other users"):
        make_scratch(outer / "0-1")


def test_a_link_in_the_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    """A link that somebody left under the foreseeable name leads to their folder."""
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0o700)
    (tmp_path / "batch").symlink_to(theirs)
    with pytest.raises(PermissionError, match="link"):
        make_scratch(tmp_path / "batch" / "0-1")


def test_a_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch's folder counts as well as the job's own."""
    (tmp_path / "batch").mkdir(mode=0o700)
    somebody = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: somebody)
    with pytest.raises(PermissionError, match="another user"):
        make_scratch(tmp_path / "batch" / "0-1")
