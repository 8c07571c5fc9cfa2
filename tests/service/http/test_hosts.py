"""Hosts and origins that a service on loopback without keys answers; ``tests/web/test_elsewhere.py`` has a browser."""

import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from service.http.app import create_app
from service.settings import Settings

pytestmark = pytest.mark.anyio

STRANGER = {"Host": "rebound.example:8000"}


async def ask(headers: dict[str, str], path: str = "/health/live", **settings: Any) -> httpx.Response:
    app = create_app(Settings(bundle=Path("missing"), **settings))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        return await client.get(path, headers=headers)


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "localhost:8000", "LocalHost", "localhost.", "app.localhost:5173", "127.0.0.1", "127.0.0.1:8000",
        "127.8.9.10", "[::1]", "[::1]:8000", "[::ffff:127.0.0.1]",
    ],
)  # fmt: skip
async def test_this_machine_is_answered(host: str) -> None:
    assert (await ask({"Host": host})).status_code == 200
    assert (await ask({"Origin": f"http://{host}"})).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "rebound.example", "rebound.example:8000", "localhost.rebound.example", "notlocalhost", "127.0.0.1.nip.io",
        "127.0.0.1@rebound.example", "rebound.example:80:localhost", "192.168.0.7", "0.0.0.0", "[::]", "[::1",
        "::1", "localhost..", "localhost/", "localhost, rebound.example", "",
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/health/live", "/metrics", "/model", "/", "/predict", "/nothing"])
async def test_other_hosts_are_refused(host: str, path: str) -> None:
    answer = await ask({"Host": host}, path)

    assert (answer.status_code, answer.json()["code"]) == (421, "host_not_allowed")
    assert "LIMELIGHT_ALLOWED_HOSTS" in answer.json()["detail"]
    assert answer.headers["X-Request-ID"] == answer.json()["request_id"]


@pytest.mark.parametrize(
    "origin",
    [
        "https://rebound.example",
        "http://rebound.example:8000",
        "http://localhost.rebound.example",
        "null",
        "",
        "file://",
    ],
)
async def test_pages_of_others_are_refused(origin: str) -> None:
    answer = await ask({"Origin": origin})

    assert (answer.status_code, answer.json()["code"]) == (403, "origin_not_allowed")
    assert "LIMELIGHT_CORS_ORIGINS" in answer.json()["detail"]


@pytest.mark.parametrize("forwarded", ["X-Forwarded-Host", "Forwarded", "X-Host"])
async def test_headers_that_anybody_can_send_change_nothing(forwarded: str) -> None:
    assert (await ask(STRANGER | {forwarded: "localhost"})).status_code == 421


@pytest.mark.parametrize(
    ("hosts", "host", "status"),
    [
        ("limelight.example", "limelight.example", 200),
        ("limelight.example", "Limelight.Example:8443", 200),
        ("other.example, Limelight.example", "limelight.example.", 200),
        ("[fd00::7]", "[fd00::7]:8000", 200),
        ("limelight.example", "www.limelight.example", 421),
        ("limelight.example", "limelight.example.rebound.example", 421),
        (".", "rebound.example:80:localhost", 421),  # neither is a host
        ("*", "rebound.example", 200),
    ],
)
async def test_further_hosts_can_be_allowed(hosts: str, host: str, status: int) -> None:
    assert (await ask({"Host": host}, allowed_hosts=hosts)).status_code == status
    assert (await ask({"Origin": f"https://{host}"}, allowed_hosts=hosts)).status_code == (
        403 if status == 421 else 200
    )


@pytest.mark.parametrize("origins", ["https://rebound.example", "*"])
async def test_pages_of_origins_that_may_call_the_service_are_answered(origins: str) -> None:
    answer = await ask({"Origin": "https://rebound.example"}, cors_origins=origins)

    assert answer.status_code == 200
    assert "Access-Control-Allow-Origin" in answer.headers


@pytest.mark.parametrize(
    "settings",
    [
        {"api_keys": "key"},
        {"host": "0.0.0.0"},
        {"host": "::"},
        {"host": "192.168.0.7"},
        {"unix_socket": Path("limelight.sock")},
    ],
    ids=str,
)
async def test_others_may_call_a_service_that_is_not_only_for_this_machine(settings: dict[str, Any]) -> None:
    assert (await ask(STRANGER | {"Origin": "null"}, **settings)).status_code == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost", "LOCALHOST"])
async def test_the_check_follows_where_the_service_listens(host: str) -> None:
    assert (await ask(STRANGER, host=host)).status_code == 421


@pytest.mark.parametrize(
    ("addresses", "status"),
    [(["127.0.0.1", "::1"], 421), (["127.0.0.1", "192.168.0.7"], 200), (["192.168.0.7", "127.0.0.1"], 200)],
)
async def test_a_name_is_on_loopback_if_all_its_addresses_are(
    monkeypatch: pytest.MonkeyPatch, addresses: list[str], status: int
) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (address, 0)) for address in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)

    assert (await ask(STRANGER, host="limelight.example")).status_code == status


@pytest.mark.parametrize(
    "host", ["https://limelight.example", "limelight.example:8000", "a b", "*.example", "/", "::1"]
)
def test_what_cannot_be_a_host_is_refused_at_the_start(host: str) -> None:
    with pytest.raises(ValidationError, match="each host must be"):
        Settings(allowed_hosts=host)
