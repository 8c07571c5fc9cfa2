"""What libraries print on file descriptor 2 is kept back, and shown if a command fails or dies."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

# Begins `fetch-weights`, in which a library prints and something happens.
PROGRAM = """
import os, subprocess, sys, warnings
from model_export import cli, weights
from model_export.errors import ProcessError, WeightsError
from model_export.library_output import KEPT_BYTES

def fetch_weights(*_, reporter):
    os.write(2, b"theirs: by C++\\n")
    warnings.warn("theirs: by Python")
    subprocess.run([sys.executable, "-c", "import sys; print('theirs: by a child', file=sys.stderr)"])
    exec(what)
    return "here"

weights.fetch_weights = fetch_weights
what = sys.argv.pop()
cli.main()
"""
KILL = "os.kill(os.getpid(), {})"


def run(what: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, *options, "fetch-weights", what]
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.run(command, check=False, capture_output=True, text=True, env=environment, cwd=REPOSITORY)


@pytest.mark.parametrize(
    ("what", "status", "said"),
    [
        ("pass", 0, ""),
        (KILL.format("2"), -2, "limelight-model: interrupted; run the same command again to continue\n"),
        (KILL.format("1"), -1, "limelight-model: terminated; run the same command again to continue\n"),
        ("import signal; signal.signal(1, signal.SIG_IGN); " + KILL.format("1"), 0, ""),
        (KILL.format("15"), -15, "limelight-model: terminated; run the same command again to continue\n"),
        ("raise BrokenPipeError(32, 'Broken pipe')", 141, ""),
    ],
)
def test_nothing_of_it_is_shown_if_nothing_fails(what: str, status: int, said: str) -> None:
    found = run(what)
    assert (found.returncode, found.stderr) == (status, said)


@pytest.mark.parametrize(
    ("what", "status", "last"),
    [
        ("raise WeightsError('no weights')", 2, "limelight-model: no weights"),
        ("raise ProcessError('a process was killed')", 2, "limelight-model: a process was killed"),
        ("raise RuntimeError('a bug')", 1, "RuntimeError: a bug"),
        (KILL.format("11"), -signal.SIGSEGV, "theirs: by a child"),
        (KILL.format("9"), -signal.SIGKILL, "theirs: by a child"),
        ("os.abort()", -signal.SIGABRT, "theirs: by a child"),
    ],
)
def test_all_of_it_is_shown_before_what_we_say_of_a_failure(what: str, status: int, last: str) -> None:
    found = run(what)
    lines = found.stderr.splitlines()
    assert found.returncode == status
    assert lines[0] == "theirs: by C++"
    assert "UserWarning: theirs: by Python" in lines[1]
    assert "theirs: by a child" in lines
    assert lines[-1] == last


def test_the_end_of_very_much_is_shown() -> None:
    found = run("os.write(2, b'x' * 9 * KEPT_BYTES); raise WeightsError('no weights')")
    shown, _, last = found.stderr.rpartition("\nlimelight-model: ")
    assert shown == "[...] " + "x" * 64 * 1024
    assert last == "no weights\n"


def test_only_what_came_before_is_forgotten(tmp_path: Path) -> None:
    """The keeping process is slow, and other signals that reach it do not end it."""
    program = """
import os, subprocess, sys
from model_export.library_output import kept_back
with kept_back(verbose=False) as output:
    keeper = output._keeper.pid
    subprocess.Popen(["sh", "-c", "kill -STOP $0; : > stopped; sleep 0.5; kill -CONT $0", str(keeper)])
    while not os.path.exists("stopped"):
        pass
    os.write(2, b"first\\n")
    output.forget()
    os.write(2, b"last\\n")
    for number in (1, 2, 15):
        os.kill(keeper, number)
    os.abort()
"""
    found = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, cwd=tmp_path)
    assert (found.returncode, found.stderr) == (-signal.SIGABRT, "last\n")


def test_verbose_shows_it_as_it_comes() -> None:
    found = run("pass", "--verbose")
    assert found.returncode == 0
    assert found.stderr.startswith("theirs: by C++\n")
    assert found.stderr.endswith("theirs: by a child\n")


@pytest.mark.parametrize("closed", ["1", "2", "0"])
def test_a_stream_that_is_closed_does_no_harm(closed: str) -> None:
    command = f'exec {closed}>&-; exec "$0" -c "$1" fetch-weights pass'
    found = subprocess.run(
        ["sh", "-c", command, sys.executable, PROGRAM], check=False, capture_output=True, text=True, cwd=REPOSITORY
    )
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout == ("" if closed == "1" else "VGG19 weights: here\n")


@pytest.mark.parametrize("argument", ["--version", "fetch-weights"])
def test_a_command_whose_standard_output_is_on_a_full_disk_says_so(argument: str) -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        found = subprocess.run(
            [sys.executable, "-c", PROGRAM, argument, "pass"],
            check=False, stdout=full, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY,
        )  # fmt: skip
    assert found.returncode == 2
    assert found.stderr.splitlines()[-1] == (
        "limelight-model: standard output cannot be written (No space left on device); redirect it elsewhere"
    )
    assert "Traceback" not in found.stderr


def test_a_reader_that_goes_ends_a_command_without_a_word() -> None:
    started = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "fetch-weights", "for i in range(10 ** 6): reporter.say('line')"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=REPOSITORY,
    )
    with started:
        assert started.stdout
        assert started.stderr
        assert started.stdout.readline() == b"line\n"
        started.stdout.close()
        assert started.stderr.read() == b""
    assert started.returncode == 141
