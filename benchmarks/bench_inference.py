"""Seconds per clip: each precision of a bundle on this machine, and decoding alone.

All cases take turns in every round, so that other load on the machine affects all alike. The table goes to standard
output and to the end of ``benchmarks/RESULTS.md``.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from benchmarks.report import REPOSITORY, argument_parser, publish
from model_export.rendering.figure import render_clip
from service.errors import BundleError, EngineError
from service.model.bundle import Bundle, Precision, load_bundle
from service.model.engine import Engine
from service.video.decoder import DecodedClip, decode_clip

Case = Callable[[], object]


def main() -> int:
    """Measure, print and record. Return the exit code: 2 if the bundle cannot be used, else 0."""
    options = _arguments()
    try:
        bundle = load_bundle(options.bundle)
        cases = _cases(bundle, options)
    except (BundleError, EngineError) as error:
        print(error, file=sys.stderr)
        return 2
    manifest = bundle.manifest
    facts = [
        f"Bundle: {manifest.name} {manifest.version}, {manifest.variant}, {len(manifest.labels)} classes",
        "Every case ran once in each round, in turn, after one round that is not counted.",
    ]
    seconds = measure(cases, options.rounds)
    publish("Inference and decoding, one clip at a time", facts, table(seconds), record=not options.no_record)
    return 0


def measure(cases: dict[str, Case], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each case in each round, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(rounds + 1):
        for name, case in cases.items():
            start = time.perf_counter()
            case()
            if turn > 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def table(seconds: dict[str, list[float]]) -> list[str]:
    """Return a row for each case."""
    rows = ["| case | median, s | min–max, s | n |"]
    for name, values in seconds.items():
        spread = f"{min(values):.3f}–{max(values):.3f}"
        rows.append(f"| {name} | {statistics.median(values):.3f} | {spread} | {len(values)} |")
    return rows


def _arguments() -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--bundle",
        type=Path,
        default=REPOSITORY / "bundle",
        help="folder of the bundle to measure (default: bundle/ of the checkout)",
    )
    parser.add_argument("--rounds", type=int, default=7, help="rounds of measurements (default 7)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="device to run on (default cpu)")
    parser.add_argument(
        "--precisions",
        nargs="+",
        choices=get_args(Precision),
        default=["fp32", "int8"],
        help="precisions to compare (default fp32 int8); add fp16 on a GPU",
    )
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    return options


def _cases(bundle: Bundle, options: argparse.Namespace) -> dict[str, Case]:
    rendered = render_clip("jumping_jacks").data
    clip = decode_clip(rendered)
    cases = {_engine_name(engine): _inference(engine, clip) for engine in _engines(bundle, options)}
    cases[f"decode_clip, {_describe(clip)}, rendered"] = lambda: decode_clip(rendered)
    if real := _real_clip():
        cases[f"decode_clip, {_describe(decode_clip(real))}, UCF-101"] = lambda: decode_clip(real)
    return cases


def _engines(bundle: Bundle, options: argparse.Namespace) -> list[Engine]:
    return [Engine(bundle, device=options.device, precision=precision) for precision in options.precisions]


def _inference(engine: Engine, clip: DecodedClip) -> Case:
    return lambda: engine.run([clip.frames])


def _engine_name(engine: Engine) -> str:
    return f"inference {engine.precision}, {engine.provider}, batch 1"


def _describe(clip: DecodedClip) -> str:
    facts = clip.facts
    return f"{facts.codec} in {facts.container}, {facts.width}×{facts.height}, {facts.frames} frames"


def _real_clip() -> bytes | None:
    """Return the first UCF-101 clip of the shared folder, if there is one."""
    shared = REPOSITORY / (os.environ.get("LIMELIGHT_SHARED") or "../shared")
    path = min((shared / "clips" / "ucf101").glob("*/*.avi"), default=None)
    return path.read_bytes() if path else None


if __name__ == "__main__":
    sys.exit(main())
