"""Where a clip's bytes lie while they arrive and are read: an anonymous file in memory."""

import io
import os
import sys
import tempfile
from typing import Self

if sys.platform == "linux":
    import fcntl


def file_in_memory(name: str) -> io.FileIO:
    """An empty anonymous file in memory that can be sealed. Linux only."""
    return io.FileIO(os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "r+")


def seal(file: io.FileIO, seals: int) -> None:
    """Take from everybody, for good, what the seals say. Linux only."""
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals | fcntl.F_SEAL_SEAL)


class ClipFile:
    """A clip's bytes, appended as they arrive. Leaving it frees them; a decoder that reads them keeps its own hold."""

    def __init__(self) -> None:
        if sys.platform == "linux":
            self._file = file_in_memory("clip")
        else:  # where the service is only developed: it may lie on a disk
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed in the end
        self._sealed = False
        self.size = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append."""
        left = memoryview(data)
        while left:
            written = self._file.write(left)
            self.size += written
            left = left[written:]

    def seal(self) -> None:
        """Make the bytes final: nobody can change them any more, the decoder that they may take over included."""
        if not self._sealed:
            seal(self._file, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
            self._sealed = True

    def fileno(self) -> int:
        """The descriptor, to hand to a decoder."""
        return self._file.fileno()

    def read(self) -> bytes:
        """All that has been written."""
        self._file.seek(0)
        return self._file.read()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
