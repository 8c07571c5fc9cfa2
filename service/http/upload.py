"""A clip's bytes out of a request: multipart form or raw body, counted as they arrive."""

from collections.abc import AsyncGenerator

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from service.http.problems import Problem

_HINT = (
    "send the clip as the file `file` of a multipart form (curl -F file=@clip.mp4), or as the body with the content "
    "type video/* or application/octet-stream"
)


async def read_clip(request: Request, max_bytes: int) -> bytes:
    """The clip that a request carries, without ever holding more than `max_bytes` of body.

    Raises Problem, and starlette's ClientDisconnect.
    """
    declared = request.headers.get("Content-Length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    media_type = request.headers.get("Content-Type", "application/octet-stream").partition(";")[0].strip().lower()
    if media_type == "multipart/form-data":
        data = await _file_of_form(request, max_bytes)
    elif media_type == "application/octet-stream" or media_type.startswith("video/"):
        data = b"".join([chunk async for chunk in counted(request, max_bytes)])
    else:
        raise Problem("unsupported_media", f"the content type is {media_type}; {_HINT}")
    if not data:
        raise Problem("empty_body", f"the clip is empty; {_HINT}")
    return data


async def counted(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """The chunks of a body, of `max_bytes` at most. Raises Problem."""
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > max_bytes:
            raise _too_large(max_bytes)
        yield chunk


class _FormParser(MultiPartParser):
    """Starlette's parser, which by itself takes a form that was cut off for a whole one."""

    def __init__(self, headers: Headers, stream: AsyncGenerator[bytes, None]) -> None:
        super().__init__(headers, self._until_complete(stream), max_files=8, max_fields=8)
        self._complete = False

    def on_end(self) -> None:
        """Called at the closing boundary."""
        self._complete = True

    async def _until_complete(self, stream: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        async for chunk in stream:
            yield chunk
        if not self._complete:
            raise MultiPartException("The form ends before its closing boundary.")


async def _file_of_form(request: Request, max_bytes: int) -> bytes:
    parser = _FormParser(request.headers, counted(request, max_bytes))
    parser.spool_max_size = max_bytes + 1  # stay in memory: the disk may be read-only, and the size is bounded already
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise Problem("malformed_multipart", f"{error.message.rstrip('.')}; {_HINT}") from error
    try:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise Problem("missing_file", _HINT)
        return await file.read()
    finally:
        await form.close()


def _too_large(max_bytes: int) -> Problem:
    return Problem("body_too_large", f"a request may carry {max_bytes} bytes")
