import shutil
import subprocess

import pytest

from tests.e2e.process import PATIENCE_S


def curl(*arguments: object) -> str:
    """Return the body of the answer that curl gets, and its status at the end."""
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    command = ["curl", "--silent", "--show-error", "--noproxy", "*", "--write-out", "%{http_code}"]
    words = [*command, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S, check=True).stdout
