"""The clips that ``limelight predict`` is given: found in folders, opened, and read in pieces."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from service.errors import CommandError
from service.isolation.clip_file import ClipFile
from service.settings import Settings
from service.streams import complain

STANDARD_INPUT = "-"
# Of pipes and devices, whose size is not known before their end. They are kept in memory, to be sent again if need be.
MOST_PIPED_BYTES: int = Settings.model_fields["max_body_bytes"].default
PIECE_BYTES = 2**17


class ClipProblem(CommandError):
    """One clip has no answer; others may have one. ``str(error)`` is one sentence that names the clip.

    Args:
        name: The clip's name.
        code: A stable code, one of the API's or ``unreadable``, ``changed`` or ``no_clips``.
        detail: What is wrong with the clip.
        title: A summary that is the same for every problem with this code.
        status: The HTTP status, if a service answered.
        sentence: What ``str(error)`` is to say after the clip's name (default: a colon and the detail).
    """

    def __init__(
        self, name: str, code: str, detail: str, *, title: str, status: int | None = None, sentence: str | None = None
    ) -> None:
        super().__init__(f"{shown(name)}{sentence or f': {detail}'}")
        self.name = name
        self.code = code
        self.detail = detail
        self.title = title
        self.status = status


def shown(name: str) -> str:
    """Return a clip's name as sentences and headings have it."""
    return "standard input" if name == STANDARD_INPUT else name


def find_clips(names: Sequence[str]) -> Iterator[str | ClipProblem]:
    """Yield the names of files as they are, and in place of a folder those of the videos in it and below it.

    A folder's videos are sorted. Hidden files and folders are left out, and so are files without a video's suffix,
    whose number is printed on standard error. A folder without videos is a problem, and so is one that cannot be read.
    """
    for name in names:
        if name != STANDARD_INPUT and Path(name).is_dir():
            yield from _find_in(name)
        else:
            yield name


def _find_in(folder: str) -> Iterator[str | ClipProblem]:
    from service.video.formats import VIDEO_SUFFIXES  # not before it is needed: it loads NumPy

    problems: list[ClipProblem] = []
    found: list[Path] = []
    others = 0
    for place, folders, files in os.walk(folder, onerror=lambda error: problems.append(_unreadable(error))):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(place, name) for name in files if not name.startswith(".")):
            if path.suffix.lower() in VIDEO_SUFFIXES and not _is_special(path):
                found.append(path)
            else:
                others += 1
    if others:
        files_are = "1 file is" if others == 1 else f"{others} files are"
        complain(f"{folder}: {files_are} left out, without a video's suffix such as .mp4")
    if not found and not problems:
        detail = "the folder holds no file with a video's suffix, such as .mp4; name the files themselves"
        problems.append(ClipProblem(folder, "no_clips", detail, title="The folder holds no clips"))
    yield from problems
    yield from map(str, sorted(found))


def _is_special(path: Path) -> bool:
    """Return whether a path is a FIFO, a socket or a device, from which nobody expects a clip in a folder."""
    return path.exists() and not path.is_file()


def _unreadable(error: OSError, name: str | None = None) -> ClipProblem:
    reason = error.strerror or str(error)
    return ClipProblem(
        name or os.fsdecode(error.filename),
        "unreadable",
        reason,
        title="The file cannot be read",
        sentence=f" cannot be read ({reason}); check its name and permissions",
    )


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip that is open for reading.

    Attributes:
        name: Its name, for error messages.
        descriptor: A file descriptor of a file that can be read at any place.
        size: Number of its bytes.
        start: Where they begin in the file.
        version: Size and time of the last change of the file, when it was opened.
    """

    name: str
    descriptor: int
    size: int
    start: int
    version: tuple[int, int]

    def pieces(self) -> Iterator[bytes]:
        """Yield the clip's bytes, from the beginning each time.

        Raises:
            ClipProblem: The file cannot be read, or is being changed.
        """
        place, end = self.start, self.start + self.size
        while place < end:
            try:
                piece = os.pread(self.descriptor, min(PIECE_BYTES, end - place), place)
                place += len(piece)
                changed = not piece or (place == end and _version(os.fstat(self.descriptor)) != self.version)
            except OSError as error:
                raise _unreadable(error, self.name) from error
            if changed:
                detail = "the file was changed while it was read; try again when it is complete"
                raise ClipProblem(self.name, "changed", detail, title="The file was changed")
            yield piece

    @contextlib.contextmanager
    def in_memory(self) -> Iterator[ClipFile]:
        """Copy the clip into memory, where decoder processes read it and nobody changes it."""
        with ClipFile() as file:
            for piece in self.pieces():
                file.write(piece)
            yield file


@contextlib.contextmanager
def opened(name: str, most_bytes: int | None = None) -> Iterator[Clip]:
    """Open a clip. A pipe or device is read to its end.

    Args:
        name: A file's name, or ``-`` for standard input.
        most_bytes: Number of bytes that the clip may have; by default any for a file, ``MOST_PIPED_BYTES`` for others.

    Raises:
        ClipProblem: It cannot be read, or has more bytes.
    """
    with contextlib.ExitStack() as stack:
        try:
            clip = _open(name, most_bytes, stack)
        except OSError as error:
            raise _unreadable(error, name) from error
        yield clip


def _open(name: str, most_bytes: int | None, stack: contextlib.ExitStack) -> Clip:
    if name == STANDARD_INPUT:
        descriptor = 0
        if os.isatty(descriptor):
            raise OSError("it is a terminal")
    else:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
        stack.callback(os.close, descriptor)
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_size:  # files of /proc seem empty
        start = os.lseek(descriptor, 0, os.SEEK_CUR)
        size = max(0, status.st_size - start)
        if most_bytes is not None and size > most_bytes:
            raise _too_large(name, f"the clip has {size} bytes, more than the {most_bytes} allowed")
        return Clip(name, descriptor, size, start, _version(status))
    copy = stack.enter_context(ClipFile())
    _copy(name, descriptor, copy, MOST_PIPED_BYTES if most_bytes is None else most_bytes)
    return clip_of(name, copy)


def clip_of(name: str, file: ClipFile) -> Clip:
    """Return a clip whose bytes are in memory."""
    return Clip(name, file.fileno(), file.size, 0, _version(os.fstat(file.fileno())))


def _copy(name: str, descriptor: int, copy: ClipFile, most_bytes: int) -> None:
    """Read a pipe or a device to its end, or until it is too long."""
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    while piece := os.read(descriptor, PIECE_BYTES):
        if copy.size + len(piece) > most_bytes:
            raise _too_large(name, f"it gave more than {most_bytes} bytes; save the clip to a file if it is as large")
        copy.write(piece)
    if not copy.size:
        raise ClipProblem(name, "empty_body", "the clip is empty", title="The clip is empty")


def _too_large(name: str, detail: str) -> ClipProblem:
    return ClipProblem(name, "body_too_large", detail, title="The clip is too large")


def _version(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns
