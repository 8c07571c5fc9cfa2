import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_export.attention_quality import (
    CELLS,
    ActorClip,
    ActorRatio,
    Deletion,
    MapStatistics,
    Predict,
    actor_ratio,
    attention_maps,
    bootstrap,
    box_shares,
    deletion,
    map_statistics,
    render_and_encode,
)
from service.video.rendering import render_clip

Array = npt.NDArray[np.float32]
STEPS, CHANNELS = 40, 3
TELLING = (2, 5)  # the only cell that the hand-made networks below look at


def clips(count: int = 12) -> list[Array]:
    """Noise, with a bright cell that tells the class."""
    rng = np.random.default_rng(0)
    cuboids = rng.uniform(0, 0.1, (count, STEPS, 7, 7, CHANNELS)).astype(np.float32)
    cuboids[:, :, *TELLING, 0] = rng.uniform(2, 3, (count, STEPS))
    return list(cuboids)


def network(attention_of: Callable[[Array], Array]) -> Predict:
    """Class 1 is as probable as the telling cell is bright, mean over the frames."""

    def predict(cuboids: Array) -> Mapping[str, Array]:
        probability = np.tanh(cuboids[:, :, *TELLING, 0].mean(axis=1))
        return {
            "probabilities": np.stack([1 - probability, probability], axis=1),
            "attention": attention_of(cuboids),
        }

    return predict


def on_brightness(cuboids: Array) -> Array:
    return normalised(cuboids.sum(axis=-1))


def on_darkness(cuboids: Array) -> Array:
    return normalised(1 / cuboids.sum(axis=-1))


def normalised(scores: npt.NDArray[Any]) -> Array:
    return np.asarray(scores / scores.sum(axis=(2, 3), keepdims=True), np.float32)


def uniform(cuboids: Array) -> Array:
    return np.full(cuboids.shape[:-1], 1 / CELLS, np.float32)


def at(row: int, column: int) -> Callable[[Array], Array]:
    def attention(cuboids: Array) -> Array:
        maps = np.zeros(cuboids.shape[:-1], np.float32)
        maps[:, :, row, column] = 1
        return maps

    return attention


def steady(cuboids: Array) -> Array:
    maps = np.zeros((7, 7), np.float32)
    maps[:2, :5] = 0.1
    return np.broadcast_to(maps, cuboids.shape[:-1])


# -- deletion ----------------------------------------------------------------------------------------------------------


def test_attention_on_what_the_network_uses_makes_a_gap_clear_of_zero() -> None:
    found = deletion(network(on_brightness), clips())
    assert found.drop("attended").mean > 0.8
    assert found.drop("least").mean == pytest.approx(0, abs=1e-6)
    assert found.gap().low > 0.3
    assert found.gap("moved").low > 0.3
    assert found.gap("least").low > 0.8
    assert "uses what it attends to" in found.verdict


def test_random_cells_cost_their_share() -> None:
    clip = clips(1)[0]
    all_of_it = np.tanh(clip[:, *TELLING, 0].mean()) - np.tanh(clip[..., 0].mean())  # the telling cell always gone
    drop = deletion(network(steady), [clip], draws=1500).drops["random"][0]
    assert drop == pytest.approx(all_of_it * 10 / 49, rel=0.15)


def test_random_cells_come_and_go_as_the_attended_ones_do() -> None:
    """A network that counts changes is told nothing by cells that are gone for good, nor are random ones a change."""

    def counts_changes(cuboids: Array) -> Mapping[str, Array]:
        changes = np.abs(np.diff(cuboids[..., 1], axis=1)).mean(axis=(1, 2, 3))
        return {"probabilities": np.stack([changes, 1 - changes], axis=1), "attention": steady(cuboids)}

    still = np.broadcast_to(np.random.default_rng(0).uniform(0, 1, (7, 7, CHANNELS)), (STEPS, 7, 7, CHANNELS))
    assert deletion(counts_changes, [still.astype(np.float32)]).drops["random"][0] == pytest.approx(0, abs=1e-6)


def test_attention_on_what_the_network_ignores_makes_a_gap_below_zero() -> None:
    found = deletion(network(on_darkness), clips())
    assert found.gap().high < 0
    assert "does not use" in found.verdict


def test_uniform_attention_is_as_good_as_chance_wherever_the_telling_cell_is() -> None:
    found = deletion(network(uniform), clips(40), draws=20)
    for control in ("random", "least"):
        assert found.gap(control).mean == pytest.approx(0, abs=0.01)
    assert found.drop("attended").mean > 0.01  # it does hit the telling cell, as often as chance does
    assert "no better than chance" in deletion(network(uniform), clips(), seed=1).verdict


def test_steady_attention_to_a_wrong_place_is_no_better_than_chance() -> None:
    """Any ten cells gone from all frames cost much where the network needs each cell now and then."""

    def needs_every_cell_now_and_then(cuboids: Array) -> Mapping[str, Array]:
        brightest = cuboids[..., 1].max(axis=1).min(axis=(1, 2))
        probability = np.tanh(3 * brightest)
        return {"probabilities": np.stack([probability, 1 - probability], axis=1), "attention": steady(cuboids)}

    rng = np.random.default_rng(0)
    varied = [rng.uniform(0, 1, (STEPS, 7, 7, CHANNELS)).astype(np.float32) for _ in range(6)]
    found = deletion(needs_every_cell_now_and_then, varied)
    for control in ("random", "moved"):
        assert found.gap(control).mean == pytest.approx(0, abs=0.005)


def test_deletion_reads_one_clip_at_a_time_and_leaves_it_as_it_was() -> None:
    read = 0
    batches: list[tuple[int, int]] = []
    predict = network(on_brightness)

    def watched(cuboids: Array) -> Mapping[str, Array]:
        batches.append((read, len(cuboids)))
        return predict(cuboids)

    def stream() -> Iterator[Array]:
        nonlocal read
        for clip in originals:
            read += 1
            yield clip

    originals = clips(3)
    untouched = [clip.copy() for clip in originals]
    deletion(watched, stream(), draws=5)
    assert batches == [(1, 1), (1, 12), (2, 1), (2, 12), (3, 1), (3, 12)]
    np.testing.assert_array_equal(originals, untouched)


def test_the_seed_decides_the_draws() -> None:
    first, again, other = (deletion(network(uniform), clips(4), seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.drops["random"], again.drops["random"])
    assert (first.drops["random"] != other.drops["random"]).any()


def test_folds_are_pooled_clip_by_clip() -> None:
    predict, both = network(on_brightness), clips(4)
    folds = [deletion(predict, both[:2], ["a", "a"]), deletion(predict, both[2:], ["b", "c"])]
    pooled = Deletion.pooled(folds)
    np.testing.assert_array_equal(pooled.drops["attended"], deletion(predict, both).drops["attended"])
    assert pooled.groups == ("a", "a", "b", "c")
    assert pooled.as_dict()["groups"] == 3
    assert "4 clips of 3 source videos" in pooled.markdown()[0]


def test_a_head_without_attention_is_refused() -> None:
    def base(cuboids: Array) -> Mapping[str, Array]:
        return {"probabilities": np.ones((len(cuboids), 2), np.float32)}

    with pytest.raises(ValueError, match="base has no attention"):
        deletion(base, clips(1))


@pytest.mark.parametrize("cells", [0, 25])
def test_most_and_least_attended_cells_must_not_overlap(cells: int) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        deletion(network(uniform), clips(1), cells=cells)


# -- intervals ---------------------------------------------------------------------------------------------------------


def test_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = [(found := bootstrap(rng.normal(size=60))).low < 0 < found.high for _ in range(200)]
    assert 0.89 <= np.mean(hits) <= 0.99


def test_clips_of_one_source_video_count_as_one() -> None:
    values = np.random.default_rng(0).normal(size=20)
    copies, groups = np.repeat(values, 10), [str(index // 10) for index in range(200)]
    apart, together, once = bootstrap(copies), bootstrap(copies, groups), bootstrap(values)
    assert together.high - together.low == pytest.approx(once.high - once.low, rel=0.1)
    assert apart.high - apart.low < 0.5 * (together.high - together.low)


def test_a_large_group_weighs_by_its_clips() -> None:
    assert bootstrap([1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"]).mean == 0.75


def test_an_interval_needs_two_groups_and_a_group_for_each_clip() -> None:
    with pytest.raises(ValueError, match="two source videos"):
        bootstrap([1.0, 2.0], ["a", "a"])
    with pytest.raises(ValueError, match="2 clips were measured, but 3"):
        bootstrap([1.0, 2.0], ["a", "b", "c"])


# -- rendered actor ----------------------------------------------------------------------------------------------------

fraction = st.floats(0, 1)


@given(st.tuples(fraction, fraction), st.tuples(fraction, fraction))
def test_box_shares_are_those_of_a_fine_grid_of_points(x: tuple[float, float], y: tuple[float, float]) -> None:
    (x0, x1), (y0, y1) = sorted(x), sorted(y)
    fine = 7 * 40
    centres = (np.arange(fine) + 0.5) / fine
    inside = ((centres > y0) & (centres < y1))[:, None] & ((centres > x0) & (centres < x1))[None, :]
    counted = inside.reshape(7, 40, 7, 40).mean(axis=(1, 3))
    shares = box_shares([(x0, y0, x1, y1)])[0]
    np.testing.assert_allclose(shares, counted, atol=2 / 40)  # each edge of the box may miss half a point a side
    assert shares.mean() == pytest.approx((x1 - x0) * (y1 - y0), abs=1e-12)


def test_box_shares_run_in_rows_from_the_top() -> None:
    shares = box_shares([(1 / 7, 0, 2.5 / 7, 1 / 7)])[0]
    np.testing.assert_allclose(shares[0], [0, 1, 0.5, 0, 0, 0, 0], atol=1e-12)
    assert not shares[1:].any()


@pytest.fixture(scope="module")
def actors() -> list[ActorClip]:
    """Rendered clips whose features are the frames' brightness, so that clips can be told apart."""
    return list(render_and_encode(brightness, clips=3, frames=50))


def brightness(frames: npt.NDArray[np.uint8]) -> Array:
    cells = frames.reshape(len(frames), 7, 32, 7, 32, 3).mean(axis=(2, 4))
    return np.asarray(cells, np.float32)


def oracle(actors: list[ActorClip]) -> Predict:
    """Knows the clips: attends to the cells that lie deepest in the box, all alike."""

    def attention(cuboids: Array) -> Array:
        (shares,) = (clip.shares for clip in actors if np.array_equal(clip.features, cuboids[0]))
        deepest = shares > shares.max(axis=(1, 2), keepdims=True) - 1e-9
        return normalised(deepest[np.newaxis])

    return network(attention)


def test_all_attention_deepest_inside_the_box_reaches_the_ceiling(actors: list[ActorClip]) -> None:
    found = actor_ratio(oracle(actors), actors)
    np.testing.assert_allclose(found.ratios, found.ceilings, rtol=1e-6)
    assert (found.blind < found.ratios).all()


def test_attention_anywhere_inside_a_box_of_whole_cells_gives_one_over_its_share() -> None:
    shares = box_shares([(1 / 7, 2 / 7, 3 / 7, 6 / 7)] * STEPS)

    def attending_to_the_box(cuboids: Array) -> Mapping[str, Array]:
        return {"attention": normalised(shares[np.newaxis])}

    clips_of_boxes = [ActorClip(name, np.full((STEPS, 7, 7, 1), i, np.float32), shares) for i, name in enumerate("ab")]
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


def test_boxes_are_those_of_the_sampled_frames_wherever_the_picture_was_moved(actors: list[ActorClip]) -> None:
    boxes = render_clip("jumping_jacks", frames=50, seed=0).boxes
    sampled = boxes[[math.floor((k + 0.5) * 50 / 40) for k in range(40)]]
    assert actors[0].name == "jumping_jacks/0"
    assert actors[0].features.shape == (40, 7, 7, 3)
    np.testing.assert_allclose(actors[0].shares.sum(axis=2), box_shares(sampled).sum(axis=2))  # rows stay
    np.testing.assert_allclose(actors[0].shares.mean(axis=(1, 2)), box_shares(sampled).mean(axis=(1, 2)))  # all inside
    assert [clip.name.partition("/")[0] for clip in actors] == ["jumping_jacks", "squats", "waving"]


def test_boxes_are_where_the_frames_move(actors: list[ActorClip]) -> None:
    """What differs from the clip's first frame is the actor, wherever it was placed."""
    for clip in actors:
        movement = np.abs(clip.features - clip.features[:1]).sum(axis=-1)
        near = np.maximum(clip.shares, clip.shares[:1]) > 0  # cells of this frame's box or the first one's
        assert movement[near].sum() / movement.sum() > 0.85


def test_actors_stand_in_different_places() -> None:
    def nothing(frames: npt.NDArray[np.uint8]) -> Array:
        return np.zeros((len(frames), 7, 7, 1), np.float32)

    placed = [clip.shares.mean(axis=(0, 1)) for clip in render_and_encode(nothing, ["squats"], clips=8, frames=3)]
    centres = [np.average(np.arange(7), weights=columns) for columns in placed]
    assert max(centres) - min(centres) > 2


def test_rendered_actor_needs_two_clips(actors: list[ActorClip]) -> None:
    with pytest.raises(ValueError, match="at least two clips"):
        actor_ratio(network(uniform), actors[:1])


# -- map statistics ----------------------------------------------------------------------------------------------------


def random_maps(seed: int, *shape: int) -> Array:
    maps = np.random.default_rng(seed).dirichlet(np.full(CELLS, 0.1), shape)
    return maps.reshape(*shape, 7, 7).astype(np.float32)


def test_uniform_maps_have_all_the_entropy_and_no_differences() -> None:
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


def test_one_film_of_maps_for_every_clip_is_constant_however_much_it_moves() -> None:
    found = map_statistics([random_maps(0, STEPS)] * 5)
    assert found.between_clips == pytest.approx(0, abs=1e-12)
    assert found.clip_specific == pytest.approx(0, abs=1e-12)
    assert found.between_frames == pytest.approx(found.schedule)
    assert found.schedule > 1
    assert found.verdict == "constant"


def test_maps_that_stand_still_but_differ_by_clip_are_varying() -> None:
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


def test_parts_are_mean_divergences_and_add_up() -> None:
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


# -- reports -----------------------------------------------------------------------------------------------------------


def test_results_are_json_and_markdown(actors: list[ActorClip]) -> None:
    predict = network(on_brightness)
    results: list[Deletion | ActorRatio | MapStatistics] = [
        deletion(predict, clips(4)),
        actor_ratio(predict, actors),
        map_statistics(attention_maps(predict, clips(4))),
        map_statistics(attention_maps(network(uniform), clips(4))),
    ]
    for result in results:
        assert json.loads(json.dumps(result.as_dict(), allow_nan=False)) == result.as_dict()
        lines = result.markdown()
        table = [line for line in lines if line.startswith("|")]
        assert len(table) > 4
        assert {line.count("|") for line in table} == {3}
        assert not any("\n" in line for line in lines)
