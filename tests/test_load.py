"""The load generator: a request's clock starts when the request was due, whoever stands still."""

import asyncio
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress

import pytest

from benchmarks.bench_tensors import PERIOD_S, beside
from benchmarks.load import all_predicted, closed_loop, lateness, open_loop

STALL_S = 0.6
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
STALL = b"GET /stall HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A server that answers at once, but stands still for a while when it is asked to."""
    ports: queue.Queue[int] = queue.Queue()
    stop = threading.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer), suppress(asyncio.IncompleteReadError, ConnectionError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                if b"/stall" in head:
                    time.sleep(STALL_S)  # and nobody else is answered meanwhile
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async def serve() -> None:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            ports.put(server.sockets[0].getsockname()[1])
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=asyncio.run, args=[serve()])
    thread.start()
    yield ports.get()
    stop.set()
    thread.join()


def test_requests_at_a_fixed_rate_wait_while_the_server_stands_still(port: int) -> None:
    requests = [*[GET] * 10, STALL, *[GET] * 39]
    answers = all_predicted(asyncio.run(open_loop(port, requests, rate=50, seconds=1)))

    waited = [answer for answer in answers if answer.seconds > STALL_S / 6]
    assert len(answers) == 50
    assert len(waited) >= 25  # 30 were due meanwhile, of which the last waited least


def test_a_generator_that_stands_still_counts_the_wait_of_its_requests_and_says_so(port: int) -> None:
    async def lagging() -> list[float]:
        loading = asyncio.create_task(open_loop(port, [GET], rate=50, seconds=1))
        await asyncio.sleep(0.1)
        time.sleep(STALL_S)  # neither are requests sent nor answers read
        answers = await loading
        assert lateness(answers).endswith(" (THE GENERATOR LAGS)")
        assert max(answer.late_s for answer in answers) > STALL_S / 2
        assert all(answer.seconds == pytest.approx(answer.late_s + answer.since_sent_s) for answer in answers)
        return [answer.seconds for answer in all_predicted(answers)]

    seconds = asyncio.run(lagging())

    assert len(seconds) == 50
    assert sum(second > STALL_S / 6 for second in seconds) >= 25


def test_a_client_at_a_fixed_rate_that_waits_for_its_answers_does_not_leave_a_stall_out(port: int) -> None:
    _, health = asyncio.run(beside(port, STALL, 1))

    waited = [answer for answer in health if answer.seconds > STALL_S / 6]
    assert len(waited) >= STALL_S / PERIOD_S / 2
    assert sum(answer.since_sent_s > STALL_S / 6 for answer in health) < len(waited) / 2  # one, on an idle machine


def test_a_client_without_a_rate_sends_its_next_request_when_it_has_the_answer(port: int) -> None:
    answers = asyncio.run(closed_loop(port, [STALL, GET], clients=1, seconds=STALL_S + 0.2))

    stalled, *others = answers
    assert stalled.seconds > STALL_S
    assert all(answer.late_s < STALL_S for answer in others)
