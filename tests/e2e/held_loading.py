"""Runs ``limelight`` so that it loads a bundle only once the file ``release`` is in the bundle's folder.

While it waits, the file ``waiting`` is there.
"""

import time
from pathlib import Path

from service import assembly
from service.cli.app import app
from service.model.bundle import Bundle, load_bundle


def wait_and_load(path: Path) -> Bundle:
    (path / "waiting").touch()
    while not (path / "release").exists():
        time.sleep(0.01)
    return load_bundle(path)


setattr(assembly, "load_bundle", wait_and_load)  # noqa: B010 - mypy rejects an assignment
app()
