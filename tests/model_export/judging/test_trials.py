"""Heads that are trained once for the same clips."""

import gc
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest

from model_export.data.examples import Example
from model_export.data.folds import Fold, grouped_folds
from model_export.judging.baselines import plain_lstm
from model_export.judging.cross_validation import Contender, cross_validate
from model_export.judging.plan import EvaluationPlan
from model_export.judging.results import Results
from model_export.judging.trials import HeadTrials
from model_export.network.spec import HeadSpec
from model_export.processes import Run, run_apart, run_here
from model_export.recipe import Recipe, describe
from model_export.reporter import Advance
from tests.model_export.judging.conftest import LABELS
from tests.model_export.reporting import Recording

QUICK = Recipe(epochs=1, batch_size=4, holdout=0)


def test_a_head_is_trained_once_for_the_same_clips(examples: list[Example], tmp_path: Path) -> None:
    heard = Recording()
    lines = heard.lines
    trials = HeadTrials(HeadSpec(), QUICK, 2, tmp_path / "runs")
    first = trials.head(examples[:6], heard.hear)
    assert [line.partition(":")[0] for line in lines] == ["  attention (content), epoch 1"]

    again = HeadTrials(HeadSpec(), QUICK, 2, tmp_path / "runs").head(examples[:6], heard.hear)
    assert len(lines) == 1, "it was trained a second time"
    for one, other in zip(first.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)

    trials.head(examples[2:], heard.hear)
    assert len(lines) == 2, "a head for other clips was not trained"


def test_heads_of_other_classes_clips_labels_and_groups_are_kept_apart(
    examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders: list[Path] = []
    boards: list[Path] = []

    def fit_head(*arguments: Any, run: Path, **_: Any) -> SimpleNamespace:
        folders.append(run)
        if board := arguments[3].tensorboard:
            boards.append(board)
        return SimpleNamespace(model=None)

    monkeypatch.setattr("model_export.judging.trials.fit_head", fit_head)
    board = QUICK.model_copy(update={"tensorboard": tmp_path / "board"})
    trials = HeadTrials(HeadSpec(), QUICK, 2, tmp_path)
    first, *rest = examples
    replace(trials, recipe=board).head(examples)
    assert boards == [tmp_path / "board" / "attention-content" / folders[0].name]
    folders.clear()
    trials.head(examples)
    replace(trials, classes=3).head(examples)
    for changed in (replace(first, features=Path("new.npy")), replace(first, label=1), replace(first, group="new")):
        trials.head([changed, *rest])
    assert len(set(folders)) == 5
    trials.head(examples)
    trials.head([replace(one, name=f"new {one.name}", group=f"new {one.group}") for one in examples])
    assert folders[-2:] == [folders[0]] * 2, "names do not matter"


def test_a_contender_is_trained_on_the_first_clips_and_predicts_the_second(
    examples: list[Example], tmp_path: Path
) -> None:
    base = HeadSpec(variant="base")
    contender = HeadTrials(base, QUICK, 2, tmp_path / "runs").contender()
    found = contender.fit(examples[:5], examples[5:])
    assert (contender.name, contender.recipe) == ("base", describe(base, QUICK))
    assert found.shape == (3, 2)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)


def test_contenders_of_one_plan_have_different_names(tmp_path: Path) -> None:
    plan = EvaluationPlan(variant=("attention", "base"), attention_scores=("state", "content"))
    names = [HeadTrials(spec, QUICK, 2, tmp_path).name for spec in plan.specs(HeadSpec())]
    assert names == ["attention (state)", "attention (content)", "base"]
    controls = [HeadTrials(spec, QUICK, 2, tmp_path).name for spec in plan.control_specs(HeadSpec())]
    without = [f"{name}, without motion" for name in names]
    assert controls == ["uniform attention", *without]


class MemoryRecording(Recording):
    """Also records the resident memory of this process, in KiB, at the end of each fold."""

    def __init__(self) -> None:
        super().__init__()
        self.resident: list[int] = []

    def say(self, line: str) -> None:
        super().say(line)
        if line.endswith("finished"):
            status = Path("/proc/self/status").read_text(encoding="utf-8")
            self.resident.append(int(status.partition("VmRSS:")[2].split()[0]))


def networks() -> int:
    gc.collect()
    return sum(isinstance(found, keras.Model) for found in gc.get_objects())


@pytest.mark.ci
def test_trainings_in_other_processes_give_the_same_and_leave_nothing_behind(
    examples: list[Example], tmp_path: Path
) -> None:
    # Wide enough to see that one is kept: 13 MB of weights, and as much of the optimizer's.
    random = np.random.default_rng(0)
    wide = [replace(example, features=tmp_path / f"wide-{example.features.name}") for example in examples]
    for example in wide:
        np.save(example.features, random.random((40, 7, 7, 64)).astype(np.float16))

    first, second = grouped_folds(wide, 2)

    def judge(run: Run, folder: Path, reporter: Recording) -> list[Results]:
        def judged(contender: Contender, *folds: Fold) -> Results:
            return cross_validate(wide, folds, [contender], LABELS, kept=folder, reporter=reporter)[0]

        base = HeadTrials(HeadSpec(variant="base"), QUICK, 2, folder, run).contender(reporter.hear)
        lstm = plain_lstm(2, flip=False, units=8, epochs=1, run=run, listener=reporter.hear)
        return [judged(base, first, second), judged(lstm, first)]

    before, apart = networks(), MemoryRecording()
    found = judge(run_apart, tmp_path / "apart", apart)
    assert networks() == before
    assert apart.resident[2] < apart.resident[0] + (10 << 10)
    assert [line.partition(":")[0] for line in apart.lines[:3]] == ["base, fold 1", "  base, epoch 1", "base, fold 1"]
    assert Advance("  base, seed-0, epoch 1", 1, 1) in apart.advances
    assert Advance("  plain LSTM, epochs", 1, 1) in apart.advances
    for one, other in zip(found, judge(run_here, tmp_path / "here", Recording()), strict=True):
        np.testing.assert_array_equal(one.probabilities, other.probabilities)

    # As if interrupted after the second head was trained, and before its predictions were kept.
    max((tmp_path / "apart").glob("base.*.npy"), key=lambda file: file.stat().st_mtime_ns).unlink()
    resumed = Recording()
    again = judge(run_here, tmp_path / "apart", resumed)
    np.testing.assert_array_equal(again[0].probabilities, found[0].probabilities)
    assert resumed.lines[:3] == ["base, fold 1: reused", "base, fold 2: started", "base, fold 2: finished"]
