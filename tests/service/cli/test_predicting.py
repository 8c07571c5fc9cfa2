"""Many clips at a time, in order."""

import itertools
import threading
import time
from collections.abc import Iterator

import pytest

from service.cli.predicting import in_order


@pytest.mark.parametrize("jobs", [1, 4])
def test_results_have_the_order_of_the_items_whichever_is_ready_first(jobs: int) -> None:
    def square(number: int) -> int:
        time.sleep(0.02 * (number % 3))
        return number**2

    assert list(in_order(square, range(20), jobs)) == [number**2 for number in range(20)]


def test_a_result_is_yielded_before_later_items_are_taken() -> None:
    taken = itertools.count()
    results = in_order(lambda item: item, taken, 4)

    assert list(itertools.islice(results, 100)) == list(range(100))
    assert next(taken) < 110  # of infinitely many


def test_as_many_calls_run_at_a_time_as_there_are_jobs() -> None:
    together = threading.Barrier(3)

    assert list(in_order(lambda _: together.wait(20) >= 0, range(6), 3)) == [True] * 6


def test_an_error_is_raised_when_its_turn_comes() -> None:
    def divide(number: int) -> float:
        return 6 / number

    results: Iterator[float] = in_order(divide, [1, 2, 0, 3], 4)

    assert [next(results), next(results)] == [6, 3]
    with pytest.raises(ZeroDivisionError):
        next(results)
