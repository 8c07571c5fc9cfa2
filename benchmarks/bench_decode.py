"""Wall and processor time per clip: our decoder against OpenCV, decord and torchcodec, for the same frames.

The others are installed in an environment of their own (.bench/venv, see ``make bench-decode``); a missing one is
skipped. "Sequential" is PyAV in our environment, decoding every frame. Clips are rendered once, into .bench/clips. All
contenders take turns on each clip in every round, so that other load on the machine affects all alike, and each is
limited to as many cores as it is given threads. The table goes to standard output and to the end of
``benchmarks/RESULTS.md``.

``--before CHECKOUT`` adds the decoder of another checkout of this repository and a row with the ratio of both.
"""

import json
import math
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, cycle, islice
from pathlib import Path
from typing import IO, cast

import av
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream

from benchmarks.report import REPOSITORY, argument_parser, publish
from model_export.rendering.figure import preserve_scheduling, render_clip
from service.video.decoder import DecodeLimits, decode_clip

BENCH = REPOSITORY / ".bench"
CLIPS_FOLDER = BENCH / "clips"
OTHERS_PYTHON = BENCH / "venv" / "bin" / "python"
NOW, BEFORE = "limelight", "limelight-before"
OURS = (NOW, BEFORE, "sequential")
OTHERS = ("opencv", "decord", "torchcodec") if OTHERS_PYTHON.exists() else ()
FPS = 25


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip to render. ``repeats`` repeats its pictures, for a long clip, which is measured once."""

    name: str
    file: str
    width: int
    height: int
    seconds: int
    codec: str
    options: dict[str, str]
    repeats: int = 1


X264 = {"preset": "veryfast", "crf": "23", "g": "250"}
CLIPS = (
    # Like UCF-101's clips: a keyframe every 12 frames, no B-frames, half a megabit per second.
    Clip(
        "Xvid as in UCF-101, 320×240, 7 s",
        "xvid.avi",
        320,
        240,
        7,
        "mpeg4",
        {"b": "500000", "g": "12", "qmin": "1"},
    ),
    Clip("H.264, 720p, no B-frames, 20 s", "h264-720-p.mp4", 1280, 720, 20, "libx264", X264 | {"bf": "0"}),
    Clip("H.264, 720p, B-frames, 20 s", "h264-720-b.mp4", 1280, 720, 20, "libx264", X264 | {"bf": "3"}),
    Clip("H.264, 1080p, no B-frames, 20 s", "h264-1080-p.mp4", 1920, 1080, 20, "libx264", X264 | {"bf": "0"}),
    Clip("H.264, 1080p, B-frames, 20 s", "h264-1080-b.mp4", 1920, 1080, 20, "libx264", X264 | {"bf": "3"}),
    Clip(
        "HEVC, 720p, 20 s",
        "hevc.mp4",
        1280,
        720,
        20,
        "libx265",
        {"preset": "veryfast", "x265-params": "log-level=none"},
    ),
    Clip("VP9, 720p, 20 s", "vp9.webm", 1280, 720, 20, "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
    Clip("AV1, 720p, 20 s", "av1.mp4", 1280, 720, 20, "libsvtav1", {"preset": "10"}),
    Clip("H.264, 720p, B-frames, 10 min", "h264-long.mp4", 1280, 720, 20, "libx264", X264 | {"bf": "3", "g": "50"}, 30),
)


def main() -> None:
    """Measure, print and record."""
    parser = argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="rounds of measurements (default 7)")
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads to give each contender (default 1 2)"
    )
    parser.add_argument("--only", default="", help="measure only clips whose name contains this")
    parser.add_argument("--before", type=Path, help="a checkout whose decoder is compared with this one's")
    options = parser.parse_args()
    names = [name for name in (*OURS, *OTHERS) if name != BEFORE or options.before]
    clips = [(clip, made(clip)) for clip in CLIPS if options.only in clip.name]
    load = os.getloadavg()[0]
    table = ["| clip | threads | decoder | median, ms | min–max, ms | processor seconds |"]
    started = (
        measure(clips, threads, options.rounds, names, options.before or REPOSITORY) for threads in options.threads
    )
    for row in chain.from_iterable(started):
        print(row, file=sys.stderr, flush=True)
        table.append(row)
    facts = [
        f"Load average before: {load:.1f}; others: {', '.join(versions()) or 'none'}",
        "All ran once in each round, in turn, after one round that is not counted. Ours decodes in one thread.",
        "The long clip was decoded once, the first time.",
    ]
    publish("Decoding 40 frames of a clip", facts, table, record=not options.no_record)


def measure(
    clips: Sequence[tuple[Clip, Path]], threads: int, rounds: int, names: Sequence[str], before: Path
) -> Iterator[str]:
    """Yield a row of the table for each clip and contender."""
    with ExitStack() as stack:
        checkouts = {name: before if name == BEFORE else REPOSITORY for name in names}
        started = {
            name: stack.enter_context(closing(Contender(name, threads, checkout)))
            for name, checkout in checkouts.items()
        }
        contenders = {name: contender for name, contender in started.items() if contender.there}
        for clip, path in clips:
            wanted = [frame.index for frame in decode_clip(path, DecodeLimits(timeout_s=600)).sampled]
            turns = [
                {name: contenders[name].decode(path, wanted) for name in order}
                for order in islice(orders(list(contenders)), rounds + 1 if clip.repeats == 1 else 1)
            ]
            for name in contenders:
                times = [seconds for turn in turns[-rounds:] if (seconds := turn[name])]
                yield f"| {clip.name} | {threads} | {name} | {figures(times) if times else 'cannot | |'} |"
            pairs = [(now, then) for turn in turns[-rounds:] if (now := turn[NOW]) and (then := turn.get(BEFORE))]
            if pairs:
                yield f"| {clip.name} | {threads} | {NOW} : {BEFORE} | | | {ratio(pairs)} |"


def orders(names: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield the order of turns in each round: forwards and backwards, so that none always comes after the same one."""
    return cycle([names, names[::-1]])


def figures(turns: Sequence[Mapping[str, float]]) -> str:
    """Return the last columns of a row: median and range of wall time, median of processor time."""
    clock = [1000 * turn["clock"] for turn in turns]
    processors = statistics.median(turn["processors"] for turn in turns)
    return f"{statistics.median(clock):.0f} | {min(clock):.0f}–{max(clock):.0f} | {processors:.3f}"


def ratio(pairs: Sequence[tuple[Mapping[str, float], Mapping[str, float]]]) -> str:
    """Return the median ratio of processor time over all rounds, with its 95 % interval: ranks n/2 ± 0.98·√n."""
    ratios = sorted(now["processors"] / then["processors"] for now, then in pairs)
    low = max(0, math.floor(len(ratios) / 2 - 0.98 * math.sqrt(len(ratios))))
    return f"{statistics.median(ratios):.3f} ({ratios[low]:.3f}–{ratios[-1 - low]:.3f})"


class Contender:
    """A library in a process of its own that decodes clips on request."""

    def __init__(self, name: str, threads: int, checkout: Path) -> None:
        python = sys.executable if name in OURS else str(OTHERS_PYTHON)
        command = [python, str(REPOSITORY / "benchmarks" / "decode_contender.py"), name, str(threads)]
        environment = os.environ | {"PYTHONPATH": str(checkout.resolve())}
        environment |= {"LD_LIBRARY_PATH": ffmpeg_of_pyav()} if name == "torchcodec" else {}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.there = self._read() == "ready"

    def decode(self, path: Path, wanted: Sequence[int]) -> dict[str, float] | None:
        """Return wall and processor seconds for a clip's wanted frames, or ``None`` if it cannot decode them."""
        print(path, ",".join(map(str, wanted)), file=self._process.stdin, flush=True)
        return cast(dict[str, float] | None, json.loads(self._read()))

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _read(self) -> str:
        return cast(IO[str], self._process.stdout).readline().strip()


def ffmpeg_of_pyav() -> str:
    """Return folders in which torchcodec, which has no FFmpeg of its own, finds PyAV's under the usual names."""
    bundled = Path(av.__file__).resolve().parents[1] / "av.libs"
    known = BENCH / "ffmpeg"
    known.mkdir(parents=True, exist_ok=True)
    for library in bundled.glob("lib[as][vw]*"):
        link = known / re.sub(r"-\w+(\.so\.\d+).*", r"\1", library.name)
        link.unlink(missing_ok=True)
        link.symlink_to(library)
    return f"{known}:{bundled}"


def made(clip: Clip) -> Path:
    """Return the clip's file; render it if it does not exist."""
    path = CLIPS_FOLDER / clip.file
    if not path.exists():
        unfinished = path.with_stem(f"{path.stem}.part")
        encode(pictures(clip), clip, unfinished)
        unfinished.rename(path)
    return path


def pictures(clip: Clip) -> Iterator[VideoFrame]:
    """Yield the pictures in the clip's size, forwards and backwards in turn."""
    with av.open(str(drawing()), "r") as source:
        drawn = [frame.reformat(clip.width, clip.height, "yuv420p") for frame in source.decode(video=0)]
    order = cycle(chain(range(len(drawn)), range(len(drawn) - 2, 0, -1)))
    for number, place in enumerate(islice(order, FPS * clip.seconds)):
        picture = drawn[place]
        picture.pts, picture.time_base = number, Fraction(1, FPS)
        picture.pict_type = PictureType.NONE  # else encoders would make it a keyframe, as it was when decoded
        yield picture


def drawing() -> Path:
    """Return the file with the five seconds that every clip is made of; render it if it does not exist."""
    path = CLIPS_FOLDER / "drawing.avi"
    if not path.exists():
        CLIPS_FOLDER.mkdir(parents=True, exist_ok=True)
        path.write_bytes(render_clip(frames=5 * FPS, width=1920, height=1080, codec="mjpeg", container="avi").data)
    return path


@preserve_scheduling()
def encode(drawn: Iterable[VideoFrame], clip: Clip, path: Path) -> None:
    """Encode the pictures with the clip's codec, as often as it repeats them."""
    with av.open(str(path), "w") as output:
        stream = cast(VideoStream, output.add_stream(clip.codec, rate=FPS, options=clip.options))
        stream.width, stream.height, stream.pix_fmt = clip.width, clip.height, "yuv420p"
        packets = [packet for picture in drawn for packet in stream.encode(picture)] + stream.encode()
        for repeat in range(clip.repeats):
            for packet in packets:
                again = av.Packet(bytes(packet))
                again.stream, again.time_base, again.is_keyframe = stream, packet.time_base, packet.is_keyframe
                shift = int(repeat * clip.seconds / packet.time_base)
                again.pts, again.dts = (packet.pts or 0) + shift, (packet.dts or 0) + shift
                output.mux_one(again)


def versions() -> list[str]:
    """Return names and versions of the packages in the others' environment."""
    if not OTHERS:
        return []
    command = [str(OTHERS_PYTHON), "-m", "pip", "list", "--format=freeze"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return [line.replace("==", " ") for line in listed if line.startswith(OTHERS)]


if __name__ == "__main__":
    main()
