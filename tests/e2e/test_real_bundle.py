"""The pretrained head with VGG19's real weights: exported, served, and tested with real clips."""

import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import onnx
import pytest
from PIL import Image

from service.model.bundle import load_bundle
from tests.conftest import REPOSITORY
from tests.e2e.process import Server, running

# VGG19 on 40 frames takes 1.6 TFLOP, and the bundle may have to be exported first: minutes on two busy cores.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def bundle() -> Path:
    """The pretrained head's bundle: that of ``make demo`` if it exists. It is kept for the next test run."""
    path = REPOSITORY / "build" / "bundle"
    if not path.exists() and (REPOSITORY / "bundle").is_dir():
        shutil.copytree(REPOSITORY / "bundle", path)
    for command in (["fetch-weights"], ["export", "--output", str(path)]):
        subprocess.run([sys.executable, "-m", "model_export.cli", *command], check=True)
    return path


@pytest.fixture(scope="module")
def basketball(shared: Path) -> Path:
    """An original UCF-101 clip."""
    return shared / "clips/ucf101/Basketball/v_Basketball_g08_c04.avi"


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(bundle, tmp_path_factory.mktemp("log") / "log.jsonl", {}) as server:
        yield server


def operators(bundle: Path, precision: str) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(bundle / f"model.{precision}.onnx").graph.node)


def test_the_graphs_hold_no_loops_and_few_casts(bundle: Path) -> None:
    fp32, fp16, int8 = (operators(bundle, precision) for precision in ("fp32", "fp16", "int8"))
    assert not fp32.keys() & {"Loop", "If", "Scan"}
    assert fp32["Conv"] == fp16["Conv"] == int8["Conv"] == 16
    assert fp16["Cast"] < 10
    assert int8["QuantizeLinear"] >= 16
    assert [value.name for value in onnx.load(bundle / "model.fp32.onnx").graph.input] == ["frames"]


def test_the_manifest_records_how_each_precision_agrees_with_keras(bundle: Path) -> None:
    manifest = load_bundle(bundle).manifest
    assert len(manifest.labels) == 13
    assert manifest.training["export_check"]["max_abs_difference"]["fp32"] <= 1e-4
    for precision, variant in manifest.precisions.items():
        assert variant.agreement is not None, precision
        assert variant.agreement.low <= variant.agreement.top1 <= variant.agreement.high
    assert manifest.precisions["fp32"].agreement.top1 == 1.0  # type: ignore[union-attr]


def test_form_and_raw_body_get_the_same_complete_answer(server: Server, basketball: Path) -> None:
    data = basketball.read_bytes()
    form = httpx.post(f"{server.url}/predict", files={"file": (basketball.name, data)}, timeout=600, trust_env=False)
    raw = httpx.post(
        f"{server.url}/predict", content=data, headers={"Content-Type": "video/avi"}, timeout=600, trust_env=False
    )
    assert form.status_code == raw.status_code == 200
    answer = form.json()
    for part in ("model", "clip", "predictions", "probabilities", "attention", "frames"):
        assert answer[part] == raw.json()[part]
    assert answer["predictions"][0]["label"] == "Basketball"
    assert len(answer["probabilities"]) == 13
    assert sum(answer["probabilities"]) == pytest.approx(1, abs=1e-5)
    assert len(answer["frames"]) == 40
    assert all(0 <= frame["time_s"] < answer["clip"]["duration_s"] for frame in answer["frames"])
    assert [len(rows) for rows in answer["attention"]["maps"]] == [7] * 40
    for rows in answer["attention"]["maps"]:
        assert sum(map(sum, rows)) == pytest.approx(1, abs=1e-4)


def test_the_demo_ranks_basketball_first_and_draws_the_attention(
    bundle: Path, basketball: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "demo.png"
    command = ["demo", str(basketball), "--bundle", str(bundle), "--overlay", str(picture)]
    done = subprocess.run([sys.executable, "-m", "service.cli", *command], capture_output=True, text=True, check=True)
    lines = re.findall(r"^(\w+)\s+([01]\.\d{4})\b", done.stdout, re.MULTILINE)
    assert len(lines) == 5
    assert lines[0][0] == "Basketball"
    with Image.open(picture) as image:
        assert image.format == "PNG"
        assert len(image.convert("RGB").getcolors(1 << 24) or []) > 1000, "too few colours for frames and maps"
