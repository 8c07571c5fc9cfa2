"""Heads that are trained once for the same clips."""

from pathlib import Path

import numpy as np

from model_export.data.examples import Example
from model_export.judging.plan import EvaluationPlan
from model_export.judging.trials import HeadTrials
from model_export.network.spec import HeadSpec
from model_export.recipe import Recipe, describe

QUICK = Recipe(epochs=1, batch_size=4, holdout=0)


def test_a_head_is_trained_once_for_the_same_clips(examples: list[Example], tmp_path: Path) -> None:
    lines: list[str] = []
    trials = HeadTrials(HeadSpec(), QUICK, 2, tmp_path / "runs")
    first = trials.head(examples[:6], lines.append)
    assert [line.partition(":")[0] for line in lines] == ["  attention (content), epoch 1"]

    again = HeadTrials(HeadSpec(), QUICK, 2, tmp_path / "runs").head(examples[:6], lines.append)
    assert len(lines) == 1, "it was trained a second time"
    for one, other in zip(first.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)

    trials.head(examples[2:], lines.append)
    assert len(lines) == 2, "a head for other clips was not trained"


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
