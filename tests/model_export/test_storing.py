"""Files that ``limelight-model`` writes: a full disk, a second run, and what a killed run left."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from model_export.errors import StorageError
from model_export.storing import sole_writer, store, temporary_folder
from service.files import written_beside
from tests.conftest import REPOSITORY
from tests.full_disk import no_file_longer_than

HOLD = """
import sys
from pathlib import Path
from model_export.storing import sole_writer
with sole_writer(Path(sys.argv[1]), "run"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_full_disk_is_one_sentence_that_says_what_where_and_how_much(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.md"
    with (
        no_file_longer_than(1000),
        pytest.raises(
            StorageError,
            match=rf"^{path} was not written because the disk is full \(File too large\); free 2 MiB there, or choose "
            r"another --output$",
        ),
    ):
        store(path, "ä" * 600_000)
    assert list(path.parent.iterdir()) == []
    store(path, "ä")
    assert path.read_bytes() == b"\xc3\xa4"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_a_quota_and_a_limit_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def full(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match="file was not written because the disk is full"):
        store(tmp_path / "file", b"content")
    assert list(tmp_path.iterdir()) == []


def test_too_little_room_for_temporary_files_is_one_sentence_that_names_tmpdir(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with (
        pytest.raises(StorageError, match=rf"^a temporary file in {tmp_path} was not written .*set TMPDIR to a folder"),
        temporary_folder(1 << 60),
    ):
        pass
    with temporary_folder(1000) as folder:
        assert folder.parent == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_a_second_run_on_one_folder_is_refused_until_the_first_one_has_ended(tmp_path: Path) -> None:
    output = tmp_path / "head"
    command = [sys.executable, "-c", HOLD, str(output)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with (
            pytest.raises(StorageError, match=rf"^another run is writing to {output}; wait until it has ended, or"),
            sole_writer(output, "run"),
        ):
            pass
        other.kill()
    with sole_writer(output, "run"):
        pass


def test_a_folder_on_a_file_system_without_locks_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with sole_writer(tmp_path, "run"):
        store(tmp_path / "run" / "file", b"content")
    assert (tmp_path / "run" / "file").read_bytes() == b"content"


def test_a_run_that_was_refused_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(StorageError), sole_writer(tmp_path / "head", "run"):
        raise StorageError
    assert list(tmp_path.iterdir()) == []


def test_a_run_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "runs" / "0"):
        folder.mkdir(parents=True, exist_ok=True)
        with written_beside(folder / "file", b"content") as part:
            pass
        part.write_bytes(b"content")
    with sole_writer(tmp_path, "runs"):
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
