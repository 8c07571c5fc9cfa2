"""A folder of class folders: UCF-101, HMDB-51, one's own clips, or any mixture of them."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from model_export.data.datasets import hmdb51, ucf101
from model_export.data.datasets.clips import Clip, DatasetError

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"})


def find_clips(folder: Path, classes: Sequence[str] | None = None) -> list[Clip]:
    """The clips in ``folder/<class>/``, sorted; other files and hidden ones are left out.

    Groups come from the file names: clips named as UCF-101 or HMDB-51 name theirs are grouped by source video, any
    other clip is a group of its own.

    Args:
        folder: holds one folder a class.
        classes: only these; default: all.

    Raises:
        DatasetError: ``folder`` is missing or holds no class folder, a class has no clip or no folder, or is named
            twice (case aside).
    """
    folders = _class_folders(folder)
    if classes is not None:
        _refuse_doubles(classes, "the classes asked for")
        for name in classes:
            if name not in folders:
                raise DatasetError(f"{folder} has no class {name}: choose among {', '.join(sorted(folders))}.")
        folders = {name: folders[name] for name in classes}
    return sorted(clip for label, path in folders.items() for clip in _clips_of(label, path))


def _class_folders(folder: Path) -> dict[str, Path]:
    try:
        folders = {path.name: path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
    except OSError as error:
        raise DatasetError(
            f"{folder} cannot be read ({error.strerror}): give a folder that holds one folder of clips a class."
        ) from error
    if not folders:
        raise DatasetError(f"{folder} holds no folders: it needs one folder of clips a class.")
    _refuse_doubles(folders, folder)
    return folders


def _refuse_doubles(names: Iterable[str], where: object) -> None:
    seen: dict[str, str] = {}
    for name in names:
        key = name.casefold()
        if key in seen:
            raise DatasetError(f"{where}: a class is named twice ({seen[key]}, {name}); keep one of them.")
        seen[key] = name


def _clips_of(label: str, folder: Path) -> list[Clip]:
    try:
        paths = [
            path
            for path in folder.iterdir()
            if path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".") and path.is_file()
        ]
    except OSError as error:
        raise DatasetError(f"{folder} cannot be read ({error.strerror}): give access to it or remove it.") from error
    if not paths:
        raise DatasetError(
            f"{folder} holds no clips ({', '.join(sorted(VIDEO_SUFFIXES))}): put some in or remove the folder."
        )
    return [Clip(path, label, _group(label, path.stem)) for path in paths]


def _group(label: str, stem: str) -> str:
    return ucf101.group(stem) or hmdb51.group(label, stem) or f"{label}/{stem}"
