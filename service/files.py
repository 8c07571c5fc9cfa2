"""Opens files without waiting, and writes them so that an interruption leaves the old or the new one, never a part."""

import os
import stat
import tempfile
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path


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


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Replace ``path`` by what ``write`` puts into a temporary file beside it.

    Args:
        path: File to replace or create; its folder must exist.
        write: Writes the content to the path that it is given, which has the same suffixes as ``path``.

    Raises:
        OSError: The file cannot be written; ``path`` is then as it was.
    """
    # A folder, not a file: some writers, such as Keras, choose the format by the name and open the file themselves.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".part-") as folder:
        part = Path(folder) / path.name
        write(part)
        part.replace(path)
