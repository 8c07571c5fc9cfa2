"""Heads as contenders: trains a head on each fold, once."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import keras

from model_export.data.examples import Example
from model_export.fitting import LogLine, epoch_line, fit_head, predict_probabilities
from model_export.judging.cross_validation import Contender
from model_export.network.arrays import Probabilities
from model_export.network.spec import HeadSpec
from model_export.recipe import Recipe, describe, settings
from model_export.reporter import SILENT, Reporter


@dataclass(frozen=True)
class HeadTrials:
    """Trains heads of one network and recipe on parts of the data; a head that was trained before is loaded.

    Attributes:
        spec: Which network.
        recipe: How each head is trained.
        classes: Number of classes.
        runs: Folder of checkpoints and logs.
        reporter: Receives each epoch.
    """

    spec: HeadSpec
    recipe: Recipe
    classes: int
    runs: Path
    reporter: Reporter = SILENT

    @cached_property
    def name(self) -> str:
        """Name for reports: the variant and, if it has attention, how cells are scored."""
        return "base" if self.spec.variant == "base" else f"attention ({self.spec.attention_scores})"

    def head(self, examples: Sequence[Example]) -> keras.Model:
        """Return the head trained on these examples."""
        identity = json.dumps([self.name, settings(self.spec, self.recipe), [e.features.name for e in examples]])
        run = self.runs / hashlib.sha256(identity.encode()).hexdigest()[:16]

        def tell(phase: str, line: LogLine) -> None:
            self.reporter.say(f"  {epoch_line(self.name, line)}")

        return fit_head(examples, self.classes, self.spec, self.recipe, run=run, tell=tell).model

    def contender(self) -> Contender:
        """Return the network and recipe as ``cross_validate`` takes them."""

        def fit(training: Sequence[Example], test: Sequence[Example]) -> Probabilities:
            return predict_probabilities(self.head(training), test)

        return Contender(self.name, fit, describe(self.spec, self.recipe))
