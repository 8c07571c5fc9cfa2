"""Milliseconds and processor seconds a clip: our decoder against OpenCV, decord and torchcodec, on the same frames.

The others live in an environment of their own (.bench/venv, see `make bench-decode`); one that is not there is left
out. "Sequential" is PyAV, in our environment, decoding every frame. Clips are drawn and encoded by code, once, into
.bench/clips. All contenders take turns on each clip in every round, so that whatever else the machine does falls on all
of them alike, and are held to as many cores as they are given threads. The table goes to standard output and to the end
of benchmarks/RESULTS.md.
"""

import argparse
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from itertools import chain, cycle, islice
from pathlib import Path
from typing import IO, cast

import av
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream

from model_export.rendering.figure import keeps_scheduling, render_clip
from service.video.decoder import DecodeLimits, decode_clip

REPOSITORY = Path(__file__).resolve().parents[1]
BENCH = REPOSITORY / ".bench"
CLIPS_FOLDER = BENCH / "clips"
OTHERS_PYTHON = BENCH / "venv" / "bin" / "python"
RESULTS = REPOSITORY / "benchmarks" / "RESULTS.md"
OURS = ("limelight", "sequential")
OTHERS = ("opencv", "decord", "torchcodec") if OTHERS_PYTHON.exists() else ()
FPS = 25


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip to draw and encode; `repeats` plays it so many times over, for a long one, which is measured once."""

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
    # What UCF-101's have: a keyframe every 12 frames, no B-frames, half a megabit a second.
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
    """Measures, prints and records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="measurements of every case (default 7)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of each contender (default 1 2)")
    parser.add_argument("--only", default="", help="only clips with this in their name")
    parser.add_argument("--no-record", action="store_true", help="leave RESULTS.md as it is")
    options = parser.parse_args()
    clips = [(clip, made(clip)) for clip in CLIPS if options.only in clip.name]
    load = os.getloadavg()[0]
    rows = []
    for row in chain.from_iterable(measure(clips, threads, options.rounds) for threads in options.threads):
        print(row, file=sys.stderr, flush=True)
        rows.append(row)
    section = report(rows, load)
    print(section)
    if not options.no_record:
        with RESULTS.open("a", encoding="utf-8") as results:
            results.write(section)


def measure(clips: Sequence[tuple[Clip, Path]], threads: int, rounds: int) -> Iterator[str]:
    """A row of the table for each clip and contender."""
    with ExitStack() as stack:
        started = {name: stack.enter_context(closing(Contender(name, threads))) for name in (*OURS, *OTHERS)}
        contenders = {name: contender for name, contender in started.items() if contender.there}
        for clip, path in clips:
            wanted = [frame.index for frame in decode_clip(path, DecodeLimits(timeout_s=600)).sampled]
            turns = [
                {name: contender.decode(path, wanted) for name, contender in contenders.items()}
                for _ in range(rounds + 1 if clip.repeats == 1 else 1)
            ]
            for name in contenders:
                times = [seconds for turn in turns[-rounds:] if (seconds := turn[name])]
                yield f"| {clip.name} | {threads} | {name} | {figures(times) if times else 'cannot | |'} |"


def figures(turns: Sequence[Mapping[str, float]]) -> str:
    """The last columns of a row: median and spread by the clock, median of processors."""
    clock = [1000 * turn["clock"] for turn in turns]
    processors = statistics.median(turn["processors"] for turn in turns)
    return f"{statistics.median(clock):.0f} | {min(clock):.0f}–{max(clock):.0f} | {processors:.3f}"


class Contender:
    """A library in a process of its own, waiting for clips."""

    def __init__(self, name: str, threads: int) -> None:
        python = sys.executable if name in OURS else str(OTHERS_PYTHON)
        command = [python, str(REPOSITORY / "benchmarks" / "decode_contender.py"), name, str(threads)]
        environment = os.environ | ({"LD_LIBRARY_PATH": ffmpeg_of_pyav()} if name == "torchcodec" else {})
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.there = self._read() == "ready"

    def decode(self, path: Path, wanted: Sequence[int]) -> dict[str, float] | None:
        """Seconds by the clock and of processors that a clip's wanted frames take; None where it cannot."""
        print(path, ",".join(map(str, wanted)), file=self._process.stdin, flush=True)
        return cast(dict[str, float] | None, json.loads(self._read()))

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()

    def _read(self) -> str:
        return cast(IO[str], self._process.stdout).readline().strip()


def ffmpeg_of_pyav() -> str:
    """Folders where torchcodec, which brings no FFmpeg, finds PyAV's under the names that it knows."""
    bundled = Path(av.__file__).resolve().parents[1] / "av.libs"
    known = BENCH / "ffmpeg"
    known.mkdir(parents=True, exist_ok=True)
    for library in bundled.glob("lib[as][vw]*"):
        link = known / re.sub(r"-\w+(\.so\.\d+).*", r"\1", library.name)
        link.unlink(missing_ok=True)
        link.symlink_to(library)
    return f"{known}:{bundled}"


def made(clip: Clip) -> Path:
    """The clip's file, encoded if it is not there yet."""
    path = CLIPS_FOLDER / clip.file
    if not path.exists():
        unfinished = path.with_stem(f"{path.stem}.part")
        encode(pictures(clip), clip, unfinished)
        unfinished.rename(path)
    return path


def pictures(clip: Clip) -> Iterator[VideoFrame]:
    """The drawing in the clip's size, played forwards and backwards in turn."""
    with av.open(str(drawing()), "r") as source:
        drawn = [frame.reformat(clip.width, clip.height, "yuv420p") for frame in source.decode(video=0)]
    order = cycle(chain(range(len(drawn)), range(len(drawn) - 2, 0, -1)))
    for number, place in enumerate(islice(order, FPS * clip.seconds)):
        picture = drawn[place]
        picture.pts, picture.time_base = number, Fraction(1, FPS)
        picture.pict_type = PictureType.NONE  # it says "intra" of itself, which encoders take for a wish
        yield picture


def drawing() -> Path:
    """Five seconds that every clip is made of, drawn if they are not there yet."""
    path = CLIPS_FOLDER / "drawing.avi"
    if not path.exists():
        CLIPS_FOLDER.mkdir(parents=True, exist_ok=True)
        path.write_bytes(render_clip(frames=5 * FPS, width=1920, height=1080, codec="mjpeg", container="avi").data)
    return path


@keeps_scheduling()
def encode(drawn: Iterable[VideoFrame], clip: Clip, path: Path) -> None:
    """Writes the pictures in the codec that is asked for, as many times over."""
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


def report(rows: Sequence[str], load: float) -> str:
    """The section of RESULTS.md: what was measured where, when and how, and the table."""
    machine = f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores"
    others = ", ".join(versions()) or "none"
    lines = [
        f"\n## Decoding 40 frames of a clip, {datetime.now(UTC):%Y-%m-%d}\n",
        f"- Machine: {machine}, load average {load:.1f} before",
        f"- Software: Python {platform.python_version()}, av {av.__version__}; others: {others}",
        f"- Command: `{shlex.join(['python', 'benchmarks/bench_decode.py', *sys.argv[1:]])}`",
        "- All ran once in each round, in turn, after one round that is not counted. Ours decodes in one thread.",
        "- The long clip was decoded once, the first time.\n",
        "| clip | threads | decoder | median, ms | min–max, ms | processor seconds |",
        "|---|---:|---|---:|---:|---:|",
    ]
    return "\n".join([*lines, *rows]) + "\n"


def versions() -> list[str]:
    """What is in the others' environment."""
    if not OTHERS:
        return []
    command = [str(OTHERS_PYTHON), "-m", "pip", "list", "--format=freeze"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return [line.replace("==", " ") for line in listed if line.startswith(OTHERS)]


if __name__ == "__main__":
    main()
