"""The ``limelight`` command line."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from service.cli.app import app
from service.settings import Settings
from tests.e2e.process import PATIENCE_S, Server
from tests.service.video.clips import encode
from tests.tiny_bundle import LABELS


def limelight(*arguments: object) -> Result:
    return CliRunner(env={"NO_COLOR": "1", "COLUMNS": "100"}).invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def told(server: Server) -> tuple[object, object]:
    """Return what the log says about API keys."""
    (line,) = (line for line in server.lines() if "api_keys" in line)
    return line["message"], line["api_keys"]


class TestServe:
    def test_the_log_contains_the_pages_address(self, server: Server) -> None:
        (listening,) = (line for line in server.lines() if line["message"] == "listening")

        assert listening["page"] == f"{server.url}/"

    def test_on_a_terminal_the_pages_address_is_printed(self) -> None:
        screen, keyboard = os.openpty()
        command = [sys.executable, "-m", "service.cli", "serve", "--bundle", "none", "--port", "0"]
        ended = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=keyboard, timeout=PATIENCE_S, check=False)

        assert ended.returncode == 2
        assert re.match(rb"Open http://127\.0\.0\.1:\d+/ in a browser\r\n", os.read(screen, 4096))

    def test_it_starts_beside_a_kubernetes_service_of_its_name_and_with_empty_variables(
        self, start: Callable[..., Server]
    ) -> None:
        links = {"PORT": "tcp://10.96.12.7:8000", "SERVICE_PORT": "8000", "PORT_8000_TCP_ADDR": "10.96.12.7"}
        names = Settings.model_fields.keys() - {"api_keys", "api_keys_file"}
        empty = dict.fromkeys(map(str.upper, names), "")
        server = start(**empty | links)

        assert httpx.get(f"{server.url}/health/ready", trust_env=False).is_success

    @pytest.mark.parametrize("keys", ["", " \n", ","])
    def test_it_does_not_start_with_a_list_of_keys_that_is_empty(
        self, monkeypatch: pytest.MonkeyPatch, keys: str
    ) -> None:
        monkeypatch.setenv("LIMELIGHT_API_KEYS", keys)
        ended = limelight("serve", "--port", 0)

        assert ended.exit_code == 2
        assert len(ended.stderr.splitlines()) == 1
        assert ended.stderr.startswith("limelight: LIMELIGHT_API_KEYS is not valid: a key is empty")

    @pytest.mark.parametrize(("content", "why"), [(None, "cannot be read"), ("", "holds no key"), ("a b", "visible")])
    def test_it_does_not_start_without_the_keys_of_its_file(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str | None, why: str
    ) -> None:
        if content is not None:
            (tmp_path / "keys").write_text(content, encoding="utf-8")
        monkeypatch.setenv("LIMELIGHT_API_KEYS_FILE", "keys")
        ended = limelight("serve", "--port", 0)

        assert ended.exit_code == 2
        (sentence,) = ended.stderr.splitlines()
        assert sentence.startswith("limelight: LIMELIGHT_API_KEYS_FILE is not valid: ")
        assert why in sentence

    def test_it_logs_how_many_keys_there_are_and_variables_that_are_composes(
        self, start: Callable[..., Server], tmp_path: Path
    ) -> None:
        (tmp_path / "keys").write_text("first-7f3a\nsecond-9c1d\n", encoding="utf-8")
        server = start(API_KEYS_FILE=str(tmp_path / "keys"), MEMORY="4g")
        keys = ("first-7f3a", "second-9c1d", "first-7f3a,second-9c1d")
        statuses = [
            httpx.get(f"{server.url}/model", headers={"X-API-Key": key}, trust_env=False).status_code for key in keys
        ]

        assert statuses == [200, 200, 401]
        assert told(server) == ("API keys: 2", 2)
        (warning,) = (str(line["message"]) for line in server.lines() if line["level"] == "warning")
        assert warning.startswith("LIMELIGHT_MEMORY is a variable of Compose")
        assert "7f3a" not in server.log.read_text(encoding="utf-8")

    def test_it_logs_that_it_is_open_to_everybody(self, server: Server) -> None:
        assert told(server) == ("API keys: none: open to everybody", 0)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("MAX_PIXELS", "2146435072"),
            ("DECODE_TIMEOUT_S", "inf"),
            ("DECODE_TIMEOUT_S", "nan"),
            ("REQUEST_TIMEOUT_S", "inf"),
            ("DRAIN_DELAY_S", "1e300"),
            ("BATCH_SIZES", "1,1000000000"),
            ("MAX_QUEUE", str(2**63)),
            ("DECODE_MEMORY_BYTES", str(2**64)),
            ("GPU_MEM_LIMIT_BYTES", str(2**64)),
            ("PORT", "70000"),
            ("API_KEYS", ",".join(["key"] * 5000)),
        ],
    )
    def test_it_does_not_start_with_a_setting_that_would_fail_later(
        self, monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path, name: str, value: str
    ) -> None:
        monkeypatch.setenv(f"LIMELIGHT_{name}", value)
        ended = limelight("serve", "--bundle", tiny_bundle)

        assert ended.exit_code == 2
        (sentence,) = ended.stderr.splitlines()
        assert sentence.startswith(f"limelight: LIMELIGHT_{name} is not valid: ")

    @pytest.mark.parametrize("small", [{}, {"MAX_PIXELS": "4096"}])
    def test_it_does_not_start_if_no_clip_can_be_decoded_in_time_however_small_clips_must_be(
        self, monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path, small: dict[str, str]
    ) -> None:
        for name, value in {"DECODE_TIMEOUT_S": "0.001", **small}.items():
            monkeypatch.setenv(f"LIMELIGHT_{name}", value)
        command = [sys.executable, "-m", "service.cli", "serve", "--bundle", str(tiny_bundle), "--port", "0"]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)

        assert ended.returncode == 2
        (sentence,) = ended.stderr.splitlines()
        assert sentence.startswith("limelight: no clip can be decoded with these settings: ")
        assert "raise LIMELIGHT_DECODE_TIMEOUT_S" in sentence

    @pytest.mark.parametrize("end", ["ge", "le"])
    def test_at_the_ends_of_all_ranges_it_starts_and_answers(self, start: Callable[..., Server], end: str) -> None:
        settings = {
            name.upper(): str(getattr(bound, end))
            for name, field in Settings.model_fields.items()
            for bound in field.metadata
            if hasattr(bound, end) and name not in {"port", "gpu_mem_limit_bytes"}
        }
        # These make clients too slow for the test, or refuse its clip.
        patience = {"DECODE_TIMEOUT_S": "60", "MAX_BODY_BYTES": "1000000", "REQUEST_TIMEOUT_S": "60"}
        server = start(**settings | {name: value for name, value in patience.items() if end == "ge"})
        smallest = encode([np.zeros((8, 8, 3), np.uint8)], rate=100)

        answer = httpx.post(f"{server.url}/predict", content=smallest, timeout=PATIENCE_S, trust_env=False)
        assert answer.status_code == 200


class TestPredict:
    def test_a_service_and_a_bundle_give_the_same_table(
        self, server: Server, tiny_bundle: Path, clip_file: Path, tmp_path: Path
    ) -> None:
        asked = limelight("predict", clip_file, "--url", server.url)
        run_here = limelight("predict", clip_file, "--bundle", tiny_bundle)

        assert (asked.exit_code, run_here.exit_code) == (0, 0)
        rows = [line for line in asked.stdout.splitlines() if line.startswith(LABELS)]
        assert rows == [line for line in run_here.stdout.splitlines() if line.startswith(LABELS)]
        assert len(rows) == 5
        assert [float(row.split()[1]) for row in rows] == sorted((float(row.split()[1]) for row in rows), reverse=True)
        assert "inference" in asked.stdout

    def test_top_k_sets_the_number_of_rows(self, tiny_bundle: Path, clip_file: Path, tmp_path: Path) -> None:
        printed = limelight("predict", clip_file, "--bundle", tiny_bundle, "--top-k", 2).stdout

        assert sum(line.startswith(LABELS) for line in printed.splitlines()) == 2

    def test_json_prints_one_answer_of_the_api_per_line(self, server: Server, clip_file: Path, tmp_path: Path) -> None:
        printed = limelight("predict", clip_file, clip_file, "--url", server.url, "--json").stdout

        answers = [json.loads(line) for line in printed.splitlines()]
        assert len(answers) == 2
        assert len(answers[0]["attention"]["maps"]) == 40
        assert answers[0]["frames"][0].keys() == {"index", "time_s"}

    def test_json_of_a_bundle_is_what_a_service_with_that_bundle_answers(
        self, server: Server, tiny_bundle: Path, clip_file: Path
    ) -> None:
        there = json.loads(limelight("predict", clip_file, "--url", server.url, "--json").stdout)
        here = json.loads(limelight("predict", clip_file, "--bundle", tiny_bundle, "--json").stdout)

        assert here.pop("timings_ms").keys() == there.pop("timings_ms").keys()
        assert here == there

    @pytest.mark.parametrize("name", ["seen.png", "seen.gif", "seen.mp4"])
    def test_an_overlay_is_written_in_each_format(
        self, tiny_bundle: Path, clip_file: Path, tmp_path: Path, name: str
    ) -> None:
        ended = limelight("predict", clip_file, "--bundle", tiny_bundle, "--overlay", name)

        assert ended.exit_code == 0
        assert (tmp_path / name).stat().st_size > 1000
        assert name in ended.stdout

    def test_the_api_key_is_read_from_the_environment(
        self, start: Callable[..., Server], clip_file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server = start(API_KEYS="cli-7f3a")
        refused = limelight("predict", clip_file, "--url", server.url)
        monkeypatch.setenv("LIMELIGHT_API_KEY", "cli-7f3a")
        answered = limelight("predict", clip_file, "--url", server.url)

        assert (refused.exit_code, answered.exit_code) == (2, 0)
        assert "(401 unauthorized)" in refused.stderr

    def test_blanks_around_the_api_key_do_not_matter_but_others_are_refused(
        self, server: Server, clip_file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        codes = []
        for key in ("", "\n", "secret-7f3a\n", "secret\n7f3a"):
            monkeypatch.setenv("LIMELIGHT_API_KEY", key)
            ended = limelight("predict", clip_file, "--url", server.url)
            codes.append(ended.exit_code)

        assert codes == [0, 0, 0, 2]
        assert ended.stderr.startswith("limelight: LIMELIGHT_API_KEY is not valid: ")
        assert "7f3a" not in ended.output

    def test_a_bad_clip_is_named_and_the_others_are_answered(
        self, server: Server, clip_file: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "notes.txt").write_text("no video " * 100, encoding="utf-8")
        ended = limelight("predict", "none.mp4", "notes.txt", clip_file, "--url", server.url)

        unreadable, refused, summary = ended.stderr.splitlines()
        assert ended.exit_code == 1
        assert unreadable.startswith("limelight: none.mp4 cannot be read (No such file or directory)")
        assert refused.startswith("limelight: notes.txt: This is not a supported video: ")
        assert refused.endswith("(415 unsupported_media)")
        assert summary == "limelight: 2 of 3 clips have no answer"
        assert str(clip_file) in ended.stdout

    def test_with_a_bundle_a_bad_clip_is_named_too(self, tiny_bundle: Path, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("no video " * 100, encoding="utf-8")
        ended = limelight("predict", "notes.txt", "--bundle", tiny_bundle)

        assert ended.exit_code == 1
        assert ended.stderr.startswith("limelight: notes.txt: ")
        assert len(ended.stderr.splitlines()) == 1

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            (["--url", "http://127.0.0.1:9"], "no service answers at http://127.0.0.1:9 "),
            (["--url", "127.0.0.1:9"], "127.0.0.1:9 is not an HTTP address; "),
            (["--bundle", "none"], "none/manifest.json does not exist"),
            (["--url", "http://x", "--bundle", "y"], "--url and --bundle exclude each other"),
            (["--json", "--csv"], "--json and --csv exclude each other"),
            (["--overlay", "seen.jpg"], "seen.jpg: an overlay's name must end in one of .png, .gif, .mp4"),
            (["--overlay", "none/seen.png"], "none/seen.png: the folder none does not exist"),
            (["clip.mp4", "--overlay", "seen.png"], "--overlay seen.png shows one clip"),
        ],
    )
    def test_an_impossible_command_prints_one_line_and_writes_nothing(
        self, clip_file: Path, tmp_path: Path, options: list[str], sentence: str
    ) -> None:
        before = set(tmp_path.iterdir())
        ended = limelight("predict", clip_file.name, *options)

        (error,) = ended.stderr.splitlines()
        assert ended.exit_code == 2
        assert error.startswith(f"limelight: {sentence}")
        assert ended.stdout == ""
        assert set(tmp_path.iterdir()) == before

    def test_an_answer_that_is_not_limelights_is_reported(self, clip_file: Path) -> None:
        with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as stranger:
            threading.Thread(target=stranger.serve_forever).start()
            url = f"http://127.0.0.1:{stranger.server_port}"
            ended = limelight("predict", clip_file, "--url", url)
            stranger.shutdown()

        assert ended.exit_code == 2
        assert ended.stderr.splitlines()[-1].startswith(
            f"limelight: the answer from {url} (status 501) is not Limelight's"
        )


class TestDoctor:
    def test_a_working_installation_exits_with_0_and_lists_every_check(
        self, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LIMELIGHT_PORT", "0")
        ended = limelight("doctor", "--bundle", tiny_bundle)

        assert ended.exit_code == 0, ended.output
        for subject in ("settings", "address", "decoders", "bundle", "network"):
            assert f"\n{subject} " in ended.stdout
        assert "tiny 1, 6 classes" in ended.stdout

    def test_an_error_exits_with_1_and_shows_the_remedy(self, tmp_path: Path) -> None:
        ended = limelight("doctor", "--bundle", tmp_path)

        assert ended.exit_code == 1
        assert re.search(r"^bundle +error ", ended.stdout, re.MULTILINE)
        assert "make one with `limelight-model export`" in ended.stdout


class TestDemo:
    def test_it_prints_five_rows_and_draws_the_overlay(self, tiny_bundle: Path, tmp_path: Path) -> None:
        ended = limelight("demo", "--bundle", tiny_bundle, "--overlay", "demo.png")

        assert ended.exit_code == 0, ended.stderr
        assert sum(line.startswith(LABELS) for line in ended.stdout.splitlines()) == 5
        with Image.open(tmp_path / "demo.png") as picture:
            assert min(picture.size) > 300

    def test_a_given_clip_replaces_the_sample(self, tiny_bundle: Path, clip_file: Path, tmp_path: Path) -> None:
        ended = limelight("demo", clip_file, "--bundle", tiny_bundle)

        assert ended.exit_code == 0, ended.stderr
        assert str(clip_file) in ended.stdout
        assert (tmp_path / "demo.png").exists()

    def test_it_sends_a_key_of_a_file_that_is_named_relatively(
        self, monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "keys").write_text("demo-7f3a\n", encoding="utf-8")
        monkeypatch.setenv("LIMELIGHT_API_KEYS_FILE", "keys")
        ended = limelight("demo", "--bundle", tiny_bundle)

        assert ended.exit_code == 0, ended.stderr

    def test_the_reason_is_shown_if_the_server_does_not_start(self, tmp_path: Path) -> None:
        ended = limelight("demo", "--bundle", "none")

        assert ended.exit_code == 2
        assert "limelight: the server did not start: none/manifest.json does not exist" in ended.stderr
        assert not (tmp_path / "demo.png").exists()

    def test_a_file_that_is_not_a_video_leaves_no_overlay(self, tiny_bundle: Path, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("no video " * 100, encoding="utf-8")
        ended = limelight("demo", "notes.txt", "--bundle", tiny_bundle)

        assert ended.exit_code == 2
        assert "limelight: notes.txt: This is not a supported video" in ended.stderr
        assert not (tmp_path / "demo.png").exists()
