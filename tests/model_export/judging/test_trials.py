"""Heads trained once a part of the data, recipes to compare, protocols, and what a report says of a recipe."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model_export.data.datasets import Clip, Side, Split
from model_export.evaluation import EvaluationError
from model_export.data.examples import Example
from model_export.experiment import (
    HeadTrials,
    accuracy_facts,
    data_facts,
    fold_protocol,
    recipe_line,
    recipes,
    split_protocol,
)
from model_export.data.gathering import Gathered
from model_export.training import LogLine, Recipe

QUICK = Recipe(epochs=1, batch_size=4, holdout=0)
LABELS = ("squats", "waving")


@pytest.fixture
def clips(tmp_path: Path) -> list[Clip]:
    """Two clips of each of two groups of each of two classes."""
    return [
        Clip(tmp_path / label / f"v_{label}_g0{group}_c0{number}.mp4", label, f"v_{label}_g0{group}")
        for label in LABELS
        for group in (1, 2)
        for number in (1, 2)
    ]


@pytest.fixture
def examples(clips: list[Clip], tmp_path: Path) -> list[Example]:
    random = np.random.default_rng(0)
    made = []
    for clip in clips:
        file = tmp_path / f"{clip.path.stem}.npy"
        np.save(file, random.random((40, 7, 7, 4)).astype(np.float16))
        made.append(Example(file, LABELS.index(clip.label), clip.group, f"{clip.label}/{clip.path.name}"))
    return made


@pytest.fixture
def data(clips: list[Clip], examples: list[Example], tmp_path: Path) -> Gathered:
    """All of them, and one that could not be decoded."""
    damaged = Clip(tmp_path / "waving" / "v_waving_g03_c01.mp4", "waving", "v_waving_g03")
    return Gathered(
        videos=tmp_path / "gym",
        labels=LABELS,
        clips=(*clips, damaged),
        examples=tuple(examples),
        undecodable={damaged: "cut off"},
        encoded=0,
        engine_name=None,
    )


class TestHeadTrials:
    def test_a_head_is_trained_once_for_the_same_clips(self, examples: list[Example], tmp_path: Path) -> None:
        told: list[tuple[str, float]] = []

        def tell(name: str, line: LogLine) -> None:
            told.append((name, line["epoch"]))

        trials = HeadTrials(QUICK, 2, tmp_path / "runs", tell)
        first = trials.head(examples[:6])
        assert told == [("attention (content)", 1)]

        again = HeadTrials(QUICK, 2, tmp_path / "runs", tell).head(examples[:6])
        assert len(told) == 1, "it was trained a second time"
        for one, other in zip(first.get_weights(), again.get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)

        trials.head(examples[2:])
        assert len(told) == 2, "a head for other clips was not trained"

    def test_a_contender_is_trained_on_the_first_clips_and_names_the_second(
        self, examples: list[Example], tmp_path: Path
    ) -> None:
        phases: list[str] = []
        recipe = replace(QUICK, variant="base")
        contender = HeadTrials(recipe, 2, tmp_path / "runs", lambda name, line: phases.append(name)).contender()
        found = contender.fit(examples[:5], examples[5:])
        assert (contender.name, contender.recipe) == ("base", recipe_line(recipe))
        assert phases == ["base"]
        assert found.shape == (3, 2)
        np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)


class TestRecipes:
    def test_each_variant_meets_each_way_to_score_that_it_has(self) -> None:
        found = recipes(replace(QUICK, seed=3), ["attention", "base", "attention"], ["state", "content", "state"])
        assert [(recipe.variant, recipe.attention_scores) for recipe in found] == [
            ("attention", "state"),
            ("attention", "content"),
            ("base", "content"),
        ]
        assert {recipe.seed for recipe in found} == {3}

    def test_contenders_have_names_that_tell_them_apart(self, tmp_path: Path) -> None:
        found = recipes(QUICK, ["attention", "base"], ["state", "content"])
        names = [HeadTrials(recipe, 2, tmp_path, lambda name, line: None).name for recipe in found]
        assert names == ["attention (state)", "attention (content)", "base"]

    def test_a_line_tells_every_setting(self) -> None:
        line = recipe_line(replace(QUICK, learning_rate=0.25, members=7))
        assert "variant=attention, attention_scores=content, readout=mean" in line
        assert "learning_rate=0.25" in line
        assert "members=7" in line


class TestProtocols:
    def test_grouped_folds_keep_a_group_together(self, data: Gathered) -> None:
        protocol = fold_protocol(data, 2, seed=0)
        assert (protocol.title, protocol.kind, protocol.partition) == ("2 grouped folds", "grouped", None)
        for fold in protocol.folds:
            assert groups(data, fold.train).isdisjoint(groups(data, fold.test))

    def test_random_folds_do_not(self, data: Gathered) -> None:
        protocol = fold_protocol(data, 2, seed=0, random=True)
        assert (protocol.title, protocol.kind) == ("2 random folds", "random")
        assert any(groups(data, fold.train) & groups(data, fold.test) for fold in protocol.folds)

    def test_a_split_divides_what_could_be_decoded(self, data: Gathered, clips: list[Clip]) -> None:
        sides = {(clip.label, clip.path.stem): Side.TRAIN if "g02" in clip.group else Side.TEST for clip in clips[1:]}
        sides |= {("waving", "v_waving_g03_c01"): Side.TEST, ("waving", "v_waving_g04_c01"): Side.TEST}
        protocol = split_protocol(data, Split("split 1", sides))
        (fold,) = protocol.folds
        assert (protocol.title, protocol.kind) == ("split 1", "official")
        assert groups(data, fold.train) == {"v_squats_g02", "v_waving_g02"}
        assert groups(data, fold.test) == {"v_squats_g01", "v_waving_g01"}

        facts = data_facts(data, [protocol])
        assert (facts.name, facts.clips, facts.classes, facts.groups) == ("gym", 8, 2, 4)
        assert facts.extra == ("squats/v_squats_g01_c01.mp4",)
        assert facts.undecodable == ("waving/v_waving_g03_c01.mp4",)
        assert facts.missing == ("waving/v_waving_g04_c01",), "what is there but damaged is not missing"

    def test_a_split_of_other_clips_is_refused(self, data: Gathered) -> None:
        split = Split("split 1", {("diving", "a"): Side.TRAIN, ("diving", "b"): Side.TEST})
        with pytest.raises(EvaluationError, match="take the split of this data set"):
            split_protocol(data, split)


def groups(data: Gathered, indices: Sequence[int]) -> set[str]:
    return {data.examples[i].group for i in indices}


class TestAccuracyFacts:
    @pytest.fixture
    def report(self, tmp_path: Path) -> Path:
        """What `evaluate` writes, as far as it is read: two recipes under two protocols."""

        def method(recipe: Recipe, value: float, deviation: float | None) -> dict[str, object]:
            accuracy = {"value": value, "low": 0.5, "high": 1.0, "mean": value, "deviation": deviation}
            return {"name": "attention", "recipe": recipe_line(recipe), "labels": LABELS, "accuracy": accuracy}

        experiments = [
            {"name": name, "clips": clips, "methods": [method(QUICK, value, deviation), method(Recipe(), 0.1, 0.1)]}
            for name, clips, value, deviation in (("4 grouped folds", 24, 0.912345, 0.02), ("split 1", 8, 0.8, None))
        ]
        path = tmp_path / "report.json"
        path.write_text(json.dumps({"experiments": experiments}))
        return path

    def test_are_those_of_the_recipe_by_protocol(self, report: Path) -> None:
        facts = accuracy_facts(report, QUICK, LABELS)
        assert facts is not None
        assert facts["4 grouped folds"] == {
            "clips": 24,
            "value": 0.9123,
            "low": 0.5,
            "high": 1.0,
            "mean": 0.9123,
            "deviation": 0.02,
        }
        assert facts["split 1"]["deviation"] is None

    def test_of_another_recipe_or_of_other_classes_there_are_none(self, report: Path) -> None:
        assert accuracy_facts(report, replace(QUICK, seed=1), LABELS) is None
        assert accuracy_facts(report, QUICK, ("squats", "diving")) is None
