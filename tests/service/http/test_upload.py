"""Receiving a clip from a form or a raw body in chunks of any size."""

import os
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.types import Message

from service.http.problems import Problem
from service.http.upload import receive_clip
from service.isolation.clip_file import ClipFile

FORM = "multipart/form-data; boundary=limit"


def part(name: str, content: bytes, filename: str | None = "clip.mp4") -> bytes:
    file = "" if filename is None else f'; filename="{filename}"'
    head = f'--limit\r\nContent-Disposition: form-data; name="{name}"{file}\r\nContent-Type: video/mp4\r\n\r\n'
    return head.encode() + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--limit--\r\n"


def received(content_type: str, chunks: Sequence[bytes]) -> bytes:
    """Return the clip of a request whose body arrives in these chunks."""
    left = list(chunks)

    async def receive() -> Message:
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    request = Request({"type": "http", "headers": [(b"content-type", content_type.encode())]}, receive)
    with ClipFile() as clip:
        run = receive_clip(request, clip)
        with pytest.raises(StopIteration):  # it never waits, so no event loop is needed
            run.send(None)
        return os.pread(clip.fileno(), clip.size, 0)


def problem(content_type: str, body: bytes) -> str:
    with pytest.raises(Problem) as refused:
        received(content_type, [body])
    return refused.value.code


@st.composite
def cut(draw: st.DrawFn, body: bytes) -> list[bytes]:
    """Draw a way to split the body into chunks."""
    places = sorted(draw(st.lists(st.integers(0, len(body)), max_size=12)))
    return [body[start:end] for start, end in zip([0, *places], [*places, len(body)], strict=True)]


# Clips full of bytes that could end a part of a form.
CONTENT = st.lists(st.sampled_from([b"\r\n", b"--", b"limit", b"\r\n--limi", b"x", b"\0"]), min_size=1).map(b"".join)


@settings(deadline=None)  # the machine may be busy
@given(st.data(), CONTENT.filter(lambda content: b"\r\n--limit" not in content))
def test_the_file_of_a_form_is_received_unchanged(data: st.DataObject, content: bytes) -> None:
    body = form(part("title", b"Diving", filename=None), part("file", content), part("more", b"of it"))

    assert received(FORM, data.draw(cut(body))) == content


@settings(deadline=None)  # the machine may be busy
@given(st.data(), CONTENT)
def test_a_raw_body_is_received_unchanged(data: st.DataObject, content: bytes) -> None:
    assert received("video/mp4", data.draw(cut(content))) == content


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (form(part("file", b"one"), part("file", b"two")), "malformed_multipart"),
        (form(*[part("title", b"", filename=None)] * 17), "malformed_multipart"),
        (part("file", b"the closing boundary is missing"), "malformed_multipart"),
        (b"--other\r\n\r\n", "malformed_multipart"),
        (b"--limit\r\nX" + b"-" * 100_000, "malformed_multipart"),
        (form(part("title", b"Diving")), "missing_file"),
        (form(part("file", b"a field and no file", filename=None)), "missing_file"),
        (form(part("file", b"")), "empty_body"),
    ],
)
def test_a_form_without_a_usable_clip_is_refused(body: bytes, code: str) -> None:
    assert problem(FORM, body) == code


@pytest.mark.parametrize("content_type", ["multipart/form-data", f"multipart/form-data; boundary={'x' * 1000}"])
def test_a_form_without_a_valid_boundary_is_refused(content_type: str) -> None:
    assert problem(content_type, form(part("file", b"clip"))) == "malformed_multipart"
