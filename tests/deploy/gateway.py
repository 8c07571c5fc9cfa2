"""The gateway's own files on loopback, with the machine's nginx."""

import functools
import json
import os
import re
import resource
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import REPOSITORY
from tests.deploy.replicas import Fleet
from tests.processes import until

LEAST_NGINX = (1, 27, 3)
FILES = REPOSITORY / "deploy" / "gateway"


@functools.cache
def nginx() -> str:
    """Return the program that the variable ``TEST_NGINX`` names, or the machine's. Skips the test if it is too old."""
    program = os.environ.get("TEST_NGINX") or shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program:
        told = subprocess.run([program, "-v"], capture_output=True, text=True, check=False).stderr
        version = re.search(r"nginx/(\d+)\.(\d+)\.(\d+)", told)
        if version and tuple(map(int, version.groups())) >= LEAST_NGINX:
            return program
    pytest.skip("needs nginx 1.27.3 or newer: `export TEST_NGINX=$(.ci/nginx)` fetches one")


@dataclass(frozen=True)
class Gateway:
    """An nginx that runs the gateway's files.

    Attributes:
        folder: Holds ``gateway/``, the copied files, and what takes the place of ``/tmp``.
        port: The port on 127.0.0.1.
        metrics_port: The port for Prometheus.
        scheme: ``http`` or ``https``.
    """

    folder: Path
    port: int
    metrics_port: int
    scheme: str

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def client(self, address: str = "127.0.0.1") -> httpx.Client:
        """Return a client that the gateway takes for one with the given address."""
        headers = {"X-Client-Address": address}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30, trust_env=False, verify=False)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def connect_with_tls(self, protocol: str = "http/1.1") -> socket.socket:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.set_alpn_protocols([protocol])
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context.wrap_socket(self.connect())

    def memory(self) -> int:
        """Return the bytes of memory that nginx's workers have of their own."""
        master = int((self.folder / "nginx.pid").read_text(encoding="utf-8"))
        workers = Path(f"/proc/{master}/task/{master}/children").read_text(encoding="utf-8").split()
        texts = [Path(f"/proc/{worker}/smaps_rollup").read_text(encoding="utf-8") for worker in workers]
        return sum(1024 * int(size) for text in texts for size in re.findall(r"Private_\w+: +(\d+) kB", text))

    def lines(self) -> list[str]:
        """Return the lines of the access log."""
        return (self.folder / "access.log").read_text(encoding="utf-8").splitlines()

    def log(self) -> list[dict[str, Any]]:
        """Return what the lines of the access log hold."""
        return [json.loads(line) for line in self.lines()]

    @property
    def command(self) -> list[str]:
        """How nginx is started with the gateway's files."""
        directives = "daemon off;" + (" user root;" if os.geteuid() == 0 else "")  # may read the tests' folder
        return [nginx(), "-e", "stderr", "-c", str(self.folder / "gateway" / "nginx.conf"), "-g", directives]


@contextmanager
def gateway(folder: Path, fleet: Fleet, *, tls: bool = False) -> Iterator[Gateway]:
    """Run the gateway for the block."""
    nginx()
    made = Gateway(folder, _free_port(), _free_port(), "https" if tls else "http")
    _copy_files(made, fleet, tls)
    if tls:
        _make_certificate(folder)
    with (
        (folder / "error.log").open("w", encoding="utf-8") as log,
        subprocess.Popen(made.command, stdout=log, stderr=log) as process,
    ):
        try:
            until(lambda: _listens(made.port) or process.poll() is not None)
            assert process.poll() is None, (folder / "error.log").read_text(encoding="utf-8")
            yield made
        finally:
            process.terminate()


def _copy_files(made: Gateway, fleet: Fleet, tls: bool) -> None:
    """Copy the gateway's files, with the test's paths, addresses and ports instead of the container's."""
    copy = made.folder / "gateway"
    shutil.copytree(FILES, copy)
    if tls:  # as docker-compose.tls.yml mounts it
        shutil.rmtree(copy / "listen")
        (copy / "listen-tls").rename(copy / "listen")
    _replace(
        copy / "nginx.conf",
        {
            "/tmp/": f"{made.folder}/",
            "/dev/stdout": f"{made.folder}/access.log",
            "127.0.0.11": fleet.names.address,
            "limelight:8000": f"limelight:{fleet.port}",
        },
    )
    _replace(
        copy / "metrics.conf",
        {"listen 8081": f"listen 127.0.0.1:{made.metrics_port}", "/run/gateway-log/": f"{made.folder}/"},
    )
    _replace(
        copy / "listen" / "listen.conf",
        {
            "listen 8443": f"listen 127.0.0.1:{made.port}",
            "/run/secrets": str(made.folder),
        }
        if tls
        else {"listen 8080": f"listen 127.0.0.1:{made.port}"},
    )
    with (copy / "listen" / "listen.conf").open("a", encoding="utf-8") as file:
        file.write("set_real_ip_from 127.0.0.1;\nreal_ip_header X-Client-Address;\n")


def _replace(file: Path, replacements: dict[str, str]) -> None:
    text = file.read_text(encoding="utf-8")
    for old, new in replacements.items():
        assert old in text, f"{file.name} does not contain {old}"
        text = text.replace(old, new)
    file.write_text(text, encoding="utf-8")


def _make_certificate(folder: Path) -> None:
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    names = ["-subj", "/CN=localhost", "-keyout", "tls.key", "-out", "tls.crt", "-days", "1"]
    subprocess.run([*command, *names], cwd=folder, capture_output=True, check=True)


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@contextmanager
def open_files(number: int) -> Iterator[None]:
    """Let this process open so many files for the block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < number:
        pytest.skip(f"needs {number} open files: raise the hard limit of descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, number), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
