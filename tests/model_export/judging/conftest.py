from pathlib import Path

import numpy as np
import pytest

from model_export.data.datasets import LabelledClip
from model_export.data.examples import Example

LABELS = ("squats", "waving")


@pytest.fixture
def clips(tmp_path: Path) -> list[LabelledClip]:
    """Two clips of each of two groups of each of two classes."""
    return [
        LabelledClip(tmp_path / label / f"v_{label}_g0{group}_c0{number}.mp4", label, f"v_{label}_g0{group}")
        for label in LABELS
        for group in (1, 2)
        for number in (1, 2)
    ]


@pytest.fixture
def examples(clips: list[LabelledClip], tmp_path: Path) -> list[Example]:
    random = np.random.default_rng(0)
    made = []
    for clip in clips:
        file = tmp_path / f"{clip.path.stem}.npy"
        np.save(file, random.random((40, 7, 7, 4)).astype(np.float16))
        made.append(Example(file, LABELS.index(clip.label), clip.group, clip.name))
    return made
