"""Timestamps that jump, start again, are missing or out of order."""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import pairwise
from types import SimpleNamespace
from typing import cast

import pytest
from av.packet import Packet
from av.video.stream import VideoStream
from hypothesis import given
from hypothesis import strategies as st

from service.video.headers import VideoPacket
from service.video.timing import in_order, timeline, usual_duration

MILLISECONDS, CLOCK = Fraction(1, 1000), Fraction(1, 90_000)
FRAME_MS = Fraction(40)


def packets(
    shown: Sequence[int | None], decoded: Sequence[int | None] | None = None, keyframes: Iterable[int] = (0,)
) -> list[VideoPacket]:
    """Packets with these presentation and decode times (default: the same)."""
    made = []
    for number, (pts, dts) in enumerate(zip(shown, shown if decoded is None else decoded, strict=True)):
        packet = cast(VideoPacket, Packet(1))
        packet.pts, packet.dts, packet.is_keyframe = pts, dts, number in set(keyframes)
        made.append(packet)
    return made


def timeline_of(stream: list[VideoPacket], usual: Fraction, time_base: Fraction, *, clocked: bool) -> list[int | None]:
    return timeline(stream, frozenset(), usual, time_base, clocked=clocked)


def recording(frames: int, start: int = 0, step: int = 40) -> list[int]:
    return list(range(start, start + frames * step, step))


@pytest.mark.parametrize("clocked", [False, True])
@pytest.mark.parametrize("second", [0, 400, 960])
def test_a_recording_that_starts_again_follows_the_one_before(clocked: bool, second: int) -> None:
    times = recording(50) + recording(50, second)

    assert timeline_of(packets(times), FRAME_MS, MILLISECONDS, clocked=clocked) == recording(100)


def test_recordings_that_start_again_in_their_presentation_times_only_are_joined_too() -> None:
    """FFmpeg derives Matroska's decode times from the presentation times, and they need not go back."""
    shown = recording(50, 80) + recording(50, 80)

    joined = timeline_of(packets(shown, [None] * 100, keyframes=(0, 50)), FRAME_MS, MILLISECONDS, clocked=False)

    assert joined == recording(100, 80)


def test_packets_without_a_time_count_where_recordings_are_joined() -> None:
    """MPEG program streams give times to some pictures only."""
    one = [0, None, None, 120, None, None]

    joined = timeline_of(packets(one + one), FRAME_MS, MILLISECONDS, clocked=True)

    assert in_order(joined, FRAME_MS) == recording(12)


@pytest.mark.parametrize("keyframes", [(0,), (0, 20)], ids=["within a group", "at a keyframe"])
@pytest.mark.parametrize("jump_s", [-0.4, 60])
def test_second_fields_have_no_time_and_count_as_no_frames_where_recordings_are_joined(
    jump_s: float, keyframes: Sequence[int]
) -> None:
    frames = [*recording(10), *recording(10, 400 + round(jump_s * 1000))]
    fields = [time for frame in frames for time in (frame, None)]

    joined = timeline_of(packets(fields, keyframes=keyframes), FRAME_MS, MILLISECONDS, clocked=True)

    assert joined[::2] == recording(20)


def test_frames_shown_before_the_keyframe_they_follow_are_no_new_start() -> None:
    shown = [80, 0, 40, 200, 120, 160, *recording(20, 240)]
    decoded = [*recording(6, -80), *recording(20, 240)]

    assert timeline_of(packets(shown, decoded, keyframes=range(26)), FRAME_MS, MILLISECONDS, clocked=False) == shown


@pytest.mark.parametrize(("jump_s", "joined"), [(9.9, False), (10.1, True)])
def test_a_clock_that_jumps_ahead_by_more_than_ten_seconds_is_joined(jump_s: float, joined: bool) -> None:
    times = recording(50, 0, 3600) + recording(50, 49 * 3600 + round(jump_s * 90_000), 3600)

    moved = timeline_of(packets(times), Fraction(3600), CLOCK, clocked=True)

    assert moved == (recording(100, 0, 3600) if joined else times)


def test_a_jump_within_a_group_of_pictures_keeps_the_distances_of_decode_times() -> None:
    shown, decoded = [80, 0, 40, 200, 120, 160], [-40, 0, 40, 80, 120, 160]
    jumped = [[*times[:4], *(time + 60_000 for time in times[4:])] for times in (shown, decoded)]

    assert timeline_of(packets(*jumped), FRAME_MS, MILLISECONDS, clocked=True) == shown


def test_decode_times_that_follow_a_jump_late_are_no_second_jump() -> None:
    """FFmpeg derives them from the presentation times, and gives the first behind a jump the last before it."""
    shown = [0, 120, 40, 80, *(60_000 + time for time in (160, 280, 200, 240))]
    decoded = [-40, 0, 40, 80, 120, *(60_000 + time for time in (160, 200, 240))]

    joined = timeline_of(packets(shown, decoded, keyframes=(0, 4)), FRAME_MS, MILLISECONDS, clocked=True)

    assert joined == [0, 120, 40, 80, 160, 280, 200, 240]


@pytest.mark.parametrize(("jump_s", "joined"), [(60, False), (3599, False), (3601, True)])
def test_other_timestamps_may_leave_a_gap_of_up_to_an_hour(jump_s: int, joined: bool) -> None:
    times = recording(50) + recording(50, 49 * 40 + jump_s * 1000)

    assert timeline_of(packets(times), FRAME_MS, MILLISECONDS, clocked=False) == (recording(100) if joined else times)


def test_a_clock_of_33_bits_that_starts_again_goes_on() -> None:
    times = [(2**33 - 25 * 3600 + time) % 2**33 for time in recording(100, 0, 3600)]

    moved = timeline_of(packets(times), Fraction(3600), CLOCK, clocked=True)

    assert [later - earlier for earlier, later in pairwise(cast(list[int], moved))] == [3600] * 99


def test_a_clock_may_go_back_by_a_tenth_of_a_second_without_starting_again() -> None:
    times = recording(50, 0, 3600) + recording(50, 50 * 3600 - 8000, 3600)

    assert timeline_of(packets(times), Fraction(3600), CLOCK, clocked=True) == times


def test_shuffled_timestamps_do_not_start_again() -> None:
    times = [40 * (7 * number % 60) for number in range(60)]

    assert timeline_of(packets(times, keyframes=range(60)), FRAME_MS, MILLISECONDS, clocked=False) == times


@pytest.mark.parametrize(("frames", "joined"), [([50, 10], True), ([50, 50, 10], True), ([50, 10, 50], False)])
def test_only_the_last_recording_may_be_shorter_than_frames_are_reordered(frames: Sequence[int], joined: bool) -> None:
    """Timestamps that start again sooner are out of order."""
    times = [time for count in frames for time in recording(count, step=100)]

    moved = timeline_of(packets(times), FRAME_MS, MILLISECONDS, clocked=False)

    assert joined == all(later > earlier for earlier, later in pairwise(cast(list[int], moved)))
    assert joined or moved == times


def test_packets_that_an_edit_list_leaves_out_do_not_start_again() -> None:
    """FFmpeg's demuxer gives the frames that precede an edit, down to a keyframe, the times before it."""
    times = [*recording(50), *recording(20, 50 * 40 - 20 * 40), *recording(50, 50 * 40)]

    moved = timeline(packets(times), frozenset(range(50, 70)), FRAME_MS, MILLISECONDS, clocked=False)

    assert moved == times


def test_decode_times_count_where_there_are_no_presentation_times() -> None:
    assert timeline_of(packets([None] * 3, [0, 40, 80]), FRAME_MS, MILLISECONDS, clocked=False) == [0, 40, 80]


@pytest.mark.parametrize(
    ("durations", "guessed", "average", "expected"),
    [
        ([40, 40, 0, 80, 20, 40, 80, 80], Fraction(50), Fraction(50), 40),  # the median of those that are known
        ([0, -1, 0], Fraction(50), Fraction(10), 20),
        ([0, 0], None, Fraction(10), 100),
        ([0, 0], None, None, 1),
    ],
)
def test_a_frame_usually_lasts_as_long_as_most_others_or_as_the_declared_rate_says(
    durations: Sequence[int], guessed: Fraction | None, average: Fraction | None, expected: int
) -> None:
    stream = packets([None] * len(durations))
    for packet, duration in zip(stream, durations, strict=True):
        packet.duration = duration
    declared = cast(VideoStream, SimpleNamespace(guessed_rate=guessed, average_rate=average))

    assert usual_duration(stream, declared, MILLISECONDS) == expected


def test_equal_timestamps_say_nothing() -> None:
    assert timeline_of(packets([7] * 5), FRAME_MS, MILLISECONDS, clocked=False) == [None] * 5
    assert in_order([None] * 5, Fraction(100, 3)) == [0, 33, 67, 100, 133]


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([None, 40, None, None, 160, None], [0, 40, 80, 120, 160, 200]),
        ([0, None, 100, None, None, 200], [0, 40, 80, 120, 160, 200]),
        ([0, None, 200, None, None, 500], [0, 100, 200, 300, 400, 500]),
        ([400, 0, None, 200], [0, 200, 300, 400]),
        ([None, 400, None, 700, None], [360, 400, 550, 700, 740]),
        ([0, None, 500, 500, None, 200], [0, 40, 80, 120, 160, 200]),
        ([7], [7]),
    ],
)
def test_missing_times_follow_the_usual_rate_or_lie_evenly_between_those_that_are_known(
    times: list[int | None], expected: list[int]
) -> None:
    assert in_order(times, FRAME_MS) == expected


@given(times=st.lists(st.none() | st.integers(-(10**6), 10**6), min_size=1, max_size=30))
def test_times_in_order_do_not_decrease_and_are_near_to_those_that_are_known(times: list[int | None]) -> None:
    ordered = in_order(times, FRAME_MS)

    assert len(ordered) == len(times)
    assert ordered == sorted(ordered)
    known = sorted(time for time in times if time is not None)
    kept = [time for time, was in zip(ordered, times, strict=True) if was is not None]
    if None in times and len(set(known)) < len(known):
        return  # those that come twice are unknown
    assert all(abs(time - was) <= 2 * FRAME_MS for time, was in zip(kept, known, strict=True))
