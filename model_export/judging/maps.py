"""Map statistics: how sharp attention maps are, and whether they depend on the clip.

A map that is uniform, or the same for every clip, explains nothing.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.special import entr

from model_export.judging.intervals import Floats
from model_export.judging.markdown import markdown_table
from model_export.network.arrays import Cuboids, Maps, Predict
from model_export.network.spec import CELLS
from service.model.bundle import Outputs


def attention_of(outputs: Outputs) -> npt.NDArray[np.float32]:
    """Return the attention ``(clips, 40, 7, 7)`` of a head's outputs.

    Raises:
        ValueError: The head is of the variant ``base``, which has no attention.
    """
    if outputs.attention is None:
        raise ValueError("a head of variant base has no attention to judge; choose one of variant attention")
    return outputs.attention


def attention_maps(predict: Predict, clips: Iterable[Cuboids]) -> Iterator[Maps]:
    """Compute the maps ``(40, 7, 7)`` of one clip after the other.

    Raises:
        ValueError: The head is of the variant ``base``, which has no attention.
    """
    for cuboids in clips:
        yield attention_of(predict(cuboids[np.newaxis]))[0]


# Maps with more than this share of the largest entropy, log 49, are called uniform: at the threshold, a map is as wide
# as 47 of 49 equal cells.
UNIFORM_ENTROPY = 0.99
# Maps are called constant if less than this share of their divergence from uniform depends on the clip.
CONSTANT_SHARE = 0.1

MapVerdict = Literal["uniform", "constant", "varying"]


@dataclass(frozen=True, slots=True, eq=False)
class MapStatistics:
    """How sharp the maps are, and what they depend on. Entropies and divergences are in nats.

    ``against_uniform``, the mean Kullback–Leibler divergence of the maps from the uniform map, is split in two ways,
    both exact. The terms are (generalised) Jensen–Shannon divergences: the mean divergence of maps from their mean::

        against_uniform = constant + between_clips + between_frames
                        = constant + schedule + clip_specific

    Attributes:
        clips: Number of clips.
        entropy: Mean over clips at each step, ``(40,)``; log 49 for uniform maps, 0 if one cell has all attention.
        against_uniform: Divergence of all maps from the uniform map.
        constant: Divergence of the mean of all maps from the uniform map.
        between_clips: Divergence of each clip's mean map from the mean of all.
        between_frames: Divergence of each frame's map from its clip's mean map.
        schedule: Divergence of each step's mean map over clips from the mean of all: movement that is the same in every
            clip.
        clip_specific: Divergence of each frame's map from its step's mean map: the part that depends on the clip. Maps
            without it explain nothing.
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
        """Mean entropy as a share of the largest possible, log 49."""
        return float(self.entropy.mean() / math.log(CELLS))

    @property
    def verdict(self) -> MapVerdict:
        """``uniform``, ``constant`` (the same for every clip) or ``varying``, by the thresholds above."""
        if self.entropy_share > UNIFORM_ENTROPY:
            return "uniform"
        return "constant" if self.clip_specific < CONSTANT_SHARE * self.against_uniform else "varying"

    def as_dict(self) -> dict[str, Any]:
        """Return the statistics, for JSON."""
        return {
            "verdict": self.verdict,
            "entropy_share": self.entropy_share,
            "entropy_by_step": self.entropy.tolist(),
            **asdict(self),
            "entropy": float(self.entropy.mean()),
        }

    def markdown(self) -> list[str]:
        """Return the lines of the report, without a heading."""
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
            f"{math.exp(self.entropy.mean()):.1f} of {CELLS} equal cells. These figures describe one head on these "
            "clips; they have no intervals."
        )
        table = markdown_table(("how far maps differ (mean divergence)", "nats"), rows)
        return [summary, "", *table, "", self._sentence()]

    def _part(self, nats: float) -> str:
        return f"{nats:.4f} ({nats / self.against_uniform if self.against_uniform else 0:.0%})"

    def _sentence(self) -> str:
        match self.verdict:
            case "uniform":
                return (
                    f"The maps are **uniform** (over {UNIFORM_ENTROPY:.0%} of the largest entropy): they point at "
                    "nothing."
                )
            case "constant":
                return (
                    f"The maps are **constant**: less than {CONSTANT_SHARE:.0%} of their divergence from uniform "
                    "depends on the clip, so they explain nothing."
                )
            case "varying":
                return "The maps are **varying**: they depend on the clip."


def map_statistics(maps: Iterable[Maps]) -> MapStatistics:
    """Compute the statistics of the maps ``(40, 7, 7)`` of each clip, keeping only sums.

    All maps must come from one head: differences between heads would look like differences between clips.

    Raises:
        ValueError: There are fewer than two clips.
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
    """Compute the entropy over the last axis, in nats."""
    entropies: Floats = entr(maps).sum(axis=-1)
    return entropies


def _divergence(entropy_of_mean: npt.ArrayLike, mean_entropy: npt.ArrayLike) -> float:
    """Compute the mean divergence of distributions from their mean: its entropy − their mean entropy, at least 0."""
    return max(0.0, float(np.subtract(entropy_of_mean, mean_entropy)))
