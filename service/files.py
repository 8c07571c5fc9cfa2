"""Opens files without waiting, and writes them so that an interruption leaves the old or the new one, never a part."""

import ctypes
import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import BufferedReader
from pathlib import Path

# linux/fcntl.h and linux/fs.h
AT_FDCWD = -100
RENAME_EXCHANGE = 2
OLD = "old"
_PART = re.compile(r"\.part-[0-9a-f]{16}")  # see ``written_beside``
# What a kernel, a C library or a file system without exchange answers.
NO_EXCHANGE = frozenset({errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM})
# What a file system without locks answers, and NFS for a folder.
NO_LOCKS = frozenset({errno.ENOLCK, errno.EBADF, errno.EOPNOTSUPP, errno.ENOSYS})


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading.

    Opening a FIFO could wait for ever, and so could reading a terminal; a device may never end.

    Raises:
        OSError: It cannot be opened, or is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("it is not a regular file")
    return os.fdopen(descriptor, "rb")


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Replace ``path`` by a file with this content, or create it.

    It is written by Python alone: libraries that open files themselves may crash or say nothing when a disk is full.

    Args:
        path: File to replace or create; its folder must exist.
        data: The content.

    Raises:
        OSError: The file cannot be written; ``path`` is then as it was.
    """
    with written_beside(path, data) as part:
        part.replace(path)


@contextmanager
def written_beside(path: Path, data: bytes | memoryview) -> Iterator[Path]:
    """Write what ``path`` is to hold into a temporary file beside it, which the body of ``with`` may rename.

    Afterwards the temporary file is removed, if it still exists. If the process is killed before, ``remove_parts``
    removes it.

    Raises:
        OSError: The temporary file cannot be written. The error names ``path``.
    """
    part = path.with_name(f".part-{secrets.token_hex(8)}")
    try:
        with ExitStack() as stack:
            try:
                part.touch(exist_ok=False)  # with the permissions that the umask leaves, unlike files of ``tempfile``
                stack.enter_context(locked(part))
                part.write_bytes(data)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(path)) from error
            yield part
    finally:
        part.unlink(missing_ok=True)


def remove_parts(folder: Path) -> None:
    """Remove temporary files of ``written_beside`` in a folder and those below it, but none that is being written."""
    for part in folder.rglob(".part-*"):
        if not _PART.fullmatch(part.name):
            continue
        with suppress(OSError), locked(part, wait=False):
            if part.stat().st_size:  # an empty one may be of a process that has not locked it yet
                part.unlink()


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a file or folder, which one process holds at a time, while the body of ``with`` runs.

    Read, change and write inside the body, so that no other process changes the same file in between. The lock ends
    with the process. If the folder is replaced while this waits, it takes the lock of the new one.

    Args:
        path: A file or folder that this user can read.
        wait: Whether to wait for another process that holds the lock. If so, the body runs without a lock on file
            systems that have none.

    Raises:
        OSError: The path is missing or cannot be read, or ``wait`` is false and the lock is not to be had.
    """
    while True:
        descriptor = _open_to_lock(path)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if not wait or error.errno not in NO_LOCKS:
                    raise
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                yield
                return
        finally:
            os.close(descriptor)


def _open_to_lock(path: Path) -> int:
    """Open a file for writing if that is allowed, since NFS locks no other; a folder can only be read."""
    flags = os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(path, os.O_RDWR | flags)
    except OSError:
        return os.open(path, os.O_RDONLY | flags)


def replace_folder(new: Path, target: Path) -> None:
    """Put the folder ``new`` in the place of ``target``, and what was there, if anything, in the place of ``new``.

    Where the file system can exchange two folders, ``target`` exists at every moment. Elsewhere it is missing for an
    instant; if the process is killed then, ``recover_folder`` puts the old content back.

    Args:
        new: The new content, in a folder of its own on the same file system. The old content remains in that folder,
            for the caller to remove.
        target: Folder to replace or create, reached through no symbolic link.

    Raises:
        OSError: The folder was not replaced; ``target`` is as it was, or ``recover_folder`` makes it so.
    """
    old = new.with_name(OLD)
    with suppress(FileNotFoundError):  # ``target`` does not exist, or it vanished meanwhile
        if _exchange(new, target):
            return
        target.rename(old)
    try:
        new.rename(target)
    except OSError:
        recover_folder(new.parent, target)
        raise


def recover_folder(folder: Path, target: Path) -> bool:
    """Put back what an interrupted ``replace_folder`` took away, and return whether there was something.

    Args:
        folder: The folder that holds ``new``.
        target: The folder that was to be replaced.

    Raises:
        OSError: It cannot be put back; it remains in ``folder``.
    """
    old = folder / OLD
    if target.exists() or not old.exists():
        return False
    old.rename(target)
    return True


def _exchange(a: Path, b: Path) -> bool:
    """Exchange two paths in one step; return whether the system can do that."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # another system than Linux, or another C library than glibc
        return False
    if renameat2(AT_FDCWD, os.fsencode(a), AT_FDCWD, os.fsencode(b), RENAME_EXCHANGE) == 0:
        return True
    if (code := ctypes.get_errno()) in NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(a), None, str(b))
