"""Receiving a clip from a form or a raw body in chunks of any size."""

import os
import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.types import Message

from service.http.problems import Problem
from service.http.upload import receive_clip
from service.isolation.clip_file import ClipFile

FORM = "multipart/form-data; boundary=limit"
FILE = "Content-Disposition: form-data; name=file"


def part(name: str, content: bytes, filename: str | None = "clip.mp4") -> bytes:
    file = "" if filename is None else f'; filename="{filename}"'
    head = f'--limit\r\nContent-Disposition: form-data; name="{name}"{file}\r\nContent-Type: video/mp4\r\n\r\n'
    return head.encode() + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--limit--\r\n"


def received(content_type: str, chunks: Sequence[bytes], codings: Sequence[str] = ()) -> bytes:
    """Return the clip of a request whose body arrives in these chunks."""
    left = list(chunks)

    async def receive() -> Message:
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    headers = [(b"content-type", content_type.encode())]
    headers += [(b"content-encoding", coding.encode()) for coding in codings]
    request = Request({"type": "http", "headers": headers}, receive)
    with ClipFile() as clip:
        run = receive_clip(request, clip)
        with pytest.raises(StopIteration):  # it never waits, so no event loop is needed
            run.send(None)
        return os.pread(clip.fileno(), clip.size, 0)


def problem(content_type: str, body: bytes) -> str:
    with pytest.raises(Problem) as refused:
        received(content_type, [body])
    return refused.value.code


def described_part(*lines: str) -> bytes:
    return "\r\n".join(["--limit", *lines, "", "clip", ""]).encode("latin-1")


@st.composite
def cut(draw: st.DrawFn, body: bytes) -> list[bytes]:
    """Draw a way to split the body into chunks."""
    places = sorted(draw(st.lists(st.integers(0, len(body)), max_size=12)))
    return [body[start:end] for start, end in zip([0, *places], [*places, len(body)], strict=True)]


BOUNDARY = re.compile(rb"\r\n--limit(--|[ \t]*\r\n)")
# Clips full of bytes that could end a part of a form.
ALMOST = [b"\r\n--limi", b"\r\n--limitx", b"\r\n--limit-", b"\r\n--limit\r", b"\r\n--limit  "]
CONTENT = st.lists(st.sampled_from([b"\r\n", b"--", b"limit", b"x", b"\0", *ALMOST]), min_size=1).map(b"".join)


@given(st.data(), CONTENT.filter(lambda content: not BOUNDARY.search(content + b"\r\n")))
def test_the_file_of_a_form_is_received_unchanged(data: st.DataObject, content: bytes) -> None:
    body = form(part("title", b"Diving", filename=None), part("file", content), part("more", b"of it"))

    assert received(FORM, data.draw(cut(body))) == content


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
        (form(part("File", b"names are case-sensitive")), "missing_file"),
        (form(part("file", b"one"), part("file", b"two", filename=None)), "malformed_multipart"),
        (form(described_part("Content-Disposition: form-data; filename=file")), "malformed_multipart"),
        (form(described_part("Content-Type: video/mp4")), "malformed_multipart"),
        (form(part("file", b"")), "empty_body"),
        (form(described_part()), "malformed_multipart"),
        (form(described_part(FILE, "colon")), "malformed_multipart"),
        (form(described_part(FILE, " X: y")), "malformed_multipart"),
        (form(described_part("Content-Disposition: form-data; name=file" + ";" * 1000)), "unsupported_media"),
        (b"--limit--\r\n", "missing_file"),
        (b"\r\n" * 100, "malformed_multipart"),
    ],
)
def test_a_form_without_a_usable_clip_is_refused(body: bytes, code: str) -> None:
    assert problem(FORM, body) == code


PADDING = 8192 - len(f"\r\n{FILE}\r\nX: ")  # makes a part's headers as long as they may be


@pytest.mark.parametrize(
    ("most", "beyond"),
    [
        (form(*[part("title", b"")] * 15, part("file", b"clip")), form(*[part("title", b"")] * 16, part("file", b""))),
        (form(described_part(FILE, *["X: y"] * 7)), form(described_part(FILE, *["X: y"] * 8))),
        (form(described_part(FILE, f"X: {'y' * PADDING}")), form(described_part(FILE, f"X: {'y' * (PADDING + 1)}"))),
        (form(described_part(FILE + ";" * 99)), form(described_part(FILE + ";" * 100))),
        (form(described_part(FILE)).replace(b"limit\r", b"limit" + b" " * 64 + b"\r"),
         form(described_part(FILE)).replace(b"limit\r", b"limit" + b" " * 65 + b"\r")),
    ],
    ids=["parts", "headers", "bytes of headers", "parameters", "blanks after a boundary"],
)  # fmt: skip
def test_a_form_may_be_as_large_as_the_bounds_however_it_arrives(most: bytes, beyond: bytes) -> None:
    assert received(FORM, [most]) == received(FORM, [bytes([byte]) for byte in most]) == b"clip"
    assert problem(FORM, beyond) in {"malformed_multipart", "missing_file", "unsupported_media"}


@pytest.mark.parametrize("length", [1, 256])
def test_a_boundary_may_be_long(length: int) -> None:
    boundary = "x" * length
    body = form(part("file", b"clip")).replace(b"--limit", f"--{boundary}".encode())

    assert received(f"multipart/form-data; boundary={boundary}", [body]) == b"clip"


def test_what_surrounds_a_form_is_ignored() -> None:
    preamble, epilogue = b"This is a form.\r\n", b"\r\n--limit\r\n" + bytes(1000)

    assert received(FORM, [preamble + form(part("file", b"clip")) + epilogue, epilogue]) == b"clip"


def test_blanks_may_follow_a_boundary() -> None:
    body = form(part("title", b"Diving"), part("file", b"clip"))

    assert received(FORM, [body.replace(b"--limit\r\n", b"--limit \t\r\n")]) == b"clip"


def test_a_content_type_with_too_many_parameters_is_refused() -> None:
    assert problem("video/mp4" + ";" * 101, b"clip") == "unsupported_media"


@pytest.mark.parametrize("boundary", ["", "x" * 257])
def test_a_form_without_a_valid_boundary_is_refused(boundary: str) -> None:
    body = form(part("file", b"clip")).replace(b"--limit", f"--{boundary}".encode())

    assert problem(f"multipart/form-data; boundary={boundary}", body) == "malformed_multipart"


@pytest.mark.parametrize(
    "disposition",
    [
        'form-data; name="file"',
        "form-data; name=file",
        "form-data; name=file; filename=clip.mp4",
        "form-data; name=\"file\"; filename*=UTF-8''caf%C3%A9.mp4",
        "form-data; filename*=UTF-8''clip.mp4; name=file",
        "form-data; name*=UTF-8''file",
        "form-data; name*=utf-8'en'%66ile; filename=\"clip.mp4\"",
        'form-data;name="file";filename="a;b\\".mp4"',
        'FORM-DATA; NAME="file"; FILENAME="CLIP.MP4"',
        'form-data; name="file"; filename=""',
        'form-data; name="file"; filename="caf\xc3\xa9.mp4"',
    ],
)
@pytest.mark.parametrize("field", ["Content-Disposition", "content-disposition"])
def test_a_part_named_file_is_the_clip_whatever_its_file_name(field: str, disposition: str) -> None:
    body = form(described_part("Content-Type: text/plain", f"{field}: {disposition}"))

    assert received(FORM, [body]) == b"clip"


@pytest.mark.parametrize(
    "line",
    ["Content-Transfer-Encoding: binary", "content-transfer-encoding: 8BIT", "Content-Transfer-Encoding: 7bit",
     "Content-Encoding: identity"],
)  # fmt: skip
def test_a_part_that_says_that_its_bytes_are_not_encoded_is_received(line: str) -> None:
    assert received(FORM, [form(described_part(line, "Content-Disposition: form-data; name=file"))]) == b"clip"


@pytest.mark.parametrize("encoding", ["base64", "Quoted-Printable", "x-uuencode"])
@pytest.mark.parametrize("field", ["Content-Transfer-Encoding", "content-encoding"])
def test_an_encoded_part_is_refused_and_names_its_encoding(field: str, encoding: str) -> None:
    lines = [f"{field}: {encoding}", 'Content-Disposition: form-data; name="file"; filename="clip.mp4"']
    for body in (form(described_part(*lines)), form(described_part(*reversed(lines)))):
        with pytest.raises(Problem, match=f"encoded as {encoding.lower()}; send") as refused:
            received(FORM, [body])
        assert refused.value.code == "unsupported_media"


def test_other_parts_may_be_encoded() -> None:
    note = described_part("Content-Transfer-Encoding: base64", "Content-Disposition: form-data; name=note")

    assert received(FORM, [form(note, part("file", b"clip"))]) == b"clip"


@pytest.mark.parametrize(
    ("codings", "named"),
    [
        (["gzip"], "gzip"),
        (["x-gzip"], "x-gzip"),
        (["ZSTD"], "zstd"),
        (["br"], "br"),
        (["deflate"], "deflate"),
        (["gzip, identity"], "gzip"),
        (["identity", "gzip"], "gzip"),
        (["gzip", " br ,"], "gzip, br"),
        (["aws-chunked"], "aws-chunked"),
    ],
)
@pytest.mark.parametrize("content_type", ["video/mp4", FORM])
def test_an_encoded_body_is_refused_by_name_before_it_is_read(
    content_type: str, codings: list[str], named: str
) -> None:
    with pytest.raises(Problem, match=f"content encoding {named} is not supported") as refused:
        received(content_type, [], codings)  # reading would raise an IndexError
    assert refused.value.code == "unsupported_media"


@pytest.mark.parametrize("codings", [["identity"], [""], ["Identity, identity"], ["", "identity"]])
def test_a_body_without_a_coding_is_received(codings: list[str]) -> None:
    assert received("video/mp4", [b"clip"], codings) == b"clip"


def test_an_empty_content_type_counts_as_none() -> None:
    assert received("", [b"clip"]) == b"clip"


@pytest.mark.parametrize("line", [b"X-Header: lime\r\n" * 4000, b"X-Header: " + b"lime" * 15_000, b"x" * 60_000])
def test_a_part_whose_headers_are_too_large_is_refused(line: bytes) -> None:
    assert problem(FORM, b"--limit\r\n" + line) == "malformed_multipart"
