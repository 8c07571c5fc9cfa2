"""Receives a clip from a multipart form or a raw body, storing each byte once, as it arrives."""

import re
from urllib.parse import unquote_to_bytes

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers
from starlette.requests import Request

from service.http.problems import Problem
from service.isolation.clip_file import ClipFile

# Bounds of a form: parsing a body full of tiny parts or headers would take long.
MAX_PARTS = 16
MAX_HEADERS, MAX_HEAD_BYTES = 8, 2**13  # of a part
MAX_PARAMETERS = 100  # of a header
MAX_BOUNDARY_BYTES, MAX_PADDING = 256, 64
# Values of Content-Transfer-Encoding and Content-Encoding of a part whose bytes are the clip's.
_UNENCODED = frozenset({b"", b"binary", b"8bit", b"7bit", b"identity"})
_TOKEN = re.compile(rb"[\w!#$%&'*+.^`|~-]+")  # RFC 9110, section 5.6.2
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
    media_type, parameters = _parse_options(content_type)
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
    if len(boundary) > MAX_BOUNDARY_BYTES:
        raise _malformed(f"its boundary is longer than {MAX_BOUNDARY_BYTES} bytes")
    form = _Form(boundary, clip)
    async for chunk in request.stream():
        form.read(chunk)
    if not form.complete:
        raise _malformed("it ends before its closing boundary")
    if not form.has_file:
        raise Problem("missing_file", f"the form has no part named `file`; {_HOW_TO_SEND}")


class _Form:
    """Reads a form piece by piece, writes its part ``file`` to the clip and ignores other parts.

    The format is that of RFC 2046, section 5.1.1. A regular expression finds the boundaries, because it passes over
    what only resembles one as fast as over anything else. python-multipart's parser takes 200 times as long for that.

    Attributes:
        has_file: Whether the form contains the part.
        complete: Whether the closing boundary has been seen.
    """

    def __init__(self, boundary: bytes, clip: ClipFile) -> None:
        self.has_file = False
        self.complete = False
        self._clip = clip
        self._delimiter = re.compile(rb"\r\n--%b(--|[ \t]{0,%d}\r\n)" % (re.escape(boundary), MAX_PADDING))
        self._longest = len(boundary) + MAX_PADDING + 6  # bytes of a delimiter
        self._unread = b"\r\n"  # the form may begin with a boundary, without a line before it
        self._parts = 0
        self._in_head = self._in_file = False

    def read(self, data: bytes) -> None:
        """Read the next piece of the form. What follows the closing boundary is ignored."""
        if not self.complete:
            self._unread += data
        while not self.complete and (self._read_head() if self._in_head else self._read_content()):
            pass

    def _read_content(self) -> bool:
        """Read up to the next boundary. Return whether it has arrived; if not, keep what may be the beginning of it."""
        data = self._unread
        found = self._delimiter.search(data)
        end = found.start() if found else max(0, len(data) - self._longest + 1)
        if self._in_file:
            self._clip.write(memoryview(data)[:end])
        self._unread = data[found.end() - 2 if found else end :]  # a head keeps the line break before it
        if found:
            self.complete = found[1] == b"--"
            self._in_head = True
            self._parts += 1
            if self._parts > MAX_PARTS and not self.complete:
                raise _malformed(f"it has more than {MAX_PARTS} parts")
        return found is not None

    def _read_head(self) -> bool:
        """Read the headers of a part. Return whether they have arrived."""
        head, end, rest = self._unread.partition(b"\r\n\r\n")
        known = head if end else head[:-3]  # what follows may be the first bytes of the blank line
        if len(known) > MAX_HEAD_BYTES or known.count(b"\n") > MAX_HEADERS:
            raise _malformed(f"a part has more than {MAX_HEADERS} headers or {MAX_HEAD_BYTES} bytes of headers")
        if end:
            self._unread, self._in_head = rest, False
            self._begin_part(_headers(head))
        return bool(end)

    def _begin_part(self, headers: dict[bytes, bytes]) -> None:
        self._in_file = _name(headers.get(b"content-disposition", b"")) == b"file"
        if not self._in_file:
            return
        if self.has_file:
            raise _malformed("it has more than one part named `file`")
        self.has_file = True
        for header in (b"content-transfer-encoding", b"content-encoding"):
            encoding = headers.get(header, b"").lower()
            if encoding not in _UNENCODED:
                raise Problem(
                    "unsupported_media",
                    f"the part `file` is encoded as {encoding.decode('latin-1')}; send the clip's bytes as they are",
                )


def _headers(head: bytes) -> dict[bytes, bytes]:
    """Parse the headers of a part, each after a line break. Names become lower case."""
    headers = {}
    for line in head.split(b"\r\n")[1:]:
        name, colon, value = line.partition(b":")
        if not (colon and _TOKEN.fullmatch(name)):
            raise _malformed("one of its parts has a header that is not valid")
        headers[name.lower()] = value.strip()
    return headers


def _name(disposition: bytes) -> bytes:
    """Return the name of a part. File names do not matter, and need not be there.

    Raises:
        Problem: The part has no name.
    """
    _, parameters = _parse_options(disposition.decode("latin-1"))
    if b"name" in parameters:
        return parameters[b"name"]
    extended = _EXTENDED_NAME.search(disposition)
    if extended is None:
        raise _malformed("one of its parts has no name")
    return unquote_to_bytes(extended[1])


def _parse_options(value: str) -> tuple[bytes, dict[bytes, bytes]]:
    """Parse a header such as Content-Type into its value and parameters.

    Raises:
        Problem: It has too many parameters (``unsupported_media``).
    """
    if value.count(";") > MAX_PARAMETERS:
        raise Problem("unsupported_media", f"a header has more than {MAX_PARAMETERS} parameters; {_HOW_TO_SEND}")
    return parse_options_header(value)


def _malformed(reason: str) -> Problem:
    return Problem("malformed_multipart", f"the form cannot be parsed: {reason}; {_HOW_TO_SEND}")
