"""What a training keeps on disk, so that it continues after its last complete epoch."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from model_export.data.examples import Example, fingerprint
from model_export.errors import TrainingError
from model_export.fitting.log import LogLine
from model_export.network.arrays import Probabilities
from service.files import write_atomically

CLIPS = "set of features"


def claim(run: Path, examples: Sequence[Example], recipe: dict[str, Any]) -> None:
    """Check that the folder's checkpoints are of this recipe and these examples; mark a new folder with them."""
    file = run / "recipe.json"
    mine = {**recipe, CLIPS: fingerprint(examples)}
    run.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        file.write_text(json.dumps(mine, indent=1), encoding="utf-8")
    check_claim(run, mine)


def check_claim(run: Path, recipe: dict[str, Any]) -> None:
    """Check that the folder's checkpoints, if there are any, are of this recipe, of whichever clips if it has none."""
    file = run / "recipe.json"
    if not file.exists():
        return
    try:
        found = dict(json.loads(file.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise TrainingError(f"{file} is damaged; remove {run}, or choose another --output") from error
    mine = {CLIPS: found.get(CLIPS), **recipe}
    if other := sorted(key for key in mine.keys() | found.keys() if found.get(key) != mine.get(key)):
        raise TrainingError(
            f"the checkpoints in {run} belong to another {', '.join(other)}; "
            "remove the folder, or choose another --output"
        )


class Checkpoint:
    """The files of one training: weights with the optimizer's state, log, and answers for the clips held out.

    Args:
        run: Folder of the files.
        phase: Their name without suffixes, such as ``seed-0-holdout``.
        answers: Whether there are answers to keep.
    """

    def __init__(self, run: Path, phase: str, *, answers: bool) -> None:
        self.weights, self.log = run / f"{phase}.weights.h5", run / f"{phase}.csv"
        self.answers = run / f"{phase}.answers.npy" if answers else None

    def load(self, trainer: keras.Model, steps: int) -> tuple[list[LogLine], list[Probabilities]]:
        """Load the last complete epoch into ``trainer``; return the log and the answers of its epochs.

        Args:
            trainer: The compiled network; unchanged if nothing was saved.
            steps: Number of steps of an epoch.

        Raises:
            TrainingError: A file is damaged, or the weights are not finite.
        """
        files = [self.weights, self.log, *([self.answers] if self.answers else [])]
        if not all(file.exists() for file in files):
            return [], []
        try:
            with self.log.open(newline="", encoding="utf-8") as file:
                log = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
            answers = list(np.load(self.answers).astype(np.float64)) if self.answers else []
            trainer.load_weights(self.weights)
            epochs = int(trainer.optimizer.iterations) // steps
            if epochs > len(log) or (self.answers and epochs > len(answers)):
                raise ValueError(f"it has fewer epochs than {self.weights}")
        except (EOFError, KeyError, TypeError, ValueError, OSError) as error:
            names = ", ".join(file.name for file in files[1:])
            raise TrainingError(
                f"{self.weights}, or {names} beside it, is damaged; remove them, and run again"
            ) from error
        if not all(np.isfinite(weights).all() for weights in trainer.get_weights()):
            raise TrainingError(
                f"{self.weights} holds weights that are not finite; remove it, and lower --learning-rate"
            )
        return log[:epochs], answers[:epochs]

    def save(self, trainer: keras.Model, log: Sequence[LogLine], answers: Sequence[Probabilities]) -> None:
        """Save the state after an epoch.

        Raises:
            OSError: A file cannot be written.
        """
        write_atomically(self.log, lambda part: _write_log(part, log))
        if self.answers:
            write_atomically(self.answers, lambda part: np.save(part, np.array(answers, np.float32)))
        # Last: an epoch that is in the other files but not in the weights is trained again.
        write_atomically(self.weights, trainer.save_weights)


def _write_log(path: Path, log: Sequence[LogLine]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, log[0].keys())
        writer.writeheader()
        writer.writerows(log)
