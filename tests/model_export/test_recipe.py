"""The settings of a trained head, as reports and checkpoints keep them."""

import json
import math
from pathlib import Path

import pytest
from pydantic import ValidationError

from model_export.errors import HeadError
from model_export.head import PRETRAINED, HeadFacts, load_head
from model_export.network.spec import HeadSpec
from model_export.recipe import Recipe, describe, settings
from model_export.revisions import CURRENT, Revisions


def test_a_line_has_every_setting() -> None:
    line = describe(HeadSpec(members=7), Recipe(learning_rate=0.25))
    assert "variant=attention, attention_scores=content, readout=mean" in line
    assert "learning_rate=0.25" in line
    assert "members=7" in line


@pytest.mark.parametrize("revision", sorted(Revisions.model_fields))
def test_a_line_has_every_revision(revision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints, kept predictions and figures of reports go by this line, and must not outlive a revision."""
    before = describe(HeadSpec(), Recipe())
    monkeypatch.setattr("model_export.revisions.CURRENT", CURRENT.model_copy(update={revision: 99}))
    assert f"{revision}_revision=99" in describe(HeadSpec(), Recipe())
    assert f"{revision}_revision={getattr(CURRENT, revision)}" in before


def test_where_the_log_goes_is_no_setting_of_a_head() -> None:
    assert settings(HeadSpec(), Recipe(tensorboard=Path("board"))) == settings(HeadSpec(), Recipe())


@pytest.mark.parametrize(
    "values", [{"seed": -1}, {"seed": 2**31}, {"learning_rate": math.nan}, {"weight_decay": math.inf}], ids=str
)
def test_numbers_that_no_library_takes_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(values))):
        Recipe(**values)


def test_the_settings_of_the_pretrained_head_are_the_defaults_without_holdout() -> None:
    facts = load_head(PRETRAINED).facts
    assert facts.training["recipe"].items() <= settings(HeadSpec(), Recipe(holdout=0)).items()
    assert settings(facts, Recipe()) == settings(HeadSpec(), Recipe())
    assert isinstance(facts, HeadFacts)


@pytest.mark.parametrize("field", sorted(HeadSpec.model_fields))
def test_a_head_without_one_of_its_settings_is_refused(field: str, tmp_path: Path) -> None:
    facts = json.loads((PRETRAINED / "head.json").read_text(encoding="utf-8"))
    del facts[field]
    (tmp_path / "head.json").write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(HeadError, match=rf"head.json is not valid \({field} missing\)"):
        load_head(tmp_path)
