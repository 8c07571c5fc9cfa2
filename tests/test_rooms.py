"""The modules that are really loaded at run time, which the static import contracts cannot check."""

import json
import subprocess
import sys

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
    """The modules that a fresh interpreter has loaded after it ran ``program``."""
    program += "\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    fresh = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    return set(json.loads(fresh.stdout))


def test_the_whole_service_loads_without_the_offline_package_and_its_frameworks() -> None:
    loaded = loaded_by(LOAD_ALL_OF_SERVICE)

    assert {"service.cli.app", "service.isolation.forkserver", "service.http.server"} <= loaded
    assert loaded.isdisjoint({"model_export", "tensorflow", "keras", "tf2onnx", "onnx", "h5py", "sklearn"})


def test_a_decoder_process_inherits_no_imaging_no_network_and_no_inference_library() -> None:
    loaded = loaded_by(LOAD_FORK_SERVER)

    assert {"service.isolation.forkserver", "av.subtitles.codeccontext"} <= loaded
    network = {"httpx", "fastapi", "starlette", "uvicorn", "urllib.request"}
    assert loaded.isdisjoint({"PIL", "onnxruntime", "pydantic", "prometheus_client", "model_export"} | network)
