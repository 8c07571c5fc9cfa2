"""``limelight-model``: weights, training, export and verification. Offline; the service never needs it."""

import datetime as dt
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from model_export.datasets import Clip, DatasetError, class_names, clips_per_class, find_clips
from model_export.weights import WeightsError, fetch_weights
from service.model.bundle import BundleError, Precision, Variant, file_sha256, load_bundle, write_manifest
from service.video.decoder import decode_clip
from service.video.errors import ClipError

if TYPE_CHECKING:
    import keras

    from model_export.features import FeatureCache
    from model_export.head import TrainedHead
    from model_export.training import Example, Recipe, TrainingResult
    from model_export.verify import Frames, Outputs

# Before TensorFlow is imported: its start-up messages are about GPUs that the offline side does not need.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# Spelt again where the modules that define them would bring TensorFlow along.
AttentionScores = Literal["content", "state"]
FeatureDtype = Literal["float16", "float32"]
Readout = Literal["last", "mean"]

app = typer.Typer(help="Train the network, export it to a bundle, check it.", no_args_is_help=True)
console = Console()

WeightsOption = Annotated[Path | None, typer.Option(help="VGG19 weights file; found or downloaded where not given.")]
VideosOption = Annotated[Path, typer.Option(help="Folder of class folders of clips (UCF-101, HMDB-51 or your own).")]
CountOption = Annotated[int, typer.Option("--clips-per-class", min=1, help="Take at most so many, of all groups.")]
HeadOption = Annotated[
    Path | None, typer.Option(help="Trained head, as `train` writes it; the pretrained one if not given.")
]


def _start_tensorflow() -> None:
    """Imports TensorFlow without the messages about absent GPUs that it writes before it heeds any log level."""
    stderr = os.dup(2)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        import tensorflow as tf

        tf.config.list_physical_devices()
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


@contextmanager
def _command() -> Iterator[None]:
    """Around every command that computes: starts TensorFlow; what the user can mend is one sentence and exit code 2."""
    _start_tensorflow()
    from model_export.export import ExportError
    from model_export.features import FeatureError
    from model_export.head import HeadError
    from model_export.training import TrainingError

    expected = (BundleError, DatasetError, ExportError, FeatureError, HeadError, TrainingError, WeightsError, OSError)
    try:
        yield
    except expected as error:
        print(f"limelight-model: {error}", file=sys.stderr)  # noqa: T201
        raise typer.Exit(2) from error


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("· left"),
        TimeRemainingColumn(),
        console=console,
    )


@app.command("fetch-weights")
def fetch_weights_command(weights: WeightsOption = None) -> None:
    """Find or download VGG19's ImageNet weights and check their hash."""
    try:
        path = fetch_weights(weights, console=console)
    except WeightsError as error:
        print(f"limelight-model: {error}", file=sys.stderr)  # noqa: T201
        raise typer.Exit(2) from error
    console.print(f"VGG19 weights: {path}", highlight=False, soft_wrap=True)


@app.command()
def features(
    videos: VideosOption,
    output: Annotated[Path, typer.Option(help="Folder to keep the features in.")] = Path("features"),
    clips_a_class: CountOption = 20,
    dtype: Annotated[FeatureDtype, typer.Option(help="float32 is for `verify`.")] = "float16",
    weights: WeightsOption = None,
) -> None:
    """Compute the VGG19 features of clips; goes on where it was interrupted."""
    with _command():
        feature_cache, encoder = _feature_cache(output, fetch_weights(weights, console=console), dtype)
        clips = clips_per_class(find_clips(videos), clips_a_class)
        found = _examples(clips, feature_cache, encoder)
        console.print(f"{len(found)} clips' features are in {output}", highlight=False)


@app.command()
def train(
    videos: VideosOption,
    output: Annotated[Path, typer.Option(help="Folder for the trained head.")] = Path("runs/head"),
    features: Annotated[Path, typer.Option(help="Folder to keep VGG19 features in.")] = Path("features"),
    clips_a_class: CountOption = 20,
    variant: Annotated[Variant, typer.Option(help="With soft attention, or the paper's base.")] = "attention",
    attention_scores: Annotated[AttentionScores, typer.Option(help="What scores a cell: it, or h alone.")] = "content",
    readout: Annotated[Readout, typer.Option(help="What is classified: h_40 or the mean h.")] = "mean",
    epochs: Annotated[int, typer.Option(min=1, help="At most.")] = 40,
    learning_rate: float = 3e-4,
    seed: int = 0,
    name: Annotated[str, typer.Option(help="The network's name in manifests and answers.")] = "limelight",
    version: Annotated[str, typer.Option(help="Its version.")] = "1",
    weights: WeightsOption = None,
) -> None:
    """Train a head on folders of clips: features, held-out accuracy, final head, int8 calibration ranges."""
    with _command():
        from model_export.head import HeadFacts, save_head
        from model_export.training import Recipe
        from model_export.training import train as train_head

        vgg19 = fetch_weights(weights, console=console)
        clips = clips_per_class(find_clips(videos), clips_a_class)
        recipe = Recipe(variant, attention_scores, readout, epochs=epochs, learning_rate=learning_rate, seed=seed)
        feature_cache, encoder = _feature_cache(features, vgg19, "float16")
        examples = _examples(clips, feature_cache, encoder)
        labels = class_names(clips)
        console.print(f"{len(examples)} clips of {len(labels)} classes", highlight=False)
        result = train_head([example for _, example in examples], len(labels), recipe, [_epoch_lines()])
        console.print(
            f"held-out groups: {result.holdout_accuracy:.1%} of {result.holdout_clips} clips; "
            f"trained on all {result.training_clips} for {result.epochs} epochs",
            highlight=False,
        )
        facts = HeadFacts(
            name=name,
            version=version,
            variant=recipe.variant,
            attention_scores=recipe.attention_scores,
            readout=recipe.readout,
            labels=tuple(labels),
            encoder_sha256=file_sha256(vgg19),
            training=_training_facts(videos, recipe, result, clips_a_class),
        )
        head = save_head(output, facts, result.model)
        _calibrate(head, vgg19, [clip for clip, _ in examples])
        console.print(
            f"trained head: {output}; export it with `limelight-model export --head {output}`", soft_wrap=True
        )


@app.command()
def export(
    head: HeadOption = None,
    output: Annotated[Path, typer.Option(help="The bundle's folder.")] = Path("bundle"),
    weights: WeightsOption = None,
    force: Annotated[bool, typer.Option(help="Export even where the bundle is up to date.")] = False,
) -> None:
    """Write a bundle (fp32, fp16 and int8 ONNX and a manifest), checked against Keras."""
    with _command():
        from model_export.export import export_bundle
        from model_export.head import PRETRAINED, load_head

        vgg19 = fetch_weights(weights, console=console)
        trained = load_head(head or PRETRAINED)
        written = export_bundle(trained, vgg19, output, force=force, say=console.print)
        console.print(f"bundle: {output} ({'written' if written else 'already up to date'})", highlight=False)


@app.command()
def verify(
    clips: Annotated[Path, typer.Option(help="Folder of class folders of clips.")],
    bundle: Annotated[Path, typer.Option(help="The bundle to check.")] = Path("bundle"),
    head: HeadOption = None,
    clips_a_class: CountOption = 20,
    precision: Annotated[Precision | None, typer.Option(help="Only this one; all where not given.")] = None,
    features: Annotated[
        Path | None, typer.Option(help="float32 features (see `features --dtype float32`), to spare Keras' VGG19.")
    ] = None,
    log: Annotated[Path, typer.Option(help="Results by clip; an interrupted run goes on from it.")] = Path(
        "runs/verify.jsonl"
    ),
    record: Annotated[bool, typer.Option(help="Keep the agreement beside the head's weights, too.")] = False,
    weights: WeightsOption = None,
) -> None:
    """Compare a bundle's variants with Keras over many clips; the agreement goes into the manifest."""
    with _command():
        from model_export.head import PRETRAINED, HeadError, load_head
        from model_export.verify import agreement, compare

        checked = load_bundle(bundle)
        trained = load_head(head or PRETRAINED)
        if list(trained.facts.labels) != checked.manifest.labels:
            raise HeadError(f"{bundle} was not made from the head in {trained.path}; name its head with --head")
        chosen = clips_per_class(find_clips(clips), clips_a_class)
        precisions = [precision] if precision else list(checked.manifest.precisions)
        vgg19 = fetch_weights(weights, console=console)
        expected = _reference(trained, vgg19, features)
        source = [(f"{clip.label}/{clip.path.name}", partial(expected, clip)) for clip in chosen]
        log.parent.mkdir(parents=True, exist_ok=True)
        seen = []
        with _progress() as progress:
            task = progress.add_task("verifying", total=len(chosen) * len(precisions))
            for comparison in compare(checked, precisions, source, log):
                seen.append(comparison)
                progress.advance(task)
        measured = {p: agreement(c for c in seen if c.precision == p) for p in precisions}
        entries = checked.manifest.precisions
        updated = {
            p: entries[p].model_copy(update={"agreement": measured.get(p, entries[p].agreement)}) for p in entries
        }
        write_manifest(bundle, checked.manifest.model_copy(update={"precisions": updated}))
        if record:
            trained.record_agreement(measured)
        table = Table("precision", "top-1 agreement", "95 % interval", "n", "largest difference")
        for p, found in measured.items():
            interval = f"{found.low:.2%} – {found.high:.2%}"
            table.add_row(p, f"{found.top1:.2%}", interval, str(found.n), f"{found.max_abs_difference:.1e}")
        console.print(table)


def _feature_cache(
    folder: Path, vgg19: Path, dtype: "FeatureDtype"
) -> "tuple[FeatureCache, Callable[[], keras.Model]]":
    """The cache, and the encoder for what it lacks, built when first needed."""
    from model_export.features import FeatureCache
    from model_export.network.vgg19 import build_encoder

    return FeatureCache(folder, file_sha256(vgg19), dtype), cache(lambda: build_encoder(vgg19))


def _examples(
    clips: Sequence[Clip], feature_cache: "FeatureCache", encoder: "Callable[[], keras.Model]"
) -> "list[tuple[Clip, Example]]":
    """Features of the clips; those that cannot be decoded are listed and left out."""
    from model_export.training import Example

    labels = class_names(clips)
    examples: list[tuple[Clip, Example]] = []
    skipped = Table("skipped clip", "why")
    with _progress() as progress:
        for clip in progress.track(clips, description="VGG19 features"):
            try:
                found = feature_cache.get(clip.path, encoder)
            except ClipError as error:
                skipped.add_row(str(clip.path), str(error))
            else:
                examples.append((clip, Example(found, labels.index(clip.label), clip.group)))
    if skipped.row_count:
        console.print(skipped)
    return examples


def _epoch_lines() -> "keras.callbacks.Callback":
    import keras

    def show(epoch: int, logs: dict[str, float]) -> None:
        console.print(f"epoch {epoch + 1}: " + ", ".join(f"{key} {value:.3f}" for key, value in logs.items()))

    return keras.callbacks.LambdaCallback(on_epoch_end=show)


def _training_facts(videos: Path, recipe: "Recipe", result: "TrainingResult", clips_a_class: int) -> dict[str, object]:
    return {
        "data": videos.name,
        "clips": result.training_clips,
        "clips_per_class": clips_a_class,
        "holdout_accuracy": round(result.holdout_accuracy, 4),
        "holdout_clips": result.holdout_clips,
        "protocol": "accuracy on whole held-out groups of a head that did not see them, at the epoch of its least loss "
        "there; the head itself is then trained on all clips for as many epochs. Chosen by the clips it is measured "
        "on, the figure is a little optimistic",
        "epochs": result.epochs,
        "recipe": asdict(recipe),
        "trained_on": dt.datetime.now(dt.UTC).date().isoformat(),
    }


def _calibrate(head: "TrainedHead", vgg19: Path, clips: Sequence[Clip]) -> None:
    """Measures the int8 ranges on one clip of each class, and keeps them with the head."""
    from model_export.export import convert
    from model_export.network.vgg19 import build_encoder
    from model_export.quantize import quantize

    one_each = list({clip.label: clip.path for clip in clips}.values())
    with tempfile.TemporaryDirectory() as name, _progress() as progress:
        fp32 = Path(name) / "model.fp32.onnx"
        fp32.write_bytes(convert(build_encoder(vgg19), head.build(unroll=True)).SerializeToString())
        frames = (decode_clip(path).frames for path in progress.track(one_each, description="int8 ranges"))
        quantize(fp32, Path(name) / "model.int8.onnx", head.calibration, frames)


def _reference(
    trained: "TrainedHead", vgg19: Path, features: Path | None
) -> "Callable[[Clip], tuple[Frames, Outputs]]":
    """Frames of a clip and what Keras computes for them, from kept float32 features where there are some."""
    from model_export.features import FeatureCache, FeatureError, encode
    from model_export.network.vgg19 import build_encoder
    from model_export.verify import head_outputs

    head = trained.build()
    encoder = cache(lambda: build_encoder(vgg19))
    kept = FeatureCache(features, file_sha256(vgg19), "float32") if features else None
    if kept and kept.dtype != "float32":
        raise FeatureError(
            f"{features} holds float16 features, whose rounding would show as disagreement; "
            "make float32 ones with `limelight-model features --dtype float32`"
        )

    def expected(clip: Clip) -> "tuple[Frames, Outputs]":
        try:
            frames = decode_clip(clip.path).frames
        except ClipError as error:
            raise DatasetError(f"{clip.path} cannot be compared ({error}); remove it from the clips") from error
        found = kept.get(clip.path, encoder) if kept else encode(encoder(), frames)
        return frames, head_outputs(head, found)

    return expected


if __name__ == "__main__":
    app()
