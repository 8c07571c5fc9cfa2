"""The files of ``/docs`` as the service sends them; ``tests/web/test_elsewhere.py`` tests them in a browser."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from service.http.app import create_app
from service.settings import Settings

pytestmark = pytest.mark.anyio

FILES = {
    "/docs/docs.js": "text/javascript",
    "/docs/icon.svg": "image/svg+xml",
    "/docs/swagger-ui-bundle.js": "text/javascript",
    "/docs/swagger-ui.css": "text/css",
}


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client without a key. The page is off, and the service requires a key."""
    app = create_app(Settings(bundle=tmp_path / "none", api_keys="s3cret", ui=False))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        yield client


@pytest.mark.parametrize("path", FILES)
async def test_its_files_need_no_key_and_browsers_may_keep_them(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    again = await client.get(path, headers={"If-None-Match": answer.headers["ETag"]})

    assert (answer.status_code, again.status_code) == (200, 304)
    assert answer.headers["Content-Type"].startswith(FILES[path])


async def test_the_page_loads_only_these_files_and_by_relative_addresses(client: httpx.AsyncClient) -> None:
    answer = await client.get("/docs", headers={"X-API-Key": "s3cret"})
    script = await client.get("/docs/docs.js")

    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert {f"/{name}" for name in re.findall(r'(?:src|href)="([^"]*)"', answer.text)} == FILES.keys()
    assert 'url: "openapi.json"' in script.text


@pytest.mark.parametrize("path", ["/redoc", "/docs/", "/docs/index.html", "/docs/oauth2-redirect"])
async def test_there_is_no_other_documentation(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get(path, headers={"X-API-Key": "s3cret"})).status_code == 404
