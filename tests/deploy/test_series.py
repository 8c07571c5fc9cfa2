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
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import REPOSITORY
from tests.e2e.process import running
from tests.processes import until

DEPLOY = REPOSITORY / "deploy"
RULES = "".join(file.read_text(encoding="utf-8") for file in sorted(DEPLOY.glob("prometheus/[rg]*/*.yml")))
RECORDED = re.findall(r"- record: (\S+)", RULES)
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboards" / "limelight.json").read_text(encoding="utf-8"))
CONFIGURATION = (DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8")
DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
NOT_SERIES = {"limelight_bundles"}  # a volume
GROUPING = re.compile(r"\b(?:by|on|without|ignoring|group_left|group_right)\s*\(([^)]*)\)")
SELECTOR = re.compile(r"\b([a-zA-Z_:][\w:]*)\b\s*(?:\{([^}]*)\})?(?!\s*\()")
MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"')
OPERATORS = {"and", "or", "unless", "bool", "offset"}
# The values of each label of each series.
Series = dict[str, dict[str, set[str]]]


def expressions() -> list[str]:
    in_rules = re.findall(r"^ *expr: (?:>\n((?: {10}.*\n)+)|(.+))", RULES, re.MULTILINE)
    in_panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    return [folded or plain for folded, plain in in_rules] + in_panels


EXPRESSIONS = expressions()


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


def of_a_server(bundle: Path, folder: Path, clip: bytes) -> Series:
    with (
        running(bundle, folder / "log.jsonl", {}) as server,
        httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client,
    ):
        client.post("/predict", content=clip).raise_for_status()
        client.post("/predict", content=b"GIF89a no video")
        return read(client.get("/metrics").text)


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
def series(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory, clip: bytes) -> Series:
    """Every series that Prometheus may have, but those that rules record."""
    folder = tmp_path_factory.mktemp("series")
    return {
        "up": {},
        **of_the_gateway(),
        **of_the_exporter(),
        **of_a_server(tiny_bundle, folder, clip),
        **of_prometheus(folder),
    }


def test_the_expressions_are_found() -> None:
    panels = [target for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]

    assert len(EXPRESSIONS) == RULES.count(" expr: ") + len(panels)


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_names_series_and_labels_that_exist(series: Series, expression: str) -> None:
    jobs = {*re.findall(r"job_name: (\S+)", CONFIGURATION)}
    labels = {label for values in series.values() for label in values} | {"job", "instance"}
    for grouping in GROUPING.findall(expression):
        assert {*re.findall(r"\w+", grouping)} <= labels
    for name, matchers in selectors(expression):
        assert name in series or name in RECORDED
        for label, pattern in MATCHER.findall(matchers):
            assert label in (series[name].keys() | {"job", "instance"} if name in series else labels)
            known = jobs if label == "job" else series.get(name, {}).get(label)
            if known and label != "provider":  # of which this machine has only one
                for alternative in pattern.split("|"):
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
