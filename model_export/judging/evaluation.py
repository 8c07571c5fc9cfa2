"""The command ``evaluate``: trains and tests heads and baselines on the same folds, and judges their attention."""

import datetime as dt
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import keras

from model_export.data.datasets import Partition, Split, read_official_split
from model_export.data.encoders import load_encoder
from model_export.data.examples import Example
from model_export.data.folds import Fold, grouped_folds, random_folds, split_fold
from model_export.data.gathering import FeatureSet, Selection, gather_features
from model_export.errors import DatasetError, EvaluationError
from model_export.fitting import hold_out, training_sizes
from model_export.judging.actor import ActorClip, actor_ratio, render_and_encode
from model_export.judging.baselines import baselines
from model_export.judging.cross_validation import cross_validate
from model_export.judging.deletion import Deletion, PathsPredict, deletion
from model_export.judging.maps import attention_maps, map_statistics
from model_export.judging.plan import EvaluationPlan, FoldKind
from model_export.judging.report import DataFacts, Experiment, ProtocolKind, RunFacts, Section, write_report
from model_export.judging.trials import HeadTrials
from model_export.machine import processor, versions
from model_export.network.arrays import Cuboids, as_outputs, predictor
from model_export.network.classifier import separate_paths, with_uniform_maps, without_context
from model_export.network.spec import HeadSpec
from model_export.processes import Run, run_apart
from model_export.recipe import Recipe
from model_export.reporter import SILENT, Listener, Reporter, counted
from model_export.space import tell_trainings
from model_export.storing import check_targets, check_writable
from model_export.weights import fetch_weights
from service.model.bundle import Outputs

FILES = ("report.md", "report.json", "confusion.png")
FOLDERS = ("csv", "predictions")
LIBRARIES = ("tensorflow", "keras", "numpy", "sklearn")


@dataclass(frozen=True, slots=True)
class EvaluationProtocol:
    """How clips are divided into those to train on and those to test.

    Attributes:
        title: Title for reports.
        kind: Grouped or random folds, or an official split.
        folds: Folds of the examples; a single one for a split.
        partition: The clips on the sides of an official split.
    """

    title: str
    kind: ProtocolKind
    folds: tuple[Fold, ...]
    partition: Partition | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        report: Path of ``report.md``.
        experiments: The results, one experiment per protocol.
    """

    report: Path
    experiments: tuple[Experiment, ...]


def evaluate(
    selection: Selection,
    features: Path,
    output: Path,
    plan: EvaluationPlan,
    spec: HeadSpec,
    recipe: Recipe,
    *,
    weights: Path | None = None,
    command: str = "",
    run: Run = run_apart,
    reporter: Reporter = SILENT,
) -> Evaluation:
    """Train and test heads and baselines, and write ``report.md``, ``report.json`` and pictures.

    An interrupted evaluation continues where it stopped.

    Args:
        selection: Which clips.
        features: Folder of cached features.
        output: Folder of the report, and of predictions and checkpoints.
        plan: What is judged.
        spec: The network; the plan sets its variant and scores.
        recipe: How heads are trained.
        weights: VGG19's weights file; found or downloaded if not given.
        command: The command line, for the report.
        run: How trainings and the judging of attention are run.
        reporter: Receives progress.

    Raises:
        LimelightModelError: The clips, splits, features or weights cannot be used, or a training failed.
        OSError: A file cannot be read or written.
    """
    started = dt.datetime.now(dt.UTC)
    check_targets(output, FILES, FOLDERS)
    if recipe.tensorboard:
        check_writable(recipe.tensorboard, "--tensorboard")
    splits = _read_splits(plan)
    divide = partial(protocols_of, plan=plan, splits=splits, spec=spec, recipe=recipe)
    vgg19 = fetch_weights(weights, reporter=reporter)
    data = gather_features(
        selection, vgg19, features, flip=recipe.flip, least_classes=2, check=divide, reporter=reporter
    )
    protocols = divide(data)
    classes = len(data.labels)
    asked, controls = (
        [HeadTrials(one, recipe, classes, output / "runs", run) for one in specs]
        for specs in (plan.specs(spec), plan.control_specs(spec))
    )
    attentive = [trial for trial in asked if plan.attention_quality and has_attention(trial.spec)]
    _report_partitions(protocols, reporter)
    sizes = [
        size for trial in (*asked, *controls) for size in training_sizes(data.examples, classes, trial.spec, recipe)
    ]
    tell_trainings(output / "runs", sizes * sum(len(one.folds) for one in protocols), recipe.batch_size, reporter)
    with reporter.listen() as listener:
        simple = baselines(
            classes, flip=recipe.flip, epochs=2 * recipe.epochs, seed=recipe.seed, run=run, listener=listener
        )
        contenders = [*(trial.contender(listener) for trial in (*asked, *controls)), *simple]
        experiments = tuple(
            Experiment(
                protocol.title,
                protocol.kind,
                tuple(
                    cross_validate(
                        data.examples,
                        protocol.folds,
                        contenders,
                        data.labels,
                        kept=output / "predictions",
                        reporter=reporter,
                    )
                ),
            )
            for protocol in protocols
        )
        sections: list[Section] = []
        if attentive:
            clips = render_and_encode(load_encoder(vgg19, data.engine), clips=plan.actor_clips)
            actors = [*counted(clips, "clips with a known actor", listener, plan.actor_clips)]
            for trial in attentive:
                sections += run(partial(attention_sections, trial, data.examples, protocols[0], actors), listener)
    made_by = {"features": f"{data.engine}, {data.dtype}"}
    facts = RunFacts(command, started, recipe.seed, made_by, versions(LIBRARIES), processor())
    report = write_report(output, facts, data_facts(data, protocols), experiments, sections)
    return Evaluation(report, experiments)


def has_attention(spec: HeadSpec) -> bool:
    """Whether a network has maps that can be judged; uniform ones are known."""
    return spec.variant == "attention" and spec.attention_scores != "uniform"


def _read_splits(plan: EvaluationPlan) -> list[Split]:
    if not plan.split:
        return []
    if plan.split_files is None:
        raise DatasetError("--split needs the official split lists; name their folder with --split-files")
    return [read_official_split(plan.split_files, number) for number in dict.fromkeys(plan.split)]


def protocols_of(
    data: FeatureSet, plan: EvaluationPlan, splits: Sequence[Split], spec: HeadSpec, recipe: Recipe
) -> list[EvaluationProtocol]:
    """Divide the examples by each split, or by each kind of folds, and check that all of it can be trained and judged.

    No features are read: this is done before clips are encoded as well, which can take hours.

    Raises:
        FoldError: There are too few clips or groups for the folds or on a side of a split.
        TrainingError: A head that would be trained on one of the folds has too few groups to hold some out.
        EvaluationError: Attention is to be judged, and too few clips are tested.
    """
    protocols = [split_protocol(data, split) for split in splits] or [
        fold_protocol(data, kind, plan.k_fold, recipe.seed) for kind in plan.folds
    ]
    if plan.attention_quality and any(map(has_attention, plan.specs(spec))):
        check_tested(data.examples, protocols[0])
    for fold in (fold for protocol in protocols for fold in protocol.folds):
        hold_out([data.examples[i] for i in fold.train], recipe)
    return protocols


def fold_protocol(data: FeatureSet, kind: FoldKind, k: int, seed: int) -> EvaluationProtocol:
    """Divide the examples into ``k`` folds for cross-validation.

    Raises:
        FoldError: A class has too few groups or clips.
    """
    deal = grouped_folds if kind == "grouped" else random_folds
    return EvaluationProtocol(f"{k} {kind} folds", kind, deal(data.examples, k, seed))


def split_protocol(data: FeatureSet, split: Split) -> EvaluationProtocol:
    """Divide the examples by an official split.

    Raises:
        FoldError: A side of the split has no clip, or a tested class has none to train on.
    """
    part = split.divide(data.clips)
    fold = split_fold(data.examples, *([clip.name for clip in side] for side in (part.train, part.test)))
    return EvaluationProtocol(split.name, "official", (fold,), part)


def data_facts(data: FeatureSet, protocols: Sequence[EvaluationProtocol]) -> DataFacts:
    """Summarise for the report which clips were trained on or tested under any protocol, and which were left out."""
    parts = [protocol.partition for protocol in protocols if protocol.partition]
    extra = {clip.name for part in parts for clip in part.extra}
    used = {i for protocol in protocols for fold in protocol.folds for i in (*fold.train, *fold.test)}
    idle = {example.name for i, example in enumerate(data.examples) if i not in used}
    return DataFacts(
        name=data.videos.name,
        clips=len(used),
        classes=len(data.labels),
        groups=len({data.examples[i].group for i in used}),
        unused=tuple(sorted(idle - extra)),
        missing=tuple(sorted({name for part in parts for name in part.missing})),
        extra=tuple(sorted(extra)),
        undecodable=tuple(clip.name for clip in data.undecodable),
        left_out=tuple(data.left_out),
        selected=data.selected,
    )


def check_tested(examples: Sequence[Example], protocol: EvaluationProtocol) -> None:
    """Check that attention can be judged on what a protocol tests, before hours of training.

    Raises:
        EvaluationError: Too few clips are tested.
    """
    videos = {examples[i].group for fold in protocol.folds for i in fold.test}
    if len(videos) < 2 or len(protocol.folds[0].test) < 2:
        raise EvaluationError(
            f"attention cannot be judged on {protocol.title}, which tests fewer than two clips or source videos; add "
            "clips, or judge accuracy alone with --no-attention-quality"
        )


def attention_sections(
    trials: HeadTrials,
    examples: Sequence[Example],
    protocol: EvaluationProtocol,
    actors: Sequence[ActorClip],
    say: Listener = lambda told: None,
) -> list[Section]:
    """Judge the attention of one network, for the report.

    Deletion uses each fold's own head on that fold's test clips. The rendered actor and the map statistics use the
    first fold's head only, since differences between heads are not differences between clips.
    """
    deletions = []
    for number, fold in enumerate(protocol.folds):
        head = trials.head([examples[i] for i in fold.train], say)
        test = [examples[i] for i in fold.test]
        title = f"  {trials.name}, deletion, fold {number + 1}"
        deletions.append(delete_cells(head, test, trials.recipe.seed + number, say, title))
        if number == 0:
            ratio = actor_ratio(predictor(head), counted(actors, f"  {trials.name}, rendered actor", say))
            clips = counted(test, f"  {trials.name}, maps", say)
            maps = map_statistics(attention_maps(predictor(head), (e.load() for e in clips)))
    parts: list[tuple[str, Any]] = [
        (f"deletion of cells, {protocol.title}, on clips that the head was not trained on", Deletion.pooled(deletions)),
        (f"rendered actor, {len(actors)} clips, {protocol.title}, head of the first fold", ratio),
        (f"maps, {protocol.title}, head of the first fold on its test clips", maps),
    ]
    return [Section(f"{trials.name}: {title}", part.markdown(), part.as_dict()) for title, part in parts]


def delete_cells(
    head: keras.Model, test: Sequence[Example], seed: int, listener: Listener = lambda told: None, title: str = ""
) -> Deletion:
    """Measure what a head with attention loses without the cells that it attends to; see ``deletion``."""
    paths = separate_paths(head)

    def predict(attended: Cuboids, others: Cuboids) -> Outputs:
        return as_outputs(paths.predict_on_batch([attended, others]))

    def changed(change: Callable[[keras.Model], AbstractContextManager[None]]) -> PathsPredict:
        def predict_changed(attended: Cuboids, others: Cuboids) -> Outputs:
            with change(head):
                return predict(attended, others)

        return predict_changed

    heads = predict, changed(without_context), changed(with_uniform_maps)
    clips = counted(test, title, listener)
    return deletion(*heads, (e.load() for e in clips), [e.group for e in test], seed=seed)


def _report_partitions(protocols: Sequence[EvaluationProtocol], reporter: Reporter) -> None:
    sides = ("train", "test", "unused", "extra", "missing")
    rows = [
        (protocol.title, *(str(len(getattr(protocol.partition, side))) for side in sides))
        for protocol in protocols
        if protocol.partition
    ]
    reporter.table(("clips", *sides), rows)
