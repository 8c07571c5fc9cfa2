"""Rules, dashboard and documentation name series that exist, as real programs show them."""

import json
import re
import runpy
import shutil
import socket
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml  # type: ignore[import-untyped]
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import REPOSITORY
from tests.e2e.process import running
from tests.processes import until

DEPLOY = REPOSITORY / "deploy"
RULES = [
    rule
    for file in sorted(DEPLOY.glob("prometheus/[rg]*/*.yml"))
    for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
RECORDED = {rule["record"]: rule["expr"] for rule in RULES if "record" in rule}
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboards" / "limelight.json").read_text(encoding="utf-8"))
CONFIGURATION = (DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8")
DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
NOT_SERIES = {"limelight_bundles"}  # a volume
GROUPING = re.compile(r"\b(?:by|on|without|ignoring|group_left|group_right)\s*\(([^)]*)\)")
SELECTOR = re.compile(r"\b([a-zA-Z_:][\w:]*)\b\s*(?:\{([^}]*)\})?(?!\s*\()")
MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
OPERATORS = {"and", "or", "unless", "bool", "offset"}
# The values of each label of each series.
Series = dict[str, dict[str, set[str]]]


# The expressions of alerts and panels, by the alert's name or the panel's title.
USERS: list[tuple[str, str]] = [(f"`{rule['alert']}`", rule["expr"]) for rule in RULES if "alert" in rule] + [
    (f"*{panel['title']}*", target["expr"]) for panel in DASHBOARD["panels"] for target in panel.get("targets", [])
]
EXPRESSIONS = [*RECORDED.values(), *(expression for _, expression in USERS)]
# A row of a table of metrics: name, labels, unit, meaning, users.
ROW = re.compile(r"^\| `([a-z]\w+)` \| (.*?) \| (.*?) \| (.*) \| (.*) \|$", re.MULTILINE)
UNITS = {
    "_seconds": "s",
    "_bytes": "bytes",
    "_timestamp_seconds": "Unix time, s",
    "_start_time_seconds": "Unix time, s",
}


def read(text: str) -> Series:
    series: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            values = series[sample.name]
            for label, value in sample.labels.items():
                values[label].add(value)
    return {name: dict(values) for name, values in series.items()}


def of_the_gateway() -> Series:
    """Return what nginx answers on its port for Prometheus; Docker tests ask nginx itself."""
    (text,) = re.findall(r"return 200 '([^']*)'", (DEPLOY / "gateway" / "metrics.conf").read_text(encoding="utf-8"))
    return read(re.sub(r"\$\w+", "0", text))


def of_the_exporter() -> Series:
    answers = runpy.run_path(str(DEPLOY / "gateway-exporter" / "exporter.py"))["Answers"]()
    return read(generate_latest(answers.registry).decode())


def of_a_server(bundle: Path, folder: Path) -> Series:
    """Return what a server answers before its first request."""
    with running(bundle, folder / "log.jsonl", {}) as server:
        return read(httpx.get(f"{server.url}/metrics", trust_env=False).text)


def of_prometheus(folder: Path) -> Series:
    if shutil.which("prometheus") is None:
        pytest.skip("needs prometheus (Debian: prometheus)")
    (folder / "prometheus.yml").write_text(f"rule_files: ['{DEPLOY}/prometheus/rules/*.yml']", encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    process = subprocess.Popen(
        ["prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data", f"--web.listen-address={address}"],
        cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    texts: list[str] = []

    def answered() -> bool:
        assert process.poll() is None
        try:
            texts.append(httpx.get(f"http://{address}/metrics", trust_env=False).text)
        except httpx.TransportError:
            return False
        return "prometheus_rule_evaluation_failures_total" in texts[-1]  # the rules have been read

    try:
        until(answered)
    finally:
        process.kill()
        process.wait()
    return read(texts[-1])


@pytest.fixture(scope="module")
def series(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Series:
    """Every series that Prometheus has from the start, but those that rules record."""
    folder = tmp_path_factory.mktemp("series")
    return {
        "up": {},
        **of_the_gateway(),
        **of_the_exporter(),
        **of_a_server(tiny_bundle, folder),
        **of_prometheus(folder),
    }


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_names_series_and_labels_that_exist(series: Series, expression: str) -> None:
    jobs = {*re.findall(r"job_name: (\S+)", CONFIGURATION)}
    labels = {label for values in series.values() for label in values} | {"job", "instance"}
    for grouping in GROUPING.findall(expression):
        assert {*re.findall(r"\w+", grouping)} <= labels
    for name, matchers in selectors(expression):
        assert name in series or name in RECORDED
        for label, operator, pattern in MATCHER.findall(matchers):
            assert label in (series[name].keys() | {"job", "instance"} if name in series else labels)
            known = jobs if label == "job" else series.get(name, {}).get(label)
            if known and label != "provider":  # of which this machine has only one
                for alternative in filter(None, pattern.split("|") if "~" in operator else [re.escape(pattern)]):
                    assert [value for value in known if re.fullmatch(alternative, value)], alternative


def selectors(expression: str) -> Iterator[tuple[str, str]]:
    """Return the names in an expression of PromQL, each with the matchers of its labels."""
    for name, matchers in SELECTOR.findall(re.sub(r"\[[^\]]*\]", "", GROUPING.sub("", expression))):
        if name not in OPERATORS:
            yield name, matchers


def test_prometheus_keeps_those_of_its_own_series_that_are_used() -> None:
    (kept,) = re.findall(r"regex: (prometheus_\S+)", CONFIGURATION)
    used = {name for text in EXPRESSIONS for name, _ in selectors(text) if name.startswith("prometheus_")}

    assert used
    assert {name for name in used if not re.fullmatch(kept, name)} == set()


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: page.name)
def test_a_page_names_series_that_exist(series: Series, page: Path) -> None:
    for name, labels in re.findall(r"`(limelight[_:][\w:]+)(?:\{([\w,]+)\})?", page.read_text(encoding="utf-8")):
        if name not in NOT_SERIES and name not in RECORDED:
            (found, *_) = {name, f"{name}_count", f"{name}_total"} & series.keys() or [None]
            assert found, name
            assert not labels or {*labels.split(",")} == series[found].keys(), name


def used(expression: str) -> set[str]:
    """Return the names of the series that an expression reads, also through series that rules record."""
    names = {name for name, _ in selectors(expression)}
    return (names - RECORDED.keys()).union(*(used(RECORDED[name]) for name in names & RECORDED.keys()))


def test_the_tables_of_metrics_list_every_series_with_its_labels_its_unit_and_its_users(series: Series) -> None:
    page = (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8")
    rows = {name: (labels, unit, users) for name, labels, unit, _, users in ROW.findall(page)}
    own = {name for name in series if not name.startswith(("prometheus_", "go_", "promhttp_", "net_", "process_"))}
    families = {re.sub(r"_(bucket|count|sum)$", "", name) for name in own}
    read_by: dict[str, set[str]] = defaultdict(set)
    for user, expression in USERS:
        for name in used(expression):
            read_by[re.sub(r"_(bucket|count|sum)$", "", name)].add(user)

    assert rows.keys() == families | read_by.keys()
    for name, (labels, unit, users) in rows.items():
        found = series.get(name) or series.get(f"{name}_count") or {}
        assert {*re.findall(r"`(\w+)`", labels)} == found.keys() - {"le"}, name
        (suffix, *_) = [end for end in sorted(UNITS, key=len, reverse=True) if end in name] or [""]
        assert UNITS.get(suffix, unit) == unit, name
        assert {*re.findall(r"`\w+`|\*[^*]+\*", users)} == read_by[name], name
