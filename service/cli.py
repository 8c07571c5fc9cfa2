"""`limelight`: serve a bundle, classify clips, show what it is about."""

import asyncio
import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from service.doctor import Verdict, examine
from service.http.app import load_pipeline
from service.http.schemas import ModelFacts, PredictionAnswer, ProblemAnswer, Timings, answer_json
from service.http.server import ListenError
from service.http.server import serve as run_server
from service.metrics import Metrics
from service.model.bundle import BundleError
from service.model.engine import EngineError
from service.overlay import check_overlay_path, write_overlay
from service.pipeline import Stages
from service.settings import Settings
from service.video.decoder import decode_clip
from service.video.errors import ClipError
from service.video.process import DecodersError
from service.video.rendering import render_clip

DEFAULT_URL = "http://127.0.0.1:8000"
# A prediction may wait behind others on a small machine; a server that is there accepts at once.
PATIENCE = httpx.Timeout(600, connect=10)
START_PATIENCE_S = 300
STOP_PATIENCE_S = 60
RANKS = 5

STYLES = {
    Verdict.GOOD: Text("ok", "green"),
    Verdict.POOR: Text("warning", "yellow"),
    Verdict.BAD: Text("error", "bold red"),
}

Classify = Callable[[str, bytes], PredictionAnswer]

app = typer.Typer(
    help="Recognise human actions in video clips and see where the network looked.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)


class CommandError(Exception):
    """The command cannot do what it was asked. One sentence that names the file or address and the remedy."""


BundleOption = Annotated[
    Path | None, typer.Option(help="Folder that `limelight-model export` wrote (default: $LIMELIGHT_BUNDLE or bundle).")
]
TopKOption = Annotated[int, typer.Option(min=1, help="How many of the likeliest classes to list.")]


@app.command()
def serve(
    bundle: BundleOption = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on (default: 127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port to listen on (default: 8000).")] = None,
) -> None:
    """Serve predictions over HTTP until stopped. Every LIMELIGHT_* setting applies."""
    with _one_sentence():
        run_server(_settings(bundle=bundle, host=host, port=port))


@app.command()
def predict(
    clips: Annotated[list[Path], typer.Argument(help="Video files.", metavar="CLIP...", show_default=False)],
    url: Annotated[str | None, typer.Option(help=f"A running service (default: {DEFAULT_URL}).")] = None,
    bundle: Annotated[Path | None, typer.Option(help="Run this bundle here instead of asking a service.")] = None,
    overlay: Annotated[Path | None, typer.Option(help="Write where the network looked: .png, .gif or .mp4.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the raw answers, one JSON object a line.")] = False,
    top_k: TopKOption = RANKS,
) -> None:
    """Name the action in clips. A service that asks for an API key is sent $LIMELIGHT_API_KEY."""
    with _one_sentence():
        if url and bundle:
            raise CommandError("--url and --bundle exclude each other: give the one that is to answer")
        if overlay:
            if len(clips) > 1:
                raise CommandError(f"--overlay {overlay} shows one clip: give one clip at a time")
            _check_overlay(overlay)
        attention = json or overlay is not None
        if bundle:
            engine = _in_process(bundle, top_k, attention)
        else:
            engine = _over_http(url or DEFAULT_URL, top_k, attention, os.environ.get("LIMELIGHT_API_KEY"))
        failed = False
        with engine as classify:
            for clip in clips:
                try:
                    _show(clip, classify, overlay=overlay, json=json)
                except CommandError as error:
                    _complain(error)
                    failed = True
        if failed:
            raise typer.Exit(2)


@app.command()
def demo(
    clip: Annotated[Path | None, typer.Argument(help="Video file; without one, a rendered figure exercises.")] = None,
    bundle: BundleOption = None,
    overlay: Annotated[Path, typer.Option(help="Where to show where the network looked.")] = Path("demo.png"),
) -> None:
    """Start a server on a free port, have it classify a clip, write the overlay, stop the server."""
    with _one_sentence():
        _check_overlay(overlay)
        name, data = (str(clip), _read(clip)) if clip else ("a rendered figure doing jumping jacks", render_clip().data)
        settings = _settings(bundle=bundle)
        key = settings.api_keys[0].get_secret_value() if settings.api_keys else None
        with _server(settings.bundle) as url, _over_http(url, RANKS, True, key) as classify:
            answer = classify(name, data)
        _print_answer(name, answer)
        _write_overlay(overlay, name, data, answer)
        _say(f"Where the network looked: {overlay}")


@app.command()
def doctor(bundle: BundleOption = None) -> None:
    """Say what would keep the service from working here, and how to mend it. Exit code 1 where something would."""
    with _one_sentence():
        console = Console(highlight=False)
        findings = list(examine(_settings(bundle=bundle), os.environ))
        table = Table("checked", "", "found", box=None, padding=(0, 2, 0, 0))
        for finding in findings:
            mend = f"\n→ {finding.remedy}" if finding.remedy else ""
            table.add_row(finding.subject, STYLES[finding.verdict], Text(finding.found + mend))
        console.print(table)
    if any(finding.verdict is Verdict.BAD for finding in findings):
        raise typer.Exit(1)


@contextlib.contextmanager
def _one_sentence() -> Iterator[None]:
    """Turn what the user can mend into one sentence on standard error and exit code 2."""
    try:
        yield
    except (BundleError, CommandError, DecodersError, EngineError, ListenError, OSError) as error:
        _complain(error)
        raise typer.Exit(2) from error


def _complain(error: Exception) -> None:
    typer.echo(f"limelight: {error}", err=True)


def _settings(**given: Any) -> Settings:
    """The environment's settings, overruled by the options that were given."""
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        raise CommandError(f"LIMELIGHT_{str(first['loc'][0]).upper()} cannot be used: {first['msg']}") from error


def _read(clip: Path) -> bytes:
    try:
        return clip.read_bytes()
    except OSError as error:
        raise CommandError(f"{clip} cannot be read ({error.strerror}); check its name and permissions") from error


@contextlib.contextmanager
def _in_process(bundle: Path, top_k: int, attention: bool) -> Iterator[Classify]:
    """Classify with a bundle, here."""
    pipeline = load_pipeline(_settings(bundle=bundle), Metrics())
    with contextlib.closing(pipeline), asyncio.Runner() as runner:

        def classify(name: str, data: bytes) -> PredictionAnswer:
            started = time.monotonic()
            seconds: Stages = {}
            try:
                prediction = runner.run(pipeline.predict(data, deadline=math.inf, stages=seconds))
            except ClipError as error:
                raise CommandError(f"{name}: {error}") from error
            answer = answer_json(
                prediction,
                model=ModelFacts.of(prediction.model),
                labels=prediction.model.manifest.labels,
                top_k=top_k,
                attention=attention,
                timings_ms=Timings(
                    receive=0,
                    decode=1000 * seconds["decode"],
                    queue=1000 * seconds["queue"],
                    inference=1000 * seconds["inference"],
                    total=1000 * (time.monotonic() - started),
                ),
            )
            return PredictionAnswer.model_validate_json(answer)

        yield classify


@contextlib.contextmanager
def _over_http(url: str, top_k: int, attention: bool, key: str | None) -> Iterator[Classify]:
    """Classify with a running service, to which `key` is shown."""
    credentials = {"Authorization": f"Bearer {key}"} if key else {}
    local = _host(url) in {"127.0.0.1", "localhost", "::1"}
    with httpx.Client(timeout=PATIENCE, trust_env=not local) as client:  # no proxy between a machine and itself

        def classify(name: str, data: bytes) -> PredictionAnswer:
            try:
                answer = client.post(
                    f"{url.rstrip('/')}/predict",
                    params={"top_k": top_k, "attention": attention},
                    headers={"Content-Type": "application/octet-stream", **credentials},
                    content=data,
                )
            except httpx.HTTPError as error:
                raise CommandError(
                    f"no service answers at {url} ({error}); start one with `limelight serve`, or give --bundle"
                ) from error
            return _understand(answer, name, url)

        yield classify


def _host(url: str) -> str:
    try:
        address = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise CommandError(f"{url} is not an address ({error}); give one such as {DEFAULT_URL}") from error
    if address.scheme not in {"http", "https"}:
        raise CommandError(f"{url} is not an address over HTTP; give one such as {DEFAULT_URL}")
    return address.host


def _understand(answer: httpx.Response, name: str, url: str) -> PredictionAnswer:
    try:
        if answer.is_success:
            return PredictionAnswer.model_validate_json(answer.content)
        problem = ProblemAnswer.model_validate_json(answer.content)
    except ValidationError as error:
        raise CommandError(
            f"{url} answers with status {answer.status_code} and not as Limelight does; check the address"
        ) from error
    raise CommandError(f"{name}: {problem.title}: {problem.detail} ({problem.status} {problem.code})")


@contextlib.contextmanager
def _server(bundle: Path) -> Iterator[str]:
    """`limelight serve` as a process of its own on a free port: the address, once it is ready."""
    port = _free_port()
    command = [sys.executable, "-m", "service.cli", "serve", f"--bundle={bundle}", "--host=127.0.0.1", f"--port={port}"]
    with tempfile.TemporaryFile("w+") as complaints:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=complaints)  # noqa: S603 - ours
        try:
            url = f"http://127.0.0.1:{port}"
            with Console(stderr=True).status(f"Starting a server on port {port} …"):
                ready = _await_ready(process, url)
            if not ready:
                complaints.seek(0)
                said = complaints.read().strip().splitlines() or [f"it ended with exit code {process.returncode}"]
                raise CommandError(f"the server did not start: {said[-1].removeprefix('limelight: ')}")
            yield url
        finally:
            _stop(process)


def _await_ready(process: subprocess.Popen[bytes], url: str) -> bool:
    """Whether the server became ready; False if it ended or takes for ever."""
    deadline = time.monotonic() + START_PATIENCE_S
    with httpx.Client(trust_env=False) as client:
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                if client.get(f"{url}/health/ready").is_success:
                    return True
            time.sleep(0.1)
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(STOP_PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _show(clip: Path, classify: Classify, *, overlay: Path | None, json: bool) -> None:
    data = _read(clip)
    answer = classify(str(clip), data)
    if overlay:
        _write_overlay(overlay, str(clip), data, answer)
    if json:
        typer.echo(answer.model_dump_json(exclude_unset=True))
        return
    _print_answer(str(clip), answer)
    if overlay:
        _say(f"Where the network looked: {overlay}")


def _print_answer(name: str, answer: PredictionAnswer) -> None:
    """The likeliest classes as a table, then what was asked of whom and how long each stage took."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("action")
    table.add_column("probability", justify="right")
    table.add_column("")
    for ranked in answer.predictions:
        table.add_row(Text(ranked.label), f"{ranked.probability:.4f}", "█" * round(24 * ranked.probability))
    clip, model, times = answer.clip, answer.model, answer.timings_ms
    _say(name, style="bold")
    Console(highlight=False).print(table)
    _say(
        f"{clip.frames} frames of {clip.codec} at {clip.width}×{clip.height}, {clip.duration_s:.2f} s; "
        f"{model.name} {model.version}, {model.precision} on {model.provider}\n"
        f"decode {times.decode:.0f} ms, queue {times.queue:.0f} ms, inference {times.inference:.0f} ms, "
        f"total {times.total:.0f} ms",
        style="dim",
    )


def _say(words: str, style: str = "") -> None:
    Console(highlight=False, soft_wrap=True).print(Text(words, style))


def _check_overlay(path: Path) -> None:
    try:
        check_overlay_path(path)
    except ValueError as error:
        raise CommandError(str(error)) from error


def _write_overlay(path: Path, name: str, data: bytes, answer: PredictionAnswer) -> None:
    maps = None if answer.attention is None else np.array(answer.attention.maps, np.float32)
    found = "  ".join(f"{ranked.label} {ranked.probability:.1%}" for ranked in answer.predictions[:3])
    try:
        frames = decode_clip(data).frames
        write_overlay(path, frames, maps, times_s=[frame.time_s for frame in answer.frames], caption=found)
    except ClipError as error:
        raise CommandError(f"{name}: {error}") from error
    except OSError as error:
        raise CommandError(f"{path} cannot be written ({error.strerror}); choose another place") from error


if __name__ == "__main__":
    app()
