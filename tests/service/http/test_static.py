"""The headers of every static file; ``tests/web/test_policy.py`` tests what a browser makes of them."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from service.http.app import create_app
from service.settings import Settings
from tests.service.http.test_docs import FILES
from tests.service.http.test_page import PATHS

pytestmark = pytest.mark.anyio

KEY = {"X-API-Key": "s3cret"}
SAME_FOR_ALL = {
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
}
OF_THE_PAGE = SAME_FOR_ALL | {
    "img-src 'self'",
    "media-src blob:",
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
}
OF_THE_DOCS = SAME_FOR_ALL | {"img-src 'self' data:"}
POLICIES = dict.fromkeys(PATHS, OF_THE_PAGE) | dict.fromkeys(["/docs", *FILES], OF_THE_DOCS)


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(Settings(bundle=tmp_path / "none", api_keys="s3cret"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        yield client


@pytest.mark.parametrize("path", POLICIES)
async def test_every_answer_with_a_file_restricts_what_the_browser_does_with_it(
    client: httpx.AsyncClient, path: str
) -> None:
    answer = await client.get(path, headers=KEY)
    head = await client.head(path, headers=KEY)
    current = await client.get(path, headers=KEY | {"If-None-Match": answer.headers["ETag"]})

    assert [answer.status_code, head.status_code, current.status_code] == [200, 200, 304]
    for headers in (answer.headers, head.headers, current.headers):
        assert set(headers["Content-Security-Policy"].split("; ")) == POLICIES[path]
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-cache"
