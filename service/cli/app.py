"""The ``limelight`` command: serve a bundle, classify clips, check an installation.

Nothing here imports ONNX Runtime, FastAPI, PyAV or Pillow before a command needs it, so that ``--help`` is quick.
"""

import contextlib
import errno
import logging
import os
import signal
from collections.abc import Callable, Iterator
from importlib.metadata import version as version_of
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from pydantic import SecretStr, ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from service.cli.streams import complain, run, written
from service.errors import CommandError, LibraryMissing, LimelightError
from service.settings import DEFAULT_URL, Settings, check_key, reason_of

if TYPE_CHECKING:
    from service.cli.classifying import Answer, Classify

TOP_K = 5
VERDICT_STYLES = {"ok": "green", "warning": "yellow", "error": "bold red"}

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)


def main() -> None:
    """Run the command that the arguments of the process name."""
    run(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        with written():
            typer.echo(f"limelight {version_of('limelight')}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Recognise human actions in video clips and show where the network looked."""


BundleOption = Annotated[
    Path | None, typer.Option(help="Folder written by `limelight-model export` (default: $LIMELIGHT_BUNDLE or bundle).")
]


@app.command()
def serve(
    bundle: BundleOption = None,
    host: Annotated[
        str | None,
        typer.Option(help="Address to listen on; 0.0.0.0 or :: to serve other machines (default: 127.0.0.1)."),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one (default: 8000).")
    ] = None,
    unix_socket: Annotated[
        Path | None,
        typer.Option(help="Unix socket to listen on instead of host and port."),
    ] = None,
) -> None:
    """Serve predictions over HTTP until interrupted. All LIMELIGHT_* settings apply."""
    with _errors_as_one_sentence():
        # Until the server handles signals there is nothing to finish, and no older bundle to replace.
        hung_up = _watch_terminal()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: _end())
        signal.signal(signal.SIGHUP, lambda *_: _end() if hung_up() else None)
        from service.http.server import serve as run_server

        run_server(_settings(bundle=bundle, host=host, port=port, unix_socket=unix_socket), hung_up=hung_up)


def _watch_terminal() -> Callable[[], bool]:
    """Return a function that says whether the terminal that the process was started at has been closed.

    It always says no if SIGHUP is ignored, as under ``nohup``: the process is meant to stay.
    """
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN or _terminal_error():
        return lambda: False
    return lambda: _terminal_error() in {errno.ENXIO, errno.EIO}  # others, such as too many open files, say nothing


def _terminal_error() -> int | None:
    """Return the error of opening the process's terminal, or None if it can be opened."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError as error:
        return error.errno
    return None


def _end() -> NoReturn:
    logging.shutdown()
    os._exit(0)


@app.command()
def predict(
    clips: Annotated[list[Path], typer.Argument(help="Video files.", metavar="CLIP", show_default=False)],
    url: Annotated[
        str | None,
        typer.Option(
            help=f"Address of a running service, or unix: and the path of its socket (default: {DEFAULT_URL})."
        ),
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="Run this bundle in this process instead of asking a service.")
    ] = None,
    overlay: Annotated[
        Path | None, typer.Option(help="Write a picture of where the network looked to this file: .png, .gif or .mp4.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the API's answers, one JSON object per line.")] = False,
    top_k: Annotated[int, typer.Option(min=1, help="Number of most likely classes to list.")] = TOP_K,
) -> None:
    """Recognise the action in clips. If the service requires an API key, set it in $LIMELIGHT_API_KEY."""
    with _errors_as_one_sentence():
        if url and bundle:
            raise CommandError("--url and --bundle exclude each other; give only one of them")
        if overlay and len(clips) > 1:
            raise CommandError(f"--overlay {overlay} shows one clip; give one clip at a time")
        if overlay:
            from service.cli.overlay import check_overlay_path

            check_overlay_path(overlay)
        from service.cli.classifying import Wanted, in_process, over_http

        wanted = Wanted(top_k, json=json, overlay=overlay is not None)
        if bundle:
            source = in_process(_settings(bundle=bundle), wanted)
        else:
            source = over_http(url or DEFAULT_URL, _client_key(), wanted)
        failed = False
        with source as classify:
            for clip in clips:
                try:
                    _predict_one(clip, classify, overlay)
                except CommandError as error:
                    complain(error)
                    failed = True
        if failed:
            raise typer.Exit(2)


@app.command()
def demo(
    clip: Annotated[
        Path | None, typer.Argument(help="Video file (default: a drawn person doing jumping jacks).")
    ] = None,
    bundle: BundleOption = None,
    overlay: Annotated[Path, typer.Option(help="File to write the picture of where the network looked to.")] = Path(
        "demo.png"
    ),
) -> None:
    """Start a server on a free port, classify a clip with it, draw the overlay, stop the server."""
    with _errors_as_one_sentence():
        from service.cli.classifying import Wanted, over_http
        from service.cli.demo import running_server
        from service.cli.overlay import check_overlay_path
        from service.web import sample_clip

        check_overlay_path(overlay)
        name, data = (str(clip), _read(clip)) if clip else ("a drawn person doing jumping jacks", sample_clip())
        settings = _settings(bundle=bundle)
        key = settings.api_keys[0].get_secret_value() if settings.api_keys else None
        with (
            running_server(settings.bundle) as url,
            over_http(url, key, Wanted(TOP_K, overlay=True)) as classify,
        ):
            answer = classify(name, data)
        _print_answer(name, answer)
        _write_overlay(overlay, answer)


@app.command()
def doctor(bundle: BundleOption = None) -> None:
    """Check whether the service would work here and say how to fix what would not. Exits with 1 on an error."""
    with _errors_as_one_sentence():
        from service.cli.doctor import Verdict, examine

        findings = list(examine(_settings(bundle=bundle), os.environ))
        table = Table("checked", "", "found", box=None, padding=(0, 2, 0, 0))
        for finding in findings:
            remedy = f"\n→ {finding.remedy}" if finding.remedy else ""
            verdict = Text(finding.verdict, VERDICT_STYLES[finding.verdict])
            table.add_row(finding.subject, verdict, Text(finding.found + remedy))
        with written():
            Console(highlight=False).print(table)
        if any(finding.verdict is Verdict.BAD for finding in findings):
            raise typer.Exit(1)


@app.command()
def health() -> None:
    """Ask the service that the LIMELIGHT_* settings describe whether it is ready. Exits with 1 if it is not."""
    from service.cli.health import main

    raise typer.Exit(main(os.environ))


@contextlib.contextmanager
def _errors_as_one_sentence() -> Iterator[None]:
    """Print an expected error as one sentence on standard error and exit with code 2."""
    try:
        yield
    except (LimelightError, OSError) as error:
        complain(error)
        raise typer.Exit(2) from error
    except ImportError as error:
        complain(LibraryMissing(error))
        raise typer.Exit(2) from error


def _settings(**options: Any) -> Settings:
    """The environment's settings, overridden by the options that were given."""
    try:
        return Settings(**{name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        raise CommandError(reason_of(error)) from error


def _client_key() -> str | None:
    """The API key in $LIMELIGHT_API_KEY, if there is one."""
    key = os.environ.get("LIMELIGHT_API_KEY", "").strip()
    try:
        return check_key(SecretStr(key)).get_secret_value() if key else None
    except ValueError as error:
        raise CommandError(f"LIMELIGHT_API_KEY is not valid: {error}") from error


def _read(clip: Path) -> bytes:
    try:
        return clip.read_bytes()
    except OSError as error:
        raise CommandError(f"{clip} cannot be read ({error.strerror}); check its name and permissions") from error


def _predict_one(clip: Path, classify: "Classify", overlay: Path | None) -> None:
    """Classify one clip, print its answer and draw its overlay. With ``--json`` nothing else is printed."""
    answer = classify(str(clip), _read(clip))
    if answer.json is not None:
        with written():
            typer.echo(answer.json.encode())  # JSON is UTF-8, whatever the encoding of standard output is
    else:
        _print_answer(str(clip), answer)
    if overlay:
        _write_overlay(overlay, answer, quiet=answer.json is not None)


def _print_answer(name: str, answer: "Answer") -> None:
    """Print the most likely classes as a table, then the clip's facts, the model and the time of each stage."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("action")
    table.add_column("probability", justify="right")
    table.add_column("")
    for label, probability in answer.ranking:
        table.add_row(Text(label), f"{probability:.4f}", "█" * round(24 * probability))
    clip, times = answer.clip, answer.timings_ms
    _print(name, style="bold")
    with written():
        Console(highlight=False).print(table)
    _print(
        f"{clip.frames} frames of {clip.codec} at {clip.width}×{clip.height}, {clip.duration_s:.2f} s; {answer.model}\n"
        f"decode {times['decode']:.0f} ms, queue {times['queue']:.0f} ms, inference {times['inference']:.0f} ms, "
        f"total {times['total']:.0f} ms",
        style="dim",
    )


def _print(text: str, style: str = "") -> None:
    with written():
        Console(highlight=False, soft_wrap=True).print(Text(text, style))


def _write_overlay(path: Path, answer: "Answer", *, quiet: bool = False) -> None:
    """Draw an answer's attention over its frames, captioned with the three most likely classes."""
    from service.cli.overlay import write_overlay

    if answer.frames is None:
        raise ValueError("the answer was asked for without its frames")
    caption = "  ".join(f"{label} {probability:.1%}" for label, probability in answer.ranking[:3])
    try:
        write_overlay(path, answer.frames, answer.attention, times_s=answer.times_s, caption=caption)
    except OSError as error:
        raise CommandError(f"{path} cannot be written ({error.strerror}); choose another file") from error
    if not quiet:
        _print(f"Overlay written to {path}")
