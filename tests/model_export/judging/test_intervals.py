"""Intervals over source videos."""

import math

import numpy as np
import pytest
from scipy.stats import beta, norm, ttest_1samp

from model_export.judging.intervals import group_indices, mean_over_groups


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


def test_groups_are_numbered_whatever_they_are_called() -> None:
    """So that sums are rounded alike after clips were renamed."""
    assert group_indices(["b", "a", "b", "c"]).tolist() == group_indices(["x", "y", "x", "w"]).tolist() == [0, 1, 0, 2]


def test_an_interval_needs_two_groups_and_a_group_for_each_clip() -> None:
    with pytest.raises(ValueError, match="two source videos"):
        mean_over_groups([1.0, 2.0], ["a", "a"])
    with pytest.raises(ValueError, match="2 clips were measured, but 3"):
        mean_over_groups([1.0, 2.0], ["a", "b", "c"])


def test_the_interval_is_students_with_one_more_value_at_each_end() -> None:
    values = [0.1, 0.4, 0.2, 0.15]
    found = mean_over_groups(values)
    expected = ttest_1samp([*values, 0.1, 0.4], 0).confidence_interval()
    assert found.mean == pytest.approx(np.mean(values))
    assert (found.low, found.high) == pytest.approx(expected)


def test_videos_of_different_lengths_have_the_jackknifes_pseudo_values() -> None:
    """Computed by hand: means 4/3 without a, 1/2 without b, 1 without c of ten clips in all."""
    found = mean_over_groups([0, 1, 4, 4, 0], ["a", "b", "b", "b", "c"])
    total, sums, clips = 9, np.array([0, 9, 0]), np.array([1, 3, 1])
    pseudo = 3 * total / 5 - 2 * (total - sums) / (5 - clips)
    centre = (3 * 9 / 5 + 0 + 4) / 5
    error = np.sqrt(((np.append(pseudo, [0, 4]) - centre) ** 2).sum() / (4 * 5))
    assert (found.low, found.high) == pytest.approx((centre - 2.7764 * error, centre + 2.7764 * error), rel=1e-4)


def test_equal_values_have_an_interval_up_to_what_is_possible() -> None:
    """That 40 videos showed no difference does not say that others show none."""
    found = mean_over_groups([0.0] * 40, least=-1, most=1)
    assert -found.low == found.high == pytest.approx(0.069, abs=0.001)
    assert mean_over_groups([1.0] * 40, least=0, most=1).high == 1
    unlimited = mean_over_groups([0.0] * 40)
    assert (unlimited.low, unlimited.high) == (-math.inf, math.inf)


def test_intervals_of_skewed_values_hold_for_few_videos() -> None:
    """Twelve videos of one to seven clips: most values are near 0, few are large; half the variance is the video's."""
    random, covered = np.random.default_rng(3), 0
    truth = beta(0.3, 4).mean()
    for _ in range(500):
        groups = np.arange(12).repeat(random.integers(1, 8, 12))
        normal = np.sqrt(0.5) * (random.normal(size=12)[groups] + random.normal(size=len(groups)))
        found = mean_over_groups(beta(0.3, 4).ppf(norm.cdf(normal)), list(map(str, groups)), least=-1, most=1)
        covered += found.low <= truth <= found.high
    assert covered >= 0.94 * 500
