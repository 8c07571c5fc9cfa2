"""Running a function in a process of its own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest

from model_export.errors import ProcessError, TrainingError
from model_export.processes import Run, run_apart, run_here
from tests.processes import descendants, until

Tell = Callable[..., None]


def add(first: int, second: int, tell: Tell) -> tuple[int, int]:
    tell("adding", first)
    tell("adding", second)
    return first + second, os.getpid()


def refuse(tell: Tell) -> NoReturn:
    raise TrainingError("the loss is nan after epoch 1; lower --learning-rate")


class Unportable(Exception):
    """An exception that cannot be unpickled, as it is made from two arguments and keeps one."""

    def __init__(self, text: str, number: int) -> None:
        super().__init__(f"{text} {number}")


def fail(tell: Tell) -> NoReturn:
    raise Unportable("fault", 7)


def answer_what_cannot_be_pickled(tell: Tell) -> Any:
    return lambda: None


def end(how: int, tell: Tell) -> NoReturn:
    """End without an answer: by a signal, or with an exit code if ``how`` is negative."""
    if how > 0:
        os.kill(os.getpid(), how)
    os._exit(-how)


def wait(tell: Tell) -> None:
    tell(os.getpid())
    time.sleep(60)


def resident_kib(process: str = "self") -> int:
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    return int(status.partition("VmRSS:")[2].split()[0])


def hold_memory(tell: Tell) -> int:
    held = os.urandom(1 << 20) * 50
    return len(held) and resident_kib()


@pytest.mark.parametrize("run", [run_here, run_apart])
def test_a_result_is_returned_and_progress_is_passed_on_in_order(run: Run) -> None:
    told: list[tuple[Any, ...]] = []
    total, process = run(partial(add, 2, 3), lambda *given: told.append(given))
    assert total == 5
    assert told == [("adding", 2), ("adding", 3)]
    assert (process == os.getpid()) == (run is run_here)


def test_a_sentence_for_the_user_is_passed_on_as_it_is() -> None:
    with pytest.raises(TrainingError) as raised:
        run_apart(refuse, print)
    assert str(raised.value) == "the loss is nan after epoch 1; lower --learning-rate"
    assert "in refuse" in raised.value.__notes__[0], "the traceback of the other process is kept"


def test_an_error_that_cannot_be_sent_is_told_with_its_traceback() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)in fail.*Unportable: fault 7"):
        run_apart(fail, print)


def test_a_result_that_cannot_be_sent_is_an_error() -> None:
    with pytest.raises(Exception, match="pickle"):
        run_apart(answer_what_cannot_be_pickled, print)


def test_a_killed_process_is_explained_in_one_sentence() -> None:
    with pytest.raises(ProcessError, match=r"^a process that .* was killed by SIGKILL, .*, or lower --batch-size$"):
        run_apart(partial(end, signal.SIGKILL), print)
    with pytest.raises(ProcessError, match=r"^a process that .* ended with exit code 3; run the command again"):
        run_apart(partial(end, -3), print)


def test_an_exception_in_this_process_ends_the_other() -> None:
    told: list[int] = []

    def interrupt(process: int) -> None:
        told.append(process)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_apart(wait, interrupt)
    assert not Path(f"/proc/{told[0]}").exists()


def test_memory_is_given_back() -> None:
    run_apart(partial(add, 2, 3), lambda *_: None)
    before = resident_kib()
    for _ in range(2):
        assert run_apart(hold_memory, print) > 50 << 10
    assert resident_kib() < before + (10 << 10)


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_other_process_ends_quietly_with_this_one(tmp_path: Path, end: signal.Signals) -> None:
    """SIGINT goes to both, as Ctrl-C does; the others to the command alone."""
    code = (
        "import sys; from model_export.processes import run_apart; from tests.model_export.test_processes import wait\n"
        "try: run_apart(wait, print)\n"
        "except KeyboardInterrupt: sys.exit(130)"
    )
    command = [sys.executable, "-uc", code]
    errors = tmp_path / "errors"
    with (
        errors.open("w", encoding="utf-8") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, start_new_session=True) as started,
    ):
        assert started.stdout is not None
        child = int(started.stdout.readline())
        assert [child] in descendants(started.pid)
        if end == signal.SIGINT:
            os.killpg(started.pid, end)
        else:
            started.send_signal(end)
        assert started.wait(30) == (130 if end == signal.SIGINT else -end)
        until(lambda: not Path(f"/proc/{child}").exists())
    assert errors.read_text(encoding="utf-8") == ""
