"""How ``limelight predict`` gets answers, run in this process."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from service.cli.classifying import Wanted, in_process, over_http
from service.errors import CommandError
from service.isolation.processes import DecoderProcesses
from service.settings import Settings
from service.video import decoder
from service.video.decoder import DecodedClip


@pytest.fixture
def settings(tiny_bundle: Path) -> Settings:
    return Settings(bundle=tiny_bundle, device="cpu")


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
    settings: Settings, clip: bytes, decodes: list[DecodedClip]
) -> None:
    with in_process(settings, Wanted(overlay=True)) as classify:
        answer = classify("clip.mp4", clip)

    (decoded,) = decodes
    assert answer.frames is decoded.frames
    assert answer.times_s == [frame.time_s for frame in decoded.sampled]
    assert answer.attention is not None
    assert answer.json is None


def test_a_clip_that_cannot_be_decoded_is_named_in_the_error(settings: Settings) -> None:
    with in_process(settings, Wanted()) as classify, pytest.raises(CommandError, match=r"^notes\.txt: "):
        classify("notes.txt", b"no video " * 100)


@pytest.mark.parametrize(
    ("name", "value"), [("HTTP_PROXY", "junk://x"), ("ALL_PROXY", "socks5://127.0.0.1:1"), ("NO_PROXY", "[::1")]
)
def test_a_proxy_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)

    for this_machine in ("http://127.0.0.1:8000", "http://localhost:8000", "http://[::1]:8000"):
        with over_http(this_machine, None, Wanted()):
            pass  # it is asked without the proxy
    with (
        pytest.raises(CommandError, match=f"the proxy that the environment names cannot be used.*{name}"),
        over_http("http://example.org", None, Wanted()),
    ):
        pass


class TestForeignAnswers:
    """Answers of proxies and other servers, instead of the service's."""

    @pytest.mark.parametrize(
        ("status", "body", "told"),
        [
            (502, b"<html>\r\n<h1>nginx</h1>" + b"." * 10_000, "502 Bad Gateway: <html> <h1>nginx</h1>."),
            (503, b'{"message": "no upstream"}', '503 Service Unavailable: {"message": "no upstream"}'),
            (200, b"<p>Please log in", "200 OK: <p>Please log in"),
            (302, b"\xff\x1b[2J", "302 Found: "),
            (504, b"", "504 Gateway Timeout"),
        ],
    )
    def test_the_status_and_the_beginning_of_the_text_are_told(self, status: int, body: bytes, told: str) -> None:
        sentence = self.refused(status, body, None)

        assert f"(status {status}) is not Limelight's, but `{told}" in sentence
        assert len(sentence) < 400

    def test_the_text_is_not_told_if_it_repeats_the_key(self) -> None:
        sentence = self.refused(500, b"." * 100 + b"Authorization: Bearer s3cret", "s3cret")

        assert "but `500 Internal Server Error`; check" in sentence

    @staticmethod
    def refused(status: int, body: bytes, key: str | None) -> str:
        """Return what is said about an answer to a request with this key."""

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            threading.Thread(target=server.serve_forever).start()
            try:
                with (
                    over_http(f"http://127.0.0.1:{server.server_port}", key, Wanted()) as classify,
                    pytest.raises(CommandError) as error,
                ):
                    classify("clip.mp4", b"a clip")
            finally:
                server.shutdown()
        return str(error.value)
