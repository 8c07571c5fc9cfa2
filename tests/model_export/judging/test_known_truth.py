"""The judging, applied to data and heads whose truth is known by construction: ``make judge-selftest``.

Each test makes a claim true or false first, and then lets the code that writes reports judge it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import pytest

from model_export.data.examples import Example
from model_export.data.folds import Fold, grouped_folds, random_folds
from model_export.judging.actor import ActorClip
from model_export.judging.cross_validation import Contender, cross_validate
from model_export.judging.deletion import Deletion
from model_export.judging.evaluation import EvaluationProtocol, attention_sections, delete_cells
from model_export.judging.results import Results, compare
from model_export.judging.trials import HeadTrials
from model_export.network.arrays import Probabilities
from model_export.network.classifier import build_head
from model_export.network.spec import HeadSpec
from model_export.processes import Tell
from model_export.recipe import Recipe

CHANNELS = 4
MARK, LEFT, RIGHT, BLANK = range(CHANNELS)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    """Clips of 12 videos: a marked cell shows the class and flickers, and another cell shows the other class, but less.

    Ten further cells are marked as blank.
    """
    folder = tmp_path_factory.mktemp("marked")
    rng = np.random.default_rng(0)
    made = []
    for video in range(12):
        for cut in (1, 2):
            label = video % 2
            cuboids = rng.uniform(0, 0.1, (40, 7, 7, CHANNELS))
            marked, other, *blank = rng.choice(49, 12, replace=False)
            flat = cuboids.reshape(40, 49, CHANNELS)
            flat[:, marked, MARK] = 2
            flat[:, marked, (LEFT, RIGHT)[label]] = np.tile([1.0, 3.0], 20)
            flat[:, other, (RIGHT, LEFT)[label]] = np.tile([0.5, 1.5], 20)
            flat[:, blank, BLANK] = 2
            file = folder / f"{video}-{cut}.npy"
            np.save(file, cuboids.astype(np.float32))
            made.append(Example(file, label, f"video-{video}", f"{label}/{video}-{cut}"))
    return made


def head(*, looks_at: int | None, reads_context: bool, reads_motion: bool, sharpness: float = 6) -> keras.Model:
    """A head with weights set by hand.

    Args:
        looks_at: Channel of the mark that it attends to; ``None``: it attends to all cells alike.
        reads_context: Whether the answer depends on what the attended cells show.
        reads_motion: Whether the answer depends on how much the mean of a class's channel changes between frames.
        sharpness: Score of a marked cell, about; other cells have 0.
    """
    built = build_head(2, HeadSpec(channels=CHANNELS, feature_scaling="none", motion=True))
    built.set_weights([np.zeros_like(weights) for weights in built.get_weights()])
    cell = built.get_layer("slstm").cell
    if looks_at is not None:
        assign(cell.mlp3.kernel, (looks_at, 0), 1)
        assign(cell.linear.kernel, (0, 0), sharpness)
    units = 256
    candidate = 2 * units  # of the gates f, i, z, o
    assign(cell.slstm.bias, slice(3 * units, None), 3)  # the output gate is open
    if reads_context:
        assign(cell.kernel, (LEFT, candidate), 0.5)
        assign(cell.kernel, (RIGHT, candidate), -0.5)
    if reads_motion:  # the whole frame's change since the last frame, weighted for one channel
        assign(built.get_layer("motion_kernel").kernel, (LEFT, candidate), 0.7)
    assign(built.get_layer("probabilities").kernel, (0, 0), 4)
    assign(built.get_layer("probabilities").kernel, (0, 1), -4)
    return built


def assign(variable: Any, where: Any, value: float) -> None:
    values = variable.numpy()
    values[where] = value
    variable.assign(values)


def judged(built: keras.Model, clips: Sequence[Example]) -> Deletion:
    return delete_cells(built, clips, seed=0)


class Trained(HeadTrials):
    """Trials whose head is made by hand."""

    def head(self, examples: Sequence[Example], say: Tell = print) -> keras.Model:
        return head(looks_at=MARK, reads_context=False, reads_motion=True)


def actors(clips: Sequence[Example]) -> list[ActorClip]:
    """The clips, as if the marked cell were a rendered actor."""
    loaded = [(clip.name, clip.load()) for clip in clips]
    return [ActorClip(name, cuboids, (cuboids[..., MARK] > 1).astype(np.float64)) for name, cuboids in loaded]


class TestAttention:
    def test_a_head_that_reads_only_what_it_attends_to_uses_it(self, clips: list[Example]) -> None:
        built = head(looks_at=MARK, reads_context=True, reads_motion=False)
        found = judged(built, clips)
        assert found.verdict == "used"
        assert found.drop_if_uniform().low > 0.1
        assert found.drop("attended").low > 0.1
        assert found.drop("attended").mean == pytest.approx(found.drop("all").mean, abs=0.1)
        np.testing.assert_allclose(found.drops["all_in_others"], 0, atol=1e-5)

    def test_the_report_says_of_a_head_that_reads_only_motion_that_its_fine_maps_have_no_effect(
        self, clips: list[Example]
    ) -> None:
        """Cells taken away from every path, as was done before, would cost this head much."""
        trials = Trained(HeadSpec(channels=CHANNELS), Recipe(), 2, Path("runs"))
        test = tuple(range(len(clips)))
        protocol = EvaluationProtocol("split 1", "official", (Fold(train=(), test=test),))
        deleted, actor, maps = attention_sections(trials, clips, protocol, actors(clips))
        assert all("split 1" in section.title for section in (deleted, actor, maps))

        assert actor.facts["ratio_minus_blind"]["low"] > 10
        assert maps.facts["verdict"] == "varying"
        assert deleted.facts["verdict"] == "no effect"
        assert any(line.startswith("The maps have no effect") for line in deleted.lines)
        assert deleted.facts["groups"] == 12
        for elsewhere in ("attended_in_others", "all_in_others"):
            assert deleted.facts[elsewhere]["low"] > 0.02

    def test_a_head_that_looks_away_from_what_it_needs_does_not_use_what_it_attends_to(
        self, clips: list[Example]
    ) -> None:
        found = judged(head(looks_at=BLANK, reads_context=True, reads_motion=False, sharpness=2), clips)
        assert found.verdict == "misplaced"
        assert found.drop("attended").mean < 0

    def test_maps_that_are_all_but_uniform_have_no_effect_even_if_they_are_highest_where_the_class_is_shown(
        self, clips: list[Example]
    ) -> None:
        """The head averages all cells, so that losing those which show the class costs it much, whatever its maps."""
        found = judged(head(looks_at=MARK, reads_context=True, reads_motion=False, sharpness=0.001), clips)
        assert found.gap("random").low > 0.02
        assert found.gap("turned").low > 0.02
        assert found.verdict == "no effect"


class TestFolds:
    """Each video has a signature of its own, and its class is drawn: nothing can be learned but the videos."""

    @pytest.fixture
    def videos(self) -> list[Example]:
        rng = np.random.default_rng(1)
        labels = rng.permutation([0, 1] * 20)
        return [
            Example(Path(f"{video}-{cut}.npy"), int(labels[video]), f"video-{video}", f"{labels[video]}/{video}-{cut}")
            for video in range(40)
            for cut in range(3)
        ]

    @staticmethod
    def remember(train: Sequence[Example], test: Sequence[Example]) -> Probabilities:
        """Name the class of the video if it was trained on, else guess by the name's hash."""
        known = {example.group: example.label for example in train}
        guess = np.random.default_rng(2).integers(2, size=len(test))
        named = [known.get(example.group, guessed) for example, guessed in zip(test, guess, strict=True)]
        return np.eye(2)[named]

    def test_only_random_folds_reward_memory_and_the_report_counts_the_leak(self, videos: list[Example]) -> None:
        contender = Contender("memory", self.remember, "none")
        found = {}
        for name, deal in (("grouped", grouped_folds), ("random", random_folds)):
            (found[name],) = cross_validate(videos, deal(videos, 4, 0), [contender], ("a", "b"))
        grouped, random = (result.figures()["accuracy"] for result in found.values())
        assert grouped.low < 0.5 < grouped.high
        assert random.value > 0.9
        assert (found["grouped"].leaked.sum(), found["random"].leaked.mean() > 0.9) == (0, True)


class TestMethods:
    """Two methods on 40 videos of three clips; a video's clips are right or wrong together half of the time."""

    @staticmethod
    def results(name: str, correct: npt.NDArray[np.bool_]) -> Results:
        truth = np.arange(120) // 3 % 2
        return Results(
            contender=name,
            recipe=name,
            labels=("a", "b"),
            names=tuple(map(str, range(120))),
            groups=tuple(str(clip // 3) for clip in range(120)),
            truth=truth,
            probabilities=np.eye(2)[np.where(correct, truth, 1 - truth)],
            folds=np.arange(120) // 30,
            leaked=np.zeros(120, bool),
        )

    def compared(self, accuracies: tuple[float, float], seed: int) -> Any:
        rng = np.random.default_rng(seed)
        together = np.repeat(rng.random(40) < 0.5, 3)
        drawn = [np.where(together, np.repeat(rng.random(40), 3), rng.random(120)) < share for share in accuracies]
        (found,) = compare(self.results("first", drawn[0]), [self.results("second", drawn[1])])
        return found

    def test_equal_methods_are_told_apart_as_rarely_as_promised(self) -> None:
        found = [self.compared((0.8, 0.8), seed) for seed in range(400)]
        # A twentieth of 400 is 20; 34 or more are less probable than 0.2 % for an interval that keeps its promise.
        assert sum(not comparison.low <= 0 <= comparison.high for comparison in found) < 34

    def test_a_much_better_method_is_found(self) -> None:
        found = [self.compared((0.9, 0.6), seed) for seed in range(50)]
        assert sum(comparison.low > 0 for comparison in found) > 45
