"""Starts the programs ``limelight`` and ``limelight-model`` of an installation.

Other projects have packages called ``service``, too. One that precedes Limelight's on Python's path, or was installed
over it, would break Limelight at some import, or run in its place. This module has a name of its own and imports
neither package before it has found both in order. See docs/decisions/0009-packages-with-common-names.md.
"""

import hashlib
import sys
from base64 import urlsafe_b64encode
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
REMEDY = (
    "install Limelight where nothing else is (`pipx install`, a virtual environment of its own, or the image), "
    "and leave other folders out of PYTHONPATH"
)


def limelight() -> None:
    """Run ``limelight``, or exit with code 2 if it would not run Limelight's own code."""
    _check("limelight", "service")
    from service.cli.__main__ import main

    main()


def limelight_model() -> None:
    """Run ``limelight-model``, or exit with code 2 if it would not run Limelight's own code."""
    _check("limelight-model", "service", "model_export")
    from model_export.cli import app

    app()


def _check(program: str, *packages: str) -> None:
    for package in packages:
        if fault := _damaged(package) or _foreign(package):
            sys.stderr.write(f"{program}: {fault}; {REMEDY}\n")
            sys.exit(2)


def _foreign(package: str) -> str | None:
    """Say which folder or file Python would import as a package, if it is not the one beside this module."""
    spec = find_spec(package)
    if spec is None:
        return f"the package `{package}` is not installed"
    found = Path(spec.origin or next(iter(spec.submodule_search_locations or ())))
    if found.resolve() == HERE / package / "__init__.py":
        return None
    return f"Python finds a package `{package}` in {found}, which is not Limelight's"


def _damaged(package: str) -> str | None:
    """Say which file of a package another distribution has removed or replaced.

    A file that was changed by hand is nobody's fault. A checkout has no list of installed files and is not checked.
    """
    for record in HERE.glob("limelight-*.dist-info/RECORD"):
        for line in record.read_text("utf-8").splitlines():
            name, digest, _ = line.rsplit(",", 2)
            if not (digest and name.startswith(f"{package}/")):
                continue
            file = HERE / name
            if not file.exists():
                return f"{file} is missing"
            if digest != _digest(file) and (owner := _owner(name)):
                return f"{file} was replaced by the distribution {owner}"
            if (file.with_suffix("") / "__init__.py").exists():
                return f"{file} is hidden by the package {file.with_suffix('')}, which is not Limelight's"
    return None


def _digest(file: Path) -> str:
    """Return the hash of a file as RECORD holds it (PEP 376, PEP 427)."""
    return "sha256=" + urlsafe_b64encode(hashlib.sha256(file.read_bytes()).digest()).rstrip(b"=").decode()


def _owner(name: str) -> str | None:
    """Return the name and version of the other distribution that has installed a file."""
    for record in HERE.glob("*.dist-info/RECORD"):
        distribution = record.parent.stem
        if not distribution.startswith("limelight-") and f"\n{name}," in "\n" + record.read_text("utf-8"):
            return distribution
    return None
