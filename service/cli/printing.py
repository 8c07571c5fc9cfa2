"""What the commands print: answers as text, as lines of JSON and as CSV, and a progress bar.

Text is for people: names and labels are shown with control characters made visible, and lines are broken at the width
of a terminal, but never in a pipe or file. Numbers are never cut.
"""

import contextlib
import csv
import io
import json
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer
from rich.cells import cell_len, chop_cells, set_cell_size
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from service.cli.clips import ClipProblem, shown
from service.printable import visible
from service.streams import written

if TYPE_CHECKING:
    from service.cli.classifying import Answer

Show = Callable[[str, "Answer | ClipProblem"], None]
"""Prints a clip's answer, or its problem, which is told on standard error besides. Its first argument is its name."""

GAP = "  "
BAR = 24  # characters
LEAST_LABEL, LEAST_BAR, LEAST_TEXT = 6, 4, 20
VERDICT = len("warning")
VERDICT_STYLES = {"ok": "green", "warning": "yellow", "error": "bold red"}
CSV_COLUMNS = ("file", "label", "probability", "problem", "detail")
# What JSON allows in a string, and terminals or readers of lines obey, or UTF-8 lacks.
UNSAFE = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise  # noqa: PLE0704 - called while the error is handled; ``written`` knows what to do


def print_text(text: str, style: str = "") -> None:
    """Print a text on standard output in a style of ``rich``, as wide as it is."""
    _print(Text(text, style))


def _print(text: Text) -> None:
    with written():
        _Console(highlight=False, soft_wrap=True).print(text)


def width() -> int | None:
    """Return the number of columns of standard output; ``None`` if it is no terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def wrapped(text: str, columns: int | None) -> str:
    """Break a text into lines between words, unless there is no limit."""
    return text if columns is None else "\n".join(textwrap.wrap(text, columns, break_long_words=False))


def print_answer(name: str, answer: "Answer") -> None:
    """Print the most likely classes as a table, then the clip's facts, the model and the time of each stage."""
    columns = width()
    clip, times = answer.clip, answer.timings_ms
    facts = f"{clip.frames} frames of {clip.codec} at {clip.width}×{clip.height}, {clip.duration_s:.2f} s"
    stages = ", ".join(f"{stage} {times[stage]:.0f} ms" for stage in ("decode", "queue", "inference", "total"))
    print_text(visible(shown(name)), "bold")
    print_text("\n".join(_table(answer.ranking, columns)))
    print_text(wrapped(visible(f"{facts}; {answer.model}"), columns), "dim")
    print_text(wrapped(stages, columns), "dim")


def _table(ranking: Sequence[tuple[str, float]], columns: int | None) -> Iterator[str]:
    """Yield the lines of a table of labels, probabilities and bars, at most so many columns wide.

    Long labels take several lines, and bars are short or left out, so that there is room for the numbers.
    """
    labels, number = [visible(label) for label, _ in ranking], len("probability")
    room, bar = max(map(cell_len, ["action", *labels])), BAR
    if columns is not None:
        room = min(room, max(LEAST_LABEL, columns - number - len(GAP)))
        bar = min(BAR, columns - room - number - 2 * len(GAP))
    yield f"{set_cell_size('action', room)}{GAP}probability"
    for label, (_, probability) in zip(labels, ranking, strict=True):
        first, *rest = chop_cells(label, room) or [""]
        blocks = "█" * round(bar * probability) if bar >= LEAST_BAR else ""
        yield f"{set_cell_size(first, room)}{GAP}{probability:>{number}.4f}{GAP}{blocks}".rstrip()
        yield from rest


def print_findings(findings: Sequence[tuple[str, str, str, str | None]]) -> None:
    """Print what was checked, the verdict, what was found and the remedy, if there is one, as a table."""
    columns = width()
    subjects = max(len("checked"), *(len(subject) for subject, *_ in findings))
    room = columns and max(LEAST_TEXT, columns - subjects - VERDICT - 2 * len(GAP))
    print_text(f"{'checked':{subjects}}{GAP}{'':{VERDICT}}{GAP}found", "bold")
    for subject, verdict, found, remedy in findings:
        lines = [*_lines(found, room), *(_lines(f"→ {remedy}", room) if remedy else ())]
        indent = " " * (subjects + VERDICT + 2 * len(GAP))
        text = Text.assemble(f"{subject:{subjects}}", GAP, (f"{verdict:{VERDICT}}", VERDICT_STYLES[verdict]), GAP)
        _print(text.append(f"\n{indent}".join(lines)))


def _lines(text: str, columns: int | None) -> list[str]:
    return [line for part in text.splitlines() for line in wrapped(visible(part), columns).splitlines()]


def show_text(name: str, result: "Answer | ClipProblem") -> None:
    """Print an answer for people."""
    if not isinstance(result, ClipProblem):
        print_answer(name, result)


def show_json(name: str, result: "Answer | ClipProblem") -> None:
    """Print the API's answer, or a problem's fields, with the clip's name as ``file``, on one line."""
    if isinstance(result, ClipProblem):
        facts: Mapping[str, Any] = {key: getattr(result, key) for key in ("code", "title", "status", "detail")}
    elif result.json is None:
        raise ValueError("the answer was asked for without its JSON")
    else:
        facts = result.json
    line = json.dumps({"file": name, **facts}, ensure_ascii=False, separators=(",", ":"))
    _write(UNSAFE.sub(lambda letter: f"\\u{ord(letter[0]):04x}", line))


def show_csv(name: str, result: "Answer | ClipProblem") -> None:
    """Print a row with the most likely class or the problem (see ``CSV_COLUMNS``)."""
    if isinstance(result, ClipProblem):
        _write_row(name, "", "", result.code, result.detail)
    else:
        label, probability = result.ranking[0]
        _write_row(name, label, probability, "", "")


def csv_with_header() -> Show:
    """Print the header of a CSV table, and return what prints its rows."""
    _write_row(*CSV_COLUMNS)
    return show_csv


def _write_row(*cells: object) -> None:
    row = io.StringIO()
    # As ``ls`` does: what reads a pipe or file needs the names as they are, and a terminal would obey them.
    shown_cells = [visible(str(cell)) for cell in cells] if sys.stdout.isatty() else cells
    csv.writer(row, lineterminator="").writerow(shown_cells)
    _write(row.getvalue())


def _write(line: str) -> None:
    """Print a line in UTF-8, whatever the encoding of standard output is; names of files keep their bytes."""
    with written():
        typer.echo(line.encode(errors="surrogateescape"))


class Bar:
    """A progress bar on standard error, if that is a terminal and there is more than one clip.

    Args:
        clips: Number of clips.
    """

    def __init__(self, clips: int) -> None:
        console = _Console(stderr=True)
        self._is_shown = clips > 1 and console.is_interactive
        columns = (TextColumn("Clips"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=console, transient=True)
        self._task = self._progress.add_task("", total=clips)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Show the bar until the end of the ``with`` statement, where it vanishes."""
        self._start()
        try:
            yield
        finally:
            self._stop()

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Hide the bar while something is printed, and count one clip more."""
        self._stop()
        yield
        self._progress.advance(self._task)
        self._start()

    def _start(self) -> None:
        if self._is_shown:
            self._progress.start()

    def _stop(self) -> None:
        if self._is_shown:  # otherwise this would print an empty line
            self._progress.stop()
