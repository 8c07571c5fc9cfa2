"""The programs in examples/, run unchanged against a server."""

import csv
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from service.http.examples import PREDICTION
from tests.conftest import REPOSITORY
from tests.e2e.process import PATIENCE_S, Server, running

pytestmark = pytest.mark.slow

EXAMPLES = REPOSITORY / "examples"
KEY = "examples-7f3a"


@pytest.fixture(scope="module")
def server(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tiny_bundle, tmp_path_factory.mktemp("log") / "log.jsonl", {"API_KEYS": KEY}) as server:
        yield server


@pytest.fixture(scope="module")
def expected(server: Server, clip: bytes) -> list[dict[str, object]]:
    answer = httpx.post(
        f"{server.url}/predict", content=clip, headers={"X-API-Key": KEY}, timeout=PATIENCE_S, trust_env=False
    )
    predictions: list[dict[str, object]] = answer.json()["predictions"]
    return predictions


@pytest.fixture
def clip_file(tmp_path: Path, clip: bytes) -> Path:
    file = tmp_path / "a clip; with, odd=name.mp4"
    file.write_bytes(clip)
    return file


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    file = tmp_path / "notes.mp4"
    file.write_text("no video " * 100)
    return file


def run(url: str, *command: object, key: str = KEY) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"LIMELIGHT_URL": url, "LIMELIGHT_API_KEY": key, "NO_PROXY": "*", "no_proxy": "*"}
    words = [str(word) for word in command]
    return subprocess.run(words, capture_output=True, text=True, env=environment, timeout=PATIENCE_S, check=False)


class TestCurlExample:
    @pytest.fixture(autouse=True)
    def _curl(self) -> None:
        if not shutil.which("curl"):
            pytest.skip("needs curl")

    def test_it_prints_the_answer(self, server: Server, clip_file: Path, expected: list[dict[str, object]]) -> None:
        ended = run(server.url, EXAMPLES / "predict.sh", clip_file)

        assert (ended.returncode, ended.stderr) == (0, "")
        assert json.loads(ended.stdout)["predictions"] == expected

    def test_it_prints_the_problem_and_exits_with_22(self, server: Server, text_file: Path) -> None:
        ended = run(server.url, EXAMPLES / "predict.sh", text_file)

        assert ended.returncode == 22
        assert json.loads(ended.stdout)["code"] == "unsupported_media"


class TestJavaScriptExample:
    @pytest.fixture(autouse=True)
    def _node(self) -> None:
        node = shutil.which("node")
        version = subprocess.check_output([node, "--version"], text=True) if node else "v0"
        if int(version.lstrip("v").split(".")[0]) < 20:
            pytest.skip("needs node, version 20 or newer")

    def test_it_prints_the_most_likely_actions(
        self, server: Server, clip_file: Path, expected: list[dict[str, object]]
    ) -> None:
        ended = run(server.url, "node", EXAMPLES / "predict.js", clip_file)

        assert (ended.returncode, ended.stderr) == (0, "")
        assert [line.split() for line in ended.stdout.splitlines()] == [
            [f"{best['probability']:.4f}", best["label"]] for best in expected
        ]

    def test_it_prints_why_a_clip_was_refused(self, server: Server, text_file: Path) -> None:
        ended = run(server.url, "node", EXAMPLES / "predict.js", text_file)

        assert ended.returncode == 1
        assert ended.stderr.endswith("(415 unsupported_media)\n")


class TestFolderExample:
    def test_the_table_has_a_row_for_each_clip_including_refused_ones(
        self, server: Server, tmp_path: Path, clip: bytes, expected: list[dict[str, object]]
    ) -> None:
        folder = tmp_path / "clips"
        for name, data in {"a.mp4": clip, "b/c.mp4": clip, "d.mp4": b"no video", ".hidden": b""}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        ended = self.run(server.url, folder)

        named = {"label": expected[0]["label"], "probability": str(expected[0]["probability"])}
        *good, bad = self.rows(folder)
        assert good == [{"clip": clip, **named, "problem": "", "detail": ""} for clip in ("a.mp4", "b/c.mp4")]
        assert (bad["clip"], bad["label"], bad["problem"]) == ("d.mp4", "", "unsupported_media")
        assert "video" in bad["detail"]
        assert ended.returncode == 1
        assert "2 classified, 1 refused" in ended.stderr

    def test_it_exits_with_0_when_every_clip_is_classified(self, server: Server, tmp_path: Path, clip: bytes) -> None:
        (tmp_path / "a.mp4").write_bytes(clip)

        assert self.run(server.url, tmp_path).returncode == 0
        assert self.run(server.url, tmp_path).returncode == 0  # its own results are not taken for a clip

    def test_it_waits_as_long_as_retry_after_says(self, tmp_path: Path, clip: bytes) -> None:
        (tmp_path / "a.mp4").write_bytes(clip)
        with BusyService() as busy:
            ended = self.run(busy.url, tmp_path)

        refused, answered = busy.asked
        assert answered - refused >= 1
        assert ended.returncode == 0
        assert [row["label"] for row in self.rows(tmp_path)] == ["Basketball"]

    def test_it_stops_when_the_api_key_is_wrong(self, server: Server, tmp_path: Path, clip_file: Path) -> None:
        ended = self.run(server.url, tmp_path, key="wrong")

        assert ended.returncode == 2
        assert "401" in ended.stderr

    def test_it_stops_when_no_service_answers(self, tmp_path: Path, clip_file: Path) -> None:
        ended = self.run("http://127.0.0.1:1", tmp_path)

        assert ended.returncode == 2
        assert "http://127.0.0.1:1" in ended.stderr

    @staticmethod
    def run(url: str, folder: Path, key: str = KEY) -> subprocess.CompletedProcess[str]:
        return run(url, sys.executable, EXAMPLES / "folder.py", folder, folder / "results.csv", key=key)

    @staticmethod
    def rows(folder: Path) -> list[dict[str, str]]:
        with (folder / "results.csv").open(newline="") as file:
            return list(csv.DictReader(file))


class BusyService:
    """A service that refuses the first clip with ``Retry-After: 1``; ``asked`` holds the time of each request."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        busy = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                busy.asked.append(time.monotonic())
                self.rfile.read(int(self.headers["Content-Length"]))
                answer = json.dumps(PREDICTION).encode()
                if len(busy.asked) == 1:
                    answer = b"{}"
                    self.send_response(429)
                    self.send_header("Retry-After", "1")
                else:
                    self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "BusyService":
        threading.Thread(target=self._server.serve_forever).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
