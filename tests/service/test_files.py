"""Locks, and replacing files and folders: nothing is lost, whenever the file system or the process fails."""

import ctypes
import errno
import fcntl
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from service import files
from service.files import locked, recover_folder, remove_parts, replace_folder, write_atomically, written_beside
from tests.conftest import REPOSITORY

# Replaces a folder on a file system without exchange, in a process that is killed before the second rename.
KILLED_BETWEEN = """
import os, sys
from pathlib import Path
from service import files
files._exchange = lambda a, b: False
rename, count = Path.rename, []
def killed(self, target):
    count.append(self)
    return os._exit(9) if len(count) == 2 else rename(self, target)
Path.rename = killed
files.replace_folder(Path(sys.argv[1]), Path(sys.argv[2]))
"""

# Writes a file, in a process that is killed before it takes its place.
KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from service.files import written_beside
with written_beside(Path(sys.argv[1]), b"new content"):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return folder(tmp_path / "target", "old content")


@pytest.fixture
def new(tmp_path: Path) -> Path:
    (tmp_path / ".work").mkdir()
    return folder(tmp_path / ".work" / "new", "new content")


@pytest.fixture
def without_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_exchange", lambda a, b: False)


def folder(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "file").write_text(text, encoding="utf-8")
    return path


def content(path: Path) -> str:
    return (path / "file").read_text(encoding="utf-8")


def fail_rename(monkeypatch: pytest.MonkeyPatch, fails: Callable[[Path], bool]) -> None:
    rename = Path.rename

    def rename_or_fail(self: Path, target: Path) -> Path:
        if fails(self):
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", rename_or_fail)


@pytest.mark.skipif(sys.platform != "linux", reason="renameat2 is a system call of Linux")
def test_two_folders_are_exchanged_in_one_step(new: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_rename(monkeypatch, lambda path: True)

    replace_folder(new, target)

    assert (content(target), content(new)) == ("new content", "old content")


@pytest.mark.usefixtures("without_exchange")
def test_a_folder_is_replaced_where_folders_cannot_be_exchanged(new: Path, target: Path) -> None:
    replace_folder(new, target)

    assert content(target) == "new content"
    assert content(new.with_name("old")) == "old content"


@pytest.mark.parametrize("code", sorted(files.NO_EXCHANGE))
def test_a_file_system_that_refuses_to_exchange_gets_two_renames(
    new: Path, target: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object) -> int:
        ctypes.set_errno(code)
        return -1

    class Library:
        renameat2 = staticmethod(refuse)

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Library)

    replace_folder(new, target)

    assert content(target) == "new content"


@pytest.mark.usefixtures("without_exchange")
def test_the_old_folder_is_put_back_if_the_second_rename_fails(
    new: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_rename(monkeypatch, lambda path: path == new)

    with pytest.raises(OSError, match="Input/output error"):
        replace_folder(new, target)

    assert (content(target), content(new)) == ("old content", "new content")


@pytest.mark.usefixtures("without_exchange")
def test_the_old_folder_can_be_recovered_if_it_cannot_be_put_back_at_once(
    new: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as failing:
        fail_rename(failing, lambda path: path != target)
        with pytest.raises(OSError, match="Input/output error"):
            replace_folder(new, target)

    assert recover_folder(new.parent, target)
    assert (content(target), content(new)) == ("old content", "new content")


def test_the_old_folder_can_be_recovered_if_the_process_is_killed_between_the_renames(new: Path, target: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED_BETWEEN, str(new), str(target)], cwd=REPOSITORY, check=False)
    assert killed.returncode == 9
    assert not target.exists()

    assert recover_folder(new.parent, target)
    assert content(target) == "old content"
    assert not recover_folder(new.parent, target)


def test_a_folder_that_does_not_exist_is_created(new: Path, tmp_path: Path) -> None:
    replace_folder(new, tmp_path / "another")

    assert content(tmp_path / "another") == "new content"


@pytest.mark.usefixtures("without_exchange")
def test_a_folder_that_vanishes_meanwhile_is_created(new: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def vanish(*_: object) -> bool:
        target.rename(target.with_name("elsewhere"))
        return False

    monkeypatch.setattr(files, "_exchange", vanish)

    replace_folder(new, target)

    assert content(target) == "new content"


def test_a_folder_is_never_recovered_over_another_one(new: Path, target: Path) -> None:
    folder(new.with_name("old"), "older content")

    assert not recover_folder(new.parent, target)
    assert content(target) == "old content"


@pytest.mark.parametrize("path", [".", "file"], ids=("folder", "file"))
def test_one_holder_at_a_time_has_the_lock(target: Path, path: str) -> None:
    with locked(target / path), pytest.raises(BlockingIOError), locked(target / path, wait=False):
        pass
    with locked(target / path, wait=False):
        pass


def test_a_folder_that_is_replaced_while_its_lock_is_awaited_is_locked_anew(
    new: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits, flock = threading.Event(), fcntl.flock
    excluded: list[bool] = []

    def tell_and_lock(*arguments: int) -> None:
        waits.set()
        flock(*arguments)

    def wait() -> None:
        with locked(target):
            try:
                with locked(target, wait=False):
                    excluded.append(False)
            except BlockingIOError:
                excluded.append(True)

    with locked(target):
        monkeypatch.setattr(fcntl, "flock", tell_and_lock)
        waiting = threading.Thread(target=wait)
        waiting.start()
        waits.wait()
        replace_folder(new, target)
    waiting.join()
    assert excluded == [True]


def test_without_locks_the_body_still_runs_unless_the_lock_is_asked_for(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(target):
        pass
    with pytest.raises(OSError, match="No locks available"), locked(target, wait=False):
        pass


@pytest.mark.parametrize("name", ["file", "missing"])
def test_a_lock_is_released_when_its_body_fails(target: Path, name: str) -> None:
    with pytest.raises((RuntimeError, FileNotFoundError)), locked(target / name):
        raise RuntimeError
    with locked(target, wait=False):
        pass


def test_a_full_disk_leaves_the_former_file_alone_and_the_error_names_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"former")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="too large") as raised:
            write_atomically(path, bytes(1001))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert raised.value.filename == str(path)
    assert path.read_bytes() == b"former"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_a_file_has_the_permissions_that_the_umask_leaves(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "file", b"content")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    below = tmp_path / "below"
    below.mkdir()
    for path in (tmp_path / "file", below / "file"):
        killed = subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, path], cwd=REPOSITORY, check=False)
        assert killed.returncode == -signal.SIGKILL
    assert len([*tmp_path.rglob(".part-*")]) == 2
    (tmp_path / ".part-mine").write_text("of somebody else", encoding="utf-8")
    new = tmp_path / ".part-0123456789abcdef"
    new.touch()  # a process has just made it, and locks it next
    with written_beside(tmp_path / "file", b"content") as part:
        remove_parts(tmp_path)
        assert {*tmp_path.rglob("*")} == {below, part, new, tmp_path / ".part-mine"}
