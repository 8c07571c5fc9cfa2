"""The settings of a trained head, as reports and checkpoints keep them."""

import json
from pathlib import Path

import pytest

from model_export.errors import HeadError
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


@pytest.mark.parametrize("field", sorted(HeadSpec.model_fields))
def test_a_head_without_one_of_its_settings_is_refused(field: str, tmp_path: Path) -> None:
    facts = json.loads((PRETRAINED / "head.json").read_text())
    del facts[field]
    (tmp_path / "head.json").write_text(json.dumps(facts))
    with pytest.raises(HeadError, match=rf"head.json is not valid \({field} missing\)"):
        load_head(tmp_path)
