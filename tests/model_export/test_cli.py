"""What `limelight-model` says and how it ends; what it computes is tested where that is written."""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from model_export import weights
from model_export.cli import app
from service.video.rendering import render_clip


@pytest.fixture(autouse=True)
def vgg19(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for VGG19's weights: any file passes, for none of these commands gets as far as reading it."""
    file = tmp_path / "vgg19.h5"
    file.write_bytes(b"weights")
    monkeypatch.setattr(weights.WeightsFile, "fault", lambda self, path: None if path == file else "is another")
    return file


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def assert_one_sentence(result: Result, *parts: str) -> None:
    assert result.exit_code == 2
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    for part in parts:
        assert part in lines[0]


def test_fetch_weights_says_where_they_are(vgg19: Path) -> None:
    result = run("fetch-weights", "--weights", vgg19)
    assert result.exit_code == 0
    assert str(vgg19) in result.stdout


def test_train_names_a_folder_that_is_missing(vgg19: Path, tmp_path: Path) -> None:
    assert_one_sentence(
        run("train", "--videos", tmp_path / "none", "--weights", vgg19), str(tmp_path / "none"), "cannot be read"
    )


def test_train_refuses_features_of_another_vgg19(vgg19: Path, tmp_path: Path) -> None:
    videos, features = tmp_path / "videos", tmp_path / "features"
    for label in ("squats", "waving"):
        (videos / label).mkdir(parents=True)
        (videos / label / "a.mp4").write_bytes(render_clip(label, frames=41).data)
    features.mkdir()
    (features / "cache.json").write_text('{"dtype": "float16", "encoder_sha256": "of another"}')
    result = run("train", "--videos", videos, "--features", features, "--weights", vgg19)
    assert_one_sentence(result, str(features), "encoder_sha256", "choose another folder")


@pytest.mark.parametrize(
    ("option", "value"), (("--variant", "transformer"), ("--attention-scores", "self"), ("--readout", "first"))
)
def test_train_refuses_a_network_that_there_is_not(vgg19: Path, tmp_path: Path, option: str, value: str) -> None:
    result = run("train", "--videos", tmp_path, "--weights", vgg19, option, value)
    assert result.exit_code == 2
    assert option in result.stderr
    assert value in result.stderr


def test_export_names_a_head_that_is_missing(vgg19: Path, tmp_path: Path) -> None:
    result = run("export", "--head", tmp_path, "--output", tmp_path / "bundle", "--weights", vgg19)
    assert_one_sentence(result, str(tmp_path / "head.json"), "limelight-model train")
    assert not (tmp_path / "bundle").exists()


def test_export_leaves_a_folder_alone_that_is_no_bundle(vgg19: Path, tmp_path: Path, narrow_head: Path) -> None:
    result = run("export", "--head", narrow_head, "--output", tmp_path, "--weights", vgg19)
    assert_one_sentence(result, str(tmp_path), "is not a bundle")


def test_verify_names_a_bundle_that_is_damaged(vgg19: Path, tmp_path: Path, narrow_bundle: Path) -> None:
    damaged = tmp_path / "bundle"
    shutil.copytree(narrow_bundle, damaged)
    (damaged / "model.fp16.onnx").write_bytes(b"")
    result = run("verify", "--bundle", damaged, "--clips", tmp_path, "--weights", vgg19)
    assert_one_sentence(result, "model.fp16.onnx is damaged", "limelight-model export")


def test_verify_refuses_the_head_of_another_bundle(vgg19: Path, tmp_path: Path, narrow_bundle: Path) -> None:
    result = run("verify", "--bundle", narrow_bundle, "--clips", tmp_path, "--weights", vgg19)
    assert_one_sentence(result, str(narrow_bundle), "--head")
