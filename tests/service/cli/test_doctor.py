"""The doctor's findings. Only what would keep the service from working is an error."""

import re
import resource
import socket
from collections.abc import Iterator
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any

import pytest

from service.cgroup import MemoryLimit
from service.cli import doctor
from service.cli.doctor import Finding, Verdict, examine
from service.settings import COMPOSE_VARIABLES, Settings
from tests.conftest import REPOSITORY
from tests.tiny_bundle import write_tiny_bundle

# What Kubernetes sets for a Service `limelight` and for one named `limelight-metrics`.
KUBERNETES = {
    f"{name}_{suffix}": value
    for name in ("LIMELIGHT", "LIMELIGHT_METRICS")
    for suffix, value in {
        "PORT": "tcp://10.96.12.7:8000",
        "SERVICE_HOST": "10.96.12.7",
        "SERVICE_PORT": "8000",
        "SERVICE_PORT_HTTP": "8000",
        "PORT_8000_TCP": "tcp://10.96.12.7:8000",
        "PORT_8000_TCP_PROTO": "tcp",
        "PORT_8000_TCP_PORT": "8000",
        "PORT_8000_TCP_ADDR": "10.96.12.7",
    }.items()
}


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
    settings = Settings(bundle=tmp_path, port=0, decode_timeout_s=0.001)
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


class TestMemory:
    GIB = 2**30

    @pytest.fixture(autouse=True)
    def _large_machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(doctor, "_free_on_machine", lambda: 64 * self.GIB)

    def examined(self, monkeypatch: pytest.MonkeyPatch, *limits: MemoryLimit, **settings: Any) -> Finding:
        monkeypatch.setattr(doctor, "memory_limits", lambda: list(limits))
        (found,) = findings(
            Settings(port=0, **{"decode_workers": 2, "upload_memory_bytes": self.GIB} | settings), "memory"
        )
        return found

    def test_without_a_limit_the_machine_counts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = self.examined(monkeypatch)

        assert (found.verdict, found.found) == (Verdict.GOOD, "64.0 GiB available")

    @pytest.mark.parametrize("file", ["memory.max", "memory.limit_in_bytes"])
    def test_a_limit_that_is_too_small_is_a_warning_that_names_it(
        self, monkeypatch: pytest.MonkeyPatch, file: str
    ) -> None:
        limit = MemoryLimit(Path("/sys/fs/cgroup", file), 2 * self.GIB, self.GIB // 2)
        found = self.examined(monkeypatch, limit)

        assert found.verdict is Verdict.POOR
        assert found.found == f"1.5 GiB available within the limit of 2.0 GiB in /sys/fs/cgroup/{file}"
        assert "may take 2.5 GiB" in found.remedy
        assert "LIMELIGHT_UPLOAD_MEMORY_BYTES" in found.remedy

    def test_settings_that_fit_into_the_limit_are_good(self, monkeypatch: pytest.MonkeyPatch) -> None:
        limit = MemoryLimit(Path("memory.max"), 2 * self.GIB, 0)
        found = self.examined(monkeypatch, limit, decode_workers=1, upload_memory_bytes=self.GIB // 4)

        assert found.verdict is Verdict.GOOD
        assert not found.remedy

    def test_a_group_above_may_be_fuller_than_the_one_with_the_least_limit(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        below = MemoryLimit(Path("below/memory.max"), 4 * self.GIB, 0)
        above = MemoryLimit(Path("memory.max"), 8 * self.GIB, 7 * self.GIB)

        assert self.examined(monkeypatch, below, above).found.startswith("1.0 GiB available")


def test_a_request_limit_below_one_clip_of_the_protocol_is_a_warning(tiny_bundle: Path) -> None:
    (found,) = findings(Settings(bundle=tiny_bundle, device="cpu", port=0, max_body_bytes=1000), "request size")

    assert found.verdict is Verdict.POOR
    assert f"LIMELIGHT_MAX_BODY_BYTES above {40 * 224 * 224 * 3}" in found.remedy


@pytest.mark.parametrize(
    ("settings", "verdict", "told", "remedy"),
    [
        ({}, Verdict.GOOD, "none: open to everybody", ""),
        ({"api_keys": "a" * 16 + "," + "b" * 16}, Verdict.GOOD, "2", ""),
        ({"host": "0.0.0.0"}, Verdict.POOR, "none: open to everybody", "LIMELIGHT_API_KEYS_FILE"),
        ({"host": "0.0.0.0", "unix_socket": "/run/x"}, Verdict.GOOD, "none: open to everybody", ""),
        ({"api_keys": "short"}, Verdict.POOR, "1, of which one is shorter than 16 characters", "openssl"),
        ({"api_keys": f'"{"a" * 32}"'}, Verdict.POOR, "1, of which one is in quotes", "without quotes"),
    ],
)
def test_the_number_of_api_keys_is_told(settings: dict[str, Any], verdict: Verdict, told: str, remedy: str) -> None:
    (found,) = findings(Settings(**settings), "API keys")

    assert (found.verdict, found.found) == (verdict, told)
    assert remedy in found.remedy


class TestSettings:
    @pytest.mark.parametrize(
        ("settings", "named"),
        [
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

    def test_variables_that_kubernetes_sets_are_not_misspelt_settings(self, tmp_path: Path) -> None:
        (found,) = findings(Settings(bundle=tmp_path), "settings", **KUBERNETES)

        assert found.found == "no conflicts"

    def test_a_setting_that_resembles_a_variable_of_kubernetes_is_found(self, tmp_path: Path) -> None:
        (found,) = findings(Settings(bundle=tmp_path), "settings", LIMELIGHT_HTTP_PORT="9000", LIMELIGHT_PORTS="1")

        assert found.found == "LIMELIGHT_HTTP_PORT, LIMELIGHT_PORTS: no such setting"

    @pytest.mark.parametrize(("threads", "decode_workers"), [(2, 1), (0, 2)])
    def test_more_threads_or_decoders_than_the_quota_allows_are_a_warning(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int, decode_workers: int
    ) -> None:
        monkeypatch.setattr(doctor, "processors", lambda: 0.5)
        settings = Settings(bundle=tmp_path, threads=threads, decode_workers=decode_workers)
        (found,) = findings(settings, "settings")

        assert "more threads or decoders than processors (0.5 by affinity and CPU quota)" in found.found
        assert "LIMELIGHT_THREADS" in found.remedy

    @pytest.mark.parametrize("name", sorted(COMPOSE_VARIABLES))
    def test_a_variable_of_compose_belongs_into_its_own_file(self, tmp_path: Path, name: str) -> None:
        (found,) = findings(Settings(bundle=tmp_path), "settings", **{name: "3-secret"})

        assert found.verdict is Verdict.POOR
        assert found.found == f"{name} is a variable of Compose and has no effect on the service"
        assert ".env beside docker-compose.yml" in found.remedy
        assert "secret" not in found.remedy

    def test_the_port_of_a_kubernetes_service_named_gateway_is_not_composes(self, tmp_path: Path) -> None:
        (found,) = findings(Settings(bundle=tmp_path), "settings", GATEWAY_PORT="tcp://10.96.12.7:80")

        assert found.found == "no conflicts"

    def test_the_variables_of_compose_are_those_of_its_files(self) -> None:
        texts = [file.read_text(encoding="utf-8") for file in REPOSITORY.glob("docker-compose*.yml")]
        used = {name for text in texts for name in re.findall(r"(?<!\$)\$\{?([A-Z_]+)", text)}

        assert used
        assert used <= COMPOSE_VARIABLES

    def test_the_defaults_have_no_conflicts(self, tmp_path: Path) -> None:
        (found,) = findings(Settings(bundle=tmp_path), "settings", PATH="/bin", LIMELIGHT_BUNDLE="x")

        assert found.verdict is Verdict.GOOD
