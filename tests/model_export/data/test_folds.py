"""Dividing examples into folds, official splits and held-out groups."""

from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_export.data.folds import Fold, grouped_folds, hold_out_groups, random_folds, split_fold
from model_export.errors import FoldError
from tests.model_export.examples import example, examples


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
    def test_the_seed_determines_the_folds(self, deal: Callable[..., tuple[Fold, ...]]) -> None:
        given_examples = examples([3] * 8, [3] * 8, [3] * 8)
        assert deal(given_examples, 4, 1) == deal(given_examples, 4, 1) != deal(given_examples, 4, 2)

    def test_equal_groups_are_dealt_evenly(self) -> None:
        given_examples = examples([3] * 8, [2] * 8, [1] * 8)
        for fold in grouped_folds(given_examples, 4):
            assert Counter(given_examples[i].label for i in fold.test) == {0: 6, 1: 4, 2: 2}

    def test_a_class_with_fewer_groups_than_folds_is_named(self) -> None:
        with pytest.raises(FoldError, match=r"^PullUps has too few source videos \(3\) for 4 folds; .*lower --k-fold"):
            grouped_folds(examples([1] * 9, [5] * 3, [1] * 4), 4)

    def test_a_class_with_fewer_clips_than_folds_is_named(self) -> None:
        with pytest.raises(FoldError, match=r"^Surfing has too few clips \(3\) for 4 folds; .*lower --k-fold"):
            random_folds(examples([4], [4], [3]), 4)


class TestOfficialSplit:
    clips = (example(0, 1), example(0, 2), example(1, 1), example(1, 2))

    def test_a_split_is_one_fold_of_the_named_clips(self) -> None:
        a, b, c, d = (clip.name for clip in self.clips)
        assert split_fold(self.clips, [c, a], [d, "Diving/never-decoded.avi"]) == Fold(train=(0, 2), test=(3,))
        assert b, "on neither side"

    def test_a_class_without_training_clips_is_named(self) -> None:
        a, b, c, _ = (clip.name for clip in self.clips)
        with pytest.raises(FoldError, match=r"^PullUps has test clips but none to train on"):
            split_fold(self.clips, [a], [b, c])

    @pytest.mark.parametrize(("train", "test", "side"), [((), (0,), "training"), ((0,), (), "test")])
    def test_a_side_without_clips_is_refused(self, train: Sequence[int], test: Sequence[int], side: str) -> None:
        names = [clip.name for clip in self.clips]
        with pytest.raises(FoldError, match=f"none of the clips is on the split's {side} side"):
            split_fold(self.clips, [names[i] for i in train], [names[i] for i in test])


class TestHoldingOut:
    def test_whole_groups_of_each_class_are_held_out(self) -> None:
        keep, hold = hold_out_groups(examples([2] * 8, [2] * 8, [2] * 8), 0.25)
        assert Counter(clip.label for clip in hold) == {0: 4, 1: 4, 2: 4}
        assert len(keep) == 36
        assert not {clip.group for clip in keep} & {clip.group for clip in hold}

    def test_one_of_three_groups_is_held_out_for_a_quarter(self) -> None:
        _, hold = hold_out_groups(examples([1] * 3, [1] * 9, [1] * 9), 0.25)
        assert Counter(clip.label for clip in hold) == {0: 1, 1: 3, 2: 3}

    def test_a_class_with_one_group_is_refused(self) -> None:
        with pytest.raises(FoldError, match=r"^Diving has one source video to train on"):
            hold_out_groups(examples([5], [1] * 9, [1] * 9), 0.25)
