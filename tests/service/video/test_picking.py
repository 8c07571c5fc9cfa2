"""Streams of which little or nothing is shown, and decoders that fail at their end."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

from service.errors import CorruptClip, NoFrames
from service.video.headers import Structure
from service.video.limits import DecodeLimits
from service.video.media import open_video
from service.video.picking import FramePicker
from service.video.presentation import Output, Track
from service.video.resizing import Resizer
from tests.service.video.clips import numbered_clip

LIMITS = DecodeLimits()


@contextmanager
def opened(clip: bytes) -> Iterator[tuple[Track, Any]]:
    with open_video(io.BytesIO(clip), LIMITS) as (container, stream):
        yield Track.read(container, stream, LIMITS, lambda: None), stream


@pytest.fixture(scope="module")
def clip() -> bytes:
    return numbered_clip(10, codec="mjpeg", container="matroska")


def test_an_error_at_the_end_of_the_stream_costs_no_frame(clip: bytes) -> None:
    @contextmanager
    def reopen() -> Iterator[Any]:
        with open_video(io.BytesIO(clip), LIMITS) as (container, stream):

            def decode(packet: Any) -> Any:
                if packet is None:
                    raise av.error.InvalidDataError(1, "at the end")
                return stream.codec_context.decode(packet)

            context = SimpleNamespace(decode=decode, width=64, height=48, reorder_depth=0)
            yield container, SimpleNamespace(codec_context=context)

    with opened(clip) as (track, stream):
        picker = FramePicker(replace(track, structure=None), reopen, LIMITS, lambda: None, Resizer())
        presentation = picker.pick(stream.codec_context, np.empty((40, 224, 224, 3), np.uint8))

    assert len(presentation.sources) == 10
    assert presentation.damaged == 0


def test_a_stream_of_which_no_packet_is_shown_holds_no_frame(clip: bytes) -> None:
    with opened(clip) as (track, _):
        numbers = frozenset(range(10))
        for changed in (
            replace(track, hidden=frozenset({0}), structure=Structure(frozenset({0}), numbers - {0})),
            replace(track, hidden=numbers, structure=None, only_decode_times=True, delay=2),
        ):
            with pytest.raises(NoFrames):
                changed.expected()


def test_a_stream_of_which_no_decoded_frame_is_shown_is_corrupt(clip: bytes) -> None:
    with opened(clip) as (track, _):
        for changed in (
            replace(track, hidden=frozenset({0})),
            replace(track, hidden=frozenset({0}), only_decode_times=True),
        ):
            with pytest.raises(CorruptClip):
                changed.decoded(Output([0], set(), 2))
