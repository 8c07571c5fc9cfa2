"""The command and the environment of the programs that the service starts."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

# Variables with the paths at which programs, libraries and Python's modules are found.
SEARCH_PATHS = frozenset({"HOME", "LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "PYTHONPATH"})


def python_command(module: str) -> list[str]:
    """Return the command that runs a module of this installation, in whatever folder it is run.

    Args:
        module: The module's name.
    """
    # The interpreter's path is relative if a relative entry of PATH led to it. Without -P, a file that happens to lie
    # in the current folder would be imported, and what this process leaves out of its path by -E, -s or -I would be on
    # the new one's.
    options = "-P" + "E" * sys.flags.ignore_environment + "s" * sys.flags.no_user_site
    return [str(Path(sys.executable).absolute()), options, "-m", module]


def without_relative_paths(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment whose search paths lead to absolute paths only.

    An empty or a relative entry leads to the current folder, in which anything may lie.

    Args:
        environment: Variables and their values.
    """
    kept = dict(environment)
    for name in SEARCH_PATHS & environment.keys():
        kept[name] = os.pathsep.join(filter(os.path.isabs, environment[name].split(os.pathsep)))
        if not kept[name]:
            del kept[name]
    return kept
