"""Map statistics: entropy of attention maps and what they depend on."""

import math
from typing import Any

import numpy as np
import pytest

from model_export.judging.maps import attention_maps, map_statistics
from model_export.network.spec import CELLS
from tests.model_export.judging.networks import STEPS, Array, at, clips, network, on_brightness, uniform
from tests.model_export.judging.reportable import assert_reportable


def random_maps(seed: int, *shape: int) -> Array:
    maps = np.random.default_rng(seed).dirichlet(np.full(CELLS, 0.1), shape)
    return maps.reshape(*shape, 7, 7).astype(np.float32)


def test_uniform_maps_have_the_largest_entropy_and_no_divergence() -> None:
    found = map_statistics(attention_maps(network(uniform), clips(3)))
    np.testing.assert_allclose(found.entropy, math.log(49), rtol=1e-6)
    assert found.entropy_share == pytest.approx(1)
    assert found.against_uniform == pytest.approx(0, abs=1e-6)
    assert found.verdict == "uniform"


def test_one_hot_maps_have_no_entropy() -> None:
    found = map_statistics(attention_maps(network(at(4, 1)), clips(3)))
    np.testing.assert_array_equal(found.entropy, 0)
    assert found.against_uniform == pytest.approx(math.log(49))
    assert found.constant == pytest.approx(math.log(49))
    assert found.verdict == "constant"


def test_the_same_moving_maps_for_every_clip_are_constant() -> None:
    found = map_statistics([random_maps(0, STEPS)] * 5)
    assert found.between_clips == pytest.approx(0, abs=1e-12)
    assert found.clip_specific == pytest.approx(0, abs=1e-12)
    assert found.between_frames == pytest.approx(found.schedule)
    assert found.schedule > 1
    assert found.verdict == "constant"


def test_still_maps_that_differ_between_clips_are_varying() -> None:
    found = map_statistics(np.repeat(still, STEPS, axis=0) for still in random_maps(0, 20, 1))
    assert found.between_frames == pytest.approx(0, abs=1e-12)
    assert found.between_clips == pytest.approx(found.clip_specific)
    assert found.between_clips > 1
    assert found.verdict == "varying"


def test_entropy_is_given_for_each_step() -> None:
    sharp, flat = np.zeros((7, 7), np.float32), np.full((7, 7), 1 / 49, np.float32)
    sharp[0, 0] = 1
    found = map_statistics([np.stack([sharp, flat, sharp])] * 2)
    np.testing.assert_allclose(found.entropy, [0, math.log(49), 0], atol=1e-6)


def test_the_parts_are_mean_divergences_and_add_up() -> None:
    maps = random_maps(3, 8, STEPS)
    found = map_statistics(maps)
    flat = maps.reshape(8, STEPS, CELLS).astype(np.float64)

    def divergence(of: Any, away: Any) -> float:
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(of > 0, of * np.log(of / away), 0)
        return float(terms.sum(axis=-1).mean())

    by_clip, by_step, overall = flat.mean(1, keepdims=True), flat.mean(0, keepdims=True), flat.mean((0, 1))
    assert found.between_frames == pytest.approx(divergence(flat, by_clip), rel=1e-6)
    assert found.between_clips == pytest.approx(divergence(by_clip, overall), rel=1e-6)
    assert found.schedule == pytest.approx(divergence(by_step, overall), rel=1e-6)
    assert found.clip_specific == pytest.approx(divergence(flat, by_step), rel=1e-6)
    assert found.constant + found.between_clips + found.between_frames == pytest.approx(found.against_uniform)
    assert found.constant + found.schedule + found.clip_specific == pytest.approx(found.against_uniform)


def test_map_statistics_need_two_clips() -> None:
    with pytest.raises(ValueError, match="at least two clips"):
        map_statistics([random_maps(0, STEPS)])


@pytest.mark.parametrize("attention", [on_brightness, uniform])
def test_the_result_can_be_written_as_json_and_markdown(attention: Any) -> None:
    found = map_statistics(attention_maps(network(attention), clips(4)))
    assert_reportable(found)
    parts = ["against_uniform", "constant", "between_clips", "between_frames", "schedule", "clip_specific"]
    facts = found.as_dict()
    assert list(facts) == ["verdict", "entropy_share", "entropy_by_step", "clips", "entropy", *parts]
    assert facts["clips"] == 4
    assert facts["entropy"] == pytest.approx(np.mean(facts["entropy_by_step"]))
