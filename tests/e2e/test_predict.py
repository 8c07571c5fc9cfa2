"""``limelight predict`` as people use it: on folders, in pipes and at terminals, run as a program."""

import csv
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.e2e.process import Server
from tests.processes import descendants, until
from tests.tiny_bundle import LABELS, write_tiny_bundle

pytestmark = pytest.mark.slow

PREDICT = [sys.executable, "-m", "service.cli", "predict"]
# Runs a program, and prints the most memory that it had. The kernel counts what a process had before it became another
# program, too: that of this small one instead of the tests'.
MEASURE = """
import resource, subprocess, sys
ended = subprocess.run(sys.argv[2:])
with open(sys.argv[1], "w") as peak:
    peak.write(str(1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(ended.returncode)
"""
MARKUP, ESCAPE, LATIN = "Morning run [abcdefghijk].mp4", "a\x1b[31mb.mp4", os.fsdecode(b"caf\xe9.mp4")


class Ended(NamedTuple):
    code: int
    out: bytes
    err: str
    peak_bytes: int

    @property
    def lines(self) -> list[str]:
        return self.out.decode(errors="surrogateescape").splitlines()

    @property
    def sentences(self) -> list[str]:
        return self.err.splitlines()

    @property
    def rows(self) -> list[dict[str, str]]:
        return [*csv.DictReader(self.lines)]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def make(clip: bytes) -> Callable[..., None]:
    """Write clips with these names."""

    def write(*names: str) -> None:
        for name in names:
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_bytes(clip)

    return write


def predict(*arguments: object, stdin: bytes = b"", **variables: str) -> Ended:
    """Run the program until it ends."""
    command = [sys.executable, "-S", "-c", MEASURE, "peak", *PREDICT, *map(str, arguments)]
    environment = os.environ | variables
    ended = subprocess.run(command, input=stdin, capture_output=True, env=environment, check=False)
    peak = Path("peak")
    peak_bytes = int(peak.read_bytes())
    peak.unlink()
    return Ended(ended.returncode, ended.stdout, ended.stderr.decode(), peak_bytes)


class TestFolders:
    def test_csv_has_a_row_for_each_clip_in_order_and_the_program_exits_with_1_if_one_failed(
        self, server: Server, make: Callable[..., None]
    ) -> None:
        make("v/b.mp4", "v/a/z.MOV", f"v/{MARKUP}", f"v/{ESCAPE}", f"v/{LATIN}", "v/.hidden.mp4")
        Path("v/damaged.mp4").write_bytes(b"no video " * 100)
        Path("v/notes.txt").write_bytes(b"")
        Path("empty").mkdir()
        ended = predict("v", "empty", "none.mp4", "--csv", "--url", server.url)

        names = [f"v/{MARKUP}", "v/a/z.MOV", f"v/{ESCAPE}", "v/b.mp4", f"v/{LATIN}", "v/damaged.mp4"]
        problems = ["", "", "", "", "", "unsupported_media", "no_clips", "unreadable"]
        assert ended.code == 1
        assert ended.lines[0] == "file,label,probability,problem,detail"
        assert [row["file"] for row in ended.rows] == [*names, "empty", "none.mp4"]
        assert [row["problem"] for row in ended.rows] == problems
        assert {row["label"] for row in ended.rows[:5]} < {*LABELS}
        assert [sentence.partition(" (")[0].partition(": this")[0] for sentence in ended.sentences] == [
            "limelight: v: 1 file is left out, without a video's suffix such as .mp4",
            "limelight: v/damaged.mp4: This is not a supported video",
            *(f"limelight: empty: {ended.rows[6]['detail']}", "limelight: none.mp4 cannot be read"),
            "limelight: 3 of 8 clips have no answer",
        ]

    def test_every_line_of_json_names_its_clip_and_problems_are_lines_too(
        self, server: Server, make: Callable[..., None]
    ) -> None:
        make(LATIN, ESCAPE, "c.mp4")
        Path("b").write_bytes(b"no video " * 100)
        ended = predict(LATIN, "b", "none", ESCAPE, "c.mp4", "--json", "--jobs", 3, "--url", server.url)
        first, refused, unreadable, *others = map(json.loads, ended.lines)

        assert ended.code == 1
        assert os.fsencode(first["file"]) == b"caf\xe9.mp4"
        assert [line["file"] for line in others] == [ESCAPE, "c.mp4"]
        assert all(line["predictions"] for line in (first, *others))
        assert (refused["file"], refused["code"], refused["status"]) == ("b", "unsupported_media", 415)
        assert refused["title"] == "This is not a supported video"
        assert unreadable == {
            "file": "none",
            "code": "unreadable",
            "title": "The file cannot be read",
            "status": None,
            "detail": "No such file or directory",
        }

    def test_a_bundle_has_the_same_lines_for_problems(self, server: Server, tiny_bundle: Path) -> None:
        Path("b").write_bytes(b"no video " * 100)
        here, there = (
            predict("b", "none", "--json", *where) for where in (("--bundle", tiny_bundle), ("--url", server.url))
        )

        assert (here.code, here.out) == (there.code, there.out)

    def test_with_fail_fast_it_stops_at_the_first_problem(self, server: Server, make: Callable[..., None]) -> None:
        make(*(f"v/{number}.mp4" for number in range(20)))
        Path("v/1.mp4").write_bytes(b"no video " * 100)
        ended = predict("v", "--csv", "--fail-fast", "--url", server.url)

        assert (ended.code, len(ended.rows), len(ended.sentences)) == (1, 2, 1)

    def test_a_service_that_is_busy_loses_no_clip(
        self, start: Callable[..., Server], make: Callable[..., None]
    ) -> None:
        make(*(f"v/{number}.mp4" for number in range(6)))
        server = start(MAX_QUEUE="0")
        ended = predict("v", "--csv", "--jobs", 3, "--url", server.url)

        assert (ended.code, ended.err) == (0, "")
        assert [row["file"] for row in ended.rows] == [f"v/{number}.mp4" for number in range(6)]
        assert server.metric("rejected_total", code="overloaded") > 0


class TestInputs:
    def test_a_file_of_3_gb_and_an_endless_device_cost_a_sentence_and_little_memory(
        self, server: Server, make: Callable[..., None], tiny_bundle: Path
    ) -> None:
        make("clip.mp4")
        with Path("3G.mp4").open("wb") as file:
            file.truncate(3 * 2**30)
        clips = ("3G.mp4", "/dev/zero", "clip.mp4")
        asked = predict(*clips, "--csv", "--url", server.url)
        run_here = predict(*clips, "--csv", "--bundle", tiny_bundle)

        for ended in (asked, run_here):
            assert ended.code == 1
            assert [row["problem"] for row in ended.rows] == ["body_too_large", "body_too_large", ""]
            assert len(ended.sentences) == 3
            assert ended.peak_bytes < 200e6
        assert server.metric("upload_bytes_sum") < 1e6

    def test_a_dash_is_standard_input_and_a_file_of_that_name_is_one(
        self, server: Server, make: Callable[..., None], clip: bytes
    ) -> None:
        make("-")
        table = predict("-", "./-", "--csv", "--url", server.url, stdin=clip)
        text = predict("-", "--url", server.url, stdin=b"no video " * 100)

        assert (table.code, [row["file"] for row in table.rows]) == (0, ["-", "./-"])
        assert table.rows[0]["probability"] == table.rows[1]["probability"]
        assert text.err.startswith("limelight: standard input: This is not a supported video")

    @pytest.mark.parametrize("bundle", [True, False])
    def test_ctrl_c_ends_it_at_once_and_leaves_nothing(self, server: Server, tiny_bundle: Path, bundle: bool) -> None:
        os.mkfifo("pipe")
        where = ("--bundle", str(tiny_bundle)) if bundle else ("--url", server.url)
        process = subprocess.Popen(
            [*PREDICT, "pipe", *where], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        with Path("pipe").open("wb"):  # waits until the program reads it
            children = [child for generation in descendants(process.pid) for child in generation]
            os.killpg(process.pid, signal.SIGINT)
            out, err = process.communicate(timeout=20)

        assert (process.returncode, out, err) == (-signal.SIGINT, b"", b"")
        assert bool(children) == bundle
        until(lambda: not any(Path(f"/proc/{child}").exists() for child in children))


def at_terminal(
    *arguments: object, columns: int = 80, variables: Mapping[str, str] = {}, out: bool = True
) -> tuple[str, bytes]:
    """Run the program at a terminal; its standard output is a pipe if ``out`` is false.

    Returns:
        What the terminal got, and what the pipe got.
    """
    screen, keyboard = pty.openpty()
    fcntl.ioctl(keyboard, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with subprocess.Popen(
        [*PREDICT, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=keyboard if out else subprocess.PIPE,
        stderr=keyboard,
        env={**os.environ, "TERM": "xterm", **variables},
    ) as process:
        os.close(keyboard)
        shown = b""
        while piece := read(screen):
            shown += piece
        os.close(screen)
        return shown.decode(), process.stdout.read() if process.stdout else b""


def read(screen: int) -> bytes:
    try:
        return os.read(screen, 2**16)
    except OSError:  # the program has ended
        return b""


def numbers(lines: Sequence[str]) -> list[str]:
    return [number for line in lines for number in re.findall(r" (\d\.\d{4})\b", line)]


class TestTerminals:
    def test_a_narrow_one_gets_whole_numbers_and_wrapped_labels(
        self, server: Server, make: Callable[..., None]
    ) -> None:
        make("c.mp4")
        shown, _ = at_terminal("c.mp4", "--url", server.url, columns=20, variables={"NO_COLOR": "1", "TERM": "dumb"})
        lines = shown.splitlines()

        assert len(numbers(lines)) == 5
        assert max(map(len, lines)) <= 20 + len("CPUExecutionProvider")  # which is one word
        table = lines[lines.index("action   probability") + 1 :]
        assert "WalkingWithDog" in "".join(line.split()[0] for line in table if line.strip())
        assert "\x1b" not in shown

    def test_a_pipe_gets_whole_lines_without_padding_whatever_the_width(
        self, tmp_path: Path, make: Callable[..., None]
    ) -> None:
        labels = ["Walking with the dog " * 10, "\x1b[31mred [bold]", "Café カフェ", "d", "e"]
        bundle = write_tiny_bundle(tmp_path / "odd", [label.strip() for label in labels])
        make(MARKUP, ESCAPE, LATIN)
        ended = predict(MARKUP, ESCAPE, LATIN, "--bundle", bundle, COLUMNS="20")

        assert ended.code == 0
        assert [line for line in ended.lines if ".mp4" in line] == [MARKUP, r"a\x1b[31mb.mp4", r"caf\xe9.mp4"]
        assert len(numbers(ended.lines)) == 15
        for label in (labels[0].strip(), r"\x1b[31mred [bold]", labels[2]):
            assert sum(line.startswith(f"{label} ") for line in ended.lines) == 3
        assert all(line == line.rstrip() for line in ended.lines)

    @pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
    def test_an_encoding_without_blocks_gets_plain_characters(
        self, server: Server, make: Callable[..., None], encoding: str
    ) -> None:
        make("c.mp4")
        ended = predict("c.mp4", "--url", server.url, PYTHONIOENCODING=encoding)

        assert (ended.code, ended.err) == (0, "")
        assert " ####" in ended.lines[2]
        assert ("×" if encoding == "latin-1" else "x") in ended.out.decode(encoding)

    def test_a_progress_bar_is_shown_beside_the_answers_and_obeys_the_terminal(
        self, server: Server, make: Callable[..., None]
    ) -> None:
        make("v/a.mp4", f"v/{ESCAPE}", "v/c.mp4")
        beside, piped = at_terminal("v", "--csv", "--url", server.url, out=False)
        mixed, _ = at_terminal("v", "--csv", "--url", server.url)
        dumb, _ = at_terminal("v", "--csv", "--url", server.url, variables={"TERM": "dumb"})
        single, _ = at_terminal("v/a.mp4", "--csv", "--url", server.url, out=False)

        assert "Clips" in beside
        assert "2/3" in beside
        assert len(piped.splitlines()) == 4
        assert ESCAPE.encode() in piped
        assert "Clips" in mixed
        assert re.search(r"\x1b\[2Kv/a\\x1b\[31mb\.mp4,", mixed), "the bar is erased before a row is printed"
        assert "\x1b" not in dumb
        assert len(dumb.splitlines()) == 4
        assert single == ""
