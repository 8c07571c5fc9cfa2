"""Figures, intervals and comparisons of what contenders predicted."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student
from scipy.stats import ttest_1samp
from sklearn.metrics import f1_score, precision_score, recall_score, top_k_accuracy_score

from model_export.judging.results import ClassFigures, ConfusedPair, Results, compare, holm, mean_of_splits
from tests.model_export.examples import LABELS


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


class TestFigures:
    #            class 0 (3 clips)  class 1 (2)  class 2 (never predicted)
    truth = (0, 0, 0, 1, 1, 2)
    predicted = (0, 0, 1, 1, 0, 1)

    def test_accuracy_and_macro_means_are_those_computed_by_hand(self) -> None:
        figures = results(self.truth, self.predicted).figures()
        assert figures["accuracy"].value == pytest.approx(3 / 6)
        assert figures["precision"].value == pytest.approx((2 / 3 + 1 / 3 + 0) / 3)
        assert figures["recall"].value == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
        assert figures["f1"].value == pytest.approx((2 / 3 + 2 / 5 + 0) / 3)

    @given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30))
    @settings(max_examples=50)
    def test_figures_agree_with_scikit_learn(self, pairs: list[tuple[int, int]]) -> None:
        truth, predicted = zip(*pairs, strict=True)
        figures = results(truth, predicted).figures()
        present = sorted(set(truth))
        facts = {"labels": present, "average": "macro", "zero_division": 0}
        assert figures["precision"].value == pytest.approx(precision_score(truth, predicted, **facts))
        assert figures["recall"].value == pytest.approx(recall_score(truth, predicted, **facts))
        assert figures["f1"].value == pytest.approx(f1_score(truth, predicted, **facts))

    @pytest.mark.parametrize("classes", [6, 40])
    def test_top_5_accuracy_agrees_with_scikit_learn(self, classes: int) -> None:
        random = np.random.default_rng(classes)
        truth, probabilities = random.integers(classes, size=50), random.dirichlet(np.ones(classes), 50)
        many = replace(
            results([0] * 50, [0] * 50, folds=[0] * 20 + [1] * 30),
            labels=tuple(map(str, range(classes))),
            truth=truth,
            probabilities=probabilities,
        )
        expected = top_k_accuracy_score(truth, probabilities, k=5, labels=range(classes))
        figure = many.figures()["top5"]
        assert figure.low < figure.value == pytest.approx(expected)
        first, second = (
            top_k_accuracy_score(truth[part], probabilities[part], k=5, labels=range(classes))
            for part in (slice(20), slice(20, None))
        )
        assert figure.mean_of_folds == pytest.approx((first + second) / 2)

    def test_top_5_accuracy_of_five_classes_is_not_given(self) -> None:
        five = replace(results([0, 1], [0, 1]), labels=tuple("abcde"), probabilities=np.eye(5)[:2])
        assert list(five.figures()) == ["accuracy", "precision", "recall", "f1"]

    def test_equally_probable_classes_are_no_five_right_guesses(self) -> None:
        """The first of them counts as predicted, and the first five as the most probable."""
        truth = list(range(10))
        undecided = replace(results(truth, [0] * 10), labels=tuple("abcdefghij"), probabilities=np.full((10, 10), 0.1))
        assert undecided.figures()["top5"].value == 0.5

    def test_mean_and_deviation_are_over_folds(self) -> None:
        # Accuracy 1/1 in the first fold and 1/3 in the second.
        accuracy = results((0, 0, 0, 1), (0, 0, 1, 0), folds=(0, 1, 1, 1)).figures()["accuracy"]
        assert accuracy.value == pytest.approx(2 / 4)
        assert accuracy.mean_of_folds == pytest.approx(2 / 3)
        assert accuracy.deviation_of_folds == pytest.approx(np.sqrt(2) / 3), "of a sample: divided by n − 1"

    def test_one_fold_has_no_deviation(self) -> None:
        assert results((0, 1), (0, 1)).figures()["accuracy"].deviation_of_folds is None

    def test_precision_and_recall_are_given_per_class(self) -> None:
        assert results(self.truth, self.predicted).per_class() == [
            ClassFigures("Diving", precision=2 / 3, recall=2 / 3, f1=2 / 3, clips=3, videos=3),
            ClassFigures("PullUps", precision=1 / 3, recall=1 / 2, f1=2 / 5, clips=2, videos=2),
            ClassFigures("Surfing", precision=0, recall=0, f1=0, clips=1, videos=1),
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

    def test_intervals_contain_the_figure_and_shrink_with_the_number_of_clips(self) -> None:
        few, many = self.accuracy(100, 1), self.accuracy(1600, 1)
        assert few[0] < few[1] < few[2]
        assert many[0] < many[1] < many[2]
        assert (many[2] - many[0]) * 3 < few[2] - few[0]

    def test_intervals_are_binomial_if_every_clip_is_a_group_of_its_own(self) -> None:
        low, value, high = self.accuracy(1600, 1)
        half = 1.96 * np.sqrt(value * (1 - value) / 1600)
        assert [value - low, high - value] == pytest.approx([half, half], rel=0.1)

    def test_intervals_depend_on_the_number_of_videos_not_of_clips(self) -> None:
        """If a video's sixteen clips are all right or all wrong, they hold no more information than the video."""
        low, value, high = self.accuracy(1600, 16)
        half = 1.96 * np.sqrt(value * (1 - value) / 100)
        assert [value - low, high - value] == pytest.approx([half, half], rel=0.2)

    def test_intervals_of_precision_contain_it_with_many_small_classes(self) -> None:
        """A hundred classes of four clips each."""
        random = np.random.default_rng(0)
        truth = np.arange(100).repeat(4)
        predicted = np.where(random.random(400) < 0.6, truth, random.integers(0, 100, 400))
        hundred = replace(
            results(truth.tolist(), [0] * 400), labels=tuple(map(str, range(100))), probabilities=np.eye(100)[predicted]
        )
        figure = hundred.figures()["precision"]
        assert figure.low < figure.value - 0.02
        assert figure.value + 0.02 < figure.high

    def test_intervals_of_macro_figures_are_the_jackknifes(self) -> None:
        """Figures by scikit-learn without each of nine videos; three classes leave six of nine degrees of freedom."""
        truth, predicted = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2] * 2), np.array([0, 1, 0, 1, 1, 1, 2, 0, 2] * 2)
        predicted[1] = 0
        groups = np.arange(9).repeat(2)
        truth, predicted = truth[np.argsort(truth, kind="stable")], predicted[np.argsort(truth, kind="stable")]
        figures = results(truth.tolist(), predicted.tolist(), [str(i) for i in groups]).figures()
        scores = (precision_score, recall_score, f1_score)
        for figure, score in zip(list(figures.values())[1:], scores, strict=True):
            value = score(truth, predicted, average="macro")
            without = [score(truth[groups != g], predicted[groups != g], average="macro") for g in range(9)]
            pseudo = np.append(value + 8 * (value - np.array(without)) * np.sqrt(9 / 6), [0, 1])
            centre = (9 * value + 1) / 11
            reach = student.ppf(0.975, 10) * np.sqrt(((pseudo - centre) ** 2).sum() / 10 / 11)
            assert (figure.low, figure.high) == pytest.approx((centre - reach, min(1, centre + reach)))

    def test_the_interval_of_a_perfect_contender_has_a_width(self) -> None:
        """Twelve of twelve: the exact binomial interval begins at 0.025 ** (1 / 12) = 0.735."""
        figures = results([0, 1, 2] * 4, [0, 1, 2] * 4).figures()
        for figure in figures.values():
            assert figure.high == 1
            assert figure.low == pytest.approx(0.025 ** (1 / 12), abs=0.06)

    def test_intervals_hold_for_few_videos_of_high_accuracy(self) -> None:
        """Accuracy, macro precision and macro recall are 0.97 by construction: a video is right or wrong as a whole."""
        assert_covered(videos=12, accuracy=0.97)

    def test_intervals_hold_for_forty_videos(self) -> None:
        assert_covered(videos=40, accuracy=0.9)

    def test_figures_of_a_single_video_have_an_interval(self) -> None:
        figure = results([0, 0], [0, 1], ["a", "a"]).figures()["accuracy"]
        assert (figure.low, figure.high) == (0, 1)


def assert_covered(videos: int, accuracy: float, experiments: int = 500) -> None:
    """The intervals contain the true figures in 93 % of simulated experiments, and are not simply wide."""
    random = np.random.default_rng(1)
    covered, widths = np.zeros(4), np.zeros(4)
    for _ in range(experiments):
        cuts = random.integers(1, 8, videos)
        truth = np.arange(videos) % 3
        right = random.random(videos) < accuracy
        predicted = np.where(right, truth, (truth + random.integers(1, 3, videos)) % 3)
        groups = [str(video) for video in np.arange(videos).repeat(cuts)]
        found = results(truth.repeat(cuts).tolist(), predicted.repeat(cuts).tolist(), groups).figures().values()
        covered += [figure.low <= accuracy <= figure.high for figure in found]
        widths += [figure.high - figure.low for figure in found]
    assert (covered >= 0.93 * experiments).all(), covered / experiments
    assert (widths <= 0.31 * experiments).all(), widths / experiments


class TestMeanOfSplits:
    def test_mean_and_deviation_are_over_the_splits(self) -> None:
        splits = [results([0, 0, 1, 1], predicted, list("aabb")) for predicted in ([0, 0, 1, 1], [0, 0, 1, 0], [0] * 4)]
        found = mean_of_splits(splits)["accuracy"]
        assert found.mean == pytest.approx(0.75)
        assert found.deviation == pytest.approx(0.25)

    def test_the_same_split_three_times_says_no_more_than_once(self) -> None:
        once = results([0, 1, 2] * 8, [0, 1, 2] * 6 + [0, 0, 0] * 2)
        figures, means = once.figures(), mean_of_splits([once] * 3)
        for metric in once.metrics:
            figure, mean = figures[metric], means[metric]
            assert (mean.mean, mean.low, mean.high) == pytest.approx((figure.value, figure.low, figure.high))
            assert mean.deviation == pytest.approx(0)

    @pytest.mark.parametrize("share", [1 / 3, 0.6])
    def test_intervals_hold_whether_or_not_splits_test_the_same_videos(self, share: float) -> None:
        """Each of 40 videos is right or wrong as a whole, in every split that tests it."""
        random, covered, accuracy = np.random.default_rng(6), 0, 0.85
        for _ in range(300):
            cuts, truth = random.integers(1, 8, 40), np.arange(40) % 3
            predicted = np.where(random.random(40) < accuracy, truth, (truth + 1) % 3)
            chosen = [random.permutation(40)[: int(40 * share)] for _ in range(3)]
            if share < 0.5:
                chosen = np.array_split(random.permutation(40), 3)
            splits = [
                results(
                    truth[videos].repeat(cuts[videos]).tolist(),
                    predicted[videos].repeat(cuts[videos]).tolist(),
                    list(map(str, videos.repeat(cuts[videos]))),
                )
                for videos in chosen
            ]
            found = mean_of_splits(splits)["accuracy"]
            covered += found.low <= accuracy <= found.high
        assert covered >= 0.91 * 300


class TestComparison:
    def test_difference_and_p_value_are_those_computed_by_hand(self) -> None:
        # Of ten clips, the first alone is right on seven, the second alone on one.
        first = results([0] * 10, [0] * 8 + [1] * 2)
        second = results([0] * 10, [1] * 7 + [0] * 2 + [1])
        (found,) = compare(first, [second])
        assert (found.only_first, found.only_second) == (7, 1)
        assert found.difference == pytest.approx(0.6)
        values = [1] * 7 + [-1] + [0] * 2 + [-1, 1]
        assert found.p == found.p_holm == pytest.approx(ttest_1samp(values, 0).pvalue), "with one video at each end"
        assert found.low == pytest.approx(ttest_1samp(values, 0).confidence_interval().low)
        assert found.high == 1, "no accuracy is more than 1 better"

    def test_a_contender_compared_with_itself_does_not_differ(self) -> None:
        """On ten clips, which say little of others."""
        same = results([0] * 10, [0] * 5 + [1] * 5)
        (found,) = compare(same, [same])
        assert (found.difference, found.only_first, found.only_second, found.p) == (0, 0, 0, 1)
        assert -found.low == found.high > 0.2

    @pytest.mark.parametrize("videos", [12, 40])
    def test_equal_methods_rarely_differ(self, videos: int) -> None:
        """Each method alone is right on a tenth of the videos, whole videos at a time: p < 0.05 is an error of 5 %."""
        random = np.random.default_rng(2)
        errors = 0
        for _ in range(500):
            cuts = random.integers(1, 8, videos)
            case, groups = random.random(videos).repeat(cuts), [str(i) for i in np.arange(videos).repeat(cuts)]
            first, second = (
                results([0] * len(groups), np.where(wrong, 1, 0).tolist(), groups) for wrong in (case < 0.1, case > 0.9)
            )
            (found,) = compare(first, [second])
            errors += found.p < 0.05
            assert (found.p < 0.05) == (not found.low <= 0 <= found.high)
        assert errors <= 0.07 * 500

    def test_p_values_allow_for_the_number_of_comparisons(self) -> None:
        """By hand: the smallest of three is tripled, the next doubled, and none gets below a smaller one."""
        assert holm([0.02, 0.01, 0.03]) == pytest.approx([0.04, 0.03, 0.04])
        assert holm([0.6, 0.7]) == [1, 1]
        assert holm([]) == []
        first, second = results([0] * 10, [0] * 8 + [1] * 2), results([0] * 10, [1] * 7 + [0] * 2 + [1])
        alone, twice = compare(first, [second])[0], compare(first, [second, first])[0]
        assert (twice.p, twice.p_holm) == (alone.p, 2 * alone.p)

    def test_the_reversed_comparison_is_the_negative(self) -> None:
        first, second = results([0] * 20, [0] * 15 + [1] * 5), results([0] * 20, [0] * 9 + [1] * 11)
        (there,), (back,) = compare(first, [second]), compare(second, [first])
        mirrored = [-there.difference, -there.high, -there.low]
        assert [back.difference, back.low, back.high] == pytest.approx(mirrored)

    def test_comparisons_rest_on_groups_not_on_clips(self) -> None:
        truth, right, mixed = [0] * 64, [0] * 64, [0] * 32 + [1] * 32
        (apart,) = compare(results(truth, right), [results(truth, mixed)])
        groups = [str(i // 16) for i in range(64)]
        (together,) = compare(results(truth, right, groups), [results(truth, mixed, groups)])
        assert together.high - together.low > 3 * (apart.high - apart.low)
        assert apart.p < 0.001
        assert together.p > 0.1

    @pytest.mark.parametrize(
        "other", [results([0, 1], [0, 1], folds=[0, 1]), replace(results([0, 1], [0, 1]), names=("a", "b"))]
    )
    def test_results_of_other_clips_or_folds_are_refused(self, other: Results) -> None:
        with pytest.raises(ValueError, match="not tested on the same folds"):
            compare(results([0, 1], [0, 1]), [other])
