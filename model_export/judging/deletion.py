"""Deletion: how much the network loses without the cells it attends to, compared with other cells.

Attention explains a prediction only if taking away the attended cells hurts more than taking away others. Cells are
taken away from attention's own path alone. A head reads the same cuboids by other paths too, for its initial state and
for motion: cells replaced there as well would credit attention with the work of motion.

That is not enough. A head that averages all cells alike loses more without important cells than without others, and a
map that is all but uniform may happen to be highest there. So the head must also lose if its maps are made uniform.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from model_export.judging.intervals import Estimate, Floats, mean_over_groups
from model_export.judging.maps import attention_of
from model_export.judging.markdown import markdown_table
from model_export.network.arrays import Cuboids, Maps
from model_export.network.spec import CELLS, GRID
from service.model.bundle import Outputs

PathsPredict = Callable[[Cuboids, Cuboids], Outputs]
"""A head as a function of the cuboids that attention reads and those that all other paths read (``separate_paths``)."""

Choice = Literal["attended", "random", "moved", "turned", "least", "all", "attended_in_others", "all_in_others"]
"""Which cells to take away from each frame of a clip, and by which path.

From what attention reads, for scores and context:

- ``attended``: the most attended cells.
- ``random``: the attended cells after a random permutation of the 49 cells, the same one in every frame, so that they
  come and go as the attended cells do. Cells drawn again in each frame would flicker.
- ``moved``: the attended cells after moving all of them to another place (wrapping around the grid), the same way in
  every frame. They are as close together as the attended cells, except where the edge of the grid divides them.
- ``turned``: the attended cells after turning or mirroring the grid, the same way in every frame. They are exactly as
  compact as attention, and as far from the middle, where most of the action is; only the place differs.
- ``least``: the least attended cells.
- ``all``: all 49 cells, which leaves attention nothing but the clip's mean cell.

From what all other paths read:

- ``attended_in_others``: the most attended cells.
- ``all_in_others``: all 49 cells, so that nothing moves.
"""

CHOICES: dict[Choice, str] = {
    "attended": "most attended",
    "random": "random",
    "moved": "most attended, moved elsewhere",
    "turned": "most attended, turned or mirrored",
    "least": "least attended",
    "all": "all",
    "attended_in_others": "most attended, from motion and initial state instead",
    "all_in_others": "all, from motion and initial state instead",
}
CONTROLS: tuple[Choice, ...] = ("random", "moved", "turned", "least")
OTHER_PATHS: frozenset[Choice] = frozenset({"attended_in_others", "all_in_others"})
SYMMETRIES = 7  # of the square, besides leaving it as it is

# Largest change of a probability by rounding: batches of different sizes are summed in different orders.
ROUNDING = 1e-4
# Smaller changes of a probability are called no effect.
NEGLIGIBLE = 1e-3

Verdict = Literal["failed control", "no effect", "used", "misplaced", "not shown"]

SENTENCES: dict[Verdict, str] = {
    "failed control": "No verdict: the negative control failed, so this measures something other than attention.",
    "no effect": "The maps have no effect: uniform maps change no probability of a predicted class by "
    f"{NEGLIGIBLE} or more.",
    "used": "The network uses what it attends to: losing attended cells costs more than losing as many others, whether "
    "random, moved or turned, and so does making the maps uniform, by as much as the table says.",
    "misplaced": "The network attends to cells that it needs less than others: losing them costs less than losing the "
    "same cells moved elsewhere.",
    "not shown": "It is not shown that the network uses what it attends to: that takes a drop with uniform maps, and "
    "gaps to random, moved and turned cells, whose intervals are all above 0.",
}


@dataclass(frozen=True, slots=True, eq=False)
class Deletion:
    """How much the probability of the predicted class drops without some cells.

    Attributes:
        drops: Drop of each clip, ``(clips,)``, for each choice of cells; the mean over the draws of random choices.
        control: Negative control, ``(clips,)``: largest absolute drop by any choice from attention's path of the same
            head without the weights that read the context. Anything but rounding shows a fault of the measurement.
        uniform: Drop of each clip with uniform maps and all cells in place, ``(clips,)``.
        groups: Source video of each clip; ``None``: every clip is a group of its own.
        cells: Number of cells, of 49, taken away from each frame.
    """

    drops: Mapping[Choice, Floats]
    control: Floats
    uniform: Floats
    groups: tuple[str, ...] | None
    cells: int

    @classmethod
    def pooled(cls, parts: Sequence["Deletion"]) -> "Deletion":
        """Join measurements of different clips, such as those of each fold's test clips by that fold's head."""
        drops = {choice: np.concatenate([part.drops[choice] for part in parts]) for choice in CHOICES}
        groups = [name for part in parts for name in part.groups or ()]
        control = np.concatenate([part.control for part in parts])
        uniform = np.concatenate([part.uniform for part in parts])
        return cls(drops, control, uniform, tuple(groups) or None, parts[0].cells)

    def drop(self, choice: Choice) -> Estimate:
        """Estimate the mean drop over clips."""
        return self._estimate(self.drops[choice])

    def gap(self, control: Choice = "moved") -> Estimate:
        """Estimate attended − control, paired over clips; it is above 0 if the network uses what it attends to."""
        return self._estimate(self.drops["attended"] - self.drops[control])

    def drop_if_uniform(self) -> Estimate:
        """Estimate the mean drop over clips with uniform maps."""
        return self._estimate(self.uniform)

    def _estimate(self, drops: Floats) -> Estimate:
        return mean_over_groups(drops, self.groups, least=-1, most=1)

    @property
    def verdict(self) -> Verdict:
        """What the measurement shows.

        ``used`` needs the gaps to random, moved and turned cells and the drop with uniform maps each to be above 0.
        """
        if self.control.max() > ROUNDING:
            return "failed control"
        if np.abs(self.uniform).max() < NEGLIGIBLE:
            return "no effect"
        needed = [self.drop_if_uniform(), *(self.gap(control) for control in ("random", "moved", "turned"))]
        if all(estimate.low > 0 for estimate in needed):
            return "used"
        return "misplaced" if self.gap("moved").high < 0 else "not shown"

    def as_dict(self) -> dict[str, Any]:
        """Return means over clips with their intervals, for JSON."""
        return {
            "verdict": self.verdict,
            "clips": len(self.drops["attended"]),
            "groups": self._group_count(),
            "cells": self.cells,
            **{choice: asdict(self.drop(choice)) for choice in CHOICES},
            **{f"attended_minus_{control}": asdict(self.gap(control)) for control in CONTROLS},
            "uniform_maps": asdict(self.drop_if_uniform()),
            "negative_control": float(self.control.max()),
        }

    def markdown(self) -> list[str]:
        """Return the lines of the report, without a heading."""
        drops = [(CHOICES[choice], f"{self.drop(choice):z.4f}") for choice in CHOICES]
        gaps = [(f"most attended − {CHOICES[control]}", f"{self.gap(control):z.4f}") for control in CONTROLS]
        uniform = ("none, but maps are uniform", f"{self.drop_if_uniform():z.4f}")
        sources = f" of {self._group_count()} source videos" if self.groups else ""
        unit = "source videos" if self.groups else "clips"
        setting = (
            f"In each frame {self.cells} of the {CELLS} cells of X_t are set to the clip's mean cell, in what "
            f"attention reads and nowhere else ({len(self.control)} clips{sources}; 95 % intervals over {unit}). "
            "*Random*: cells that come and go as the attended ones do. *Moved elsewhere*, *turned or mirrored*: the "
            "attended cells together, the same way in all frames. *All* leaves attention nothing but the clip's mean "
            "cell. *Instead*: cells are set in what the other paths read, and attention reads the clip as it is."
        )
        rows = [*drops, uniform, *gaps]
        table = markdown_table(("cells taken away", "drop of the predicted class's probability"), rows)
        control = (
            "Negative control, the same head without the weights that read the context: no choice of cells changed a "
            f"probability by more than {self.control.max():.1e}."
        )
        return [setting, "", *table, "", control, "", f"{SENTENCES[self.verdict]} {self._weight()}"]

    def _weight(self) -> str:
        """Say how much the answer depends on what attention reads, wherever it looks, and on what other paths read."""
        more = self._estimate(self.drops["all"] - self.drops["all_in_others"])
        if more.low > 0:
            larger = "depends more on what attention reads"
        elif more.high < 0:
            larger = "depends more on what the other paths read"
        else:
            larger = "is not shown to depend more on either"
        return (
            f"Taking away all cells costs {self.drops['all'].mean():.3f} in what attention reads and "
            f"{self.drops['all_in_others'].mean():.3f} in what the other paths read, a difference of {more:z.3f}: the "
            f"answer {larger}."
        )

    def _group_count(self) -> int:
        return len(set(self.groups)) if self.groups is not None else len(self.drops["attended"])


def deletion(
    predict: PathsPredict,
    without_context: PathsPredict,
    uniform_maps: PathsPredict,
    clips: Iterable[Cuboids],
    groups: Sequence[str] | None = None,
    *,
    cells: int = 10,
    draws: int = 5,
    seed: int = 0,
) -> Deletion:
    """Measure the cost of taking away the most attended cells of each frame, and others for comparison.

    A cell is taken away by setting it to the clip's mean cell, over all frames. Equally attended cells are ranked at
    random, so that a uniform map does as well as chance, not as well as whichever corner comes first. Memory:
    ``12 + 6 * draws`` times one clip's features.

    Args:
        predict: The head; called twice per clip, with 1 and with ``5 + 3 * draws`` clips.
        without_context: The same head without the weights that read the context: the negative control.
        uniform_maps: The same head with uniform maps.
        clips: Features of each clip, ``(40, 7, 7, channels)``; may be a generator that reads from disk.
        groups: Source video of each clip.
        cells: Number of cells, of 49, to take away from each frame.
        draws: Number of random choices to average over.
        seed: Seed of the random choices.

    Raises:
        ValueError: The head has no attention, or most and least attended cells would overlap.
    """
    if not 0 < cells <= CELLS // 2:
        raise ValueError(f"{cells} most and {cells} least attended cells do not fit into {CELLS}")
    rng = np.random.default_rng(seed)
    drops: list[dict[Choice, float]] = []
    control: list[float] = []
    uniform: list[float] = []
    for cuboids in clips:
        clip = cuboids[np.newaxis]
        whole = predict(clip, clip)
        drops.append(_drops(predict, whole, cuboids, cells, draws, rng))
        uniform.append(float(_drop(whole, uniform_maps(clip, clip))[0]))
        found = _drops(without_context, without_context(clip, clip), cuboids, cells, 1, rng)
        control.append(max(abs(drop) for choice, drop in found.items() if choice not in OTHER_PATHS))
    by_choice = {choice: np.array([clip[choice] for clip in drops]) for choice in CHOICES}
    names = None if groups is None else tuple(groups)
    return Deletion(by_choice, np.array(control), np.array(uniform), names, cells)


def _drop(whole: Outputs, without: Outputs) -> Floats:
    """Compute by how much the probability of the class that is predicted for the whole clip drops, ``(clips,)``."""
    predicted = int(whole.probabilities[0].argmax())
    drop: Floats = np.float64(whole.probabilities[0, predicted]) - without.probabilities[:, predicted]
    return drop


def _drops(
    predict: PathsPredict, whole: Outputs, cuboids: Cuboids, cells: int, draws: int, rng: np.random.Generator
) -> dict[Choice, float]:
    """Compute the drop for each choice of cells, averaged over draws."""
    clip = cuboids[np.newaxis]
    masks = _masks(attention_of(whole)[0], cells, draws, rng)
    gone = np.concatenate([*masks.values()])
    variants = np.where(gone[..., np.newaxis], cuboids.mean(axis=(0, 1, 2), dtype=np.float64), clip)
    choices = np.repeat([*masks], [len(mask) for mask in masks.values()])
    by_others = np.isin(choices, [*OTHER_PATHS])[:, np.newaxis, np.newaxis, np.newaxis, np.newaxis]
    variants = variants.astype(cuboids.dtype)
    without = predict(np.where(by_others, clip, variants), np.where(by_others, variants, clip))
    drops = _drop(whole, without)
    return {choice: float(drops[choices == choice].mean()) for choice in masks}


def _masks(attention: Maps, cells: int, draws: int, rng: np.random.Generator) -> dict[Choice, npt.NDArray[np.bool_]]:
    """Choose cells: for each choice, masks ``(draws or 1, 40, 7, 7)``."""
    flat = attention.reshape(len(attention), CELLS)
    ranking = np.lexsort((rng.random(flat.shape), flat))  # by attention; equal ones at random
    masks = np.zeros((2, *flat.shape), np.bool_)
    np.put_along_axis(masks, np.stack([ranking[:, -cells:], ranking[:, :cells]]), True, axis=-1)
    random = np.stack([masks[0][:, rng.permutation(CELLS)] for _ in range(draws)]).reshape(-1, *attention.shape)
    attended, least = masks.reshape(2, 1, *attention.shape)
    moves = [divmod(int(move), GRID) for move in rng.integers(1, CELLS, draws)]  # 0 would leave them in place
    turns = rng.choice(np.arange(1, 1 + SYMMETRIES), draws, replace=draws > SYMMETRIES)  # 0 would leave them in place
    every = np.ones_like(attended)
    return {
        "attended": attended,
        "random": random,
        "moved": np.concatenate([np.roll(attended, move, axis=(2, 3)) for move in moves]),
        "turned": np.concatenate([_turn(attended, int(turn)) for turn in turns]),
        "least": least,
        "all": every,
        "attended_in_others": attended,
        "all_in_others": every,
    }


def _turn(masks: npt.NDArray[np.bool_], number: int) -> npt.NDArray[np.bool_]:
    """Apply one of the square's eight symmetries to the last two axes; 0 leaves them as they are."""
    turned = np.rot90(masks, number % 4, axes=(2, 3))
    return np.flip(turned, axis=3) if number >= 4 else turned
