"""Configuration and rules of Prometheus and Alertmanager, as their own tools read and evaluate them."""

import json
import re
import shutil
import subprocess
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from tests.conftest import REPOSITORY

PROMETHEUS = REPOSITORY / "deploy" / "prometheus"
ALERTMANAGER = REPOSITORY / "deploy" / "alertmanager.example.yml"
RULES = [*sorted(PROMETHEUS.glob("rules/*.yml")), *sorted(PROMETHEUS.glob("gpu/*.yml"))]
Test = dict[str, Any]
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
        {'process_start_time_seconds{job="limelight"}': "0x4 1x9 2x9 3x99"},
    ),
    Pin("LimelightNotReady", 5, {"limelight_ready": "0x240"}, {"limelight_ready": "0x3 1 0x4 1 0x4 1 0x4 1x240"}),
    Pin("LimelightReloadFailed", 1, reload(0, 100), reload(0, 0)),
    Pin("LimelightReloadFailed", 1, reload(0, 1), reload(1, 100)),
    Pin("LimelightSlow", 6, latency(51), latency(49)),
    Pin(
        "LimelightSlow",
        6,
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
    Pin(  # the provider is not known before the bundle is loaded
        "LimelightOnCpu",
        1,
        {'limelight_model_info{provider="CPUExecutionProvider"}': "1x240"},
        {"limelight_model_info": "1x240"},
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
        Pin("LimelightMonitoringFails", 36, {series: "0+1x240"}, {series: "0x20 1x240"})
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


@dataclass(frozen=True)
class Scenario:
    """Series, and the alerts that fire on them.

    Attributes:
        name: What happens; promtool's messages contain it as a comment.
        series: The series, in promtool's notation.
        firing: The alerts that fire at a time, by time, without the prefix ``Limelight``.
        interval: Between two values of a series.
    """

    name: str
    series: Mapping[str, str]
    firing: Mapping[str, Collection[str]]
    interval: str = "5s"

    def case(self) -> Test:
        fire = f'group by (alertname) (ALERTS{{alertstate="firing"}}) # {self.name}'
        expected = {
            time: [{"labels": f'{{alertname="Limelight{alert}"}}', "value": 1} for alert in alerts]
            for time, alerts in self.firing.items()
        }
        return case(self.series, [sample(fire, time, alerts) for time, alerts in expected.items()], self.interval)


def case(series: Mapping[str, str], expectations: Sequence[Test], interval: str) -> Test:
    """Return a test of promtool: series, and the expressions that are evaluated on them."""
    input_series = [{"series": name, "values": values} for name, values in series.items()]
    return {"interval": interval, "input_series": input_series, "promql_expr_test": expectations}


def sample(expression: str, time: str, samples: Sequence[Test] = ()) -> Test:
    return {"expr": expression, "eval_time": time, "exp_samples": samples}


def evaluate(promtool: str, folder: Path, tests: Iterable[Test], interval: str = "1m") -> None:
    """Let promtool evaluate the rules at this interval, in one process for all tests."""
    file = folder / "test.json"  # JSON is YAML, too
    content = {"rule_files": [*map(str, RULES)], "evaluation_interval": interval, "tests": [*tests]}
    assert content["tests"]
    file.write_text(json.dumps(content), encoding="utf-8")
    accepted(promtool, "test", "rules", file)


def firing(alert: str, time: str, number: int) -> Test:
    """Expect that so many alerts of this name fire at a time, or have fired until then if it is none."""
    of = f'ALERTS{{alertname="{alert}",alertstate="firing"}}'
    if number == 0:
        return sample(f"count_over_time({of}[1d])", time)
    return sample(f"count({of})", time, [{"labels": "{}", "value": number}])


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


def test_alerts_fire_beyond_their_thresholds_and_after_their_times(promtool: str, tmp_path: Path) -> None:
    def bad(pin: Pin) -> Test:
        early, then, later = (f"{minute}m" for minute in (pin.minute - 1, pin.minute, pin.minute + 30))
        fires = [firing(pin.alert, early, 0), firing(pin.alert, then, 1), firing(pin.alert, later, 1)]
        return case(pin.bad, fires[:2] if pin.alert == "LimelightCrashLoop" else fires, "1m")

    evaluate(promtool, tmp_path, map(bad, PINS))


def test_alerts_do_not_fire_within_their_thresholds(promtool: str, tmp_path: Path) -> None:
    evaluate(promtool, tmp_path, (case(pin.good, [firing(pin.alert, "75m", 0)], "1m") for pin in PINS))


def test_no_alert_is_raised_for_what_was_never_scraped(promtool: str, tmp_path: Path) -> None:
    scraped: list[dict[str, str]] = [
        {},
        {'up{job="prometheus"}': "1x240", "prometheus_notifications_dropped_total": "0x240"},
        up("limelight", "1x240"),  # behind an ingress of one's own
        up("gateway", "1x240"),  # replicas that another Prometheus watches
        up("gateway-exporter", "1x240"),
        passed_on("200", 0, noise={}),  # no request so far
        {'limelight_gateway_requests_total{status="503",source="gateway",route="prediction"}': "0x240"},
    ]

    raised = "count_over_time(ALERTS[1d])"
    evaluate(promtool, tmp_path, (case(series, [sample(raised, "75m")], "1m") for series in scraped))


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
    "two updates within ten minutes, with new addresses": up(
        "limelight", *["1x400 stale"] * 3, *["_x395 1x120 stale"] * 3, *["_x512 1x700"] * 3
    ),
    "two updates within ten minutes, each of which stops everything first": up(
        "limelight", *["1x400 stale"] * 3, *["_x405 1x120 stale"] * 3, *["_x532 1x700"] * 3
    ),
    "more replicas for ten minutes": up("limelight", *["1x1200"] * 2, *["_x400 1x120 stale"] * 4),
    "more replicas, and an update soon after": up(
        "limelight", *["1x500 stale"] * 2, *["_x400 1x100 stale"] * 4, *["_x495 1x700"] * 6
    ),
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


def test_no_alert_fires_for_what_is_ordinary(promtool: str, tmp_path: Path) -> None:
    def ordinary(name: str, series: Mapping[str, str]) -> Test:
        fired = f'count_over_time(ALERTS{{alertstate="firing"}}[1d]) # {name}'
        return case(series, [sample(fired, "100m")], "5s")

    evaluate(promtool, tmp_path, (ordinary(*item) for item in ORDINARY.items()), "30s")


@pytest.mark.parametrize("gone", ["0x4", "stale _x3"], ids=["does not answer", "is not found"])
def test_a_gateway_that_flaps_raises_an_alert_while_it_does(promtool: str, tmp_path: Path, gone: str) -> None:
    series = up("gateway", f"1x5 {gone} " * 40)
    fires = [firing("LimelightGatewayFlaps", time, 1) for time in ("4m", "10m", "30m")]

    evaluate(promtool, tmp_path, [case(series, fires, "5s")], "5s")


def test_a_gateway_that_is_gone_for_good_is_forgotten_after_a_week(promtool: str, tmp_path: Path) -> None:
    fires = firing("LimelightGatewayDown", "166h", 1)

    evaluate(promtool, tmp_path, [case(up("gateway", "1 stale"), [fires, sample("ALERTS", "170h")], "1h")], "1h")


def every(minutes: int, first: int = 5) -> str:
    """Return a counter that grows by one every so many minutes, with a value a minute."""
    return f"0x{first - 1} " + " ".join(f"{count}x{minutes - 1}" for count in range(1, 120 // minutes))


def at(*minutes: int, alerts: Collection[str] = ()) -> dict[str, Collection[str]]:
    return {f"{minute}m": alerts for minute in minutes}


LATE = range(40, 111, 5)  # minutes
FAILED = 'limelight_request_seconds_count{job="limelight",instance="a:8000",status="500"}'
ANSWERED = 'limelight_request_seconds_count{job="limelight",instance="a:8000",status="200"}'
REFUSED = 'limelight_request_seconds_count{job="limelight",instance="a:8000",status="429"}'
CRASHED = 'limelight_decoder_failures_total{job="limelight",instance="a:8000",reason="%s"}'
BEGUN = 'limelight_stage_seconds_count{job="limelight",instance="a:8000",stage="decode_wait"}'
BUCKET = 'limelight_request_seconds_bucket{job="limelight",instance="a:8000",status="200",le="%s"}'
PASSED_ON = 'limelight_gateway_requests_total{job="gateway-exporter",route="prediction",source="%s",status="%s"}'


def sparse(minutes: int) -> Iterator[Scenario]:
    """Yield what may happen to a service that gets a request every few minutes."""
    often = f"once in {minutes} minutes"
    bad, twice = every(minutes), every(minutes // 2, 5 + minutes // 4)
    series = {
        "Errors": ({FAILED: bad}, {FAILED: bad, ANSWERED: twice}),
        "Slow": (
            {BUCKET % "20.0": "0x120", BUCKET % "30.0": bad, BUCKET % "+Inf": bad},
            {
                BUCKET % "10.0": "0x120",
                BUCKET % "300.0": bad,
                BUCKET % "+Inf": bad,
                BUCKET.replace("a:", "b:") % "10.0": twice,
                BUCKET.replace("a:", "b:") % "+Inf": twice,
            },
        ),
        "Rejections": ({REFUSED: bad}, {REFUSED: bad, ANSWERED: twice}),
        "DecodersFail": (
            {CRASHED % "decoder_crashed": bad},
            {CRASHED % "decode_timeout": bad, BEGUN: twice, CRASHED % "decoder_fault": "0x120"},
        ),
        "GatewayErrors": (
            {PASSED_ON % ("gateway", "502"): bad},
            {PASSED_ON % ("gateway", "503"): bad, PASSED_ON % ("replica", "200"): twice},
        ),
        "GatewayRejections": (
            {PASSED_ON % ("gateway", "429"): bad},
            {PASSED_ON % ("gateway", "429"): bad, PASSED_ON % ("replica", "200"): twice},
        ),
    }
    for alert, (all_of_them, some) in series.items():
        yield Scenario(f"{alert} {often}", all_of_them, at(*LATE, alerts=[alert]), "1m")
        yield Scenario(f"{alert} {often}, between good answers", some, at(*LATE, alerts=[alert]), "1m")


def test_alerts_fire_on_a_quiet_service_and_stay(promtool: str, tmp_path: Path) -> None:
    evaluate(promtool, tmp_path, (scenario.case() for minutes in (10, 20) for scenario in sparse(minutes)))


def bursts() -> Iterator[Scenario]:
    """Yield what may happen between the first two scrapes of a replica; then nobody sends requests."""

    def stay(*alerts: str) -> dict[str, Collection[str]]:
        return at(13, 20, 30, 45, alerts=alerts)

    def once(count: int) -> str:
        return f"0x6 {count}x42"

    yield Scenario("200 errors", {FAILED: once(200)}, at(6) | stay("Errors"), "1m")
    yield Scenario("200 errors of 400", {FAILED: once(200), ANSWERED: once(200)}, stay("Errors"), "1m")
    yield Scenario("one error", {FAILED: once(1), ANSWERED: "0x48"}, stay(), "1m")
    yield Scenario("one slow answer", {BUCKET % "10.0": "0x48", BUCKET % "+Inf": once(1)}, stay(), "1m")
    refused = {REFUSED: once(40), ANSWERED: once(17), PASSED_ON % ("gateway", "429"): once(40)}
    yield Scenario("clients that ask again later", refused, stay(), "1m")
    unanswered = {PASSED_ON % ("gateway", "502"): once(40), PASSED_ON % ("replica", "200"): once(40)}
    yield Scenario("a gateway without replicas", unanswered, stay("GatewayErrors"), "1m")
    for reason in ("decoder_crashed", "decoder_fault", "decode_timeout"):
        fail = {CRASHED % reason: once(40), CRASHED % "corrupt_clip": once(40)}
        yield Scenario(f"40 × {reason}", fail, stay("DecodersFail"), "1m")
        yield Scenario(f"40 × {reason} of 400", {**fail, BEGUN: once(400)}, stay("DecodersFail"), "1m")
    yield Scenario("40 clips at fault", {CRASHED % "corrupt_clip": once(40), BEGUN: once(40)}, stay(), "1m")


def test_alerts_fire_on_a_burst_that_is_the_first(promtool: str, tmp_path: Path) -> None:
    evaluate(promtool, tmp_path, (scenario.case() for scenario in bursts()))


def loops() -> Iterator[Scenario]:
    """Yield replicas that crash again and again, in the ways in which Prometheus may see it; a value each 5 s."""
    during = {"9m30s": ["CrashLoop"], **at(11, 14, 18, alerts=["CrashLoop"])}
    for up_s, gone_s in ((30, 25), (10, 10), (120, 55), (120, 60)):
        alive, gone, times = up_s // 5, gone_s // 5, 1200 // (up_s + gone_s)
        name = f"{up_s} s up, {gone_s} s gone"
        static, found = f"1x{alive - 1} 0x{gone - 1} " * times, f"1x{alive - 1} stale _x{gone - 1} " * times
        starts = " ".join(f"{number}x{alive - 1} _x{gone - 1}" for number in range(times))
        started = {'process_start_time_seconds{job="limelight",instance="0"}': starts}
        yield Scenario(f"{name}: does not answer", up("limelight", static), during)
        yield Scenario(f"{name}: is not found", up("limelight", found), during)
        yield Scenario(f"{name}: start times alone", started, during)
        yield Scenario(f"{name}: everything", up("limelight", static) | started, during)
        yield Scenario(f"{name}: one of three", up("limelight", found, "1x240", "1x240"), during)
        addresses = [f"_x{number * (alive + gone)} " * bool(number) + f"1x{alive - 1} stale" for number in range(times)]
        yield Scenario(f"{name}: under new addresses", up("limelight", "1x240", *addresses), during)
    slow = [f"_x{number * 48} " * bool(number) + "1x46 stale" for number in range(10)]
    late = at(28, 32, 36, alerts=["CrashLoop"])
    yield Scenario("one of five every four minutes: under new addresses", up("limelight", *["1x480"] * 4, *slow), late)


def test_an_alert_fires_while_a_replica_crashes_again_and_again(promtool: str, tmp_path: Path) -> None:
    evaluate(promtool, tmp_path, (scenario.case() for scenario in loops()), "15s")


def losses() -> Iterator[Scenario]:
    """Yield replicas that are gone for good; a value each four minutes."""
    missing = ["ReplicaMissing"]
    for minutes in (12, 120, 1440):
        before = f"1x{minutes // 4 - 1}"
        after = at(*(minutes + later for later in (12, 92, 360, 1800)), alerts=missing) | at(minutes - 4)
        for gone in ("stale", "0x480") if minutes == 12 else ("stale",):
            yield Scenario(f"gone after {minutes} minutes", up("limelight", "1x850", f"{before} {gone}"), after, "4m")
    late = at(80, 356, alerts=missing) | at(364, 420)
    yield Scenario("back after five hours", up("limelight", "1x200", "1x14 stale _x74 1x100"), late, "4m")
    yield Scenario("another one after five hours", up("limelight", "1x200", "1x14 stale", "_x90 1x100"), late, "4m")
    two = up("limelight", "1x200", "1x14 stale", "1x29 stale")
    yield Scenario("two, one after the other", two, at(80, 116, 124, 600, alerts=missing), "4m")
    everything = up("limelight", "1x14 stale", "1x14 0x5 stale")
    yield Scenario("all of them", everything, at(80, 600, alerts=["Down", *missing]), "4m")


@pytest.mark.ci
def test_an_alert_fires_until_the_number_of_replicas_is_back(promtool: str, tmp_path: Path) -> None:
    evaluate(promtool, tmp_path, (scenario.case() for scenario in losses()), "4m")


# What has to fire on the series of each file of shared/rules, and when.
SHARED: Mapping[str, Mapping[str, Collection[str]]] = {
    "crash_loop": at(10, 13, 16, alerts=["CrashLoop"]),
    "first_burst": at(15, 30, 55, alerts=["DecodersFail"]) | at(4),
    "quiet_night": at(*range(0, 480, 20)),
    "replica_gone": at(13, 60, 100, 115, alerts=["ReplicaMissing"]) | at(9),
    "sparse_failures": at(*range(30, 95, 5), alerts=["Errors"]) | at(4, 14),
    "sparse_slow": at(*range(40, 100, 5), alerts=["Slow"]) | at(19),
}


def test_alerts_fire_as_the_shared_scenarios_ask(promtool: str, tmp_path: Path, shared: Path) -> None:
    def shown(name: str) -> Test:
        content = yaml.safe_load((shared / "rules" / f"{name}.yml").read_text(encoding="utf-8"))
        series = {of["series"]: of["values"] for of in content["input_series"]}
        return Scenario(name, series, SHARED[name], content["interval"]).case()

    evaluate(promtool, tmp_path, map(shown, SHARED), "30s")


def test_alertmanager_accepts_the_example_of_its_configuration(amtool: str) -> None:
    accepted(amtool, "check-config", ALERTMANAGER)


def test_the_example_for_alertmanager_names_alerts_that_exist() -> None:
    assert {*re.findall(r"Limelight\w+", ALERTMANAGER.read_text(encoding="utf-8"))} <= {*ALERTS}
