import math
from collections.abc import Callable
from contextlib import ExitStack, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.admission import Admission
from service.errors import Overloaded

NEVER = math.inf


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def serve_one(admission: Admission, clock: Clock, seconds: float) -> None:
    with admission.place(NEVER) as has_run:
        clock.now += seconds
        has_run()


def test_clips_beyond_the_capacity_are_refused() -> None:
    admission = Admission(2)
    with admission.place(NEVER), admission.place(NEVER), pytest.raises(Overloaded, match="2 clips"):
        admission.check(NEVER)

    admission.check(NEVER)


@given(st.lists(st.integers(0, 4), max_size=50), st.integers(1, 6))
def test_inside_counts_clips_in_any_order_of_arrivals_and_departures(arrivals: list[int], capacity: int) -> None:
    admission, inside = Admission(capacity), list[tuple[int, ExitStack]]()
    for clips in arrivals:  # 0 stands for the first to leave
        taken = sum(places for places, _ in inside)
        if not clips and inside:
            inside.pop(0)[1].close()
        elif clips and taken + clips > capacity:
            with pytest.raises(Overloaded), admission.place(NEVER, clips):
                pass
        elif clips:
            inside.append((clips, ExitStack()))
            inside[-1][1].enter_context(admission.place(NEVER, clips))
        assert admission.inside == sum(places for places, _ in inside)


class TestRetryAfter:
    def test_it_is_the_seconds_per_clip_times_the_clips_inside(self, clock: Clock) -> None:
        admission = Admission(3, clock)
        serve_one(admission, clock, 2.0)
        with ExitStack() as inside:
            for _ in range(3):
                inside.enter_context(admission.place(NEVER))
            with pytest.raises(Overloaded) as refused:
                admission.check(NEVER)

        assert refused.value.retry_after_s == pytest.approx(6)

    @pytest.mark.parametrize("junk", [0, 5])
    def test_it_follows_the_rate_at_which_clips_run_and_not_the_time_each_stays(self, clock: Clock, junk: int) -> None:
        admission, inside = Admission(4, clock), list[tuple[ExitStack, Callable[[], None]]]()
        for _ in range(60):  # four at a time, each of which stays for 4 s: one runs each second
            if len(inside) == 4:
                place, has_run = inside.pop(0)
                has_run()
                place.close()
            for _ in range(junk):  # clips that leave without having been run
                with admission.place(NEVER):
                    clock.now += 0.1
            place = ExitStack()
            inside.append((place, place.enter_context(admission.place(NEVER))))
            clock.now += 1 - 0.1 * junk
        with pytest.raises(Overloaded) as refused:
            admission.check(NEVER)

        assert refused.value.retry_after_s == pytest.approx(4, rel=0.05)

    def test_clips_of_one_request_count_separately(self, clock: Clock) -> None:
        admission = Admission(4, clock)
        with admission.place(NEVER, clips=4) as has_run:
            for _ in range(4):
                clock.now += 0.5
                has_run()
        with admission.place(NEVER), pytest.raises(Overloaded) as refused:
            admission.check(NEVER, clips=4)

        assert refused.value.retry_after_s == pytest.approx(0.5)

    def test_idle_time_does_not_count(self, clock: Clock) -> None:
        admission = Admission(1, clock)
        for _ in range(60):
            serve_one(admission, clock, 0.5)
            clock.now += 1000
        with admission.place(NEVER), pytest.raises(Overloaded) as refused:
            admission.check(NEVER)

        assert refused.value.retry_after_s == pytest.approx(0.5)

    def test_one_slow_clip_counts_for_an_eighth(self, clock: Clock) -> None:
        admission = Admission(1, clock)
        serve_one(admission, clock, 1.0)
        serve_one(admission, clock, 9.0)
        with admission.place(NEVER), pytest.raises(Overloaded) as refused:
            admission.check(NEVER)

        assert refused.value.retry_after_s == pytest.approx(2)

    def test_clips_that_were_not_run_do_not_count(self, clock: Clock) -> None:
        admission = Admission(1, clock)
        serve_one(admission, clock, 0.5)
        with suppress(ValueError), admission.place(NEVER):
            clock.now += 1000
            raise ValueError
        with admission.place(NEVER), pytest.raises(Overloaded) as refused:
            admission.check(NEVER)

        assert refused.value.retry_after_s == pytest.approx(0.5)

    def test_a_clip_that_left_while_it_ran_counts_when_its_run_ends(self, clock: Clock) -> None:
        admission = Admission(1, clock)
        for _ in range(60):
            with admission.place(NEVER) as has_run:
                clock.now += 0.01
            clock.now += 0.99
            has_run()
        with admission.place(NEVER), pytest.raises(Overloaded) as refused:
            admission.check(NEVER)

        assert refused.value.retry_after_s == pytest.approx(1)


class TestDeadline:
    def test_a_clip_that_could_not_be_answered_in_time_is_refused_at_once(self, clock: Clock) -> None:
        admission = Admission(10, clock)
        serve_one(admission, clock, 2.0)
        with admission.place(NEVER), admission.place(NEVER):
            admission.check(clock.now + 6.1)
            with pytest.raises(Overloaded, match="in time"):
                admission.check(clock.now + 5.9)

    def test_an_idle_service_admits_a_clip_however_slow_the_last_one_was(self, clock: Clock) -> None:
        admission = Admission(10, clock)
        serve_one(admission, clock, 1000.0)

        admission.check(clock.now + 1)

    def test_before_any_clip_has_run_only_a_deadline_that_has_passed_is_missed(self, clock: Clock) -> None:
        admission = Admission(10, clock)
        with admission.place(NEVER):
            admission.check(clock.now)
            with pytest.raises(Overloaded, match="in time") as refused:
                admission.check(clock.now - 0.1)

        assert refused.value.retry_after_s == 0
