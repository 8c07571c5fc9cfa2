"""Nothing phones home: what the programs connect to, look up and write, and that they work without a network."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow

# Everything that this machine could reach is out of reach in these namespaces, except for its own loopback interface.
WITHOUT_NETWORK = ("unshare", "--user", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")
# Imports every module of the offline tools with the libraries that they load on demand, and uses each of these once.
OFFLINE_TOOLS = """
import importlib, pkgutil, sys
import model_export
for module in pkgutil.walk_packages(model_export.__path__, "model_export."):
    importlib.import_module(module.name)
import keras, matplotlib.pyplot, MNN, onnxruntime, sklearn, tensorflow, tf2onnx
from onnxruntime.quantization import quantize_static
matplotlib.pyplot.figure().savefig(sys.argv[1])
network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
network(tensorflow.zeros((1, 4)))
tf2onnx.convert.from_function(
    tensorflow.function(network.call), [tensorflow.TensorSpec((None, 4), tensorflow.float32, name="x")]
)
"""


@dataclass
class Watched:
    """What a program did, as strace saw it.

    Attributes:
        contacted: Addresses of the internet protocols that it connected or sent to.
        opened: Files that it opened.
        written: Files that it created, or opened to write.
    """

    contacted: set[str]
    opened: set[str]
    written: set[str]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty home folder."""
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


def run(command: Sequence[object], home: Path, wrapper: Sequence[str] = ()) -> None:
    """Run a program as a new user would: without any variable that this process has set."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"HOME": str(home), "TMPDIR": str(home.parent)}
    words = [*wrapper, sys.executable, *map(str, command)]
    done = subprocess.run(
        words, cwd=home, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]


def watch(command: Sequence[object], home: Path, wrapper: Sequence[str] = ()) -> Watched:
    """Run a program under strace."""
    trace = home.parent / "trace"
    calls = "openat,open,creat,mkdir,mkdirat,connect,sendto,sendmsg,sendmmsg"
    strace = (
        "strace",
        "-f",
        "--seccomp-bpf",
        "-qq",
        "-s",
        "512",
        "-o",
        str(trace),
        "-e",
        f"trace={calls}",
        "-e",
        "signal=none",
    )
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    if subprocess.run([*strace, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this kernel lacks tracing for this user")
    run(command, home, (*strace, *wrapper))
    contacted, opened, written = set[str](), set[str](), set[str]()
    for line in trace.read_text(errors="replace", encoding="utf-8").splitlines():
        contacted |= set(re.findall(r'(?:inet_addr\(|inet_pton\(AF_INET6, )"([^"]+)"', line))
        if found := re.search(r'(?:open|openat|creat|mkdir|mkdirat)\((?:\w+, )?"([^"]*)"', line):
            opened.add(found[1])
            if re.search(r"O_CREAT|O_WRONLY|O_RDWR|mkdir|creat\(", line) and "= -1" not in line:
                written.add(found[1])
    return Watched(contacted, opened, written)


def assert_quiet(watched: Watched, folder: Path) -> None:
    """Check that nothing was looked up or contacted elsewhere, and that all files lie in the folder."""
    assert all(ip_address(address).is_loopback for address in watched.contacted), watched.contacted
    assert "/etc/resolv.conf" not in watched.opened
    elsewhere = {
        path
        for path in watched.written
        if path.startswith("/") and not path.startswith((str(folder), "/proc/self/", "/dev/")) and ".pyc." not in path
    }
    assert not elsewhere


def test_nothing_is_written_to_the_home_folder(tiny_bundle: Path, clip_file: Path, home: Path) -> None:
    run(["-m", "service.cli", "predict", clip_file, "--bundle", tiny_bundle], home)

    assert list(home.iterdir()) == []


@pytest.mark.ci
def test_everything_works_without_a_network_and_contacts_nothing(
    tiny_bundle: Path, clip_file: Path, home: Path, tmp_path: Path
) -> None:
    if shutil.which("ip") is None:
        pytest.skip("needs ip (Debian: iproute2)")
    if subprocess.run([*WITHOUT_NETWORK, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this kernel lacks network namespaces for this user")
    watched = watch(["-m", "tests.e2e.everything", tiny_bundle, clip_file, tmp_path], home, WITHOUT_NETWORK)

    assert_quiet(watched, tmp_path)
    assert watched.contacted >= {"127.0.0.1"}
    assert list(home.iterdir()) == []


@pytest.mark.ci
def test_the_offline_tools_contact_nothing(home: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    pytest.importorskip("MNN", reason="no wheel for this processor")
    watched = watch(["-c", OFFLINE_TOOLS, tmp_path / "figure.png"], home)

    assert_quiet(watched, tmp_path)
    # Files of settings and caches that Keras and Matplotlib write for themselves.
    assert {path.relative_to(home).parts[0] for path in home.iterdir()} <= {".keras", ".cache", ".config"}
    assert {path.name for path in (home / ".cache").iterdir()} <= {"matplotlib"}
