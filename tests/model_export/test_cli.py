"""What `limelight-model` says and how it ends; what it computes is tested where that is written."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from typer.main import get_command
from typer.testing import CliRunner, Result

from model_export import weights
from model_export.cli import app
from service.model.bundle import file_sha256


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


@pytest.mark.parametrize(
    ("option", "value"), (("--variant", "transformer"), ("--attention-scores", "self"), ("--readout", "first"))
)
def test_train_refuses_a_network_that_there_is_not(vgg19: Path, tmp_path: Path, option: str, value: str) -> None:
    result = run("train", "--videos", tmp_path, "--weights", vgg19, option, value)
    assert result.exit_code == 2
    assert option in result.stderr
    assert value in result.stderr


@pytest.mark.parametrize("option", ["--name", "--version"])
def test_train_refuses_a_head_without_a_name_before_it_begins(tmp_path: Path, option: str) -> None:
    assert_one_sentence(run("train", "--videos", tmp_path / "none", option, ""), "needs a name and a version")


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_what_is_not_asked_for_is_the_recipe_as_it_stands(command: str) -> None:
    """The commands spell its defaults again."""
    from model_export.training import Recipe

    several = {"variant", "attention_scores"} if command == "evaluate" else set()
    options = {option.name: option.default for option in get_command(app).commands[command].params}  # type: ignore[attr-defined]
    assert {name: options[name] for name in asdict(Recipe()).keys() - several} == {
        name: value for name, value in asdict(Recipe()).items() if name not in several
    }


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


MakeVideos = Callable[..., Path]


@pytest.fixture
def make_videos(tmp_path: Path, vgg19: Path) -> MakeVideos:
    """Makes ``tmp_path/videos`` with clips of the given names, whose features lie in ``tmp_path/features`` already."""

    def make(*names: str) -> Path:
        from model_export.data.features import FeatureCache

        kept = FeatureCache(tmp_path / "features", file_sha256(vgg19))
        for name in names:
            path = tmp_path / "videos" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
            np.save(kept.path_of(name.encode()), np.zeros((40, 7, 7, 6), np.float16))
        return tmp_path / "videos"

    return make


def learn(command: str, videos: Path, *options: object) -> Result:
    """`features`, `train` or `evaluate`; every folder is one beside the clips'."""
    beside = videos.parent
    folders = {
        "features": ("--output", beside / "features"),
        "train": ("--output", beside / "head", "--features", beside / "features"),
        "evaluate": ("--output", beside / "evaluation", "--features", beside / "features"),
    }
    return run(command, "--videos", videos, *folders[command], "--weights", beside / "vgg19.h5", *options)


@pytest.mark.parametrize("command", ("features", "train", "evaluate"))
class TestFoldersOfClips:
    def test_class_without_clips(self, make_videos: MakeVideos, command: str) -> None:
        videos = make_videos("squats/a.mp4", "waving/notes.txt")
        assert_one_sentence(learn(command, videos), str(videos / "waving"), "no clips", "remove the folder")

    def test_class_asked_for_twice(self, make_videos: MakeVideos, command: str) -> None:
        videos = make_videos("squats/a.mp4", "waving/a.mp4")
        result = learn(command, videos, "--class", "squats", "--class", "waving", "--class", "Squats")
        assert_one_sentence(result, "a class is named twice (squats, Squats)", "keep one")

    def test_two_folders_of_one_class(self, make_videos: MakeVideos, command: str) -> None:
        videos = make_videos("squats/a.mp4", "Squats/b.mp4")
        if len(list(videos.iterdir())) == 1:
            pytest.skip("this file system ignores case")
        assert_one_sentence(learn(command, videos), str(videos), "a class is named twice", "keep one")

    def test_class_that_is_not_there(self, make_videos: MakeVideos, command: str) -> None:
        videos = make_videos("squats/a.mp4", "waving/a.mp4")
        assert_one_sentence(learn(command, videos, "--class", "diving"), str(videos), "diving", "squats, waving")

    def test_class_of_which_no_clip_can_be_decoded(self, make_videos: MakeVideos, command: str) -> None:
        videos = make_videos("squats/a.mp4")
        (videos / "waving").mkdir()
        for name in ("a.mp4", "b.mp4"):
            (videos / "waving" / name).write_text(f"{name} is no video")
        result = learn(command, videos)
        assert_one_sentence(result, str(videos / "waving"), "can be decoded (", "replace them or remove the folder")

    @pytest.mark.parametrize("fact", ("encoder_sha256", "sampling_revision"))
    def test_features_of_another_network_or_other_frames(
        self, make_videos: MakeVideos, tmp_path: Path, command: str, fact: str
    ) -> None:
        videos = make_videos("squats/a.mp4", "waving/a.mp4")
        origin = tmp_path / "features" / "cache.json"
        origin.write_text(json.dumps({**json.loads(origin.read_text()), fact: "another"}))
        result = learn(command, videos)
        assert_one_sentence(result, str(tmp_path / "features"), f"of another {fact}", "choose another folder")


@pytest.mark.parametrize("command", ("train", "evaluate"))
def test_one_class_is_nothing_to_learn(make_videos: MakeVideos, command: str) -> None:
    videos = make_videos("squats/a.mp4", "squats/b.mp4", "waving/a.mp4")
    result = learn(command, videos, "--class", "squats")
    assert_one_sentence(result, str(videos), "squats alone", "add clips of another class")


class TestEvaluate:
    def test_fewer_groups_than_folds(self, make_videos: MakeVideos) -> None:
        squats = [f"squats/v_squats_g{group:02}_c01.mp4" for group in (1, 2, 3, 4)]
        videos = make_videos(*squats, *(f"waving/v_waving_g01_c{clip:02}.mp4" for clip in (1, 2, 3, 4)))
        assert_one_sentence(learn("evaluate", videos), "waving", "(1) for 4 folds", "ask for fewer folds")

    def test_fewer_clips_than_random_folds(self, make_videos: MakeVideos) -> None:
        videos = make_videos("squats/a.mp4", "squats/b.mp4", "waving/a.mp4", "waving/b.mp4")
        result = learn("evaluate", videos, "--folds", "random", "--k-fold", 3)
        assert_one_sentence(result, "squats", "(2) for 3 folds", "ask for fewer folds")

    def test_split_without_its_files(self, make_videos: MakeVideos) -> None:
        assert_one_sentence(learn("evaluate", make_videos("squats/a.mp4"), "--split", 1), "--split needs --split-files")

    @pytest.mark.parametrize(
        ("lists", "parts"),
        (
            ({"readme.txt": "none"}, ("holds no official split lists", "trainlist0N.txt")),
            ({"classInd.txt": "squats 1"}, ("classInd.txt, line 1", "'squats 1'", "take the official list again")),
            ({"classInd.txt": "1 squats"}, ("trainlist01.txt", "No such file", "put the official split lists")),
            ({"squats_test_split1.txt": "a.avi 1\nb.avi 3"}, ("_split1.txt, line 2", "'b.avi 3'", "0 (unused)")),
        ),
    )
    def test_split_lists_that_are_none(
        self, make_videos: MakeVideos, tmp_path: Path, lists: dict[str, str], parts: tuple[str, ...]
    ) -> None:
        folder = tmp_path / "lists"
        folder.mkdir()
        for name, text in lists.items():
            (folder / name).write_text(text)
        result = learn("evaluate", make_videos("squats/a.mp4"), "--split", 1, "--split-files", folder)
        assert_one_sentence(result, str(folder), *parts)

    def test_split_of_another_data_set(self, make_videos: MakeVideos, tmp_path: Path) -> None:
        (tmp_path / "dive_test_split1.txt").write_text("a.avi 1\nb.avi 2")
        result = learn("evaluate", make_videos("squats/a.mp4", "waving/a.mp4"), "--split", 1, "--split-files", tmp_path)
        assert_one_sentence(result, "none of the clips", "take the split of this data set")

    def test_split_of_a_number_there_is_not(self, make_videos: MakeVideos, tmp_path: Path) -> None:
        result = learn("evaluate", make_videos("squats/a.mp4"), "--split", 4, "--split-files", tmp_path)
        assert result.exit_code == 2
        assert "--split" in result.stderr


class TestTrain:
    def test_class_with_nothing_to_hold_out(self, make_videos: MakeVideos) -> None:
        videos = make_videos("squats/a.mp4", "squats/b.mp4", "waving/a.mp4")
        assert_one_sentence(learn("train", videos), "waving has one source video", "add clips")

    def test_checkpoints_of_another_variant(self, make_videos: MakeVideos, tmp_path: Path) -> None:
        from model_export.training import Recipe

        recipe = tmp_path / "head" / "run" / "recipe.json"
        recipe.parent.mkdir(parents=True)
        recipe.write_text(json.dumps(asdict(Recipe(variant="base"))))
        videos = make_videos("squats/a.mp4", "squats/b.mp4", "waving/a.mp4", "waving/b.mp4")
        assert_one_sentence(learn("train", videos), str(recipe), "variant", f"remove {recipe.parent}", "--output")

    @pytest.mark.parametrize(
        ("report", "complaint"),
        (
            (None, "cannot be read"),
            ("[]", "cannot be read"),
            ('{"experiments": [', "cannot be read"),
            ('{"experiments": [{"methods": [{"recipe": "variant=base"}]}]}', "judges other recipes or classes"),
        ),
    )
    def test_evaluation_that_says_nothing_of_the_recipe(
        self, make_videos: MakeVideos, tmp_path: Path, report: str | None, complaint: str
    ) -> None:
        if report is not None:
            (tmp_path / "report.json").write_text(report)
        result = learn("train", make_videos("squats/a.mp4", "waving/a.mp4"), "--evaluation", tmp_path)
        assert_one_sentence(result, str(tmp_path / "report.json"), complaint, "`limelight-model evaluate`")
