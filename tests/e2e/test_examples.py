"""The programs in examples/, run unchanged against a server."""

import csv
import itertools
import json
import os
import runpy
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime, tzinfo
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

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
    file.write_text("no video " * 100, encoding="utf-8")
    return file


JSON = {"Content-Type": "application/json"}
ANSWER = (200, JSON, json.dumps(PREDICTION).encode())
HTML = {"Content-Type": "text/html"}
PAGE = b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<hr><center>nginx</center>" + b" padding" * 100_000
# What proxies of other people answer in the service's place, and what a program should say about it.
FOREIGN = {
    "a page": ((502, HTML, PAGE), "502 Bad Gateway: <html> <head><title>502 Bad Gateway</title></head> <hr>"),
    "a page with a good status": ((200, HTML, b"<p>Please log in"), "200 OK: <p>Please log in"),
    "JSON": ((503, JSON, b'{"code": 7, "message": "no upstream"}'), '503 Service Unavailable: {"code": 7, "message":'),
    "a redirect": ((302, HTML | {"Location": "/login"}, b"elsewhere"), "302 Found: elsewhere"),
    "nothing": ((504, {}, b""), "504 Gateway Timeout: "),
}
foreign = pytest.mark.parametrize(("answer", "told"), FOREIGN.values(), ids=FOREIGN)


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

    @foreign
    def test_it_tells_the_answer_of_a_proxy(
        self, clip_file: Path, answer: tuple[int, dict[str, str], bytes], told: str
    ) -> None:
        with StandIn(answer) as proxy:
            ended = run(proxy.url, EXAMPLES / "predict.sh", clip_file)

        assert (ended.returncode, ended.stdout) == (22, "")
        assert ended.stderr.startswith(told)
        assert len(ended.stderr) < 300

    def test_it_exits_as_curl_does_when_no_service_answers(self, clip_file: Path) -> None:
        ended = run("http://127.0.0.1:1", EXAMPLES / "predict.sh", clip_file)

        assert ended.returncode == 7
        assert ended.stderr.startswith("curl: (7)")


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

    @foreign
    def test_it_tells_the_answer_of_a_proxy(
        self, clip_file: Path, answer: tuple[int, dict[str, str], bytes], told: str
    ) -> None:
        status, headers, body = answer
        location = headers.get("Location")
        with StandIn((status, headers, body), (404, HTML, body)) as proxy:
            ended = run(proxy.url, "node", EXAMPLES / "predict.js", clip_file)

        assert (ended.returncode, ended.stdout) == (1, "")
        if location is None:  # fetch follows redirects
            assert ended.stderr.startswith(told)
            assert len(ended.stderr) < 300


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

    def test_what_is_hidden_is_left_out_but_not_a_folder_that_is_asked_for(
        self, server: Server, tmp_path: Path, clip: bytes
    ) -> None:
        folder = tmp_path / ".cache" / ".clips"
        for name in ("a.mp4", ".b.mp4", ".thumbs/t.jpg", "c/.thumbs/d/t.jpg", "c/e.mp4"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(clip)

        assert self.run(server.url, folder).returncode == 0
        assert [row["clip"] for row in self.rows(folder)] == ["a.mp4", "c/e.mp4"]

    @pytest.mark.parametrize("as_date", [False, True])
    def test_it_waits_as_long_as_retry_after_says(self, tmp_path: Path, clip: bytes, as_date: bool) -> None:
        (tmp_path / "a.mp4").write_bytes(clip)
        with StandIn((429, {"Retry-After": "2"}, b"{}"), ANSWER, dates=as_date) as busy:
            ended = self.run(busy.url, tmp_path)

        refused, answered = busy.asked
        assert answered - refused >= 1
        assert ended.returncode == 0, ended.stderr
        assert [row["label"] for row in self.rows(tmp_path)] == ["Basketball"]

    @pytest.mark.parametrize(
        ("retry_after", "seconds"),
        [
            ("0", 0),
            ("7", 7),
            ("Thu, 26 Nov 2026 00:00:09 GMT", 9),
            ("Thursday, 26-Nov-26 00:00:09 GMT", 9),
            ("Thu Nov 26 00:00:09 2026", 9),
            ("Wed, 25 Nov 2026 23:59:59 GMT", 0),
            ("Sun, 06 Nov 99999999 08:49:37 GMT", 1),
            ("Fri, 31 Dec 9999 23:59:59 GMT", 30),
            ("in a while", 1),
            ("-5", 1),
            ("1.5", 1),
            ("", 1),
            ("31536000", 30),
            ("9" * 5000, 30),
        ],
    )
    def test_retry_after_is_a_number_or_a_date_and_has_a_bound(
        self, monkeypatch: pytest.MonkeyPatch, retry_after: str, seconds: float
    ) -> None:
        class Midnight(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> Self:
                return cls(2026, 11, 26, tzinfo=tz)

        wait_s = runpy.run_path(str(EXAMPLES / "folder.py"))["wait_s"]
        wait_s.__globals__["datetime"] = Midnight

        with monkeypatch.context() as elsewhere:
            elsewhere.setenv("TZ", "America/New_York")
            time.tzset()
            waited = wait_s(retry_after)
        time.tzset()

        assert waited == seconds

    @foreign
    def test_the_answer_of_a_proxy_is_told_and_the_other_clips_are_classified(
        self, tmp_path: Path, clip: bytes, answer: tuple[int, dict[str, str], bytes], told: str
    ) -> None:
        for name in ("a.mp4", "b.mp4", "c.mp4"):
            (tmp_path / name).write_bytes(clip)
        with StandIn(answer, ANSWER) as proxy:
            ended = self.run(proxy.url, tmp_path)

        assert ended.returncode == 2
        assert ended.stderr.splitlines()[-1].startswith(f"{proxy.url}: {told}".rstrip())
        (bad,) = (row for row in self.rows(tmp_path) if row["problem"])
        assert f"{bad['problem']}: {bad['detail']}".startswith(told)
        assert sorted(row["label"] for row in self.rows(tmp_path)) == ["", "Basketball", "Basketball"]

    def test_results_so_far_are_kept_when_the_service_is_lost(self, tmp_path: Path, clip: bytes) -> None:
        for number in range(30):
            (tmp_path / f"{number:02}.mp4").write_bytes(clip)
        cut_off = (200, {"Content-Length": "9"}, b"")  # the connection ends before the answer does
        with StandIn(*[ANSWER] * 10, cut_off) as dying:
            ended = self.run(dying.url, tmp_path)

        assert ended.returncode == 2
        assert dying.url in ended.stderr
        assert [row["label"] for row in self.rows(tmp_path)] == ["Basketball"] * 10

    def test_a_clip_that_cannot_be_read_is_a_row(self, server: Server, tmp_path: Path, clip: bytes) -> None:
        (tmp_path / "a.mp4").write_bytes(clip)
        (tmp_path / "b.mp4").symlink_to("/proc/self/mem")  # whose beginning cannot be read
        ended = self.run(server.url, tmp_path)

        good, bad = self.rows(tmp_path)
        assert (ended.returncode, good["problem"], bad["problem"]) == (1, "", "unreadable")

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
        with (folder / "results.csv").open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))


class StandIn:
    """A server with these answers, the last one for ever; ``asked`` has the time of each request.

    With ``dates``, the header Retry-After gets the form of a date.
    """

    def __init__(self, *answers: tuple[int, dict[str, str], bytes], dates: bool = False) -> None:
        self.asked: list[float] = []
        stand_in = self
        turn = itertools.chain(answers, itertools.repeat(answers[-1]))  # `next` is atomic: requests come in threads

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                stand_in.asked.append(time.monotonic())
                self.rfile.read(int(self.headers["Content-Length"]))
                status, headers, body = next(turn)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    is_date = dates and name == "Retry-After"
                    self.send_header(name, self.date_time_string(time.time() + int(value)) if is_date else value)
                self.end_headers()
                self.wfile.write(body)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
