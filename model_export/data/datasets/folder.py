"""A folder of class folders: UCF-101, HMDB-51, your own clips, or any mixture of them."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from model_export.data.datasets.clips import LabelledClip
from model_export.data.datasets.groups import group_of
from model_export.data.datasets.names import look
from model_export.errors import DatasetError
from service.errors import ClipError
from service.video.formats import VIDEO_SUFFIXES
from service.video.limits import DecodeLimits
from service.video.media import open_video


def find_clips(folder: Path, classes: Sequence[str] | None = None) -> list[LabelledClip]:
    """Find the clips in ``folder/<class>/`` and the folders in it; see ``find_left_out`` for what is left out.

    Groups come from the names alone (see ``group_of``).

    Args:
        folder: Holds one folder per class.
        classes: Only these; default: all.

    Returns:
        The clips, sorted.

    Raises:
        DatasetError: ``folder`` is missing or holds no class folder, or a class has no folder or no clip, or two class
            names look equal: they differ only in case, separators, leading zeros or Unicode's forms.
    """
    folders = _chosen_folders(folder, classes)
    return sorted(clip for label, path in folders.items() for clip in _clips_of(label, path))


def find_left_out(folder: Path, classes: Sequence[str] | None = None) -> dict[str, str]:
    """Find what may be meant as clips and is none: links to nothing, videos in odd places, folders without access.

    Other files, and all that are hidden, are ignored.

    Returns:
        The reason by name within ``folder``, sorted.

    Raises:
        DatasetError: See ``find_clips``.
    """
    left_out: dict[Path, str] = {}
    for path, fault in _entries(folder) if classes is None else ():
        if fault or (path.is_file() and (_is_named_as_video(path) or _is_video(path))):
            left_out[path] = fault or "it is in no class's folder; move it into one"
    for class_folder in _chosen_folders(folder, classes).values():
        for path, fault in _walk(class_folder):
            if fault or (not _is_named_as_video(path) and _is_video(path)):
                left_out[path] = fault or "its name has no video's suffix; rename it, for example to .mp4"
    # Names of files are bytes, and some are no characters.
    names = {path: path.relative_to(folder).as_posix().encode(errors="backslashreplace").decode() for path in left_out}
    return {names[path]: left_out[path] for path in sorted(left_out)}


def _chosen_folders(folder: Path, classes: Sequence[str] | None) -> dict[str, Path]:
    """Return the folder of each class."""
    folders = _class_folders(folder)
    if classes is None:
        return folders
    _check_different(classes, "--class")
    for name in classes:
        if name not in folders:
            raise DatasetError(f"{folder} has no class {name}; choose among {', '.join(sorted(folders))}")
    return {name: folders[name] for name in classes}


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
        paths = [path for path, fault in _walk(folder) if not fault and _is_named_as_video(path)]
    except OSError as error:
        raise DatasetError(f"{folder} cannot be read ({error.strerror}); make it readable or remove it") from error
    if not paths:
        raise DatasetError(
            f"{folder} holds no clips ({', '.join(sorted(VIDEO_SUFFIXES))}); add clips or remove the folder"
        )
    within = [path.parent.relative_to(folder).as_posix().removeprefix(".") for path in paths]
    return [
        LabelledClip(path, label, group_of(label, path.stem, inner), inner)
        for path, inner in zip(paths, within, strict=True)
    ]


def _walk(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield the files in a class's folder and in its folders, each with what keeps it from being read or ``""``.

    Links are followed, but no folder is read twice, and none that holds the class's folder. Folders come before links
    to them, so that the names of links do not decide under which name, and so in which group, a clip is found.

    Raises:
        OSError: ``folder`` itself cannot be read.
    """
    met, waiting = {*folder.resolve().parents}, deque([folder])
    while waiting:
        inner = waiting.popleft()
        if inner.resolve() in met:
            yield inner, "it is a link to a folder that is read elsewhere"
            continue
        met.add(inner.resolve())
        try:
            entries = [*_entries(inner)]
        except OSError as error:
            if inner == folder:
                raise
            yield inner, f"it cannot be read ({error.strerror})"
            continue
        for path, fault in entries:
            if fault or not path.is_dir():
                yield path, fault
            elif path.is_symlink():
                waiting.append(path)
            else:
                waiting.appendleft(path)


def _entries(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield what is in a folder and not hidden, each with what keeps it from being read or ``""``."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_file() or path.is_dir():
            yield path, ""
        elif path.is_symlink():
            yield path, "it is a link that leads nowhere"
        elif _is_named_as_video(path):
            yield path, "it is no regular file"


def _is_named_as_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def _is_video(path: Path) -> bool:
    """Check whether the service would take a file, by its content."""
    try:
        with path.open("rb") as file, open_video(file, DecodeLimits()):
            return True
    except (ClipError, OSError):
        return False
