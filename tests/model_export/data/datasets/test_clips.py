"""Selecting a few clips of many: spread over the source videos, and the same ones every time."""

from collections import Counter
from pathlib import Path

import pytest

from model_export.data.datasets import LabelledClip, clips_per_class


def clips_of(label: str, *sizes: int) -> list[LabelledClip]:
    """A class with one group of each of the given sizes."""
    return [
        LabelledClip(Path(f"{label}/{label}_g{group}_c{number}.avi"), label, f"{label}_g{group}")
        for group, size in enumerate(sizes)
        for number in range(size)
    ]


MANY = clips_of("a", 7, 1, 5, 2) + clips_of("b", 3, 3)


def test_each_group_contributes_one_clip_before_any_contributes_a_second() -> None:
    chosen = clips_per_class(clips_of("a", 7, 7, 7, 7), 4)
    assert Counter(clip.group for clip in chosen) == {"a_g0": 1, "a_g1": 1, "a_g2": 1, "a_g3": 1}


def test_groups_that_run_out_are_skipped() -> None:
    chosen = clips_per_class(clips_of("a", 7, 1, 5, 2), 10)
    assert Counter(clip.group for clip in chosen) in (
        {"a_g0": 4, "a_g1": 1, "a_g2": 3, "a_g3": 2},
        {"a_g0": 3, "a_g1": 1, "a_g2": 4, "a_g3": 2},
    )


def test_class_with_too_few_clips_contributes_all() -> None:
    chosen = clips_per_class(MANY, 8)
    assert Counter(clip.label for clip in chosen) == {"a": 8, "b": 6}


def test_selection_is_sorted_and_has_no_duplicates() -> None:
    chosen = clips_per_class(MANY, 5)
    assert chosen == sorted(set(chosen))


def test_selection_does_not_depend_on_the_order_of_the_clips() -> None:
    assert clips_per_class(reversed(MANY), 5) == clips_per_class(MANY, 5)


def test_selection_within_a_class_does_not_depend_on_other_classes() -> None:
    alone = clips_per_class((clip for clip in MANY if clip.label == "b"), 3)
    assert alone == [clip for clip in clips_per_class(MANY, 3) if clip.label == "b"]


def test_larger_selection_contains_the_smaller_one() -> None:
    assert set(clips_per_class(MANY, 3)) < set(clips_per_class(MANY, 6))


@pytest.mark.parametrize("count", (0, -1))
def test_count_must_be_positive(count: int) -> None:
    with pytest.raises(ValueError, match="count must be at least 1"):
        clips_per_class(MANY, count)
