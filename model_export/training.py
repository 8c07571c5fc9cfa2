"""The command ``train``: features, held-out accuracy, the head itself, and its int8 calibration ranges."""

import datetime as dt
from pathlib import Path
from typing import Any

from model_export.data.features import OFFLINE_LIMITS
from model_export.data.gathering import FeatureSet, Selection, gather_features
from model_export.errors import HeadError, TrainingError
from model_export.export import convert
from model_export.fitting import FittedHead, Start, check_fit, epoch_line, fit_head, training_sizes
from model_export.head import FILES, HeadFacts, TrainedHead, load_head, save_head, short_digest
from model_export.judging.plots import plot_history
from model_export.judging.report import read_accuracy
from model_export.network.spec import HeadSpec
from model_export.network.vgg19 import build_encoder
from model_export.processes import Run, run_apart
from model_export.quantize import ordered_ranges, quantize
from model_export.recipe import Recipe, describe, settings
from model_export.reporter import SILENT, Reporter
from model_export.revisions import CURRENT
from model_export.space import tell_ranges, tell_trainings
from model_export.storing import check_targets, check_writable, temporary_folder
from model_export.weights import fetch_weights
from service.model.bundle import file_sha256
from service.video.decoder import decode_clip

CALIBRATION_STRIDE = 5
HOLDOUT_PROTOCOL = (
    "accuracy on whole held-out groups of a head that was not trained on them, at the epoch with its lowest loss "
    "there, or of the mean answer of several members, each at its own epoch; the head itself is then trained on all "
    "clips for as many epochs. The epoch is chosen on the same clips, so that the figure is a little optimistic"
)
ACCURACY_PROTOCOL = (
    "of heads trained by the same recipe on the other folds or on the training side of the split; the head itself is "
    "trained on all clips. value, low, high: over all tested clips, with the 95 % interval over their source videos; "
    "mean_of_folds, deviation_of_folds: over the folds"
)


def train_head(
    selection: Selection,
    features: Path,
    output: Path,
    spec: HeadSpec,
    recipe: Recipe,
    *,
    name: str = "limelight",
    version: str = "1",
    evaluation: Path | None = None,
    start: Path | None = None,
    weights: Path | None = None,
    how: Run = run_apart,
    reporter: Reporter = SILENT,
) -> TrainedHead:
    """Train a head and write its folder.

    An interrupted training continues after the last complete epoch.

    Args:
        selection: Which clips.
        features: Folder of cached features.
        output: The head's folder; logs, plots and checkpoints go to its ``run/``.
        spec: Which network.
        recipe: How to train it.
        name: Name of the network in manifests and answers.
        version: Its version.
        evaluation: Folder of an evaluation of the same network, recipe and clips, whose accuracy the head states.
        start: Folder of a head to begin with.
        weights: VGG19's weights file; found or downloaded if not given.
        how: How the trainings of several members are run.
        reporter: Receives progress.

    Raises:
        LimelightModelError: The clips, features, weights or evaluation cannot be used, or training failed.
        OSError: A file cannot be read or written.
    """
    if not (name and version):
        raise HeadError("--name and --version must not be empty; leave them out for the defaults")
    if not (name + version).isprintable():
        raise HeadError(f"--name {name!a} or --version {version!a} cannot be shown as text; choose another one")
    if start and evaluation:
        raise TrainingError(
            "--evaluation states the accuracy of heads that began with random weights; leave it out with --from"
        )
    if start and start.resolve() == output.resolve():
        raise TrainingError(f"{output} holds the head to begin with; choose another --output")
    check_targets(output, FILES)
    if recipe.tensorboard:
        check_writable(recipe.tensorboard, "--tensorboard")
    other = load_head(start) if start else None
    if other and (warning := other.check_revisions()):
        reporter.say(warning)
    vgg19 = fetch_weights(weights, reporter=reporter)
    began_with = Start.of(other, spec, file_sha256(vgg19), selection.labels()) if other else None
    run = output / "run"
    accuracy: dict[str, Any] | None = None

    def check(data: FeatureSet) -> None:
        nonlocal accuracy
        if evaluation:
            accuracy = read_accuracy(evaluation, describe(spec, recipe), data.labels, data.selected)
        check_fit(data.examples, len(data.labels), spec, recipe, run, began_with)

    data = gather_features(
        selection, vgg19, features, flip=recipe.flip, least_classes=2, check=check, reporter=reporter
    )
    sizes = training_sizes(data.examples, len(data.labels), spec, recipe)
    tell_trainings(run, sizes, recipe.batch_size, reporter)
    tell_ranges(reporter)
    with reporter.listen() as listener:
        fitted = fit_head(
            data.examples,
            len(data.labels),
            spec,
            recipe,
            start=began_with,
            run=run,
            tell=lambda phase, line: listener(epoch_line(phase, line)),
            progress=listener,
            how=how,
        )
    for log in run.glob("*.csv"):
        plot_history(log, log.with_suffix(".png"))
    if fitted.holdout_accuracy is not None:
        doubt = "; this is too good if the head that it began with was trained on them" if start else ""
        reporter.say(f"held-out groups: {fitted.holdout_accuracy:.1%} of {fitted.holdout_clips} clips correct{doubt}")
    facts = HeadFacts(
        **spec.model_copy(update={"channels": fitted.model.input_shape[-1]}).model_dump(),
        name=name,
        version=version,
        labels=data.labels,
        encoder_sha256=file_sha256(vgg19),
        revisions=CURRENT,
        training=_training_facts(data, settings(spec, recipe), fitted, accuracy, began_with),
    )
    ranges = _calibration(vgg19, data, reporter)
    seen = other.trained_clips() if other else frozenset()
    # Without those of the other head the list would not be complete.
    clips = None if seen is None else {short_digest(example.content) for example in data.examples} | seen
    return save_head(output, facts, fitted.model, ranges, clips)


def _training_facts(
    data: FeatureSet,
    recipe: dict[str, Any],
    fitted: FittedHead,
    accuracy: dict[str, Any] | None,
    start: Start | None,
) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "data": data.videos.name,
        "clips": fitted.training_clips,
        "undecodable_clips": len(data.undecodable),
        "epochs": fitted.epochs,
        "recipe": recipe,
        "features": {"engine": data.engine, "dtype": data.dtype},
        "trained_on": dt.datetime.now(dt.UTC).date().isoformat(),
    }
    if start:
        # The accuracy on held-out clips is not stated: the other head may have been trained on them.
        facts["began_with"] = start.origin
    elif fitted.holdout_accuracy is not None:
        facts |= {
            "holdout_accuracy": round(fitted.holdout_accuracy, 4),
            "holdout_clips": fitted.holdout_clips,
            "holdout_protocol": HOLDOUT_PROTOCOL,
        }
    if accuracy:
        facts |= {"accuracy": accuracy, "accuracy_protocol": ACCURACY_PROTOCOL}
    return facts


def _calibration(vgg19: Path, data: FeatureSet, reporter: Reporter) -> bytes:
    """Measure the int8 ranges of VGG19's activations on one clip of each class."""
    one_each = list({clip.label: clip.path for clip in data.decodable}.values())
    encoder = convert(build_encoder(vgg19)).SerializeToString()
    # The encoder is written three times: as it is, with shapes, and as int8. ONNX Runtime adds one with ranges.
    with temporary_folder(4 * len(encoder)) as folder, reporter.track(one_each, "int8 ranges") as paths:
        (folder / "encoder.fp32.onnx").write_bytes(encoder)
        # Every fifth frame of a clip: neighbours are alike, and ONNX Runtime takes 12 GB for all 40 at once.
        frames = (decode_clip(path, OFFLINE_LIMITS).frames[::CALIBRATION_STRIDE] for path in paths)
        quantize(folder / "encoder.fp32.onnx", folder / "encoder.int8.onnx", folder / "ranges.json", frames)
        return ordered_ranges(folder / "ranges.json")
