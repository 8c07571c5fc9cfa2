from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import precision_score, recall_score

from model_export.evaluation import (
    ClassFigures,
    Comparison,
    ConfusedPair,
    Contender,
    EvaluationError,
    Fit,
    Fold,
    Probabilities,
    Results,
    compare,
    cross_validate,
    grouped_folds,
    hold_out_groups,
    random_folds,
    split_fold,
)
from model_export.data.examples import Example

LABELS = ("Diving", "PullUps", "Surfing")


def example(label: int, group: int, clip: int = 0) -> Example:
    name = f"v_{LABELS[label]}_g{group:02}_c{clip:02}"
    return Example(Path(f"{name}.npy"), label, f"v_{LABELS[label]}_g{group:02}", f"{LABELS[label]}/{name}.avi")


def examples(*clips_of_groups: Sequence[int]) -> list[Example]:
    """Given the number of clips of each group, for each class."""
    return [
        example(label, group, clip)
        for label, groups in enumerate(clips_of_groups)
        for group, clips in enumerate(groups)
        for clip in range(clips)
    ]


def results(
    truth: Sequence[int], predicted: Sequence[int], groups: Sequence[str] = (), folds: Sequence[int] = ()
) -> Results:
    return Results(
        contender="some",
        recipe="",
        labels=LABELS,
        names=tuple(str(i) for i in range(len(truth))),
        groups=tuple(groups or (str(i) for i in range(len(truth)))),
        truth=np.array(truth),
        probabilities=np.eye(len(LABELS))[list(predicted)],
        folds=np.array(folds or [0] * len(truth)),
        leaked=np.zeros(len(truth), bool),
    )


def oracle(wrong: Sequence[str] = ()) -> Fit:
    """Knows every clip, but takes those named for the next class."""

    def fit(train: Sequence[Example], test: Sequence[Example]) -> Probabilities:
        return np.eye(3)[[(clip.label + (clip.name in wrong)) % 3 for clip in test]]

    return fit


def refuses(train: Sequence[Example], test: Sequence[Example]) -> Probabilities:
    raise AssertionError("trained again")


class TestFolds:
    groups_of_a_class = st.lists(st.integers(1, 6), min_size=4, max_size=12)

    @given(st.tuples(*[groups_of_a_class] * 3), st.integers(2, 4), st.integers(0, 99))
    def test_grouped_folds_test_every_clip_once_and_never_a_group_that_was_trained_on(
        self, clips: tuple[list[int], ...], k: int, seed: int
    ) -> None:
        given_examples = examples(*clips)
        folds = grouped_folds(given_examples, k, seed)
        assert len(folds) == k
        assert sorted(i for fold in folds for i in fold.test) == list(range(len(given_examples)))
        for fold in folds:
            assert sorted((*fold.train, *fold.test)) == list(range(len(given_examples)))
            assert not {given_examples[i].group for i in fold.train} & {given_examples[i].group for i in fold.test}
            assert {given_examples[i].label for i in fold.test} == {0, 1, 2}, "each class is tested in each fold"

    @given(st.tuples(*[groups_of_a_class] * 3), st.integers(2, 4), st.integers(0, 99))
    def test_random_folds_test_every_clip_once_and_each_class_evenly(
        self, clips: tuple[list[int], ...], k: int, seed: int
    ) -> None:
        given_examples = examples(*clips)
        folds = random_folds(given_examples, k, seed)
        assert sorted(i for fold in folds for i in fold.test) == list(range(len(given_examples)))
        for label in range(3):
            counts = [sum(given_examples[i].label == label for i in fold.test) for fold in folds]
            assert max(counts) - min(counts) <= 1

    @pytest.mark.parametrize("deal", [grouped_folds, random_folds])
    def test_the_seed_decides(self, deal: Callable[..., tuple[Fold, ...]]) -> None:
        given_examples = examples([3] * 8, [3] * 8, [3] * 8)
        assert deal(given_examples, 4, 1) == deal(given_examples, 4, 1) != deal(given_examples, 4, 2)

    def test_equal_groups_are_dealt_evenly(self) -> None:
        given_examples = examples([3] * 8, [2] * 8, [1] * 8)
        for fold in grouped_folds(given_examples, 4):
            assert Counter(given_examples[i].label for i in fold.test) == {0: 6, 1: 4, 2: 2}

    def test_a_class_with_fewer_groups_than_folds_is_named(self) -> None:
        with pytest.raises(
            EvaluationError, match=r"^PullUps has too few source videos \(3\) for 4 folds; .*fewer folds"
        ):
            grouped_folds(examples([1] * 9, [5] * 3, [1] * 4), 4)

    def test_a_class_with_fewer_clips_than_folds_is_named(self) -> None:
        with pytest.raises(EvaluationError, match=r"^Surfing has too few clips \(3\) for 4 folds; .*fewer folds"):
            random_folds(examples([4], [4], [3]), 4)


class TestOfficialSplit:
    clips = (example(0, 1), example(0, 2), example(1, 1), example(1, 2))

    def test_is_one_fold_by_names(self) -> None:
        a, b, c, d = (clip.name for clip in self.clips)
        assert split_fold(self.clips, [c, a], [d, "Diving/never-decoded.avi"]) == Fold(train=(0, 2), test=(3,))
        assert b, "on neither side"

    def test_a_class_that_is_tested_only_is_named(self) -> None:
        a, b, c, _ = (clip.name for clip in self.clips)
        with pytest.raises(EvaluationError, match=r"^PullUps has test clips but none to train on"):
            split_fold(self.clips, [a], [b, c])

    @pytest.mark.parametrize(("train", "test", "side"), [((), (0,), "training"), ((0,), (), "test")])
    def test_a_side_without_clips_is_refused(self, train: Sequence[int], test: Sequence[int], side: str) -> None:
        names = [clip.name for clip in self.clips]
        with pytest.raises(EvaluationError, match=f"none of the clips at hand is on the split's {side} side"):
            split_fold(self.clips, [names[i] for i in train], [names[i] for i in test])


class TestHoldingOut:
    def test_takes_that_share_of_each_class_in_whole_groups(self) -> None:
        keep, hold = hold_out_groups(examples([2] * 8, [2] * 8, [2] * 8), 0.25)
        assert Counter(clip.label for clip in hold) == {0: 4, 1: 4, 2: 4}
        assert len(keep) == 36
        assert not {clip.group for clip in keep} & {clip.group for clip in hold}

    def test_takes_one_of_three_groups_where_there_are_no_four(self) -> None:
        _, hold = hold_out_groups(examples([1] * 3, [1] * 9, [1] * 9), 0.25)
        assert Counter(clip.label for clip in hold) == {0: 1, 1: 3, 2: 3}

    def test_needs_two_groups(self) -> None:
        with pytest.raises(EvaluationError, match=r"^Diving has one source video to train on"):
            hold_out_groups(examples([5], [1] * 9, [1] * 9), 0.25)


class TestFigures:
    #            class 0 (3 clips)  class 1 (2)  class 2 (never predicted)
    truth = (0, 0, 0, 1, 1, 2)
    predicted = (0, 0, 1, 1, 0, 1)

    def test_by_hand(self) -> None:
        figures = results(self.truth, self.predicted).figures()
        assert figures["accuracy"].value == pytest.approx(3 / 6)
        assert figures["precision"].value == pytest.approx((2 / 3 + 1 / 3 + 0) / 3)
        assert figures["recall"].value == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)

    @given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30))
    @settings(max_examples=50)
    def test_agree_with_scikit_learn(self, pairs: list[tuple[int, int]]) -> None:
        truth, predicted = zip(*pairs, strict=True)
        figures = results(truth, predicted).figures()
        present = sorted(set(truth))
        facts = {"labels": present, "average": "macro", "zero_division": 0}
        assert figures["precision"].value == pytest.approx(precision_score(truth, predicted, **facts))
        assert figures["recall"].value == pytest.approx(recall_score(truth, predicted, **facts))

    def test_mean_and_deviation_are_over_folds(self) -> None:
        # Accuracy 1/1 in the first fold and 1/3 in the second.
        accuracy = results((0, 0, 0, 1), (0, 0, 1, 0), folds=(0, 1, 1, 1)).figures()["accuracy"]
        assert accuracy.value == pytest.approx(2 / 4)
        assert accuracy.mean == pytest.approx(2 / 3)
        assert accuracy.deviation == pytest.approx(np.sqrt(2) / 3), "of a sample: divided by n − 1"

    def test_one_fold_has_no_deviation(self) -> None:
        assert results((0, 1), (0, 1)).figures()["accuracy"].deviation is None

    def test_per_class(self) -> None:
        assert results(self.truth, self.predicted).per_class() == [
            ClassFigures("Diving", precision=2 / 3, recall=2 / 3, clips=3),
            ClassFigures("PullUps", precision=1 / 3, recall=1 / 2, clips=2),
            ClassFigures("Surfing", precision=0, recall=0, clips=1),
        ]

    def test_a_class_without_clips_is_not_judged(self) -> None:
        found = results((0, 0, 1), (0, 2, 1))
        assert [figures.label for figures in found.per_class()] == ["Diving", "PullUps"]
        assert found.figures()["recall"].value == pytest.approx((1 / 2 + 1) / 2)

    def test_confusion_has_classes_in_rows_and_predictions_in_columns(self) -> None:
        np.testing.assert_array_equal(results(self.truth, self.predicted).confusion, [[2, 1, 0], [1, 1, 0], [0, 1, 0]])

    def test_confused_pairs_begin_with_the_most_frequent(self) -> None:
        found = results((0, 0, 1, 2, 2, 2, 0), (1, 1, 0, 1, 1, 1, 0))
        pairs = [
            ConfusedPair("Surfing", "PullUps", 3),
            ConfusedPair("Diving", "PullUps", 2),
            ConfusedPair("PullUps", "Diving", 1),
        ]
        assert found.confused_pairs() == pairs
        assert found.confused_pairs(limit=1) == pairs[:1]


class TestIntervals:
    @staticmethod
    def accuracy(clips: int, a_group: int) -> tuple[float, float, float]:
        random = np.random.default_rng(5)
        truth = random.integers(0, 3, clips // a_group).repeat(a_group)
        predicted = np.where(random.random(clips // a_group).repeat(a_group) < 0.8, truth, (truth + 1) % 3)
        groups = [str(i // a_group) for i in range(clips)]
        figure = results(truth.tolist(), predicted.tolist(), groups).figures()["accuracy"]
        return figure.low, figure.value, figure.high

    def test_contain_the_figure_and_shrink_with_the_number_of_clips(self) -> None:
        few, many = self.accuracy(100, 1), self.accuracy(1600, 1)
        assert few[0] < few[1] < few[2]
        assert many[0] < many[1] < many[2]
        assert (many[2] - many[0]) * 3 < few[2] - few[0]

    def test_are_those_of_the_binomial_where_every_clip_is_a_group_of_its_own(self) -> None:
        low, value, high = self.accuracy(1600, 1)
        half = 1.96 * np.sqrt(value * (1 - value) / 1600)
        assert [value - low, high - value] == pytest.approx([half, half], rel=0.1)

    def test_clips_of_one_video_do_not_count_as_many(self) -> None:
        """Sixteen clips a video, all right or all wrong: no more is known than from the videos."""
        low, value, high = self.accuracy(1600, 16)
        half = 1.96 * np.sqrt(value * (1 - value) / 100)
        assert [value - low, high - value] == pytest.approx([half, half], rel=0.2)

    def test_precision_is_not_put_low_by_resamples_that_lack_groups(self) -> None:
        """Of a hundred classes of four clips, nearly every resample has a lower macro precision than the clips."""
        random = np.random.default_rng(0)
        truth = np.arange(100).repeat(4)
        predicted = np.where(random.random(400) < 0.6, truth, random.integers(0, 100, 400))
        hundred = replace(
            results(truth.tolist(), [0] * 400), labels=tuple(map(str, range(100))), probabilities=np.eye(100)[predicted]
        )
        figure = hundred.figures()["precision"]
        assert figure.low < figure.value - 0.02
        assert figure.value + 0.02 < figure.high

    def test_of_a_perfect_contender_is_a_point(self) -> None:
        figure = results([0, 1, 2] * 5, [0, 1, 2] * 5).figures()["accuracy"]
        assert (figure.low, figure.high) == (1, 1)

    def test_same_seed_same_interval(self) -> None:
        found = results([0, 1, 2, 0] * 20, [0, 1, 1, 0] * 20)
        assert found.figures(3) == found.figures(3) != found.figures(4)


class TestComparison:
    def test_by_hand(self) -> None:
        # Of ten clips, the first alone is right on seven, the second alone on one.
        first = results([0] * 10, [0] * 8 + [1] * 2)
        second = results([0] * 10, [1] * 7 + [0] * 2 + [1])
        found = compare(first, second)
        assert (found.only_first, found.only_second) == (7, 1)
        assert found.difference == pytest.approx(0.6)
        assert found.p == pytest.approx(2 * (1 + 8) / 2**8), "two-sided binomial: one or none of eight"
        assert 0 < found.low < found.difference < found.high <= 1

    def test_is_paired(self) -> None:
        """Both right on the same clips: no doubt that they are alike, however uncertain each accuracy is."""
        same = results([0] * 10, [0] * 5 + [1] * 5)
        assert compare(same, same) == Comparison("some", "some", 0, 0, 0, 0, 0, 1)

    def test_reversed_it_is_the_negative(self) -> None:
        first, second = results([0] * 20, [0] * 15 + [1] * 5), results([0] * 20, [0] * 9 + [1] * 11)
        there, back = compare(first, second), compare(second, first)
        mirrored = [-there.difference, -there.high, -there.low]
        assert [back.difference, back.low, back.high] == pytest.approx(mirrored)

    def test_groups_are_resampled_not_clips(self) -> None:
        truth, right, wrong = [0] * 64, [0] * 64, [1] * 64
        mixed = [0] * 32 + [1] * 32
        apart = compare(results(truth, right), results(truth, mixed))
        groups = [str(i // 16) for i in range(64)]
        together = compare(results(truth, right, groups), results(truth, mixed, groups))
        assert together.high - together.low > 3 * (apart.high - apart.low)
        assert compare(results(truth, right), results(truth, wrong)).low == 1

    @pytest.mark.parametrize(
        "other", [results([0, 1], [0, 1], folds=[0, 1]), replace(results([0, 1], [0, 1]), names=("a", "b"))]
    )
    def test_other_clips_or_folds_cannot_be_compared(self, other: Results) -> None:
        with pytest.raises(ValueError, match="not tested on the same folds"):
            compare(results([0, 1], [0, 1]), other)


class TestCrossValidation:
    clips = examples([2] * 4, [2] * 4, [2] * 4)

    def test_puts_every_prediction_beside_its_clip(self) -> None:
        wrong = self.clips[5].name
        folds = grouped_folds(self.clips, 4)
        perfect, flawed = cross_validate(
            self.clips, folds, [Contender("A", oracle(), "a"), Contender("B", oracle([wrong]), "b")], LABELS
        )
        assert (perfect.contender, perfect.recipe, flawed.contender) == ("A", "a", "B")
        assert perfect.correct.all()
        assert [name for name, right in zip(flawed.names, flawed.correct, strict=True) if not right] == [wrong]
        by_name = {clip.name: clip for clip in self.clips}
        assert [by_name[name].label for name in flawed.names] == flawed.truth.tolist()
        assert [by_name[name].group for name in flawed.names] == list(flawed.groups)
        for number, fold in enumerate(folds):
            tested = {name for name, found in zip(flawed.names, flawed.folds, strict=True) if found == number}
            assert tested == {self.clips[i].name for i in fold.test}

    def test_trains_on_the_other_folds_only(self) -> None:
        seen: list[tuple[set[str], set[str]]] = []

        def fit(train: Sequence[Example], test: Sequence[Example]) -> Probabilities:
            seen.append(({clip.name for clip in train}, {clip.name for clip in test}))
            return np.eye(3)[[clip.label for clip in test]]

        cross_validate(self.clips, grouped_folds(self.clips, 4), [Contender("A", fit, "")], LABELS)
        assert len(seen) == 4
        for train, test in seen:
            assert not train & test
            assert len(train | test) == len(self.clips)

    def test_knows_which_clips_had_others_of_their_video_in_training(self) -> None:
        def leaked(folds: Sequence[Fold]) -> Results:
            return cross_validate(self.clips, folds, [Contender("A", oracle(), "")], LABELS)[0]

        assert not leaked(grouped_folds(self.clips, 4)).leaked.any()
        one_cut_each = Fold(train=tuple(range(0, 24, 2)), test=(1, 3, 5))
        assert leaked([one_cut_each]).leaked.all()

    def test_tells_how_far_it_is(self) -> None:
        told: list[object] = []
        folds = grouped_folds(self.clips, 2)
        cross_validate(
            self.clips, folds, [Contender("A", oracle(), "")], LABELS, progress=lambda *event: told.append(event)
        )
        assert told == [("A", 1, "started"), ("A", 1, "finished"), ("A", 2, "started"), ("A", 2, "finished")]

    def test_probabilities_that_are_not_numbers_are_an_error(self) -> None:
        contender = Contender("base", lambda _, test: np.full((len(test), 3), np.nan), "")
        with pytest.raises(EvaluationError, match=r"^the training of base diverged; give it a lower learning rate$"):
            cross_validate(self.clips, grouped_folds(self.clips, 2), [contender], LABELS)

    def test_one_probability_a_class_is_due(self) -> None:
        contender = Contender("base", lambda _, test: np.ones((len(test), 2)), "")
        with pytest.raises(ValueError, match=r"base answered \(12, 2\) for 12 clips and 3 classes"):
            cross_validate(self.clips, grouped_folds(self.clips, 2), [contender], LABELS)


class TestResumption:
    clips = examples([2] * 4, [2] * 4, [2] * 4)
    folds = grouped_folds(clips, 4)
    contender = Contender("plain LSTM", oracle([clips[5].name]), "units=256")

    def run(self, log: Path, **changes: object) -> Results:
        facts = {"examples": self.clips, "folds": self.folds, "contenders": [self.contender]} | changes
        return cross_validate(labels=LABELS, log=log, **facts)[0]  # type: ignore[arg-type]

    def test_what_was_done_is_not_done_again(self, tmp_path: Path) -> None:
        first = self.run(tmp_path / "log")
        told: list[object] = []
        again = self.run(
            tmp_path / "log",
            contenders=[replace(self.contender, fit=refuses)],
            progress=lambda *event: told.append(event),
        )
        np.testing.assert_array_equal(again.probabilities, first.probabilities)
        assert told == [("plain LSTM", fold, "reused") for fold in (1, 2, 3, 4)]

    def test_an_interrupted_run_goes_on_with_the_fold_it_was_in(self, tmp_path: Path) -> None:
        left = iter([None, None, KeyboardInterrupt()])
        trained = []

        def fit(train: Sequence[Example], test: Sequence[Example]) -> Probabilities:
            if error := next(left, None):
                raise error
            trained.append(test)
            return self.contender.fit(train, test)

        with pytest.raises(KeyboardInterrupt):
            self.run(tmp_path, contenders=[replace(self.contender, fit=fit)])
        found = self.run(tmp_path, contenders=[replace(self.contender, fit=fit)])
        assert len(trained) == 4, "two folds before the interruption, two after"
        np.testing.assert_array_equal(found.probabilities, self.run(tmp_path / "other").probabilities)

    @pytest.mark.parametrize(
        "changes",
        [
            {"contenders": [Contender("plain LSTM", refuses, "units=128")]},
            {"contenders": [Contender("LSTM", refuses, "units=256")]},
            {"folds": grouped_folds(clips, 4, seed=7)},
            {"examples": [replace(clip, features=Path(f"new-{clip.features.name}")) for clip in clips]},
            {"examples": [replace(clip, label=2 - clip.label) for clip in clips]},
        ],
        ids=["recipe", "name", "folds", "features", "labels"],
    )
    def test_nothing_of_another_run_is_used(self, tmp_path: Path, changes: dict[str, object]) -> None:
        self.run(tmp_path)
        changes.setdefault("contenders", [replace(self.contender, fit=refuses)])
        with pytest.raises(AssertionError, match="trained again"):
            self.run(tmp_path, **changes)

    def test_a_features_folder_may_be_moved(self, tmp_path: Path) -> None:
        self.run(tmp_path)
        moved = [replace(clip, features="elsewhere" / clip.features) for clip in self.clips]
        self.run(tmp_path, examples=moved, contenders=[replace(self.contender, fit=refuses)])

    @pytest.mark.parametrize("damage", [b"", b"junk", b"\x93NUMPY\x01\x00"])
    def test_a_damaged_file_is_named(self, tmp_path: Path, damage: bytes) -> None:
        self.run(tmp_path)
        path = next(tmp_path.iterdir())
        path.write_bytes(damage)
        with pytest.raises(EvaluationError, match=rf"^{path} cannot be read .*; remove it$"):
            self.run(tmp_path)

    def test_a_file_of_another_shape_is_named(self, tmp_path: Path) -> None:
        self.run(tmp_path)
        path = next(tmp_path.iterdir())
        np.save(path, np.zeros((2, 3)))
        with pytest.raises(EvaluationError, match=rf"^{path} holds predictions of the shape \(2, 3\)"):
            self.run(tmp_path)
