"""What ``limelight-model`` prints is readable on narrow and dumb terminals, in pipes and in ASCII."""

import os
import pty
import re
import subprocess
import sys
from typing import Any

import pytest

from tests.conftest import REPOSITORY

NAMES = (
    "Morning run [abcdefghijk].mp4",
    "[red]a[/red] :smile:.mp4",
    "e\x1b[2Jvil\x07.mp4",
    "gpj.\u202e4pm",
    "caf\udce9.mp4",
)
SHOWN = (*NAMES[:2], r"e\x1b[2Jvil\x07.mp4", r"gpj.\u202e4pm", r"caf\xe9.mp4")
PROGRAM = f"""
from model_export.reporter import Advance
from model_export.terminal import TerminalReporter
from service.streams import run

def command():
    reporter = TerminalReporter()
    names = {NAMES!a}
    for name in names:
        reporter.say("about " + name)
    reason = "it is a link that leads nowhere, as links sometimes do"
    reporter.table(("left out", "reason"), [(name, reason) for name in names])
    figures = [("accuracy", "98.25%", "91.50% – 99.75%"), ("Café ± ×", "1.5e-05", "3")]
    reporter.table(("figure", "value", "95 % interval"), figures)
    with reporter.listen() as listener:
        for done in range(3):
            listener(Advance(names[2], done, 2))
    reporter.say("end")

run(command)
"""


def run(terminal: bool, **environment: str) -> str:
    """Return what the program prints."""
    told: dict[str, Any] = {"env": os.environ | {"TERM": "xterm", **environment}, "cwd": REPOSITORY}
    command = [sys.executable, "-c", PROGRAM]
    if not terminal:
        found = subprocess.run(command, capture_output=True, check=True, **told)
        assert found.stderr == b""
        return str(found.stdout, environment.get("PYTHONIOENCODING", "utf-8"))
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, **told) as started, os.fdopen(ours, "rb") as screen:
        os.close(theirs)
        text = b""
        try:
            while part := screen.read1():
                text += part
        except OSError:  # Linux' end of a terminal that nobody writes to any more
            pass
    assert started.returncode == 0, text.decode()
    return text.decode().replace("\r\n", "\n")


def test_a_pipe_gets_whole_lines_with_names_as_they_are_and_controls_made_visible() -> None:
    lines = run(terminal=False, COLUMNS="40").splitlines()
    assert lines[:5] == [f"about {name}" for name in SHOWN]
    for name in SHOWN:
        (row,) = (line for line in lines if f"│ {name}" in line)
        assert "it is a link that leads nowhere, as links sometimes do" in row
    assert lines[-1] == "end"


@pytest.mark.parametrize(("encoding", "cafe"), [("latin-1", "Café ± ×"), ("ascii", "Caf? +- x")])
def test_what_an_encoding_lacks_is_said_in_plain_characters(encoding: str, cafe: str) -> None:
    text = run(terminal=False, PYTHONIOENCODING=encoding)
    assert all(shown in text for shown in (cafe, "91.50% - 99.75%", r"gpj.\u202e4pm"))


@pytest.mark.parametrize("kind", ["xterm", "dumb"])
def test_a_narrow_terminal_cuts_no_number_and_loses_no_letter(kind: str) -> None:
    """Neither has room or means for a progress bar: nothing moves the cursor."""
    text = run(terminal=True, COLUMNS="20", TERM=kind, NO_COLOR="1")
    plain = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", text)
    assert "\x1b" not in (text if kind == "dumb" else plain)
    assert not set(plain) & {"\x07", "\u202e", "…"}
    for number in ("98.25%", "91.50%", "99.75%", "1.5e-05"):
        assert number in plain
    column = "".join(re.findall(r"^│ ([^│]*)│", plain, re.MULTILINE)).replace(" ", "")
    assert all(name.replace(" ", "") in column for name in SHOWN)
