"""Capabilities are dropped, whatever privileges the service has."""

import os
import re
import subprocess
import sys
import textwrap

import pytest


@pytest.mark.parametrize("privileges", ["", "ambient", "ordinary"])
def test_every_capability_is_dropped(privileges: str) -> None:
    if privileges and os.geteuid() != 0:
        pytest.skip("this kernel lacks other users for this user")
    program = r"""
        import ctypes, os, sys
        from pathlib import Path
        from service.isolation import capabilities

        libc = ctypes.CDLL(None)
        if sys.argv[1]:
            keep = sys.argv[1] == "ambient"
            assert libc.prctl(8, keep, 0, 0, 0) == 0  # PR_SET_KEEPCAPS
            os.setresuid(65534, 65534, 65534)
            if keep:  # net_raw, effective, permitted, inheritable and ambient
                assert libc.capset(b"\x22\x05\x08\x20" + bytes(4), b"\x00\x20\x00\x00" * 3 + bytes(12)) == 0
                assert libc.prctl(47, 2, 13, 0, 0) == 0  # PR_CAP_AMBIENT_RAISE
        print(capabilities.drop_all(libc), Path("/proc/self/status").read_text())
    """
    command = [sys.executable, "-c", textwrap.dedent(program), privileges]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)

    assert ended.stdout.startswith("True")
    sets = re.findall(r"Cap(Inh|Prm|Eff|Amb):\t(\w+)", ended.stdout)
    assert sets == [(name, "0" * 16) for name in ("Inh", "Prm", "Eff", "Amb")]
