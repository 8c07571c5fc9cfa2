"""Starts the programs ``limelight`` and ``limelight-model`` of an installation.

Other projects have packages called ``service``, too. One that precedes Limelight's on Python's path, or was installed
over it, would break Limelight at some import, or run in its place. This module has a name of its own and imports
neither package before it has found both in order. See docs/decisions/0009-packages-with-common-names.md.
"""

import hashlib
import signal
import sys
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).absolute().parent  # not where a link leads: some installers link each file to a cache
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
    from service.signals import end_by

    try:
        from model_export.cli import main  # takes long enough for somebody to change their mind

        main()
    except KeyboardInterrupt:
        end_by(signal.SIGINT)


def _check(program: str, *packages: str) -> None:
    for package in packages:
        if fault := _preceded(package) or _damaged(package) or _foreign(package):
            sys.stderr.write(f"{program}: {fault}; {REMEDY}\n")
            sys.exit(2)


def _preceded(package: str) -> str | None:
    """Say that a package of this name was loaded already.

    Distributions with a namespace package do that in a ``.pth`` file. Python then does not run the ``__init__.py``.
    """
    if package not in sys.modules:
        return None
    return f"a package `{package}` was loaded before Limelight's, probably by a .pth file in {HERE}"


def _foreign(package: str) -> str | None:
    """Say which folder or file Python would import as a package, if it is not the one beside this module."""
    spec = find_spec(package)
    if spec is None:
        return f"the package `{package}` is not installed"
    found = Path(spec.origin or next(iter(spec.submodule_search_locations or ())))
    if found.resolve() == (HERE / package / "__init__.py").resolve():
        return None
    return f"Python finds a package `{package}` in {found}, which is not Limelight's"


def _damaged(package: str) -> str | None:
    """Say which file of a package another distribution has removed, replaced or hidden.

    A file that was changed by hand is nobody's fault. A checkout has no list of installed files and is not checked.
    """
    for record in HERE.glob("limelight-*.dist-info/RECORD"):
        for name, digest in _files(record):
            if not (digest and name.startswith(f"{package}/")):
                continue
            file = HERE / name
            if not file.is_file():
                return f"{file} is missing"
            if digest != _digest(file) and (owner := _others(package).get(name)):
                return f"{file} was replaced by the distribution {owner}"
            # Python prefers a package and an extension module to a file with the same name.
            spec = PathFinder.find_spec(file.stem, [str(file.parent)]) if file.suffix == ".py" else None
            if spec and spec.origin != str(file):
                return f"{file} is hidden by {spec.origin}, which is not Limelight's"
    return None


def _digest(file: Path) -> str:
    """Return the hash of a file as RECORD holds it (PEP 376, PEP 427)."""
    return "sha256=" + urlsafe_b64encode(hashlib.sha256(file.read_bytes()).digest()).rstrip(b"=").decode()


@cache
def _others(package: str) -> dict[str, str]:
    """Return the files in a package's folder that other distributions have installed, with their names and versions."""
    records = [path for path in HERE.glob("*.dist-info/RECORD") if not path.parent.name.startswith("limelight-")]
    return {
        name: record.parent.stem for record in records for name, _ in _files(record) if name.startswith(f"{package}/")
    }


def _files(record: Path) -> Iterator[tuple[str, str]]:
    """Yield the name and the hash of each file that a RECORD lists; none if it cannot be read."""
    try:
        lines = record.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        name, _, rest = line.partition(",")
        yield name, rest.partition(",")[0]
