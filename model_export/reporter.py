"""How a command reports what it is doing: calls on a ``Reporter``, which the command line prints."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import length_hint
from typing import TypeAlias, TypeVar

T = TypeVar("T")

Received = Callable[[int, int], None]
"""Called with the bytes received so far and the bytes expected."""


@dataclass(frozen=True, slots=True)
class Advance:
    """How far a piece of work has come.

    Attributes:
        title: What is being done.
        done: Number of items that are done.
        total: Number of all items.
    """

    title: str
    done: int
    total: int


Listener: TypeAlias = Callable[[str | Advance], None]
"""Called with lines to print and, in between, with how far the work has come; also by way of another process."""


class Reporter:
    """Receives the progress of a command. This one discards it; subclasses print or record it."""

    def say(self, line: str) -> None:
        """Report one step."""

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Report several facts of one kind; without rows there is nothing to report."""

    @contextmanager
    def listen(self) -> Iterator[Listener]:
        """Report work as it tells of itself: the block calls the yielded function, as often as it likes."""
        yield lambda told: self.say(told) if isinstance(told, str) else None

    @contextmanager
    def track(self, items: Iterable[T], title: str, total: int | None = None) -> Iterator[Iterable[T]]:
        """Report progress through items: the block iterates over the yielded ones.

        Args:
            items: The items of work.
            title: What is being done.
            total: Number of items, if ``items`` has no length.
        """
        with self.listen() as listener:
            yield counted(items, title, listener, total)

    @contextmanager
    def transfer(self, title: str) -> Iterator[Received]:
        """Report a download: the block calls the yielded function as bytes arrive."""
        yield lambda done, total: None


SILENT = Reporter()


def counted(items: Iterable[T], title: str, listener: Listener, total: int | None = None) -> Iterator[T]:
    """Yield items, and tell the listener after each how many are done.

    Args:
        items: The items of work.
        title: What is being done.
        listener: Is told.
        total: Number of items, if ``items`` has no length.
    """
    total = length_hint(items) if total is None else total
    listener(Advance(title, 0, total))
    for done, item in enumerate(items, 1):
        yield item
        listener(Advance(title, done, total))
