"""The sampling rule, compared with a plain version that looks at every frame for every instant."""

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from math import floor
from statistics import median_high

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.video.sampling import FRAME_COUNT, frames_shown, sample_instants

ticks = st.integers(-(10**6), 10**6)
timestamp_lists = st.lists(ticks, min_size=1, max_size=90).map(sorted)
durations = st.fractions(min_value=Fraction(1, 1000), max_value=10**6, max_denominator=1000)


def frame_on_screen(instant: Fraction, timestamps: Sequence[int]) -> int:
    """The index of the frame on screen at an instant.

    A frame is on screen from its timestamp until the next one; the first also before that. If frames usually lie more
    than a tick apart, timestamps may have been rounded, and a frame is on screen from half a tick earlier.
    """
    steps = [later - earlier for earlier, later in pairwise(timestamps)]
    rounded = bool(steps) and median_high(steps) > 1
    shown = 0
    for index, timestamp in enumerate(timestamps):
        if timestamp - (Fraction(1, 2) if rounded else 0) <= instant:
            shown = index
    return shown


@given(start=st.fractions(max_denominator=1000), duration=durations)
def test_the_instants_are_the_middles_of_forty_equal_segments(start: Fraction, duration: Fraction) -> None:
    expected = [start + (k + Fraction(1, 2)) * duration / 40 for k in range(40)]

    assert sample_instants(start, duration) == expected


@given(timestamps=timestamp_lists, end=st.integers(1, 10**4))
def test_the_frame_on_screen_at_each_instant_is_found(timestamps: list[int], end: int) -> None:
    start = Fraction(timestamps[0])
    instants = sample_instants(start, timestamps[-1] + end - start)

    assert frames_shown(instants, timestamps) == [frame_on_screen(instant, timestamps) for instant in instants]


@given(timestamps=timestamp_lists, instants=st.lists(st.fractions(-(10**6), 10**6, max_denominator=4), max_size=20))
def test_instants_before_the_first_and_after_the_last_frame_have_a_frame_too(
    timestamps: list[int], instants: list[Fraction]
) -> None:
    assert frames_shown(instants, timestamps) == [frame_on_screen(instant, timestamps) for instant in instants]


@given(frames=st.integers(1, 2000), step=st.just(1) | st.integers(41, 4000), start=ticks)
def test_a_constant_frame_rate_gives_the_middle_frame_of_each_segment(frames: int, step: int, start: int) -> None:
    """If ticks count frames or a frame lasts over 40 ticks; with fewer, half a tick can reach the next frame."""
    timestamps = range(start, start + frames * step, step)

    shown = frames_shown(sample_instants(Fraction(start), Fraction(frames * step)), timestamps)

    assert shown == [floor((k + Fraction(1, 2)) * frames / 40) for k in range(40)]


@given(frames=st.integers(1, 39))
def test_fewer_frames_than_instants_are_repeated_and_each_is_sampled(frames: int) -> None:
    timestamps = range(0, frames * 512, 512)

    shown = frames_shown(sample_instants(Fraction(0), Fraction(frames * 512)), timestamps)

    assert len(shown) == FRAME_COUNT
    assert shown == sorted(shown)
    assert set(shown) == set(range(frames))


def test_a_single_frame_is_sampled_forty_times() -> None:
    assert frames_shown(sample_instants(Fraction(7), Fraction(1)), [7]) == [0] * 40


def test_a_frame_is_on_screen_from_half_a_tick_before_its_timestamp() -> None:
    just_before = Fraction(19, 2) - Fraction(1, 10**9)

    assert frames_shown([just_before, Fraction(19, 2), Fraction(10)], [0, 10, 20]) == [0, 1, 1]


def test_the_last_of_several_frames_with_equal_timestamps_is_on_screen() -> None:
    assert frames_shown([Fraction(0), Fraction(5), Fraction(9)], [0, 5, 5, 5, 9]) == [0, 3, 4]


def test_negative_timestamps_are_handled_like_others() -> None:
    assert frames_shown([Fraction(-30), Fraction(-20), Fraction(-1), Fraction(0)], [-20, -10, 0]) == [0, 0, 1, 2]


def test_a_long_pause_repeats_the_frame_before_it() -> None:
    shown = frames_shown(sample_instants(Fraction(0), Fraction(400)), [0, 10, 390])

    assert shown == [0] + [1] * 38 + [2]


@pytest.mark.parametrize("duration", [0, -1])
def test_a_duration_that_is_not_positive_is_refused(duration: int) -> None:
    with pytest.raises(ValueError, match="duration"):
        sample_instants(Fraction(0), Fraction(duration))


@pytest.mark.parametrize("count", [0, -40])
def test_a_count_that_is_not_positive_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match="segments"):
        sample_instants(Fraction(0), Fraction(1), count)


def test_an_empty_list_of_timestamps_is_refused() -> None:
    with pytest.raises(ValueError, match="timestamp"):
        frames_shown([Fraction(0)], [])


def test_frames_two_ticks_apart_were_rounded_and_frames_one_tick_apart_were_not() -> None:
    """A frame that begins half a tick after the instant is on screen only if its timestamp may have been rounded."""
    instants = [Fraction(7, 2), Fraction(15, 2)]

    assert frames_shown(instants, range(0, 20, 2)) == [2, 4]
    assert frames_shown(instants, range(20)) == [3, 7]


def test_the_usual_distance_of_frames_decides_whether_timestamps_were_rounded() -> None:
    mostly_one_tick, mostly_two_ticks = [0, 1, 2, 3, 5, 7], [0, 1, 2, 4, 6, 8, 10]

    assert frames_shown([Fraction(9, 2)], mostly_one_tick) == [3]
    assert frames_shown([Fraction(7, 2)], mostly_two_ticks) == [3]
