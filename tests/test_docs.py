"""The documentation agrees with the code."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_group

import model_export.cli
import service.cli.app
from service.http.problems import KINDS

REPOSITORY = Path(__file__).parents[1]
PAGES = sorted(
    str(page.relative_to(REPOSITORY))
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/*.md", "model_export/**/*.md")
    for page in REPOSITORY.glob(pattern)
)
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
API = (REPOSITORY / "docs" / "api.md").read_text(encoding="utf-8")
# The order of https://keepachangelog.com.
CHANGES = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]


def test_the_error_table_lists_every_problem_with_its_status() -> None:
    documented = {code: int(status) for status, code in re.findall(r"^\| (\d{3}) \| `(\w+)` \|", API, re.MULTILINE)}

    assert documented == {code: kind.status for code, kind in KINDS.items()}


def test_the_settings_table_is_current() -> None:
    subprocess.run([sys.executable, "docs/settings_table.py", "--check"], cwd=REPOSITORY, check=True)


def test_each_alert_has_its_entry_in_the_runbook() -> None:
    rules = "".join(file.read_text(encoding="utf-8") for file in (REPOSITORY / "deploy/prometheus").glob("[rg]*/*.yml"))
    runbook = (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8")

    assert re.findall(r"^### (Limelight\w+)", runbook, re.MULTILINE) == re.findall(r"- alert: (\w+)", rules)


def test_the_changelog_has_each_kind_of_change_once_in_a_release_and_in_order() -> None:
    for release in (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8").split("\n## ")[1:]:
        headings = re.findall(r"^### (.+)$", release, re.MULTILINE)

        assert headings == [kind for kind in CHANGES if kind in headings]


@pytest.mark.parametrize("page", PAGES)
def test_links_to_headings_point_to_existing_ones(page: str) -> None:
    file = REPOSITORY / page
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", file.read_text(encoding="utf-8")):
        headings = HEADING.findall((file.parent / target if target else file).read_text(encoding="utf-8"))

        assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_the_documented_make_targets_exist(page: str) -> None:
    targets = re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    named = re.findall(r"(?:`|^)make ([a-z-]+)", (REPOSITORY / page).read_text(encoding="utf-8"), re.MULTILINE)

    assert {*named} <= {*targets}


@pytest.mark.parametrize("page", ["README.md", "docs/training.md", "docs/operations.md"])
def test_the_documented_commands_are_accepted_by_the_programs(page: str) -> None:
    blocks = "".join(
        re.findall(r"^```sh\n(.*?)^```", (REPOSITORY / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    )
    lines = [shlex.split(line, comments=True) for line in blocks.replace("\\\n", " ").splitlines()]
    programs = {"limelight": get_group(service.cli.app.app), "limelight-model": get_group(model_export.cli.app)}
    commands = [words for words in lines if words and words[0] in programs]

    assert commands
    for program, name, *arguments in commands:
        # Raises if there is no such command or option, or the option does not accept the value.
        programs[program].commands[name].make_context(name, arguments)


@pytest.mark.parametrize("page", PAGES)
def test_links_within_the_project_point_to_existing_files(page: str) -> None:
    file = REPOSITORY / page
    targets = re.findall(
        r"\]\((?!https?:|#)([^)#]+)", re.sub(r"<!--.*?-->", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
    )

    assert [target for target in targets if not (file.parent / target).exists()] == []
