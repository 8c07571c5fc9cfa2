"""How a command reports what it is doing: calls on a ``Reporter``, which the command line prints."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

Received = Callable[[int, int], None]
"""Called with the bytes received so far and the bytes expected."""


class Reporter:
    """Receives the progress of a command. This one discards it; subclasses print or record it."""

    def say(self, line: str) -> None:
        """Report one step."""

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Report several facts of one kind; without rows there is nothing to report."""

    @contextmanager
    def track(self, items: Iterable[T], title: str, total: int | None = None) -> Iterator[Iterable[T]]:
        """Report progress through items: the block iterates over the yielded ones.

        Args:
            items: The items of work.
            title: What is being done.
            total: Number of items, if ``items`` has no length.
        """
        yield items

    @contextmanager
    def transfer(self, title: str) -> Iterator[Received]:
        """Report a download: the block calls the yielded function as bytes arrive."""
        yield lambda done, total: None


SILENT = Reporter()
