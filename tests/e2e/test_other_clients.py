"""Requests as curl, probes, ingresses and web applications send them, with a key, a path prefix and an origin set."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.curl import curl
from tests.e2e.process import PATIENCE_S, Server, running

KEY = "others-7f3a"
PREFIX = "/limelight"
ORIGIN = "https://app.example"
GET_PATHS = (
    "/", "/web/main.js", "/docs", "/docs/docs.js", "/openapi.json", "/health/live", "/health/ready", "/metrics",
    "/model", "/v2", "/v2/health/live", "/v2/health/ready", "/v2/models", "/v2/models/stats", "/v2/models/tiny",
    "/v2/models/tiny/ready", "/v2/models/tiny/config", "/v2/models/tiny/versions/1/stats", "/nothing",
    "/v2/models/huge",
)  # fmt: skip
# Headers that differ from answer to answer.
CHANGING = {"date", "x-request-id"}


@pytest.fixture(scope="module")
def server(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = {"API_KEYS": KEY, "ROOT_PATH": f"{PREFIX}/", "CORS_ORIGINS": ORIGIN, "LOG_LEVEL": "debug"}
    with running(tiny_bundle, tmp_path_factory.mktemp("log") / "log.jsonl", settings) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    """A client with the key."""
    with httpx.Client(base_url=server.url, timeout=PATIENCE_S, trust_env=False, headers={"X-API-Key": KEY}) as client:
        yield client


@pytest.fixture
def stranger(server: Server) -> Iterator[httpx.Client]:
    """A client without a key."""
    with httpx.Client(base_url=server.url, timeout=PATIENCE_S, trust_env=False) as stranger:
        yield stranger


class TestHead:
    @pytest.mark.parametrize("path", GET_PATHS)
    def test_head_is_answered_like_get_without_the_body(self, client: httpx.Client, path: str) -> None:
        got, head = client.get(path), client.head(path)

        assert (head.status_code, head.content) == (got.status_code, b"")
        assert head.headers.keys() == got.headers.keys()
        if path not in {"/metrics", "/v2/models/stats", "/nothing", "/v2/models/huge"}:  # their bodies change
            for name in got.headers.keys() - CHANGING:
                assert head.headers[name] == got.headers[name]

    def test_the_access_log_shows_the_method_that_was_sent(self, client: httpx.Client, server: Server) -> None:
        client.head("/health/ready", headers={"X-Request-ID": "a-head"})

        line = server.access_line("a-head")
        assert (line["method"], line["path"], line["status"]) == ("HEAD", "/health/ready", 200)

    def test_head_of_a_path_without_get_is_405(self, client: httpx.Client) -> None:
        answer = client.head("/predict")

        assert (answer.status_code, answer.headers["Allow"], answer.content) == (405, "POST", b"")

    @pytest.mark.parametrize("path", ["/model", "/health/live", "/", "/docs", "/openapi.json"])
    def test_allow_lists_head_where_get_is(self, client: httpx.Client, path: str) -> None:
        for method in ("POST", "OPTIONS"):
            answer = client.request(method, path)
            assert (answer.status_code, answer.headers["Allow"]) == (405, "GET, HEAD")

    def test_a_connection_stays_usable_after_head(self, client: httpx.Client) -> None:
        assert client.head("/model").status_code == client.get("/model").status_code == 200


class TestForm:
    @pytest.mark.parametrize("file", ["@{}", "@{};filename=", "@{};type=text/plain", "<{}"])
    def test_curl_may_send_the_clip_as_a_file_or_as_a_field(self, server: Server, clip_file: Path, file: str) -> None:
        answer = send(server, "-F", f"file={file.format(clip_file)}")

        assert answer.endswith("200")
        assert '"probabilities"' in answer

    def test_a_part_that_curl_encodes_is_refused(self, server: Server, clip_file: Path) -> None:
        answer = send(server, "-F", f"file=@{clip_file};encoder=base64")

        assert answer.endswith("415")
        assert "the part `file` is encoded as base64" in answer


@pytest.mark.parametrize("coding", ["gzip", "X-Gzip", "zstd", "br", "deflate", "gzip, identity"])
def test_an_encoded_clip_is_refused_by_the_name_of_its_coding(server: Server, clip_file: Path, coding: str) -> None:
    headers = ("-H", "Content-Type: video/mp4", "-H", f"Content-Encoding: {coding}")
    answer = send(server, *headers, "--data-binary", f"@{clip_file}")

    assert answer.endswith("415")
    assert f"the content encoding {coding.lower().partition(',')[0]} is not supported; send the clip as it is" in answer


def send(server: Server, *options: str) -> str:
    """Send a clip with curl."""
    return curl("-H", f"X-API-Key: {KEY}", *options, f"{server.url}/predict?attention=false")


class TestPrefix:
    @pytest.mark.parametrize("path", [*GET_PATHS, f"{PREFIX}/"])
    def test_paths_are_answered_with_the_prefix_and_without(self, client: httpx.Client, path: str) -> None:
        answer = client.get(PREFIX + path)

        expected = 404 if path == f"{PREFIX}/" else client.get(path).status_code
        assert answer.status_code == expected

    def test_predictions_are_checked_counted_and_logged_without_the_prefix(
        self, client: httpx.Client, stranger: httpx.Client, server: Server, clip: bytes
    ) -> None:
        before = server.metric("request_seconds_count", status="200")
        refused = stranger.post(f"{PREFIX}/predict", content=clip)
        answer = client.post(f"{PREFIX}/predict", content=clip, headers={"X-Request-ID": "prefixed"})

        assert (refused.status_code, answer.status_code) == (401, 200)
        assert server.access_line("prefixed")["path"] == "/predict"
        assert server.metric("request_seconds_count", status="200") == before + 1

    @pytest.mark.parametrize("path", ["/health/ready", "/metrics", "/", "/docs/docs.js"])
    def test_open_paths_need_no_key_behind_the_prefix_either(self, stranger: httpx.Client, path: str) -> None:
        assert stranger.get(PREFIX + path).status_code == 200

    @pytest.mark.parametrize(
        "path", ["/model", "/openapi.json", "/nothing", "x/health/live", "//metrics", "/%2e%2e/metrics"]
    )
    def test_others_do(self, stranger: httpx.Client, path: str) -> None:
        assert stranger.get(PREFIX + path).status_code == 401

    def test_the_prefix_without_a_slash_redirects_relatively(self, stranger: httpx.Client) -> None:
        answer = stranger.get(PREFIX)

        assert (answer.status_code, answer.headers["Location"]) == (307, "limelight/")

    def test_problems_of_v2_have_the_field_error(self, client: httpx.Client) -> None:
        answer = client.get(f"{PREFIX}/v2/models/huge").json()

        assert answer["error"] == answer["detail"]

    def test_the_openapi_document_names_the_prefix(self, client: httpx.Client) -> None:
        assert client.get("/openapi.json").json()["servers"] == [{"url": PREFIX}]


class TestOtherOrigins:
    @pytest.mark.parametrize("path", ["/predict", f"{PREFIX}/predict", "/v2/models/tiny/infer", "/model"])
    def test_the_preflight_needs_no_key(self, stranger: httpx.Client, path: str) -> None:
        asked = {
            "Origin": ORIGIN,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type,x-api-key,x-request-id",
        }
        answer = stranger.options(path, headers=asked)

        assert answer.status_code == 200
        assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert "POST" in answer.headers["Access-Control-Allow-Methods"]
        allowed = answer.headers["Access-Control-Allow-Headers"]
        assert {*allowed.lower().replace(" ", "").split(",")} >= {"authorization", "content-type", "x-api-key"}
        assert "Access-Control-Allow-Credentials" not in answer.headers

    @pytest.mark.parametrize(("origin", "method"), [("https://evil.example", "POST"), (ORIGIN, "DELETE")])
    def test_a_preflight_of_another_origin_or_method_is_refused(
        self, stranger: httpx.Client, origin: str, method: str
    ) -> None:
        answer = stranger.options("/predict", headers={"Origin": origin, "Access-Control-Request-Method": method})

        assert answer.status_code == 400

    def test_answers_name_the_origin_and_the_headers_that_it_may_read(self, client: httpx.Client, clip: bytes) -> None:
        answer = client.post("/predict", content=clip, headers={"Origin": ORIGIN})

        assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
        exposed = answer.headers["Access-Control-Expose-Headers"].split(", ")
        assert {"X-Request-ID", "Server-Timing", "Retry-After"} <= {*exposed}
        assert "Origin" in answer.headers["Vary"]

    def test_answers_to_other_origins_do_not(self, client: httpx.Client) -> None:
        answer = client.get("/model", headers={"Origin": "https://evil.example"})

        assert (answer.status_code, "Access-Control-Allow-Origin" in answer.headers) == (200, False)
