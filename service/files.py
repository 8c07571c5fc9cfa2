"""Writes files so that an interruption leaves the old file or the new one, never a part."""

import tempfile
from collections.abc import Callable
from pathlib import Path


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
