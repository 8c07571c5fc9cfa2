"""Which networks an evaluation judges."""

from typing import Any

from model_export.judging.plan import EvaluationPlan
from model_export.network.spec import HeadSpec


def test_each_variant_is_judged_with_each_kind_of_scores_that_it_has() -> None:
    plan = EvaluationPlan(variant=("attention", "base", "attention"), attention_scores=("state", "content", "state"))
    found = plan.specs(HeadSpec(members=3))
    assert [(spec.variant, spec.attention_scores) for spec in found] == [
        ("attention", "state"),
        ("attention", "content"),
        ("base", "content"),
    ]
    assert {spec.members for spec in found} == {3}


def test_controls_have_motion_switched_and_attention_made_uniform() -> None:
    def controls(spec: HeadSpec, **plan: Any) -> list[tuple[str, str, bool]]:
        found = EvaluationPlan(**plan).control_specs(spec)
        return [(one.variant, one.attention_scores, one.motion) for one in found]

    moving, still = HeadSpec(), HeadSpec(motion=False)
    assert controls(moving) == [
        ("attention", "uniform", True),
        ("attention", "content", False),
        ("base", "content", False),
    ]
    assert controls(still, variant=("attention",)) == [("attention", "uniform", False), ("attention", "content", True)]
    assert controls(moving, variant=("base",)) == [("base", "content", False)]
    assert controls(moving, variant=("attention",), attention_scores=("uniform",)) == [("attention", "uniform", False)]
    assert controls(moving, controls=False) == []
