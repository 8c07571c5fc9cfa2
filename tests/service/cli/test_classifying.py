"""How a bundle in this process answers ``limelight predict``."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from service.cli.classifying import Wanted, in_process
from service.cli.clips import ClipProblem, opened
from service.isolation.processes import DecoderProcesses
from service.settings import Settings
from service.video import decoder
from service.video.decoder import DecodedClip


@pytest.fixture
def settings(tiny_bundle: Path) -> Settings:
    return Settings(bundle=tiny_bundle, device="cpu")


@pytest.fixture
def clip_file(tmp_path: Path, clip: bytes) -> Path:
    file = tmp_path / "clip.mp4"
    file.write_bytes(clip)
    return file


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> list[DecodedClip]:
    """What decoder processes decode. Decoding in this process fails the test."""
    decoded: list[DecodedClip] = []
    decode = DecoderProcesses.decode

    async def counted(decoders: DecoderProcesses, clip: Any) -> DecodedClip:
        if isinstance(clip, bytes):  # which calls itself with a file
            return await decode(decoders, clip)
        decoded.append(await decode(decoders, clip))
        return decoded[-1]

    def refuse(*_: object) -> None:
        pytest.fail("the clip was decoded outside the sandbox")

    monkeypatch.setattr(DecoderProcesses, "decode", counted)
    monkeypatch.setattr(decoder, "decode_clip", refuse)
    return decoded


def test_an_overlay_is_drawn_from_the_frames_of_the_only_decode(
    settings: Settings, clip_file: Path, decodes: list[DecodedClip]
) -> None:
    with in_process(settings, Wanted(overlay=True)) as classify, opened(str(clip_file)) as clip:
        answer = classify(clip)

    (decoded,) = decodes
    assert answer.frames is decoded.frames
    assert answer.times_s == [frame.time_s for frame in decoded.sampled]
    assert answer.attention is not None
    assert answer.json is None


@pytest.mark.parametrize("json", [True, False])
def test_a_clip_that_cannot_be_decoded_is_a_problem_with_the_code_of_the_api(
    settings: Settings, tmp_path: Path, json: bool
) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("no video " * 100, encoding="utf-8")
    with (
        in_process(settings, Wanted(json=json)) as classify,
        opened(str(notes)) as clip,
        pytest.raises(ClipProblem, match=r"notes\.txt: this is not a video") as error,
    ):
        classify(clip)

    assert error.value.code == "unsupported_media"
    assert error.value.status == (415 if json else None)


def test_more_clips_than_the_pipeline_has_places_for_are_answered(tiny_bundle: Path, clip_file: Path) -> None:
    few_places = Settings(bundle=tiny_bundle, device="cpu", max_queue=0)
    with in_process(few_places, Wanted()) as classify, opened(str(clip_file)) as clip, ThreadPoolExecutor(4) as threads:
        answers = [*threads.map(classify, [clip] * 4)]

    assert len({tuple(answer.ranking) for answer in answers}) == 1
