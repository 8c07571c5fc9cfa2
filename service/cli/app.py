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
from typing import Annotated, Any, NoReturn

import typer
from pydantic import SecretStr, ValidationError

from service.cli.clips import find_clips
from service.cli.patience import MAX_WAIT_S
from service.cli.printing import (
    csv_with_header,
    print_answer,
    print_findings,
    show_json,
    show_text,
)
from service.errors import CommandError, LibraryMissing, LimelightError
from service.settings import DEFAULT_URL, Settings, check_key, reason_of
from service.streams import complain, run, written

TOP_K = 5
JOBS = 4  # clips are decoded while the model is busy with another one

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
    clips: Annotated[
        list[str],
        typer.Argument(
            help="Video files, folders of them, or - for standard input.", metavar="CLIP", show_default=False
        ),
    ],
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
    json: Annotated[
        bool, typer.Option("--json", help="Print the API's answers, one JSON object per line, with the clip's `file`.")
    ] = False,
    csv: Annotated[
        bool, typer.Option("--csv", help="Print a CSV table: the most likely class of each clip, or its problem.")
    ] = False,
    top_k: Annotated[int, typer.Option(min=1, help="Number of most likely classes to list.")] = TOP_K,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=64,
            help="Clips in progress at a time, fewer while the service is busy (default: 4, or 1 with --bundle).",
        ),
    ] = None,
    max_wait: Annotated[
        float,
        typer.Option(min=0, metavar="SECONDS", help="How long to go on asking a service that is busy or gone."),
    ] = MAX_WAIT_S,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first clip without an answer.")] = False,
) -> None:
    """Recognise the action in clips. If the service requires an API key, set it in $LIMELIGHT_API_KEY.

    Folders are searched for files with a video's suffix. Answers are printed in the order of the clips.

    Exits with 1 if some clips have no answer, and with 2 if the command is wrong or the service cannot be used.
    """
    with _errors_as_one_sentence():
        if url and bundle:
            raise CommandError("--url and --bundle exclude each other; give only one of them")
        if json and csv:
            raise CommandError("--json and --csv exclude each other; give only one of them")
        found = list(find_clips(clips))
        if overlay:
            from service.cli.drawing import check_overlay, drawing

            check_overlay(overlay, len(found))
        from service.cli.classifying import Wanted, in_process
        from service.cli.predicting import predict_all
        from service.cli.remote import over_http

        wanted = Wanted(1 if csv else top_k, json=json, overlay=overlay is not None)
        jobs = jobs or (1 if bundle else JOBS)
        if bundle:
            settings = _settings(bundle=bundle)
            source, most_bytes = in_process(settings, wanted), settings.max_body_bytes
        else:
            source, most_bytes = (
                over_http(url or DEFAULT_URL, _client_key(), wanted, max_wait_s=max_wait, jobs=jobs),
                None,
            )
        with source as classify:
            show = show_json if json else csv_with_header() if csv else show_text
            if overlay:
                show = drawing(show, overlay, quiet=json or csv)
            if not predict_all(found, classify, show, jobs=jobs, most_bytes=most_bytes, fail_fast=fail_fast):
                raise typer.Exit(1)


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
        from service.cli.classifying import Wanted
        from service.cli.demo import opened_or_sample, running_server
        from service.cli.drawing import check_overlay, draw
        from service.cli.remote import over_http

        check_overlay(overlay, 1)
        settings = _settings(bundle=bundle)
        key = settings.api_keys[0].get_secret_value() if settings.api_keys else None
        with (
            opened_or_sample(clip) as file,
            running_server(settings.bundle) as url,
            over_http(url, key, Wanted(TOP_K, overlay=True)) as classify,
        ):
            answer = classify(file)
        print_answer(file.name, answer)
        draw(overlay, answer)


@app.command()
def doctor(bundle: BundleOption = None) -> None:
    """Check whether the service would work here and say how to fix what would not. Exits with 1 on an error."""
    with _errors_as_one_sentence():
        from service.cli.doctor import Verdict, examine

        findings = list(examine(_settings(bundle=bundle), os.environ))
        print_findings([(each.subject, each.verdict, each.found, each.remedy) for each in findings])
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
