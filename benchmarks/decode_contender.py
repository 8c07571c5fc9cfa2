"""One contender of ``bench_decode.py``, in a process and an environment of its own.

For each line on standard input, ``path index,index,…``, it decodes those frames of that file to 224×224 RGB in its
library's fastest way, and prints a line of JSON: wall and processor seconds, or ``null`` if it cannot.
"""

import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Sized
from typing import Any

SIZE = 224

Decode = Callable[[str, list[int]], Sized]


def main() -> None:
    """Run as ``decode_contender.py NAME THREADS``. Prints ``ready`` once its library is imported."""
    threads = int(sys.argv[2])
    # Some libraries start more threads than asked for (dav1d in OpenCV), so the cores are limited, too.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])
    try:
        decode = CONTENDERS[sys.argv[1]](threads)
    except (ImportError, RuntimeError) as error:  # torchcodec raises the latter if it finds no FFmpeg
        print(error, file=sys.stderr)
        return
    print("ready", flush=True)
    for line in sys.stdin:
        path, _, indices = line.rstrip("\n").rpartition(" ")
        wanted = [int(index) for index in indices.split(",")]
        clock, processors = time.perf_counter(), _processor_seconds()
        try:
            decoded = len(decode(path, wanted))
            if decoded < len(set(wanted)):  # OpenCV does not raise
                raise ValueError(f"{decoded} frames of {len(set(wanted))}")
        except Exception as error:  # each library raises errors of its own
            print(json.dumps(None), flush=True)
            print(f"{sys.argv[1]} cannot decode {path}: {error}", file=sys.stderr)
            continue
        answer = {"clock": time.perf_counter() - clock, "processors": _processor_seconds() - processors}
        print(json.dumps(answer), flush=True)


def _processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _limelight(threads: int) -> Decode:
    """Use one thread, whatever ``threads`` is, because the service decodes several clips at a time instead."""
    decoder = importlib.import_module("service.video.decoder")
    return lambda path, _: decoder.decode_clip(path).frames


def _sequential(threads: int) -> Decode:
    """Decode every frame up to the last wanted one, as users of PyAV do."""
    av = importlib.import_module("av")
    reformatter = importlib.import_module("av.video.reformatter").VideoReformatter()

    def decode(path: str, wanted: list[int]) -> list[Any]:
        last, frames = max(wanted), []
        with av.open(path) as container:
            stream = container.streams.video[0]
            stream.thread_type, stream.thread_count = ("AUTO" if threads > 1 else "NONE"), threads
            for index, frame in enumerate(container.decode(stream)):
                if index in wanted:
                    frames.append(reformatter.reformat(frame, SIZE, SIZE, "rgb24").to_ndarray())
                if index == last:
                    break
        return frames

    return decode


def _opencv(threads: int) -> Decode:
    """Grab every frame up to the last wanted one and convert the wanted ones, because seeking is not exact."""
    cv2 = importlib.import_module("cv2")
    cv2.setNumThreads(threads)

    def decode(path: str, wanted: list[int]) -> list[Any]:
        video = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, threads])
        frames = {}
        for index in range(max(wanted) + 1):
            if not video.grab():
                break
            if index in wanted:
                _, frame = video.retrieve()
                frames[index] = cv2.cvtColor(cv2.resize(frame, (SIZE, SIZE)), cv2.COLOR_BGR2RGB)
        return list(frames.values())

    return decode


def _decord(threads: int) -> Decode:
    decord = importlib.import_module("decord")

    def decode(path: str, wanted: list[int]) -> Any:
        video = decord.VideoReader(path, num_threads=threads, width=SIZE, height=SIZE)
        return video.get_batch(wanted).asnumpy()

    return decode


def _torchcodec(threads: int) -> Decode:
    torch, decoders = importlib.import_module("torch"), importlib.import_module("torchcodec.decoders")
    torch.set_num_threads(threads)

    def decode(path: str, wanted: list[int]) -> Any:
        frames = decoders.VideoDecoder(path, num_ffmpeg_threads=threads).get_frames_at(wanted).data
        return torch.nn.functional.interpolate(frames.float(), (SIZE, SIZE), mode="bilinear")

    return decode


CONTENDERS = {
    "limelight": _limelight,
    "limelight-before": _limelight,
    "sequential": _sequential,
    "opencv": _opencv,
    "decord": _decord,
    "torchcodec": _torchcodec,
}


if __name__ == "__main__":
    main()
