import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from model_export import weights
from tests.model_export.cached_clips import CachedClips

NARROW = (2, 2, 4, 4, 8)


@pytest.fixture
def vgg19(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is accepted as VGG19's weights, for tests that do not read it."""
    file = tmp_path / "vgg19.h5"
    file.write_bytes(b"weights")
    monkeypatch.setattr(weights.WeightsFile, "fault", lambda self, path: None if path == file else "is another file")
    return file


@pytest.fixture
def cached(tmp_path: Path, vgg19: Path) -> CachedClips:
    return CachedClips(tmp_path, vgg19)


@pytest.fixture(scope="session")
def rendered_frames() -> list[npt.NDArray[np.uint8]]:
    """Sampled frames of two rendered clips."""
    from model_export.rendering.figure import render_clip
    from service.video.decoder import decode_clip

    return [decode_clip(render_clip("squats", seed=seed).data).frames for seed in (5, 6)]


@pytest.fixture(scope="session")
def narrow_encoder() -> Any:
    """VGG19 with 2 to 8 channels and random weights: the same network, a thousand times cheaper."""
    from model_export.export import build_seeded_encoder

    return build_seeded_encoder(None, "float32", NARROW)


@pytest.fixture(scope="session")
def narrow_head(
    tmp_path_factory: pytest.TempPathFactory, narrow_encoder: Any, rendered_frames: list[npt.NDArray[np.uint8]]
) -> Path:
    """Folder of an untrained head for the narrow encoder, with calibration ranges, as ``train`` writes it."""
    import keras

    from model_export.export import convert
    from model_export.head import HeadFacts, save_head
    from model_export.network.classifier import build_head
    from model_export.quantize import quantize
    from model_export.revisions import CURRENT

    facts = HeadFacts(
        name="narrow",
        version="7",
        readout="last",
        channels=NARROW[-1],
        labels=("JumpingJack", "PullUps", "Surfing"),
        encoder_sha256="0" * 64,
        revisions=CURRENT,
        training={"data": "none"},
    )
    keras.utils.set_random_seed(1)
    path = tmp_path_factory.mktemp("narrow")
    head = save_head(path / "head", facts, build_head(3, facts))
    fp32 = path / "fp32.onnx"
    fp32.write_bytes(convert(narrow_encoder).SerializeToString())
    quantize(fp32, path / "int8.onnx", head.calibration, rendered_frames)
    return head.path


@pytest.fixture(scope="session")
def narrow_bundle(tmp_path_factory: pytest.TempPathFactory, narrow_head: Path) -> Iterator[Path]:
    """The narrow head, exported. Shared: copy it before changing it."""
    from model_export.export import export_bundle
    from model_export.head import load_head

    path = tmp_path_factory.mktemp("export") / "bundle"
    assert export_bundle(load_head(narrow_head), None, path, filters=NARROW)
    yield path
    assert {file.name for file in path.iterdir()} == {
        "manifest.json",
        "model.fp32.onnx",
        "model.fp16.onnx",
        "model.int8.onnx",
    }, "some test changed the shared bundle"


@pytest.fixture
def quick_export(monkeypatch: pytest.MonkeyPatch, narrow_bundle: Path) -> None:
    """Makes an export copy the models of the shared bundle, since converting takes half a minute."""
    from model_export import export

    def copy_models(head: object, weights: object, filters: object, folder: Path, reporter: object) -> None:
        for model in narrow_bundle.glob("*.onnx"):
            shutil.copy(model, folder)

    monkeypatch.setattr(export, "_write_models", copy_models)


@pytest.fixture
def quick_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes an export find the int8 file 0.05 off Keras, without running the networks."""
    from model_export import export

    found = export.ExportCheck({"fp32": ("agrees", 0.0), "fp16": ("agrees", 0.0), "int8": ("agrees", 0.05)})
    monkeypatch.setattr(export, "_check", lambda *_: found)
