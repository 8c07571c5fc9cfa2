"""Dividing examples into folds, official splits and held-out groups."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from model_export.data.examples import Example
from model_export.data.folds import Fold, grouped_folds, hold_out_groups, random_folds, split_fold
from model_export.errors import FoldError
from tests.model_export.examples import LABELS, example, examples


def overlapping(*groups: Sequence[int]) -> list[Example]:
    """Build examples of three classes from the number of clips of each class, for each group."""
    return [
        Example(Path(f"{group}-{label}-{clip}.npy"), label, f"g{group}", f"{LABELS[label]}/{group}-{clip}.avi")
        for group, counts in enumerate(groups)
        for label, count in enumerate(counts)
        for clip in range(count)
    ]


def renamed(clips: Sequence[Example]) -> list[Example]:
    """The same clips, in the same groups, under names that sort the other way round."""
    groups = {group: f"z{9000 - i}" for i, group in enumerate(sorted({clip.group for clip in clips}))}
    return [
        replace(clip, name=f"{LABELS[clip.label]}/{9000 - i}.mp4", group=groups[clip.group])
        for i, clip in enumerate(clips)
    ]


def groups_of(clips: Iterable[Example]) -> dict[int, set[str]]:
    """The groups of each class."""
    found: defaultdict[int, set[str]] = defaultdict(set)
    for clip in clips:
        found[clip.label].add(clip.group)
    return found


def dealings(clips: Sequence[Example], sides: int) -> Iterable[list[dict[int, set[str]]]]:
    """Every way to deal groups to sides that leaves no side without groups and gives no side all those of a class: the
    groups of each class on each side."""
    groups = sorted({clip.group for clip in clips})
    whole = groups_of(clips)
    for on in product(range(sides), repeat=len(groups)):
        dealt = dict(zip(groups, on, strict=True))
        found = [groups_of(clip for clip in clips if dealt[clip.group] == side) for side in range(sides)]
        if all(side and all(side[label] < whole[label] for label in whole) for side in found):
            yield found


# Few groups, most of them in several classes, so that many dealings lose a class and some classes cannot be saved.
OVERLAPPING = st.lists(st.tuples(*[st.sampled_from((0, 0, 1, 3))] * 3).filter(any), min_size=3, max_size=6)


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

    @settings(max_examples=25)
    @given(OVERLAPPING, st.integers(2, 3), st.integers(0, 99))
    def test_where_groups_are_in_several_classes_each_fold_trains_on_every_class(
        self, groups: list[tuple[int, ...]], k: int, seed: int
    ) -> None:
        clips = overlapping(*groups)
        whole = groups_of(clips)
        assume(min(map(len, whole.values())) >= k)
        if not any(dealings(clips, k)):
            with pytest.raises(FoldError, match="leave clips of every class to train on"):
                grouped_folds(clips, k, seed)
            return
        folds = grouped_folds(clips, k, seed)
        assert sorted(i for fold in folds for i in fold.test) == list(range(len(clips)))
        for fold in folds:
            train, test = ([clips[i] for i in side] for side in (fold.train, fold.test))
            assert test
            assert groups_of(train).keys() == whole.keys()
            assert not {clip.group for clip in train} & {clip.group for clip in test}

    def test_a_dealing_that_loses_no_class_is_found_where_the_first_one_does(self) -> None:
        clips = overlapping((1, 0, 1), (0, 1, 3), (1, 1, 0), (0, 1, 0))
        labels, groups = [clip.label for clip in clips], [clip.group for clip in clips]
        first = [
            {labels[i] for i in train}
            for train, _ in StratifiedGroupKFold(2, shuffle=True, random_state=0).split(labels, labels, groups)
        ]
        assert any(found != {0, 1, 2} for found in first)
        for fold in grouped_folds(clips, 2):
            assert {labels[i] for i in fold.train} == {0, 1, 2}

    def test_classes_that_cannot_all_be_trained_on_are_refused(self) -> None:
        with pytest.raises(FoldError, match=r"^there are no 2 folds that each leave clips of every class to train on"):
            grouped_folds(overlapping((1, 1, 0), (0, 1, 1), (1, 0, 1)), 2)

    def test_folds_depend_neither_on_the_order_of_the_clips_nor_on_names(self) -> None:
        clips = examples([3, 1, 2, 2, 1, 4], [2] * 6, [1] * 6)
        folds = grouped_folds(clips, 3, 5)
        expected = [{clips[i].name for i in fold.test} for fold in folds]
        assert [{clips[::-1][i].name for i in fold.test} for fold in grouped_folds(clips[::-1], 3, 5)] == expected
        assert grouped_folds(renamed(clips), 3, 5) == folds
        shared = overlapping((1, 0, 1), (0, 1, 3), (1, 1, 0), (0, 1, 0))
        assert grouped_folds(renamed(shared), 2) == grouped_folds(shared, 2)

    def test_folds_depend_on_the_clips_and_not_on_what_encoded_them(self) -> None:
        clips = [replace(clip, content=clip.name) for clip in examples([3, 1, 2, 2, 1, 4], [2] * 6, [1] * 6)]
        others = [replace(clip, features=Path(f"{9000 - i}.npy")) for i, clip in enumerate(clips)]
        assert grouped_folds(others, 3, 5) == grouped_folds(clips, 3, 5)

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

    @pytest.mark.parametrize(
        ("train", "test", "fault"),
        [
            (
                (),
                (0,),
                "none of the clips is on the split's training side; add clips of that side, or leave --split out",
            ),
            ((0,), (), "none of the clips is on the split's test side; add clips of that side, or leave --split out"),
            ((), (), "the split lists none of the clips; give the split lists of this data set with --split-files"),
        ],
    )
    def test_a_side_without_clips_is_told_from_lists_of_another_data_set(
        self, train: Sequence[int], test: Sequence[int], fault: str
    ) -> None:
        names = [clip.name for clip in self.clips]
        with pytest.raises(FoldError, match=f"^{fault}"):
            split_fold(self.clips, [names[i] for i in train], [names[i] for i in test])


class TestHoldingOut:
    def test_whole_groups_of_each_class_are_held_out(self) -> None:
        keep, hold = hold_out_groups(examples([2] * 8, [2] * 8, [2] * 8), 0.25)
        assert Counter(clip.label for clip in hold) == {0: 4, 1: 4, 2: 4}
        assert len(keep) == 36
        assert not {clip.group for clip in keep} & {clip.group for clip in hold}

    @given(
        st.tuples(*[st.lists(st.integers(1, 3), min_size=2, max_size=12)] * 3), st.floats(0.01, 0.99), st.integers(0)
    )
    def test_each_class_has_its_share_held_out_whatever_other_classes_have(
        self, sizes: tuple[list[int], ...], share: float, seed: int
    ) -> None:
        clips = examples(*sizes)
        keep, hold = hold_out_groups(clips, share, seed)
        assert sorted(clip.name for clip in keep + hold) == sorted(clip.name for clip in clips)
        for label, groups in enumerate(sizes):
            n = len(groups)
            assert len(groups_of(hold)[label]) == min(max(round(share * n), 1), n - 1)
            assert groups_of(hold)[label].isdisjoint(groups_of(keep)[label])
            alone = [clip for clip in clips if clip.label == label]
            assert hold_out_groups(alone, share, seed)[1] == [clip for clip in hold if clip.label == label]

    @pytest.mark.parametrize("share", (0.1, 0.25, 0.5, 0.9))
    def test_one_of_two_groups_is_held_out_for_any_share_and_a_quarter_of_others(self, share: float) -> None:
        keep, hold = hold_out_groups(examples([1] * 2, [1] * 8, [1] * 20), share)
        expected = {0: 1, 1: {0.1: 1, 0.25: 2, 0.5: 4, 0.9: 7}[share], 2: 20 * share}
        assert Counter(clip.label for clip in hold) == expected
        assert Counter(clip.label for clip in keep)[0] == 1

    @settings(max_examples=25)
    @given(OVERLAPPING, st.sampled_from((0.25, 0.5, 0.75)), st.integers(0, 99))
    def test_where_groups_are_in_several_classes_every_class_is_on_both_sides_and_as_close_to_its_share_as_can_be(
        self, groups: list[tuple[int, ...]], share: float, seed: int
    ) -> None:
        clips = overlapping(*groups)
        whole = groups_of(clips)
        assume(min(map(len, whole.values())) >= 2)
        wanted = {label: min(max(round(share * len(of)), 1), len(of) - 1) for label, of in whole.items()}

        def error(held: dict[int, set[str]]) -> int:
            return sum(abs(len(held[label]) - n) for label, n in wanted.items())

        possible = [error(hold) for _, hold in dealings(clips, 2) if all(hold[label] for label in whole)]
        if not possible:
            with pytest.raises(FoldError, match="can be held out, because it shares them with other classes"):
                hold_out_groups(clips, share, seed)
            return
        keep, hold = hold_out_groups(clips, share, seed)
        assert {clip.group for clip in keep}.isdisjoint(clip.group for clip in hold)
        assert groups_of(keep).keys() == groups_of(hold).keys() == whole.keys()
        assert error(groups_of(hold)) == min(possible)

    def test_dozens_of_groups_in_dozens_of_classes_take_no_search_for_the_very_best(self) -> None:
        random = np.random.default_rng(0)
        clips = [
            Example(Path(f"{group}-{label}.npy"), int(label), f"g{group}", f"class {label}/{group}.avi")
            for group in range(60)
            for label in random.choice(40, 25, replace=False)
        ]
        held = groups_of(hold_out_groups(clips, 0.25)[1])  # it takes minutes to prove which choice is closest
        for label, groups in groups_of(clips).items():
            assert 1 <= len(held[label]) <= 0.5 * len(groups)

    def test_the_same_groups_are_held_out_as_before(self) -> None:
        clips = examples([1] * 8, [1] * 6) + overlapping((1, 1, 0), (0, 1, 1), (1, 0, 1), (1, 1, 1), (0, 1, 0))
        assert sorted({clip.group for clip in hold_out_groups(clips, 0.25, 3)[1]}) == ["g0", "g3", "v_Diving_g02"], (
            "the same settings hold other groups out, and kept checkpoints and predictions would be mixed with theirs: "
            "raise FITTING_REVISION and BASELINES_REVISION, and store these groups here"
        )

    def test_classes_that_need_all_their_groups_are_refused(self) -> None:
        with pytest.raises(FoldError, match=r"^no source videos of Diving can be held out, because it shares them"):
            hold_out_groups(overlapping((1, 1, 0), (0, 1, 1), (1, 0, 1)), 0.25)

    @settings(max_examples=10)
    @given(st.permutations(range(20)), st.integers(0, 3))
    def test_the_choice_depends_on_the_seed_and_not_on_the_order_of_the_clips(
        self, order: list[int], seed: int
    ) -> None:
        clips = examples([1] * 8, [1] * 6) + overlapping((1, 1, 0), (0, 1, 1), (1, 0, 1), (1, 1, 1), (0, 1, 0))[:6]
        _, hold = hold_out_groups([clips[i] for i in order], 0.25, seed)
        assert {clip.name for clip in hold} == {clip.name for clip in hold_out_groups(clips, 0.25, seed)[1]}

    def test_seeds_hold_out_different_groups(self) -> None:
        clips = examples([1] * 8, [1] * 8, [1] * 8)
        choices = {tuple(clip.name for clip in hold_out_groups(clips, 0.25, seed)[1]) for seed in range(10)}
        assert len(choices) == 10

    def test_the_choice_does_not_depend_on_names(self) -> None:
        clips = examples([1] * 8, [1] * 6) + overlapping((1, 1, 0), (0, 1, 1), (1, 0, 1), (1, 1, 1), (0, 1, 0))[:6]
        held = [clip.features for clip in hold_out_groups(clips, 0.25)[1]]
        assert [clip.features for clip in hold_out_groups(renamed(clips), 0.25)[1]] == held

    def test_a_class_with_one_group_is_refused(self) -> None:
        with pytest.raises(FoldError, match=r"^Diving has one source video to train on"):
            hold_out_groups(examples([5], [1] * 9, [1] * 9), 0.25)
