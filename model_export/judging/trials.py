"""Evaluates heads as a paper would: heads and baselines on the same folds, then what their attention is worth."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import keras

from model_export.attention_quality import (
    ActorClip,
    Deletion,
    actor_ratio,
    attention_maps,
    deletion,
    map_statistics,
)
from model_export.data.datasets import Partition, Split
from model_export.evaluation import Contender, Fold, Probabilities, grouped_folds, random_folds, split_fold
from model_export.data.examples import Example
from model_export.data.gathering import Gathered, clip_name
from model_export.network.attention import AttentionScores
from model_export.network.classifier import Variant
from model_export.report import DataFacts, FoldKind, Section
from model_export.training import LogLine, Recipe, predict, train

# Told what is trained (contender and phase) and the log line of each epoch.
Tell = Callable[[str, LogLine], None]


@dataclass(frozen=True)
class HeadTrials:
    """Trains heads of one recipe on parts of the data, each once: what was trained is kept and found again.

    Attributes:
        recipe: how each is trained.
        classes: number of classes.
        runs: folder of checkpoints and logs.
        tell: told each epoch.
    """

    recipe: Recipe
    classes: int
    runs: Path
    tell: Tell

    @cached_property
    def name(self) -> str:
        """For reports: the variant and, where it has them, its scores."""
        if self.recipe.variant == "base":
            return "base"
        return f"attention ({self.recipe.attention_scores})"

    def head(self, examples: Sequence[Example]) -> keras.Model:
        """The head trained on these examples."""
        clips = json.dumps([self.name, asdict(self.recipe), [e.features.name for e in examples]])
        run = self.runs / hashlib.sha256(clips.encode()).hexdigest()[:16]
        return train(
            examples, self.classes, self.recipe, run=run, tell=lambda phase, line: self.tell(self.name, line)
        ).model

    def contender(self) -> Contender:
        """The recipe as ``cross_validate`` takes it."""

        def fit(training: Sequence[Example], test: Sequence[Example]) -> Probabilities:
            return predict(self.head(training), test)

        return Contender(self.name, fit, recipe_line(self.recipe))


def recipe_line(recipe: Recipe) -> str:
    """Every setting of a recipe in one line, for reports and to compare recipes by."""
    return ", ".join(f"{key}={value}" for key, value in asdict(recipe).items())


def recipes(recipe: Recipe, variants: Iterable[Variant], scores: Iterable[AttentionScores]) -> list[Recipe]:
    """The recipe with each variant and, where it has attention, each way to score."""
    return [
        replace(recipe, variant=variant, attention_scores=scoring)
        for variant in dict.fromkeys(variants)
        for scoring in (dict.fromkeys(scores) if variant == "attention" else (recipe.attention_scores,))
    ]


@dataclass(frozen=True, slots=True)
class Protocol:
    """How clips come to be trained on and tested.

    Attributes:
        title: for reports.
        kind: grouped or random folds, or an official split.
        folds: of the examples; one where it is a split.
        partition: which clips an official split has on its sides, and which are missing.
    """

    title: str
    kind: FoldKind
    folds: tuple[Fold, ...]
    partition: Partition | None = None


def fold_protocol(data: Gathered, k: int, seed: int, *, random: bool = False) -> Protocol:
    """Cross-validation in ``k`` folds, grouped by source video or, where told so, drawn at random.

    Raises:
        EvaluationError: a class has too few groups or clips.
    """
    if random:
        return Protocol(f"{k} random folds", "random", random_folds(data.examples, k, seed))
    return Protocol(f"{k} grouped folds", "grouped", grouped_folds(data.examples, k, seed))


def split_protocol(data: Gathered, split: Split) -> Protocol:
    """Training on one side of an official split and testing on the other.

    Raises:
        EvaluationError: the clips at hand do not reach both sides of it.
    """
    part = split.divide(data.clips)
    fold = split_fold(data.examples, *([clip_name(clip) for clip in side] for side in (part.train, part.test)))
    return Protocol(split.name, "official", (fold,), part)


def data_facts(data: Gathered, protocols: Sequence[Protocol]) -> DataFacts:
    """What was evaluated and what was left out, for the report."""
    parts = [protocol.partition for protocol in protocols if protocol.partition]
    return DataFacts(
        name=data.videos.name,
        clips=len(data.examples),
        classes=len(data.labels),
        groups=len({example.group for example in data.examples}),
        missing=tuple(sorted({name for part in parts for name in part.missing})),
        extra=tuple(sorted({clip_name(clip) for part in parts for clip in part.extra})),
        undecodable=tuple(map(clip_name, data.undecodable)),
    )


def attention_sections(
    trials: HeadTrials, examples: Sequence[Example], folds: Sequence[Fold], actors: Sequence[ActorClip]
) -> list[Section]:
    """What the attention of one recipe is worth, for the report.

    Cells are deleted from clips that the head was not trained on, with each fold's own head; the rendered actor and the
    maps' statistics are those of the first fold's head: differences between heads are not differences between clips.
    """
    deletions = []
    for number, fold in enumerate(folds):
        head = trials.head([examples[i] for i in fold.train]).predict_on_batch
        test = [examples[i] for i in fold.test]
        deletions.append(deletion(head, (e.load() for e in test), [e.group for e in test], seed=number))
        if number == 0:
            ratio = actor_ratio(head, actors)
            maps = map_statistics(attention_maps(head, (e.load() for e in test)))
    parts: list[tuple[str, Any]] = [
        ("deletion of cells, on clips that the head was not trained on", Deletion.pooled(deletions)),
        (f"rendered actor, {len(actors)} clips, head of the first fold", ratio),
        ("maps, head of the first fold on its test clips", maps),
    ]
    return [Section(f"{trials.name}: {title}", part.markdown(), part.as_dict()) for title, part in parts]


def accuracy_facts(report: Path, recipe: Recipe, labels: Sequence[str]) -> Mapping[str, Any] | None:
    """Accuracy that ``evaluate`` found for exactly this recipe, by experiment.

    ``None`` where it judged other recipes, or heads for other classes than ``labels``.

    Raises:
        OSError, KeyError, TypeError, ValueError: the report cannot be read.
    """
    found = json.loads(report.read_text(encoding="utf-8"))
    facts: dict[str, Any] = {}
    for experiment in found["experiments"]:
        for method in experiment["methods"]:
            if method["recipe"] == recipe_line(recipe) and method["labels"] == list(labels):
                figures = method["accuracy"]
                facts[experiment["name"]] = {
                    "clips": experiment["clips"],
                    **{key: None if figures[key] is None else round(figures[key], 4) for key in figures},
                }
    return facts or None
