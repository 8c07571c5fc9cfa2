"""API keys: which requests require one, and that nothing is read or revealed without it."""

import asyncio
import base64
import errno
import hmac
import logging
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError
from starlette.types import Message

from service.http.app import create_app
from service.http.logs import JsonFormatter
from service.settings import Settings, reason_of

pytestmark = pytest.mark.anyio

KEYS = "spring-7f3a,autumn-9c1d"
BASIC = {"Authorization": "Basic " + base64.b64encode(b"any user:autumn-9c1d").decode()}
WRONG_PASSWORDS = (
    b"autumn-9c1d:",
    b"me:winter-5e2b",
    b"autumn-9c1d",
    b"me:autumn-9c1d:",
    b":",
    b"me: autumn-9c1d",
    b"",
)


@pytest.fixture
def app(tmp_path: Path) -> FastAPI:
    return create_app(Settings(bundle=tmp_path / "none", api_keys=KEYS))


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application that is not ready: it answers authenticated requests with 503."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        yield client


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer spring-7f3a"},
        {"Authorization": "bearer  autumn-9c1d"},
        {"X-API-Key": "spring-7f3a"},
        {"X-API-Key": "autumn-9c1d", "Authorization": "Basic dXNlcjpwYXNz"},
    ],
)
async def test_requests_with_any_of_the_keys_are_accepted(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    assert (await client.post("/predict", headers=headers)).json()["code"] == "not_ready"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "spring-7f3a"},
        {"Authorization": "Basic spring-7f3a"},
        {"Authorization": "Bearer spring-7f3"},
        {"Authorization": f"Bearer {KEYS}"},
        {"X-API-Key": ""},
        {"X-API-Key": "SPRING-7F3A"},
    ],
)
@pytest.mark.parametrize(
    "path", ["/predict", "/model", "/v2", "/v2/models/tiny/ready", "/docs", "/openapi.json", "/no"]
)
async def test_requests_without_a_valid_key_are_refused(
    client: httpx.AsyncClient, headers: dict[str, str], path: str
) -> None:
    answer = await client.get(path, headers=headers)

    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    assert answer.headers["WWW-Authenticate"].startswith("Bearer ")
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["request_id"] == answer.headers["X-Request-ID"]


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready", "/metrics"])
async def test_health_and_metrics_require_no_key(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get(path)).status_code != 401


@pytest.mark.parametrize("path", ["/docs", "/openapi.json"])
async def test_a_browser_may_send_a_key_as_the_password_for_the_documentation(
    client: httpx.AsyncClient, path: str
) -> None:
    refused = await client.get(path)

    assert refused.headers.get_list("WWW-Authenticate") == ['Bearer realm="limelight"', 'Basic realm="limelight"']
    assert (await client.get(path, headers=BASIC)).status_code == 200
    assert (await client.head(path, headers=BASIC)).status_code == 200
    assert (await client.post(path, headers=BASIC)).status_code == 401


@pytest.mark.parametrize("path", ["/predict", "/model", "/v2/models", "/docs/", "/no"])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_password_is_accepted_nowhere_else(client: httpx.AsyncClient, method: str, path: str) -> None:
    refused = await client.request(method, path, headers=BASIC)

    assert refused.status_code == 401
    assert refused.headers.get_list("WWW-Authenticate") == ['Bearer realm="limelight"']


@pytest.mark.parametrize(
    "token", [*map(base64.b64encode, WRONG_PASSWORDS), b"=", b"me:autumn-9c1d", b"autumn-9c1d", b"\xff"]
)
async def test_a_wrong_password_and_a_malformed_one_are_refused(client: httpx.AsyncClient, token: bytes) -> None:
    answer = await client.get("/docs", headers=[(b"Authorization", b"Basic " + token)])

    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")


@pytest.mark.parametrize("key", ["spring-7f3a", "autumn-9c1d", "spring-7f3b", "s", "a" * 1000, ""])
async def test_how_long_a_key_is_checked_depends_neither_on_the_key_nor_on_how_much_of_it_is_right(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    compared: list[tuple[bytes, bytes]] = []
    compare = hmac.compare_digest  # in constant time, if both have the same length

    def noting(sent: bytes, valid: bytes) -> bool:
        compared.append((sent, valid))
        return compare(sent, valid)

    monkeypatch.setattr(hmac, "compare_digest", noting)
    answer = await client.get("/model", headers={"X-API-Key": key})

    assert answer.status_code == (503 if key in KEYS.split(",") else 401)
    assert len({sent for sent, _ in compared}) == 1
    assert len({valid for _, valid in compared}) == len(compared) == 2
    assert {len(text) for pair in compared for text in pair} == {32}


async def test_the_body_of_a_request_without_a_key_is_not_read(app: FastAPI) -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        pytest.fail("the body was read")

    async def send(message: Message) -> None:
        sent.append(message)

    await app({"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "headers": []}, receive, send)

    assert sent[0]["status"] == 401


async def test_requests_are_not_authenticated_if_no_keys_are_set(tmp_path: Path) -> None:
    app = create_app(Settings(bundle=tmp_path / "none"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        assert (await client.get("/model")).status_code == 503


async def test_keys_appear_neither_in_logs_nor_in_answers_nor_in_settings(
    client: httpx.AsyncClient, app: FastAPI, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.handler.setFormatter(JsonFormatter())
    refused = await client.get("/model", headers={"X-API-Key": "winter-5e2b"})
    await client.get("/model", headers={"X-API-Key": "spring-7f3a"})

    texts = caplog.text + refused.text + repr(app.state.serving.settings) + str(app.state.serving.settings.model_dump())
    assert '"request"' in texts
    assert not any(key in texts for key in ("spring-7f3a", "autumn-9c1d", "winter-5e2b"))


class TestSetting:
    @pytest.mark.parametrize(
        ("text", "keys"), [("one", ["one"]), ("one, two ", ["one", "two"]), ("one\n", ["one"]), ("a=b!", ["a=b!"])]
    )
    def test_keys_are_separated_by_commas(self, monkeypatch: pytest.MonkeyPatch, text: str, keys: list[str]) -> None:
        monkeypatch.setenv("LIMELIGHT_API_KEYS", text)

        assert [key.get_secret_value() for key in Settings().api_keys] == keys

    @pytest.mark.parametrize("text", ["", " ", "\n", ",", " , ", "s3cret,,more", "s3cret,"])
    def test_an_empty_key_is_refused_even_if_it_is_the_only_one(
        self, monkeypatch: pytest.MonkeyPatch, text: str
    ) -> None:
        monkeypatch.setenv("LIMELIGHT_API_KEYS", text)

        with pytest.raises(ValidationError, match="a key is empty") as refused:
            Settings()
        assert "s3cr" not in str(refused.value)

    @pytest.mark.parametrize("text", ["s3cret words", "s3cret\nwords", "s3crét", "s3cret\ttab"])
    def test_keys_that_headers_cannot_carry_are_refused_without_being_shown(
        self, monkeypatch: pytest.MonkeyPatch, text: str
    ) -> None:
        monkeypatch.setenv("LIMELIGHT_API_KEYS", text)

        with pytest.raises(ValidationError, match="visible ASCII") as refused:
            Settings()
        assert "s3cr" not in str(refused.value)


def large(file: Path) -> None:
    with file.open("wb") as opened:
        opened.truncate(2**40)


class TestFile:
    """``LIMELIGHT_API_KEYS_FILE``, as Docker and Kubernetes give secrets to containers."""

    @pytest.mark.parametrize(
        ("content", "keys"),
        [
            (b"one", ["one"]),
            (b"one\n", ["one"]),
            (b"one\ntwo\n", ["one", "two"]),
            (b"one\r\n\r\n  two \r\n", ["one", "two"]),
            (b"\xef\xbb\xbfone\n", ["one"]),
            (b"one, two\nthree\n\n", ["one", "two", "three"]),
            (b"a$b${c}#d\n", ["a$b${c}#d"]),
            (b"k" * 4096, ["k" * 4096]),
            (b"k\n" * 1000, ["k"] * 1000),
        ],
    )
    def test_keys_are_one_a_line_or_separated_by_commas(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes, keys: list[str]
    ) -> None:
        file = tmp_path / "keys"
        file.write_bytes(content)
        monkeypatch.setenv("LIMELIGHT_API_KEYS_FILE", f"{file}\n")

        assert [key.get_secret_value() for key in Settings().api_keys] == keys
        assert not any(key in f"{Settings()!r} {Settings().model_dump()}" for key in keys if len(key) == 4096)

    def test_the_file_may_be_a_link_as_kubernetes_makes_them(self, tmp_path: Path) -> None:
        (tmp_path / "..data").mkdir()
        (tmp_path / "..data" / "keys").write_text("one\n", encoding="utf-8")
        (tmp_path / "keys").symlink_to("..data/keys")

        (key,) = Settings(api_keys_file=tmp_path / "keys").api_keys
        assert key.get_secret_value() == "one"

    @pytest.mark.parametrize(
        ("content", "why"),
        [
            (b"", "holds no key"),
            (b" \n\r\n\t", "holds no key"),
            (b"s3cret,,more", "a key is empty"),
            (b"s3cret,\n", "a key is empty"),
            (b"s3cret words\n", "visible ASCII"),
            ("s3crét\n".encode(), "visible ASCII"),
            (b"s3cret\xff\xfe\n", "visible ASCII"),
            (b"s3cret\0\n", "visible ASCII"),
            ("s3cret\n".encode("utf-16"), "visible ASCII"),
            (b"s3cret" + b"k" * 4097, "at most 4096 characters"),
            (b"s3cret\n# of s3cret people\n", "begins with #"),
            (b"#s3cret\n", "begins with #"),
            (b"s3cret\n" * 1001, "more than 1000 keys"),
        ],
    )
    def test_what_holds_no_usable_key_is_refused_without_being_shown(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes, why: str
    ) -> None:
        file = tmp_path / "keys"
        file.write_bytes(content)

        assert why in self.refused(monkeypatch, str(file))

    @pytest.mark.parametrize(
        ("make", "why"),
        [
            (lambda file: None, "No such file"),
            (Path.mkdir, "not a regular file"),
            (os.mkfifo, "not a regular file"),
            (large, "more than 1048576 bytes"),
        ],
    )
    def test_what_is_no_file_or_too_large_is_refused_at_once(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make: Callable[[Path], None], why: str
    ) -> None:
        make(tmp_path / "keys")

        assert why in self.refused(monkeypatch, str(tmp_path / "keys"))

    def test_a_file_that_may_not_be_read_is_refused(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        def refuse(*_: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(os, "open", refuse)

        assert "Permission denied" in self.refused(monkeypatch, str(tmp_path / "keys"))

    def test_a_key_in_place_of_the_path_is_not_shown(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert "No such file" in self.refused(monkeypatch, "s3cret-itself")

    @pytest.mark.parametrize("empty", ["", " ", "\n"])
    def test_set_but_empty_is_refused(self, monkeypatch: pytest.MonkeyPatch, empty: str) -> None:
        assert "it is empty" in self.refused(monkeypatch, empty)

    @pytest.mark.parametrize("keys", ["s3cret", ""])
    def test_keys_in_the_variable_and_in_a_file_are_refused(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, keys: str
    ) -> None:
        (tmp_path / "keys").write_text("s3cret", encoding="utf-8")
        monkeypatch.setenv("LIMELIGHT_API_KEYS", keys)

        assert "LIMELIGHT_API_KEYS is set, too" in self.refused(monkeypatch, str(tmp_path / "keys"))

    @staticmethod
    def refused(monkeypatch: pytest.MonkeyPatch, path: str) -> str:
        """Return the sentence that refuses a value of the variable."""
        monkeypatch.setenv("LIMELIGHT_API_KEYS_FILE", path)
        with pytest.raises(ValidationError) as error:
            Settings()
        sentence = reason_of(error.value)
        assert sentence.startswith("LIMELIGHT_API_KEYS_FILE is not valid: ")
        assert "\n" not in sentence
        assert "s3cr" not in sentence + str(error.value)
        return sentence


@settings(max_examples=25)
@given(
    keys=st.lists(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1), min_size=1, max_size=3),
    presented=st.binary(max_size=20),
)
def test_a_request_is_accepted_only_if_it_sends_the_exact_bytes_of_a_key(keys: list[str], presented: bytes) -> None:
    app = create_app(Settings(api_keys=tuple(map(SecretStr, keys))))
    statuses: list[int] = []

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        statuses.append(message.get("status", 0))

    headers = [(b"x-api-key", presented)]
    scope = {"type": "http", "method": "GET", "path": "/model", "query_string": b"", "headers": headers}
    asyncio.run(app(scope, receive, send))

    assert (statuses[0] == 401) == (presented not in {key.encode() for key in keys})
