"""A trained head on disk: the folder that ``train`` writes and ``export`` reads.

- ``head.json``: what the head is and how it was made (``HeadFacts``).
- ``head.weights.h5``: its weights as Keras saves them, without VGG19's.
- ``calibration.json``: ranges of VGG19's activations over real clips, for int8 (ONNX Runtime's calibration cache).
- ``agreement.json``: how often each precision agreed with Keras, if ``verify --record`` measured it.
- ``clips.txt``: short digests of the clips that it was trained on. ``test`` warns of them. They are not in
  ``head.json``, whose facts are copied into the manifest and into answers of the service.
"""

import hashlib
import io
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
from pydantic import BaseModel, Field, ValidationError

from model_export.errors import HeadError
from model_export.network.classifier import build_head
from model_export.network.spec import HeadSpec
from model_export.revisions import CURRENT, Revisions
from model_export.storing import check_targets, explained, store
from service.files import locked, written_beside
from service.model.bundle import Agreement, Precision

PRETRAINED = Path(__file__).parent / "pretrained"
CLIPS = "clips.txt"
FILES = ("head.json", "head.weights.h5", "calibration.json", CLIPS, "agreement.json")


class HeadFacts(HeadSpec):
    """The content of ``head.json``: which network the head is, what it predicts and how it was trained.

    Attributes:
        name: Name of the network in manifests and answers.
        version: Its version.
        labels: Class names, in index order.
        encoder_sha256: SHA-256 of the VGG19 weights that it was trained with.
        revisions: Revisions of the code that it was trained with.
        training: How it was trained, for people; copied into the manifest.
    """

    name: str = Field(min_length=1)
    version: str = Field(min_length=1)
    labels: tuple[str, ...] = Field(min_length=2)
    encoder_sha256: str
    revisions: Revisions
    training: dict[str, Any]

    def spec(self) -> HeadSpec:
        """Return the description of the network alone."""
        return HeadSpec(**{name: getattr(self, name) for name in HeadSpec.model_fields})


class AgreementRecord(BaseModel):
    """The content of ``agreement.json``.

    Attributes:
        head_sha256: ``TrainedHead.sha256`` of the head that was measured.
        spec: Its network; earlier versions did not record it.
        quantizer: Revision of the quantizer; earlier versions did not record the first one.
        precisions: The agreement by precision.
    """

    head_sha256: str
    spec: HeadSpec | None = None
    quantizer: int = 1
    precisions: dict[Precision, Agreement]


@dataclass(frozen=True, slots=True)
class TrainedHead:
    """The folder of a trained head, whose facts have been read."""

    path: Path
    facts: HeadFacts

    @property
    def calibration(self) -> Path:
        """Path of the int8 calibration ranges; the file may be missing."""
        return self.path / "calibration.json"

    def build(self, *, unroll: bool = False) -> keras.Model:
        """Build the head with its weights (see ``build_head``).

        Raises:
            HeadError: The weights are missing or belong to another network.
        """
        file = self.path / "head.weights.h5"
        head = build_head(len(self.facts.labels), self.facts, unroll=unroll)
        try:
            head.load_weights(file)
        except (OSError, ValueError, KeyError) as error:
            raise HeadError(
                f"{file} does not hold this head's weights ({_first_line(error)}); train the head again"
            ) from error
        return head

    def sha256(self) -> str:
        """Return the identity of the files that the network's numbers depend on: weights and calibration ranges."""
        digest = hashlib.sha256((self.path / "head.weights.h5").read_bytes())
        if self.calibration.exists():
            digest.update(self.calibration.read_bytes())
        return digest.hexdigest()

    def identity(self) -> str:
        """Return a digest of the head's facts, weights and calibration ranges."""
        return hashlib.sha256((self.path / "head.json").read_bytes() + self.sha256().encode()).hexdigest()

    def is_shipped(self) -> bool:
        """Whether this is the pretrained head, or a copy of it."""
        return self.identity() == load_head(PRETRAINED).identity()

    def check_revisions(self) -> str | None:
        """Check that the head's weights and accuracy still mean what they did when it was trained.

        Returns:
            A warning if it is the pretrained head and frames are made differently now; otherwise ``None``.

        Raises:
            HeadError: The network is another one now, or frames are made differently and the head is somebody's own.
        """
        found = self.facts.revisions.differences(CURRENT)
        if not found:
            return None
        other = " and ".join(found.values())
        if self.is_shipped() and found.keys() <= {"sampling", "resize"}:
            return (
                f"warning: the pretrained head was trained on frames of {other}, so that its accuracy on the frames of "
                "today may differ from what its model card states"
            )
        features = ", on features in a new folder" if found.keys() - {"network"} else ""
        raise HeadError(f"{self.path} was trained with {other}; train the head again{features}")

    def agreement(self, quantizer: int) -> dict[Precision, Agreement]:
        """Return the recorded agreement by precision; empty if it is of another network, other ranges or quantizer.

        Args:
            quantizer: Revision of the quantizer.

        Raises:
            HeadError: ``agreement.json`` is not valid.
        """
        file = self.path / "agreement.json"
        try:
            record = AgreementRecord.model_validate_json(file.read_bytes())
        except FileNotFoundError:
            return {}
        except ValidationError as error:
            raise HeadError(
                f"{file} is not valid ({_first_line(error)}); remove it, and measure with `limelight-model verify "
                "--record`"
            ) from error
        measured_here = (record.head_sha256, record.quantizer) == (self.sha256(), quantizer)
        return record.precisions if measured_here and record.spec in (None, self.facts.spec()) else {}

    def trained_clips(self) -> frozenset[str] | None:
        """Return the short digests of the clips that it was trained on; ``None`` if they were not recorded."""
        try:
            return frozenset((self.path / CLIPS).read_text(encoding="utf-8").split())
        except FileNotFoundError:
            return None

    def record_agreement(self, agreement: dict[Precision, Agreement], quantizer: int, head_sha256: str) -> None:
        """Save measured agreement beside the weights that it was measured on.

        Args:
            agreement: The agreement by precision; that of other precisions is kept.
            quantizer: Revision of the quantizer that it was measured with.
            head_sha256: ``sha256()`` when the measurement began.

        Raises:
            HeadError: The head has changed since.
            OSError: ``agreement.json`` cannot be written.
        """
        with locked(self.path):
            if self.sha256() != head_sha256:
                raise HeadError(f"{self.path} changed while it was verified; export it and verify again")
            merged = {**self.agreement(quantizer), **agreement}
            record = AgreementRecord(
                head_sha256=head_sha256, spec=self.facts.spec(), quantizer=quantizer, precisions=merged
            )
            text = record.model_dump_json(indent=2, exclude_none=True) + "\n"
            store(self.path / "agreement.json", text, "leave out --record")


def short_digest(sha256: str) -> str:
    """Shorten a clip's SHA-256 in hexadecimal: 64 bits tell the clips of a data set apart."""
    return sha256[:16]


def load_head(path: Path) -> TrainedHead:
    """Read a trained head's facts.

    Raises:
        HeadError: ``head.json`` is missing or invalid.
    """
    file = path / "head.json"
    try:
        facts = HeadFacts.model_validate_json(file.read_bytes())
    except OSError as error:
        raise HeadError(
            f"{file} cannot be read ({error.strerror}); make a head with `limelight-model train`"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        remedy = "train the head again" + (", on features in a new folder" if where == "revisions" else "")
        raise HeadError(f"{file} is not valid ({where or 'JSON'}: {first['msg']}); {remedy}") from error
    # ``HeadSpec`` has defaults, for options. In a file they would turn a head of another network into a wrong one.
    if missing := sorted(HeadFacts.model_fields.keys() - facts.model_fields_set):
        raise HeadError(f"{file} is not valid ({', '.join(missing)} missing); train the head again")
    return TrainedHead(path, facts)


def save_head(
    path: Path,
    facts: HeadFacts,
    model: keras.Model,
    calibration: bytes | None = None,
    clips: Iterable[str] | None = None,
) -> TrainedHead:
    """Write a head's files into ``path``, removing the agreement of the head that was there.

    On a full disk the former head stays. ``head.json`` is removed first and written last, so that it is never beside
    the weights of another head, even if the process is killed.

    Args:
        path: The head's folder; created if missing.
        facts: The facts.
        model: The head.
        calibration: The int8 calibration ranges; without them, those of the former head are removed.
        clips: The clips that it was trained on, by ``short_digest``, if all are known.

    Raises:
        StorageError: The disk is full, or a folder is in the place of one of the files.
        OSError: The folder cannot be written.
    """
    check_targets(path, FILES)
    seen = None if clips is None else "".join(f"{digest}\n" for digest in sorted(set(clips))).encode()
    contents = {"calibration.json": calibration, CLIPS: seen, "head.weights.h5": _weights_bytes(facts, model)}
    contents["head.json"] = facts.model_dump_json(indent=2).encode() + b"\n"
    files = {path / name: content for name, content in contents.items() if content is not None}
    size = sum(map(len, files.values()))
    with explained(path, size, "choose another --output"), ExitStack() as stack:
        path.mkdir(parents=True, exist_ok=True)
        parts = {file: stack.enter_context(written_beside(file, content)) for file, content in files.items()}
        for stale in ("head.json", "agreement.json", "calibration.json", CLIPS):
            (path / stale).unlink(missing_ok=True)
        for file, part in parts.items():
            part.replace(file)
    return TrainedHead(path, facts)


def _weights_bytes(facts: HeadFacts, model: keras.Model) -> bytes:
    # By way of a new head: the names in the file must not depend on how Keras numbered layers in this process.
    fresh = build_head(len(facts.labels), facts)
    fresh.set_weights(model.get_weights())
    file = _WeightsInMemory()
    fresh.save_weights(file)
    return file.getvalue()


class _WeightsInMemory(io.BytesIO):
    """A file in memory with the name that Keras asks for. HDF5 crashes the process if it meets a full disk."""

    def __str__(self) -> str:
        return "head.weights.h5"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
