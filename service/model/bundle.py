"""The bundle: the folder that holds a network and its manifest, written by ``model_export`` and read by the service."""

import contextlib
import hashlib
import os
import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from service.errors import BundleError
from service.files import open_regular, write_atomically

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1
MOST_MANIFEST_BYTES = 2**24  # a manifest takes some kilobytes; one of gigabytes would take the memory of the clips
GRID = 7  # cells on each side of an attention map: VGG19 halves 224 pixels five times

Precision = Literal["fp32", "fp16", "int8"]
Variant = Literal["attention", "base"]

# What ``auto`` requires of int8: the least lower bound of its agreement with Keras, and the fewest clips that can reach
# it, each of another source video and without a disagreement.
LEAST_AGREEMENT = 0.98
LEAST_CLIPS = 189

_REMEDY = "export it again with `limelight-model export`"


@dataclass(frozen=True, slots=True)
class Outputs:
    """The network's outputs for n clips or, without the first axis, for one.

    Attributes:
        probabilities: float32 ``(n, classes)``.
        attention: float32 ``(n, 40, 7, 7)``, each map summing to 1; None for the ``base`` variant.
    """

    probabilities: npt.NDArray[np.float32]
    attention: npt.NDArray[np.float32] | None

    def __getitem__(self, clip: int) -> "Outputs":
        """Return the outputs for one of the n clips."""
        return Outputs(self.probabilities[clip], None if self.attention is None else self.attention[clip])

    @property
    def finite(self) -> bool:
        """Whether every value is a number: a network that overflows returns infinity or NaN."""
        return all(np.isfinite(values).all() for values in (self.probabilities, self.attention) if values is not None)

    @classmethod
    def stack(cls, clips: "Sequence[Outputs]") -> Self:
        """Stack the outputs for single clips, at least one, into those for n."""
        maps = [outputs.attention for outputs in clips if outputs.attention is not None]
        return cls(np.stack([outputs.probabilities for outputs in clips]), np.stack(maps) if maps else None)


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)


class Agreement(_Strict):
    """How well a precision agrees with Keras in float32.

    Attributes:
        top1: Share of the clips for which both name the same class. Ties, where Keras' two best classes are within
            2e-4 of each other, do not count as disagreement.
        n: Number of clips compared.
        low: Lower bound of ``top1`` with 95 % confidence (Wilson score interval of the effective number of clips, which
            counts clips of one source video about once).
        high: Upper bound of ``top1``.
        max_abs_difference: Largest absolute difference of any output, over the clips whose outputs are finite.
        device: Where the precision ran.
        not_finite: Number of clips, among those that disagree, for which an output was infinite or NaN. ``None``, and
            left out of the manifest, if there are none: earlier versions do not know the field.
    """

    top1: float = Field(ge=0, le=1)
    n: int = Field(ge=1)
    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)
    max_abs_difference: float = Field(ge=0)
    device: str
    not_finite: int | None = Field(default=None, ge=1)

    @property
    def shortfall(self) -> str | None:
        """What is missing for the service to choose the precision by itself, as a predicate, and what to do."""
        if self.not_finite:
            return f"computes values that are not finite for {self.not_finite} of {self.n} clips"
        if self.top1 < LEAST_AGREEMENT:
            return f"agrees on only {self.top1:.2%} of the clips, less than the required {LEAST_AGREEMENT:.0%}"
        if self.n < LEAST_CLIPS:
            return (
                f"was compared on fewer clips than the required {LEAST_CLIPS} ({self.n}); verify with more clips, of "
                "as many videos"
            )
        if self.low < LEAST_AGREEMENT:
            return (
                f"agrees on {self.top1:.2%} of {self.n} clips, but the lower bound of the 95 % interval is "
                f"{self.low:.2%}, less than the required {LEAST_AGREEMENT:.0%}; verify with more clips, of more videos"
            )
        return None

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if not self.low <= self.top1 <= self.high:
            raise ValueError(f"top1 {self.top1:g} is not between low {self.low:g} and high {self.high:g}")
        if (self.not_finite or 0) > round((1 - self.top1) * self.n):
            raise ValueError(f"{self.not_finite} clips are not finite, but fewer disagree")
        return self


class VariantFile(_Strict):
    """The ONNX file of one precision.

    Attributes:
        file: Its name within the bundle's folder.
        sha256: Its SHA-256 in hexadecimal.
        agreement: How well it agrees with Keras; ``None`` if that was not measured.
    """

    file: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    agreement: Agreement | None = None

    @field_validator("file")
    @classmethod
    def _stays_inside(cls, name: str) -> str:
        if Path(name).name != name or name in ("", "..") or "\0" in name:
            raise ValueError("must be the name of a file in the bundle's own folder")
        return name


class Manifest(_Strict):
    """The bundle's ``manifest.json``: what the bundle holds, and which frames its network takes.

    Attributes:
        schema_version: Version of this format; ``schema`` in JSON.
        name: The model's name.
        version: The model's version.
        variant: ``attention``, or ``base`` for a network without attention maps.
        labels: Names of the classes, in index order.
        frame_count: Frames sampled from each clip.
        image_size: Width and height of a frame in pixels.
        sampling: Rule by which frames are sampled.
        resize: Rule by which frames are resized.
        precisions: ONNX files by precision.
        training: How the network was trained, for people to read.
        built_from: Hash of everything that the bundle was made from; an export uses it to see if it is up to date.
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
        """The shape of each output for one clip, by the output's name."""
        shapes: dict[str, tuple[int, ...]] = {"probabilities": (len(self.labels),)}
        if self.variant == "attention":
            shapes["attention"] = (self.frame_count, GRID, GRID)
        return shapes

    @property
    def int8_shortfall(self) -> str | None:
        """Why ``auto`` does not choose the int8 file on a CPU, and what to do; ``None`` if it is known to agree."""
        if "int8" not in self.precisions:
            return "the bundle has no int8 file"
        agreement = self.precisions["int8"].agreement
        if agreement is None:
            return "the manifest does not record how well int8 agrees; `limelight-model verify` measures it"
        return agreement.shortfall and f"int8 {agreement.shortfall}"

    @model_validator(mode="after")
    def _labels_differ(self) -> Self:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("a label occurs twice")
        return self


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose manifest is valid and whose files match their checksums.

    Attributes:
        path: The bundle's folder, reached through no symbolic link, so that it stays the same if a link is replaced.
        manifest: Its manifest.
    """

    path: Path
    manifest: Manifest

    def model_path(self, precision: Precision) -> Path:
        """Return the path of a precision's ONNX file, to name it. ``read_model`` returns its content.

        Raises:
            BundleError: The bundle has no such precision.
        """
        try:
            return self.path / self.manifest.precisions[precision].file
        except KeyError:
            there = ", ".join(self.manifest.precisions)
            raise BundleError(f"{self.path} has no {precision} model, only {there}; {_REMEDY}") from None

    def read_model(self, precision: Precision) -> bytes:
        """Return a precision's ONNX file, whose checksum is compared again: the file may have been replaced meanwhile.

        Raises:
            BundleError: The bundle has no such precision, or its file is missing or differs from the manifest.
        """
        file = self.model_path(precision)
        with _readable(file), open_regular(file) as opened:
            model = opened.read()
        _check_sha256(file, hashlib.sha256(model).hexdigest(), self.manifest.precisions[precision])
        return model


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of the bundle at ``path``, without checking the model files.

    Raises:
        BundleError: The manifest is missing, unreadable, of another schema or not valid.
    """
    file = path / MANIFEST
    try:
        with open_regular(file) as opened:
            text = opened.read(MOST_MANIFEST_BYTES + 1)
    except FileNotFoundError:
        raise BundleError(
            f"{file} does not exist: {path} is not a bundle; make one with `limelight-model export`"
        ) from None
    except OSError as error:
        raise BundleError(f"{file} cannot be read ({error}); {_REMEDY}") from error
    if len(text) > MOST_MANIFEST_BYTES:
        raise BundleError(f"{file} is not a manifest: it has more than {MOST_MANIFEST_BYTES} bytes; {_REMEDY}")
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if where == "schema":
            found = reprlib.repr(first["input"])
            raise BundleError(
                f"{file} has schema {found}, but this version reads schema {SCHEMA_VERSION}; {_REMEDY}"
            ) from None
        raise BundleError(f"{file} is not a valid manifest ({where or 'JSON'}: {first['msg']}); {_REMEDY}") from None


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write the manifest of the bundle at ``path``, completely or not at all.

    Raises:
        OSError: It cannot be written.
    """
    text = manifest.model_dump_json(by_alias=True, indent=2, exclude_none=True) + "\n"
    write_atomically(path / MANIFEST, text.encode())


def load_bundle(path: Path) -> Bundle:
    """Read a bundle, and check that every file exists and matches its checksum.

    Symbolic links are resolved once, so that manifest and files are of one bundle even if a link is replaced meanwhile.

    Raises:
        BundleError: Anything is missing, damaged or of another schema.
    """
    resolved = Path(os.path.realpath(path))
    if resolved != path.absolute():  # otherwise errors name the folder as the caller does
        path = resolved
    manifest = read_manifest(path)
    for entry in manifest.precisions.values():
        file = path / entry.file
        with _readable(file):
            found = file_sha256(file)
        _check_sha256(file, found, entry)
    return Bundle(path, manifest)


def file_sha256(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal.

    Raises:
        OSError: It cannot be read.
    """
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Raise ``BundleError`` if the body of the ``with`` statement cannot read the file."""
    try:
        yield
    except FileNotFoundError:
        raise BundleError(f"{file} is missing; {_REMEDY}") from None
    except OSError as error:
        raise BundleError(f"{file} cannot be read ({error}); {_REMEDY}") from error
    except MemoryError:
        raise BundleError(f"{file} does not fit into memory; allow more of it, or {_REMEDY}") from None


def _check_sha256(file: Path, found: str, entry: VariantFile) -> None:
    if found != entry.sha256:
        raise BundleError(f"{file} is damaged (its SHA-256 differs from the manifest's); {_REMEDY}")
