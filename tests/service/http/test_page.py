"""The page's files as the service sends them; ``tests/web`` tests them in a browser."""

import re
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from hatchling.builders.wheel import WheelBuilder

from service.http.app import create_app
from service.http.static import MEDIA_TYPES
from service.settings import Settings
from service.web import sample_clip

pytestmark = pytest.mark.anyio

REPOSITORY = Path(__file__).parents[3]
FILES = sorted(file for file in (REPOSITORY / "service" / "web").iterdir() if file.suffix in MEDIA_TYPES)
PATHS = ["/", *(f"/web/{file.name}" for file in FILES if file.name != "index.html")]
MAX_BYTES = 150_000


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client without a key. The service requires one everywhere except for the page."""
    app = create_app(Settings(bundle=tmp_path / "none", api_keys="s3cret"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        yield client


@pytest.mark.parametrize("path", PATHS)
async def test_every_file_is_served_without_a_key(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    head = await client.head(path)

    assert (answer.status_code, head.status_code, head.content) == (200, 200, b"")
    assert answer.headers["X-Request-ID"]


async def test_a_current_copy_is_revalidated_and_not_sent_again(client: httpx.AsyncClient) -> None:
    first = await client.get("/")
    again = await client.get("/", headers={"If-None-Match": first.headers["ETag"]})
    other = await client.get("/", headers={"If-None-Match": '"another"'})

    assert first.headers["Cache-Control"] == "no-cache"
    assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", first.headers["ETag"])
    assert other.status_code == 200


async def test_the_page_refers_to_no_other_host_and_only_to_existing_files(client: httpx.AsyncClient) -> None:
    texts = {path: (await client.get(path)).text for path in PATHS if not path.endswith(".mp4")}
    named = {name for text in texts.values() for name in re.findall(r"""["'](web/[\w.]+|\./[\w.]+)["']""", text)}

    hosts = {host for text in texts.values() for host in re.findall(r"https?://([\w.]+)", text)}
    assert hosts <= {"www.w3.org"}  # the XML namespace of SVG, which is not requested
    assert {"/" + name.replace("./", "web/") for name in named} == {*PATHS} - {"/"}


async def test_other_paths_under_web_do_not_exist_and_require_a_key(client: httpx.AsyncClient) -> None:
    for path in ("/web/", "/web/index.html", "/web/../settings.py", "/web/%2e%2e/settings.py"):
        answer = await client.get(path, headers={"X-API-Key": "s3cret"})
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
        assert (await client.get(path)).status_code == 401


async def test_the_sample_clip_is_served_as_mp4(client: httpx.AsyncClient) -> None:
    answer = await client.get("/web/sample.mp4")

    assert answer.headers["Content-Type"] == "video/mp4"
    assert answer.content == sample_clip()


async def test_the_page_can_be_turned_off(tmp_path: Path) -> None:
    app = create_app(Settings(bundle=tmp_path / "none", ui=False))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        answers = [await client.get(path) for path in PATHS]

    assert {(answer.status_code, answer.json()["code"]) for answer in answers} == {(404, "not_found")}


def test_the_page_is_small() -> None:
    assert sum(file.stat().st_size for file in FILES if file.suffix != ".mp4") < MAX_BYTES


def test_the_page_is_not_part_of_the_openapi_document() -> None:
    assert not {*PATHS} & create_app(Settings()).openapi()["paths"].keys()


def test_the_wheel_contains_the_page(tmp_path: Path) -> None:
    (wheel,) = WheelBuilder(str(REPOSITORY)).build(directory=str(tmp_path), versions=["standard"])

    docs = {"service/web/docs/index.html", "service/web/docs/docs.js"}
    assert docs | {f"service/web/{file.name}" for file in FILES} <= {*zipfile.ZipFile(wheel).namelist()}
