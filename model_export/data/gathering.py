"""From folders of clips to examples: selects clips, computes missing features, sets aside clips that cannot be used."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from model_export.data.datasets import LabelledClip, class_names, clips_per_class, find_clips
from model_export.data.duplicates import EqualClips, join_equal
from model_export.data.encoders import FrameEncoder, fastest_engine, load_encoder
from model_export.data.examples import Example
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
            ``None``: all.
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
        examples: The clips that could be decoded, in the same order, with their groups after those of equal clips were
            joined (see ``join_equal``): all training, folds, hold-outs and figures use these.
        undecodable: The other clips, with the reason.
        engine: What computed the features.
        dtype: Type in which they are stored.
    """

    videos: Path
    labels: tuple[str, ...]
    clips: tuple[LabelledClip, ...]
    examples: tuple[Example, ...]
    undecodable: dict[LabelledClip, str]
    engine: Engine
    dtype: FeatureDtype

    @property
    def decodable(self) -> list[LabelledClip]:
        """The clips of ``examples``."""
        return [clip for clip in self.clips if clip not in self.undecodable]


def gather_features(
    selection: Selection,
    weights: Path,
    cache_folder: Path,
    *,
    flip: bool = False,
    dtype: FeatureDtype = "float16",
    least_classes: int = 1,
    reporter: Reporter = SILENT,
) -> FeatureSet:
    """Compute the VGG19 features of the selected clips that are not cached yet, and join the groups of equal clips.

    Args:
        selection: Which clips.
        weights: VGG19's weights file.
        cache_folder: Folder of cached features; created if missing.
        flip: Also compute features of the mirrored clips.
        dtype: Type to store features in; a folder that holds features already keeps its own, and its engine.
        least_classes: Number of classes that are needed.
        reporter: Receives progress, the clips that were left out and the groups that were joined.

    Raises:
        DatasetError: There are too few classes, or no clip of a class can be decoded.
        FeatureError: ``cache_folder`` holds features of another encoder or sampling rule or damaged ones, or cannot be
            written, or the engine of its features is missing.
        StorageError: The missing features do not fit on its disk.
        OSError: A clip cannot be read.
    """
    clips = selection.clips()
    labels = class_names(clips)
    if len(labels) < least_classes:
        raise DatasetError(
            f"{selection.videos}: {labels[0]} is the only class, and training needs at least two; add clips of another"
        )
    cached = FeatureCache(cache_folder, file_sha256(weights), dtype, fastest_engine(dtype))

    @cache
    def load() -> FrameEncoder:
        why = ""
        if (faster := fastest_engine(cached.dtype)) != cached.engine:
            why = f", which the features in {cache_folder} come from; {faster} is faster here, and needs another folder"
        reporter.say(f"VGG19 runs on {cached.engine}{why}")
        return load_encoder(weights, cached.engine)

    views: tuple[View, ...] = ("plain", "flipped") if flip else ("plain",)
    with reporter.track(clips, "cached features") as tracked:
        found = {(clip, view): cached.find(clip.path, view) for clip in tracked for view in views}
    check_features(cache_folder, list(found.values()).count(None), cached.dtype, reporter)

    examples: list[Example] = []
    undecodable: dict[LabelledClip, str] = {}
    encoded = 0
    began = time.monotonic()

    def encode() -> FrameEncoder:
        nonlocal encoded
        encoded += 1
        return load()

    with reporter.track(clips, "VGG19 features") as tracked:
        for clip in tracked:
            try:
                plain, *flipped = (found[clip, view] or cached.get(clip.path, encode, view) for view in views)
            except ClipError as error:
                undecodable[clip] = str(error)
            else:
                examples.append(Example(plain, labels.index(clip.label), clip.group, clip.name, *flipped))
    if lost := sorted({clip.label for clip in clips} - {clip.label for clip in clips if clip not in undecodable}):
        why = next(reason for clip, reason in undecodable.items() if clip.label == lost[0])
        raise DatasetError(
            f"{selection.videos / lost[0]}: none of its clips can be decoded ({why}); replace them or remove the folder"
        )
    _check_channels(examples)
    reporter.table(("skipped clip", "reason"), [(str(clip.path), reason) for clip, reason in undecodable.items()])
    rate = 60 * encoded / max(time.monotonic() - began, 1e-9)
    views_or_clips = "views" if flip else "clips"
    source = f"computed by {cached.engine}, {rate:.1f} {views_or_clips} per minute" if encoded else "already cached"
    reporter.say(
        f"{len(examples)} clips of {len(labels)} classes, {len(undecodable)} left out as undecodable; features {source}"
    )
    examples, equal = join_equal(examples)
    _report_equal(equal, reporter)
    return FeatureSet(
        selection.videos, tuple(labels), tuple(clips), tuple(examples), undecodable, cached.engine, cached.dtype
    )


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
