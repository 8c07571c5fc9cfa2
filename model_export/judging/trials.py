"""Heads as contenders: trains a head on each fold, once."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import keras

from model_export.data.examples import Example, fingerprint
from model_export.fitting import LogLine, epoch_line, fit_head, predict_probabilities
from model_export.judging.cross_validation import Contender
from model_export.network.arrays import Probabilities
from model_export.network.spec import HeadSpec
from model_export.processes import Run, run_here
from model_export.recipe import Recipe, describe, settings
from model_export.reporter import Advance, Listener
from model_export.storing import file_name


@dataclass(frozen=True)
class HeadTrials:
    """Trains heads of one network and recipe on parts of the data; a head that was trained before is loaded.

    Attributes:
        spec: Which network.
        recipe: How each head is trained.
        classes: Number of classes.
        runs: Folder of checkpoints and logs.
        run: How trainings are run.
    """

    spec: HeadSpec
    recipe: Recipe
    classes: int
    runs: Path
    run: Run = run_here

    @property
    def name(self) -> str:
        """Name for reports: the variant, how cells are scored if it has attention, and whether motion is left out."""
        match self.spec.variant, self.spec.attention_scores:
            case "base", _:
                network = "base"
            case _, "uniform":
                network = "uniform attention"
            case _, scores:
                network = f"attention ({scores})"
        return network if self.spec.motion else f"{network}, without motion"

    def head(self, examples: Sequence[Example], say: Listener = lambda told: None) -> keras.Model:
        """Return the head trained on these examples; ``say`` receives a line for each epoch, and its progress."""
        identity = json.dumps([self.name, settings(self.spec, self.recipe), self.classes, fingerprint(examples)])
        folder = self.runs / hashlib.sha256(identity.encode()).hexdigest()[:16]

        def tell(phase: str, line: LogLine) -> None:
            say(f"  {epoch_line(self.name, line)}")

        def progress(advance: Advance) -> None:
            say(replace(advance, title=f"  {self.name}, {advance.title}"))

        recipe = self.recipe
        if recipe.tensorboard:
            events = recipe.tensorboard / file_name(self.name) / folder.name
            recipe = recipe.model_copy(update={"tensorboard": events})
        return fit_head(
            examples, self.classes, self.spec, recipe, run=folder, tell=tell, progress=progress, how=self.run
        ).model

    def predict(self, training: Sequence[Example], test: Sequence[Example], say: Listener) -> Probabilities:
        """Return what the head that is trained on the first examples answers for the second."""
        return predict_probabilities(self.head(training, say), test)

    def contender(self, say: Listener = lambda told: None) -> Contender:
        """Return the network and recipe as ``cross_validate`` takes them."""

        def fit(training: Sequence[Example], test: Sequence[Example]) -> Probabilities:
            return self.run(partial(self.predict, training, test), say)

        return Contender(self.name, fit, describe(self.spec, self.recipe))
