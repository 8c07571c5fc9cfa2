"""A trained head on disk: the folder that ``train`` writes and ``export`` reads.

head.json           what it is and how it was made (``HeadFacts``)
head.weights.h5     its weights, as Keras saves them; VGG19's are not among them
calibration.json    ranges of VGG19's activations over real clips, for int8 (ONNX Runtime's calibration cache)
agreement.json      how often each precision agreed with Keras, where ``verify`` measured it
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import keras
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model_export.network.classifier import build_head
from service.model.bundle import Agreement, Precision

PRETRAINED = Path(__file__).parent / "pretrained"


class HeadError(Exception):
    """A trained head cannot be used. One sentence that names the file and the remedy."""


class HeadFacts(BaseModel):
    """What a trained head is: enough to build it, name it and judge it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    version: str = Field(min_length=1)
    variant: Literal["attention", "base"]
    attention_scores: Literal["state", "content"]
    readout: Literal["last", "mean"]
    feature_scaling: Literal["none", "root"]
    motion: bool
    members: int = Field(ge=1)
    channels: int = Field(ge=1)
    labels: tuple[str, ...] = Field(min_length=2)
    encoder_sha256: str
    training: dict[str, Any]


@dataclass(frozen=True, slots=True)
class TrainedHead:
    """A head's folder, whose facts were read."""

    path: Path
    facts: HeadFacts

    @property
    def calibration(self) -> Path:
        """Where the int8 calibration ranges are, if they were made."""
        return self.path / "calibration.json"

    def build(self, *, unroll: bool = False) -> keras.Model:
        """The head with its weights (see ``build_head``).

        Raises:
            HeadError: the weights are missing or belong to another network.
        """
        file = self.path / "head.weights.h5"
        head = _build(self.facts, unroll=unroll)
        try:
            head.load_weights(file)
        except (OSError, ValueError, KeyError) as error:
            raise HeadError(f"{file} does not hold this head's weights ({_line(error)}); train it anew") from error
        return head

    def sha256(self) -> str:
        """Identity of what determines the network's numbers: the head's weights and the calibration ranges."""
        digest = hashlib.sha256((self.path / "head.weights.h5").read_bytes())
        if self.calibration.exists():
            digest.update(self.calibration.read_bytes())
        return digest.hexdigest()

    def agreement(self) -> dict[Precision, Agreement]:
        """Recorded agreement by precision; empty where it was measured on other weights or never."""
        try:
            record = json.loads((self.path / "agreement.json").read_text())
        except FileNotFoundError:
            return {}
        if record["head_sha256"] != self.sha256():
            return {}
        return {precision: Agreement.model_validate(found) for precision, found in record["precisions"].items()}

    def record_agreement(self, agreement: dict[Precision, Agreement]) -> None:
        """Keeps measured agreement beside the weights it was measured on."""
        merged = {**self.agreement(), **agreement}
        record = {
            "head_sha256": self.sha256(),
            "precisions": {precision: found.model_dump() for precision, found in merged.items()},
        }
        (self.path / "agreement.json").write_text(json.dumps(record, indent=2) + "\n")


def load_head(path: Path) -> TrainedHead:
    """Reads a trained head's facts.

    Raises:
        HeadError: ``head.json`` is missing or not valid.
    """
    file = path / "head.json"
    try:
        return TrainedHead(path, HeadFacts.model_validate_json(file.read_text()))
    except OSError as error:
        raise HeadError(
            f"{file} cannot be read ({error.strerror}); make a head with `limelight-model train`"
        ) from error
    except ValidationError as error:
        raise HeadError(f"{file} is not valid ({_line(error)}); train the head anew") from error


def save_head(path: Path, facts: HeadFacts, model: keras.Model) -> TrainedHead:
    """Writes a head's facts and weights into ``path``, made where it does not exist. Old ranges and agreement go.

    Raises:
        OSError: the folder cannot be written.
    """
    path.mkdir(parents=True, exist_ok=True)
    for stale in ("agreement.json", "calibration.json", "head.json"):
        (path / stale).unlink(missing_ok=True)
    # Into a head built afresh, so that the file does not depend on what Keras numbered its layers in this process.
    fresh = _build(facts)
    fresh.set_weights(model.get_weights())
    fresh.save_weights(path / "head.weights.h5")
    (path / "head.json").write_text(facts.model_dump_json(indent=2) + "\n")
    return TrainedHead(path, facts)


def _build(facts: HeadFacts, *, unroll: bool = False) -> keras.Model:
    return build_head(
        len(facts.labels),
        facts.variant,
        facts.attention_scores,
        facts.readout,
        facts.feature_scaling,
        facts.motion,
        members=facts.members,
        unroll=unroll,
        channels=facts.channels,
    )


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
