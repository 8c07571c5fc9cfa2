"""A clip's bytes out of a request, multipart form or raw body: each is stored once, as it arrives."""

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from service.http.problems import Problem
from service.isolation.clip_file import ClipFile

MOST_PARTS = 16  # of a form; a body full of tiny ones would keep the parser busy for long
_HINT = (
    "send the clip as the file `file` of a multipart form (curl -F file=@clip.mp4), or as the body with the content "
    "type video/* or application/octet-stream"
)


async def receive_clip(request: Request, clip: ClipFile) -> None:
    """Write the clip that a request carries to `clip`.

    Raises Problem, and starlette's ClientDisconnect.
    """
    content_type = request.headers.get("Content-Type", "application/octet-stream")
    media_type, parameters = parse_options_header(content_type)
    if media_type == b"multipart/form-data":
        await _receive_form(request, parameters.get(b"boundary", b""), clip)
    elif media_type == b"application/octet-stream" or media_type.startswith(b"video/"):
        async for chunk in request.stream():
            clip.write(chunk)
    else:
        raise Problem("unsupported_media", f"the content type is {content_type}; {_HINT}")
    if not clip.size:
        raise Problem("empty_body", f"the clip is empty; {_HINT}")


async def _receive_form(request: Request, boundary: bytes, clip: ClipFile) -> None:
    if not boundary:
        raise _malformed("its content type names no boundary")
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
        raise Problem("missing_file", _HINT)


class _Form:
    """What python-multipart's parser finds: the part `file` is written to the clip, others are passed over."""

    def __init__(self, clip: ClipFile) -> None:
        self._clip = clip
        self._parts = 0
        self._name = self._value = self._disposition = b""
        self._in_file = False
        self.has_file = False
        self.complete = False

    def begin_part(self) -> None:
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise _malformed(f"it has more than {MOST_PARTS} parts")
        self._disposition = b""

    def extend_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def extend_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def end_header(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self._name = self._value = b""

    def end_headers(self) -> None:
        _, parameters = parse_options_header(self._disposition)
        if b"name" not in parameters:
            raise _malformed("a part has no name")
        self._in_file = parameters[b"name"] == b"file" and b"filename" in parameters
        if self._in_file and self.has_file:
            raise _malformed("it has more than one file `file`")
        self.has_file |= self._in_file

    def add_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._clip.write(memoryview(data)[start:end])

    def end(self) -> None:
        self.complete = True


def _malformed(what: str) -> Problem:
    return Problem("malformed_multipart", f"the form cannot be read: {what}; {_HINT}")
