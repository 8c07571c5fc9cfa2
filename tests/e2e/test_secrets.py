"""Keys and passwords are printed by no command, whatever is wrong with them, and are not in the log."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from service.cli.app import app
from tests.e2e.process import PATIENCE_S, Server, running
from tests.processes import descendants, until

SECRET = "7f3a-secret"
NOBODY = "http://127.0.0.1:9"
COMMANDS = {
    "predict": ["predict", "clip.mp4", "--url", NOBODY],
    "predict --bundle": ["predict", "clip.mp4", "--bundle", "none"],
    "demo": ["demo", "clip.mp4", "--bundle", "none"],
    "serve": ["serve", "--bundle", "none", "--port", "0"],
    "doctor": ["doctor", "--bundle", "none"],
    "health": ["health"],
}
UNUSABLE_KEYS = [f"{SECRET}é", f"a\n{SECRET}", f"{SECRET}\x01", f"a {SECRET}", f"{SECRET}\u2028x", f"\udcff{SECRET}"]


def output_of(arguments: list[str], **variables: str) -> tuple[int, str]:
    """Run ``limelight`` with environment variables. Return its exit code, and all that it printed."""
    ended = CliRunner(env={"LIMELIGHT_PORT": "0", **variables}).invoke(app, arguments)
    assert ended.exception is None or isinstance(ended.exception, SystemExit)
    return ended.exit_code, ended.output


@pytest.fixture(autouse=True)
def _in_a_folder_with_a_clip(clip_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clip_file.parent)


@pytest.mark.parametrize("key", UNUSABLE_KEYS)
@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "health"])
def test_a_key_that_cannot_be_used_is_one_sentence_without_it(command: str, key: str) -> None:
    exit_code, output = output_of(COMMANDS[command], LIMELIGHT_API_KEY=key, LIMELIGHT_API_KEYS=f"good,{key}")

    name = "LIMELIGHT_API_KEY" if command == "predict" else "LIMELIGHT_API_KEYS"
    assert (exit_code, output.count("\n")) == (2, 1)
    assert output.startswith(f"limelight: {name} is not valid: ")
    assert "secret" not in output


@pytest.mark.parametrize("command", COMMANDS)
def test_a_key_is_printed_by_no_command(command: str) -> None:
    keys = {"LIMELIGHT_API_KEY": f"{SECRET}\n", "LIMELIGHT_API_KEYS": f"{SECRET}\n", "LIMELIGHT_LOG_LEVEL": "debug"}
    ended = subprocess.run(
        [sys.executable, "-m", "service.cli", *COMMANDS[command]],
        env=os.environ | keys | {"LIMELIGHT_PORT": "9"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )

    assert ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
    assert "secret" not in ended.stdout + ended.stderr


@pytest.mark.parametrize(
    "url",
    [
        f"http://user:{SECRET}@127.0.0.1:9",
        f"http://user:{SECRET}/x@127.0.0.1:9",
        f"http://user:a?{SECRET}@127.0.0.1:9",
        f"http://user:{SECRET}#@127.0.0.1:9",
        f"http://user:{SECRET}@[::1",
        f"user:{SECRET}@127.0.0.1",
        f"ftp://user:{SECRET}@127.0.0.1",
        f"http://127.0.0.1:9/?key=a@{SECRET}",
        f"http://user:{SECRET}@no..host:9",
        f"http://user:\udcff{SECRET}@127.0.0.1:9",
    ],
)
def test_a_password_in_the_address_is_not_printed(url: str) -> None:
    exit_code, output = output_of(["predict", "clip.mp4", "--url", url])

    assert (exit_code, output.count("\n")) == (2, 1)
    assert "secret" not in output


def test_a_password_in_the_address_is_not_printed_if_another_service_answers(server: Server) -> None:
    url = f"http://user:{SECRET}@127.0.0.1:{server.port}/docs"
    exit_code, output = output_of(["predict", "clip.mp4", "--url", url])

    assert (exit_code, output.count("\n")) == (2, 1)
    assert "secret" not in output


@pytest.mark.parametrize(
    "proxy", [f"http://user:{SECRET}@127.0.0.1:9", f"http://user:{SECRET}/x@127.0.0.1:9", f"nonsense://user:{SECRET}@x"]
)
def test_a_password_of_a_proxy_is_not_printed(proxy: str) -> None:
    exit_code, output = output_of(["predict", "clip.mp4", "--url", "http://service.invalid"], HTTP_PROXY=proxy)

    assert (exit_code, output.count("\n")) == (2, 1)
    assert "secret" not in output


def test_neither_log_nor_answers_hold_the_keys_or_what_clients_send_as_keys(
    start: Callable[..., Server], clip: bytes
) -> None:
    server = start(API_KEYS=f"{SECRET},other", LOG_LEVEL="debug", TRUSTED_PROXIES="*", CORS_ORIGINS="*")
    statuses, answers = [], []
    paths = ("/model", "/metrics", "/openapi.json", "/v2", "/none", f"/docs?key={SECRET}")
    with httpx.Client(base_url=server.url, timeout=PATIENCE_S, trust_env=False) as client:
        for headers in (
            {"X-API-Key": SECRET},
            {"Authorization": f"Bearer {SECRET}"},
            {"X-API-Key": f"wrong-{SECRET}", "Cookie": f"key={SECRET}"},
            {"Authorization": f"Basic {SECRET}"},
        ):
            statuses.append(client.post("/predict", content=clip, headers=headers).status_code)
            answers += [
                client.post("/predict", files={"file": clip}, headers=headers),
                client.post("/predict?top_k=0", content=clip, headers=headers),
                client.post("/v2/models/tiny/infer", content=b"{", headers=headers),
                *(client.get(path, headers=headers) for path in paths),
            ]
        server.access_line(client.get("/none").headers["X-Request-ID"])

    assert statuses == [200, 200, 401, 401]
    assert "secret" not in server.log.read_text(encoding="utf-8")
    assert [answer.url for answer in answers if "secret" in f"{answer.headers} {answer.text}"] == []


def memory_holds(pid: int, secret: bytes) -> bool:
    """Return whether a process has a secret in its memory, which includes its arguments and its environment."""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").splitlines():
            places, rights, *_, name = line.split(maxsplit=5)
            begin, end = (int(place, 16) for place in places.split("-"))
            if "r" in rights and not name.startswith("[v"):  # the kernel's own
                memory.seek(begin)
                if secret in (memory.read(end - begin) or b""):
                    return True
    return False


def test_neither_the_fork_server_nor_a_decoder_is_given_a_secret(
    tiny_bundle: Path, tmp_path: Path, clip: bytes
) -> None:
    secret = f"{SECRET}-{os.getpid()}"
    variables = dict.fromkeys(("LIMELIGHT_API_KEY", "OTEL_EXPORTER_OTLP_HEADERS", "AWS_SECRET_ACCESS_KEY"), secret)
    with running(tiny_bundle, tmp_path / "log.jsonl", {"API_KEYS": secret}, variables=variables) as server:
        headers = {"X-API-Key": secret}
        answer = httpx.post(f"{server.url}/predict", content=clip, headers=headers, timeout=PATIENCE_S, trust_env=False)
        until(lambda: len(descendants(server.process.pid)[1]) == 1)  # that of the clip has ended
        (fork_server,), (waiting,) = descendants(server.process.pid)

        assert answer.status_code == 200
        assert memory_holds(server.process.pid, secret.encode())
        assert not memory_holds(fork_server, secret.encode())
        assert not memory_holds(waiting, secret.encode())
