import itertools
from collections.abc import Iterator, Sequence

import pytest

from service.errors import DecodeTimeout
from service.settings import Settings
from service.video import limits
from service.video.decoder import decode_clip
from service.video.limits import DecodeLimits
from tests.service.video.clips import numbered_clip

STEP_S = 2.0**-10  # like every time here a sum of powers of two, so that no sum is rounded


class Thread:
    """Takes the place of ``time``: the clocks of a thread that has the processor for some of the time."""

    def __init__(self) -> None:
        self.now, self.used, self.looks = 5000.0, 3.0, 0

    def monotonic(self) -> float:
        return self.now

    def thread_time(self) -> float:
        self.looks += 1
        return self.used

    def pass_time(self, seconds: float, share: float) -> None:
        self.now += seconds
        self.used += share * seconds


@pytest.fixture
def thread(monkeypatch: pytest.MonkeyPatch) -> Thread:
    thread = Thread()
    monkeypatch.setattr(limits, "time", thread)
    return thread


@pytest.mark.parametrize("timeout_s", [0, 2**-6, 4])
@pytest.mark.parametrize("shares", [[1.0], [0.25], [0.0, 0.0, 1.0], [1.0] * 100 + [0.0] * 5000])
def test_the_time_is_over_once_the_thread_has_used_more_processor_time_than_allowed(
    thread: Thread, timeout_s: float, shares: Sequence[float]
) -> None:
    check_time = DecodeLimits(timeout_s=timeout_s).stopwatch()
    end = thread.used + timeout_s
    steps = itertools.cycle(shares)
    while thread.used <= end:
        check_time()
        thread.pass_time(STEP_S, next(steps))

    with pytest.raises(DecodeTimeout, match=f"more than {timeout_s:g} s of processor time"):
        check_time()


def test_the_processor_time_is_looked_at_seldom(thread: Thread) -> None:
    check_time = DecodeLimits(timeout_s=20).stopwatch()
    for _ in range(10_000):
        check_time()
        thread.pass_time(0.0035, 0.5)

    assert thread.looks < 10


@pytest.mark.parametrize(
    ("codec", "container", "looks"),
    [
        ("libx264", "mp4", range(10, 71, 20)),  # 50 packets are read, and their frames are decoded sparsely
        ("msmpeg4", "avi", range(10, 101, 30)),
        ("libx264", "avi", range(10, 101, 30)),  # all frames are decoded: an AVI has decode times only
    ],
)
def test_the_time_may_end_while_packets_are_read_and_while_they_are_decoded(
    monkeypatch: pytest.MonkeyPatch, codec: str, container: str, looks: Sequence[int]
) -> None:
    data = numbered_clip(50, codec=codec, container=container, options={"bf": "2"} if codec == "libx264" else None)
    for allowed in looks:
        counter = itertools.count()

        def check_time(counter: Iterator[int] = counter, allowed: int = allowed) -> None:
            if next(counter) >= allowed:
                raise DecodeTimeout

        monkeypatch.setattr(DecodeLimits, "stopwatch", lambda _, check_time=check_time: check_time)
        with pytest.raises(DecodeTimeout):
            decode_clip(data)
        assert next(counter) == allowed + 1, "the decoder went on"


def test_the_limits_that_offline_use_has_are_the_services_defaults() -> None:
    settings = Settings()

    assert DecodeLimits() == DecodeLimits(
        max_duration_s=settings.max_duration_s,
        max_pixels=settings.max_pixels,
        max_frames=settings.max_frames,
        timeout_s=settings.decode_timeout_s,
    )
