"""``BodyLimits`` around a small application."""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.middleware.body_limits import LINGER, BodyLimits, hold_body
from service.http.problems import Problem
from service.settings import Settings

pytestmark = pytest.mark.anyio

MOST = 1000


class Reader:
    """An application that reads the whole body and then answers."""

    def __init__(self) -> None:
        self.body = b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        more = True
        while more:
            message = await receive()
            self.body += message.get("body", b"")
            more = message.get("more_body", False)
        await answer(scope, receive, send)


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that answers without reading the body."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


class Client:
    """Sends its parts one by one, then ends the body, stops sending or disconnects."""

    def __init__(self, parts: Iterable[bytes], *, length: int | None = None, then: str = "end") -> None:
        declared = (b"transfer-encoding", b"chunked") if length is None else (b"content-length", b"%d" % length)
        self.scope: Scope = {"type": "http", "method": "POST", "path": "/", "headers": [declared]}
        self.received: list[Message] = []
        self.asked = 0
        self._parts = list(parts)
        self._then = then

    async def receive(self) -> Message:
        self.asked += 1
        if self._parts:
            part = self._parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(self._parts) or self._then != "end"}
        if self._then == "silence":
            await asyncio.sleep(3600)
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.received.append(message)

    @property
    def told_to_close(self) -> bool:
        return (b"connection", b"close") in self.received[0]["headers"]


def limited(app: ASGIApp, *, closing: bool = False, **settings: Any) -> BodyLimits:
    return BodyLimits(app, Settings(max_body_bytes=MOST, **settings), closing=lambda: closing)


async def problem(client: Client, app: ASGIApp | None = None, **settings: Any) -> str:
    """Return the code of the problem that reading this client's body raises."""
    with pytest.raises(Problem) as refused:
        await limited(app or Reader(), **settings)(client.scope, client.receive, client.send)
    return refused.value.code


async def test_a_body_within_the_limits_passes_unchanged() -> None:
    reader, client = Reader(), Client([b"a" * 400, b"b" * 600])
    await limited(reader)(client.scope, client.receive, client.send)

    assert reader.body == b"a" * 400 + b"b" * 600
    assert not client.told_to_close


async def test_a_content_length_beyond_the_limit_is_refused_before_the_body_is_read() -> None:
    client = Client([b"a"] * 2000, length=2000)

    assert await problem(client) == "body_too_large"
    assert client.asked == 0


@pytest.mark.parametrize("length", [None, 5])
async def test_a_body_is_refused_at_the_limit_whatever_its_content_length_says(length: int | None) -> None:
    reader, client = Reader(), Client([b"a" * 300] * 100, length=length)

    assert await problem(client, reader) == "body_too_large"
    assert len(reader.body) == 900
    assert client.asked == 4


async def test_a_client_that_stops_sending_times_out() -> None:
    assert await problem(Client([b"a"], then="silence"), upload_timeout_s=0.05) == "upload_timeout"


class Trickle(Client):
    async def receive(self) -> Message:
        await asyncio.sleep(0.02)
        return await super().receive()


async def test_a_client_may_take_longer_than_one_pause_for_the_whole_body() -> None:
    reader, client = Reader(), Trickle([b"a"] * 20)
    await limited(reader, upload_timeout_s=0.05)(client.scope, client.receive, client.send)

    assert reader.body == b"a" * 20


async def test_a_body_that_trickles_in_times_out_with_the_request() -> None:
    assert await problem(Trickle([b"a"] * 900), request_timeout_s=0.2) == "upload_timeout"


async def test_the_memory_of_all_uploads_together_is_limited() -> None:
    limits = limited(Reader(), upload_memory_bytes=MOST)
    stalled = Client([b"a" * 600], then="silence")
    uploading = asyncio.create_task(limits(stalled.scope, stalled.receive, stalled.send))
    while stalled.asked < 2:
        await asyncio.sleep(0)

    small, large = Client([b"b" * 400]), Client([b"c" * 300, b"c" * 300])
    await limits(small.scope, small.receive, small.send)  # there is room for it, and its memory is released
    with pytest.raises(Problem) as refused:
        await limits(large.scope, large.receive, large.send)
    uploading.cancel()
    await asyncio.wait([uploading])
    again = Client([b"c" * 300, b"c" * 300])
    await limits(again.scope, again.receive, again.send)

    assert refused.value.code == "overloaded"
    assert again.received


async def test_the_largest_upload_in_progress_makes_room_for_a_smaller_one() -> None:
    limits = limited(Reader(), upload_memory_bytes=MOST)
    slow = [Client([bytes(size)], then="silence") for size in (200, 500, 300)]
    uploading = [asyncio.create_task(limits(client.scope, client.receive, client.send)) for client in slow]
    while any(client.asked < 2 for client in slow):
        await asyncio.sleep(0)
    small = Client([b"a" * 100, b"a" * 100])
    await limits(small.scope, small.receive, small.send)
    (ended,) = (await asyncio.wait(uploading, timeout=0.1))[0]
    for upload in uploading:
        upload.cancel()
    await asyncio.wait(uploading)

    assert small.received
    assert ended is uploading[1]
    with pytest.raises(Problem, match="request bodies"):
        await ended


async def test_a_complete_body_takes_memory_until_its_request_has_ended() -> None:
    answered = asyncio.Event()

    async def read_and_wait(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await answered.wait()
        await answer(scope, receive, send)

    limits = limited(read_and_wait, upload_memory_bytes=MOST)
    waiting = Client([b"a" * 600])
    request = asyncio.create_task(limits(waiting.scope, waiting.receive, waiting.send))
    while not waiting.asked:
        await asyncio.sleep(0)
    refused = Client([b"b" * 500])
    with pytest.raises(Problem, match="request bodies") as problem:
        await limits(refused.scope, refused.receive, refused.send)
    answered.set()
    await request
    again = Client([b"c" * 600])
    await limits(again.scope, again.receive, again.send)

    assert problem.value.code == "overloaded"
    assert again.received


async def test_a_body_that_is_held_takes_memory_after_the_end_of_its_request() -> None:
    releases: list[Callable[[], None]] = []

    async def read_and_hold(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        releases.append(hold_body(scope))
        await answer(scope, receive, send)

    limits = limited(read_and_hold, upload_memory_bytes=MOST)
    first, refused, again = (Client([bytes(600)]) for _ in range(3))
    await limits(first.scope, first.receive, first.send)
    with pytest.raises(Problem, match="request bodies"):
        await limits(refused.scope, refused.receive, refused.send)
    releases.pop()()
    await limits(again.scope, again.receive, again.send)

    assert again.received


@pytest.mark.parametrize(("memory", "bodies"), [(1, 1), (MOST, 1), (2 * MOST - 1, 1), (2 * MOST, 2)])
async def test_the_memory_is_enough_for_one_body_at_least(memory: int, bodies: int) -> None:
    async def read_and_hold(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        hold_body(scope)
        await answer(scope, receive, send)

    limits = limited(read_and_hold, upload_memory_bytes=memory)
    clients = [Client([bytes(MOST)]) for _ in range(bodies + 1)]
    for client in clients[:-1]:
        await limits(client.scope, client.receive, client.send)
    with pytest.raises(Problem, match="request bodies"):
        await limits(clients[-1].scope, clients[-1].receive, clients[-1].send)


async def test_what_arrived_while_the_event_loop_stood_still_is_received() -> None:
    class Socket(Client):
        async def receive(self) -> Message:
            if self.asked:  # the event loop reads from sockets after it has handled timers
                asyncio.get_running_loop().call_later(0.25, arrived.set)
                time.sleep(0.3)
                await arrived.wait()
            return await super().receive()

    arrived = asyncio.Event()
    reader, client = Reader(), Socket([b"a", b"b"])
    await limited(reader, upload_timeout_s=0.2)(client.scope, client.receive, client.send)

    assert reader.body == b"ab"


def test_no_way_to_end_a_request_keeps_memory() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for _ in range(scope["reads"]):
            if (await receive())["type"] == "http.disconnect":
                break
        match scope["ends"]:
            case "answer":
                await answer(scope, receive, send)
            case "raise":
                raise ValueError
            case "hang":
                await asyncio.sleep(3600)

    async def drop(message: Message) -> None:
        raise OSError

    async def attempt(limits: BodyLimits, client: Client, *, sends: bool, **scope: object) -> None:
        scope_of = {**client.scope, **scope}
        request = asyncio.create_task(limits(scope_of, client.receive, client.send if sends else drop))
        for _ in range(20):
            await asyncio.sleep(0)
        request.cancel()
        await asyncio.wait([request])

    attempts = st.tuples(
        st.lists(st.integers(0, MOST).map(bytes), max_size=4),
        st.sampled_from(["end", "silence", "disconnect"]),
        st.fixed_dictionaries({"reads": st.integers(0, 6), "ends": st.sampled_from(["answer", "raise", "hang"])}),
        st.booleans(),
    )

    @given(st.lists(attempts, max_size=8))
    def check(requests: list[tuple[list[bytes], str, dict[str, object], bool]]) -> None:
        async def run() -> None:
            limits = limited(app, upload_memory_bytes=MOST)
            clients = [(Client(parts, then=then), scope, sends) for parts, then, scope, sends in requests]
            await asyncio.gather(*(attempt(limits, client, sends=sends, **scope) for client, scope, sends in clients))
            full = Client([bytes(MOST)])
            await limits({**full.scope, "reads": 1, "ends": "answer"}, full.receive, full.send)
            assert full.received

        asyncio.run(run())

    check()


async def test_an_early_answer_closes_the_connection_with_a_lingering_close() -> None:
    def linger() -> None:
        client.received.append({"type": "linger"})

    client = Client([b"a" * 300] * 3)
    client.scope["extensions"] = {LINGER: linger}
    await limited(answer)(client.scope, client.receive, client.send)

    assert client.told_to_close
    assert client.asked == 0
    assert [message["type"] for message in client.received] == ["http.response.start", "http.response.body", "linger"]
    assert client.received[1] == {"type": "http.response.body", "body": b"ok", "more_body": True}


async def test_an_early_answer_closes_the_connection_at_once_if_the_server_cannot_linger() -> None:
    client = Client([b"a" * 300] * 3)
    await limited(answer)(client.scope, client.receive, client.send)

    assert client.told_to_close
    assert not client.received[-1].get("more_body", False)


async def test_every_answer_during_shutdown_closes_its_connection() -> None:
    client = Client([b"a"])
    await limited(Reader(), closing=True)(client.scope, client.receive, client.send)

    assert client.told_to_close


async def test_the_upload_timeout_ends_with_the_body() -> None:
    async def wait_for_the_end(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "http.request"
        assert (await receive())["type"] == "http.disconnect"

    class Patient(Client):
        async def receive(self) -> Message:
            if self.asked:
                await asyncio.sleep(0.2)
            return await super().receive()

    client = Patient([b"a"])
    await limited(wait_for_the_end, upload_timeout_s=0.05)(client.scope, client.receive, client.send)

    assert client.asked == 2
