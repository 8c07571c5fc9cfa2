"""Writes sections of RESULTS.md: machine, date, software and command, then a table."""

import argparse
import importlib.metadata
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from service.model.spec import VNNI_FLAGS

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "RESULTS.md"


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that every script has, described by the script's docstring."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-record", action="store_true", help="print only; do not append to RESULTS.md")
    return parser


def publish(title: str, facts: Iterable[str], table: Sequence[str], *, record: bool) -> None:
    """Print a section and, with ``record``, append it to RESULTS.md. The table's first line is its header."""
    columns = table[0].count("|") - 1
    versions = (f"{name} {importlib.metadata.version(name)}" for name in ("onnxruntime", "av", "numpy", "uvicorn"))
    lines = [
        f"\n## {title}, {datetime.now(UTC):%Y-%m-%d}\n",
        f"- Machine: {machine()}",
        f"- Software: Python {platform.python_version()}, {', '.join(versions)}",
        f"- Command: `{shlex.join(['python', f'benchmarks/{Path(sys.argv[0]).name}', *sys.argv[1:]])}`",
        *(f"- {fact}" for fact in facts),
        "",
        table[0],
        "|---" + "|---:" * (columns - 1) + "|",
        *table[1:],
    ]
    section = "\n".join(lines) + "\n"
    print(section)
    if record:
        with RESULTS.open("a", encoding="utf-8") as results:
            results.write(section)


def machine() -> str:
    """Describe the machine: processor, usable cores, VNNI flags and load average."""
    facts = {"model name": platform.machine(), "flags": ""}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            facts[name.strip()] = value.strip()
    vnni = sorted(VNNI_FLAGS.intersection(facts["flags"].split()))
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    return f"{facts['model name']}, {cores} cores, {', '.join(vnni) or 'no VNNI'}, load average {load:.1f}"
