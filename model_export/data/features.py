"""A cache of VGG19 features on disk.

Encoding a clip takes seconds and every epoch needs the result, so the cuboids X_t (40 × 7 × 7 × 512) are cached, in
one ``.npy`` file per clip and view. The file is named by the SHA-256 of the encoder's facts and the clip's bytes: a
moved or renamed clip is found again, a changed one is encoded again, and anything that is kept by the names of
features, such as checkpoints and predictions, is never reused for other features. ``cache.json`` holds the encoder's
facts, among them the engine that computes the features. A run that was interrupted continues with the first clip that
is not cached.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from model_export.data.examples import npy_bytes, unreadable
from model_export.errors import FeatureError
from model_export.network.arrays import Cuboids, Frames
from model_export.network.spec import ENCODER_REVISION, FRAME_COUNT, GRID, IMAGE_SIZE, Engine, FeatureDtype
from model_export.storing import FULL
from service.files import locked, remove_parts, write_atomically
from service.video.decoder import RESIZE_REVISION, RESIZE_RULE, DecodeLimits, decode_clip
from service.video.sampling import SAMPLING_REVISION, SAMPLING_RULE

View = Literal["plain", "flipped"]
"""A clip as it is, or mirrored left to right."""

# No client is waiting, and a busy machine must not make a clip undecodable.
OFFLINE_LIMITS = DecodeLimits(timeout_s=600.0)


class FeatureCache:
    """A folder of features, all made by one encoder from frames of one sampling and resize rule.

    Args:
        directory: The folder; created if missing.
        encoder_sha256: SHA-256 of the weights file that the encoder is built from.
        dtype: Type that features are stored in: float16 takes half the space, float32 is what ``verify`` compares with.
            A folder that already holds features keeps its own.
        engine: What computes the features, by the same rule. Engines round differently, so that a folder's features
            are comparable only if one engine computed them all, on whichever machine.

    Raises:
        FeatureError: The folder holds features of another encoder or rule, or of unknown origin, or cannot be written.
    """

    def __init__(
        self, directory: Path, encoder_sha256: str, dtype: FeatureDtype = "float16", engine: Engine = "TensorFlow"
    ) -> None:
        self.directory = directory
        facts = {
            "encoder_sha256": encoder_sha256,
            "encoder_revision": ENCODER_REVISION,
            "sampling": SAMPLING_RULE,
            "sampling_revision": SAMPLING_REVISION,
            "resize": RESIZE_RULE,
            "resize_revision": RESIZE_REVISION,
            "frame_count": FRAME_COUNT,
            "image_size": IMAGE_SIZE,
        }
        with self._errors():
            directory.mkdir(parents=True, exist_ok=True)
            remove_parts(directory)
            with locked(directory):  # another command may begin the same folder
                found = self._read_facts() or self._write_facts({**facts, "dtype": dtype, "engine": engine})
        self.dtype: FeatureDtype = found.pop("dtype")
        self.engine: Engine = found.pop("engine")
        if other := sorted(key for key in facts.keys() | found.keys() if found.get(key) != facts.get(key)):
            raise FeatureError(
                f"{directory} holds features of another {', '.join(other)}; choose another folder, or remove it"
            )
        made_by = {**facts, "dtype": self.dtype, "engine": self.engine}
        self._made_by = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode())

    def get(self, clip: Path, encode: Callable[[], Callable[[Frames], Cuboids]], view: View = "plain") -> Path:
        """Return the ``.npy`` file of one clip's features ``(40, 7, 7, channels)``; encode the clip if it is missing.

        Args:
            clip: Video file.
            encode: Returns the encoder; called only if the clip has to be encoded, since it takes seconds to build.
            view: Which view of the clip. The frames are mirrored, not the features: VGG19 is not symmetric.

        Raises:
            ClipError: The clip cannot be decoded.
            FeatureError: The features cannot be computed, written or, if they are cached, read.
            OSError: The clip cannot be read.
        """
        data = clip.read_bytes()
        path = self.path_of(data, view)
        if not self.is_whole(path):
            frames = decode_clip(data, OFFLINE_LIMITS).frames
            with np.errstate(over="ignore"):
                cuboids = encode()(frames if view == "plain" else frames[:, :, ::-1]).astype(self.dtype)
            if not np.isfinite(cuboids).all():
                raise FeatureError(f"the features of {clip} are not finite numbers in {self.dtype}; remove the clip")
            with self._errors():
                write_atomically(path, npy_bytes(cuboids))
        return path

    def path_of(self, data: bytes, view: View = "plain") -> Path:
        """Return the file that holds, or will hold, the features of a clip with these bytes."""
        identity = self._made_by.copy()
        identity.update(data)
        suffix = "" if view == "plain" else f".{view}"
        return self.directory / f"{identity.hexdigest()}{suffix}.npy"

    def is_whole(self, path: Path) -> bool:
        """Check that the file exists and is complete, which a copy onto a full disk is not."""
        try:
            features = np.lib.format.open_memmap(path, mode="r")
        except (FileNotFoundError, ValueError):
            return False
        except OSError as error:
            raise unreadable(path, error) from error
        return features.dtype == self.dtype and features.shape[:-1] == (FRAME_COUNT, GRID, GRID)

    def _read_facts(self) -> dict[str, Any] | None:
        """Return the facts of the features in the folder, or ``None`` if it holds none."""
        path = self.directory / "cache.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["dtype"] in get_args(FeatureDtype) and found["engine"] in get_args(Engine):
                return dict(found)
        except FileNotFoundError:
            if not any(self.directory.glob("*.npy")):
                return None
        except (KeyError, TypeError, ValueError):  # earlier versions did not write the engine
            pass
        raise FeatureError(
            f"{path} does not say how the features beside it were made; choose another folder, or remove this one"
        )

    def _write_facts(self, facts: dict[str, Any]) -> dict[str, Any]:
        write_atomically(self.directory / "cache.json", json.dumps(facts, indent=1).encode())
        return facts

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            cure = "make room there" if error.errno in FULL else "correct the cause"
            raise FeatureError(
                f"features cannot be written to {self.directory} ({error.strerror}); {cure}, or choose another folder"
            ) from error
