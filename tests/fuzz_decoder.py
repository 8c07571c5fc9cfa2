"""`make fuzz-decoder`: decode damaged clips, each made from its number, in child processes.

A finding is an error other than ``ClipError``, a process that dies, takes too long, or takes more memory than a clip
may. It is reported by the clip's number; `ARGS="--first NUMBER --count 1"` reproduces it.
"""

import argparse
import os
import resource
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from service.errors import ClipError
from service.video.decoder import DecodeLimits, decode_clip
from tests.service.video.clips import numbered_clip

KINDS = (
    *(("libx264", container) for container in ("mp4", "matroska", "avi", "mpegts", "mpeg", "flv")),
    *(("libx265", container) for container in ("mp4", "mpegts")),
    *(("mpeg4", container) for container in ("avi", "mp4")),
    *(("libvpx", container) for container in ("webm", "ogg")),
    *(("mpeg1video", "mpeg"), ("mpeg2video", "mpegts"), ("msmpeg4", "avi"), ("mjpeg", "avi")),
    *(("libvpx-vp9", "webm"), ("libsvtav1", "mp4")),
)
LARGEST_REAL = 300_000
LIMITS = DecodeLimits(max_frames=2000, timeout_s=20)
PATIENCE_S = 120.0  # includes the start of the process
MEMORY = 4 * 2**30
PER_PROCESS = 500
HEADER = 4096
TELLING = (0, 1, 2**7 - 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)

Mutation = Callable[[bytearray, np.random.Generator], None]


def main() -> int:
    """Return the exit code: 0 without a finding, else 1."""
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
    deadline = time.monotonic() + seconds
    number, end = first, first + count if count else sys.maxsize
    findings = 0
    while number < end and time.monotonic() < deadline:
        last, trouble = run_child(number, min(PER_PROCESS, end - number), deadline)
        if trouble:
            findings += 1
            say(f"clip {last}: {trouble}")
        number = last + 1
    say(f"{number - first} clips, {findings} findings")
    return int(findings > 0)


def run_child(first: int, count: int, deadline: float) -> tuple[int, str]:
    """Return the number of the last clip that a child process began, and its fault, or an empty string."""
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
            while ready.select(PATIENCE_S):
                line = child.stdout.readline()
                if not line:
                    complaint = child.stderr.read().decode(errors="replace").strip().splitlines()
                    code = child.wait()
                    return last, f"exit code {code}: {complaint[-1] if complaint else ''}" if code else ""
                last = int(line)
                if time.monotonic() > deadline:
                    return last, ""
            return last, f"takes more than {PATIENCE_S:g} s"
        finally:
            child.kill()


def decode(first: int, count: int) -> None:
    """In the child process: print the number of each clip, then decode it."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    originals = list(clips())
    for number in range(first, first + count):
        say(str(number))
        try:
            decode_clip(damaged(originals, number), LIMITS)
        except ClipError:
            continue


def clips() -> Iterator[bytes]:
    """Yield small clips of every kind, and the real ones of LIMELIGHT_SHARED if there are any."""
    os.environ["SVT_LOG"] = "0"
    for codec, container in KINDS:
        yield numbered_clip(12, codec=codec, container=container)
    for path in sorted(Path(os.environ.get("LIMELIGHT_SHARED", "../shared"), "nasty").rglob("*.*")):
        if 0 < path.stat().st_size < LARGEST_REAL and path.suffix != ".json":
            yield path.read_bytes()


def damaged(originals: list[bytes], number: int) -> bytes:
    """Return a clip with a few mutations, which depend only on the number."""
    rng = np.random.default_rng(number)
    data = bytearray(originals[rng.integers(len(originals))])
    for _ in range(rng.integers(1, 8)):
        MUTATIONS[rng.integers(len(MUTATIONS))](data, rng)
    return bytes(data)


def place(data: bytearray, rng: np.random.Generator) -> int:
    """Pick a position, mostly near the start or the end, where the headers are."""
    near = int(rng.integers(min(len(data), HEADER) or 1))
    return (near, max(0, len(data) - 1 - near), int(rng.integers(len(data) or 1)))[rng.integers(3)]


def flip(data: bytearray, rng: np.random.Generator) -> None:
    if data:
        data[place(data, rng)] ^= 1 << int(rng.integers(8))


def overwrite(data: bytearray, rng: np.random.Generator) -> None:
    size = int(rng.choice([1, 2, 4, 8]))
    value = TELLING[rng.integers(len(TELLING))] % (1 << 8 * size)
    start = place(data, rng)
    data[start : start + size] = value.to_bytes(size, "big" if rng.integers(2) else "little")


def remove(data: bytearray, rng: np.random.Generator) -> None:
    start = place(data, rng)
    del data[start : start + int(rng.integers(1, 64))]


def repeat(data: bytearray, rng: np.random.Generator) -> None:
    start = place(data, rng)
    data[start:start] = data[start : start + int(rng.integers(1, 256))]


def shuffle(data: bytearray, rng: np.random.Generator) -> None:
    start, other, size = place(data, rng), place(data, rng), int(rng.integers(1, 64))
    data[start : start + size] = data[other : other + size]


def cut_off(data: bytearray, rng: np.random.Generator) -> None:
    del data[max(1, place(data, rng)) :]


MUTATIONS: tuple[Mutation, ...] = (flip, flip, flip, overwrite, overwrite, overwrite, remove, repeat, shuffle, cut_off)


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
