"""Bootstrap intervals over source videos."""

import numpy as np
import pytest

from model_export.judging.intervals import mean_over_groups


def test_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = [(found := mean_over_groups(rng.normal(size=60))).low < 0 < found.high for _ in range(200)]
    assert 0.89 <= np.mean(hits) <= 0.99


def test_clips_of_one_source_video_count_as_one() -> None:
    values = np.random.default_rng(0).normal(size=20)
    copies, groups = np.repeat(values, 10), [str(index // 10) for index in range(200)]
    apart, together, once = mean_over_groups(copies), mean_over_groups(copies, groups), mean_over_groups(values)
    assert together.high - together.low == pytest.approx(once.high - once.low, rel=0.1)
    assert apart.high - apart.low < 0.5 * (together.high - together.low)


def test_groups_are_weighted_by_their_number_of_clips() -> None:
    assert mean_over_groups([1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"]).mean == 0.75


def test_an_interval_needs_two_groups_and_a_group_for_each_clip() -> None:
    with pytest.raises(ValueError, match="two source videos"):
        mean_over_groups([1.0, 2.0], ["a", "a"])
    with pytest.raises(ValueError, match="2 clips were measured, but 3"):
        mean_over_groups([1.0, 2.0], ["a", "b", "c"])
