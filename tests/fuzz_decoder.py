"""Fuzzes the decoder with damaged clips until time is up (``make fuzz-decoder``).

Each clip is made from its number, and child processes decode them. A finding is an error other than ``ClipError``, or a
child process that dies, hangs, or uses more memory than allowed. It is reported with the clip's number;
``make fuzz-decoder ARGS="--first NUMBER --count 1"`` reproduces it.
"""

import argparse
import os
import resource
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from service.errors import ClipError
from service.video.decoder import DecodeLimits, decode_clip
from tests.service.video.clips import numbered_clip


@dataclass(frozen=True, slots=True)
class Kind:
    """A codec in a container.

    Attributes:
        codec: FFmpeg's name of the encoder.
        container: FFmpeg's name of the muxer.
        pix_fmt: Pixel format.
        size: Width and height, in pixels.
        options: Options of the encoder.
    """

    codec: str
    container: str
    pix_fmt: str | None = None
    size: tuple[int, int] = (64, 48)
    options: Mapping[str, str] | None = None

    def render(self, frames: int) -> bytes:
        """Encode a small clip."""
        return numbered_clip(
            frames,
            codec=self.codec,
            container=self.container,
            pix_fmt=self.pix_fmt,
            size=self.size,
            options=self.options,
        )


KINDS = (
    *(Kind("libx264", container) for container in ("mp4", "matroska", "avi", "mpegts", "mpeg", "flv", "asf")),
    *(Kind("libx265", container) for container in ("mp4", "mpegts")),
    *(Kind("mpeg4", container) for container in ("avi", "mp4", "mpegts", "asf")),
    *(Kind("libvpx", container) for container in ("webm", "ogg")),
    *(Kind("mpeg1video", container) for container in ("mpeg", "vcd")),
    *(Kind("msmpeg4", container) for container in ("avi", "asf")),
    *(Kind("msmpeg4v2", container) for container in ("avi", "asf")),
    Kind("mpeg2video", "mpegts"),
    Kind("mjpeg", "avi"),
    Kind("libvpx-vp9", "webm"),
    Kind("libsvtav1", "mp4"),
    Kind("wmv1", "asf"),
    *(Kind("wmv2", container) for container in ("asf", "avi")),
    *(Kind("flv", container) for container in ("flv", "avi")),
    *(Kind("dvvideo", container, size=(720, 576)) for container in ("dv", "avi", "mov")),
    *(Kind("prores_ks", "mov", pix_fmt) for pix_fmt in ("yuv422p10le", "yuva444p10le")),
    Kind("dnxhd", "mov", "yuv422p", (256, 128), {"profile": "dnxhr_lb"}),
    *(Kind("rawvideo", "avi", pix_fmt) for pix_fmt in ("yuv420p", "bgr24", "gray")),
    *(Kind("rawvideo", container, "yuv420p") for container in ("matroska", "mov")),
    Kind("huffyuv", "avi", "yuv422p"),
    Kind("ffvhuff", "avi"),
    *(Kind("ffv1", container) for container in ("avi", "matroska")),
    Kind("ffv1", "matroska", "bgr0", options={"level": "3", "slices": "4", "slicecrc": "1"}),
)
MAX_REAL_BYTES = 300_000  # larger real clips are left out, because they take long to decode
LIMITS = DecodeLimits(max_frames=2000, timeout_s=20)
HANG_TIMEOUT_S = 120.0  # for one clip; for the first, the child process must start, too
MEMORY_BYTES = 4 * 2**30
CLIPS_PER_PROCESS = 500
HEADER_BYTES = 4096
# Integers at the limits of common types.
BOUNDARY_VALUES = (0, 1, 2**7 - 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)

Mutation = Callable[[bytearray, np.random.Generator], None]


def main() -> int:
    """Run the command line. Returns the exit code: 0 without a finding, 1 otherwise."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seconds", type=float, default=600.0, help="stop after this many seconds (default: 600)")
    arguments.add_argument("--first", type=int, default=0, help="number of the first clip (default: 0)")
    arguments.add_argument("--count", type=int, help="number of clips (default: as many as the time allows)")
    arguments.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.child:
        decode(options.first, options.count)
        return 0
    return drive(options.seconds, options.first, options.count)


def drive(seconds: float, first: int, count: int | None) -> int:
    """Decode clips in child processes and report findings. Returns the exit code."""
    deadline = time.monotonic() + seconds
    number, end = first, first + count if count else sys.maxsize
    findings = 0
    while number < end and time.monotonic() < deadline:
        last, finding = run_child(number, min(CLIPS_PER_PROCESS, end - number), deadline)
        if finding:
            findings += 1
            say(f"clip {last}: {finding}")
        number = last + 1
    say(f"{number - first} clips, {findings} findings")
    return int(findings > 0)


def run_child(first: int, count: int, deadline: float) -> tuple[int, str]:
    """Decode clips in one child process.

    Returns:
        The number of the last clip that the child began to decode, and a description of the finding, empty if there
        is none.
    """
    command = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "tests.fuzz_decoder",
        "--child",
        f"--first={first}",
        f"--count={count}",
    ]
    last = first - 1
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child,
        selectors.DefaultSelector() as ready,
    ):
        assert child.stdout
        assert child.stderr
        ready.register(child.stdout, selectors.EVENT_READ)
        try:
            while ready.select(HANG_TIMEOUT_S):
                line = child.stdout.readline()
                if not line:
                    errors = child.stderr.read().decode(errors="replace").strip().splitlines()
                    code = child.wait()
                    return last, f"exit code {code}: {errors[-1] if errors else ''}" if code else ""
                last = int(line)
                if time.monotonic() > deadline:
                    return last, ""
            return last, f"takes more than {HANG_TIMEOUT_S:g} s"
        finally:
            child.kill()


def decode(first: int, count: int) -> None:
    """Decode clips in a child process. Prints each clip's number before decoding it."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    originals = list(clips())
    for number in range(first, first + count):
        say(str(number))
        try:
            decode_clip(damaged(originals, number), LIMITS)
        except ClipError:
            continue


def clips() -> Iterator[bytes]:
    """Yield small clips of every kind, and the odd real files in ``LIMELIGHT_SHARED``, if any."""
    os.environ["SVT_LOG"] = "0"
    for kind in KINDS:
        yield kind.render(3 if kind.codec == "dvvideo" else 12)  # frames of DV are large
    for path in sorted(Path(os.environ.get("LIMELIGHT_SHARED") or "../shared", "nasty").rglob("*.*")):
        if 0 < path.stat().st_size < MAX_REAL_BYTES and path.suffix != ".json":
            yield path.read_bytes()


def damaged(originals: list[bytes], number: int) -> bytes:
    """Return a clip with a few mutations, which depend on ``number`` only."""
    rng = np.random.default_rng(number)
    data = bytearray(originals[rng.integers(len(originals))])
    for _ in range(rng.integers(1, 8)):
        MUTATIONS[rng.integers(len(MUTATIONS))](data, rng)
    return bytes(data)


def choose_offset(data: bytearray, rng: np.random.Generator) -> int:
    """Choose an offset: two out of three are near the start or the end, where the headers are."""
    near = int(rng.integers(min(len(data), HEADER_BYTES) or 1))
    return (near, max(0, len(data) - 1 - near), int(rng.integers(len(data) or 1)))[rng.integers(3)]


def flip(data: bytearray, rng: np.random.Generator) -> None:
    if data:
        data[choose_offset(data, rng)] ^= 1 << int(rng.integers(8))


def overwrite(data: bytearray, rng: np.random.Generator) -> None:
    size = int(rng.choice([1, 2, 4, 8]))
    value = BOUNDARY_VALUES[rng.integers(len(BOUNDARY_VALUES))] % (1 << 8 * size)
    start = choose_offset(data, rng)
    data[start : start + size] = value.to_bytes(size, "big" if rng.integers(2) else "little")


def remove(data: bytearray, rng: np.random.Generator) -> None:
    start = choose_offset(data, rng)
    del data[start : start + int(rng.integers(1, 64))]


def repeat(data: bytearray, rng: np.random.Generator) -> None:
    start = choose_offset(data, rng)
    data[start:start] = data[start : start + int(rng.integers(1, 256))]


def copy_over(data: bytearray, rng: np.random.Generator) -> None:
    start, other, size = choose_offset(data, rng), choose_offset(data, rng), int(rng.integers(1, 64))
    data[start : start + size] = data[other : other + size]


def truncate(data: bytearray, rng: np.random.Generator) -> None:
    del data[max(1, choose_offset(data, rng)) :]


MUTATIONS: tuple[Mutation, ...] = (
    flip,
    flip,
    flip,
    overwrite,
    overwrite,
    overwrite,
    remove,
    repeat,
    copy_over,
    truncate,
)


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
