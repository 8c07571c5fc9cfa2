"""Runs ``limelight predict`` over clips: several at a time, printed in order, however many there are."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from typing import TypeVar

from service.cli.classifying import Answer, Classify
from service.cli.clips import ClipProblem, opened
from service.cli.printing import Bar, Show
from service.signals import closing_at_signals
from service.streams import complain

SIGNAL_S = 0.2  # longest time until a signal is noticed

Item = TypeVar("Item")
Result = TypeVar("Result")


def predict_all(
    clips: Sequence[str | ClipProblem],
    classify: Classify,
    show: Show,
    *,
    jobs: int,
    most_bytes: int | None = None,
    fail_fast: bool = False,
) -> bool:
    """Classify clips and print each answer as soon as those before it have been printed.

    Args:
        clips: Names of clips, and problems in place of some.
        classify: Classifies a clip.
        show: Prints an answer or a problem. Problems are told on standard error, too.
        jobs: Number of clips in progress at a time.
        most_bytes: Number of bytes that a clip may have (see ``opened``).
        fail_fast: Whether to stop at the first clip without an answer.

    Returns:
        Whether every clip has an answer.

    Raises:
        CommandError: No clip can be classified any more.
    """

    def result_of(clip: str | ClipProblem) -> tuple[str, Answer | ClipProblem]:
        if isinstance(clip, ClipProblem):
            return clip.name, clip
        try:
            with opened(clip, most_bytes) as file:
                return clip, classify(file)
        except ClipProblem as problem:
            return clip, problem

    failed, bar = 0, Bar(len(clips))
    with closing_at_signals(), bar.running():
        for name, result in in_order(result_of, clips, jobs):
            with bar.aside():
                show(name, result)
                if isinstance(result, ClipProblem):
                    complain(result)
                    failed += 1
            if failed and fail_fast:
                return False
    if failed and len(clips) > 1:
        complain(f"{failed} of {len(clips)} clips {'has' if failed == 1 else 'have'} no answer")
    return not failed


def in_order(function: Callable[[Item], Result], items: Iterable[Item], jobs: int) -> Iterator[Result]:
    """Call a function for each item in threads, and yield the results in the order of the items.

    Only a few items are taken before their turn. If the iterator is closed, or the process is interrupted, calls in
    progress are left to themselves: their threads do not keep the process from ending.

    Args:
        function: What to call.
        items: Its arguments.
        jobs: Number of calls at a time.

    Raises:
        Exception: What a call raised, when the turn of its item comes.
    """
    tasks: queue.SimpleQueue[tuple[Future[Result], Item] | None] = queue.SimpleQueue()
    pending: deque[Future[Result]] = deque()
    for _ in range(jobs):
        threading.Thread(target=_work, args=(function, tasks), daemon=True).start()
    try:
        for item in items:
            pending.append(Future())
            tasks.put((pending[-1], item))
            if len(pending) >= 2 * jobs - 1:  # enough for the other threads while one item takes long
                yield _result(pending.popleft())
        while pending:
            yield _result(pending.popleft())
    finally:
        for future in pending:
            future.cancel()
        for _ in range(jobs):
            tasks.put(None)


def _result(future: Future[Result]) -> Result:
    """Wait for a result, a little at a time: a signal just before a wait is noticed by Python only after it."""
    while not wait([future], SIGNAL_S).done:
        pass
    return future.result()


def _work(function: Callable[[Item], Result], tasks: "queue.SimpleQueue[tuple[Future[Result], Item] | None]") -> None:
    """Call the function for each task until there are no more."""
    while (task := tasks.get()) is not None:
        future, item = task
        if not future.set_running_or_notify_cancel():
            continue
        try:
            future.set_result(function(item))
        except BaseException as error:  # the iterator's reader gets it
            future.set_exception(error)
