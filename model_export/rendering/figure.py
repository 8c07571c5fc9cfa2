"""Renders video clips of a shaded, articulated person who exercises in a gym, a living room or a garden.

Rendered clips replace filmed ones where those cannot be distributed: in the demo, the checks of an export and the
tests. The figure is a small three-dimensional skeleton whose bones are painted as round, lit limbs.
"""

import io
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import av
import numpy as np
import numpy.typing as npt

from model_export.rendering.scenery import COMPLEXIONS, FABRICS, Colour, Image32, noise, scenery

Vector = npt.NDArray[np.float64]
Swing = tuple[float, float]
"""Direction of a bone: degrees away from the body's midline, then degrees forwards; (0, 0) hangs straight down."""

# Longer side, in pixels, at which larger clips are drawn before they are enlarged: otherwise a 4K clip would cost a
# hundred times more.
DRAWN_SIZE = 640
# Share of the frame interval for which the shutter is open. A real exposure smears a fast arm; the average of two
# instants looks much the same.
EXPOSURE = 0.5
EXPOSURE_STEPS = 2
CAMERA_PITCH = math.radians(9.0)


@dataclass(frozen=True, slots=True)
class RenderedClip:
    """An encoded clip and the position of its actor.

    Attributes:
        data: The video file.
        boxes: Bounding box of the actor in each frame, ``(frames, 4)``: x0, y0, x1, y1 as fractions of the frame.
    """

    data: bytes
    boxes: npt.NDArray[np.float64]


def render_clip(
    action: str = "jumping_jacks",
    *,
    frames: int = 100,
    width: int = 320,
    height: int = 240,
    fps: int = 25,
    seed: int = 0,
    codec: str = "libx264",
    container: str = "mp4",
) -> RenderedClip:
    """Render a clip to a video file in memory. The same arguments give the same bytes.

    Args:
        action: The movement, a key of ``ACTIONS``.
        frames: Number of frames.
        width: Width in pixels, even.
        height: Height in pixels, even.
        fps: Frames per second.
        seed: Selects the place and the person with their clothes, size, position and pace.
        codec: An FFmpeg encoder.
        container: An FFmpeg muxer that supports the codec.

    Raises:
        ValueError: The action, codec or container is unknown, the container does not support the codec, the codec is
            not for video, or the size, ``frames`` or ``fps`` is invalid.
    """
    if action not in ACTIONS:
        raise ValueError(f"unknown action {action!r}: choose one of {', '.join(ACTIONS)}")
    if frames < 1 or fps < 1 or width < 2 or height < 2 or width % 2 or height % 2:
        raise ValueError("frames and fps must be positive, width and height even and positive")
    rng = np.random.default_rng(seed)
    shrink = min(1.0, DRAWN_SIZE / max(width, height))
    drawn = max(1, round(width * shrink)), max(1, round(height * shrink))
    background = scenery(drawn, rng)
    actor = _actor(action, drawn, rng)
    pictures, boxes = [], np.empty((frames, 4))
    for index in range(frames):
        picture, boxes[index] = _expose(background, actor, index, fps)
        pictures.append(picture)
    return RenderedClip(_encode(iter(pictures), (width, height), fps, codec, container), boxes)


# -- movement ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pose:
    """A posture. Pairs are (the figure's right side, its left side); lengths are in body heights."""

    upper_arms: tuple[Swing, Swing] = ((9, 3), (9, 3))
    forearms: tuple[Swing, Swing] = ((5, 12), (5, 12))
    thighs: tuple[Swing, Swing] = ((4, 0), (4, 0))
    shins: tuple[Swing, Swing] = ((2, -2), (2, -2))
    lean: float = 2.0
    hop: float = 0.0
    sway: float = 0.0


def _jumping_jacks(phase: float) -> Pose:
    opened = _ease(phase)
    lagging = _ease(phase - 0.02)  # real arms are never quite in step
    right, left = 10 + 152 * opened, 10 + 148 * lagging
    spread = 2 + 21 * opened
    give = 10 * abs(math.cos(2 * math.pi * phase)) ** 3  # knees bend on landing
    return Pose(
        upper_arms=((right, 6), (left, 6)),
        forearms=((right + 4 + 14 * opened, 12), (left + 4 + 14 * lagging, 12)),
        thighs=((spread, give), (spread, give)),
        shins=((spread - 1, -give), (spread - 1, -give)),
        hop=0.055 * abs(math.sin(2 * math.pi * phase)),
    )


def _squats(phase: float) -> Pose:
    depth = _ease(phase)
    arm = (8 - 4 * depth, 4 + 80 * depth)
    thigh, shin = (8 + 12 * depth, 88 * depth), (7 - 2 * depth, -34 * depth)
    return Pose((arm, arm), (arm, arm), (thigh, thigh), (shin, shin), lean=2 + 34 * depth)


def _waving(phase: float) -> Pose:
    swing = math.sin(2 * math.pi * phase)
    return Pose(
        upper_arms=((112 + 6 * swing, 12), (9, 3)),
        forearms=((172 + 30 * swing, 14), (5, 12)),
        sway=0.008 * swing,
    )


def _ease(phase: float) -> float:
    """Rise from 0 at integer phases to 1 half-way between them, slowing down at both ends as limbs do."""
    wave = (1 - math.cos(2 * math.pi * phase)) / 2
    return 0.6 * wave + 0.4 * wave * wave * (3 - 2 * wave)


@dataclass(frozen=True, slots=True)
class Action:
    """A movement.

    Attributes:
        pose: Computes the pose at a phase; one cycle lasts from 0 to 1.
        pace: Range of cycles per second.
        turn: Largest angle, in degrees, by which the figure turns away from the camera.
    """

    pose: Callable[[float], Pose]
    pace: tuple[float, float]
    turn: float


ACTIONS = {
    "jumping_jacks": Action(_jumping_jacks, pace=(0.85, 1.2), turn=18),
    "squats": Action(_squats, pace=(0.4, 0.6), turn=65),
    "waving": Action(_waving, pace=(1.1, 1.8), turn=22),
}


# -- the figure --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Actor:
    """The person and movement selected by the seed. ``size`` and ``feet`` are in pixels, ``turn`` is in radians."""

    action: Action
    pace: float
    phase: float
    turn: float
    size: float
    feet: tuple[float, float]
    light: Vector
    build: float
    skin: Colour
    hair: Colour
    shirt: Colour
    trousers: Colour
    shoes: Colour
    long_hair: bool
    shorts: bool
    sleeves: bool
    cloth: Image32


HAIRS = ((36, 28, 24), (62, 42, 30), (104, 70, 40), (168, 128, 76), (84, 82, 84))
TROUSERS = ((34, 36, 44), (44, 58, 98), (84, 84, 88), (30, 30, 32), (170, 158, 134))
SHOES = ((236, 236, 236), (58, 58, 64), (188, 60, 54))


def _actor(name: str, drawn: tuple[int, int], rng: np.random.Generator) -> Actor:
    action = ACTIONS[name]
    width, height = drawn
    # Raised arms reach 1.2 body heights. In a narrow frame, the span of the arms limits the size instead.
    size = min(height * rng.uniform(0.58, 0.70), width * 0.85)
    light = np.array([rng.choice([-1, 1]) * rng.uniform(0.3, 0.6), 0.55, 0.75])
    skin, hair, shirt, trousers, shoes = (
        palette[rng.integers(len(palette))] for palette in (COMPLEXIONS, HAIRS, FABRICS, TROUSERS, SHOES)
    )
    return Actor(
        action,
        pace=rng.uniform(*action.pace),
        phase=rng.uniform(0, 1),
        turn=math.radians(rng.uniform(-action.turn, action.turn)),
        size=size,
        feet=(width * rng.uniform(0.4, 0.6), height * rng.uniform(0.90, 0.95)),
        light=light / np.linalg.norm(light),
        build=rng.uniform(0.92, 1.15),
        skin=skin,
        hair=hair,
        shirt=shirt,
        trousers=trousers,
        shoes=shoes,
        long_hair=bool(rng.random() < 0.4),
        shorts=bool(rng.random() < 0.5),
        sleeves=bool(rng.random() < 0.7),
        cloth=0.9 + 0.2 * noise((48, 24), (14, 5), rng),
    )


@dataclass(slots=True)
class Part:
    """A limb with rounded ends, or a piece of clothing around one.

    Attributes:
        start: Where it begins, in body heights: right, up, and towards the camera if the figure is not turned.
        end: Where it ends.
        radii: Radii at evenly spaced points along it, in body heights.
        colour: Its colour in full light.
        flat: How much flatter than half circles its ends are.
        above: Distance by which it is moved towards the camera, so that a sleeve hides its arm.
        cloth: Whether it has the texture of cloth.
    """

    start: Vector
    end: Vector
    radii: tuple[float, ...]
    colour: Colour
    flat: float = 1.0
    above: float = 0.0
    cloth: bool = False


def _direction(side: int, swing: Swing) -> Vector:
    outwards, forwards = np.radians(swing)
    return np.array(
        [side * math.sin(outwards) * math.cos(forwards), -math.cos(outwards) * math.cos(forwards), math.sin(forwards)]
    )


UP = np.array([0.0, 1.0, 0.0])
FORWARD = np.array([0.0, 0.0, 1.0])
SIDES = (-1, 1)


def _figure(actor: Actor, pose: Pose) -> tuple[list[Part], list[Vector]]:
    """Return the parts of the body in a pose, and its ankles. The floor is at y = 0."""
    hips = [np.array([side * 0.052, 0.0, 0.0]) for side in SIDES]
    knees = [hip + 0.238 * _direction(s, swing) for hip, s, swing in zip(hips, SIDES, pose.thighs, strict=True)]
    ankles = [knee + 0.235 * _direction(s, swing) for knee, s, swing in zip(knees, SIDES, pose.shins, strict=True)]
    lowest = min(ankle[1] for ankle in ankles)
    middle = (ankles[0] + ankles[1]) / 2
    pelvis = np.array([pose.sway, 0.04 + pose.hop - lowest, -middle[2]])
    parts = [*_trunk(actor, pelvis, pose)]
    for hip, knee, ankle in zip(hips, knees, ankles, strict=True):
        parts += _leg(actor, pelvis + hip, pelvis + knee, pelvis + ankle)
    return parts, [pelvis + ankle for ankle in ankles]


def _leg(actor: Actor, hip: Vector, knee: Vector, ankle: Vector) -> Iterator[Part]:
    build = actor.build
    thigh, calf = (0.056 * build, 0.053 * build, 0.037), (0.036, 0.041 * build, 0.033, 0.023)
    yield Part(ankle - 0.012 * FORWARD, ankle - 0.012 * UP + 0.075 * FORWARD, (0.025, 0.03, 0.024), actor.shoes)
    if actor.shorts:
        yield Part(knee, ankle, calf, actor.skin)
        yield Part(hip, knee, thigh, actor.skin, above=0.01)
        yield Part(hip, hip + 0.75 * (knee - hip), (0.06 * build, 0.06, 0.058), actor.trousers, 2.5, 0.05, True)
    else:
        wide = tuple(radius + 0.006 for radius in calf)
        yield Part(knee, knee + 0.95 * (ankle - knee), wide, actor.trousers, 1.5, 0.0, True)
        yield Part(hip, knee, (0.062 * build, 0.057 * build, 0.043), actor.trousers, 1.0, 0.01, True)


def _trunk(actor: Actor, pelvis: Vector, pose: Pose) -> Iterator[Part]:
    lean = math.radians(pose.lean)
    spine = np.array([0.0, math.cos(lean), math.sin(lean)])
    build = actor.build * (abs(math.cos(actor.turn)) + 0.66 * abs(math.sin(actor.turn)))
    chest, neck = pelvis + 0.265 * spine, pelvis + 0.315 * spine
    seat = (0.094 * build, 0.086 * build)
    yield Part(pelvis - 0.01 * UP, pelvis + 0.06 * spine, seat, actor.trousers, 2.2, 0.04, True)
    profile = tuple(radius * build for radius in (0.092, 0.082, 0.09, 0.106, 0.092))
    yield Part(pelvis + 0.05 * spine, chest, profile, actor.shirt, 3.0, 0.06, True)
    upright = np.array([0.0, math.cos(lean / 2), math.sin(lean / 2)])
    yield from _head(actor, neck, upright)
    for side, upper, fore in zip(SIDES, pose.upper_arms, pose.forearms, strict=True):
        lifted = 0.03 * (1 - math.cos(math.radians(upper[0]))) / 2  # a raised arm lifts its shoulder
        shoulder = chest + np.array([side * (0.098 * actor.build - lifted / 2), lifted - 0.02, 0.0])
        yield from _arm(actor, shoulder, _direction(side, upper), _direction(side, fore))


def _arm(actor: Actor, shoulder: Vector, upper: Vector, fore: Vector) -> Iterator[Part]:
    build = actor.build
    elbow = shoulder + 0.175 * upper
    wrist = elbow + 0.155 * fore
    yield Part(wrist + 0.012 * fore, wrist + 0.06 * fore, (0.018, 0.022, 0.014), actor.skin, above=0.09)
    yield Part(elbow, wrist, (0.027 * build, 0.029 * build, 0.019), actor.skin, above=0.09)
    yield Part(shoulder, elbow, (0.035 * build, 0.033 * build, 0.027), actor.skin, above=0.09)
    reach = 0.62 if actor.sleeves else 0.12
    sleeve = (0.038 * build, 0.037 * build, 0.036 * build)
    yield Part(shoulder, shoulder + reach * 0.175 * upper, sleeve, actor.shirt, 1.5, 0.13, True)


def _head(actor: Actor, neck: Vector, up: Vector) -> Iterator[Part]:
    face = neck + 0.065 * up + 0.012 * FORWARD
    dark = cast(Colour, tuple(int(0.45 * channel) for channel in actor.skin))
    lips = (int(0.75 * actor.skin[0]), int(0.5 * actor.skin[1]), int(0.5 * actor.skin[2]))
    if actor.long_hair:
        yield Part(face + 0.03 * up, neck - 0.02 * up - 0.03 * FORWARD, (0.054, 0.062, 0.058), actor.hair, above=-0.05)
    yield Part(neck - 0.05 * up, neck + 0.03 * up, (0.036, 0.028), actor.skin, above=0.07)
    yield Part(face + 0.012 * up, face + 0.036 * up - 0.01 * FORWARD, (0.055, 0.053), actor.hair, above=0.08)
    yield Part(face - 0.02 * up, face + 0.018 * up, (0.038, 0.049, 0.05), actor.skin, above=0.09)
    for side in SIDES:
        eye = face + np.array([side * 0.019, 0.014, 0.04])
        width = np.array([0.007, 0.0, 0.0])
        yield Part(eye - width, eye + width, (0.0045, 0.0045), dark, above=0.13)
        yield Part(eye - width + 0.014 * UP, eye + width + 0.014 * UP, (0.003, 0.003), actor.hair, above=0.13)
    mouth = face + np.array([0.0, -0.026, 0.04])
    yield Part(mouth - [0.012, 0.0, 0.0], mouth + [0.012, 0.0, 0.0], (0.004, 0.004), lips, above=0.13)


# -- painting ----------------------------------------------------------------------------------------------------------


def _expose(
    background: Image32, actor: Actor, index: int, fps: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64]]:
    """Return frame ``index``, uint8 ``(height, width, 3)``, averaged while the shutter is open, and its actor's box."""
    total = np.zeros_like(background)
    boxes = []
    for step in range(EXPOSURE_STEPS):
        time = (index + EXPOSURE * step / EXPOSURE_STEPS) / fps
        canvas = background.copy()
        boxes.append(_draw(canvas, actor, actor.action.pose(time * actor.pace + actor.phase)))
        total += canvas
    height, width = background.shape[:2]
    corners = np.array(boxes)
    box = np.concatenate([corners[:, :2].min(0), corners[:, 2:].max(0)]) / (width, height, width, height)
    return np.clip(total / EXPOSURE_STEPS + 0.5, 0, 255).astype(np.uint8), np.clip(box, 0.0, 1.0)


def _draw(canvas: Image32, actor: Actor, pose: Pose) -> Vector:
    """Paint the person on the canvas. Return the box around everything painted, in pixels."""
    parts, ankles = _figure(actor, pose)
    for part in parts:
        part.start, part.end = _to_eye(actor, part.start), _to_eye(actor, part.end)
    parts.sort(key=lambda part: part.start[2] + part.end[2] + 2 * part.above)
    shadows = [_shadow(canvas, actor, ankle) for ankle in ankles]
    corners = np.array(shadows + [_paint(canvas, actor, part) for part in parts])
    return np.concatenate([corners[:, :2].min(0), corners[:, 2:].max(0)])


def _to_eye(actor: Actor, point: Vector) -> Vector:
    """Project a point of the body, without perspective: x and y in pixels, and nearness in body heights."""
    x = point[0] * math.cos(actor.turn) + point[2] * math.sin(actor.turn)
    z = point[2] * math.cos(actor.turn) - point[0] * math.sin(actor.turn)
    up = point[1] * math.cos(CAMERA_PITCH) - z * math.sin(CAMERA_PITCH)
    return np.array([actor.feet[0] + actor.size * x, actor.feet[1] - actor.size * up, z])


def _window(canvas: Image32, box: Vector) -> tuple[slice, slice, Image32, Image32] | None:
    """Return the rows and columns of the canvas inside a box, and their pixels' centres; ``None`` if it is outside."""
    height, width = canvas.shape[:2]
    left, top = max(0, math.floor(box[0])), max(0, math.floor(box[1]))
    right, bottom = min(width, math.ceil(box[2])), min(height, math.ceil(box[3]))
    if left >= right or top >= bottom:
        return None
    x = np.arange(left, right, dtype=np.float32)[None, :] + np.float32(0.5)
    y = np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5)
    return slice(top, bottom), slice(left, right), x, y


def _shadow(canvas: Image32, actor: Actor, ankle: Vector) -> Vector:
    """Darken the floor below a foot, less if the foot is raised. Return the shadow's box in pixels."""
    centre = _to_eye(actor, ankle * (1, 0, 1))
    reach = np.array([0.11, 0.032]) * actor.size
    box = np.concatenate([centre[:2] - reach, centre[:2] + reach])
    window = _window(canvas, box)
    if window is not None:
        rows, columns, x, y = window
        away = ((x - centre[0]) / reach[0]) ** 2 + ((y - centre[1]) / reach[1]) ** 2
        strength = max(0.0, 0.55 - 2.5 * max(0.0, ankle[1] - 0.04))
        canvas[rows, columns] *= (1 - strength * np.clip(1 - away, 0, 1)).astype(np.float32)[..., None]
    return box


def _paint(canvas: Image32, actor: Actor, part: Part) -> Vector:
    """Blend one lit limb with a smooth edge over the canvas. Return its box in pixels."""
    radii = [radius * actor.size for radius in part.radii]
    start, end = part.start[:2], part.end[:2]
    margin = max(radii) + 1.0
    box = np.concatenate([np.minimum(start, end) - margin, np.maximum(start, end) + margin])
    window = _window(canvas, box)
    if window is None:
        return box
    rows, columns, x, y = window
    # Python floats keep the arrays in float32, which halves the time; NumPy's own scalars would widen them.
    x, y = x - float(start[0]), y - float(start[1])
    length = max(1e-6, math.dist(start, end))
    axis_x, axis_y = float(end[0] - start[0]) / length, float(end[1] - start[1]) / length
    along = x * axis_x + y * axis_y
    across = y * axis_x - x * axis_y
    inside = along.clip(0, length)
    beyond = (along - inside) * part.flat
    inside *= 1 / length
    radius = _profile(inside, radii)
    cover = (radius - np.sqrt(across * across + beyond * beyond) + 0.5).clip(0, 1)
    # The surface is round, so its normal follows from the distance to the bone: x and y here, the rest towards the eye.
    bent, ended = (across / radius).clip(-1, 1), (beyond / radius).clip(-1, 1)
    towards = np.sqrt((1 - bent * bent - ended * ended).clip(0, 1))
    right, up, near = (float(component) for component in actor.light)
    facing = ended * (axis_x * right - axis_y * up) - bent * (axis_y * right + axis_x * up) + towards * near
    glow = 0.58 + 0.5 * facing.clip(0, 1)
    if part.cloth:
        around, down = actor.cloth.shape[1] - 1, actor.cloth.shape[0] - 1
        glow *= actor.cloth[(inside * down).astype(np.intp), ((bent + 1) * (around / 2)).astype(np.intp)]
    patch = canvas[rows, columns]
    patch += cover[..., None] * (glow[..., None] * np.array(part.colour, np.float32) - patch)
    return box


def _profile(inside: Image32, radii: list[float]) -> Image32:
    """Interpolate evenly spaced radii linearly at places along a limb, from 0 to 1."""
    if len(radii) == 2:
        return radii[0] + (radii[1] - radii[0]) * inside
    return np.asarray(np.interp(inside, np.linspace(0, 1, len(radii)), radii), np.float32)


# -- encoding ----------------------------------------------------------------------------------------------------------

# Fast settings. With one thread, the bytes do not depend on the number of cores.
ENCODER_OPTIONS = {
    "libx264": {"preset": "veryfast", "crf": "20"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=none:pools=none:frame-threads=1"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "30", "b": "0"},
    "mpeg4": {"qscale": "3"},
    "mjpeg": {"qscale": "3"},
}


@contextmanager
def preserve_scheduling() -> Iterator[None]:
    """Restore this thread's scheduling policy at the end of the block.

    If root opens SVT-AV1, it makes the calling thread a real-time thread of the highest priority. That thread, and all
    that it starts later, would then keep everything else on the machine from running.
    """
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        if os.sched_getscheduler(0) != policy:
            os.sched_setscheduler(0, policy, parameters)


@preserve_scheduling()
def _encode(
    pictures: Iterator[npt.NDArray[np.uint8]], size: tuple[int, int], fps: int, codec: str, container: str
) -> bytes:
    file = io.BytesIO()
    # Without bitexact Matroska writes random identifiers.
    with av.open(file, "w", format=container, options={"fflags": "+bitexact"}) as output:
        stream = output.add_stream(codec, rate=fps, options=ENCODER_OPTIONS.get(codec, {}))
        if not isinstance(stream, av.VideoStream):
            raise ValueError(f"{codec} does not encode video")
        stream.width, stream.height = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.thread_count = 1
        for picture in pictures:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            output.mux(stream.encode(frame.reformat(*size, format=stream.pix_fmt)))
        output.mux(stream.encode())
    return file.getvalue()
