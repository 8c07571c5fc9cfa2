"""Folders of clips with cached features, so that tests need not decode or encode anything."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model_export.data.features import FeatureCache
from model_export.data.gathering import Selection
from service.model.bundle import file_sha256


@dataclass(frozen=True)
class CachedClips:
    """A temporary folder with ``videos/``, ``features/`` and a weights file that nothing reads."""

    folder: Path
    weights: Path

    @property
    def videos(self) -> Path:
        return self.folder / "videos"

    @property
    def features(self) -> Path:
        return self.folder / "features"

    def add(self, *names: str) -> Selection:
        """Add clips with cached features, other ones for each name; return the selection of all clips."""
        cache = FeatureCache(self.features, file_sha256(self.weights))
        for name in names:
            path = self.videos / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name, encoding="utf-8")
            features = np.random.default_rng(list(name.encode())).random((40, 7, 7, 6)).astype(np.float16)
            np.save(cache.path_of(name.encode()), features)
        return Selection(self.videos)
