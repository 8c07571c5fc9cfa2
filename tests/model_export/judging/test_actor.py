"""The rendered actor: attention inside a box that is known."""

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_export.judging.actor import ActorClip, actor_ratio, box_shares, render_and_encode
from model_export.network.arrays import Predict
from model_export.rendering.figure import render_clip
from service.model.bundle import Outputs
from tests.model_export.judging.networks import STEPS, Array, at, network, normalised, on_brightness, uniform
from tests.model_export.judging.reportable import assert_reportable

fraction = st.floats(0, 1)


@given(st.tuples(fraction, fraction), st.tuples(fraction, fraction))
def test_box_shares_match_counting_points_on_a_fine_grid(x: tuple[float, float], y: tuple[float, float]) -> None:
    (x0, x1), (y0, y1) = sorted(x), sorted(y)
    fine = 7 * 40
    centres = (np.arange(fine) + 0.5) / fine
    inside = ((centres > y0) & (centres < y1))[:, None] & ((centres > x0) & (centres < x1))[None, :]
    counted = inside.reshape(7, 40, 7, 40).mean(axis=(1, 3))
    shares = box_shares([(x0, y0, x1, y1)])[0]
    np.testing.assert_allclose(shares, counted, atol=2 / 40)  # each edge of the box may miss half a point a side
    assert shares.mean() == pytest.approx((x1 - x0) * (y1 - y0), abs=1e-12)


def test_box_shares_are_in_rows_from_the_top() -> None:
    shares = box_shares([(1 / 7, 0, 2.5 / 7, 1 / 7)])[0]
    np.testing.assert_allclose(shares[0], [0, 1, 0.5, 0, 0, 0, 0], atol=1e-12)
    assert not shares[1:].any()


@pytest.fixture(scope="module")
def actors() -> list[ActorClip]:
    """Rendered clips whose features are the frames' brightness, which differs between clips."""
    return list(render_and_encode(brightness, clips=3, frames=50))


def brightness(frames: npt.NDArray[np.uint8]) -> Array:
    cells = frames.reshape(len(frames), 7, 32, 7, 32, 3).mean(axis=(2, 4))
    return np.asarray(cells, np.float32)


def oracle(actors: list[ActorClip]) -> Predict:
    """Attend equally to the cells that lie deepest in the actor's box."""

    def attention(cuboids: Array) -> Array:
        (shares,) = (clip.shares for clip in actors if np.array_equal(clip.features, cuboids[0]))
        deepest = shares > shares.max(axis=(1, 2), keepdims=True) - 1e-9
        return normalised(deepest[np.newaxis])

    return network(attention)


def test_all_attention_deepest_inside_the_box_reaches_the_ceiling(actors: list[ActorClip]) -> None:
    found = actor_ratio(oracle(actors), actors)
    np.testing.assert_allclose(found.ratios, found.ceilings, rtol=1e-6)
    assert found.gap_to_blind.mean > 0.5


def test_attention_anywhere_inside_a_box_of_whole_cells_gives_one_over_its_share() -> None:
    shares = box_shares([(1 / 7, 2 / 7, 3 / 7, 6 / 7)] * STEPS)

    def attending_to_the_box(cuboids: Array) -> Outputs:
        return Outputs(np.ones((1, 1), np.float32), normalised(shares[np.newaxis]))

    clips_of_boxes = [ActorClip(name, np.full((STEPS, 7, 7, 1), i, np.float32), shares) for i, name in enumerate("abc")]
    found = actor_ratio(attending_to_the_box, clips_of_boxes)
    np.testing.assert_allclose(found.ratios, 49 / 8, rtol=1e-6)
    np.testing.assert_allclose(found.ceilings, 49 / 8, rtol=1e-6)


def test_uniform_attention_has_ratio_one(actors: list[ActorClip]) -> None:
    found = actor_ratio(network(uniform), actors)
    np.testing.assert_allclose(found.ratios, 1, rtol=1e-6)


def test_a_map_that_is_the_same_for_every_clip_is_no_better_than_blind(actors: list[ActorClip]) -> None:
    found = actor_ratio(network(at(3, 3)), actors)
    np.testing.assert_allclose(found.blind, found.ratios, rtol=1e-6)
    assert found.gap_to_blind.mean == pytest.approx(0, abs=1e-6)


def test_boxes_belong_to_the_sampled_frames_after_moving_the_picture(actors: list[ActorClip]) -> None:
    boxes = render_clip("jumping_jacks", frames=50, seed=0).boxes
    sampled = boxes[[math.floor((k + 0.5) * 50 / 40) for k in range(40)]]
    assert actors[0].name == "jumping_jacks/0"
    assert actors[0].features.shape == (40, 7, 7, 3)
    np.testing.assert_allclose(actors[0].shares.sum(axis=2), box_shares(sampled).sum(axis=2))  # rows stay
    np.testing.assert_allclose(actors[0].shares.mean(axis=(1, 2)), box_shares(sampled).mean(axis=(1, 2)))  # all inside
    assert [clip.name.partition("/")[0] for clip in actors] == ["jumping_jacks", "squats", "waving"]


def test_boxes_are_where_frames_change(actors: list[ActorClip]) -> None:
    """What differs from the clip's first frame is the actor, wherever it was placed."""
    for clip in actors:
        movement = np.abs(clip.features - clip.features[:1]).sum(axis=-1)
        near = np.maximum(clip.shares, clip.shares[:1]) > 0  # cells of this frame's box or the first one's
        assert movement[near].sum() / movement.sum() > 0.85


def test_actors_are_placed_in_different_columns() -> None:
    def nothing(frames: npt.NDArray[np.uint8]) -> Array:
        return np.zeros((len(frames), 7, 7, 1), np.float32)

    placed = [clip.shares.mean(axis=(0, 1)) for clip in render_and_encode(nothing, ["squats"], clips=8, frames=3)]
    centres = [np.average(np.arange(7), weights=columns) for columns in placed]
    assert max(centres) - min(centres) > 2


def test_the_rendered_actor_needs_three_clips(actors: list[ActorClip]) -> None:
    with pytest.raises(ValueError, match="at least three clips"):
        actor_ratio(network(uniform), actors[:2])


def followers(clips: int, rng: np.random.Generator) -> tuple[Predict, list[ActorClip]]:
    """Clips whose actors stand in columns, the middle one more often, and a head that attends to them somewhat."""
    columns = rng.choice(7, clips, p=COLUMNS)
    maps = (0.6 * np.eye(7)[columns] + 0.4 / 7)[:, np.newaxis] / 7 * np.ones((7, 1))

    def attention(cuboids: Array) -> Array:
        return np.asarray(maps[int(cuboids[0, 0, 0, 0, 0])][np.newaxis, np.newaxis], np.float32)

    shares = np.eye(7)[columns][:, np.newaxis, np.newaxis] * np.ones((7, 1))
    return network(attention), [
        ActorClip(str(clip), np.full((1, 7, 7, 1), clip, np.float32), shares[clip]) for clip in range(clips)
    ]


COLUMNS = np.array([1, 4, 10, 20, 10, 4, 1]) / 50


def test_the_interval_over_blind_maps_allows_for_the_clips_that_they_share() -> None:
    """Leaving out a clip's actor but not its maps would cover the true difference in 82 % of the experiments."""
    truth = 7 * 0.6 * (1 - (COLUMNS**2).sum())
    rng = np.random.default_rng(0)
    found = [actor_ratio(*followers(12, rng)).gap_to_blind for _ in range(400)]
    assert np.mean([gap.mean for gap in found]) == pytest.approx(truth, abs=0.1)
    assert np.mean([gap.low <= truth <= gap.high for gap in found]) > 0.92


def test_the_result_can_be_written_as_json_and_markdown(actors: list[ActorClip]) -> None:
    found = actor_ratio(network(on_brightness), actors)
    assert_reportable(found)
    facts = found.as_dict()
    assert list(facts) == ["clips", "ratio", "blind", "ratio_minus_blind", "ceiling", "ratio_by_clip"]
    assert facts["clips"] == 3
    for name, values in (("ratio", found.ratios), ("blind", found.blind), ("ceiling", found.ceilings)):
        assert facts[name]["mean"] == pytest.approx(values.mean())
    assert facts["ratio_minus_blind"]["mean"] == pytest.approx(facts["ratio"]["mean"] - facts["blind"]["mean"])
