"""From a folder of clips to a served network: every stage, run with ``limelight-model`` as users run it.

Small enough for CI: rendered clips, and a VGG19 with six channels that sees colours only. The actions are easy to
distinguish because each has its own kind of place, as many of UCF-101's have; people, clothes and the colours of the
place differ between groups.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from model_export import weights
from model_export.cli import app
from model_export.network.vgg19 import CONVOLUTIONS
from model_export.rendering.figure import render_clip
from model_export.terminal import console
from service.cli.app import app as service
from service.model.bundle import Manifest, load_bundle
from tests.model_export.network.vgg19_file import write_vgg19_weights

# Seeds that select a gym, a living room and a garden: one per group, and one for a clip that is not trained on.
SEEDS = {
    "jumping_jacks": (30, 49, 81, 259, 38),
    "squats": (9, 158, 198, 164, 31),
    "waving": (50, 122, 181, 217, 45),
}
GROUPS = 4
CLIPS: tuple[dict[str, Any], ...] = (
    {"frames": 44, "width": 96, "height": 96},
    {"frames": 56, "width": 96, "height": 112, "fps": 15},
)
CLIP_COUNT = len(SEEDS) * GROUPS * len(CLIPS)
DAMAGED = "waving/v_waving_g04_c03.mp4"
EPOCHS = 12
# The first test that needs a stage waits for it, and evaluation trains several networks: minutes on two busy cores.
pytestmark = [pytest.mark.ci, pytest.mark.slow, pytest.mark.timeout(1800)]
RECIPE = (
    "--epochs",
    EPOCHS,
    "--batch-size",
    6,
    "--learning-rate",
    3e-3,
    "--holdout",
    0,
    "--feature-dropout",
    0,
    "--flip",
)


def limelight_model(*arguments: object) -> str:
    """Run a command that has to succeed, and return its output in lines that do not wrap."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(console, "width", 300)
        ended = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    return ended.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("loop")


@pytest.fixture(scope="module")
def videos(folder: Path) -> Path:
    """Clips named like UCF-101's. The clips of a group have the same place, and one file is truncated."""
    for action, seeds in SEEDS.items():
        (folder / "videos" / action).mkdir(parents=True)
        for group, seed in enumerate(seeds[:GROUPS], 1):
            for number, options in enumerate(CLIPS, 1):
                path = folder / "videos" / action / f"v_{action}_g{group:02}_c{number:02}.mp4"
                path.write_bytes(render_clip(action, seed=seed, **options).data)
    complete = folder / "videos" / "waving" / "v_waving_g04_c01.mp4"
    (folder / "videos" / DAMAGED).write_bytes(complete.read_bytes()[:2000])
    return folder / "videos"


@pytest.fixture(scope="module")
def vgg19(folder: Path) -> Iterator[Path]:
    """Weights of a VGG19 that outputs how red, green and blue its input is; their checksum is accepted."""
    colours = np.concatenate([np.eye(3) - 1 / 3, 1 / 3 - np.eye(3)], axis=1) / 32
    layers = {}
    for block, convolutions in enumerate(CONVOLUTIONS, 1):
        for layer in range(1, convolutions + 1):
            seen = colours if (block, layer) == (1, 1) else np.eye(6)
            kernel = np.zeros((3, 3, *seen.shape), np.float32)
            kernel[1, 1] = seen
            layers[f"block{block}_conv{layer}"] = [kernel, np.zeros(6, np.float32)]
    path = folder / "vgg19.h5"
    write_vgg19_weights(path, layers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights.WeightsFile, "fault", lambda self, found: None if found == path else "is another")
        yield path


# The stages; each needs the previous one.


@pytest.fixture(scope="module")
def features(folder: Path, videos: Path, vgg19: Path) -> str:
    return limelight_model(
        "features", "--videos", videos, "--features", folder / "features", "--flip", "--weights", vgg19
    )


@pytest.fixture(scope="module")
def evaluated(folder: Path, videos: Path, vgg19: Path, features: str) -> Path:
    output = folder / "evaluation"
    source = ("--videos", videos, "--features", folder / "features", "--weights", vgg19)
    scope = ("--k-fold", 2, "--variant", "attention", "--no-controls", "--actor-clips", 3)
    assert "features already cached" in limelight_model("evaluate", *source, *scope, *RECIPE, "--output", output)
    return output


@pytest.fixture(scope="module")
def report(evaluated: Path) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not valid JSON")

    return json.loads((evaluated / "report.json").read_text(encoding="utf-8"), parse_constant=refuse)


@pytest.fixture(scope="module")
def head(folder: Path, videos: Path, vgg19: Path, evaluated: Path) -> Path:
    output = folder / "head"
    source = ("--videos", videos, "--features", folder / "features", "--weights", vgg19)
    limelight_model("train", *source, *RECIPE, "--evaluation", evaluated, "--name", "rendered", "--output", output)
    return output


@pytest.fixture(scope="module")
def bundle(folder: Path, vgg19: Path, head: Path) -> Path:
    limelight_model("export", "--head", head, "--output", folder / "bundle", "--weights", vgg19)
    return folder / "bundle"


@pytest.fixture(scope="module")
def verified(folder: Path, videos: Path, vgg19: Path, head: Path, bundle: Path) -> Manifest:
    source = ("--head", head, "--videos", videos, "--clips-per-class", 2, "--weights", vgg19)
    limelight_model("verify", "--bundle", bundle, *source, "--log", folder / "verify.jsonl")
    return load_bundle(bundle).manifest


def test_both_views_of_each_clip_are_encoded_and_a_damaged_clip_is_reported(folder: Path, features: str) -> None:
    assert len(list((folder / "features").glob("*.npy"))) == 2 * CLIP_COUNT
    assert f"{CLIP_COUNT} clips of 3 classes, 1 left out as undecodable" in features
    assert any(DAMAGED in line for line in features.splitlines())


def test_clips_of_groups_that_were_not_trained_on_are_classified_correctly(report: Any) -> None:
    (folds,) = report["experiments"]
    assert (folds["folds"], folds["clips"], folds["clips_with_video_in_training"]) == (2, CLIP_COUNT, 0)
    attention = folds["methods"][0]
    assert attention["name"] == "attention (content)"
    assert attention["accuracy"]["value"] > 0.9


def test_the_report_has_the_form_of_table_3(evaluated: Path) -> None:
    report = (evaluated / "report.md").read_text(encoding="utf-8")
    assert "## 2 grouped folds (in the form of the paper's Table 3), %" in report
    assert "| method | accuracy | average precision | average recall | macro F1 | accuracy, folds |" in report
    for method in ("attention (content)", "logistic regression", "plain LSTM"):
        figure, folds = r" [\d.]+ \([\d.]+–[\d.]+\) \|", r" [\d.]+ ± [\d.]+ \|"
        assert re.search(rf"^\| {re.escape(method)} \|{figure * 4}{folds * 4}$", report, re.MULTILINE), method
    (picture,) = re.findall(r"!\[.*\]\((.+)\)", report)
    assert (evaluated / picture).read_bytes().startswith(b"\x89PNG")


def test_the_report_counts_and_names_the_clips_that_were_left_out(evaluated: Path, report: Any) -> None:
    assert report["data"]["undecodable"] == [DAMAGED]
    assert (report["data"]["clips"], report["data"]["classes"], report["data"]["groups"]) == (CLIP_COUNT, 3, 12)
    assert f"Undecodable: `{DAMAGED}`." in (evaluated / "report.md").read_text(encoding="utf-8")


def test_the_report_has_the_sections_on_attention(report: Any) -> None:
    titles = [title.partition(": ")[2].partition(",")[0] for title in report["sections"]]
    assert titles == ["deletion of cells", "rendered actor", "maps"]


def test_report_and_head_name_what_computed_their_features(folder: Path, head: Path, report: Any) -> None:
    made_by = json.loads((folder / "features" / "cache.json").read_text(encoding="utf-8"))
    facts = json.loads((head / "head.json").read_text(encoding="utf-8"))
    assert report["run"]["settings"]["features"] == f"{made_by['engine']}, {made_by['dtype']}"
    assert facts["training"]["features"] == {"engine": made_by["engine"], "dtype": made_by["dtype"]}


def test_the_head_records_its_training_clips_and_the_accuracy_of_its_recipe(head: Path, report: Any) -> None:
    facts = json.loads((head / "head.json").read_text(encoding="utf-8"))
    assert facts["labels"] == ["jumping_jacks", "squats", "waving"]
    assert (facts["training"]["clips"], facts["training"]["undecodable_clips"]) == (CLIP_COUNT, 1)
    measured = report["experiments"][0]["methods"][0]["accuracy"]["value"]
    assert facts["training"]["accuracy"]["2 grouped folds"]["value"] == pytest.approx(measured, abs=1e-4)


def test_training_writes_a_log_and_a_plot(head: Path) -> None:
    lines = (head / "run" / "seed-0.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + EPOCHS
    assert (head / "run" / "seed-0.png").read_bytes().startswith(b"\x89PNG")


def test_the_bundle_is_made_from_the_head(bundle: Path) -> None:
    manifest = load_bundle(bundle).manifest
    assert (manifest.name, manifest.variant) == ("rendered", "attention")
    assert manifest.labels == ["jumping_jacks", "squats", "waving"]
    assert list(manifest.training["accuracy"]) == ["2 grouped folds"]


def test_verify_writes_the_agreement_into_the_bundle(verified: Manifest) -> None:
    agreement = {name: entry.agreement for name, entry in verified.precisions.items() if entry.agreement}
    assert {name: found.n for name, found in agreement.items()} == {"fp32": 6, "fp16": 6, "int8": 6}
    # int8 depends on the processor: without VNNI it may overflow, and is then not used.
    assert [agreement[name].top1 for name in ("fp32", "fp16")] == [1.0, 1.0]


@pytest.mark.parametrize("action", SEEDS)
def test_the_service_classifies_clips_that_were_not_trained_on(bundle: Path, tmp_path: Path, action: str) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(render_clip(action, seed=SEEDS[action][GROUPS], frames=50, width=160, height=120).data)
    ended = CliRunner().invoke(
        service, ["predict", str(clip), "--bundle", str(bundle), "--json"], catch_exceptions=False
    )
    assert ended.exit_code == 0, ended.output
    assert json.loads(ended.stdout)["predictions"][0]["label"] == action
