"""Imports as they happen at run time, which import-linter's contracts cannot see."""

import json
import subprocess
import sys

LOAD_ALL_OF_SERVICE = """
import importlib, json, pkgutil, sys
import service
for module in pkgutil.walk_packages(service.__path__, "service."):
    importlib.import_module(module.name)
print(json.dumps(sorted(sys.modules)))
"""


def test_the_service_imports_neither_the_offline_package_nor_its_frameworks() -> None:
    fresh = subprocess.run(
        [sys.executable, "-c", LOAD_ALL_OF_SERVICE], capture_output=True, text=True, check=True, timeout=120
    )
    loaded = set(json.loads(fresh.stdout))

    assert {"service.cli.app", "service.isolation.forkserver", "service.http.server"} <= loaded
    assert loaded.isdisjoint({"model_export", "tensorflow", "keras", "tf2onnx", "onnx", "h5py", "sklearn"})
