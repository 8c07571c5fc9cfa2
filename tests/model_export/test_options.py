"""Command-line options made from the fields of frozen values."""

from pathlib import Path
from typing import Literal

import pytest
import typer
from pydantic import BaseModel, ConfigDict, Field, model_validator
from typer.testing import CliRunner, Result

from model_export.options import takes


class Colour(BaseModel):
    model_config = ConfigDict(frozen=True)

    hue: Literal["red", "blue"] = Field("red", description="Hue of the paint.")
    shares: tuple[int, ...] = Field((1,), description="Shares to mix.")
    finish: tuple[Literal["matt", "gloss"], ...] = Field(("matt",), description="Finishes to try.")
    opacity: float = Field(0.5, ge=0, le=1, allow_inf_nan=False, description="Opacity of the paint.")
    dry: bool = Field(True, description="Let it dry.")
    stir: bool = Field(False, description="Stir first.")
    batch: int = 7


class Shade(BaseModel):
    hue: Literal["grey"] = Field("grey", description="Hue of the shade.")
    depth: int = Field(3, description="Depth of the shade.")


def invoke(*arguments: str) -> Result:
    app = typer.Typer()

    @app.command()
    @takes(colour=Colour, shade=Shade)
    def paint(wall: Path, *, colour: Colour, shade: Shade, coats: int = 2) -> None:
        """Paint a wall."""
        typer.echo(f"{wall} {coats} {colour.model_dump_json()} {shade.model_dump_json()}")

    return CliRunner(env={"COLUMNS": "200"}).invoke(app, list(arguments))


def test_without_options_the_values_are_the_defaults() -> None:
    assert invoke("here").stdout == f"here 2 {Colour().model_dump_json()} {Shade().model_dump_json()}\n"


def test_options_set_the_fields() -> None:
    result = invoke("here", "--hue", "blue", "--opacity", "1", "--no-dry", "--stir", "--depth", "9", "--coats", "1")
    colour = Colour(hue="blue", opacity=1, dry=False, stir=True)
    assert result.stdout == f"here 1 {colour.model_dump_json()} {Shade(depth=9).model_dump_json()}\n"


def test_the_values_know_which_options_were_given() -> None:
    app = typer.Typer()

    @app.command()
    @takes(colour=Colour)
    def paint(*, colour: Colour) -> None:
        typer.echo(" ".join(sorted(colour.model_fields_set)))

    found = CliRunner().invoke(app, ["--hue", "red", "--shares", "1", "--dry"])
    assert found.stdout == "dry hue shares\n", "also those at their defaults"


def test_a_rule_about_several_fields_is_a_usage_error() -> None:
    class Mixture(BaseModel):
        oil: bool = Field(False, description="Oil.")
        water: bool = Field(False, description="Water.")

        @model_validator(mode="after")
        def _check(self) -> "Mixture":
            if self.oil and self.water:
                raise ValueError("--oil and --water do not mix; leave one out")
            return self

    app = typer.Typer()

    @app.command()
    @takes(mixture=Mixture)
    def paint(*, mixture: Mixture) -> None:
        typer.echo(mixture)

    found = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["--oil", "--water"])
    assert found.exit_code == 2
    assert "--oil and --water do not mix; leave one out" in found.stderr


def test_an_option_of_a_tuple_may_be_repeated_and_keeps_one_of_each_value() -> None:
    result = invoke(
        "here", *["--shares", "3", "--shares", "1", "--shares", "3", "--finish", "gloss", "--finish", "matt"]
    )
    assert Colour(shares=(3, 1), finish=("gloss", "matt")).model_dump_json() in result.stdout


def test_help_has_the_descriptions_and_no_option_for_a_field_without_one() -> None:
    text = invoke("--help").stdout
    for part in (
        "Hue of the paint.",
        "[default: matt]",
        "0<=x<=1",
        "--no-dry",
        "Depth of the shade.",
        "Paint a wall",
    ):
        assert part in text
    for part in ("--batch", "--no-stir", "Hue of the shade."):
        assert part not in text


@pytest.mark.parametrize(
    "arguments", [("--hue", "green"), ("--opacity", "2"), ("--opacity", "nan"), ("--finish", "rough")]
)
def test_values_that_a_field_does_not_take_are_refused(arguments: tuple[str, str]) -> None:
    result = invoke("here", *arguments)
    assert result.exit_code == 2
    assert arguments[0] in result.stderr
