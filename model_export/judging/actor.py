"""Rendered actor: whether attention is on the moving figure of clips drawn by code, where its position is known."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from model_export.judging.intervals import Estimate, Floats, mean_over_groups
from model_export.judging.maps import attention_maps
from model_export.judging.markdown import markdown_table
from model_export.network.arrays import Cuboids, Frames, Predict
from model_export.network.spec import GRID
from model_export.rendering.figure import ACTIONS, render_clip
from service.video.decoder import decode_clip


@dataclass(frozen=True, slots=True, eq=False)
class ActorClip:
    """A rendered clip, encoded, with the position of its actor.

    Attributes:
        name: Action and seed.
        features: Features of the sampled frames, float32 ``(40, 7, 7, channels)``.
        shares: Share of each cell's area that lies in the actor's box, ``(40, 7, 7)``, 0 to 1.
    """

    name: str
    features: Cuboids
    shares: Floats


def render_and_encode(
    encode: Callable[[Frames], Cuboids],
    actions: Sequence[str] = tuple(ACTIONS),
    *,
    clips: int = 24,
    seed: int = 0,
    frames: int = 100,
) -> Iterator[ActorClip]:
    """Render clips of the actions in turn and encode the frames that the service would sample.

    The figure exercises on the spot; its box grows and shrinks with it. It is drawn near the middle of the picture,
    where a map that always points at the centre cell would reach a ratio of 5, of at most 6. Each clip's picture is
    therefore moved sideways, around its edges, so that the figure can be anywhere; the centre cell then reaches 2.

    Encoding takes seconds per clip with VGG19 on a CPU, so keep the clips if several heads are to be judged.

    Args:
        encode: Encodes RGB frames, uint8 ``(40, 224, 224, 3)``, to cuboids ``(40, 7, 7, channels)``.
        actions: Keys of the renderer's ``ACTIONS``.
        clips: Number of clips to render, each of another place and person.
        seed: Seed of the first clip; each further clip's is one more.
        frames: Length of each clip in frames.

    Raises:
        ValueError: An action is unknown.
    """
    for index in range(clips):
        action = actions[index % len(actions)]
        rendered = render_clip(action, frames=frames, seed=seed + index)
        decoded = decode_clip(rendered.data)
        boxes = rendered.boxes[[frame.index for frame in decoded.sampled]]
        # A random stream of its own: the renderer draws the scene from the seed, and scenes must not reveal the place.
        pictures, boxes = _place_anywhere(decoded.frames, boxes, np.random.default_rng([seed + index, 1]))
        yield ActorClip(f"{action}/{seed + index}", encode(pictures), box_shares(boxes))


def _place_anywhere(pictures: Frames, boxes: Floats, rng: np.random.Generator) -> tuple[Frames, Floats]:
    """Move all pictures and boxes of a clip sideways, by the same number of pixels, without cutting any box."""
    width = pictures.shape[2]
    furthest_left, furthest_right = -math.floor(boxes[:, 0].min() * width), math.floor((1 - boxes[:, 2].max()) * width)
    move = int(rng.integers(furthest_left, furthest_right, endpoint=True))
    return np.roll(pictures, move, axis=2), boxes + np.array([move, 0, move, 0]) / width


def box_shares(boxes: npt.ArrayLike, grid: int = GRID) -> Floats:
    """Compute the share of each cell's area that lies in a box.

    Args:
        boxes: Boxes ``(n, 4)`` as x0, y0, x1, y1, in fractions of the frame.
        grid: Number of cells per side.

    Returns:
        Shares ``(n, grid, grid)``, rows from the top; their mean over cells is the box's share of the frame's area.
    """
    x0, y0, x1, y1 = np.asarray(boxes, np.float64).T[..., np.newaxis] * grid
    edges = np.arange(grid)
    across = (np.minimum(x1, edges + 1) - np.maximum(x0, edges)).clip(0)
    down = (np.minimum(y1, edges + 1) - np.maximum(y0, edges)).clip(0)
    shares: Floats = down[:, :, np.newaxis] * across[:, np.newaxis, :]
    return shares


@dataclass(frozen=True, slots=True, eq=False)
class ActorRatio:
    """Attention inside the actor's box divided by the box's share of the frame's area, for each rendered clip.

    Uniform attention has ratio 1.

    Attributes:
        names: Names of the clips.
        ratios: Ratios of each clip's own maps, ``(clips,)``.
        blind: Ratios of the other clips' maps, step by step, as pseudo-values of leaving out each clip once, whose mean
            is the mean ratio. Some places hold an actor more often than others, so that a map that is the same for
            every clip may score above 1; only what ``ratios`` exceeds this by comes from looking at the clip. A clip
            takes part in every other clip's ratio, so those are not independent; its pseudo-value has all that it
            contributes, by its actor and by its maps.
        ceilings: Ratios of the best possible map, with all attention on the cell that lies deepest in the box. If that
            cell is completely inside, this is 1 divided by the box's share of the area; a slim box may contain no whole
            cell.
    """

    names: tuple[str, ...]
    ratios: Floats
    blind: Floats
    ceilings: Floats

    @property
    def ratio(self) -> Estimate:
        """Mean over clips."""
        return mean_over_groups(self.ratios)

    @property
    def gap_to_blind(self) -> Estimate:
        """Ratio of the clip's own maps − ratio of the other clips' maps, paired."""
        return mean_over_groups(self.ratios - self.blind)

    def as_dict(self) -> dict[str, Any]:
        """Return the figures, for JSON."""
        return {
            "clips": len(self.names),
            "ratio": asdict(self.ratio),
            "blind": asdict(mean_over_groups(self.blind)),
            "ratio_minus_blind": asdict(self.gap_to_blind),
            "ceiling": asdict(mean_over_groups(self.ceilings)),
            "ratio_by_clip": dict(zip(self.names, self.ratios.tolist(), strict=True)),
        }

    def markdown(self) -> list[str]:
        """Return the lines of the report, without a heading."""
        rows = [
            ("the clip's own maps", f"{self.ratio:.2f}"),
            ("the mean of the other clips' maps (blind to the clip)", f"{mean_over_groups(self.blind):.2f}"),
            ("own − blind", f"{self.gap_to_blind:z.2f}"),
            ("uniform attention", "1"),
            ("ceiling: all attention on the cell deepest in the box", f"{mean_over_groups(self.ceilings):.2f}"),
        ]
        setting = (
            f"{len(self.names)} clips rendered with a moving actor whose box is known in every frame (95 % "
            "intervals over clips, of this one head)."
        )
        return [setting, "", *markdown_table(("maps", "attention inside the box ÷ the box's share of the area"), rows)]


def actor_ratio(predict: Predict, clips: Iterable[ActorClip]) -> ActorRatio:
    """Measure how much more attention a head pays to the actor of rendered clips than uniform attention would.

    A clip's ratio is the sum over its frames of the attention inside the box, divided by the sum of the box's shares of
    the area.

    Raises:
        ValueError: There are fewer than three clips, or the head has no attention.
    """
    clips = list(clips)
    if len(clips) < 3:
        raise ValueError(f"the rendered actor needs at least three clips, got {len(clips)}")
    maps = np.stack([*attention_maps(predict, (clip.features for clip in clips))]).astype(np.float64)
    shares = np.stack([clip.shares for clip in clips])
    area = shares.mean(axis=(2, 3)).sum(axis=1)
    ratios = np.tensordot(shares, maps, ((1, 2, 3), (1, 2, 3))) / area[:, np.newaxis]  # by actor and by maps
    return ActorRatio(
        names=tuple(clip.name for clip in clips),
        ratios=ratios.diagonal(),
        blind=ratios_of_other_clips(ratios),
        ceilings=shares.max(axis=(2, 3)).sum(axis=1) / area,
    )


def ratios_of_other_clips(ratios: Floats) -> Floats:
    """Compute the clips' pseudo-values ``(clips,)`` of the mean ratio of all actors by other clips' maps.

    Args:
        ratios: Ratio of each actor ``(clips,)`` by the maps of each clip, ``(clips, clips)``.
    """
    clips = len(ratios)
    others = ratios - np.diag(ratios.diagonal())
    contributed = others.sum(axis=0) + others.sum(axis=1)
    pseudo: Floats = contributed / (clips - 2) - others.sum() / ((clips - 1) * (clips - 2))
    return pseudo
