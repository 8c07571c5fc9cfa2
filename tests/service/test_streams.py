"""The standard streams of a command, without the commands themselves (``tests/e2e/test_streams.py`` has those)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

LOST = "limelight: standard output cannot be written (Bad file descriptor); redirect it elsewhere\n"
FULL = LOST.replace("Bad file descriptor", "No space left on device")
INSPECT = """
def usable(number):
    try:
        return bool(os.write(number, b"x") if number else os.read(0, 1) + b"x")
    except OSError:
        return False

def command():
    facts = [
        (os.readlink(f"/proc/self/fd/{n}"), os.get_inheritable(n), usable(n), stream.fileno(), stream.mode)
        for n, stream in enumerate((sys.stdin, sys.stdout, sys.stderr))
    ]
    with open(sys.argv[1], "w") as file:
        json.dump(facts, file)
"""


@pytest.fixture(autouse=True)
def buffered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Python keep output until it is flushed, wherever the tests run: what is kept may be written too late."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)


def run(
    command: str, redirections: str = "", *arguments: str, stdout: int = subprocess.PIPE, encoding: str = "utf-8"
) -> subprocess.CompletedProcess[str]:
    """Run a command, which is code that defines it, in a shell that redirects its standard streams."""
    program = f"import json, os, sys\nfrom service import streams\n{command}\nstreams.run(command)"
    shell = ["sh", "-c", f'exec "$@" {redirections}', "sh", sys.executable, "-c", program, *arguments]
    return subprocess.run(shell, stdout=stdout, stderr=subprocess.PIPE, encoding=encoding, check=False)


@pytest.mark.parametrize(
    ("redirections", "code", "sentence"),
    [("", 0, ""), (">&-", 2, LOST), (">/dev/full", 2, FULL), (">/dev/full 2>/dev/full", 2, ""), (">&- 2>&-", 2, "")],
)
@pytest.mark.parametrize("flush", [True, False])
def test_the_exit_code_tells_whether_the_output_was_written(
    redirections: str, code: int, sentence: str, flush: bool
) -> None:
    ended = run(f"def command(): print('text', flush={flush})", redirections)

    assert (ended.returncode, ended.stderr) == (code, sentence)


@pytest.mark.parametrize("command", ["print('text')", "rich.print('text')", "typer.main.get_command(app)()"])
def test_a_command_whose_reader_has_gone_ends_without_a_word_as_if_sigpipe_had_ended_it(command: str) -> None:
    source, target = os.pipe()
    os.close(source)
    ended = run(f"import rich, typer\nfrom service.cli.app import app\ndef command(): {command}", stdout=target)
    os.close(target)

    assert (ended.returncode, ended.stderr) == (141, "")


def test_streams_that_are_closed_stay_unusable_and_no_other_file_gets_their_numbers(tmp_path: Path) -> None:
    facts = tmp_path / "facts"
    ended = run(INSPECT, "<&- >&- 2>&-", str(facts))

    assert ended.returncode == 0
    expected = [["/dev/null", True, False, number, mode] for number, mode in enumerate("rww")]
    assert json.loads(facts.read_text(encoding="utf-8")) == expected


@pytest.mark.parametrize(
    ("encoding", "printed"), [("ascii", "5 ?, #, ->, x"), ("latin-1", "5 ?, #, ->, ×"), ("utf-8", "5 €, █, →, ×")]
)
def test_a_character_that_the_encoding_lacks_is_replaced(
    monkeypatch: pytest.MonkeyPatch, encoding: str, printed: str
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    command = "def command(): [print('5 €, █, →, ×', file=file) for file in (sys.stdout, sys.stderr)]"
    ended = run(command, encoding=encoding)

    assert (ended.stdout, ended.stderr) == (f"{printed}\n", f"{printed}\n")
