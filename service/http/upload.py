"""Receives a clip from a multipart form or a raw body, storing each byte once, as it arrives."""

import re
from urllib.parse import unquote_to_bytes

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers
from starlette.requests import Request

from service.http.problems import Problem
from service.isolation.clip_file import ClipFile

MAX_PARTS = 16  # of a form: parsing a body full of tiny parts would take long
# Values of Content-Transfer-Encoding and Content-Encoding of a part whose bytes are the clip's.
_UNENCODED = frozenset({b"", b"binary", b"8bit", b"7bit", b"identity"})
_EXTENDED_NAME = re.compile(rb";\s*name\*\s*=\s*[\w-]*'[^']*'([^;\s]*)", re.IGNORECASE)  # RFC 8187
_HOW_TO_SEND = (
    "send the clip as the part `file` of a multipart form (curl -F file=@clip.mp4), or as the body with the content "
    "type video/* or application/octet-stream"
)


async def receive_clip(request: Request, clip: ClipFile) -> None:
    """Write the clip that a request carries to ``clip``.

    Raises:
        Problem: The request does not contain a clip in a form that the service understands.
        ClientDisconnect: The client disconnected.
    """
    if codings := content_codings(request.headers):
        raise Problem(
            "unsupported_media",
            f"the content encoding {', '.join(codings)} is not supported; send the clip as it is, because video hardly "
            "compresses",
        )
    content_type = request.headers.get("Content-Type") or "application/octet-stream"
    media_type, parameters = parse_options_header(content_type)
    if media_type == b"multipart/form-data":
        await _receive_form(request, parameters.get(b"boundary", b""), clip)
    elif media_type == b"application/octet-stream" or media_type.startswith(b"video/"):
        async for chunk in request.stream():
            clip.write(chunk)
    else:
        raise Problem("unsupported_media", f"the content type {content_type} is not supported; {_HOW_TO_SEND}")
    if not clip.size:
        raise Problem("empty_body", f"the clip is empty; {_HOW_TO_SEND}")


def content_codings(headers: Headers) -> list[str]:
    """Return the codings that were applied to a body, in order and without ``identity`` (RFC 9110, section 8.4)."""
    listed = ",".join(headers.getlist("Content-Encoding")).lower().split(",")
    return [coding for coding in map(str.strip, listed) if coding not in {"", "identity"}]


async def _receive_form(request: Request, boundary: bytes, clip: ClipFile) -> None:
    if not boundary:
        raise _malformed("its content type has no boundary")
    form = _Form(clip)
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": form.begin_part,
                "on_header_field": form.extend_name,
                "on_header_value": form.extend_value,
                "on_header_end": form.end_header,
                "on_headers_finished": form.end_headers,
                "on_part_data": form.add_data,
                "on_end": form.end,
            },
        )
        async for chunk in request.stream():
            parser.write(chunk)
    except FormParserError as error:
        raise _malformed(str(error)) from error
    if not form.complete:
        raise _malformed("it ends before its closing boundary")
    if not form.has_file:
        raise Problem("missing_file", f"the form has no part named `file`; {_HOW_TO_SEND}")


class _Form:
    """Callbacks of python-multipart's parser: they write the part ``file`` to the clip and ignore other parts.

    Attributes:
        has_file: Whether the form contains the part.
        complete: Whether the closing boundary has been seen.
    """

    def __init__(self, clip: ClipFile) -> None:
        self.has_file = False
        self.complete = False
        self._clip = clip
        self._parts = 0
        self._name = self._value = b""
        self._headers: dict[bytes, bytes] = {}
        self._in_file = False

    def begin_part(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise _malformed(f"it has more than {MAX_PARTS} parts")
        self._headers = {}

    def extend_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def extend_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def end_header(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def end_headers(self) -> None:
        self._in_file = _name(self._headers.get(b"content-disposition", b"")) == b"file"
        if not self._in_file:
            return
        if self.has_file:
            raise _malformed("it has more than one part named `file`")
        self.has_file = True
        for header in (b"content-transfer-encoding", b"content-encoding"):
            encoding = self._headers.get(header, b"").strip().lower()
            if encoding not in _UNENCODED:
                raise Problem(
                    "unsupported_media",
                    f"the part `file` is encoded as {encoding.decode('latin-1')}; send the clip's bytes as they are",
                )

    def add_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._clip.write(memoryview(data)[start:end])

    def end(self) -> None:
        self.complete = True


def _name(disposition: bytes) -> bytes:
    """Return the name of a part. File names do not matter, and need not be there.

    Raises:
        Problem: The part has no name.
    """
    _, parameters = parse_options_header(disposition)
    if b"name" in parameters:
        return parameters[b"name"]
    extended = _EXTENDED_NAME.search(disposition)
    if extended is None:
        raise _malformed("one of its parts has no name")
    return unquote_to_bytes(extended[1])


def _malformed(reason: str) -> Problem:
    return Problem("malformed_multipart", f"the form cannot be parsed: {reason}; {_HOW_TO_SEND}")
