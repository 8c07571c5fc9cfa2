"""Time to serialise the answer of ``/predict``: 101 classes and 40 attention maps as JSON.

Compares ``answer_json`` with a pydantic model of lists, as in FastAPI's tutorial. With ``frames=jpeg`` the answer also
holds the sampled frames of a clip as JPEGs, which are encoded each time. The cases take turns, so that other load on
the machine affects all alike. The table goes to standard output.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from types import SimpleNamespace
from typing import cast

import numpy as np

from benchmarks.load import clips
from service.http.schemas import Attention, ModelFacts, PredictionAnswer, RankedLabel, Timings, answer_json
from service.model.bundle import Outputs
from service.pipeline import Prediction
from service.video.decoder import DecodedClip, decode_clip
from service.video.jpeg import frame_jpegs

LABELS = [f"Action{index}" for index in range(101)]
MODEL = ModelFacts(
    name="limelight", version="1", variant="attention", precision="fp32", provider="CPUExecutionProvider"
)
TIMINGS = Timings(receive=1.0, decode=25.1, queue=0.2, inference=1190.0, total=1217.0)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=300)
    rounds: int = parser.parse_args().rounds
    clip = decode_clip(clips(1)[0])
    prediction = made_up(clip)
    cases: dict[str, Callable[[], bytes]] = {
        "arrays by orjson (`answer_json`)": lambda: by_arrays(prediction),
        "the same, with `frames=jpeg`": lambda: by_arrays(made_up(clip, frame_jpegs(clip.frames, clip.sampled))),
        "pydantic model of lists": lambda: by_pydantic(prediction),
    }
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            start = time.perf_counter()
            case()
            seconds[name].append(time.perf_counter() - start)
    print("| answer with 101 classes and 40 maps | bytes | median, ms | 99th percentile, ms | n |")
    print("|---|---:|---:|---:|---:|")
    for name, values in seconds.items():
        median, tail = 1000 * statistics.median(values), 1000 * statistics.quantiles(values, n=100)[98]
        print(f"| {name} | {len(cases[name]())} | {median:.3f} | {tail:.3f} | {rounds} |")


def made_up(clip: DecodedClip, jpegs: tuple[bytes, ...] | None = None) -> Prediction:
    """Return a prediction whose numbers have as many digits as real ones."""
    rng = np.random.default_rng(0)
    return cast(
        Prediction,
        SimpleNamespace(
            clip=clip.facts,
            sampled=clip.sampled,
            outputs=Outputs(
                rng.dirichlet(np.ones(len(LABELS))).astype(np.float32),
                rng.dirichlet(np.ones(49), 40).astype(np.float32).reshape(40, 7, 7),
            ),
            jpegs=jpegs,
        ),
    )


def by_arrays(prediction: Prediction) -> bytes:
    """Return the answer as the service writes it."""
    return answer_json(prediction, model=MODEL, labels=LABELS, top_k=5, attention=True, timings_ms=TIMINGS)


def by_pydantic(prediction: Prediction) -> bytes:
    """Return the same answer, made from lists."""
    outputs = prediction.outputs
    assert outputs.attention is not None  # noqa: S101 - set above
    probabilities = outputs.probabilities.tolist()
    ranking = np.argsort(-outputs.probabilities, kind="stable")[:5].tolist()
    answer = PredictionAnswer.model_validate(
        {
            "model": MODEL,
            "clip": asdict(prediction.clip),
            "predictions": [RankedLabel(label=LABELS[i], index=i, probability=probabilities[i]) for i in ranking],
            "probabilities": probabilities,
            "attention": Attention(grid=(7, 7), maps=outputs.attention.astype(np.float64).round(7).tolist()),
            "frames": [asdict(frame) for frame in prediction.sampled],
            "timings_ms": TIMINGS,
        }
    )
    return answer.model_dump_json().encode()


if __name__ == "__main__":
    main()
