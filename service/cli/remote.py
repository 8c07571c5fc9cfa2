"""How ``limelight predict`` and ``limelight demo`` ask a running service."""

import asyncio
import contextlib
import math
import ssl
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpcore
import httpx
import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from service.cli.classifying import Answer, Classify, Wanted, model_line
from service.cli.clips import Clip, ClipProblem, shown
from service.cli.patience import MAX_WAIT_S, Pace, Patience
from service.errors import ClipError, CommandError
from service.isolation.processes import DecoderProcesses
from service.settings import DEFAULT_URL, LOOPBACK, Settings
from service.streams import complain
from service.video.limits import DecodeLimits

if TYPE_CHECKING:
    from service.http.schemas import ProblemAnswer

# A prediction may wait behind others on a small machine, but a running server accepts the connection at once.
TIMEOUT = httpx.Timeout(600, connect=10)
MOST_TEXT = 200  # characters shown of an answer that is not Limelight's
# What passes: the service or a gateway is busy, starts, or has lost a replica.
PASSING = frozenset({429, 502, 503, 504})
# What would be answered to every other clip as well: the key, the address or the host is wrong.
UNUSABLE = frozenset({401, 403, 404, 405, 421})
TOO_LARGE = 413
TOLD_S = 2  # shorter waits are not told
EARLY_BYTES = 2**16  # as many as httpcore asks for
DECODE_MEMORY_BYTES: int = Settings.model_fields["decode_memory_bytes"].default


@contextlib.contextmanager
def over_http(
    url: str, key: str | None, wanted: Wanted, *, max_wait_s: float = MAX_WAIT_S, jobs: int = 1
) -> Iterator[Classify]:
    """Classify with a running service.

    Args:
        url: Address of the service: ``http://…``, ``https://…``, or ``unix:`` and the path of a Unix socket.
        key: API key to send, if any.
        wanted: Which parts of the answers are needed.
        max_wait_s: Seconds for which a clip is sent again after its first refusal for a reason that passes.
        jobs: Largest number of requests in progress at a time.

    Raises:
        CommandError: ``url`` is not an HTTP address, or the proxy of the environment cannot be used.
    """
    with _client(url) as client:
        service = _Service(client, _shown(url), key, wanted, max_wait_s=max_wait_s, jobs=jobs)

        def classify(clip: Clip) -> Answer:
            answer = _of_response(service.ask(clip), clip.name, _shown(url), wanted)
            return replace(answer, frames=_decode(clip)) if wanted.overlay else answer

        yield classify


class _Service:
    """A running service, which clips are sent to again while it is busy.

    Args:
        client: A client with the service's address.
        url: The address, for error messages.
        key: API key to send, if any.
        wanted: Which parts of the answers are needed.
        max_wait_s: Seconds for which a clip is sent again after its first refusal.
        jobs: Largest number of requests in progress at a time.
    """

    def __init__(
        self, client: httpx.Client, url: str, key: str | None, wanted: Wanted, *, max_wait_s: float, jobs: int
    ) -> None:
        self._client = client
        self._url = url
        credentials = {"Authorization": f"Bearer {key}"} if key else {}
        self._headers = {"Content-Type": "application/octet-stream", **credentials}
        self._parameters = {"top_k": wanted.top_k, "attention": wanted.json or wanted.overlay}
        self._max_wait_s = max_wait_s
        self._pace = Pace(jobs)
        self._has_answered = False
        self._answered_at = -math.inf  # when a clip was last answered, by ``time.monotonic``

    def ask(self, clip: Clip) -> httpx.Response:
        """Send a clip, again and again while the service refuses it for a reason that passes.

        Returns:
            The answer; a refusal if patience has ended.

        Raises:
            ClipProblem: The clip cannot be read.
            CommandError: The service has never answered, or has answered no clip for too long.
        """
        patience = Patience(self._max_wait_s)
        while True:
            with self._pace.turn():
                answer = self._send(clip)
                if isinstance(answer, httpx.Response) and answer.status_code not in PASSING:
                    self._pace.speed_up()
                    self._answered_at = time.monotonic()
                    return answer
                wait_s = patience.wait_s(_retry_after(answer))
                if wait_s is not None and self._has_answered:
                    if self._pace.slow_down(wait_s) and wait_s >= TOLD_S and sys.stderr.isatty():
                        complain(f"the service is busy; asking again in {wait_s:.0f} s")
                elif isinstance(answer, httpx.Response):
                    is_problem = answer.headers.get("Content-Type", "").startswith("application/problem+json")
                    if is_problem and self._answered_at < patience.began:  # the next clip would fare no better
                        raise CommandError(
                            f"the service at {self._url} is busy or not ready ({answer.status_code} "
                            f"{answer.reason_phrase}); try again later, or wait longer with --max-wait"
                        )
                    return answer
                else:
                    raise CommandError(
                        f"no service answers at {self._url} ({answer}); start one with `limelight serve`, or give "
                        "--bundle"
                    ) from answer

    def _send(self, clip: Clip) -> httpx.Response | Exception:
        """Send a clip once. Return the answer, or why there is none."""
        upload = _Upload(clip)
        try:
            answer = self._client.post(
                "/predict",
                params=self._parameters,
                headers=self._headers | {"Content-Length": str(clip.size)},
                content=upload,
                extensions={"trace": upload.trace},
            )
        except (httpx.HTTPError, UnicodeError) as error:  # the latter for a host that cannot be looked up
            return error
        self._has_answered = True
        return answer


def _retry_after(answer: httpx.Response | Exception) -> str | None:
    return answer.headers.get("Retry-After") if isinstance(answer, httpx.Response) else None


class _Upload:
    """The body of a request. It ends as soon as the service has answered, which a refusal does not wait for.

    Args:
        clip: The clip to send.
    """

    def __init__(self, clip: Clip) -> None:
        self._clip = clip
        self._connection: httpcore.NetworkStream | None = None

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Note the connection that the request is sent on (see httpx's extension ``trace``)."""
        if event.endswith((".connect_tcp.complete", ".connect_unix_socket.complete", ".start_tls.complete")):
            self._connection = info["return_value"]

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._clip.pieces():
            if self._connection is not None and _has_answer(self._connection):
                raise httpcore.WriteError  # as if the connection had been closed: httpcore then reads the answer
            yield piece


def _has_answer(connection: httpcore.NetworkStream) -> bool:
    """Return whether an answer has begun to arrive, or the connection has been closed."""
    if not connection.get_extra_info("is_readable"):
        return False
    socket = connection.get_extra_info("socket")
    if isinstance(socket, _TLSSocket):
        return socket.has_answer()
    return connection.get_extra_info("ssl_object") is None  # of TLS within TLS, a proxy's, nothing is known


class _TLSSocket(ssl.SSLSocket):
    """A TLS connection that can tell whether an answer has come. Session tickets make it readable, too."""

    _early = b""

    def has_answer(self) -> bool:
        """Return whether something has been received, or the connection has been closed."""
        self.settimeout(0)  # httpcore sets its own before each call
        try:
            self._early = super().recv(EARLY_BYTES)
        except ssl.SSLWantReadError:
            return False
        except OSError:
            pass  # whoever reads the answer meets it again
        return True

    def recv(self, size: int = EARLY_BYTES, flags: int = 0) -> bytes:
        """Receive what ``has_answer`` has received, and then the rest."""
        early, self._early = self._early, b""
        return early or super().recv(size, flags)


def _client(url: str) -> httpx.Client:
    """Return a client of the service at this address. Each request has a connection of its own (see ``_Upload``)."""
    limits = httpx.Limits(max_keepalive_connections=0)
    if url.startswith("unix:"):
        transport = httpx.HTTPTransport(uds=url.removeprefix("unix:"), limits=limits)
        return httpx.Client(base_url="http://localhost", timeout=TIMEOUT, transport=transport)
    proxied = _host(url) not in LOOPBACK  # a proxy of the environment does not reach this machine's own loopback
    context = httpx.create_ssl_context(trust_env=proxied)
    context.sslsocket_class = _TLSSocket
    try:
        return httpx.Client(base_url=url, verify=context, timeout=TIMEOUT, limits=limits, trust_env=proxied)
    except (ValueError, ImportError, httpx.InvalidURL) as error:
        reason = f" ({error})" if isinstance(error, ImportError) else ""  # the others may hold the proxy's password
        raise CommandError(
            f"the proxy that the environment names cannot be used{reason}; correct or unset HTTP_PROXY, HTTPS_PROXY, "
            "ALL_PROXY and NO_PROXY"
        ) from error


def _host(url: str) -> str:
    """Return the host of a service's address."""
    try:
        address = httpx.URL(url)
    except (httpx.InvalidURL, UnicodeError) as error:
        raise CommandError(f"{_shown(url)} is not an address; give one such as {DEFAULT_URL}") from error
    if address.scheme not in {"http", "https"} or not address.host:
        raise CommandError(f"{_shown(url)} is not an HTTP address; give one such as {DEFAULT_URL}")
    return address.host


def _shown(url: str) -> str:
    """Return a service's address for an error message, unless a password or a token may be a part of it."""
    return url if url.startswith("unix:") or not any(mark in url for mark in "@?#") else "the given address"


def _of_response(response: httpx.Response, name: str, url: str, wanted: Wanted) -> Answer:
    from service.http.schemas import PredictionAnswer, ProblemAnswer

    try:
        if not response.is_success:
            raise _refusal(name, ProblemAnswer.model_validate_json(response.content))
        answer = PredictionAnswer.model_validate_json(response.content)
    except ValidationError as error:
        if response.status_code == TOO_LARGE:  # a gateway has a limit, too, and other clips may be smaller
            detail = f"a gateway before the service does not take {response.request.headers['Content-Length']} bytes"
            raise ClipProblem(
                name, "body_too_large", detail, title="The upload is too large", status=TOO_LARGE
            ) from error
        raise CommandError(
            f"the answer from {url} (status {response.status_code}) is not Limelight's, but `{_beginning(response)}`; "
            "check the address and the proxies on the way"
        ) from error
    model = answer.model
    return Answer(
        ranking=[(ranked.label, ranked.probability) for ranked in answer.predictions],
        clip=answer.clip,
        model=model_line(model.name, model.version, model.precision, model.provider),
        timings_ms=answer.timings_ms.model_dump(),
        times_s=[frame.time_s for frame in answer.frames],
        attention=None if answer.attention is None else np.array(answer.attention.maps, np.float32),
        frames=None,
        json=response.json() if wanted.json else None,
    )


def _refusal(name: str, problem: "ProblemAnswer") -> CommandError:
    """Return the error of a clip that the service refused."""
    sentence = f": {problem.title}: {problem.detail} ({problem.status} {problem.code})"
    if problem.status in UNUSABLE:
        return CommandError(f"{shown(name)}{sentence}")
    return ClipProblem(
        name, problem.code, problem.detail, title=problem.title, status=problem.status, sentence=sentence
    )


def _beginning(response: httpx.Response) -> str:
    """Return a foreign answer's status and the beginning of its text, unless the server repeats what authenticates."""
    status = f"{response.status_code} {response.reason_phrase}"
    credentials = response.request.headers.get("Authorization", "").rpartition(" ")[2]
    text = " ".join(response.text[:MOST_TEXT].split())
    return status if not text or (credentials and credentials in response.text) else f"{status}: {text}"


def _decode(clip: Clip) -> npt.NDArray[np.uint8]:
    """Decode a clip here, in the sandbox, because a service's answer does not hold the frames that it sampled."""
    with contextlib.closing(DecoderProcesses(DecodeLimits(), memory_bytes=DECODE_MEMORY_BYTES)) as decoders:
        try:
            with clip.in_memory() as file:
                return asyncio.run(decoders.decode(file)).frames
        except ClipError as error:
            raise CommandError(f"{shown(clip.name)}: {error}") from error
