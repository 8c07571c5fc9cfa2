"""The command ``verify``: compares the precisions of a bundle with the Keras network that it was made from."""

import json
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import onnxruntime
from scipy.stats import binomtest

from model_export.data.datasets import LabelledClip
from model_export.data.encoders import keras_encoder
from model_export.data.examples import read_features
from model_export.data.features import OFFLINE_LIMITS, FeatureCache
from model_export.data.gathering import Selection
from model_export.errors import DatasetError, FeatureError, HeadError
from model_export.head import TrainedHead
from model_export.network.arrays import Frames, as_outputs, largest_difference, predictor
from model_export.network.vgg19 import build_encoder
from model_export.reporter import SILENT, Reporter
from model_export.weights import fetch_weights
from service.errors import ClipError
from service.model.bundle import (
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
        self.session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        self.names = [output.name for output in self.session.get_outputs()]

    def __call__(self, frames: Frames) -> Outputs:
        """Compute the outputs for frames ``(clips, 40, 224, 224, 3)``."""
        found = self.session.run(self.names, {"frames": frames})
        return as_outputs(dict(zip(self.names, found, strict=True)))


@dataclass(frozen=True, slots=True)
class ClipCheck:
    """One clip through one precision: whether it predicts Keras' class, and the largest difference."""

    clip: str
    precision: Precision
    agrees: bool
    max_abs_difference: float


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
    checked = load_bundle(bundle)
    if list(head.facts.labels) != checked.manifest.labels:
        raise HeadError(f"{bundle} was not made from the head in {head.path}; name its head with --head")
    if warning := head.check_revisions():
        reporter.say(warning)
    clips = selection.clips()
    chosen = list(precisions) or list(checked.manifest.precisions)
    vgg19 = fetch_weights(weights, reporter=reporter)
    expected = _keras_reference(head, vgg19, features)
    references = [(clip.name, partial(expected, clip)) for clip in clips]
    log.parent.mkdir(parents=True, exist_ok=True)
    checking = check_clips(checked, chosen, references, log)
    with reporter.track(checking, "verifying", len(clips) * len(chosen)) as tracked:
        checks = list(tracked)
    measured = {precision: agreement(c for c in checks if c.precision == precision) for precision in chosen}
    record_agreement(measured, checked)
    if record:
        head.record_agreement(measured)
    return measured


def record_agreement(measured: dict[Precision, Agreement], checked: Bundle) -> None:
    """Write the agreement of files into the manifest of their bundle, unless they have been replaced meanwhile.

    Args:
        measured: The agreement by precision.
        checked: The bundle whose files were compared.

    Raises:
        BundleError: The manifest cannot be read any more.
        OSError: The manifest cannot be written.
    """
    manifest, files = read_manifest(checked.path), checked.manifest.precisions
    updated = {
        precision: entry.model_copy(update={"agreement": measured[precision]})
        if precision in measured and entry.sha256 == files[precision].sha256
        else entry
        for precision, entry in manifest.precisions.items()
    }
    write_manifest(checked.path, manifest.model_copy(update={"precisions": updated}))


def _keras_reference(
    head: TrainedHead, vgg19: Path, features: Path | None
) -> Callable[[LabelledClip], tuple[Frames, Outputs]]:
    """Return a function from a clip to its frames and what Keras computes, from cached features if there are some."""
    predict = predictor(head.build())
    encoder = cache(lambda: keras_encoder(build_encoder(vgg19)))
    cached = FeatureCache(features, file_sha256(vgg19), "float32") if features else None
    if cached and cached.dtype != "float32":
        raise FeatureError(
            f"{features} holds float16 features, whose rounding would count as disagreement; compute float32 features "
            "with `limelight-model features --dtype float32`"
        )

    def reference(clip: LabelledClip) -> tuple[Frames, Outputs]:
        try:
            frames = decode_clip(clip.path, OFFLINE_LIMITS).frames
        except ClipError as error:
            raise DatasetError(f"{clip.path} cannot be compared ({error}); remove it from the clips") from error
        cuboids = read_features(cached.get(clip.path, encoder)).astype(np.float32) if cached else encoder()(frames)
        return frames, predict(cuboids[np.newaxis])

    return reference


def check_clips(
    bundle: Bundle, precisions: Iterable[Precision], clips: Iterable[tuple[str, Reference]], log: Path
) -> Iterator[ClipCheck]:
    """Run clips through a bundle's precisions and compare each with Keras.

    Args:
        bundle: The bundle.
        precisions: Which of its precisions.
        clips: Name and reference of each clip.
        log: File with one JSON object per line; checks of this bundle that it holds are not repeated.
    """
    done = _read_log(log, bundle)
    networks = {precision: OnnxNetwork(bundle.read_model(precision)) for precision in precisions}
    with log.open("a", encoding="utf-8") as file:
        for name, reference in clips:
            yield from (done[name, p] for p in networks if (name, p) in done)
            missing = [p for p in networks if (name, p) not in done]
            if not missing:
                continue
            frames, expected = reference()
            for precision in missing:
                check = _check(name, precision, networks[precision](frames[np.newaxis]), expected)
                sha256 = bundle.manifest.precisions[precision].sha256
                file.write(json.dumps({"sha256": sha256, **asdict(check)}) + "\n")
                file.flush()
                yield check


def _read_log(log: Path, bundle: Bundle) -> dict[tuple[str, Precision], ClipCheck]:
    if not log.exists():
        return {}
    current = {entry.sha256 for entry in bundle.manifest.precisions.values()}
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    kept = [ClipCheck(**line) for line in lines if line.pop("sha256") in current]
    return {(check.clip, check.precision): check for check in kept}


def _check(name: str, precision: Precision, found: Outputs, expected: Outputs) -> ClipCheck:
    predicted = int(found.probabilities[0].argmax())
    probabilities = expected.probabilities[0]
    agrees = probabilities.max() - probabilities[predicted] < TIE
    return ClipCheck(name, precision, bool(agrees), largest_difference(found, expected))


def agreement(checks: Iterable[ClipCheck]) -> Agreement:
    """Compute the top-1 agreement of one precision with its 95 % Wilson score interval."""
    seen = list(checks)
    agreeing = sum(check.agrees for check in seen)
    interval = binomtest(agreeing, len(seen)).proportion_ci(0.95, method="wilson")
    return Agreement(
        top1=agreeing / len(seen),
        n=len(seen),
        low=float(interval.low),
        high=float(interval.high),
        max_abs_difference=max(check.max_abs_difference for check in seen),
        device=f"CPUExecutionProvider on {_processor()}, ONNX Runtime {onnxruntime.__version__}",
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    flags = next((line for line in lines if line.startswith("flags")), "")
    return f"{model} ({'with' if 'vnni' in flags else 'without'} VNNI)"
