"""The pages for users say what the code does."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_group

import model_export.cli
import service.cli
from service.http.problems import KINDS
from service.settings import Settings

REPOSITORY = Path(__file__).parents[1]
API = (REPOSITORY / "docs" / "api.md").read_text()


def test_the_error_table_lists_every_problem_with_its_status() -> None:
    documented = {code: int(status) for status, code in re.findall(r"^\| (\d{3}) \| `(\w+)` \|", API, re.MULTILINE)}

    assert documented == {code: kind.status for code, kind in KINDS.items()}


def test_the_settings_table_lists_every_setting() -> None:
    table = API.partition("## Settings")[2].partition("\n## ")[0]
    names = re.findall(r"`([A-Z_]+)`", " ".join(re.findall(r"^\| (`[A-Z].*?) \|", table, re.MULTILINE)))

    assert {name.lower() for name in names} == Settings.model_fields.keys()


@pytest.mark.parametrize("page", ["README.md", "docs/training.md"])
def test_the_programs_take_the_commands_as_they_are_printed(page: str) -> None:
    blocks = "".join(re.findall(r"^```sh\n(.*?)^```", (REPOSITORY / page).read_text(), re.MULTILINE | re.DOTALL))
    lines = [shlex.split(line, comments=True) for line in blocks.replace("\\\n", " ").splitlines()]
    programs = {"limelight": get_group(service.cli.app), "limelight-model": get_group(model_export.cli.app)}
    commands = [words for words in lines if words and words[0] in programs]

    assert commands
    for program, name, *arguments in commands:
        # Raises where there is no such command or option, or the option takes no such value.
        programs[program].commands[name].make_context(name, arguments)


@pytest.mark.parametrize("page", ["README.md", "docs/api.md", "docs/paper.md", "docs/sandbox.md", "docs/training.md"])
def test_links_within_the_project_lead_somewhere(page: str) -> None:
    file = REPOSITORY / page
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", re.sub(r"<!--.*?-->", "", file.read_text(), flags=re.DOTALL))

    assert [target for target in targets if not (file.parent / target).exists()] == []
