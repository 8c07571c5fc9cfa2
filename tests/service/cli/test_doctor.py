"""The doctor's findings. Only what would keep the service from working is an error."""

import resource
import socket
from collections.abc import Iterator
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any

import pytest

from service.cli.doctor import Finding, Verdict, examine
from service.settings import Settings
from tests.tiny_bundle import write_tiny_bundle


@pytest.fixture
def port() -> Iterator[int]:
    """A port that is in use, and refuses connections."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def findings(settings: Settings, subject: str = "", **environment: str) -> list[Finding]:
    """The doctor's findings on a subject; checks that come later are not run."""
    found = dropwhile(lambda finding: not finding.subject.startswith(subject), examine(settings, environment))
    return list(takewhile(lambda finding: finding.subject.startswith(subject), found))


def test_a_good_installation_has_no_error_and_every_part_is_checked(tiny_bundle: Path) -> None:
    found = findings(Settings(bundle=tiny_bundle, device="cpu", port=0))

    assert Verdict.BAD not in {finding.verdict for finding in found}
    subjects = {finding.subject for finding in found}
    assert {"settings", "open files", "memory", "address", "decoders", "ONNX Runtime", "bundle", "network"} <= subjects
    assert {f"sandbox: {layer}" for layer in ("rlimits", "no_new_privs", "landlock", "seccomp")} <= subjects


def test_the_network_is_named_with_the_reason_for_its_precision(tiny_bundle: Path) -> None:
    (chosen,) = findings(Settings(bundle=tiny_bundle, device="cpu", port=0), "network")
    (asked,) = findings(Settings(bundle=tiny_bundle, device="cpu", precision="fp32", port=0), "network")

    assert "on CPUExecutionProvider" in chosen.found
    assert "VNNI" in chosen.found
    assert "fp32 on CPUExecutionProvider" in asked.found
    assert "set by LIMELIGHT_PRECISION" in asked.found


def test_a_missing_or_damaged_bundle_is_an_error(tmp_path: Path) -> None:
    damaged = write_tiny_bundle(tmp_path / "damaged")
    (damaged / "model.int8.onnx").write_bytes(b"?")

    (missing,) = findings(Settings(bundle=tmp_path / "none", port=0), "bundle")
    (broken,) = findings(Settings(bundle=damaged, port=0), "bundle")

    assert (missing.verdict, broken.verdict) == (Verdict.BAD, Verdict.BAD)
    assert "limelight-model export" in missing.found
    assert "model.int8.onnx is damaged" in broken.found


def test_a_network_that_cannot_run_is_an_error(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path, precisions=("fp32",))
    (found,) = findings(Settings(bundle=bundle, device="cpu", precision="int8", port=0), "network")

    assert found.verdict is Verdict.BAD
    assert "LIMELIGHT_PRECISION" in found.found


def test_an_address_in_use_is_an_error(tmp_path: Path, port: int) -> None:
    (found,) = findings(Settings(bundle=tmp_path, port=port), "address")

    assert found.verdict is Verdict.BAD
    assert "LIMELIGHT_PORT" in found.remedy


def test_a_decoder_that_cannot_decode_in_time_is_an_error(tmp_path: Path) -> None:
    settings = Settings(bundle=tmp_path, port=0, decode_timeout_s=0.0001)
    (found,) = findings(settings, "decoders")

    assert found.verdict is Verdict.BAD
    assert found.remedy


@pytest.mark.parametrize(
    ("hard_limit", "settings", "verdict", "named"),
    [
        (256, {}, Verdict.POOR, "ulimit -n"),
        (100_000, {"max_connections": 40_000}, Verdict.POOR, "LIMELIGHT_MAX_CONNECTIONS"),
        (256, {"max_connections": 10}, Verdict.GOOD, ""),
        (100_000, {}, Verdict.GOOD, ""),
        (resource.RLIM_INFINITY, {"max_connections": 40_000}, Verdict.GOOD, ""),
    ],
)
def test_open_files_have_to_suffice_for_the_connections(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    hard_limit: int,
    settings: dict[str, Any],
    verdict: Verdict,
    named: str,
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, hard_limit))
    (found,) = findings(Settings(bundle=tmp_path, port=0, decode_workers=2, **settings), "open files")

    assert found.verdict is verdict
    assert named in found.remedy


def test_a_request_limit_below_one_clip_of_the_protocol_is_a_warning(tiny_bundle: Path) -> None:
    (found,) = findings(Settings(bundle=tiny_bundle, device="cpu", port=0, max_body_bytes=1000), "request size")

    assert found.verdict is Verdict.POOR
    assert f"LIMELIGHT_MAX_BODY_BYTES above {40 * 224 * 224 * 3}" in found.remedy


class TestSettings:
    @pytest.mark.parametrize(
        ("settings", "named"),
        [
            ({"host": "0.0.0.0"}, "LIMELIGHT_API_KEYS"),
            ({"api_keys": "short"}, "openssl"),
            ({"decode_timeout_s": 60}, "LIMELIGHT_DECODE_TIMEOUT_S"),
            ({"batch_sizes": "2,4"}, "LIMELIGHT_BATCH_SIZES"),
            ({"device": "cpu", "precision": "fp16"}, "LIMELIGHT_PRECISION"),
            ({"decode_workers": 10_000}, "LIMELIGHT_DECODE_WORKERS"),
        ],
    )
    def test_conflicting_settings_are_a_warning_that_names_what_to_set(
        self, tmp_path: Path, settings: dict[str, Any], named: str
    ) -> None:
        (found,) = findings(Settings(bundle=tmp_path, **settings), "settings")

        assert found.verdict is Verdict.POOR
        assert named in found.remedy

    def test_a_misspelt_setting_is_found(self, tmp_path: Path) -> None:
        (found,) = findings(Settings(bundle=tmp_path), "settings", LIMELIGHT_MAX_QUEU="3", LIMELIGHT_MAX_QUEUE="3")

        assert found.found == "LIMELIGHT_MAX_QUEU: no such setting"

    def test_the_defaults_have_no_conflicts(self, tmp_path: Path) -> None:
        (found,) = findings(Settings(bundle=tmp_path), "settings", PATH="/bin", LIMELIGHT_BUNDLE="x")

        assert found.verdict is Verdict.GOOD
