"""A folder of class folders: UCF-101, HMDB-51, your own clips, or any mixture of them."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from model_export.data.datasets.clips import LabelledClip
from model_export.data.datasets.groups import group_of
from model_export.data.datasets.names import look
from model_export.errors import DatasetError

VIDEO_SUFFIXES = frozenset(
    {
        ".3gp",
        ".asf",
        ".avi",
        ".dv",
        ".flv",
        ".m2ts",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".mts",
        ".ogv",
        ".ts",
        ".vob",
        ".webm",
        ".wmv",
    }
)


def find_clips(folder: Path, classes: Sequence[str] | None = None) -> list[LabelledClip]:
    """Find the clips in ``folder/<class>/``, ignoring other files and hidden ones.

    Groups come from the file names alone (see ``group_of``).

    Args:
        folder: Holds one folder per class.
        classes: Only these; default: all.

    Returns:
        The clips, sorted.

    Raises:
        DatasetError: ``folder`` is missing or holds no class folder, or a class has no folder or no clip, or two class
            names look equal: they differ only in case, separators, leading zeros or Unicode's forms.
    """
    folders = _class_folders(folder)
    if classes is not None:
        _check_different(classes, "--class")
        for name in classes:
            if name not in folders:
                raise DatasetError(f"{folder} has no class {name}; choose among {', '.join(sorted(folders))}")
        folders = {name: folders[name] for name in classes}
    return sorted(clip for label, path in folders.items() for clip in _clips_of(label, path))


def _class_folders(folder: Path) -> dict[str, Path]:
    try:
        folders = {path.name: path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
    except OSError as error:
        raise DatasetError(
            f"{folder} cannot be read ({error.strerror}); name a folder that holds one folder of clips per class"
        ) from error
    if not folders:
        raise DatasetError(f"{folder} holds no folders; it needs one folder of clips per class")
    _check_different(folders, folder)
    return folders


def _check_different(names: Iterable[str], where: object) -> None:
    seen: dict[str, str] = {}
    for name in names:
        key = look(name)
        if key in seen:
            raise DatasetError(
                f"{where}: the classes {seen[key]!r} and {name!r} look equal; make them one class or rename one"
            )
        seen[key] = name


def _clips_of(label: str, folder: Path) -> list[LabelledClip]:
    try:
        paths = [
            path
            for path in folder.iterdir()
            if path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".") and path.is_file()
        ]
    except OSError as error:
        raise DatasetError(f"{folder} cannot be read ({error.strerror}); make it readable or remove it") from error
    if not paths:
        raise DatasetError(
            f"{folder} holds no clips ({', '.join(sorted(VIDEO_SUFFIXES))}); add clips or remove the folder"
        )
    return [LabelledClip(path, label, group_of(label, path.stem)) for path in paths]
