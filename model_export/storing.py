"""Writing files so that a full disk, a kill or a second run costs a sentence and never leaves half a file.

Everything that ``limelight-model`` keeps is made in memory and written here. Libraries that open files themselves do
not report a full disk: HDF5 crashes the process, and NumPy raises errors without a reason.
"""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from model_export.errors import StorageError
from service.files import NO_LOCKS, locked, remove_parts, write_atomically

# What a full file system answers, a full quota, and a limit on the size of files.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
MIB = 2**20


def store(path: Path, content: bytes | memoryview | str, remedy: str = "choose another --output") -> None:
    """Write a file completely or not at all; its folder is created if missing.

    Args:
        path: File to replace or create.
        content: Its bytes, or its text, which is written in UTF-8.
        remedy: What else helps than to free the disk.

    Raises:
        StorageError: The disk is full.
        OSError: The file cannot be written for another reason.
    """
    data = content.encode() if isinstance(content, str) else content
    with explained(path, len(data), remedy):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)


def file_name(*names: str) -> str:
    """Return names as the name of a file: lower case, and a hyphen for anything but letters and digits."""
    return ".".join(re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") for name in names)


@contextmanager
def explained(what: Path | str, size: int, remedy: str) -> Iterator[None]:
    """Say what to do if the disk is full.

    Args:
        what: What the body of ``with`` writes.
        size: Its bytes.
        remedy: What else helps than to free them.

    Raises:
        StorageError: The disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise StorageError(
            f"{what} was not written because the disk is full ({error.strerror}); free {mebibytes(size)} there, or "
            f"{remedy}"
        ) from error


def require_space(folder: Path, size: int) -> None:
    """Check that files fit on the disk of a folder, before they are made.

    Args:
        folder: An existing folder.
        size: Bytes of the files.

    Raises:
        OSError: They do not fit.
    """
    if (free := shutil.disk_usage(folder).free) < size:
        raise OSError(errno.ENOSPC, f"only {free // MIB:,} MiB are free")


def check_writable(folder: Path, option: str = "--output") -> None:
    """Check that files can be written to a folder, which need not exist yet, before they are made.

    Args:
        folder: The folder.
        option: The option that names it, for the error.

    Raises:
        StorageError: It, or what is in the place of one of its parents, is no folder or cannot be written.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        raise StorageError(f"{there} is no folder; choose another {option}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise StorageError(f"{there} cannot be written; let user {os.getuid()} write to it, or choose another {option}")


def check_targets(output: Path, files: Iterable[str], folders: Iterable[str] = ()) -> None:
    """Check that nothing is in the way of what a command writes at its end.

    Args:
        output: Folder of the output.
        files: Names of the files in it that are replaced or created.
        folders: Names of the folders in it that are written to.

    Raises:
        StorageError: One of the files is a folder, or one of the folders is none or cannot be written.
    """
    for name in files:
        if (path := output / name).is_dir():
            raise StorageError(f"{path} is a folder, and a file has to be written there; choose another --output")
    for name in folders:
        check_writable(output / name)


def mebibytes(size: int) -> str:
    """Format a number of bytes for people, rounded up."""
    return f"{-(-size // MIB):,} MiB"


@contextmanager
def temporary_folder(size: int) -> Iterator[Path]:
    """Yield an empty folder for temporary files, which is removed afterwards.

    Args:
        size: Bytes of the files.

    Raises:
        StorageError: The disk is full.
    """
    parent = Path(tempfile.gettempdir())
    with explained(f"a temporary file in {parent}", size, "set TMPDIR to a folder on another disk"):
        require_space(parent, size)  # ONNX does not report a full disk
        with tempfile.TemporaryDirectory(prefix="limelight-", dir=parent) as folder:
            yield Path(folder)


@contextmanager
def sole_writer(output: Path, kept: str) -> Iterator[None]:
    """Keep other runs of a command from writing to its output, and remove temporary files that a killed run left there.

    On file systems without locks it keeps nobody out.

    Args:
        output: The output; created if missing, and removed afterwards if it is empty.
        kept: Name of the folder in it that holds what the command continues from. That one is locked, since ``verify``
            locks the folder of a head for a moment.

    Raises:
        StorageError: Another run is writing to it, or it cannot be written.
        OSError: The folder cannot be created.
    """
    folder = output / kept
    check_targets(output, (), ("", kept))
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        for path in reversed(made):
            stack.callback(_remove_if_empty, path)
        try:
            stack.enter_context(locked(folder, wait=False))
        except BlockingIOError as error:
            raise StorageError(
                f"another run is writing to {output}; wait until it has ended, or choose another --output"
            ) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        remove_parts(output)
        yield


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
