"""Protocols of an evaluation, and the command itself."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from model_export.data.datasets import LabelledClip, Side, Split
from model_export.data.examples import Example
from model_export.data.features import FeatureCache
from model_export.data.gathering import FeatureSet, Selection, gather_features
from model_export.errors import DatasetError, EvaluationError, FoldError, TrainingError
from model_export.judging.cross_validation import Contender, cross_validate
from model_export.judging.evaluation import data_facts, evaluate, fold_protocol, split_protocol
from model_export.judging.plan import EvaluationPlan
from model_export.network.spec import HeadSpec
from model_export.recipe import Recipe
from tests.model_export.cached_clips import CachedClips
from tests.model_export.judging.conftest import LABELS


@pytest.fixture
def data(clips: list[LabelledClip], examples: list[Example], tmp_path: Path) -> FeatureSet:
    """The features of all clips, and a further clip that could not be decoded."""
    damaged = LabelledClip(tmp_path / "waving" / "v_waving_g03_c01.mp4", "waving", "v_waving_g03")
    return FeatureSet(
        videos=tmp_path / "gym",
        labels=LABELS,
        clips=(*clips, damaged),
        examples=tuple(examples),
        undecodable={damaged: "cut off"},
        engine="MNN",
        dtype="float16",
    )


class TestProtocols:
    def test_grouped_folds_keep_a_group_together(self, data: FeatureSet) -> None:
        protocol = fold_protocol(data, "grouped", 2, seed=0)
        assert (protocol.title, protocol.kind, protocol.partition) == ("2 grouped folds", "grouped", None)
        for fold in protocol.folds:
            assert groups(data, fold.train).isdisjoint(groups(data, fold.test))

    def test_random_folds_separate_clips_of_a_group(self, data: FeatureSet) -> None:
        protocol = fold_protocol(data, "random", 2, seed=0)
        assert (protocol.title, protocol.kind) == ("2 random folds", "random")
        assert any(groups(data, fold.train) & groups(data, fold.test) for fold in protocol.folds)

    def test_a_split_divides_the_clips_that_could_be_decoded(self, data: FeatureSet, clips: list[LabelledClip]) -> None:
        sides = {(clip.label, clip.path.stem): Side.TRAIN if "g02" in clip.group else Side.TEST for clip in clips[1:]}
        sides |= {("waving", "v_waving_g03_c01"): Side.TEST, ("waving", "v_waving_g04_c01"): Side.TEST}
        protocol = split_protocol(data, Split("split 1", sides))
        (fold,) = protocol.folds
        assert (protocol.title, protocol.kind) == ("split 1", "official")
        assert groups(data, fold.train) == {"v_squats_g02", "v_waving_g02"}
        assert groups(data, fold.test) == {"v_squats_g01", "v_waving_g01"}

        facts = data_facts(data, [protocol])
        assert (facts.name, facts.clips, facts.classes, facts.groups) == ("gym", 7, 2, 4), "without the extra clip"
        assert facts.extra == ("squats/v_squats_g01_c01.mp4",)
        assert facts.undecodable == ("waving/v_waving_g03_c01.mp4",)
        assert facts.missing == ("waving/v_waving_g04_c01",), "a damaged clip is not missing"

    def test_clips_that_no_split_uses_are_not_counted_as_used(
        self, data: FeatureSet, clips: list[LabelledClip]
    ) -> None:
        def split(*unused: str) -> Split:
            sides = {(c.label, c.path.stem): Side.TRAIN if "g02" in c.group else Side.TEST for c in clips}
            return Split("split", sides | dict.fromkeys([("waving", stem) for stem in unused], Side.UNUSED))

        group = ["v_waving_g01_c01", "v_waving_g01_c02"]
        first, second = split(*group), split(group[0], "v_waving_g02_c01")
        facts = data_facts(data, [split_protocol(data, first)])
        assert (facts.clips, facts.groups) == (6, 3)
        assert facts.unused == ("waving/v_waving_g01_c01.mp4", "waving/v_waving_g01_c02.mp4")
        facts = data_facts(data, [split_protocol(data, first), split_protocol(data, second)])
        assert (facts.clips, facts.groups, facts.unused) == (7, 4, ("waving/v_waving_g01_c01.mp4",))
        facts = data_facts(data, [fold_protocol(data, "grouped", 2, seed=0)])
        assert (facts.clips, facts.groups, facts.unused) == (8, 4, ())

    def test_a_split_of_other_clips_is_refused(self, data: FeatureSet) -> None:
        split = Split("split 1", {("diving", "a"): Side.TRAIN, ("diving", "b"): Side.TEST})
        with pytest.raises(FoldError, match="give the split lists of this data set"):
            split_protocol(data, split)


def test_clips_of_a_film_that_an_official_split_trains_on_are_counted(cached: CachedClips) -> None:
    sides = {
        ("run", "RETURN_OF_THE_KING_run_f_cm_np1_ba_med_0"): Side.TRAIN,
        ("walk", "The_Matrix_1_walk_f_cm_np1_ba_med_0"): Side.TRAIN,
        ("run", "Return_of_the_King_13_run_f_cm_np1_ba_med_0"): Side.TEST,
        ("walk", "Return_of_the_King_2_walk_f_cm_np1_ba_med_0"): Side.TEST,
        ("walk", "The_Matrix_Revolutions_1_walk_f_cm_np1_ba_med_0"): Side.TEST,
        ("walk", "copied_walk_f_cm_np1_ba_med_0"): Side.TEST,
    }
    cached.add(*(f"{label}/{stem}.avi" for label, stem in list(sides)[:-1]))
    copy = cached.videos / "walk" / "copied_walk_f_cm_np1_ba_med_0.avi"
    copy.write_text("walk/The_Matrix_1_walk_f_cm_np1_ba_med_0.avi", encoding="utf-8")
    data = gather_features(Selection(cached.videos), cached.weights, cached.features)
    constant = Contender("constant", lambda train, test: np.full((len(test), 2), 0.5), "")
    (found,) = cross_validate(
        data.examples, split_protocol(data, Split("split 1", sides)).folds, [constant], data.labels
    )
    assert {name for name, leaked in zip(found.names, found.leaked, strict=True) if leaked} == {
        "run/Return_of_the_King_13_run_f_cm_np1_ba_med_0.avi",
        "walk/Return_of_the_King_2_walk_f_cm_np1_ba_med_0.avi",
        "walk/copied_walk_f_cm_np1_ba_med_0.avi",
    }


def groups(data: FeatureSet, indices: Sequence[int]) -> set[str]:
    return {data.examples[i].group for i in indices}


def test_every_training_is_run_as_asked_and_the_lstm_chooses_its_epochs_whatever_the_heads_do(
    cached: CachedClips,
) -> None:
    trained: list[str] = []

    def run(work: Any, tell: Any) -> Any:
        trainer = work.func.__self__
        trained.append(getattr(trainer, "name", None) or f"plain LSTM, {trainer.holdout} held out")
        return np.full((len(work.args[1]), 2), 0.5)

    names = [f"{label}/v_{label}_g{group:02}_c01.mp4" for label in LABELS for group in (1, 2, 3, 4)]
    plan = EvaluationPlan(k_fold=2, attention_quality=False)
    found = evaluate(
        cached.add(*names),
        cached.features,
        cached.folder / "evaluation",
        plan,
        HeadSpec(),
        Recipe(holdout=0),
        weights=cached.weights,
        run=run,
    )
    heads = (
        "attention (content)",
        "base",
        "uniform attention",
        "attention (content), without motion",
        "base, without motion",
    )
    lstm = "plain LSTM, 0.25 held out"
    assert trained == [name for name in (*heads, lstm, lstm) for _ in range(plan.k_fold)]
    text = found.report.read_text(encoding="utf-8")
    for method in (*heads, "logistic regression", "logistic regression, with motion", "plain LSTM, with motion"):
        assert f"\n| {method} |" in text
    facts = json.loads(found.report.with_suffix(".json").read_text(encoding="utf-8"))["run"]
    assert facts["versions"]["tensorflow"] == tf.__version__
    assert set(facts["versions"]) == {"limelight", "python", "tensorflow", "keras", "numpy", "sklearn"}
    assert facts["processor"]
    (settings,) = [line for line in text.splitlines() if line.startswith("- plain LSTM:")]
    assert settings.endswith("epochs chosen on groups held out of its training side, also with --holdout 0")


def test_uniform_attention_is_judged_as_a_method_and_its_maps_are_not(cached: CachedClips, tmp_path: Path) -> None:
    """To judge maps, clips would be rendered and encoded, and one test clip would not be enough."""
    (tmp_path / "squats_test_split1.txt").write_text("a.avi 1\nb.avi 2", encoding="utf-8")
    (tmp_path / "waving_test_split1.txt").write_text("a.avi 1", encoding="utf-8")

    def run(work: Any, tell: Any) -> Any:
        return np.full((len(work.args[1]), 2), 0.5)

    plan = EvaluationPlan(
        split=(1,), split_files=tmp_path, variant=("attention",), attention_scores=("uniform",), controls=False
    )
    found = evaluate(
        cached.add("squats/a.avi", "squats/b.avi", "waving/a.avi"),
        cached.features,
        cached.folder / "evaluation",
        plan,
        HeadSpec(),
        Recipe(holdout=0),
        weights=cached.weights,
        run=run,
    )
    report = json.loads(found.report.with_suffix(".json").read_text(encoding="utf-8"))
    assert report["experiments"][0]["methods"][0]["name"] == "uniform attention"
    assert report["sections"] == {}


def test_a_report_is_continued_after_clips_were_renamed_and_has_the_same_figures(cached: CachedClips) -> None:
    random = np.random.default_rng(0)
    answers: dict[str, Any] = {}

    def trained(work: Any, tell: Any) -> Any:
        return np.stack([answers.setdefault(e.features.name, random.dirichlet([1, 1])) for e in work.args[1]])

    def refuses(work: Any, tell: Any) -> Any:
        raise AssertionError("trained again")

    def figures(run: Any) -> object:
        found = evaluate(
            Selection(cached.videos),
            cached.features,
            cached.folder / "evaluation",
            EvaluationPlan(k_fold=2, folds=("grouped", "random"), attention_quality=False),
            HeadSpec(),
            Recipe(holdout=0),
            weights=cached.weights,
            run=run,
        )
        facts = json.loads(found.report.with_suffix(".json").read_text(encoding="utf-8"))
        return facts["experiments"], facts["data"]

    cached.add(
        *(f"{label}/v_{label}_g{group:02}_c{cut:02}.mp4" for label in LABELS for group in range(5) for cut in (1, 2))
    )
    before = figures(trained)
    for path in [path for folder in cached.videos.iterdir() for path in folder.iterdir()]:
        path.rename(path.with_name(f"v_{path.parent.name}_g{90 - int(path.stem[-6:-4])}_c{path.stem[-1]}.mp4"))
    assert figures(refuses) == before


def evaluate_with(cached: CachedClips, *names: str, **plan: Any) -> None:
    evaluate(
        cached.add(*names),
        cached.features,
        cached.folder / "evaluation",
        EvaluationPlan(**plan),
        HeadSpec(),
        Recipe(),
        weights=cached.weights,
    )


class TestBeforeEncoding:
    """What can be known from names and files is checked before hours of encoding."""

    @pytest.fixture(autouse=True)
    def no_encoding(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(FeatureCache, "get", lambda *_: pytest.fail("features were computed"))

    def test_copies_are_one_group_and_too_few_groups_are_refused(self, cached: CachedClips) -> None:
        cached.add(*(f"{label}/{clip}.mp4" for label in LABELS for clip in "abcd"))
        (cached.videos / "waving" / "d.mp4").write_text("waving/a.mp4", encoding="utf-8")
        with pytest.raises(FoldError, match=r"waving has too few source videos \(3\) for 4 folds"):
            evaluate_with(cached)

    def test_folds_that_leave_nothing_to_hold_out_are_refused(self, cached: CachedClips) -> None:
        names = [f"{label}/{clip}.mp4" for label in LABELS for clip in "ab"]
        with pytest.raises(TrainingError, match=r"squats has one source video to train on.*--holdout 0"):
            evaluate_with(cached, *names, k_fold=2)

    @pytest.mark.parametrize(
        ("lists", "fault"),
        [
            ("a.avi 1\nb.avi 1", "none of the clips is on the split's test side; add clips of that side, or leave"),
            ("x.avi 1\ny.avi 2", "the split lists none of the clips; give the split lists of this data set"),
            ("a.avi 1\nb.avi 2", "squats is the only class with clips on the split's training side; add clips of"),
        ],
    )
    def test_splits_that_do_not_fit_are_refused(
        self, cached: CachedClips, tmp_path: Path, lists: str, fault: str
    ) -> None:
        (tmp_path / "squats_test_split1.txt").write_text(lists, encoding="utf-8")
        names = ("squats/a.avi", "squats/b.avi", "waving/a.avi")
        with pytest.raises(FoldError, match=fault):
            evaluate_with(cached, *names, split=(1,), split_files=tmp_path)

    def test_attention_is_not_judged_on_one_source_video(self, cached: CachedClips, tmp_path: Path) -> None:
        (tmp_path / "squats_test_split1.txt").write_text("a.avi 1\nb.avi 2", encoding="utf-8")
        (tmp_path / "waving_test_split1.txt").write_text("a.avi 1", encoding="utf-8")
        with pytest.raises(
            EvaluationError, match=r"judged on HMDB-51 split 1, .*fewer than two.*--no-attention-quality$"
        ):
            evaluate_with(cached, "squats/a.avi", "squats/b.avi", "waving/a.avi", split=(1,), split_files=tmp_path)


class TestRefusals:
    def test_one_class_is_refused(self, cached: CachedClips) -> None:
        with pytest.raises(DatasetError, match="squats is the only class"):
            evaluate_with(cached, "squats/a.mp4", "squats/b.mp4")

    def test_fewer_groups_than_folds_are_refused(self, cached: CachedClips) -> None:
        squats = [f"squats/v_squats_g{group:02}_c01.mp4" for group in (1, 2, 3, 4)]
        waving = [f"waving/v_waving_g01_c{clip:02}.mp4" for clip in (1, 2, 3, 4)]
        with pytest.raises(FoldError, match=r"waving .* \(1\) for 4 folds; lower --k-fold"):
            evaluate_with(cached, *squats, *waving)

    def test_fewer_clips_than_random_folds_are_refused(self, cached: CachedClips) -> None:
        names = [f"{label}/{clip}.mp4" for label in LABELS for clip in "ab"]
        with pytest.raises(FoldError, match=r"squats .* \(2\) for 3 folds; lower --k-fold"):
            evaluate_with(cached, *names, folds=("random",), k_fold=3)

    def test_a_split_without_its_lists_is_refused(self, cached: CachedClips) -> None:
        with pytest.raises(DatasetError, match=r"--split needs the official split lists; .* --split-files"):
            evaluate_with(cached, "squats/a.mp4", split=(1,))

    @pytest.mark.parametrize(
        ("lists", "complaint"),
        [
            ({"readme.txt": "none"}, "holds no official split lists.*trainlist0N.txt"),
            ({"classInd.txt": "squats 1"}, "classInd.txt, line 1: 'squats 1'.*download the official list again"),
            ({"classInd.txt": "1 squats"}, "trainlist01.txt.*No such file.*put the official split lists"),
            ({"squats_test_split1.txt": "a.avi 1\nb.avi 3"}, r"_split1.txt, line 2: 'b.avi 3'.*0 \(unused\)"),
        ],
    )
    def test_malformed_lists_are_refused(
        self, cached: CachedClips, tmp_path: Path, lists: dict[str, str], complaint: str
    ) -> None:
        folder = tmp_path / "lists"
        folder.mkdir()
        for name, text in lists.items():
            (folder / name).write_text(text, encoding="utf-8")
        with pytest.raises(DatasetError, match=rf"{folder}.*{complaint}"):
            evaluate_with(cached, "squats/a.mp4", split=(1,), split_files=folder)
