"""From folders of clips to examples: which clips, their features, and which of them had to be left out."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from model_export.data.datasets import Clip, DatasetError, class_names, clips_per_class, find_clips
from model_export.data.encoders import Engine, FeatureDtype, choose_encode
from model_export.data.examples import Example
from model_export.data.features import FeatureCache, View
from model_export.network.vgg19 import build_encoder
from service.model.bundle import file_sha256
from service.video.errors import ClipError


@dataclass(frozen=True)
class Gathered:
    """The clips a command works on and their features.

    Attributes:
        videos: the folder they came from.
        labels: class names, in index order.
        clips: all that were chosen.
        examples: those that could be decoded, in the same order.
        undecodable: the others, and why.
        encoded: how many clips' views were encoded now; the features of the others were there.
        engine_name: the library that encoded them.
    """

    videos: Path
    labels: tuple[str, ...]
    clips: tuple[Clip, ...]
    examples: tuple[Example, ...]
    undecodable: dict[Clip, str]
    encoded: int
    engine_name: str | None

    @property
    def decodable(self) -> list[Clip]:
        """The clips of ``examples``."""
        return [clip for clip in self.clips if clip not in self.undecodable]


@dataclass(frozen=True)
class Encoder:
    """VGG19 with the weights in a file, built when it is first needed."""

    weights: Path
    dtype: FeatureDtype

    @cached_property
    def engine(self) -> Engine:
        """The fastest there is for features of this type."""
        return choose_encode(build_encoder(self.weights), self.dtype)


def choose_clips(videos: Path, classes: Sequence[str] | None = None, clips_a_class: int | None = None) -> list[Clip]:
    """The clips under ``videos`` of all or some classes; all of them, or so many a class (see ``clips_per_class``)."""
    clips = find_clips(videos, classes)
    return clips_per_class(clips, clips_a_class) if clips_a_class else clips


def gather(
    clips: Sequence[Clip],
    videos: Path,
    features: Path,
    weights: Path,
    *,
    flip: bool = False,
    dtype: FeatureDtype = "float16",
    track: Callable[[Iterable[Clip]], Iterable[Clip]] = lambda clips: clips,
) -> Gathered:
    """Computes what features are missing, and leaves out what cannot be decoded.

    Args:
        clips: of at least one class.
        videos: the folder they came from, for messages.
        features: folder of kept features.
        weights: VGG19's.
        flip: features of the mirrored views, too.
        dtype: to keep features in; a folder that holds some keeps its own.
        track: shows progress.

    Raises:
        DatasetError: none of a class's clips can be decoded.
        FeatureError: ``features`` holds those of another encoder or sampling rule, or cannot be written.
        OSError: a clip cannot be read.
    """
    kept = FeatureCache(features, file_sha256(weights), dtype)
    encoder = Encoder(weights, kept.dtype)
    labels = class_names(clips)
    views: tuple[View, ...] = ("plain", "flipped") if flip else ("plain",)
    examples: list[Example] = []
    undecodable: dict[Clip, str] = {}
    encoded = 0

    def encode() -> Engine:
        nonlocal encoded
        encoded += 1
        return encoder.engine

    for clip in track(clips):
        try:
            plain, *flipped = (kept.get(clip.path, encode, view) for view in views)
        except ClipError as error:
            undecodable[clip] = str(error)
        else:
            examples.append(Example(plain, labels.index(clip.label), clip.group, clip_name(clip), *flipped))
    if lost := sorted({clip.label for clip in clips} - {clip.label for clip in clips if clip not in undecodable}):
        why = next(reason for clip, reason in undecodable.items() if clip.label == lost[0])
        raise DatasetError(
            f"{videos / lost[0]}: none of its clips can be decoded ({why}); replace them or remove the folder"
        )
    engine = encoder.engine.name if encoded else None
    return Gathered(videos, tuple(labels), tuple(clips), tuple(examples), undecodable, encoded, engine)


def clip_name(clip: Clip) -> str:
    """``class/file``, as examples and reports call it."""
    return f"{clip.label}/{clip.path.name}"
