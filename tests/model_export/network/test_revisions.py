"""What networks compute at the current revisions: whoever changes the numbers has to raise the revision.

The stored numbers are those of this code. They prove nothing about the equations, which other tests compare with
references; they show that weights, features and kept results still mean what they did.
"""

import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import pytest

from model_export.network.classifier import build_head
from model_export.network.spec import ENCODER_REVISION, NETWORK_REVISION, HeadSpec
from model_export.network.vgg19 import CONVOLUTIONS, build_encoder
from tests.model_export.network.vgg19_file import write_vgg19_weights

LITERAL = {"readout": "last", "feature_scaling": "none", "motion": False}
SPECS: dict[str, dict[str, Any]] = {
    "content": {"members": 2},
    "state": {"attention_scores": "state", **LITERAL},
    "state, motion": {"attention_scores": "state"},
    "base": {"variant": "base"},
    "base, literal": {"variant": "base", **LITERAL},
}
# By revision and kind: the probabilities of three classes, and the attention of the middle cell in three frames.
HEADS: dict[int, dict[str, list[float]]] = {
    1: {
        "content": [0.25869, 0.37849, 0.36283, 0.015538, 0.015601, 0.030985],
        "state": [0.0268, 0.51818, 0.45502, 0.00069564, 0.0079064, 0.0076079],
        "state, motion": [0.10162, 0.46529, 0.4331, 0.00079666, 0.015888, 0.015862],
        "base": [0.17493, 0.14394, 0.68113],
        "base, literal": [0.50854, 0.025453, 0.466],
    },
}
ENCODER: dict[int, list[float]] = {1: [4.213, 8.9148, 11.317, 3.556]}


def seeded(model: keras.Model) -> keras.Model:
    """Give each weight values that depend on nothing but its name and shape."""
    seen: Counter[str] = Counter()
    for weight in model.weights:
        if weight.name != "seed_generator_state":
            seen[weight.path] += 1
            random = np.random.default_rng([zlib.crc32(weight.path.encode()), seen[weight.path]])
            weight.assign(random.normal(0, 2 / weight.shape[0] ** 0.5 if len(weight.shape) > 1 else 0.5, weight.shape))
    return model


@pytest.mark.parametrize("kind", SPECS)
def test_a_head_of_the_same_weights_computes_the_numbers_of_its_revision(kind: str) -> None:
    features = np.random.default_rng(0).gamma(0.5, 4.0, (1, 40, 7, 7, 4)).astype(np.float32)
    answer = seeded(build_head(3, HeadSpec(channels=4, **SPECS[kind])))(features, training=False)
    found = [np.asarray(answer["probabilities"])[0]]
    if "attention" in answer:
        found.append(np.asarray(answer["attention"])[0, [0, 20, 39], 3, 3])
    assert_stored(np.concatenate(found), HEADS[NETWORK_REVISION][kind], "NETWORK_REVISION", "HEADS")


def test_the_encoder_computes_the_numbers_of_its_revision(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    layers: dict[str, list[npt.NDArray[np.float32]]] = {}
    inputs = 3
    for block, (filters, convolutions) in enumerate(zip((2, 2, 3, 3, 4), CONVOLUTIONS, strict=True), 1):
        for number in range(1, convolutions + 1):
            spread = (2 / (9 * inputs)) ** 0.5
            kernel, bias = random.normal(0, spread, (3, 3, inputs, filters)), random.normal(0, 5, filters)
            layers[f"block{block}_conv{number}"] = [kernel.astype(np.float32), bias.astype(np.float32)]
            inputs = filters
    write_vgg19_weights(tmp_path / "vgg19.h5", layers)
    frame = random.integers(0, 256, (1, 64, 64, 3), np.uint8)
    found = np.asarray(build_encoder(tmp_path / "vgg19.h5", image_size=64)(frame))
    assert_stored(found.max(axis=(0, 1, 2)), ENCODER[ENCODER_REVISION], "ENCODER_REVISION", "ENCODER")


def assert_stored(found: npt.NDArray[Any], stored: list[float], revision: str, table: str) -> None:
    if not np.allclose(found, stored, rtol=2e-3, atol=1e-5):
        numbers = ", ".join(f"{number:.5g}" for number in found)
        pytest.fail(
            f"the same weights compute other numbers than stored. Results and heads that exist would be misread: raise "
            f"{revision} in model_export/network/spec.py, and store these under it in {table}: [{numbers}]"
        )
