"""Can the attention maps be trusted? Three measurements that a map has to stand up to before it is shown to anyone.

- Deletion: taking away what the network attends to must hurt more than taking away other cells.
- Rendered actor: on clips drawn by code, where the actor is known, attention must be on the actor.
- Map statistics: a map that is uniform, or the same for every clip, explains nothing.

All of it works on cached features and any function that runs a head; clips are looked at one after the other, so that
features of any number of clips can stream from disk.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.special import entr

from service.video.decoder import decode_clip
from service.video.rendering import ACTIONS, render_clip

Floats = npt.NDArray[np.float64]
Cuboids = npt.NDArray[np.float32]
"""Features X_t of one clip, ``(40, 7, 7, channels)``."""
Maps = npt.NDArray[np.float32]
"""Attention of one clip, ``(40, 7, 7)``; each map sums to 1."""
Predict = Callable[[npt.NDArray[np.float32]], Mapping[str, npt.NDArray[np.float32]]]
"""A head: features ``(batch, 40, 7, 7, channels)`` to ``probabilities`` ``(batch, classes)`` and ``attention``
``(batch, 40, 7, 7)``. ``predict_on_batch`` of a Keras model is one."""

GRID = 7
CELLS = GRID * GRID


def attention_maps(predict: Predict, clips: Iterable[Cuboids]) -> Iterator[Maps]:
    """The maps ``(40, 7, 7)`` of one clip after the other.

    Raises:
        ValueError: the head is the variant ``base``, which has no attention.
    """
    for cuboids in clips:
        yield _attention(predict(cuboids[np.newaxis]))[0]


def _attention(outputs: Mapping[str, npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    if "attention" not in outputs:
        raise ValueError("a head of variant base has no attention to judge; choose one of variant attention")
    return outputs["attention"]


# -- intervals ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over clips and its 95 % interval."""

    mean: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        """The mean and its interval, each number by ``spec``."""
        return f"{self.mean:{spec}} ({self.low:{spec}} to {self.high:{spec}})"

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return {"mean": self.mean, "low": self.low, "high": self.high}


def bootstrap(
    values: npt.ArrayLike, groups: Sequence[str] | None = None, *, resamples: int = 2000, seed: int = 0
) -> Estimate:
    """Mean over clips with its percentile bootstrap interval, drawn over groups.

    Clips cut from one source video are not independent: whole groups are drawn, with replacement, as many as there
    are. The same seed draws the same groups, so that intervals of several measurements on the same clips go together.

    Args:
        values: one a clip, ``(clips,)``.
        groups: source video of each clip; every clip is its own where ``None``.
        resamples: how often to draw.
        seed: of the drawing.

    Raises:
        ValueError: there are fewer than two groups, or not as many groups as values.
    """
    values = np.asarray(values, np.float64)
    names = groups if groups is not None else [str(index) for index in range(len(values))]
    if len(names) != len(values):
        raise ValueError(f"{len(values)} clips were measured, but {len(names)} have a source video")
    found, member_of = np.unique(np.asarray(names, dtype=str), return_inverse=True)
    if len(found) < 2:
        raise ValueError(f"an interval needs clips of at least two source videos, got {len(found)}")
    drawn = np.random.default_rng(seed).multinomial(len(found), np.full(len(found), 1 / len(found)), size=resamples)
    means = (drawn @ np.bincount(member_of, values)) / (drawn @ np.bincount(member_of))
    low, high = np.quantile(means, (0.025, 0.975))
    return Estimate(float(values.mean()), float(low), float(high))


def _table(head: tuple[str, str], rows: Iterable[tuple[str, str]]) -> list[str]:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    return lines + [f"| {name} | {value} |" for name, value in rows]


# -- deletion ----------------------------------------------------------------------------------------------------------

Choice = Literal["attended", "random", "moved", "least"]
"""Cells to take away from each frame of a clip.

- ``attended``: the most attended ones.
- ``random``: as many random ones, which come and go as the attended ones do: these after exchanging the 49 cells by
  lot, the same way in every frame. Cells drawn anew in each frame would flicker, and cost a network that reads changes
  more than attention's steadier ones, wherever those are.
- ``moved``: the most attended ones after moving all of them to another place (wrapping around the grid), the same way
  in every frame. This control is as compact as attention, too; only the place differs.
- ``least``: the least attended ones.
"""

CHOICES: dict[Choice, str] = {
    "attended": "most attended",
    "random": "random",
    "moved": "most attended, moved elsewhere",
    "least": "least attended",
}


@dataclass(frozen=True, slots=True, eq=False)
class Deletion:
    """What taking cells away costs: the drop of the probability of the class predicted with all cells.

    Attributes:
        drops: of each clip, ``(clips,)``, for each choice of cells; mean over the draws where chosen by lot.
        groups: source video of each clip; ``None`` where every clip is its own.
        cells: how many of a frame's 49 cells are taken away.
    """

    drops: Mapping[Choice, Floats]
    groups: tuple[str, ...] | None
    cells: int

    @classmethod
    def pooled(cls, parts: Sequence["Deletion"]) -> "Deletion":
        """The clips of several measurements as one, such as of the held-out clips of each fold by that fold's head."""
        drops = {choice: np.concatenate([part.drops[choice] for part in parts]) for choice in CHOICES}
        groups = [name for part in parts for name in part.groups or ()]
        return cls(drops, tuple(groups) or None, parts[0].cells)

    def drop(self, choice: Choice) -> Estimate:
        """Mean over clips."""
        return bootstrap(self.drops[choice], self.groups)

    def gap(self, control: Choice = "random") -> Estimate:
        """Attended − control, paired over clips: above 0 where the network uses what it attends to."""
        return bootstrap(self.drops["attended"] - self.drops[control], self.groups)

    @property
    def verdict(self) -> str:
        """One sentence in plain words."""
        gap = self.gap()
        if gap.low > 0:
            return "The network uses what it attends to: losing it costs more than losing random cells."
        if gap.high < 0:
            return "The network attends to what it does not use: losing it costs less than losing random cells."
        return "Attention is no better than chance: losing what it points at costs as much as losing random cells."

    def as_dict(self) -> dict[str, Any]:
        """For JSON: means over clips with their intervals."""
        return {
            "clips": len(self.drops["attended"]),
            "groups": self._group_count(),
            "cells": self.cells,
            **{choice: self.drop(choice).as_dict() for choice in CHOICES},
            **{f"attended_minus_{control}": self.gap(control).as_dict() for control in self._controls()},
        }

    def markdown(self) -> list[str]:
        """Lines of the report, without a heading."""
        drops = [(CHOICES[choice], f"{self.drop(choice):z.4f}") for choice in CHOICES]
        gaps = [(f"most attended − {CHOICES[control]}", f"{self.gap(control):z.4f}") for control in self._controls()]
        sources = f" of {self._group_count()} source videos" if self.groups else ""
        unit = "source videos" if self.groups else "clips"
        setting = (
            f"In each frame {self.cells} of the {CELLS} cells of X_t are set to the clip's mean cell "
            f"({len(self.drops['attended'])} clips{sources}; 95 % bootstrap intervals over {unit}). *Random*: cells "
            "that come and go as the attended ones do. *Moved elsewhere*: the attended cells after moving them "
            "together, the same way in all frames; as compact as attention is, too."
        )
        table = _table(("cells taken away", "drop of the predicted class's probability"), drops + gaps)
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
    """Takes the most attended cells away from each frame, and others for comparison, and looks what it costs.

    A cell is taken away by setting it to the clip's mean cell, over all its frames. Cells attended to equally come in
    random order, so that a uniform map is as good as chance and not as good as the corner it happens to point at.
    Memory: ``2 + 2 * draws`` times one clip's features.

    Args:
        predict: the head; called twice a clip, with 1 and with ``2 + 2 * draws`` examples.
        clips: features of each clip; may be a generator that reads from disk.
        groups: source video of each clip.
        cells: how many of a frame's 49 cells to take away.
        draws: how many random choices to average over.
        seed: of the random choices.

    Raises:
        ValueError: the head has no attention, or most and least attended cells would overlap.
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
    """Drops of the predicted class's probability, ``(2 + 2 * draws,)``: without each of `_masks`."""
    whole = predict(cuboids[np.newaxis])
    masks = _masks(_attention(whole)[0], cells, draws, rng)
    variants = np.repeat(cuboids[np.newaxis], len(masks), axis=0)
    variants[masks] = cuboids.mean(axis=(0, 1, 2), dtype=np.float64)
    predicted = int(whole["probabilities"][0].argmax())
    without = predict(variants)["probabilities"][:, predicted]
    drops: Floats = np.float64(whole["probabilities"][0, predicted]) - without
    return drops


def _masks(attention: Maps, cells: int, draws: int, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Cells to take away, ``(2 + 2 * draws, 40, 7, 7)``: most and least attended, random, most attended but moved."""
    flat = attention.reshape(len(attention), CELLS)
    ranking = np.lexsort((rng.random(flat.shape), flat))  # by attention; equal ones by lot
    masks = np.zeros((2, *flat.shape), np.bool_)
    np.put_along_axis(masks, np.stack([ranking[:, -cells:], ranking[:, :cells]]), True, axis=-1)
    random = [masks[0][:, rng.permutation(CELLS)] for _ in range(draws)]
    masks = np.concatenate([masks, random]).reshape(-1, *attention.shape)
    moves = [divmod(int(move), GRID) for move in rng.integers(1, CELLS, draws)]  # 0 would leave them in place
    return np.concatenate([masks, [np.roll(masks[0], move, axis=(1, 2)) for move in moves]])


# -- rendered actor ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class ActorClip:
    """A rendered clip, encoded, and where its actor is.

    Attributes:
        name: action and seed.
        features: of the sampled frames, float32 ``(40, 7, 7, channels)``.
        shares: how much of each cell's area lies in the actor's box, ``(40, 7, 7)``, 0 to 1.
    """

    name: str
    features: Cuboids
    shares: Floats


def render_and_encode(
    encode: Callable[[npt.NDArray[np.uint8]], Cuboids],
    actions: Sequence[str] = tuple(ACTIONS),
    *,
    clips: int = 24,
    seed: int = 0,
    frames: int = 100,
) -> Iterator[ActorClip]:
    """Renders clips of the actions in turn and encodes the frames that the service would sample.

    The figure exercises on the spot; its box, drawn along, grows and shrinks with it. It is drawn near the middle,
    where always pointing at the centre cell gives a ratio of 5, of at most 6, without looking. Each clip's picture is
    therefore moved sideways, round its edges, so that the figure stands anywhere; the centre cell then gives 2.

    Takes seconds a clip with VGG19 on a CPU: keep the clips where several heads are to be judged.

    Args:
        encode: uint8 RGB frames ``(40, 224, 224, 3)`` to cuboids ``(40, 7, 7, channels)``.
        actions: keys of ``service.video.rendering.ACTIONS``.
        clips: how many to render, each of another place and person.
        seed: of the first clip; the next one's is one more.
        frames: length of each clip.

    Raises:
        ValueError: an action is unknown.
    """
    for index in range(clips):
        action = actions[index % len(actions)]
        rendered = render_clip(action, frames=frames, seed=seed + index)
        decoded = decode_clip(rendered.data)
        boxes = rendered.boxes[[frame.index for frame in decoded.sampled]]
        # A stream of its own: the renderer draws the scene from the same seed, and scenes must not tell the place.
        pictures, boxes = _place_anywhere(decoded.frames, boxes, np.random.default_rng([seed + index, 1]))
        yield ActorClip(f"{action}/{seed + index}", encode(pictures), box_shares(boxes))


def _place_anywhere(
    pictures: npt.NDArray[np.uint8], boxes: Floats, rng: np.random.Generator
) -> tuple[npt.NDArray[np.uint8], Floats]:
    """Moves all pictures and boxes of a clip sideways by the same number of pixels that leaves every box whole."""
    width = pictures.shape[2]
    furthest_left, furthest_right = -math.floor(boxes[:, 0].min() * width), math.floor((1 - boxes[:, 2].max()) * width)
    move = int(rng.integers(furthest_left, furthest_right, endpoint=True))
    return np.roll(pictures, move, axis=2), boxes + np.array([move, 0, move, 0]) / width


def box_shares(boxes: npt.ArrayLike, grid: int = GRID) -> Floats:
    """The share of each cell's area that lies in a box.

    Args:
        boxes: ``(n, 4)``, x0, y0, x1, y1 as fractions of the frame.
        grid: cells a side.

    Returns:
        ``(n, grid, grid)``, rows from the top; the mean over cells is the box's share of the frame's area.
    """
    x0, y0, x1, y1 = np.asarray(boxes, np.float64).T[..., np.newaxis] * grid
    edges = np.arange(grid)
    across = (np.minimum(x1, edges + 1) - np.maximum(x0, edges)).clip(0)
    down = (np.minimum(y1, edges + 1) - np.maximum(y0, edges)).clip(0)
    shares: Floats = down[:, :, np.newaxis] * across[:, np.newaxis, :]
    return shares


@dataclass(frozen=True, slots=True, eq=False)
class ActorRatio:
    """Attention inside the actor's box ÷ the box's share of the frame's area, for each rendered clip.

    Uniform attention gives 1.

    Attributes:
        names: of the clips.
        ratios: of the clip's own maps, ``(clips,)``.
        blind: of the mean of the other clips' maps, step by step. Some places hold an actor more often than others, so
            a map that is the same for every clip may score above 1: what ``ratios`` has beyond this is from looking.
        ceilings: of the best map there is, with all attention on the cell that lies deepest in the box. Where that is
            wholly inside, this is 1 ÷ the box's share of the area; a slim box may hold no whole cell.
    """

    names: tuple[str, ...]
    ratios: Floats
    blind: Floats
    ceilings: Floats

    @property
    def ratio(self) -> Estimate:
        """Mean over clips."""
        return bootstrap(self.ratios)

    @property
    def gap_to_blind(self) -> Estimate:
        """Ratio with the clip's own maps − with the other clips', paired."""
        return bootstrap(self.ratios - self.blind)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "clips": len(self.names),
            "ratio": self.ratio.as_dict(),
            "blind": bootstrap(self.blind).as_dict(),
            "ratio_minus_blind": self.gap_to_blind.as_dict(),
            "ceiling": bootstrap(self.ceilings).as_dict(),
            "ratio_by_clip": dict(zip(self.names, self.ratios.tolist(), strict=True)),
        }

    def markdown(self) -> list[str]:
        """Lines of the report, without a heading."""
        rows = [
            ("the clip's own maps", f"{self.ratio:.2f}"),
            ("the mean of the other clips' maps (blind to the clip)", f"{bootstrap(self.blind):.2f}"),
            ("own − blind", f"{self.gap_to_blind:z.2f}"),
            ("uniform attention", "1"),
            ("ceiling: all attention on the cell deepest in the box", f"{bootstrap(self.ceilings):.2f}"),
        ]
        setting = (
            f"{len(self.names)} clips rendered with a moving actor whose box is known in every frame (95 % bootstrap "
            "intervals over clips)."
        )
        return [setting, "", *_table(("maps", "attention inside the box ÷ the box's share of the area"), rows)]


def actor_ratio(predict: Predict, clips: Iterable[ActorClip]) -> ActorRatio:
    """How much more attention a head pays to the actor of rendered clips than uniform attention would.

    A clip's ratio is the sum over its frames of the attention inside the box ÷ the sum of the box's shares of the area.

    Raises:
        ValueError: there are fewer than two clips, or the head has no attention.
    """
    clips = list(clips)
    if len(clips) < 2:
        raise ValueError(f"the rendered actor needs at least two clips, got {len(clips)}")
    maps = np.stack([*attention_maps(predict, (clip.features for clip in clips))]).astype(np.float64)
    shares = np.stack([clip.shares for clip in clips])
    others = (maps.sum(axis=0) - maps) / (len(clips) - 1)
    area = shares.mean(axis=(2, 3)).sum(axis=1)
    return ActorRatio(
        names=tuple(clip.name for clip in clips),
        ratios=(maps * shares).sum(axis=(1, 2, 3)) / area,
        blind=(others * shares).sum(axis=(1, 2, 3)) / area,
        ceilings=shares.max(axis=(2, 3)).sum(axis=1) / area,
    )


# -- map statistics ----------------------------------------------------------------------------------------------------

# Maps with more than this share of the largest entropy, log 49, are called uniform: the widest of them still look at
# as much as 47 of 49 equal cells.
UNIFORM_ENTROPY = 0.99
# Maps are called constant where less than this share of what sets them apart from uniform depends on the clip.
CONSTANT_SHARE = 0.1

Verdict = Literal["uniform", "constant", "varying"]


@dataclass(frozen=True, slots=True, eq=False)
class MapStatistics:
    """How sharp the maps are, and what they depend on. Entropies and divergences are in nats.

    ``against_uniform``, the mean Kullback–Leibler divergence of the maps from the uniform map, is split in two ways,
    each exact; the terms are (generalised) Jensen–Shannon divergences, the mean divergence of maps from their mean::

        against_uniform = constant + between_clips + between_frames
                        = constant + schedule + clip_specific

    Attributes:
        clips: how many.
        entropy: mean over clips at each step, ``(40,)``; log 49 where maps are uniform, 0 where one cell has it all.
        against_uniform: of all maps from the uniform map.
        constant: of the mean of all maps from the uniform map.
        between_clips: of each clip's mean map from the mean of all.
        between_frames: of each frame's map from its clip's mean map.
        schedule: of each step's mean map over clips from the mean of all: movement that is the same in every clip.
        clip_specific: of each frame's map from its step's mean map: what depends on the clip. Maps without it explain
            nothing.
    """

    clips: int
    entropy: Floats
    against_uniform: float
    constant: float
    between_clips: float
    between_frames: float
    schedule: float
    clip_specific: float

    @property
    def entropy_share(self) -> float:
        """Mean entropy as a share of the largest, log 49."""
        return float(self.entropy.mean() / math.log(CELLS))

    @property
    def verdict(self) -> Verdict:
        """``uniform``, ``constant`` (the same for every clip) or ``varying``; see the thresholds above."""
        if self.entropy_share > UNIFORM_ENTROPY:
            return "uniform"
        return "constant" if self.clip_specific < CONSTANT_SHARE * self.against_uniform else "varying"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "clips": self.clips,
            "verdict": self.verdict,
            "entropy": float(self.entropy.mean()),
            "entropy_share": self.entropy_share,
            "entropy_by_step": self.entropy.tolist(),
            "against_uniform": self.against_uniform,
            "constant": self.constant,
            "between_clips": self.between_clips,
            "between_frames": self.between_frames,
            "schedule": self.schedule,
            "clip_specific": self.clip_specific,
        }

    def markdown(self) -> list[str]:
        """Lines of the report, without a heading."""
        first, last = self.entropy[0] / math.log(CELLS), self.entropy[-1] / math.log(CELLS)
        rows = [
            ("all maps from uniform", self._part(self.against_uniform)),
            ("the mean map from uniform: the same in every clip and frame", self._part(self.constant)),
            ("each clip's mean map from the mean map", self._part(self.between_clips)),
            ("each frame's map from its clip's mean map", self._part(self.between_frames)),
            ("each step's mean map from the mean map: moves the same way in every clip", self._part(self.schedule)),
            ("each frame's map from its step's mean map: depends on the clip", self._part(self.clip_specific)),
        ]
        summary = (
            f"Entropy over {self.clips} clips: {self.entropy.mean():.2f} nats, {self.entropy_share:.1%} of log {CELLS} "
            f"({first:.1%} at the first step, {last:.1%} at the last); a map is as wide as "
            f"{math.exp(self.entropy.mean()):.1f} of {CELLS} equal cells."
        )
        return [summary, "", *_table(("how far maps differ (mean divergence)", "nats"), rows), "", self._sentence()]

    def _part(self, nats: float) -> str:
        return f"{nats:.4f} ({nats / self.against_uniform if self.against_uniform else 0:.0%})"

    def _sentence(self) -> str:
        match self.verdict:
            case "uniform":
                return (
                    f"The maps are **uniform** (over {UNIFORM_ENTROPY:.0%} of the largest entropy): they point nowhere."
                )
            case "constant":
                return (
                    f"The maps are **constant**: less than {CONSTANT_SHARE:.0%} of what sets them apart from uniform "
                    "depends on the clip, so they explain nothing."
                )
            case "varying":
                return "The maps are **varying**: they depend on the clip."


def map_statistics(maps: Iterable[Maps]) -> MapStatistics:
    """Statistics of the maps ``(40, 7, 7)`` of each clip; only sums are kept.

    Give it the maps of one head: those of several differ between heads, which would look like between clips.

    Raises:
        ValueError: there are fewer than two clips, so that nothing can be said about differences.
    """
    clips, total, entropy, entropy_of_means = 0, np.zeros(()), np.zeros(()), 0.0
    for clip in maps:
        flat = np.asarray(clip, np.float64).reshape(len(clip), CELLS)
        clips += 1
        total = total + flat
        entropy = entropy + _entropy(flat)
        entropy_of_means += float(_entropy(flat.mean(axis=0)))
    if clips < 2:
        raise ValueError(f"map statistics need at least two clips, got {clips}")
    by_step, by_clip, by_map = _entropy(total / clips).mean(), entropy_of_means / clips, entropy.mean() / clips
    overall = _entropy(total.mean(axis=0) / clips)
    return MapStatistics(
        clips=clips,
        entropy=entropy / clips,
        against_uniform=_divergence(math.log(CELLS), by_map),
        constant=_divergence(math.log(CELLS), overall),
        between_clips=_divergence(overall, by_clip),
        between_frames=_divergence(by_clip, by_map),
        schedule=_divergence(overall, by_step),
        clip_specific=_divergence(by_step, by_map),
    )


def _entropy(maps: Floats) -> Floats:
    """Over the last axis, in nats."""
    entropies: Floats = entr(maps).sum(axis=-1)
    return entropies


def _divergence(entropy_of_mean: npt.ArrayLike, mean_entropy: npt.ArrayLike) -> float:
    """Mean divergence of distributions from their mean: the mean's entropy − their mean entropy, never below 0."""
    return max(0.0, float(np.subtract(entropy_of_mean, mean_entropy)))
