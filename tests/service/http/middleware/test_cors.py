"""Web applications of other origins; ``tests/web/test_elsewhere.py`` is one, in a browser."""

from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from service.http.app import create_app
from service.settings import Settings

pytestmark = pytest.mark.anyio


async def preflight(origin: str, **settings: Any) -> httpx.Response:
    transport = httpx.ASGITransport(create_app(Settings(**settings)))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        return await client.options("/predict", headers=asked)


@pytest.mark.parametrize(
    ("origins", "origin", "allowed"),
    [
        ("https://app.example", "https://app.example", "https://app.example"),
        ("https://a.example, http://localhost:3000", "http://localhost:3000", "http://localhost:3000"),
        ("https://App.Example:443", "https://app.example", "https://app.example"),
        ("http://app.example:80", "http://app.example", "http://app.example"),
        ("https://app.example", "https://app.example:8443", None),
        ("https://app.example", "http://app.example", None),
        ("https://app.example", "https://app.example.evil.example", None),
        ("https://app.example", "null", None),
        ("*", "https://app.example", "*"),
        ("*", "null", "*"),
    ],
)
async def test_only_the_origins_of_the_setting_are_allowed(origins: str, origin: str, allowed: str | None) -> None:
    answer = await preflight(origin, cors_origins=origins, api_keys="s3cret")

    assert answer.headers.get("Access-Control-Allow-Origin") == allowed
    assert answer.status_code == (400 if allowed is None else 200)


async def test_no_origin_is_allowed_by_default() -> None:
    answer = await preflight("https://app.example")

    assert (answer.status_code, answer.json()["code"]) == (403, "origin_not_allowed")
    assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.parametrize("origins", ["app.example", "https://app.example/", "https://app.example,", "ftp://a", "**"])
def test_what_is_not_an_origin_is_refused(origins: str) -> None:
    with pytest.raises(ValidationError, match="cors_origins"):
        Settings(cors_origins=origins)
