"""``limelight-model``: weights, training, export and verification. Offline; the service never needs it."""

import datetime as dt
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from enum import StrEnum
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from model_export.data.datasets import Clip, DatasetError, class_names, find_clips, read_official_split
from model_export.weights import WeightsError, fetch_weights
from service.model.bundle import BundleError, Precision, Variant, file_sha256, load_bundle, write_manifest
from service.video.decoder import decode_clip
from service.video.errors import ClipError

if TYPE_CHECKING:
    from model_export.experiment import Protocol
    from model_export.data.gathering import Gathered
    from model_export.head import TrainedHead
    from model_export.report import Experiment
    from model_export.training import LogLine, Recipe, TrainingResult
    from model_export.verify import Frames, Outputs

# Before TensorFlow is imported: its start-up messages are about GPUs that the offline side does not need.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# Spelt again where the modules that define them would bring TensorFlow along.
AttentionScores = Literal["content", "state"]
FeatureDtype = Literal["float16", "float32"]
FeatureScaling = Literal["none", "root"]
Readout = Literal["last", "mean"]
Schedule = Literal["cosine", "constant"]


# What may be asked for more than once: Typer knows no lists of Literals.
class Folds(StrEnum):
    """How clips are dealt to folds."""

    GROUPED = "grouped"
    RANDOM = "random"


class Variants(StrEnum):
    """The networks (see ``build_head``)."""

    ATTENTION = "attention"
    BASE = "base"


class Scorings(StrEnum):
    """What scores a cell (see ``AttentionSLSTMCell``)."""

    CONTENT = "content"
    STATE = "state"


app = typer.Typer(help="Train the network, judge it, export it to a bundle, check it.", no_args_is_help=True)
console = Console()

WeightsOption = Annotated[Path | None, typer.Option(help="VGG19 weights file; found or downloaded where not given.")]
VideosOption = Annotated[Path, typer.Option(help="Folder of class folders of clips (UCF-101, HMDB-51 or your own).")]
FeaturesOption = Annotated[Path, typer.Option(help="Folder to keep VGG19 features in.")]
ClassOption = Annotated[
    list[str] | None, typer.Option("--class", help="Only this class; give it once a class. All where not given.")
]
CountOption = Annotated[
    int | None, typer.Option("--clips-per-class", min=1, help="Take at most so many, of all groups; all if not given.")
]
HeadOption = Annotated[
    Path | None, typer.Option(help="Trained head, as `train` writes it; the pretrained one if not given.")
]
# The recipe, for `train` and `evaluate` (see model_export.training.Recipe).
ScoresOption = Annotated[AttentionScores, typer.Option(help="What scores a cell: what it shows, or h alone.")]
ReadoutOption = Annotated[Readout, typer.Option(help="What is classified: h_40 or the mean h.")]
ScalingOption = Annotated[FeatureScaling, typer.Option(help="Square roots of equal length, or VGG19's own values.")]
MotionOption = Annotated[bool, typer.Option(help="Tell the sLSTM how much each frame changes, too.")]
EpochsOption = Annotated[int, typer.Option(min=1, help="At most; the schedule spans them.")]
PatienceOption = Annotated[int, typer.Option(min=1, help="Epochs without a smaller held-out loss before it stops.")]
HoldoutOption = Annotated[
    float, typer.Option(min=0, max=0.5, help="Share of groups held out to choose the epoch; 0: none, all epochs.")
]
BatchOption = Annotated[int, typer.Option(min=1, help="Clips a step.")]
RateOption = Annotated[float, typer.Option(min=0, help="Of RMSProp.")]
ScheduleOption = Annotated[Schedule, typer.Option(help="Of the learning rate.")]
DropoutOption = Annotated[float, typer.Option(min=0, max=0.9, help="Share of VGG19's channels hidden from a clip.")]
SpreadOption = Annotated[float, typer.Option(min=0, help="Of Xu's penalty on what the attention leaves out.")]
DecayOption = Annotated[float, typer.Option(min=0, help="Decoupled weight decay.")]
SmoothingOption = Annotated[float, typer.Option(min=0, max=0.9, help="Share of each target spread over all classes.")]
FlipOption = Annotated[bool, typer.Option("--flip", help="Show clips mirrored, too; twice the features.")]
MembersOption = Annotated[int, typer.Option(min=1, help="Heads of different seeds, averaged in one.")]
SeedOption = Annotated[int, typer.Option(help="Of weights, order, dropout, folds and resamples.")]


def _start_tensorflow() -> None:
    """Imports TensorFlow without the messages about absent GPUs that it writes before it heeds any log level."""
    stderr = os.dup(2)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        import tensorflow as tf

        tf.config.list_physical_devices()
        tf.get_logger().setLevel("ERROR")  # it takes each fold's own network for the same one, traced anew
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


@contextmanager
def _command() -> Iterator[None]:
    """Around every command that computes: starts TensorFlow; what the user can mend is one sentence and exit code 2."""
    _start_tensorflow()
    from model_export.evaluation import EvaluationError
    from model_export.export import ExportError
    from model_export.data.features import FeatureError
    from model_export.head import HeadError
    from model_export.report import ReportError
    from model_export.training import TrainingError

    expected = (
        BundleError,
        DatasetError,
        EvaluationError,
        ExportError,
        FeatureError,
        HeadError,
        OSError,
        ReportError,
        TrainingError,
        WeightsError,
    )
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
    classes: ClassOption = None,
    clips_a_class: CountOption = None,
    dtype: Annotated[FeatureDtype, typer.Option(help="float32 is for `verify`.")] = "float16",
    flip: FlipOption = False,
    weights: WeightsOption = None,
) -> None:
    """Compute the VGG19 features of clips; goes on where it was interrupted."""
    with _command():
        vgg19 = fetch_weights(weights, console=console)
        data = _gather(videos, classes, clips_a_class, output, vgg19, flip=flip, dtype=dtype, least=1)
        console.print(f"features of {len(data.examples)} clips are in {output}", highlight=False)


@app.command()
def train(
    videos: VideosOption,
    output: Annotated[Path, typer.Option(help="Folder for the trained head.")] = Path("runs/head"),
    features: FeaturesOption = Path("features"),
    classes: ClassOption = None,
    clips_a_class: CountOption = None,
    variant: Annotated[Variant, typer.Option(help="With soft attention, or the paper's base.")] = "attention",
    attention_scores: ScoresOption = "content",
    readout: ReadoutOption = "mean",
    feature_scaling: ScalingOption = "root",
    motion: MotionOption = True,
    epochs: EpochsOption = 16,
    patience: PatienceOption = 4,
    holdout: HoldoutOption = 0.25,
    batch_size: BatchOption = 16,
    learning_rate: RateOption = 5e-4,
    schedule: ScheduleOption = "cosine",
    feature_dropout: DropoutOption = 0.5,
    doubly_stochastic: SpreadOption = 0.0,
    weight_decay: DecayOption = 0.0,
    label_smoothing: SmoothingOption = 0.1,
    flip: FlipOption = False,
    members: MembersOption = 1,
    seed: SeedOption = 0,
    evaluation: Annotated[
        Path | None, typer.Option(help="Folder of `evaluate`, whose accuracy of this recipe the head then states.")
    ] = None,
    name: Annotated[str, typer.Option(help="The network's name in manifests and answers.")] = "limelight",
    version: Annotated[str, typer.Option(help="Its version.")] = "1",
    weights: WeightsOption = None,
) -> None:
    """Train a head on folders of clips: features, held-out accuracy, final head, int8 calibration ranges.

    Started again after an interruption, it goes on after the last whole epoch.
    """
    with _command():
        from model_export.head import HeadError, HeadFacts, save_head
        from model_export.report import plot_history
        from model_export.training import train as train_head

        recipe = _recipe(locals())
        if not (name and version):
            raise HeadError("a head needs a name and a version; leave out --name and --version, or fill them in")
        measured = _measured(evaluation, recipe, class_names(find_clips(videos, classes)))
        vgg19 = fetch_weights(weights, console=console)
        data = _gather(videos, classes, clips_a_class, features, vgg19, flip=flip)
        run = output / "run"
        result = train_head(data.examples, len(data.labels), recipe, run=run, tell=_show_epoch)
        for log in run.glob("*.csv"):
            plot_history(log, log.with_suffix(".png"))
        if result.holdout_accuracy is not None:
            console.print(
                f"held-out groups: {result.holdout_accuracy:.1%} of {result.holdout_clips} clips", highlight=False
            )
        facts = HeadFacts(
            name=name,
            version=version,
            variant=recipe.variant,
            attention_scores=recipe.attention_scores,
            readout=recipe.readout,
            feature_scaling=recipe.feature_scaling,
            motion=recipe.motion,
            members=recipe.members,
            channels=result.model.input_shape[-1],
            labels=data.labels,
            encoder_sha256=file_sha256(vgg19),
            training=_training_facts(data, recipe, result, measured),
        )
        head = save_head(output, facts, result.model)
        _calibrate(head, vgg19, data.decodable)
        console.print(
            f"trained head: {output}; export it with `limelight-model export --head {output}`", soft_wrap=True
        )


@app.command()
def evaluate(
    videos: VideosOption,
    output: Annotated[Path, typer.Option(help="Folder for report and kept results.")] = Path("runs/evaluation"),
    features: FeaturesOption = Path("features"),
    classes: ClassOption = None,
    clips_a_class: CountOption = None,
    k_fold: Annotated[int, typer.Option(min=2, help="Number of folds.")] = 4,
    folds: Annotated[
        list[Folds] | None, typer.Option(help="grouped, or the leaking random; twice for both.", show_default="grouped")
    ] = None,
    split: Annotated[
        list[int] | None, typer.Option(min=1, max=3, help="Official split instead of folds; may be given thrice.")
    ] = None,
    split_files: Annotated[Path | None, typer.Option(help="Folder of the official split lists.")] = None,
    variant: Annotated[
        list[Variants] | None,
        typer.Option(help="Network to judge; give it once a variant.", show_default="attention and base"),
    ] = None,
    attention_scores: Annotated[
        list[Scorings] | None, typer.Option(help="Once a way to score.", show_default="content")
    ] = None,
    readout: ReadoutOption = "mean",
    feature_scaling: ScalingOption = "root",
    motion: MotionOption = True,
    epochs: EpochsOption = 16,
    patience: PatienceOption = 4,
    holdout: HoldoutOption = 0.25,
    batch_size: BatchOption = 16,
    learning_rate: RateOption = 5e-4,
    schedule: ScheduleOption = "cosine",
    feature_dropout: DropoutOption = 0.5,
    doubly_stochastic: SpreadOption = 0.0,
    weight_decay: DecayOption = 0.0,
    label_smoothing: SmoothingOption = 0.1,
    flip: FlipOption = False,
    members: MembersOption = 1,
    seed: SeedOption = 0,
    attention_quality: Annotated[bool, typer.Option(help="Judge the attention, too: deletion, actor, maps.")] = True,
    actor_clips: Annotated[int, typer.Option(min=2, help="Rendered clips with a known actor.")] = 24,
    weights: WeightsOption = None,
) -> None:
    """Train and test on folds or official splits, beside two baselines; writes report.md, report.json and pictures.

    Started again after an interruption, it goes on where it stopped.
    """
    with _command():
        from model_export.attention_quality import render_and_encode
        from model_export.baselines import baselines
        from model_export.evaluation import cross_validate
        from model_export.experiment import (
            HeadTrials,
            attention_sections,
            data_facts,
            fold_protocol,
            recipes,
            split_protocol,
        )
        from model_export.data.gathering import Encoder
        from model_export.report import Experiment, Run, write_report

        started = dt.datetime.now(dt.UTC)
        if split and not split_files:
            raise DatasetError("--split needs --split-files, the folder of the official split lists")
        splits = [read_official_split(split_files, number) for number in dict.fromkeys(split or ()) if split_files]
        recipe = _recipe({**locals(), "variant": "attention", "attention_scores": "content"})
        vgg19 = fetch_weights(weights, console=console)
        data = _gather(videos, classes, clips_a_class, features, vgg19, flip=flip)
        chosen = recipes(
            recipe, [v.value for v in variant or Variants], [s.value for s in attention_scores or [Scorings.CONTENT]]
        )
        trials = [HeadTrials(one, len(data.labels), output / "runs", _show_named_epoch) for one in chosen]
        simple = baselines(len(data.labels), flip=flip, epochs=2 * epochs, holdout=holdout, seed=seed)
        contenders = [*(trial.contender() for trial in trials), *simple]
        if splits:
            protocols = [split_protocol(data, official) for official in splits]
        else:
            kinds = dict.fromkeys(folds or [Folds.GROUPED])
            protocols = [fold_protocol(data, k_fold, seed, random=kind is Folds.RANDOM) for kind in kinds]
        _show_partitions(protocols)
        judge = partial(cross_validate, log=output / "predictions", progress=_show_fold)
        experiments = [
            Experiment(p.title, p.kind, tuple(judge(data.examples, p.folds, contenders, data.labels)))
            for p in protocols
        ]
        sections = []
        attentive = [trial for trial in trials if trial.recipe.variant == "attention"]
        if attention_quality and attentive:
            console.print(f"rendering {actor_clips} clips with a known actor")
            actors = list(render_and_encode(Encoder(vgg19, "float16").engine, clips=actor_clips))
            for trial in attentive:
                sections += attention_sections(trial, data.examples, protocols[0].folds, actors)
        how = Run(
            command=" ".join(["limelight-model", *sys.argv[1:]]),
            started=started,
            seed=seed,
            settings={"features": data.engine_name or "kept from an earlier run"},
        )
        report = write_report(output, how, data_facts(data, protocols), experiments, sections)
        _show_accuracy(experiments)
        console.print(f"report: {report}", highlight=False)


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
    clips_a_class: CountOption = 20,  # a clip takes seconds for each precision
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
        from model_export.data.gathering import choose_clips
        from model_export.head import PRETRAINED, HeadError, load_head
        from model_export.verify import agreement, compare

        checked = load_bundle(bundle)
        trained = load_head(head or PRETRAINED)
        if list(trained.facts.labels) != checked.manifest.labels:
            raise HeadError(f"{bundle} was not made from the head in {trained.path}; name its head with --head")
        chosen = choose_clips(clips, None, clips_a_class)
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


def _gather(
    videos: Path,
    classes: Sequence[str] | None,
    clips_a_class: int | None,
    features: Path,
    vgg19: Path,
    *,
    flip: bool,
    dtype: FeatureDtype = "float16",
    least: int = 2,
) -> "Gathered":
    """Clips of at least so many classes and their features, with progress; tells what was left out."""
    from model_export.data.gathering import choose_clips, gather

    clips = choose_clips(videos, classes, clips_a_class)
    if len(labels := class_names(clips)) < least:
        raise DatasetError(f"{videos}: {labels[0]} alone cannot be learnt; add clips of another class")
    began = time.monotonic()
    with _progress() as progress:
        track = partial(progress.track, description="VGG19 features")
        data = gather(clips, videos, features, vgg19, flip=flip, dtype=dtype, track=track)
    if data.undecodable:
        table = Table("skipped clip", "why")
        for clip, why in data.undecodable.items():
            table.add_row(str(clip.path), why)
        console.print(table)
    rate = 60 * data.encoded / (time.monotonic() - began)
    what = "views" if flip else "clips"
    by = f"by {data.engine_name}, {rate:.1f} {what} a minute" if data.encoded else "kept from before"
    counts = (
        f"{len(data.examples)} clips of {len(data.labels)} classes, {len(data.undecodable)} left out as undecodable"
    )
    console.print(f"{counts}; features {by}", highlight=False)
    return data


def _recipe(options: dict[str, Any]) -> "Recipe":
    """A command's options as the recipe they are part of."""
    from model_export.training import Recipe

    return Recipe(**{field.name: options[field.name] for field in fields(Recipe)})


def _show_partitions(protocols: "Sequence[Protocol]") -> None:
    """What an official split uses the clips for, and what it lists that is not there."""
    sides = ("train", "test", "unused", "extra", "missing")
    table = Table("clips", *sides)
    for protocol in protocols:
        if protocol.partition:
            table.add_row(protocol.title, *(str(len(getattr(protocol.partition, side))) for side in sides))
    if table.row_count:
        console.print(table)


def _show_epoch(phase: str, line: "LogLine") -> None:
    figures = ", ".join(f"{key} {line[key]:.4g}" for key in line if key != "epoch")
    console.print(f"{phase}, epoch {line['epoch']:.0f}: {figures}", highlight=False)


def _show_named_epoch(name: str, line: "LogLine") -> None:
    _show_epoch(f"  {name}", line)


def _show_fold(name: str, fold: int, event: str) -> None:
    console.print(f"{name}, fold {fold}: {event}", highlight=False)


def _show_accuracy(experiments: "Sequence[Experiment]") -> None:
    table = Table("method", *(experiment.name for experiment in experiments))
    for results in zip(*(experiment.results for experiment in experiments), strict=True):
        figures = [result.figures()["accuracy"] for result in results]
        table.add_row(results[0].contender, *(f"{f.value:.1%} ({f.low:.1%}–{f.high:.1%})" for f in figures))
    console.print(table)


def _measured(evaluation: Path | None, recipe: "Recipe", labels: Sequence[str]) -> dict[str, Any]:
    """What `evaluate` found for the recipe and the classes that are about to be trained."""
    from model_export.experiment import accuracy_facts
    from model_export.report import ReportError

    if evaluation is None:
        return {}
    report = evaluation / "report.json"
    try:
        found = accuracy_facts(report, recipe, labels)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ReportError(f"{report} cannot be read ({error}); make it with `limelight-model evaluate`") from error
    if found is None:
        raise ReportError(
            f"{report} judges other recipes or classes; run `limelight-model evaluate` with this one's options"
        )
    return dict(found)


def _training_facts(
    data: "Gathered", recipe: "Recipe", result: "TrainingResult", measured: dict[str, Any]
) -> dict[str, object]:
    facts: dict[str, object] = {
        "data": data.videos.name,
        "clips": result.training_clips,
        "undecodable_clips": len(data.undecodable),
        "epochs": result.epochs,
        "recipe": asdict(recipe),
        "trained_on": dt.datetime.now(dt.UTC).date().isoformat(),
    }
    if result.holdout_accuracy is not None:
        facts |= {
            "holdout_accuracy": round(result.holdout_accuracy, 4),
            "holdout_clips": result.holdout_clips,
            "holdout_protocol": "accuracy on whole held-out groups of a head that did not see them, at the epoch of "
            "its least loss there; the head itself is then trained on all clips for as many epochs. Chosen by the "
            "clips it is measured on, the figure is a little optimistic",
        }
    if measured:
        facts["accuracy"] = measured
        facts["accuracy_protocol"] = (
            "of heads trained by the same recipe on the other folds; the head itself is trained on all clips. value, "
            "low, high: over all clips, with the 95 % interval by bootstrap over source videos; mean, deviation: over "
            "the folds"
        )
    return facts


def _calibrate(head: "TrainedHead", vgg19: Path, clips: Sequence[Clip]) -> None:
    """Measures the int8 ranges on one clip of each class, and keeps them with the head."""
    from model_export.export import convert
    from model_export.data.features import OFFLINE_LIMITS
    from model_export.network.vgg19 import build_encoder
    from model_export.quantize import quantize

    one_each = list({clip.label: clip.path for clip in clips}.values())
    with tempfile.TemporaryDirectory() as name, _progress() as progress:
        fp32 = Path(name) / "model.fp32.onnx"
        fp32.write_bytes(convert(build_encoder(vgg19), head.build(unroll=True)).SerializeToString())
        frames = (
            decode_clip(path, OFFLINE_LIMITS).frames for path in progress.track(one_each, description="int8 ranges")
        )
        quantize(fp32, Path(name) / "model.int8.onnx", head.calibration, frames)


def _reference(
    trained: "TrainedHead", vgg19: Path, features: Path | None
) -> "Callable[[Clip], tuple[Frames, Outputs]]":
    """Frames of a clip and what Keras computes for them, from kept float32 features where there are some."""
    import numpy as np

    from model_export.data.encoders import keras_encode
    from model_export.data.features import OFFLINE_LIMITS, FeatureCache, FeatureError
    from model_export.network.vgg19 import build_encoder
    from model_export.verify import head_outputs

    head = trained.build()
    encode = cache(lambda: keras_encode(build_encoder(vgg19)))
    kept = FeatureCache(features, file_sha256(vgg19), "float32") if features else None
    if kept and kept.dtype != "float32":
        raise FeatureError(
            f"{features} holds float16 features, whose rounding would show as disagreement; "
            "make float32 ones with `limelight-model features --dtype float32`"
        )

    def expected(clip: Clip) -> "tuple[Frames, Outputs]":
        try:
            frames = decode_clip(clip.path, OFFLINE_LIMITS).frames
        except ClipError as error:
            raise DatasetError(f"{clip.path} cannot be compared ({error}); remove it from the clips") from error
        found = np.load(kept.get(clip.path, encode)) if kept else encode()(frames)
        return frames, head_outputs(head, found)

    return expected


if __name__ == "__main__":
    app()
