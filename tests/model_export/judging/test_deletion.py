"""Deletion: the cost of losing cells by the path that attention reads."""

from collections.abc import Iterator

import numpy as np
import pytest

from model_export.judging.deletion import Deletion, deletion
from service.model.bundle import Outputs
from tests.model_export.judging.networks import (
    CHANNELS,
    STEPS,
    TELLING,
    Array,
    by_attention,
    by_other_paths,
    clips,
    network,
    on_brightness,
    on_darkness,
    steady,
    uniform,
)
from tests.model_export.judging.reportable import assert_reportable


def test_attention_on_what_the_network_uses_gives_a_gap_above_zero() -> None:
    found = deletion(*by_attention(network(on_brightness)), clips())
    assert found.drop("attended").mean > 0.8
    assert found.drop("least").mean == pytest.approx(0, abs=1e-6)
    assert found.gap("random").low > 0.3
    assert found.gap("moved").low > 0.3
    assert found.gap("least").low > 0.8
    assert found.drop("all").mean > 0.8
    assert found.verdict == "used"
    assert found.markdown()[-1].endswith("the answer depends more on what attention reads.")


def test_attention_without_effect_gains_nothing_from_what_other_paths_read() -> None:
    """The head attends to the cell that decides, and reads it by another path."""
    found = deletion(*by_other_paths(network(on_brightness)), clips())
    for choice in ("attended", "random", "moved", "turned", "least", "all"):
        np.testing.assert_array_equal(found.drops[choice], 0)
    assert found.drop("attended_in_others").mean > 0.8
    assert found.drop("all_in_others").mean > 0.8
    assert found.verdict == "no effect"
    assert found.markdown()[-1].endswith("the answer depends more on what the other paths read.")


def test_a_head_that_no_cell_matters_to_depends_on_neither_path_more() -> None:
    def sure(cuboids: Array) -> Outputs:
        return Outputs(np.full((len(cuboids), 2), 0.5, np.float32), on_brightness(cuboids))

    assert deletion(*by_other_paths(sure), clips(4)).markdown()[-1].endswith("is not shown to depend more on either.")


def test_what_attention_reads_gains_nothing_for_the_other_paths() -> None:
    found = deletion(*by_attention(network(on_brightness)), clips(4))
    for choice in ("attended_in_others", "all_in_others"):
        np.testing.assert_array_equal(found.drops[choice], 0)


def test_there_is_no_verdict_if_the_negative_control_fails() -> None:
    """As with a measurement that takes cells away from every path."""
    predict, _, uniform_maps = by_attention(network(on_brightness))
    found = deletion(predict, predict, uniform_maps, clips(4))
    assert found.control.min() > 0.8
    assert found.verdict == "failed control"
    assert found.as_dict()["negative_control"] > 0.8
    assert any(line.startswith("No verdict") for line in found.markdown())


def test_a_gap_to_random_cells_alone_is_no_evidence() -> None:
    """The head is disturbed by any block of ten cells, wherever it is, but not by scattered ones."""

    def needs_no_hole(cuboids: Array) -> Outputs:
        gone = cuboids[..., 1].std(axis=1) < 1e-6
        holes = (gone[:, 1:] & gone[:, :-1]).mean(axis=(1, 2)) + (gone[..., 1:] & gone[..., :-1]).mean(axis=(1, 2))
        return Outputs(np.stack([1 - holes, holes], axis=1), steady(cuboids))

    found = deletion(*by_attention(needs_no_hole), clips(20))
    assert found.gap("random").low > 0
    assert found.gap("turned").mean == pytest.approx(0)
    assert found.verdict == "not shown"


def test_losing_random_cells_costs_in_proportion_to_their_number() -> None:
    clip = clips(1)[0]
    all_of_it = np.tanh(clip[:, *TELLING, 0].mean()) - np.tanh(clip[..., 0].mean())  # the telling cell always gone
    drop = deletion(*by_attention(network(steady)), [clip], draws=1500).drops["random"][0]
    assert drop == pytest.approx(all_of_it * 10 / 49, rel=0.15)


def test_random_cells_come_and_go_as_the_attended_ones_do() -> None:
    """Cells that are missing from every frame make no difference to a network that counts changes."""

    def counts_changes(cuboids: Array) -> Outputs:
        changes = np.abs(np.diff(cuboids[..., 1], axis=1)).mean(axis=(1, 2, 3))
        return Outputs(np.stack([changes, 1 - changes], axis=1), steady(cuboids))

    still = np.broadcast_to(np.random.default_rng(0).uniform(0, 1, (7, 7, CHANNELS)), (STEPS, 7, 7, CHANNELS))
    assert deletion(*by_attention(counts_changes), [still.astype(np.float32)]).drops["random"][0] == pytest.approx(
        0, abs=1e-6
    )


def test_attention_on_what_the_network_ignores_gives_a_gap_below_zero() -> None:
    found = deletion(*by_attention(network(on_darkness)), clips())
    assert found.gap().high < 0
    assert found.verdict == "misplaced"


def test_uniform_attention_is_no_better_than_chance() -> None:
    found = deletion(*by_attention(network(uniform)), clips(40), draws=20)
    for control in ("random", "least"):
        assert found.gap(control).mean == pytest.approx(0, abs=0.01)
    assert found.drop("attended").mean > 0.01  # it does hit the telling cell, as often as chance does
    assert deletion(*by_attention(network(uniform)), clips(), seed=1).verdict == "not shown"


def test_constant_attention_to_a_wrong_place_is_no_better_than_chance() -> None:
    """Any ten cells gone from all frames cost much where the network needs each cell now and then."""

    def needs_every_cell_now_and_then(cuboids: Array) -> Outputs:
        brightest = cuboids[..., 1].max(axis=1).min(axis=(1, 2))
        probability = np.tanh(3 * brightest)
        return Outputs(np.stack([probability, 1 - probability], axis=1), steady(cuboids))

    rng = np.random.default_rng(0)
    varied = [rng.uniform(0, 1, (STEPS, 7, 7, CHANNELS)).astype(np.float32) for _ in range(6)]
    found = deletion(*by_attention(needs_every_cell_now_and_then), varied)
    for control in ("random", "moved"):
        assert found.gap(control).mean == pytest.approx(0, abs=0.005)


def test_deletion_reads_one_clip_at_a_time_and_does_not_change_it() -> None:
    read = 0
    batches: list[tuple[int, int]] = []
    predict, control, uniform_maps = by_attention(network(on_brightness))

    def watched(attended: Array, others: Array) -> Outputs:
        batches.append((read, len(attended)))
        return predict(attended, others)

    def stream() -> Iterator[Array]:
        nonlocal read
        for clip in originals:
            read += 1
            yield clip

    originals = clips(3)
    untouched = [clip.copy() for clip in originals]
    deletion(watched, control, uniform_maps, stream(), draws=5)
    assert batches == [(1, 1), (1, 20), (2, 1), (2, 20), (3, 1), (3, 20)]
    np.testing.assert_array_equal(originals, untouched)


def test_the_seed_determines_the_random_cells() -> None:
    first, again, other = (deletion(*by_attention(network(uniform)), clips(4), seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.drops["random"], again.drops["random"])
    assert (first.drops["random"] != other.drops["random"]).any()


def test_measurements_of_several_folds_are_joined_clip_by_clip() -> None:
    predict, both = network(on_brightness), clips(4)
    folds = [
        deletion(*by_attention(predict), both[:2], ["a", "a"]),
        deletion(*by_attention(predict), both[2:], ["b", "c"]),
    ]
    pooled = Deletion.pooled(folds)
    np.testing.assert_array_equal(pooled.drops["attended"], deletion(*by_attention(predict), both).drops["attended"])
    np.testing.assert_array_equal(pooled.uniform, deletion(*by_attention(predict), both).uniform)
    assert pooled.groups == ("a", "a", "b", "c")
    assert pooled.as_dict()["groups"] == 3
    assert "4 clips of 3 source videos" in pooled.markdown()[0]


def test_a_head_without_attention_is_refused() -> None:
    def base(cuboids: Array) -> Outputs:
        return Outputs(np.ones((len(cuboids), 2), np.float32), None)

    with pytest.raises(ValueError, match="base has no attention"):
        deletion(*by_attention(base), clips(1))


@pytest.mark.parametrize("cells", [0, 25])
def test_most_and_least_attended_cells_must_not_overlap(cells: int) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        deletion(*by_attention(network(uniform)), clips(1), cells=cells)


def test_the_result_can_be_written_as_json_and_markdown() -> None:
    found = deletion(*by_attention(network(on_brightness)), clips(4))
    assert_reportable(found)
    assert found.as_dict()["clips"] == 4
    assert found.as_dict()["uniform_maps"]["mean"] == pytest.approx(found.uniform.mean())
    assert found.as_dict()["attended_minus_moved"]["mean"] == pytest.approx(found.gap("moved").mean)
