"""VGG19 features of clips, computed once and kept on disk.

Encoding a clip takes seconds and every epoch would need it again, so the cuboids X_t (40 × 7 × 7 × 512) are cached:
one ``.npy`` file a clip and view. It is named after the SHA-256 of what made it and of the clip's bytes: a moved or
renamed clip is still found and a changed one is not, and whatever is kept by the names of features, such as checkpoints
and predictions, never outlives them. ``cache.json`` says what made them; an interrupted run goes on where it stopped.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from model_export.data.encoders import Encode, FeatureDtype
from service.video.decoder import IMAGE_SIZE, RESIZE_REVISION, RESIZE_RULE, DecodeLimits, decode_clip
from service.video.sampling import FRAME_COUNT, SAMPLING_REVISION, SAMPLING_RULE

View = Literal["plain", "flipped"]
"""A clip as it is, or its mirror image, left and right exchanged."""

# Nobody waits for an answer here, and a busy machine must not make a clip undecodable.
OFFLINE_LIMITS = DecodeLimits(timeout_s=600.0)


class FeatureError(Exception):
    """A feature cache cannot be used. One sentence that names it and the remedy."""


class FeatureCache:
    """Features by clip, kept in one folder, all made by one encoder from frames of one sampling and resize rule.

    Args:
        directory: made where it does not exist.
        encoder_sha256: of the weights file that the encoder was built from.
        dtype: that features are stored in; float16 halves the space, float32 is what ``verify`` compares with. A
            folder that already holds features keeps its own.

    Raises:
        FeatureError: the folder holds features of another encoder or rule, or of unknown origin, or cannot be written.
    """

    def __init__(self, directory: Path, encoder_sha256: str, dtype: FeatureDtype = "float16") -> None:
        self.directory = directory
        facts = {
            "encoder_sha256": encoder_sha256,
            "sampling": SAMPLING_RULE,
            "sampling_revision": SAMPLING_REVISION,
            "resize": RESIZE_RULE,
            "resize_revision": RESIZE_REVISION,
            "frame_count": FRAME_COUNT,
            "image_size": IMAGE_SIZE,
        }
        with self._errors():
            directory.mkdir(parents=True, exist_ok=True)
            found = self._read_facts() or self._write_facts({**facts, "dtype": dtype})
        self.dtype: FeatureDtype = found.pop("dtype")
        if other := sorted(key for key in facts.keys() | found.keys() if found.get(key) != facts.get(key)):
            raise FeatureError(
                f"{directory} holds features of another {', '.join(other)}; choose another folder, or remove it"
            )
        self._made_by = hashlib.sha256(json.dumps({**facts, "dtype": self.dtype}, sort_keys=True).encode())

    def get(self, clip: Path, encode: Callable[[], Encode], view: View = "plain") -> Path:
        """Path of one clip's features, ``.npy`` ``(40, 7, 7, channels)``; encoded where they are not there yet.

        Args:
            clip: video file.
            encode: gives what encodes frames; called only where that is needed, for it takes seconds to build.
            view: of the clip. Mirrored are its frames, not its features: VGG19 is not symmetric.

        Raises:
            ClipError: the clip cannot be decoded.
            FeatureError: the features cannot be written.
            OSError: the clip cannot be read.
        """
        data = clip.read_bytes()
        path = self.path_of(data, view)
        if not self._is_whole(path):
            frames = decode_clip(data, OFFLINE_LIMITS).frames
            cuboids = encode()(frames if view == "plain" else frames[:, :, ::-1]).astype(self.dtype)
            with self._errors():
                _write_atomically(path, lambda file: np.save(file, cuboids))
        return path

    def path_of(self, data: bytes, view: View = "plain") -> Path:
        """Where the features of a clip of these bytes are, or will be."""
        identity = self._made_by.copy()
        identity.update(data)
        suffix = "" if view == "plain" else f".{view}"
        return self.directory / f"{identity.hexdigest()}{suffix}.npy"

    def _is_whole(self, path: Path) -> bool:
        """Whether the file is there in full: a copy made onto a full disk is not."""
        try:
            features = np.lib.format.open_memmap(path, mode="r")
        except (FileNotFoundError, ValueError):
            return False
        return features.dtype == self.dtype and features.shape[:-1] == (FRAME_COUNT, 7, 7)

    def _read_facts(self) -> dict[str, Any] | None:
        """What made the features in the folder; None where it holds none."""
        path = self.directory / "cache.json"
        try:
            found = json.loads(path.read_text())
            if found["dtype"] in get_args(FeatureDtype):
                return dict(found)
        except FileNotFoundError:
            if not any(self.directory.glob("*.npy")):
                return None
        except (KeyError, TypeError, ValueError):
            pass
        raise FeatureError(
            f"{path} does not say what made the features beside it; choose another folder, or remove this one"
        )

    def _write_facts(self, facts: dict[str, Any]) -> dict[str, Any]:
        text = json.dumps(facts, indent=1)
        _write_atomically(self.directory / "cache.json", lambda file: file.write(text.encode()))
        return facts

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise FeatureError(
                f"{self.directory} cannot hold features ({error.strerror}); mend that, or choose another folder"
            ) from error


def _write_atomically(path: Path, write: Callable[..., object]) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
        try:
            write(file)
            file.flush()
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink()
            raise
