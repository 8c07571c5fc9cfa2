"""The bundle: the folder that carries a network from ``model_export`` to the service, and its manifest."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from service.errors import BundleError

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1
GRID = 7  # cells of an attention map in each direction: 224 pixels after the five poolings of VGG19

Precision = Literal["fp32", "fp16", "int8"]
Variant = Literal["attention", "base"]

_REMEDY = "export it anew with `limelight-model export`"


@dataclass(frozen=True, slots=True)
class Outputs:
    """What the network computes, for n clips or, without the first axis, for one.

    Attributes:
        probabilities: float32 ``(n, classes)``.
        attention: float32 ``(n, 40, 7, 7)``, each map summing to 1; None for the ``base`` variant.
    """

    probabilities: npt.NDArray[np.float32]
    attention: npt.NDArray[np.float32] | None

    def __getitem__(self, clip: int) -> "Outputs":
        """The outputs for one of the n clips."""
        return Outputs(self.probabilities[clip], None if self.attention is None else self.attention[clip])

    @classmethod
    def stack(cls, clips: "Sequence[Outputs]") -> Self:
        """Join the outputs for single clips, at least one, into those for n."""
        maps = [outputs.attention for outputs in clips if outputs.attention is not None]
        return cls(np.stack([outputs.probabilities for outputs in clips]), np.stack(maps) if maps else None)


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, protected_namespaces=())


class Agreement(_Strict):
    """How often a precision names the same class as Keras in float32, and how far its outputs stray.

    ``low`` and ``high`` bound ``top1`` with 95 % confidence (Wilson score interval). Of the ``n`` clips compared, ties
    (the two best classes within 2e-4 of each other) are not counted as disagreement.
    """

    top1: float = Field(ge=0, le=1)
    n: int = Field(ge=1)
    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)
    max_abs_difference: float = Field(ge=0)
    device: str


class VariantFile(_Strict):
    """One precision's ONNX file, by its name within the bundle."""

    file: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    agreement: Agreement | None = None

    @field_validator("file")
    @classmethod
    def _stays_inside(cls, name: str) -> str:
        if Path(name).name != name or name in ("", "..") or "\0" in name:
            raise ValueError("a file of the bundle's own folder is meant")
        return name


class Manifest(_Strict):
    """What a bundle holds and how its network is to be fed.

    Frames are taken by the ``sampling`` rule and brought to ``image_size`` squared by the ``resize`` rule. Labels stand
    in index order. ``training`` tells how the network was made, for people. ``built_from`` is the identity of all that
    the bundle was made from, so that an export can see that it has nothing to do.
    """

    schema_version: Literal[1] = Field(alias="schema", default=1)
    name: str = Field(min_length=1)
    version: str = Field(min_length=1)
    variant: Variant
    labels: list[str] = Field(min_length=1)
    frame_count: Literal[40] = 40
    image_size: Literal[224] = 224
    sampling: Literal["segment-center"] = "segment-center"
    resize: Literal["stretch-bilinear"] = "stretch-bilinear"
    precisions: dict[Precision, VariantFile] = Field(min_length=1)
    training: dict[str, Any] = Field(default_factory=dict)
    built_from: str | None = None

    @property
    def clip_shape(self) -> tuple[int, int, int, int]:
        """Shape of one clip's frames, the network's input: ``(40, 224, 224, 3)``."""
        return self.frame_count, self.image_size, self.image_size, 3

    @property
    def output_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names of the network's outputs and their shapes for one clip."""
        shapes: dict[str, tuple[int, ...]] = {"probabilities": (len(self.labels),)}
        if self.variant == "attention":
            shapes["attention"] = (self.frame_count, GRID, GRID)
        return shapes

    @model_validator(mode="after")
    def _labels_differ(self) -> Self:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("a label stands twice")
        return self


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose manifest was read and whose files were checked."""

    path: Path
    manifest: Manifest

    def model_path(self, precision: Precision) -> Path:
        """The ONNX file of a precision.

        Raises:
            BundleError: the bundle has no such precision.
        """
        try:
            return self.path / self.manifest.precisions[precision].file
        except KeyError:
            there = ", ".join(self.manifest.precisions)
            raise BundleError(f"{self.path} holds no {precision} model, only {there}; {_REMEDY}") from None


def read_manifest(path: Path) -> Manifest:
    """The manifest of the bundle at ``path``; its model files are not looked at.

    Raises:
        BundleError: the manifest is missing, unreadable, of another schema or not valid.
    """
    file = path / MANIFEST
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BundleError(
            f"{file} does not exist: {path} is not a bundle; make one with `limelight-model export`"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{file} cannot be read ({error}); {_REMEDY}") from error
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if where == "schema":
            found = first["input"]
            raise BundleError(
                f"{file} is of schema {found!r}, this program reads schema {SCHEMA_VERSION}; {_REMEDY}"
            ) from None
        raise BundleError(f"{file} is not a valid manifest ({where or 'JSON'}: {first['msg']}); {_REMEDY}") from None


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Writes the manifest of the bundle at ``path``, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    part = path / f"{MANIFEST}.part"
    try:
        part.write_text(manifest.model_dump_json(by_alias=True, indent=2, exclude_none=True) + "\n", encoding="utf-8")
        part.replace(path / MANIFEST)
    finally:
        part.unlink(missing_ok=True)


def load_bundle(path: Path) -> Bundle:
    """Reads a bundle and checks that every file is there and is the one the manifest means.

    Raises:
        BundleError: anything is missing, damaged or of another schema.
    """
    manifest = read_manifest(path)
    for entry in manifest.precisions.values():
        file = path / entry.file
        try:
            found = file_sha256(file)
        except FileNotFoundError:
            raise BundleError(f"{file} is missing; {_REMEDY}") from None
        except OSError as error:
            raise BundleError(f"{file} cannot be read ({error}); {_REMEDY}") from error
        if found != entry.sha256:
            raise BundleError(f"{file} is damaged (its SHA-256 is not the manifest's); {_REMEDY}")
    return Bundle(path, manifest)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
