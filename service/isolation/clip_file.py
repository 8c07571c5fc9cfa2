"""Where a clip's bytes lie while they arrive and are read: an anonymous file in memory."""

import fcntl
import io
import os
from typing import Self


def file_in_memory(name: str) -> io.FileIO:
    """An empty anonymous file in memory that can be sealed."""
    return io.FileIO(os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "r+")


def seal(file: io.FileIO, seals: int) -> None:
    """Take from everybody, for good, what the seals say."""
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals | fcntl.F_SEAL_SEAL)


class ClipFile:
    """A clip's bytes, appended as they arrive. Leaving it frees them; a decoder that reads them keeps its own hold."""

    def __init__(self) -> None:
        self._file = file_in_memory("clip")
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
