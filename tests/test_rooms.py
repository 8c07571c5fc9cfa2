"""What the static import contracts cannot check: modules loaded at run time, and whether the contracts are complete."""

import json
import pkgutil
import subprocess
import sys
import tomllib
from pathlib import Path

import service

LOAD_ALL_OF_SERVICE = """
import importlib, pkgutil
import service
for module in pkgutil.walk_packages(service.__path__, "service."):
    importlib.import_module(module.name)
"""
# What a fork server loads before it forks a decoder process.
LOAD_FORK_SERVER = """
import contextlib
from service.isolation import forkserver
forkserver.import_pyav()
decoder = forkserver.Decoder(
    forkserver.decode_clip, forkserver.DecodeLimits(), 2**30, forkserver.WARM_UP_CLIP.read_bytes()
)
forkserver.warm_up(decoder)
"""


def loaded_by(program: str) -> set[str]:
    """Run ``program`` in a fresh interpreter and return the modules that it has loaded at the end."""
    program += "\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    fresh = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    return set(json.loads(fresh.stdout))


def test_the_service_does_not_load_model_export_or_its_frameworks() -> None:
    loaded = loaded_by(LOAD_ALL_OF_SERVICE)

    assert {"service.cli.app", "service.isolation.forkserver", "service.http.server"} <= loaded
    assert loaded.isdisjoint({"model_export", "tensorflow", "keras", "tf2onnx", "onnx", "h5py", "sklearn"})


def test_a_decoder_process_inherits_no_imaging_network_inference_or_tracing_library() -> None:
    loaded = loaded_by(LOAD_FORK_SERVER)

    assert {"service.isolation.forkserver", "av.subtitles.codeccontext"} <= loaded
    network = {"httpx", "fastapi", "starlette", "uvicorn", "urllib.request"}
    others = {"PIL", "onnxruntime", "opentelemetry", "pydantic", "prometheus_client", "model_export"}
    assert loaded.isdisjoint(network | others)


def test_the_import_contracts_that_list_modules_of_service_list_all() -> None:
    pyproject = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = {contract["name"]: contract for contract in pyproject["tool"]["importlinter"]["contracts"]}
    without_http = contracts["Only service.http and service.cli import HTTP libraries"]["source_modules"]
    hidden = contracts["model_export imports of service only video, the bundle and five small modules"][
        "forbidden_modules"
    ]
    modules = {f"service.{module.name}" for module in pkgutil.iter_modules(service.__path__)}

    assert modules - {*without_http} == {"service.http", "service.cli"}
    assert modules - {".".join(name.split(".")[:2]) for name in hidden} == {
        "service.video", "service.errors", "service.files", "service.printable", "service.signals",
        "service.streams",
    }  # fmt: skip
