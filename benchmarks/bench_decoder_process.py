"""Overhead of one decoder process per clip: milliseconds more than decoding the same clip in a thread.

The two take turns on every clip, so that other load on the machine affects both alike. The table goes to standard
output.
"""

import argparse
import asyncio
import contextlib
import functools
import statistics
import time
from collections.abc import Awaitable, Callable

from model_export.rendering.figure import render_clip
from service.isolation.processes import DecoderProcesses
from service.video.decoder import DecodedClip, DecodeLimits, decode_clip

Decode = Callable[[bytes], Awaitable[DecodedClip]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    rounds: int = parser.parse_args().rounds
    render = functools.partial(render_clip, width=320, height=240)
    clips = {
        "MPEG-4 in AVI, 320×240, 164 frames": render(frames=164, codec="mpeg4", container="avi").data,
        "H.264 in MP4, 320×240, 100 frames": render().data,
        "H.264 in MP4, 1280×720, 50 frames": render_clip(frames=50, width=1280, height=720).data,
    }
    with contextlib.closing(DecoderProcesses(DecodeLimits(), memory_bytes=2**31)) as processes:
        print("| clip | thread, median ms | process, median ms | difference | min–max difference | n |")
        print("|---|---:|---:|---:|---:|---:|")
        for name, data in clips.items():
            print(asyncio.run(row(name, data, in_thread, processes.decode, rounds)))


async def in_thread(data: bytes) -> DecodedClip:
    """Decode in a thread of this process."""
    return await asyncio.to_thread(decode_clip, data)


async def row(name: str, data: bytes, by_thread: Decode, by_process: Decode, rounds: int) -> str:
    """Return a row of the table; the first round is not counted."""
    pairs = [(await milliseconds(by_thread, data), await milliseconds(by_process, data)) for _ in range(rounds + 1)][1:]
    thread, process = (statistics.median(side) for side in zip(*pairs, strict=True))
    differences = [process - thread for thread, process in pairs]
    spread = f"{min(differences):.1f}–{max(differences):.1f}"
    return f"| {name} | {thread:.1f} | {process:.1f} | {statistics.median(differences):.1f} | {spread} | {rounds} |"


async def milliseconds(decode: Decode, data: bytes) -> float:
    """Return the time from the clip's bytes to its frames."""
    start = time.perf_counter()
    await decode(data)
    return 1000 * (time.perf_counter() - start)


if __name__ == "__main__":
    main()
