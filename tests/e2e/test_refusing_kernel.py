"""The server under a kernel that refuses layers of the sandbox (see ``tests/refusing.py``)."""

import sys
from pathlib import Path

import httpx
import pytest

from tests.e2e.process import PATIENCE_S, running, starting

LAYERS = ("rlimits", "no_new_privs", "no_capabilities", "landlock", "seccomp")


def refusing(call: str, error: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "tests.refusing", call, error)


def test_the_server_reports_the_layer_that_is_missing_and_decodes(
    tiny_bundle: Path, tmp_path: Path, clip: bytes
) -> None:
    wrapper = (*refusing("landlock_restrict", "E2BIG"), *refusing("seccomp", "EINVAL"))
    with running(tiny_bundle, tmp_path / "log.jsonl", {}, wrapper=wrapper) as server:
        layers = {layer: server.metric("sandbox", layer=layer) for layer in LAYERS}
        answer = httpx.post(f"{server.url}/predict", content=clip, trust_env=False, timeout=PATIENCE_S)

    assert layers == {**dict.fromkeys(LAYERS, 1), "landlock": 0, "seccomp": 0}
    assert answer.status_code == 200
    assert any("the decoder sandbox lacks landlock, seccomp" in str(line["message"]) for line in server.lines())


@pytest.mark.parametrize(("call", "layer"), [("landlock", "landlock"), ("seccomp", "seccomp")])
def test_a_server_that_requires_the_sandbox_ends(tiny_bundle: Path, tmp_path: Path, call: str, layer: str) -> None:
    settings = {"REQUIRE_SANDBOX": "true"}
    wrapper = refusing(call, "EINVAL")
    with starting(tiny_bundle, tmp_path / "log.jsonl", settings, wrapper=wrapper) as server:
        assert server.process.wait(PATIENCE_S) == 2

    assert f"LIMELIGHT_REQUIRE_SANDBOX is set, but this system lacks {layer};" in server.log.read_text(encoding="utf-8")
