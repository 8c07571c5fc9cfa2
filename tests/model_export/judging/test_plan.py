"""Which networks an evaluation judges."""

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
