"""The command ``verify``: compares the precisions of a bundle with the Keras network that it was made from."""

import json
import math
import os
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import onnxruntime
from scipy.stats import norm

from model_export.data.datasets import LabelledClip
from model_export.data.dealing import linked
from model_export.data.encoders import keras_encoder
from model_export.data.examples import read_features
from model_export.data.features import OFFLINE_LIMITS, FeatureCache
from model_export.data.gathering import Selection
from model_export.errors import DatasetError, FeatureError, HeadError
from model_export.head import PRETRAINED, TrainedHead
from model_export.machine import processor
from model_export.network.arrays import Frames, as_outputs, largest_difference, predictor
from model_export.network.vgg19 import build_encoder
from model_export.provenance import check_made_from
from model_export.quantize import QUANTIZER_REVISION, session_options
from model_export.reporter import SILENT, Reporter
from model_export.revisions import CURRENT
from model_export.storing import explained
from model_export.weights import fetch_weights
from service.errors import ClipError
from service.files import locked
from service.model.bundle import (
    LEAST_CLIPS,
    MANIFEST,
    Agreement,
    Bundle,
    Outputs,
    Precision,
    file_sha256,
    load_bundle,
    read_manifest,
    write_manifest,
)
from service.video.decoder import decode_clip

# Two classes this close are a tie: predicting either of them does not count as a disagreement.
TIE = 2e-4

Reference = Callable[[], tuple[Frames, Outputs]]
"""Returns a clip's frames ``(40, 224, 224, 3)`` and what Keras computes for them."""


class OnnxNetwork:
    """An ONNX file on the CPU.

    Args:
        model: The file's path or content.
    """

    def __init__(self, model: Path | bytes) -> None:
        self.session = onnxruntime.InferenceSession(model, session_options(), providers=["CPUExecutionProvider"])
        self.names = [output.name for output in self.session.get_outputs()]

    def __call__(self, frames: Frames) -> Outputs:
        """Compute the outputs for frames ``(clips, 40, 224, 224, 3)``."""
        found = self.session.run(self.names, {"frames": frames})
        return as_outputs(dict(zip(self.names, found, strict=True)))


# Clips per class to compare, by default: each takes seconds for each precision.
CLIPS_PER_CLASS = 20

Outcome = Literal["agrees", "disagrees", "not finite"]
"""Whether a precision predicts Keras' class. Values that are not finite are a disagreement with a word of its own."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A clip to compare.

    Attributes:
        name: Its name, for people.
        group: Its source video, the same for all clips of videos that have a clip in common.
        sha256: SHA-256 of its content.
        reference: Returns its frames and what Keras computes.
    """

    name: str
    group: str
    sha256: str
    reference: Reference


@dataclass(frozen=True, slots=True)
class ClipCheck:
    """One clip through one precision.

    Attributes:
        clip: The clip's name.
        group: Its source video.
        precision: The precision.
        outcome: Whether it predicts Keras' class.
        max_abs_difference: Largest difference from Keras in any output; ``None`` if an output is not finite.
    """

    clip: str
    group: str
    precision: Precision
    outcome: Outcome
    max_abs_difference: float | None


def verify_bundle(
    bundle: Path,
    head: TrainedHead,
    selection: Selection,
    log: Path,
    *,
    precisions: Sequence[Precision] = (),
    features: Path | None = None,
    record: bool = False,
    weights: Path | None = None,
    reporter: Reporter = SILENT,
) -> dict[Precision, Agreement]:
    """Compare a bundle with Keras over many clips and write the agreement into its manifest.

    Args:
        bundle: Folder of the bundle.
        head: Head that the bundle was made from.
        selection: Which clips.
        log: File of results by clip; an interrupted run continues from it.
        precisions: Which precisions to check; default: all.
        features: Folder of float32 features, used instead of running VGG19 in Keras.
        record: Also save the agreement beside the head's weights, for later exports.
        weights: VGG19's weights file; found or downloaded if not given.
        reporter: Receives progress.

    Returns:
        The agreement by precision.

    Raises:
        LimelightModelError: The head is not the bundle's, or a clip, the features or the weights cannot be used.
        BundleError: The bundle cannot be used.
        OSError: A file cannot be read or written.
    """
    if warning := head.check_revisions():
        reporter.say(warning)
    checked = load_bundle(bundle)
    check_made_from(bundle, checked.manifest, head)
    head_sha256 = head.sha256()
    clips = selection.clips()
    chosen = list(precisions) or list(checked.manifest.precisions)
    vgg19 = fetch_weights(weights, reporter=reporter)
    expected = _keras_reference(head, vgg19, features)
    subjects = subjects_of(clips, expected)
    log.parent.mkdir(parents=True, exist_ok=True)
    skipped: dict[str, str] = {}
    checking = check_clips(checked, chosen, subjects, log, skipped)
    with reporter.track(checking, "verifying", len(clips) * len(chosen)) as tracked:
        checks = list(tracked)
    reporter.table(("left out", "reason"), {**selection.left_out(), **skipped}.items())
    if not checks:
        raise DatasetError(f"{selection.videos}: none of its clips can be decoded; replace them")
    measured = {precision: agreement([c for c in checks if c.precision == precision]) for precision in chosen}
    if not record_agreement(measured, checked):
        reporter.say(f"{bundle} was replaced meanwhile; verify it again to write the agreement into its manifest")
    if record:
        head.record_agreement(measured, QUANTIZER_REVISION, head_sha256)
    return measured


def clips_for_int8(head: TrainedHead) -> int:
    """Return how many clips of each class to compare, so that the service may choose int8 if none disagrees."""
    return max(CLIPS_PER_CLASS, math.ceil(LEAST_CLIPS / len(head.facts.labels)))


def verify_command(bundle: Path, head: TrainedHead, weights: Path | None = None) -> str:
    """Return the command that measures how well a bundle agrees with its head.

    The facts of a head have the name of the folder of clips that it was trained on, not the path, which is private.
    ``VIDEOS`` stands for the path, unless there is such a folder here.
    """
    videos = Path(str(head.facts.training.get("data") or "VIDEOS"))
    there = all((videos / label).is_dir() for label in head.facts.labels)
    words = ["limelight-model", "verify", "--bundle", bundle]
    own = head.path != PRETRAINED
    words += ["--head", head.path] if own else []
    words += ["--videos", videos if there else "VIDEOS"]
    words += ["--clips-per-class", count] if (count := clips_for_int8(head)) > CLIPS_PER_CLASS else []
    words += ["--weights", weights] if weights else []
    words += ["--record"] if own else []
    return shlex.join(map(str, words))


def record_agreement(measured: dict[Precision, Agreement], checked: Bundle) -> bool:
    """Write the agreement of files into the manifest of their bundle, unless they have been replaced meanwhile.

    Args:
        measured: The agreement by precision.
        checked: The bundle whose files were compared.

    Returns:
        Whether all of it was written.

    Raises:
        BundleError: The manifest cannot be read any more.
        StorageError: The disk is full.
        OSError: The manifest cannot be written for another reason.
    """
    with locked(checked.path), explained(checked.path / MANIFEST, 1, "verify a copy on another disk"):
        manifest, files = read_manifest(checked.path), checked.manifest.precisions
        same = {p for p in measured.keys() & manifest.precisions if manifest.precisions[p].sha256 == files[p].sha256}
        updated = {p: manifest.precisions[p].model_copy(update={"agreement": measured[p]}) for p in same}
        write_manifest(checked.path, manifest.model_copy(update={"precisions": {**manifest.precisions, **updated}}))
    return same == measured.keys()


def _keras_reference(
    head: TrainedHead, vgg19: Path, features: Path | None
) -> Callable[[LabelledClip], tuple[Frames, Outputs]]:
    """Return a function from a clip to its frames and what Keras computes, from cached features if there are some."""
    predict = predictor(head.build())
    encoder = cache(lambda: keras_encoder(build_encoder(vgg19)))
    cached = FeatureCache(features, file_sha256(vgg19), "float32") if features else None
    if cached and cached.dtype != "float32":
        raise FeatureError(
            f"{features} holds float16 features, whose rounding would count as disagreement; name a new folder with "
            f"--features, such as {features}-float32, where `verify` computes float32 ones"
        )

    def reference(clip: LabelledClip) -> tuple[Frames, Outputs]:
        frames = decode_clip(clip.path, OFFLINE_LIMITS).frames
        cuboids = read_features(cached.get(clip.path, encoder)).astype(np.float32) if cached else encoder()(frames)
        return frames, predict(cuboids[np.newaxis])

    return reference


def subjects_of(
    clips: Sequence[LabelledClip], expected: Callable[[LabelledClip], tuple[Frames, Outputs]]
) -> list[Subject]:
    """Return what to compare for clips; copies of one file are of one video, whatever they are called."""
    contents = [file_sha256(clip.path) for clip in clips]
    videos = linked((clip.group, content) for clip, content in zip(clips, contents, strict=True))
    return [
        Subject(clip.name, str(videos[clip.group]), content, partial(expected, clip))
        for clip, content in zip(clips, contents, strict=True)
    ]


def check_clips(
    bundle: Bundle,
    precisions: Iterable[Precision],
    subjects: Iterable[Subject],
    log: Path,
    skipped: dict[str, str] | None = None,
) -> Iterator[ClipCheck]:
    """Run clips through a bundle's precisions and compare each with Keras.

    Args:
        bundle: The bundle.
        precisions: Which of its precisions.
        subjects: The clips.
        log: File with one JSON object per line. Checks that it holds are not repeated if the bundle was made from the
            same head by the same code (see ``Manifest.built_from``), and frames, device and content of the clip are the
            same. Its files may have been written anew: their bytes differ from one time and processor to the next,
            their numbers by rounding only. Several processes may write to the log at once.
        skipped: Receives the reason for each clip that cannot be decoded and is left out.

    Raises:
        ClipError: A clip cannot be decoded, and there is no ``skipped``.
        HeadError: Keras computes values that are not finite, or the bundle's network returns other arrays.
    """
    done = _read_log(log)
    networks = {precision: OnnxNetwork(bundle.read_model(precision)) for precision in precisions}
    for subject in subjects:
        keys = {
            precision: {
                "built_from": bundle.manifest.built_from,
                "revisions": CURRENT.model_dump(),
                "device": device_of(precision),
                "content": subject.sha256,
                "precision": precision,
            }
            for precision in networks
        }
        frames, expected = None, None
        for precision, network in networks.items():
            found = done.get(json.dumps(keys[precision]))
            if found is None:
                if frames is None or expected is None:
                    try:
                        frames, expected = subject.reference()
                    except ClipError as error:
                        if skipped is None:
                            raise
                        skipped[subject.name] = str(error)
                        break
                found = compare(subject.name, network(frames[np.newaxis]), expected)
                outcome, difference = found
                line = keys[precision] | {"clip": subject.name, "outcome": outcome, "max_abs_difference": difference}
                _append(log, json.dumps(line))
            yield ClipCheck(subject.name, subject.group, precision, *found)


def compare(clip: str, found: Outputs, expected: Outputs) -> tuple[Outcome, float | None]:
    """Compare the outputs of a precision for one clip with Keras'.

    Returns:
        Whether it predicts Keras' class, and the largest difference; ``None`` if an output is not finite.

    Raises:
        HeadError: Keras' outputs are not finite, or of other shapes.
    """
    if not expected.finite:
        raise HeadError(f"the head computes values that are not finite in Keras for {clip}; train the head again")
    difference = largest_difference(found, expected)
    if not found.finite:
        return "not finite", None
    probabilities = expected.probabilities[0]
    lead = probabilities.max() - probabilities[int(found.probabilities[0].argmax())]
    return "agrees" if lead < TIE else "disagrees", difference


def _read_log(log: Path) -> dict[str, tuple[Outcome, float | None]]:
    """Read the results by their keys; lines of earlier versions and lines that were cut off are passed over."""
    found: dict[str, tuple[Outcome, float | None]] = {}
    for text in log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else ():
        with suppress(ValueError, KeyError, TypeError, AttributeError):
            line = json.loads(text)
            outcome, difference, _ = (line.pop(name) for name in ("outcome", "max_abs_difference", "clip"))
            if outcome in get_args(Outcome):
                found[json.dumps(line)] = outcome, difference
    return found


def _append(log: Path, line: str) -> None:
    """Append a line completely or not at all, after a new line if the last one was cut off."""
    with explained(log, len(line), "choose another --log"):
        log.touch()
        with locked(log), log.open("r+b", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 1))
            cut = file.read(1) not in (b"", b"\n")
            data = ("\n" * cut + line + "\n").encode()
            try:
                while data:
                    data = data[file.write(data) :]
            except OSError:
                file.truncate(end)
                raise


def agreement(checks: Sequence[ClipCheck]) -> Agreement:
    """Compute the top-1 agreement of one precision with its 95 % Wilson score interval.

    Clips of one source video are not independent. The interval counts them as if they were one clip: its number of
    trials is Kish's effective sample size with a correlation of 1 within a video.

    The rule of ``judging/intervals.py`` is not used. Both ends of its interval together err in 5 % of cases, but near
    100 % the lower one alone does: a precision that agrees on 98 % of all clips would have a lower bound of 98 % in 5 %
    of cases, here in 2.5 %.
    """
    count = Counter(check.outcome for check in checks)
    top1 = count["agrees"] / len(checks)
    low, high = wilson(top1, effective_size(Counter(check.group for check in checks).values()))
    return Agreement(
        top1=top1,
        n=len(checks),
        low=low,
        high=high,
        max_abs_difference=max((c.max_abs_difference for c in checks if c.max_abs_difference is not None), default=0.0),
        device=device_of(checks[0].precision),
        not_finite=count["not finite"] or None,
    )


def effective_size(sizes: Iterable[int]) -> float:
    """Return the effective number of clips in groups of these sizes, whose clips all behave alike.

    It is the number of groups if they are of one size, and less otherwise (Kish, Survey Sampling, 1965, section 11.7).
    """
    found = np.array([*sizes], float)
    return float(found.sum() ** 2 / (found**2).sum())


def wilson(share: float, n: float) -> tuple[float, float]:
    """Return the 95 % score interval of a share of ``n`` trials (Wilson, JASA 22, 1927, page 209)."""
    z2 = float(norm.ppf(0.975)) ** 2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    spread = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    # Rounding must not exclude the share itself.
    return max(0.0, min(centre - spread, share)), min(1.0, max(centre + spread, share))


@cache
def device_of(precision: Precision) -> str:
    """Say on what a precision runs: its numbers depend on it."""
    # ONNX Runtime has no float16 kernels for these operators on a CPU: it widens the file's weights.
    widened = ", computing in float32" if precision == "fp16" else ""
    return f"CPUExecutionProvider on {processor()}, ONNX Runtime {onnxruntime.__version__}{widened}"
