"""The settings of a trained head, as reports and checkpoints keep them."""

from model_export.head import PRETRAINED, HeadFacts, load_head
from model_export.network.spec import HeadSpec
from model_export.recipe import Recipe, describe, settings


def test_a_line_has_every_setting() -> None:
    line = describe(HeadSpec(members=7), Recipe(learning_rate=0.25))
    assert "variant=attention, attention_scores=content, readout=mean" in line
    assert "learning_rate=0.25" in line
    assert "members=7" in line


def test_the_settings_of_the_pretrained_head_are_the_defaults_without_holdout() -> None:
    facts = load_head(PRETRAINED).facts
    assert facts.training["recipe"] == settings(HeadSpec(), Recipe(holdout=0))
    assert settings(facts, Recipe()) == settings(HeadSpec(), Recipe())
    assert isinstance(facts, HeadFacts)
