"""Configuration and rules of Prometheus and Alertmanager, as their own tools read and evaluate them."""

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PROMETHEUS = REPOSITORY / "deploy" / "prometheus"
ALERTMANAGER = REPOSITORY / "deploy" / "alertmanager.example.yml"
RULES = [*sorted(PROMETHEUS.glob("rules/*.yml")), *sorted(PROMETHEUS.glob("gpu/*.yml"))]
ALERTS = re.findall(r"- alert: (\w+)", "".join(file.read_text(encoding="utf-8") for file in RULES))


@dataclass(frozen=True)
class Pin:
    """Series on both sides of an alert's threshold, in promtool's notation, with a value a minute.

    Attributes:
        alert: The alert's name.
        minute: When it fires on ``bad``; a minute earlier it does not yet.
        bad: Series just beyond the threshold.
        good: Series just within the threshold, with others that do not matter.
    """

    alert: str
    minute: int
    bad: Mapping[str, str]
    good: Mapping[str, str]


def up(job: str, *instances: str) -> dict[str, str]:
    return {f'up{{job="{job}",instance="{number}"}}': values for number, values in enumerate(instances)}


def latency(slow: int) -> dict[str, str]:
    """Return the answers of a service of which ``slow`` in a thousand take 10 to 15 s, the others 5 to 10."""
    name = 'limelight_request_seconds_bucket{status="200",le="%s"}'
    counts = {"5": 0, "10": 1000 - slow, "15": 1000, "+Inf": 1000}
    # Other answers do not count.
    return {name % bound: f"0+{count}x240" for bound, count in counts.items()} | {
        'limelight_request_seconds_bucket{status="429",le="5"}': "0+9000x240",
        'limelight_request_seconds_bucket{status="429",le="+Inf"}': "0+9000x240",
    }


def answers(status: str, share: int, **more: int) -> dict[str, str]:
    """Return the answers of a service of which ``share`` in a thousand have this status, and ``more`` a minute."""
    counts = {status: share, "200": 1000 - share} | {name.removeprefix("s"): count for name, count in more.items()}
    return {f'limelight_request_seconds_count{{status="{status}"}}': f"0+{n}x240" for status, n in counts.items()}


def passed_on(status: str, share: int, *, noise: Mapping[tuple[str, str, str], int]) -> dict[str, str]:
    """Return the same of the gateway's answers to predictions; ``noise`` has others, by status, source and route."""
    name = 'limelight_gateway_requests_total{status="%s",source="%s",route="%s"}'
    counts = {(status, "gateway", "prediction"): share, ("200", "replica", "prediction"): 1000 - share, **noise}
    return {name % labels: f"0+{count}x240" for labels, count in counts.items()}


def decoders(reason: str, share: int) -> dict[str, str]:
    return {
        f'limelight_decoder_failures_total{{reason="{reason}"}}': f"0+{share}x240",
        'limelight_decoder_failures_total{reason="corrupt_clip"}': "0+900x240",  # the sender's fault
        'limelight_stage_seconds_count{stage="decode_wait"}': "0+1000x240",
        'limelight_stage_seconds_count{stage="decode"}': "0+100x240",
    }


def fullness(admitted: int) -> dict[str, str]:
    return {
        'limelight_admitted_clips{instance="a"}': f"{admitted}x240",
        'limelight_capacity_clips{instance="a"}': "100x240",
    }


def reload(successful: int, timestamp: int) -> dict[str, str]:
    return {
        "limelight_last_reload_successful": f"{successful}x240",
        "limelight_last_reload_success_timestamp_seconds": f"{timestamp}x240",
    }


FLAWS_OF_OTHERS = {
    ("503", "gateway", "other"): 900,  # probes
    ("503", "replica", "prediction"): 0,  # counted by the replica
    ("413", "gateway", "prediction"): 0,
    ("501", "gateway", "prediction"): 900,  # any client can cause it
    ("429", "gateway", "prediction"): 90_000,
    ("499", "gateway", "prediction"): 90_000,
}
PINS = [
    Pin("LimelightDown", 8, up("limelight", "1x5 0x200", "1x5 stale"), up("limelight", "0x240", "1x240")),
    Pin("LimelightDown", 2, up("limelight", "0x240"), up("limelight", "1x5 0x1 1x300")),
    Pin(
        "LimelightReplicaMissing",
        8,
        up("limelight", "1x1500", "1x5 stale"),
        up("limelight", "1x240", "_x100 1x28 stale"),
    ),
    Pin("LimelightReplicaMissing", 7, up("limelight", "1x1500", "1x4 0x1500"), up("limelight", "1x240", "1x4 0 1x240")),
    Pin(
        "LimelightCrashLoop",
        6,
        {'process_start_time_seconds{job="limelight"}': "0x1 2x1 4x1 6x240"},
        {'process_start_time_seconds{job="limelight"}': "0x4 5x4 10x4 15x4 20x4 25x4 30x4 35x4 40x99"},
    ),
    Pin("LimelightNotReady", 5, {"limelight_ready": "0x240"}, {"limelight_ready": "0x3 1 0x4 1 0x4 1 0x4 1x240"}),
    Pin("LimelightReloadFailed", 1, reload(0, 100), reload(0, 0)),
    Pin("LimelightReloadFailed", 1, reload(0, 1), reload(1, 100)),
    Pin("LimelightSlow", 21, latency(51), latency(49)),
    Pin(
        "LimelightSlow",
        21,
        latency(60),
        {  # a single slow answer in a night
            'limelight_request_seconds_bucket{status="200",le="10"}': "0x240",
            'limelight_request_seconds_bucket{status="200",le="30"}': "0x20 1x220",
            'limelight_request_seconds_bucket{status="200",le="+Inf"}': "0x20 1x220",
        },
    ),
    Pin("LimelightErrors", 6, answers("500", 11, s499=90_000), answers("500", 9, s499=90_000, s429=500)),
    Pin("LimelightErrors", 6, answers("503", 11), {'limelight_request_seconds_count{status="500"}': "0x20 1x220"}),
    Pin("LimelightErrors", 6, answers("504", 11), answers("422", 900)),
    Pin("LimelightRejections", 6, answers("429", 51, s499=90_000), answers("429", 49)),
    Pin("LimelightQueueNearFull", 2, fullness(81), fullness(80)),
    Pin("LimelightDecodersFail", 6, decoders("decoder_crashed", 51), decoders("decoder_crashed", 49)),
    Pin("LimelightDecodersFail", 6, decoders("decoder_fault", 51), decoders("decoder_fault", 49)),
    Pin("LimelightDecodersFail", 6, decoders("decode_timeout", 51), decoders("decode_timeout", 49)),
    Pin("LimelightSandboxIncomplete", 1, {"limelight_sandbox": "0x240"}, {"limelight_sandbox": "1x240"}),
    Pin(
        "LimelightOnCpu",
        1,
        {'limelight_model_info{provider="CPUExecutionProvider"}': "1x240"},
        {'limelight_model_info{provider="CUDAExecutionProvider"}': "1x240"},
    ),
    Pin("LimelightGatewayDown", 8, up("gateway", "1x5 stale"), up("gateway", "1x5 0x1 1x240")),
    Pin("LimelightGatewayDown", 2, up("gateway", "0x240"), up("gateway", "1x5 stale", "_x6 1x240")),
    *(
        Pin("LimelightGatewayFlaps", 6, up(job, "1 0 1 0 1 " + "0 1 " * 60), up(job, "1 0 1 0 1x9 " * 20))
        for job in ("gateway", "gateway-exporter")
    ),
    Pin(
        "LimelightGatewayErrors",
        6,
        passed_on("503", 11, noise={("429", "gateway", "prediction"): 90_000, ("499", "gateway", "prediction"): 900}),
        passed_on("503", 9, noise=FLAWS_OF_OTHERS),
    ),
    Pin("LimelightGatewayErrors", 6, passed_on("502", 11, noise={}), passed_on("404", 900, noise={})),
    Pin("LimelightGatewayErrors", 6, passed_on("504", 11, noise={}), passed_on("413", 900, noise={})),
    Pin(
        "LimelightGatewayErrors",
        6,
        passed_on("500", 11, noise={}),
        {'limelight_gateway_requests_total{status="503",source="gateway",route="prediction"}': "0x20 1x220"},
    ),
    Pin(
        "LimelightGatewayRejections",
        6,
        passed_on("429", 51, noise={("499", "gateway", "prediction"): 90_000}),
        passed_on("429", 49, noise={("429", "replica", "prediction"): 0, ("429", "gateway", "other"): 900}),
    ),
    Pin("LimelightGatewayUncounted", 11, up("gateway-exporter", "1x5 stale"), up("gateway-exporter", "1x5 0x3 1x240")),
    *(
        Pin("LimelightMonitoringFails", 21, {series: "0+1x240"}, {series: "0x20 1x240"})
        for series in (
            'prometheus_rule_evaluation_failures_total{rule_group="a"}',
            "prometheus_notifications_dropped_total",
            "prometheus_tsdb_compactions_failed_total",
            "prometheus_tsdb_wal_writes_failed_total",
        )
    ),
]


@pytest.fixture(scope="session")
def promtool() -> str:
    if (program := shutil.which("promtool")) is None:
        pytest.skip("needs promtool (Debian: prometheus)")
    return program


@pytest.fixture(scope="session")
def amtool() -> str:
    if (program := shutil.which("amtool")) is None:
        pytest.skip("needs amtool (Debian: prometheus-alertmanager)")
    return program


def accepted(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def evaluate(
    promtool: str,
    folder: Path,
    series: Mapping[str, str],
    expectations: list[dict[str, object]],
    interval: str = "1m",
) -> None:
    """Run promtool: each expectation is an expression, a time, and the samples that it has to have."""
    file = folder / "test.json"  # JSON is YAML, too
    test = {
        "interval": interval,
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": expectations,
    }
    file.write_text(
        json.dumps({"rule_files": [str(rule) for rule in RULES], "evaluation_interval": interval, "tests": [test]}),
        encoding="utf-8",
    )
    accepted(promtool, "test", "rules", file)


def firing(alert: str, time: str, number: int) -> dict[str, object]:
    """Expect that so many alerts of this name fire at a time, or have fired until then if it is none."""
    of = f'ALERTS{{alertname="{alert}",alertstate="firing"}}'
    if number == 0:
        return {"expr": f"count_over_time({of}[1d])", "eval_time": time, "exp_samples": []}
    return {"expr": f"count({of})", "eval_time": time, "exp_samples": [{"labels": "{}", "value": number}]}


def test_prometheus_accepts_its_configuration(promtool: str) -> None:
    accepted(promtool, "check", "config", PROMETHEUS / "prometheus.yml")


@pytest.mark.parametrize("file", RULES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_prometheus_accepts_the_rules(promtool: str, file: Path) -> None:
    accepted(promtool, "check", "rules", file)


@pytest.mark.parametrize("file", sorted(PROMETHEUS.glob("tests/*.yml")), ids=lambda file: file.name)
def test_the_rules_pass_their_own_tests(promtool: str, file: Path) -> None:
    accepted(promtool, "test", "rules", file)


def test_every_alert_is_pinned() -> None:
    assert {pin.alert for pin in PINS} == {*ALERTS}


@pytest.mark.parametrize("pin", PINS, ids=lambda pin: pin.alert)
def test_an_alert_fires_beyond_its_threshold_and_after_its_time(promtool: str, tmp_path: Path, pin: Pin) -> None:
    early, then, later = (f"{minute}m" for minute in (pin.minute - 1, pin.minute, pin.minute + 60))
    evaluate(
        promtool,
        tmp_path,
        pin.bad,
        [firing(pin.alert, early, 0), firing(pin.alert, then, 1)]
        + ([firing(pin.alert, later, 1)] if pin.alert != "LimelightCrashLoop" else []),
    )


@pytest.mark.parametrize("pin", PINS, ids=lambda pin: pin.alert)
def test_an_alert_does_not_fire_within_its_threshold(promtool: str, tmp_path: Path, pin: Pin) -> None:
    evaluate(promtool, tmp_path, pin.good, [firing(pin.alert, "150m", 0)])


@pytest.mark.parametrize(
    "series",
    [
        {},
        {'up{job="prometheus"}': "1x240", "prometheus_notifications_dropped_total": "0x240"},
        up("limelight", "1x240"),  # behind an ingress of one's own
        up("gateway", "1x240"),  # replicas that another Prometheus watches
        up("gateway-exporter", "1x240"),
        passed_on("200", 0, noise={}),  # no request so far
        {'limelight_gateway_requests_total{status="503",source="gateway",route="prediction"}': "0x240"},
    ],
    ids=["nothing", "Prometheus", "replicas", "gateway", "exporter", "good answers", "no answers"],
)
def test_no_alert_is_raised_for_what_was_never_scraped(
    promtool: str, tmp_path: Path, series: Mapping[str, str]
) -> None:
    evaluate(
        promtool, tmp_path, series, [{"expr": "count_over_time(ALERTS[1d])", "eval_time": "4h", "exp_samples": []}]
    )


EVERYTHING = (*up("limelight", "").keys(), *up("gateway", "").keys(), *up("gateway-exporter", "").keys())
# What happens to a service that is well: series as Prometheus scrapes them, every five seconds.
ORDINARY: dict[str, Mapping[str, str]] = {
    "scrapes that fail for a minute": dict.fromkeys(EVERYTHING, "1x400 0x12 1x800"),
    "a restart of Prometheus": {
        **dict.fromkeys(EVERYTHING, "1x400 _x24 1x800"),
        'limelight_request_seconds_count{status="200"}': "0+1x400 _x24 425+1x800",
        'process_start_time_seconds{job="limelight"}': "1x400 _x24 1x800",
    },
    "a restart of the exporter": {
        **up("gateway-exporter", "1x400 stale _x5 1x800"),
        'limelight_gateway_requests_total{status="200",source="replica",route="prediction"}': "900+1x400 _x6 0+1x800",
        'limelight_gateway_requests_total{status="503",source="gateway",route="prediction"}': "500x400 _x6 0x800",
        'limelight_gateway_requests_total{status="429",source="gateway",route="prediction"}': "500x400 _x6 0x800",
    },
    "a restart of a replica": {
        **up("limelight", "1x1200", "1x400 0x10 1x800"),
        'limelight_request_seconds_count{status="200"}': "900+1x400 _x11 0+1x800",
        'limelight_request_seconds_count{status="500"}': "90x400 _x11 0x800",
        'limelight_decoder_failures_total{reason="decoder_crashed"}': "90x400 _x11 0x800",
        'limelight_stage_seconds_count{stage="decode_wait"}': "900+1x400 _x11 0+1x800",
        'process_start_time_seconds{job="limelight",instance="1"}': "1x400 _x11 2x800",
    },
    "a rolling update": {  # each new replica gets the address of the one that left last
        **up("limelight", "1x420 0 stale _x10 1x800", "1x460 0 stale _x10 1x800", "1x500 0 stale", "_x400 1x800"),
        'limelight_ready{instance="0"}': "1x400 0x20 stale _x11 0x10 1x800",
        'limelight_ready{instance="3"}': "_x400 0x12 1x800",
        'process_start_time_seconds{job="limelight",instance="0"}': "1x420 _x12 2x800",
        'process_start_time_seconds{job="limelight",instance="1"}': "1x460 _x12 2x800",
    },
    "a reload that takes minutes": {
        **up("limelight", "1x1200"),
        "limelight_ready": "1x1200",
        "limelight_last_reload_successful": "1x1200",
        "limelight_last_reload_success_timestamp_seconds": "1x440 2x760",
        'limelight_model_info{provider="CUDAExecutionProvider",model="old"}': "1x440 stale",
        'limelight_model_info{provider="CUDAExecutionProvider",model="new"}': "_x441 1x760",
    },
    "one clip in an hour, and its decoder crashes": {
        'limelight_decoder_failures_total{reason="decoder_crashed"}': "0x400 1x800",
        'limelight_decoder_failures_total{reason="decode_timeout"}': "0x1200",
        'limelight_stage_seconds_count{stage="decode_wait"}': "0x400 1x800",
    },
}


@pytest.mark.parametrize("series", ORDINARY.values(), ids=ORDINARY.keys())
def test_no_alert_fires_for_what_is_ordinary(promtool: str, tmp_path: Path, series: Mapping[str, str]) -> None:
    fired = 'count_over_time(ALERTS{alertstate="firing"}[1d])'

    evaluate(promtool, tmp_path, series, [{"expr": fired, "eval_time": "100m", "exp_samples": []}], interval="5s")


@pytest.mark.parametrize("gone", ["0x4", "stale _x3"], ids=["does not answer", "is not found"])
def test_a_gateway_that_flaps_raises_an_alert_while_it_does(promtool: str, tmp_path: Path, gone: str) -> None:
    series = up("gateway", f"1x5 {gone} " * 40)
    fires = [firing("LimelightGatewayFlaps", time, 1) for time in ("4m", "10m", "30m")]

    evaluate(promtool, tmp_path, series, fires, interval="5s")


def test_a_gateway_that_is_gone_for_good_is_forgotten_after_a_week(promtool: str, tmp_path: Path) -> None:
    fires = firing("LimelightGatewayDown", "166h", 1)
    ended: dict[str, object] = {"expr": "ALERTS", "eval_time": "170h", "exp_samples": []}

    evaluate(promtool, tmp_path, up("gateway", "1 stale"), [fires, ended], interval="1h")


def test_alertmanager_accepts_the_example_of_its_configuration(amtool: str) -> None:
    accepted(amtool, "check-config", ALERTMANAGER)


def test_the_example_for_alertmanager_names_alerts_that_exist() -> None:
    assert {*re.findall(r"Limelight\w+", ALERTMANAGER.read_text(encoding="utf-8"))} <= {*ALERTS}
