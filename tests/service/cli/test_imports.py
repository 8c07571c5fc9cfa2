"""The modules that a command imports: every import delays the first line of output."""

import json
import subprocess
import sys
from pathlib import Path

RUN = """
import json, sys
from typer.testing import CliRunner
from service.cli.app import app
result = CliRunner().invoke(app, sys.argv[1:])
print(json.dumps({"exit_code": result.exit_code, "modules": sorted(sys.modules)}))
"""


def modules_of(*arguments: object) -> set[str]:
    """Run ``limelight`` in a fresh interpreter and return the modules that it imported."""
    command = [sys.executable, "-c", RUN, *map(str, arguments)]
    fresh = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    report = json.loads(fresh.stdout.splitlines()[-1])
    assert report["exit_code"] == 0
    return set(report["modules"])


LARGE = {"onnxruntime", "fastapi", "starlette", "uvicorn", "av", "PIL"}


def test_help_imports_none_of_the_large_libraries() -> None:
    for command in ([], ["serve"], ["predict"]):
        assert modules_of(*command, "--help").isdisjoint(
            {"onnxruntime", "fastapi", "starlette", "uvicorn", "av", "PIL"}
        )


def test_predict_with_a_bundle_imports_no_web_framework(tiny_bundle: Path, clip: bytes, tmp_path: Path) -> None:
    file = tmp_path / "clip.mp4"
    file.write_bytes(clip)
    modules = modules_of("predict", file, "--bundle", tiny_bundle)

    assert "service.pipeline" in modules
    assert modules.isdisjoint({"fastapi", "starlette", "uvicorn"})
    assert [name for name in modules if name.startswith("service.http")] == []
