"""Comparing the precisions of a bundle with Keras."""

import math
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from model_export.data.encoders import keras_encoder
from model_export.head import load_head
from model_export.network.arrays import Frames, predictor
from model_export.verify import ClipCheck, OnnxNetwork, Reference, agreement, check_clips, record_agreement
from service.model.bundle import Outputs, load_bundle, read_manifest
from tests.tiny_bundle import write_tiny_bundle


@pytest.fixture
def expected(narrow_head: Path, narrow_encoder: Any) -> Callable[[Frames], tuple[Frames, Outputs]]:
    encode, predict = keras_encoder(narrow_encoder), predictor(load_head(narrow_head).build())
    return lambda frames: (frames, predict(encode(frames)[np.newaxis]))


def check(agrees: bool, difference: float = 0.0) -> ClipCheck:
    return ClipCheck("clip", "int8", agrees, difference)


def test_agreement_has_a_wilson_interval() -> None:
    found = agreement([check(True)] * 196 + [check(False, 0.25)] * 4)
    assert (found.n, found.top1, found.max_abs_difference) == (200, 0.98, 0.25)
    # Wilson (1927), with z = 1.96 for 95 %
    p, n, z = 0.98, 200, 1.959964
    centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert found.low == pytest.approx((centre - spread) / (1 + z * z / n), abs=1e-6)
    assert found.high == pytest.approx((centre + spread) / (1 + z * z / n), abs=1e-6)


def test_agreement_is_recorded_only_for_the_bytes_that_were_compared(tmp_path: Path) -> None:
    checked = load_bundle(write_tiny_bundle(tmp_path, precisions=["fp32", "int8"]))
    measured = agreement([check(True)])
    record_agreement({"int8": measured}, checked)
    assert [entry.agreement for entry in read_manifest(tmp_path).precisions.values()] == [None, measured]

    write_tiny_bundle(tmp_path, version="2", precisions=["fp32", "int8"], int8_agreement=None, seed=1)
    record_agreement({"int8": measured}, checked)
    newer = load_bundle(tmp_path).manifest
    assert newer.version == "2"
    assert [entry.agreement for entry in newer.precisions.values()] == [None, None]


def test_fp32_agrees_with_keras(
    narrow_bundle: Path,
    rendered_frames: list[npt.NDArray[np.uint8]],
    expected: Callable[[Frames], tuple[Frames, Outputs]],
    tmp_path: Path,
) -> None:
    clips = [(str(i), partial(expected, frames)) for i, frames in enumerate(rendered_frames)]
    found = list(check_clips(load_bundle(narrow_bundle), ["fp32", "int8"], clips, tmp_path / "log"))
    assert [(c.clip, c.precision) for c in found] == [("0", "fp32"), ("0", "int8"), ("1", "fp32"), ("1", "int8")]
    assert all(c.agrees and c.max_abs_difference < 1e-5 for c in found if c.precision == "fp32")


@pytest.mark.parametrize(("lead", "agrees"), ((1e-3, False), (1e-4, True)))
def test_predicting_another_class_is_disagreement_unless_it_is_a_tie(
    narrow_bundle: Path, rendered_frames: list[npt.NDArray[np.uint8]], tmp_path: Path, lead: float, agrees: bool
) -> None:
    frames = rendered_frames[0]
    found_by_onnx = OnnxNetwork(narrow_bundle / "model.fp32.onnx")(frames[np.newaxis])
    probabilities = np.full((1, 3), 1 / 3, np.float32)
    probabilities[0, (found_by_onnx.probabilities.argmax() + 1) % 3] += lead
    clips = [("clip", lambda: (frames, Outputs(probabilities, found_by_onnx.attention)))]
    (found,) = check_clips(load_bundle(narrow_bundle), ["fp32"], clips, tmp_path / "log")
    assert found.agrees is agrees


def test_an_interrupted_run_continues_where_it_stopped(
    narrow_bundle: Path,
    rendered_frames: list[npt.NDArray[np.uint8]],
    expected: Callable[[Frames], tuple[Frames, Outputs]],
    tmp_path: Path,
) -> None:
    bundle = load_bundle(narrow_bundle)
    first = [("a", partial(expected, rendered_frames[0]))]
    before = list(check_clips(bundle, ["fp32"], first, tmp_path / "log"))

    def never() -> tuple[Frames, Outputs]:
        raise AssertionError("a clip was compared twice")

    again: list[tuple[str, Reference]] = [
        ("a", never),
        ("b", partial(expected, rendered_frames[1])),
    ]
    after = list(check_clips(bundle, ["fp32"], again, tmp_path / "log"))
    assert after[:1] == before
    assert [c.clip for c in after] == ["a", "b"]


def test_results_of_another_bundle_are_ignored(
    narrow_bundle: Path,
    rendered_frames: list[npt.NDArray[np.uint8]],
    expected: Callable[[Frames], tuple[Frames, Outputs]],
    tmp_path: Path,
) -> None:
    log = tmp_path / "log"
    list(check_clips(load_bundle(narrow_bundle), ["fp32"], [("a", partial(expected, rendered_frames[0]))], log))
    log.write_text(log.read_text().replace('"sha256": "', '"sha256": "0'))
    asked = []

    def ask() -> tuple[Frames, Outputs]:
        asked.append("a")
        return expected(rendered_frames[0])

    list(check_clips(load_bundle(narrow_bundle), ["fp32"], [("a", ask)], log))
    assert asked == ["a"]


def test_recorded_agreement_is_valid_only_for_the_weights_it_was_measured_on(narrow_head: Path, tmp_path: Path) -> None:
    shutil.copytree(narrow_head, tmp_path / "head")
    head = load_head(tmp_path / "head")
    measured = agreement([check(True)] * 10)
    head.record_agreement({"int8": measured})
    assert head.agreement() == {"int8": measured}
    head.calibration.write_text("other ranges")
    assert head.agreement() == {}
