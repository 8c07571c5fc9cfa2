"""Trains a head on stored features with the code of ``PYTHONPATH``; ``bench_training`` starts it.

Arguments: folder of features, fields of ``HeadSpec`` as JSON, number of epochs. Prints a JSON list with wall and
processor time of a batch in seconds, for each epoch but the first.
"""

import json
import sys
import time
from itertools import pairwise
from pathlib import Path

from model_export.data.examples import Example
from model_export.fitting import fit_head
from model_export.network.spec import HeadSpec
from model_export.recipe import Recipe

BATCH, CLASSES = 16, 20


def main() -> None:
    """Train, and print the times."""
    folder, fields, epochs = sys.argv[1:]
    files = sorted(Path(folder).glob("*.npy"))
    examples = [Example(file, i % CLASSES, f"group {i}", f"clip {i}") for i, file in enumerate(files)]
    recipe = Recipe(epochs=int(epochs), holdout=0, batch_size=BATCH)
    marks: list[tuple[float, float]] = []
    fit_head(
        examples,
        CLASSES,
        HeadSpec(**json.loads(fields)),
        recipe,
        tell=lambda *_: marks.append((time.perf_counter(), time.process_time())),
    )
    batches = len(files) / BATCH
    print(json.dumps([((w - v) / batches, (q - p) / batches) for (v, p), (w, q) in pairwise(marks)]))


if __name__ == "__main__":
    main()
