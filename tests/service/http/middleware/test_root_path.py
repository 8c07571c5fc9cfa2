"""The path prefix; ``tests/e2e/test_other_clients.py`` and ``tests/web/test_elsewhere.py`` test a server behind one."""

from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from service.http.app import create_app
from service.settings import Settings

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("prefix", "path", "status"),
    [
        ("/limelight", "/limelight/health/live", 200),
        ("limelight/", "/limelight/health/live", 200),
        ("/apps/lime.light", "/apps/lime.light/health/live", 200),
        ("/apps/limelight", "/limelight/health/live", 404),
        ("/limelight", "/limelightly/health/live", 404),
        ("/limelight", "/Limelight/health/live", 404),
        ("/limelight", "/limelight/limelight/health/live", 404),
        ("/", "/health/live", 200),
        ("", "/limelight/health/live", 404),
    ],
)
async def test_the_prefix_is_removed_once(tmp_path: Path, prefix: str, path: str, status: int) -> None:
    assert (await get(path, Settings(bundle=tmp_path, root_path=prefix))).status_code == status


@pytest.mark.parametrize(("prefix", "location"), [("/limelight", "limelight/"), ("/apps/limelight", "limelight/")])
async def test_the_prefix_itself_redirects_to_the_page_if_there_is_one(
    tmp_path: Path, prefix: str, location: str
) -> None:
    redirected = await get(prefix, Settings(bundle=tmp_path, root_path=prefix))
    without_page = await get(prefix, Settings(bundle=tmp_path, root_path=prefix, ui=False))

    assert (redirected.status_code, redirected.headers["Location"]) == (307, location)
    assert without_page.status_code == 404


@pytest.mark.parametrize(
    ("prefix", "read"), [("/", ""), ("//a/b//", "/a/b"), ("X/lime~light-1.0_", "/X/lime~light-1.0_"), ("/aXX", "/aXX")]
)
def test_a_prefix_begins_with_a_slash_and_ends_without_one(prefix: str, read: str) -> None:
    assert Settings(root_path=prefix).root_path == read


@pytest.mark.parametrize("prefix", ["/lime light", "/limelight?", "/café", "http://a.example/", "/{path}", "/%2e"])
def test_what_is_not_a_path_is_refused(prefix: str) -> None:
    with pytest.raises(ValidationError, match="the prefix must be a path"):
        Settings(root_path=prefix)


async def get(path: str, settings: Settings) -> httpx.Response:
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(create_app(settings)), base_url="http://localhost"
    ) as client:
        return await client.get(path)
