"""Anonymous files in memory (memfd), which hold a clip while it arrives and while a decoder process reads it."""

import fcntl
import io
import os
from typing import Self


def create_memory_file(name: str) -> io.FileIO:
    """Create an empty anonymous file in memory that can be sealed. ``name`` shows up in ``/proc/self/fd`` only."""
    return io.FileIO(os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "r+")


def add_seals(file: io.FileIO, seals: int) -> None:
    """Add ``F_SEAL_*`` flags to a file, for every process that has it open. They cannot be removed again."""
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals | fcntl.F_SEAL_SEAL)


class ClipFile:
    """A clip's bytes in memory, appended as they arrive.

    Leaving the context closes the file. A decoder process that reads it has a descriptor of its own.

    Attributes:
        size: Bytes written.
    """

    def __init__(self) -> None:
        self._file = create_memory_file("clip")
        self._sealed = False
        self.size = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append ``data``."""
        left = memoryview(data)
        while left:
            written = self._file.write(left)
            self.size += written
            left = left[written:]

    def seal(self) -> None:
        """Make the bytes read-only for good. Not even a compromised decoder process can change them afterwards."""
        if not self._sealed:
            add_seals(self._file, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
            self._sealed = True

    def fileno(self) -> int:
        """Return the file descriptor, to be sent to a decoder process."""
        return self._file.fileno()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
