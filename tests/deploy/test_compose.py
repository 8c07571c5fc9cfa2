"""The Compose files and what the pages say about them, checked as text: no engine is needed."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

FILES = sorted(REPOSITORY.glob("docker-compose*.yml"))
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
OPERATIONS = (REPOSITORY / "docs/operations.md").read_text()


def commands(page: Path) -> list[str]:
    """Return each line of the page's shell blocks, and each piece of code in its text."""
    text = page.read_text()
    blocks = "".join(re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
    return [*blocks.splitlines(), *re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_folders_are_mounted_in_a_way_that_selinux_allows(file: Path) -> None:
    text = file.read_text()
    sources = re.findall(r"source: ([^,\s]+)", text)

    assert re.findall(r"[\"\s]\.{1,2}/[^\s,\"]*:/", text) == []  # the short syntax
    assert [source for source in sources if (REPOSITORY / source).is_file()] == []
    assert text.count("type: bind") == text.count("bind: {selinux: z}") == len(sources)


def test_the_table_lists_the_variables_of_compose() -> None:
    used = {name for file in FILES for name in re.findall(r"(?<!\$)\$\{?(\w+)", file.read_text())}
    table = re.findall(r"^\| `([A-Z_]+)` \|", OPERATIONS.partition("\n## The gateway")[0], re.MULTILINE)

    assert {*table} - {"COMPOSE_FILE", "COMPOSE_PROFILES", "COMPOSE_PROJECT_NAME"} == used


@pytest.mark.parametrize(
    "name", [".env", "limelight.env", "deploy/gateway/tls/tls.key", "deploy/alertmanager/alertmanager.yml"]
)
def test_git_ignores_files_with_secrets(name: str) -> None:
    assert subprocess.run(["git", "check-ignore", "-q", name], cwd=REPOSITORY, check=False).returncode == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_printed_command_forgets_replicas_or_compose_files(page: Path) -> None:
    forgetful = re.compile(r"docker compose .*(--scale|-f docker-compose|--profile)|^[A-Z_]+=\S* docker compose")

    assert [command for command in commands(page) if forgetful.search(command)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_printed_command_recreates_all_replicas_at_once(page: Path) -> None:
    ups = [command.partition("#")[0].strip() for command in commands(page) if "docker compose up " in command]
    safe = re.compile(
        r"deploy/rolling-update\.sh && docker compose up --detach"  # replicas are up to date by then
        r"|docker compose up --detach (--no-recreate|(gateway|grafana|prometheus|alertmanager)( \w+)*)"
        r"|docker compose up --build --detach"  # the first start
    )

    assert [command for command in ups if not safe.fullmatch(command)] == []


def test_the_pages_say_which_compose_is_needed() -> None:
    for text in ((REPOSITORY / "README.md").read_text(), OPERATIONS, FILES[-1].read_text()):
        assert "2.30" in text  # the first version with `format: raw`
