"""``Reporter`` for people at a terminal, and for pipes and files, which get whole lines."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from rich.cells import cell_len
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from model_export.errors import StorageError
from model_export.reporter import Advance, Listener, Received, Reporter
from service.printable import visible
from service.streams import lost

# Seconds between lines on how far the work has come, where there is no progress bar.
LINE_S = 30.0
# Narrower terminals get lines: Rich would cut the numbers of a progress bar.
BAR_COLUMNS = 80
# File names and reasons may look like Rich's markup or emoji: ``clip [hd].mp4``, ``:smile:``.
console = Console(markup=False, emoji=False)


class TerminalReporter(Reporter):
    """Prints what a command reports."""

    def say(self, line: str) -> None:
        """Print one line, which the terminal may wrap."""
        with _loss_reported():
            console.print(visible(line), highlight=False, soft_wrap=True)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Print a table, if it has rows.

        Names are folded to fit a terminal, numbers never: a table of numbers may be wider than a narrow terminal.
        """
        cells = [[visible(cell) for cell in row] for row in rows]
        if not cells:
            return
        table = Table()
        for heading, *below in zip(columns, *cells, strict=True):
            numbers = [word for cell in below for word in cell.split() if word.lstrip("(+-–").startswith(_DIGITS)]
            widest = max(map(cell_len, numbers), default=1)
            table.add_column(heading, overflow="fold", min_width=widest)
        for row in cells:
            table.add_row(*row)
        if not console.is_terminal:
            table.width = table.__rich_measure__(console, console.options.update(max_width=2**20)).maximum
        with _loss_reported():
            console.print(table, crop=False)

    @contextmanager
    def listen(self) -> Iterator[Listener]:
        """Show a progress bar with the time left or, where none can be drawn, a line every half minute."""
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("· left"), TimeRemainingColumn())
        with _progress(*columns, disable=not _draws_bars()) as progress:
            yield _Listener(self, progress)

    @contextmanager
    def transfer(self, title: str) -> Iterator[Received]:
        """Show a progress bar in bytes or, where none can be drawn, a line every half minute."""
        if not _draws_bars():
            with self.listen() as listener:
                yield lambda done, total: listener(Advance(f"{title}, MiB", done >> 20, total >> 20))
            return
        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        with _progress(*columns, transient=True) as progress:
            task = progress.add_task(visible(title), total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total)


_DIGITS = tuple("0123456789")


@contextmanager
def _loss_reported() -> Iterator[None]:
    """Say what a full disk, for example, keeps from being printed."""
    try:
        yield
    except OSError as error:
        raise StorageError(lost(error)) from error


def _progress(*columns: ProgressColumn, disable: bool = False, transient: bool = False) -> Progress:
    title = TextColumn("{task.description}", markup=False)
    # Standard error is not redirected to the console: it is the libraries'.
    return Progress(title, *columns, console=console, redirect_stderr=False, disable=disable, transient=transient)


def _draws_bars() -> bool:
    """Whether the output is a terminal that has room for a bar's numbers and can move its cursor, unlike a dumb one."""
    return console.is_terminal and not console.is_dumb_terminal and console.width >= BAR_COLUMNS


class _Listener:
    """Shows one piece of work at a time.

    Args:
        reporter: Prints lines.
        progress: Bars; disabled where none can be drawn.
    """

    def __init__(self, reporter: Reporter, progress: Progress) -> None:
        self.reporter, self.progress = reporter, progress
        self.last_line = 0.0

    def __call__(self, told: str | Advance) -> None:
        if isinstance(told, str):
            self.reporter.say(told)
            return
        task, title = next(iter(self.progress.tasks), None), visible(told.title)
        if task is None or task.description != title:
            if task:
                self.progress.remove_task(task.id)
            self.progress.add_task(title, total=told.total, completed=told.done)
            self.last_line = self.progress.get_time()
            return
        self.progress.update(task.id, completed=told.done)
        if self.progress.disable and self.progress.get_time() - self.last_line >= LINE_S:
            self.last_line = self.progress.get_time()
            known = task.time_remaining is not None  # from the second item on
            left = f", {TimeRemainingColumn().render(task)} left" if known else ""
            self.reporter.say(f"{told.title}: {told.done} of {told.total}{left}")
