"""The Compose files and what the pages say about them, checked as text: no engine is needed."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from service.settings import Settings
from tests.conftest import REPOSITORY

FILES = sorted(REPOSITORY.glob("docker-compose*.yml"))
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
FOLDER = REPOSITORY / "deploy/gateway"
GATEWAY = (FOLDER / "nginx.conf").read_text(encoding="utf-8")
OPERATIONS = (REPOSITORY / "docs/operations.md").read_text(encoding="utf-8")


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Also reads Compose's tags, such as ``!override``."""


_Loader.add_multi_constructor("!", lambda loader, _, node: loader.construct_sequence(node))
PARSED: dict[str, dict[str, Any]] = {file.name: yaml.load(file.read_text(encoding="utf-8"), _Loader) for file in FILES}
MAIN = PARSED["docker-compose.yml"]
OVERLAYS = {name: parsed for name, parsed in PARSED.items() if parsed is not MAIN}
# Every service, where it is defined and not only changed.
SERVICES: dict[str, dict[str, Any]] = {
    **{name: service for parsed in OVERLAYS.values() for name, service in parsed["services"].items()},
    **MAIN["services"],
}
HARDENING = {"cap_drop", "init", "logging", "mem_limit", "pids_limit", "read_only", "security_opt", "tmpfs", "user"}
POWERS = {"cap_add", "device_cgroup_rules", "devices", "group_add", "ipc", "pid", "privileged", "userns_mode"}


def seconds(text: str) -> int:
    return int(text.removesuffix("s"))


def directive(name: str) -> int:
    """Return the largest value that the gateway's files give a directive."""
    return max(map(int, re.findall(rf"^ *{name} +(\d+)s?;", GATEWAY, re.MULTILINE)))


def commands(page: Path) -> list[str]:
    """Return each line of the page's shell blocks, and each piece of code in its text."""
    text = page.read_text(encoding="utf-8")
    blocks = "".join(re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
    return [*blocks.splitlines(), *re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_folders_are_mounted_in_a_way_that_selinux_allows(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    sources = re.findall(r"source: ([^,\s]+)", text)

    assert re.findall(r"[\"\s]\.{1,2}/[^\s,\"]*:/", text) == []  # the short syntax
    assert [source for source in sources if (REPOSITORY / source).is_file()] == []
    assert text.count("type: bind") == text.count("bind: {selinux: z}") == len(sources)


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_no_privileges_and_is_bounded(name: str) -> None:
    service = SERVICES[name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["init"] is True  # reaps processes, and forwards signals
    assert service["logging"]["driver"] == "json-file"
    assert {"max-size", "max-file"} == service["logging"]["options"].keys()
    assert {"mem_limit", "pids_limit"} <= service.keys()
    assert all(re.search("[:,]size=", mount) for mount in service.get("tmpfs", []))
    assert service.keys() & POWERS == set()
    assert str(service.get("user", "1")).split(":")[0] not in {"0", "root"}
    assert "user" in service or not service["image"].startswith("nginx")  # whose image runs as root
    assert service.get("restart") == (None if name == "model" else "unless-stopped")


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_gives_no_service_more_privileges(name: str) -> None:
    for service, changes in OVERLAYS[name]["services"].items():
        assert service not in MAIN["services"] or changes.keys() & (HARDENING | POWERS) == set()


def test_only_the_gateway_is_published_and_only_it_and_alerts_have_a_way_out() -> None:
    networks = {
        (service, network)
        for parsed in PARSED.values()
        for service, changes in parsed["services"].items()
        for network in changes.get("networks", [])
    }
    published = {
        service for parsed in PARSED.values() for service, changes in parsed["services"].items() if "ports" in changes
    }

    assert published == {"gateway"}
    assert MAIN["networks"] == {"outside": None, "inside": {"internal": True}}
    assert [overlay.get("networks") for overlay in OVERLAYS.values() if "networks" in overlay] == [{"alerts": None}]
    assert {(service, network) for service, network in networks if network != "inside"} == {
        ("gateway", "outside"),
        ("prometheus", "alerts"),
        ("alertmanager", "alerts"),
    }
    assert {name for name, service in SERVICES.items() if "networks" not in service} == {"model"}
    assert SERVICES["model"]["network_mode"] == "none"


def test_the_configuration_and_the_bundle_cannot_be_written_by_those_who_read_them() -> None:
    mounts = [
        mount
        for parsed in PARSED.values()
        for service in parsed["services"].values()
        for mount in service.get("volumes", [])
    ]

    assert [mount for mount in mounts if isinstance(mount, dict) and mount["read_only"] is not True] == []
    assert SERVICES["limelight"]["volumes"] == ["bundles:/bundles:ro"]
    assert "gateway-log:/run/gateway-log:ro" in SERVICES["gateway"]["volumes"]
    assert "size=" in MAIN["volumes"]["gateway-log"]["driver_opts"]["o"]


def test_settings_reach_the_service_as_they_are_written() -> None:
    assert SERVICES["limelight"]["env_file"] == [{"path": "limelight.env", "required": False, "format": "raw"}]


@pytest.mark.parametrize("name", ["alertmanager", "jaeger", "prometheus"])
def test_a_service_reads_its_own_configuration_and_keeps_its_data_in_a_volume(name: str) -> None:
    options = re.findall(r"--(\S+?)[ =](\S+)", " ".join(SERVICES[name]["command"]))
    mounts = SERVICES[name]["volumes"]
    folders = {mount["target"]: mount["source"] for mount in mounts if isinstance(mount, dict)}
    configured = [Path(path) for option, path in options if option.startswith("config")]
    stored = [path for option, path in options if option in ("storage.path", "storage.tsdb.path")]

    assert [str(path.parent) in folders for path in configured] == [True]
    assert name == "alertmanager" or (REPOSITORY / folders[str(configured[0].parent)] / configured[0].name).is_file()
    assert [mount for mount in mounts if isinstance(mount, str)] == [f"{name}:{path}" for path in stored]
    assert bool(stored) is (name != "jaeger")  # which keeps its traces in memory


def test_the_exporter_runs_the_program_of_its_folder_and_shares_a_socket_with_the_gateway() -> None:
    exporter = SERVICES["gateway-exporter"]
    folder, socket = exporter["volumes"]
    *_, program, path = exporter["command"]

    assert (REPOSITORY / folder["source"] / Path(program).relative_to(folder["target"])).is_file()
    assert socket == f"gateway-log:{Path(path).parent}"
    assert f"unix:{path}," in (FOLDER / "metrics.conf").read_text(encoding="utf-8")


def test_the_exporter_runs_in_the_image_of_the_replicas() -> None:
    for parsed in PARSED.values():
        images = [parsed["services"].get(name, {}).get("image") for name in ("limelight", "gateway-exporter")]
        assert images[0] == images[1]


def test_the_overlay_for_gpus_has_an_image_of_its_own() -> None:
    replica = OVERLAYS["docker-compose.gpu.yml"]["services"]["limelight"]

    assert replica["image"] == SERVICES["limelight"]["image"] + "-gpu"
    assert replica["build"]["args"] == {"EXTRA": "gpu"}
    assert replica["environment"] == {"LIMELIGHT_DEVICE": "cuda"}
    (device,) = replica["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


@pytest.mark.parametrize(
    ("file", "listen"), [("docker-compose.yml", "listen"), ("docker-compose.tls.yml", "listen-tls")]
)
def test_the_port_that_is_published_and_checked_is_the_one_on_which_the_gateway_listens(file: str, listen: str) -> None:
    gateway = PARSED[file]["services"]["gateway"]
    (port,) = re.findall(r"^listen (\d+)", (FOLDER / listen / "listen.conf").read_text(encoding="utf-8"), re.MULTILINE)

    assert [published.rpartition(":")[2] for published in gateway["ports"]] == [port]
    assert gateway["healthcheck"]["test"][-1].endswith(f"://127.0.0.1:{port}/.alive")


def test_the_gateway_reads_its_files_from_the_folder() -> None:
    mounts = [mount for mount in SERVICES["gateway"]["volumes"] if isinstance(mount, dict)]

    assert [(mount["source"], mount["target"]) for mount in mounts] == [("./deploy/gateway", "/etc/nginx")]


@pytest.mark.parametrize(("file", "folder"), [("tls", "listen"), ("tracing", "trace")])
def test_an_overlay_takes_the_place_of_a_folder_of_the_gateway(file: str, folder: str) -> None:
    mounts = OVERLAYS[f"docker-compose.{file}.yml"]["services"]["gateway"]["volumes"]
    (source,) = [mount["source"] for mount in mounts if mount["target"] == f"/etc/nginx/{folder}"]

    assert {path.name for path in (REPOSITORY / source).iterdir()} == {
        path.name for path in (FOLDER / folder).iterdir()
    }


def test_the_gateway_waits_for_no_replica() -> None:
    assert "depends_on" not in SERVICES["gateway"]


def test_gateway_and_service_may_open_as_many_files_as_they_have_connections() -> None:
    files = directive("worker_rlimit_nofile")

    assert SERVICES["gateway"]["ulimits"] == SERVICES["limelight"]["ulimits"] == {"nofile": files}
    assert files >= 2 * directive("worker_connections")


def test_containers_have_the_time_to_finish_the_requests_in_progress() -> None:
    settings = Settings(_env_file=None)
    gateway, service = (seconds(SERVICES[name]["stop_grace_period"]) for name in ("gateway", "limelight"))

    assert service >= settings.drain_delay_s + settings.request_timeout_s + 15
    assert gateway > directive("proxy_read_timeout") > settings.request_timeout_s
    assert SERVICES["gateway"]["stop_signal"] == "SIGQUIT"


def test_slow_clients_and_replicas_are_bounded() -> None:
    settings = Settings(_env_file=None)

    assert directive("client_header_timeout") <= 10
    assert settings.upload_timeout_s < directive("client_body_timeout") <= 15
    assert directive("send_timeout") == directive("proxy_send_timeout") == 15
    assert directive("proxy_connect_timeout") == 1  # a replica whose host is gone costs no more
    assert directive("proxy_max_temp_file_size") == 0  # answers are never stored on its tmpfs


def test_prometheus_bounds_its_disk() -> None:
    assert {option.split("=")[0] for option in SERVICES["prometheus"]["command"]} >= {
        "--storage.tsdb.retention.time",
        "--storage.tsdb.retention.size",
    }


def test_the_table_lists_the_variables_of_compose() -> None:
    used = {name for file in FILES for name in re.findall(r"(?<!\$)\$\{?(\w+)", file.read_text(encoding="utf-8"))}
    table = re.findall(r"^\| `([A-Z_]+)` \|", OPERATIONS.partition("\n## The gateway")[0], re.MULTILINE)

    assert {*table} - {"COMPOSE_FILE", "COMPOSE_PROFILES", "COMPOSE_PROJECT_NAME"} == used


@pytest.mark.parametrize(
    "name", [".env", "limelight.env", "deploy/gateway/tls/tls.key", "deploy/alertmanager/alertmanager.yml"]
)
def test_git_ignores_files_with_secrets(name: str) -> None:
    assert subprocess.run(["git", "check-ignore", "-q", name], cwd=REPOSITORY, check=False).returncode == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_printed_command_forgets_replicas_or_compose_files(page: Path) -> None:
    forgetful = re.compile(r"docker compose .*(--scale|-f docker-compose|--profile)|^[A-Z_]+=\S* docker compose")

    assert [command for command in commands(page) if forgetful.search(command)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_printed_command_recreates_all_replicas_at_once(page: Path) -> None:
    ups = [command.partition("#")[0].strip() for command in commands(page) if "docker compose up " in command]
    safe = re.compile(
        r"deploy/rolling-update\.sh && docker compose up --detach"  # replicas are up to date by then
        r"|docker compose up --detach (--no-recreate|(gateway|grafana|prometheus|alertmanager)( \w+)*)"
        r"|docker compose up --build --detach"  # the first start
    )

    assert [command for command in ups if not safe.fullmatch(command)] == []


def test_the_pages_say_which_compose_is_needed() -> None:
    for text in (
        (REPOSITORY / "README.md").read_text(encoding="utf-8"),
        OPERATIONS,
        FILES[-1].read_text(encoding="utf-8"),
    ):
        assert "2.30" in text  # the first version with `format: raw`
