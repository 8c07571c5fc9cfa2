"""The command ``train`` up to the fitting; the rest is tested in tests/e2e."""

import json
from pathlib import Path

import pytest

from model_export.data.features import FeatureCache
from model_export.errors import DatasetError, HeadError, ReportError, TrainingError
from model_export.network.spec import HeadSpec
from model_export.recipe import Recipe, describe, settings
from model_export.training import train_head
from tests.model_export.cached_clips import CachedClips


def train(cached: CachedClips, *names: str, **options: object) -> None:
    train_head(
        cached.add(*names),
        cached.features,
        cached.folder / "head",
        HeadSpec(),
        Recipe(),
        weights=cached.weights,
        **options,  # type: ignore[arg-type]
    )


@pytest.fixture
def no_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FeatureCache, "get", lambda *_: pytest.fail("features were computed"))


@pytest.mark.parametrize("option", ["name", "version"])
def test_a_head_without_a_name_or_version_is_refused_first(cached: CachedClips, option: str) -> None:
    with pytest.raises(HeadError, match="--name and --version must not be empty"):
        train(cached, **{option: ""})


def test_one_class_is_refused(cached: CachedClips) -> None:
    with pytest.raises(DatasetError, match="squats is the only class"):
        train(cached, "squats/a.mp4", "squats/b.mp4")


def test_a_class_with_nothing_to_hold_out_is_named(cached: CachedClips) -> None:
    with pytest.raises(TrainingError, match=r"waving has one source video.*add clips .*--holdout 0"):
        train(cached, "squats/a.mp4", "squats/b.mp4", "waving/a.mp4")


@pytest.mark.usefixtures("no_encoding")
def test_checkpoints_of_another_variant_are_refused_before_clips_are_encoded(cached: CachedClips) -> None:
    recipe = cached.folder / "head" / "run" / "recipe.json"
    recipe.parent.mkdir(parents=True)
    recipe.write_text(json.dumps(settings(HeadSpec(variant="base"), Recipe())), encoding="utf-8")
    with pytest.raises(
        TrainingError,
        match=rf"the checkpoints in {recipe.parent} belong to another .*variant; remove the folder, .*--output",
    ):
        train(cached, "squats/a.mp4", "squats/b.mp4", "waving/a.mp4", "waving/b.mp4")


@pytest.mark.usefixtures("no_encoding")
def test_a_class_with_nothing_to_hold_out_is_named_before_clips_are_encoded(cached: CachedClips) -> None:
    cached.add("squats/a.mp4", "squats/b.mp4", "waving/a.mp4")
    (cached.videos / "waving" / "copy.mp4").write_bytes((cached.videos / "waving" / "a.mp4").read_bytes())
    with pytest.raises(TrainingError, match=r"waving has one source video.*add clips .*--holdout 0"):
        train(cached)


@pytest.mark.usefixtures("no_encoding")
def test_an_evaluation_of_other_clips_is_refused(cached: CachedClips, tmp_path: Path) -> None:
    cached.add("squats/a.mp4", "squats/b.mp4", "waving/a.mp4", "waving/b.mp4")
    method = {"recipe": describe(HeadSpec(), Recipe()), "labels": ["squats", "waving"], "accuracy": {"value": 1.0}}
    experiment = {"name": "4 grouped folds", "kind": "grouped", "clips": 4, "videos": 4, "methods": [method]}
    selected = {"squats": {"clips": 2, "sha256": ""}, "waving": {"clips": 3, "sha256": ""}}
    report = json.dumps({"data": {"selected": selected}, "experiments": [experiment]})
    (tmp_path / "report.json").write_text(report, encoding="utf-8")
    with pytest.raises(
        ReportError,
        match=r"is about other clips or groups of squats \(2 then, 2 now\), waving \(3 then, 2 now\); run `limelight",
    ):
        train(cached, evaluation=tmp_path)


@pytest.mark.usefixtures("no_encoding")
def test_an_evaluation_of_another_recipe_is_refused_before_clips_are_encoded(
    cached: CachedClips, tmp_path: Path
) -> None:
    (tmp_path / "report.json").write_text(
        '{"experiments": [{"methods": [{"recipe": "variant=base"}]}]}', encoding="utf-8"
    )
    with pytest.raises(
        ReportError, match="has no head of this recipe and these classes; run `limelight-model evaluate`"
    ):
        train(cached, "squats/a.mp4", "waving/a.mp4", evaluation=tmp_path)
