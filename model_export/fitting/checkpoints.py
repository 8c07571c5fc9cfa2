"""What a training keeps on disk, so that it continues after its last complete epoch."""

import csv
import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from model_export.data.examples import Example, fingerprint
from model_export.errors import TrainingError
from model_export.fitting.log import LogLine
from model_export.network.arrays import Probabilities
from model_export.storing import store

# Raise it if ``Checkpoint`` writes files that it did not read before.
FORMAT = 2
FORMAT_OF = "format of checkpoints"

CLIPS = "set of features"


def claim(run: Path, examples: Sequence[Example], recipe: dict[str, Any]) -> None:
    """Check that the folder's checkpoints are of this recipe and these examples; mark a new folder with them."""
    file = run / "recipe.json"
    mine = {**recipe, CLIPS: fingerprint(examples)}
    if not file.exists():
        store(file, json.dumps({**mine, FORMAT_OF: FORMAT}, indent=1))
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
    mine = {CLIPS: found.get(CLIPS), FORMAT_OF: FORMAT, **recipe}
    if other := sorted(key for key in mine.keys() | found.keys() if found.get(key) != mine.get(key)):
        raise TrainingError(
            f"the checkpoints in {run} belong to another {', '.join(other)}; "
            "remove the folder, or choose another --output"
        )


class Checkpoint:
    """The files of one training: its state after the last complete epoch, and its log.

    The state is the weights, the optimizer's variables, the log, and the answers for the clips held out, in one file,
    so that they are always of the same epoch. The log is also written as CSV, for people.

    Args:
        run: Folder of the files.
        phase: Their name without suffixes, such as ``seed-0-holdout``.
    """

    def __init__(self, run: Path, phase: str) -> None:
        self.state, self.log = run / f"{phase}.npz", run / f"{phase}.csv"

    def load(self, trainer: keras.Model) -> tuple[list[LogLine], list[Probabilities]]:
        """Load the last complete epoch into ``trainer``; return the log and the answers of its epochs.

        Args:
            trainer: The compiled network; unchanged if nothing was saved.

        Raises:
            TrainingError: The file is damaged, or the weights are not finite.
        """
        if not self.state.exists():
            return [], []
        try:
            with self.state.open("rb") as file, np.load(file) as kept:
                for number, variable in enumerate(_variables(trainer)):
                    variable.assign(kept[f"arr_{number}"])
                log, answers = json.loads(str(kept["log"])), list(kept["answers"].astype(np.float64))
        except (EOFError, KeyError, TypeError, ValueError, OSError, zipfile.BadZipFile) as error:
            raise TrainingError(f"{self.state} is damaged; remove it, and run again") from error
        if not all(np.isfinite(weights).all() for weights in trainer.get_weights()):
            raise TrainingError(f"{self.state} holds weights that are not finite; remove it, and lower --learning-rate")
        if log:
            store(self.log, _csv(log))  # the process may have been killed before it did so
        return log, answers

    def save(self, trainer: keras.Model, log: Sequence[LogLine], answers: Sequence[Probabilities]) -> None:
        """Save the state after an epoch.

        Raises:
            StorageError: The disk is full.
            OSError: A file cannot be written for another reason.
        """
        state = io.BytesIO()
        np.savez(
            state,
            *(np.asarray(variable) for variable in _variables(trainer)),
            log=np.array(json.dumps(log)),
            answers=np.array(answers, np.float32),
        )
        store(self.state, state.getbuffer())
        store(self.log, _csv(log))


def _variables(trainer: keras.Model) -> list[keras.Variable]:
    return [*trainer.weights, *trainer.optimizer.variables]


def _csv(log: Sequence[LogLine]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, log[0].keys())
    writer.writeheader()
    writer.writerows(log)
    return text.getvalue()
