"""From folders of clips to examples: selects clips, computes missing features, sets aside clips that cannot be used."""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from model_export.data.datasets import LabelledClip, class_names, clips_per_class, find_clips, find_left_out
from model_export.data.duplicates import EqualClips, join_copies, join_equal
from model_export.data.encoders import FrameEncoder, fastest_engine, load_encoder
from model_export.data.examples import ClassSummary, Example, in_order, summarize
from model_export.data.features import FeatureCache, View
from model_export.errors import DatasetError, FeatureError
from model_export.network.spec import Engine, FeatureDtype
from model_export.reporter import SILENT, Reporter
from model_export.space import check_features
from service.errors import ClipError
from service.model.bundle import file_sha256

# Number of sets of equal clips that are listed.
LISTED = 20


@dataclass(frozen=True, slots=True)
class Selection:
    """Which clips a command uses.

    Attributes:
        videos: Folder of class folders.
        classes: Only these classes; ``None``: all.
        count: At most this many clips of each class, spread over its groups by name (see ``clips_per_class``);
            ``None``: all. Other names lead to another choice.
    """

    videos: Path
    classes: Sequence[str] | None = None
    count: int | None = None

    def labels(self) -> list[str]:
        """Return the class names, in index order.

        Raises:
            DatasetError: See ``find_clips``.
        """
        return class_names(self._find())

    def clips(self) -> list[LabelledClip]:
        """Return the selected clips, sorted.

        Raises:
            DatasetError: See ``find_clips``.
        """
        clips = self._find()
        return clips_per_class(clips, self.count) if self.count else clips

    def tell_renamed(self, reporter: Reporter) -> None:
        """Report the classes that are not called exactly as their folders are (see ``label_of``)."""
        folders = {clip.label: clip.path.relative_to(self.videos).parts[0] for clip in self._find()}
        for label, folder in folders.items():
            if label != folder:
                reporter.say(f"the class in the folder {folder!a} is called {label!r}")

    def left_out(self) -> dict[str, str]:
        """Return the reason by name for what may be meant as a clip and is none (see ``find_left_out``)."""
        return find_left_out(self.videos, self.classes)

    def _find(self) -> list[LabelledClip]:
        clips = find_clips(self.videos, self.classes)
        # The names are written into reports and heads.
        for name, path in [(self.videos.name, self.videos), *((clip.name, clip.path) for clip in clips)]:
            if name.encode(errors="ignore").decode() != name:
                raise DatasetError(
                    f"{str(path)!a} has bytes in its name that are no characters in this locale; rename the file or "
                    "its folder"
                )
        return clips


@dataclass(frozen=True)
class FeatureSet:
    """Clips and their features.

    Attributes:
        videos: Folder that the clips came from.
        labels: Class names, in index order.
        clips: All selected clips, with their groups by name.
        examples: The clips that could be decoded, in an order that depends on their content only (see ``in_order``),
            with their groups after those of equal clips were joined (see ``join_equal``): all training, folds,
            hold-outs and figures use these.
        undecodable: The other clips, with the reason.
        engine: What computed the features.
        dtype: Type in which they are stored.
        selected: What was selected, by class (see ``summarize``); whether it can be decoded does not count.
        left_out: What may have been meant as a clip, by name, with the reason (see ``find_left_out``).
    """

    videos: Path
    labels: tuple[str, ...]
    clips: tuple[LabelledClip, ...]
    examples: tuple[Example, ...]
    undecodable: dict[LabelledClip, str]
    engine: Engine
    dtype: FeatureDtype
    selected: Mapping[str, ClassSummary] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def decodable(self) -> list[LabelledClip]:
        """The clips of ``examples``, in their order."""
        clips = {clip.name: clip for clip in self.clips}
        return [clips[example.name] for example in self.examples]


def gather_features(
    selection: Selection,
    weights: Path,
    cache_folder: Path,
    *,
    flip: bool = False,
    dtype: FeatureDtype | None = None,
    least_classes: int = 1,
    check: Callable[[FeatureSet], object] = lambda data: None,
    reporter: Reporter = SILENT,
) -> FeatureSet:
    """Compute the VGG19 features of the selected clips that are not cached yet, and join the groups of equal clips.

    Args:
        selection: Which clips.
        weights: VGG19's weights file.
        cache_folder: Folder of cached features; created if missing.
        flip: Also compute features of the mirrored clips.
        dtype: Type that the features have to be stored in; ``None``: that of the folder, or float16 for a new one.
        least_classes: Number of classes that are needed.
        check: Called with what is known before anything is encoded, which can take hours: all clips that can be read as
            examples, with the paths that their features will have, and groups by names and equal files. It raises what
            makes the work useless. What it checks has to be checked again afterwards: clips may turn out to be
            undecodable, or to have equal frames.
        reporter: Receives progress, the clips that were left out and the groups that were joined.

    Raises:
        DatasetError: There are too few classes, or no clip of a class can be decoded.
        FeatureError: ``cache_folder`` holds features of another encoder, type or sampling rule or damaged ones, or
            cannot be written, or the engine of its features is missing.
        StorageError: The missing features do not fit on its disk.
    """
    clips = selection.clips()
    if len(names := class_names(clips)) < least_classes:
        raise DatasetError(
            f"{selection.videos}: {names[0]} is the only class, and training needs at least two; add clips of another"
        )
    cached = FeatureCache(cache_folder, file_sha256(weights), dtype or "float16", fastest_engine(dtype or "float16"))
    if dtype not in (None, cached.dtype):
        raise FeatureError(
            f"{cache_folder} holds {cached.dtype} features; name another folder with --features for {dtype} ones"
        )
    selection.tell_renamed(reporter)
    survey = _survey(selection, clips, cached, flip=flip, reporter=reporter)
    check(survey)
    examples, undecodable = _encode(survey, cached, weights, reporter)
    data = replace(
        survey, examples=tuple(examples), undecodable=dict(sorted({**survey.undecodable, **undecodable}.items()))
    )
    _check_classes(data)
    _check_channels(examples)
    left_out = [(str(data.videos / name), reason) for name, reason in data.left_out.items()]
    undecodable_paths = [(str(clip.path), reason) for clip, reason in data.undecodable.items()]
    reporter.table(("left out", "reason"), left_out + undecodable_paths)
    joined, equal = join_equal(examples)
    _report_equal(equal, reporter)
    return replace(data, examples=tuple(joined))


def _survey(
    selection: Selection, clips: Sequence[LabelledClip], cached: FeatureCache, *, flip: bool, reporter: Reporter
) -> FeatureSet:
    """Read the files of clips, without decoding them; their features need not exist yet."""
    labels = class_names(clips)
    examples: list[Example] = []
    unreadable: dict[LabelledClip, str] = {}
    with reporter.track(clips, "reading clips") as tracked:
        for clip in tracked:
            try:
                data = clip.path.read_bytes()
            except OSError as error:
                unreadable[clip] = f"it cannot be read ({error.strerror})"
                continue
            plain, flipped = cached.path_of(data), cached.path_of(data, "flipped") if flip else None
            label, content = labels.index(clip.label), hashlib.sha256(data).hexdigest()
            examples.append(Example(plain, label, clip.group, clip.name, flipped, content))
    examples = in_order(join_copies(examples))
    survey = FeatureSet(
        selection.videos,
        tuple(labels),
        tuple(clips),
        tuple(examples),
        unreadable,
        cached.engine,
        cached.dtype,
        summarize(examples, labels),
        selection.left_out(),
    )
    _check_classes(survey)
    return survey


def _encode(
    survey: FeatureSet, cached: FeatureCache, weights: Path, reporter: Reporter
) -> tuple[list[Example], dict[LabelledClip, str]]:
    """Compute missing features.

    Returns:
        The examples that have features, with their groups by name, and the clips that cannot be decoded.
    """

    @cache
    def load() -> FrameEncoder:
        why = ""
        if (faster := fastest_engine(cached.dtype)) != cached.engine:
            why = (
                f", which the features in {cached.directory} come from; {faster} is faster here, and needs another "
                "folder"
            )
        reporter.say(f"VGG19 runs on {cached.engine}{why}")
        return load_encoder(weights, cached.engine)

    encoded = 0

    def encode() -> FrameEncoder:
        nonlocal encoded
        encoded += 1
        return load()

    undecodable: dict[LabelledClip, str] = {}
    examples: list[Example] = []
    pairs = list(zip(survey.decodable, survey.examples, strict=True))
    files = {path for example in survey.examples for path in (example.features, example.flipped) if path}
    missing = sum(not cached.is_whole(path) for path in files)
    check_features(cached.directory, missing, cached.dtype, reporter)
    began = time.monotonic()
    with reporter.track(pairs, "VGG19 features") as tracked:
        for clip, example in tracked:
            views: dict[View, Path | None] = {"plain": example.features, "flipped": example.flipped}
            try:
                replaced = any(path and cached.get(clip.path, encode, view) != path for view, path in views.items())
            except ClipError as error:
                undecodable[clip] = str(error)
                continue
            if replaced:
                raise DatasetError(f"{clip.path} was replaced meanwhile; run the command again")
            examples.append(replace(example, group=clip.group))
    rate = 60 * encoded / max(time.monotonic() - began, 1e-9)
    unit = "views" if survey.examples[0].flipped else "clips"
    source = f"computed by {cached.engine}, {rate:.1f} {unit} per minute" if encoded else "already cached"
    left_out = len(survey.undecodable) + len(undecodable)
    reporter.say(
        f"{len(examples)} clips of {len(survey.labels)} classes, {left_out} left out as undecodable; features {source}"
    )
    return examples, undecodable


def _check_classes(data: FeatureSet) -> None:
    """Check that each class has a clip that can be read and decoded."""
    if lost := sorted(set(data.labels) - {data.labels[example.label] for example in data.examples}):
        clip, why = next((clip, why) for clip, why in data.undecodable.items() if clip.label == lost[0])
        folder = data.videos / clip.path.relative_to(data.videos).parts[0]
        raise DatasetError(f"{folder}: none of its clips can be decoded ({why}); replace them or remove the folder")


def _report_equal(equal: Sequence[EqualClips], reporter: Reporter) -> None:
    """Report the groups that were joined, and equal clips in different classes."""
    joined = [one for one in equal if len(one.groups) > 1]
    if joined:
        before, after = {group for one in joined for group in one.groups}, {one.group for one in joined}
        reporter.say(f"{len(before)} groups were joined into {len(after)}, because clips of them are equal")
    if across := [one for one in equal if one.classes > 1]:
        reporter.say(
            f"equal clips are in several classes ({len(across)} times, first {' and '.join(across[0].names)}); no "
            "network can tell them apart, so keep each clip in one class only"
        )
    rows = [(", ".join(one.names), one.group) for one in equal]
    more = [(f"and {len(rows) - LISTED} more", "")] if len(rows) > LISTED else []
    reporter.table(("equal clips", "group"), rows[:LISTED] + more)


def _check_channels(examples: Sequence[Example]) -> None:
    """Compare the sizes of feature files, which differ only in channels: each was found to be whole."""
    sizes = {file: file.stat().st_size for e in examples for file in (e.features, e.flipped) if file}
    usual = Counter(sizes.values()).most_common(1)[0][0]
    if odd := next((file for file, size in sizes.items() if size != usual), None):
        raise FeatureError(
            f"{odd} holds features of another number of channels than most; remove it, and run the command again to "
            "compute it anew"
        )
