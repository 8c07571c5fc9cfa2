"""Deletion: how much the network loses without the cells it attends to, compared with other cells.

Attention explains a prediction only if taking away the attended cells hurts more than taking away others.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from model_export.judging.intervals import Estimate, Floats, mean_over_groups
from model_export.judging.maps import attention_of
from model_export.judging.markdown import markdown_table
from model_export.network.arrays import Cuboids, Maps, Predict
from model_export.network.spec import CELLS, GRID

Choice = Literal["attended", "random", "moved", "least"]
"""Which cells to take away from each frame of a clip.

- ``attended``: the most attended cells.
- ``random``: the attended cells after a random permutation of the 49 cells, the same one in every frame, so that they
  come and go as the attended cells do. Cells drawn again in each frame would flicker, and would cost a network that
  reads changes more than attention's steadier cells, wherever those are.
- ``moved``: the attended cells after moving all of them to another place (wrapping around the grid), the same way in
  every frame. This control is also as compact as attention; only the place differs.
- ``least``: the least attended cells.
"""

CHOICES: dict[Choice, str] = {
    "attended": "most attended",
    "random": "random",
    "moved": "most attended, moved elsewhere",
    "least": "least attended",
}


@dataclass(frozen=True, slots=True, eq=False)
class Deletion:
    """How much the probability of the predicted class drops without some cells.

    Attributes:
        drops: Drop of each clip, ``(clips,)``, for each choice of cells; the mean over the draws of random choices.
        groups: Source video of each clip; ``None``: every clip is a group of its own.
        cells: Number of cells, of 49, taken away from each frame.
    """

    drops: Mapping[Choice, Floats]
    groups: tuple[str, ...] | None
    cells: int

    @classmethod
    def pooled(cls, parts: Sequence["Deletion"]) -> "Deletion":
        """Join measurements of different clips, such as those of each fold's test clips by that fold's head."""
        drops = {choice: np.concatenate([part.drops[choice] for part in parts]) for choice in CHOICES}
        groups = [name for part in parts for name in part.groups or ()]
        return cls(drops, tuple(groups) or None, parts[0].cells)

    def drop(self, choice: Choice) -> Estimate:
        """Estimate the mean drop over clips."""
        return mean_over_groups(self.drops[choice], self.groups, least=-1, most=1)

    def gap(self, control: Choice = "random") -> Estimate:
        """Estimate attended − control, paired over clips; it is above 0 if the network uses what it attends to."""
        return mean_over_groups(self.drops["attended"] - self.drops[control], self.groups, least=-1, most=1)

    @property
    def verdict(self) -> str:
        """The result in one sentence."""
        gap = self.gap()
        if gap.low > 0:
            return "The network uses what it attends to: losing attended cells costs more than losing random ones."
        if gap.high < 0:
            return (
                "The network attends to what it does not use: losing attended cells costs less than losing random ones."
            )
        return "Attention is no better than chance: losing attended cells costs as much as losing random ones."

    def as_dict(self) -> dict[str, Any]:
        """Return means over clips with their intervals, for JSON."""
        return {
            "clips": len(self.drops["attended"]),
            "groups": self._group_count(),
            "cells": self.cells,
            **{choice: asdict(self.drop(choice)) for choice in CHOICES},
            **{f"attended_minus_{control}": asdict(self.gap(control)) for control in self._controls()},
        }

    def markdown(self) -> list[str]:
        """Return the lines of the report, without a heading."""
        drops = [(CHOICES[choice], f"{self.drop(choice):z.4f}") for choice in CHOICES]
        gaps = [(f"most attended − {CHOICES[control]}", f"{self.gap(control):z.4f}") for control in self._controls()]
        sources = f" of {self._group_count()} source videos" if self.groups else ""
        unit = "source videos" if self.groups else "clips"
        setting = (
            f"In each frame {self.cells} of the {CELLS} cells of X_t are set to the clip's mean cell "
            f"({len(self.drops['attended'])} clips{sources}; 95 % intervals over {unit}). *Random*: cells "
            "that come and go as the attended ones do. *Moved elsewhere*: the attended cells moved together, the same "
            "way in all frames, so that they are also as compact as attention."
        )
        table = markdown_table(("cells taken away", "drop of the predicted class's probability"), drops + gaps)
        return [setting, "", *table, "", self.verdict]

    def _controls(self) -> list[Choice]:
        return [choice for choice in CHOICES if choice != "attended"]

    def _group_count(self) -> int:
        return len(set(self.groups)) if self.groups is not None else len(self.drops["attended"])


def deletion(
    predict: Predict,
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
    ``2 + 2 * draws`` times one clip's features.

    Args:
        predict: The head; called twice per clip, with 1 and with ``2 + 2 * draws`` clips.
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
    drops = np.array([_drops(predict, cuboids, cells, draws, rng) for cuboids in clips]).reshape(-1, 2 + 2 * draws)
    by_choice: dict[Choice, Floats] = {
        "attended": drops[:, 0],
        "least": drops[:, 1],
        "random": drops[:, 2 : 2 + draws].mean(axis=1),
        "moved": drops[:, 2 + draws :].mean(axis=1),
    }
    return Deletion(by_choice, None if groups is None else tuple(groups), cells)


def _drops(predict: Predict, cuboids: Cuboids, cells: int, draws: int, rng: np.random.Generator) -> Floats:
    """Compute the drops of the predicted class's probability, ``(2 + 2 * draws,)``, one for each of ``_masks``."""
    whole = predict(cuboids[np.newaxis])
    masks = _masks(attention_of(whole)[0], cells, draws, rng)
    variants = np.repeat(cuboids[np.newaxis], len(masks), axis=0)
    variants[masks] = cuboids.mean(axis=(0, 1, 2), dtype=np.float64)
    predicted = int(whole.probabilities[0].argmax())
    without = predict(variants).probabilities[:, predicted]
    drops: Floats = np.float64(whole.probabilities[0, predicted]) - without
    return drops


def _masks(attention: Maps, cells: int, draws: int, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Choose cells, ``(2 + 2 * draws, 40, 7, 7)``: most attended, least attended, random, most attended but moved."""
    flat = attention.reshape(len(attention), CELLS)
    ranking = np.lexsort((rng.random(flat.shape), flat))  # by attention; equal ones at random
    masks = np.zeros((2, *flat.shape), np.bool_)
    np.put_along_axis(masks, np.stack([ranking[:, -cells:], ranking[:, :cells]]), True, axis=-1)
    random = [masks[0][:, rng.permutation(CELLS)] for _ in range(draws)]
    masks = np.concatenate([masks, random]).reshape(-1, *attention.shape)
    moves = [divmod(int(move), GRID) for move in rng.integers(1, CELLS, draws)]  # 0 would leave them in place
    return np.concatenate([masks, [np.roll(masks[0], move, axis=(1, 2)) for move in moves]])
