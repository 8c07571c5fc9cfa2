"""Grafana's files, held against the fields of its formats that the project uses.

Grafana itself ignores fields that it does not know, and shows an empty panel.
"""

import itertools
import re
from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml  # type: ignore[import-untyped]
from pydantic import BaseModel, ConfigDict, Field, HttpUrl, ValidationError

from tests.conftest import REPOSITORY

GRAFANA = REPOSITORY / "deploy" / "grafana"
DASHBOARDS = sorted(GRAFANA.glob("dashboards/*.json"))
SOURCES = sorted(GRAFANA.glob("provisioning/datasources/*.yml"))


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Source(Strict):
    """A reference to a data source."""

    type: str
    uid: str


class Place(Strict):
    x: Annotated[int, Field(ge=0, lt=24)]
    y: Annotated[int, Field(ge=0)]
    w: Annotated[int, Field(gt=0, le=24)]
    h: Annotated[int, Field(gt=0)]

    def cells(self) -> set[tuple[int, int]]:
        return {*itertools.product(range(self.x, self.x + self.w), range(self.y, self.y + self.h))}


class Target(Strict):
    refId: Annotated[str, Field(pattern="^[A-Z]$")]  # noqa: N815
    datasource: Source
    expr: Annotated[str, Field(min_length=1)]
    legendFormat: str  # noqa: N815
    instant: bool = False
    format: Literal["time_series", "table"] = "time_series"
    exemplar: bool = False


class Defaults(Strict):
    unit: Literal["short", "s", "bytes", "reqps", "percentunit"]
    min: float | None = None
    max: float | None = None


class FieldConfig(Strict):
    defaults: Defaults
    overrides: list[object]


class Row(Strict):
    id: int
    type: Literal["row"]
    title: Annotated[str, Field(min_length=1)]
    collapsed: Literal[False]
    gridPos: Place  # noqa: N815
    panels: Annotated[list[object], Field(max_length=0)]


class Panel(Strict):
    id: int
    type: Literal["stat", "table", "timeseries"]
    title: Annotated[str, Field(min_length=1)]
    datasource: Source
    gridPos: Place  # noqa: N815
    fieldConfig: FieldConfig  # noqa: N815
    targets: Annotated[list[Target], Field(min_length=1)]


class TimeRange(Strict):
    from_: Annotated[str, Field(alias="from", pattern=r"^now-\d+[mhd]$")]
    to: Literal["now"]


class Dashboard(Strict):
    uid: Annotated[str, Field(pattern="^[a-zA-Z0-9_-]{1,40}$")]
    title: str
    tags: list[str]
    schemaVersion: Annotated[int, Field(ge=36)]  # noqa: N815
    version: int
    editable: bool
    refresh: Annotated[str, Field(pattern=r"^\d+[sm]$")]
    time: TimeRange
    timezone: Literal["browser", "utc"]
    panels: list[Annotated[Row | Panel, Field(discriminator="type")]]


class Exemplar(Strict):
    name: str
    datasourceUid: str  # noqa: N815


class SourceOptions(Strict):
    timeInterval: Annotated[str, Field(pattern=r"^\d+s$")]  # noqa: N815
    exemplarTraceIdDestinations: list[Exemplar]  # noqa: N815


class ProvisionedSource(Strict):
    name: str
    uid: str
    type: Literal["prometheus", "jaeger"]
    url: HttpUrl
    isDefault: bool = False  # noqa: N815
    jsonData: SourceOptions | None = None  # noqa: N815


class ProvisionedSources(Strict):
    apiVersion: Literal[1]  # noqa: N815
    datasources: list[ProvisionedSource]


class Folder(Strict):
    path: str


class Provider(Strict):
    name: str
    type: Literal["file"]
    options: Folder


class Providers(Strict):
    apiVersion: Literal[1]  # noqa: N815
    providers: list[Provider]


@pytest.fixture(params=DASHBOARDS, ids=lambda file: file.name)
def dashboard(request: pytest.FixtureRequest) -> Dashboard:
    return Dashboard.model_validate_json(request.param.read_text(encoding="utf-8"))


@pytest.fixture
def sources() -> list[ProvisionedSource]:
    files = [ProvisionedSources.model_validate(yaml.safe_load(file.read_text(encoding="utf-8"))) for file in SOURCES]
    return [source for file in files for source in file.datasources]


def panels(dashboard: Dashboard) -> list[Panel]:
    return [panel for panel in dashboard.panels if isinstance(panel, Panel)]


def test_panels_have_ids_of_their_own_and_queries_letters_of_their_own(dashboard: Dashboard) -> None:
    ids = [panel.id for panel in dashboard.panels]

    assert len({*ids}) == len(ids)
    for panel in panels(dashboard):
        letters = [target.refId for target in panel.targets]
        assert len({*letters}) == len(letters)


def test_panels_do_not_overlap_or_leave_the_grid(dashboard: Dashboard) -> None:
    assert [panel.title for panel in dashboard.panels if panel.gridPos.x + panel.gridPos.w > 24] == []
    for one, other in itertools.combinations(dashboard.panels, 2):
        assert not one.gridPos.cells() & other.gridPos.cells(), (one.title, other.title)


def test_the_data_sources_of_panels_and_exemplars_are_provisioned(
    dashboard: Dashboard, sources: list[ProvisionedSource]
) -> None:
    provisioned = {(source.type, source.uid) for source in sources}
    used = {(panel.datasource.type, panel.datasource.uid) for panel in panels(dashboard)}
    asked = {(target.datasource.type, target.datasource.uid) for panel in panels(dashboard) for target in panel.targets}
    traces = [
        option.datasourceUid
        for source in sources
        if source.jsonData
        for option in source.jsonData.exemplarTraceIdDestinations
    ]

    assert used | asked <= provisioned
    assert {*traces} <= {uid for kind, uid in provisioned if kind == "jaeger"}
    assert [source.name for source in sources if source.isDefault] == ["Prometheus"]


def test_the_data_sources_are_services_of_compose(sources: list[ProvisionedSource]) -> None:
    services = re.findall(
        r"^  ([a-z-]+):$", (REPOSITORY / "docker-compose.yml").read_text(encoding="utf-8"), re.MULTILINE
    )

    assert {source.url.host for source in sources} <= {*services}


def test_the_dashboards_are_mounted_where_grafana_looks_for_them() -> None:
    files = sorted(GRAFANA.glob("provisioning/dashboards/*.yml"))
    compose = (REPOSITORY / "docker-compose.yml").read_text(encoding="utf-8")
    (home,) = re.findall(r"GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH: (\S+)", compose)
    paths = [
        Path(provider.options.path)
        for file in files
        for provider in Providers.model_validate(yaml.safe_load(file.read_text(encoding="utf-8"))).providers
    ]

    assert [
        path for path in paths if not re.search(rf"\./deploy/grafana/dashboards\b[\s\S]{{1,20}}?{path}\b", compose)
    ] == []
    assert Path(home).parent in paths
    assert Path(home).name in {file.name for file in DASHBOARDS}


@pytest.mark.parametrize(
    ("correct", "wrong"),
    [
        ('"expr"', '"exp"'),
        ('"timeseries"', '"timeserie"'),
        ('"gridPos"', '"gridpos"'),
        ('"uid": "limelight"', '"uid": "lime light"'),
        ('"w": 24', '"w": 25'),
    ],
)
def test_a_misspelt_field_is_noticed(correct: str, wrong: str) -> None:
    text = DASHBOARDS[0].read_text(encoding="utf-8")
    assert correct in text

    with pytest.raises(ValidationError):
        Dashboard.model_validate_json(text.replace(correct, wrong, 1))
