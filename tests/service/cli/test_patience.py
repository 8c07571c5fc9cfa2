"""Waiting for a busy service, without one."""

import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from service.cli.patience import Pace, Patience, retry_after_s
from tests.processes import until


class TestRetryAfter:
    def test_a_number_is_seconds(self) -> None:
        assert retry_after_s("17") == 17

    @pytest.mark.parametrize("seconds", [3600, -3600])
    def test_a_date_is_a_time_from_now(self, seconds: int) -> None:
        date = format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)

        assert retry_after_s(date) == pytest.approx(seconds, abs=5)

    @pytest.mark.parametrize("header", ["soon", "-1", "1.5", "", "²", "Mon, 99 Jan 2026 00:00:00 GMT"])
    def test_anything_else_is_nothing(self, header: str) -> None:
        assert retry_after_s(header) is None


class TestPatience:
    def test_it_waits_as_told(self) -> None:
        patience = Patience(60)

        assert [patience.wait_s(told) for told in ("7", "3", "59")] == [7, 3, 59]

    def test_without_a_word_each_wait_is_twice_the_last_up_to_half_a_minute(self) -> None:
        patience = Patience(300)

        assert [patience.wait_s(None) for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]

    def test_it_ends_rather_than_wait_in_vain(self) -> None:
        assert Patience(60).wait_s("61") is None
        assert Patience(0).wait_s("0") is None

    def test_a_date_that_has_passed_leads_to_no_busy_loop(self) -> None:
        assert Patience(60).wait_s("Thu, 01 Jan 1970 00:00:00 GMT") == 0.1


class TestPace:
    def test_no_request_is_sent_while_the_service_asks_to_wait(self) -> None:
        pace = Pace(2)
        with pace.turn():
            pace.slow_down(0.3)
        began = time.monotonic()
        with pace.turn():
            assert time.monotonic() - began > 0.2

    def test_a_refusal_halves_the_requests_in_progress_and_answers_raise_them_again(self) -> None:
        pace = Pace(4)

        check_turns(pace, 4)
        with pace.turn(), pace.turn(), pace.turn(), pace.turn():
            pace.slow_down(0)
        check_turns(pace, 2)
        for _ in range(20):
            pace.speed_up()
        check_turns(pace, 4)


def check_turns(pace: Pace, expected: int) -> None:
    """Check how many of eight threads have their turn at the same time."""
    inside, done = [], threading.Event()

    def take_turn() -> None:
        with pace.turn():
            inside.append(True)
            done.wait()

    threads = [threading.Thread(target=take_turn) for _ in range(8)]
    for thread in threads:
        thread.start()
    until(lambda: len(inside) == expected)
    time.sleep(0.1)
    at_a_time = len(inside)
    done.set()
    for thread in threads:
        thread.join()
    assert at_a_time == expected
