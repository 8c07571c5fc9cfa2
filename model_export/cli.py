"""``limelight-model``: weights, features, training, evaluation, export and verification.

This module declares options and prints results. What the commands do is in the modules that they import, which tests
call without the command line.
"""

import io
import os
import shlex
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version as version_of
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from model_export.errors import LimelightModelError, OwnBundleError
from model_export.judging.plan import EvaluationPlan
from model_export.network.spec import FeatureDtype, HeadSpec
from model_export.options import takes
from model_export.processes import quiet_start
from model_export.recipe import Recipe
from model_export.reporter import Received, Reporter
from model_export.storing import sole_writer
from service.errors import LibraryMissing, LimelightError
from service.model.bundle import Precision

# Set before TensorFlow is imported: hides start-up messages about GPUs, which these commands do not need.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = os.environ.get("TF_CPP_MIN_LOG_LEVEL") or "2"
# Leaves room on a GPU for the processes of trainings: TensorFlow otherwise reserves all of its memory.
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")

T = TypeVar("T")

app = typer.Typer(no_args_is_help=True)
# File names and reasons may look like Rich's markup or emoji: ``clip [hd].mp4``, ``:smile:``.
console = Console(markup=False, emoji=False)

WeightsOption = Annotated[
    Path | None, typer.Option(help="VGG19 weights file (default: the one in Keras' cache, downloaded if missing).")
]
VideosOption = Annotated[
    Path, typer.Option(help="Folder with one folder of clips per class: UCF-101, HMDB-51 or your own.")
]
FeaturesOption = Annotated[
    Path, typer.Option(help="Folder of cached VGG19 features; features that are missing are computed and added.")
]
ClassOption = Annotated[
    list[str] | None, typer.Option("--class", help="Use only this class; repeat the option for more (default: all).")
]
CountOption = Annotated[
    int | None,
    typer.Option(
        "--clips-per-class",
        min=1,
        help="Use at most this many clips per class, spread over all groups; lower it for a quick try (default: all).",
    ),
]
HeadOption = Annotated[
    Path | None, typer.Option(help="Folder of a trained head, as `train` writes it (default: the pretrained head).")
]


class TerminalReporter(Reporter):
    """Prints what a command reports."""

    def say(self, line: str) -> None:
        """Print one line, which the terminal may wrap."""
        console.print(line, highlight=False, soft_wrap=True)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Print a table, if it has rows."""
        table = Table(*columns)
        for row in rows:
            table.add_row(*row)
        if table.row_count:
            console.print(table)

    @contextmanager
    def track(self, items: Iterable[T], title: str, total: int | None = None) -> Iterator[Iterable[T]]:
        """Show a progress bar with the time left."""
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("· left"), TimeRemainingColumn())
        with Progress(TextColumn("{task.description}"), *columns, console=console) as progress:
            yield progress.track(items, description=title, total=total)

    @contextmanager
    def transfer(self, title: str) -> Iterator[Received]:
        """Show a progress bar in bytes; nothing if the output is not a terminal."""
        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        silent = not console.is_terminal
        with Progress(
            TextColumn("{task.description}"), *columns, console=console, transient=True, disable=silent
        ) as progress:
            task = progress.add_task(title, total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total)


reporter = TerminalReporter()


class Terminated(BaseException):
    """The process received SIGTERM."""


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


@contextmanager
def _one_sentence_errors() -> Iterator[None]:
    """Print why a command ended as one sentence, and exit: with status 2 after errors that the user can fix.

    After a signal the status is that of a shell, 128 and the signal's number.
    """
    try:
        yield
    except BrokenPipeError:
        raise  # nobody reads any more; Typer ends the command without a word
    except (LimelightModelError, LimelightError, OSError) as error:
        raise _ended(str(error), 2) from error
    except ImportError as error:
        raise _ended(str(LibraryMissing(error)), 2) from error
    except KeyboardInterrupt as error:
        raise _ended("interrupted; run the same command again to continue", 128 + signal.SIGINT) from error
    except Terminated as error:
        raise _ended("terminated; run the same command again to continue", 128 + signal.SIGTERM) from error


def _ended(why: str, status: int) -> typer.Exit:
    print(f"limelight-model: {why}", file=sys.stderr)  # noqa: T201
    return typer.Exit(status)


def _start_tensorflow() -> None:
    """Import TensorFlow without its messages about missing GPUs."""
    with quiet_start():
        import tensorflow  # noqa: F401


def _print_version(wanted: bool) -> None:
    if wanted:
        reporter.say(f"limelight-model {version_of('limelight')}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Train a head on your clips, evaluate it, export it to a bundle for `limelight serve`, and verify the bundle."""


@app.command("fetch-weights")
def fetch_weights_command(weights: WeightsOption = None) -> None:
    """Find or download VGG19's ImageNet weights and check their hashes."""
    from model_export.weights import fetch_weights

    with _one_sentence_errors():
        reporter.say(f"VGG19 weights: {fetch_weights(weights, reporter=reporter)}")


@app.command()
def features(
    videos: VideosOption,
    output: FeaturesOption = Path("features"),
    classes: ClassOption = None,
    clips_per_class: CountOption = None,
    dtype: Annotated[
        FeatureDtype,
        typer.Option(help="Type to store features in: `float16` for training, `float32` for `verify --features`."),
    ] = "float16",
    flip: Annotated[
        bool, typer.Option("--flip", help="Also compute features of mirrored clips, which `--flip` of `train` needs.")
    ] = False,
    weights: WeightsOption = None,
) -> None:
    """Compute the VGG19 features of clips, which `train` and `evaluate` otherwise do first.

    If interrupted, run it again to continue.
    """
    with _one_sentence_errors():
        _start_tensorflow()
        from model_export.data.gathering import Selection, gather_features
        from model_export.weights import fetch_weights

        vgg19 = fetch_weights(weights, reporter=reporter)
        selection = Selection(videos, classes, clips_per_class)
        data = gather_features(selection, vgg19, output, flip=flip, dtype=dtype, reporter=reporter)
        reporter.say(f"features of {len(data.examples)} clips: {output}")


@app.command()
@takes(spec=HeadSpec, recipe=Recipe)
def train(
    videos: VideosOption,
    output: Annotated[Path, typer.Option(help="Folder to write the trained head to.")] = Path("runs/head"),
    features: FeaturesOption = Path("features"),
    classes: ClassOption = None,
    clips_per_class: CountOption = None,
    *,
    spec: HeadSpec,
    recipe: Recipe,
    evaluation: Annotated[
        Path | None,
        typer.Option(help="Folder of an `evaluate` run with the same options; the head then states its accuracy."),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the network in manifests and answers.")] = "limelight",
    version: Annotated[str, typer.Option(help="Version of the network; raise it when you train again.")] = "1",
    weights: WeightsOption = None,
) -> None:
    """Train a head on folders of clips, after computing features that are missing.

    If interrupted, run it again to continue after the last complete epoch.
    """
    with _one_sentence_errors(), sole_writer(output, "run"):
        _start_tensorflow()
        from model_export.data.gathering import Selection
        from model_export.training import train_head

        train_head(
            Selection(videos, classes, clips_per_class),
            features,
            output,
            spec,
            recipe,
            name=name,
            version=version,
            evaluation=evaluation,
            weights=weights,
            reporter=reporter,
        )
        reporter.say(f"trained head: {output}; export it with `limelight-model export --head {output}`")


@app.command()
@takes(plan=EvaluationPlan, spec=HeadSpec, recipe=Recipe)
def evaluate(
    videos: VideosOption,
    output: Annotated[
        Path, typer.Option(help="Folder to write the report to; also keeps results to continue from.")
    ] = Path("runs/evaluation"),
    features: FeaturesOption = Path("features"),
    classes: ClassOption = None,
    clips_per_class: CountOption = None,
    *,
    plan: EvaluationPlan,
    spec: HeadSpec,
    recipe: Recipe,
    weights: WeightsOption = None,
) -> None:
    """Measure how well heads trained with these options do on clips that they were not trained on.

    Heads and two baselines are trained and tested on the same folds, or on official splits. Writes report.md,
    report.json and pictures. If interrupted, run it again to continue.
    """
    with _one_sentence_errors(), sole_writer(output, "runs"):
        _start_tensorflow()
        from model_export.data.gathering import Selection
        from model_export.judging.evaluation import evaluate as run_evaluation

        found = run_evaluation(
            Selection(videos, classes, clips_per_class),
            features,
            output,
            plan,
            spec,
            recipe,
            weights=weights,
            # Arguments may have bytes that are no characters.
            command=shlex.join(["limelight-model", *sys.argv[1:]]).encode(errors="backslashreplace").decode(),
            reporter=reporter,
        )
        rows = []
        for results in zip(*(experiment.results for experiment in found.experiments), strict=True):
            figures = [result.figures()["accuracy"] for result in results]
            rows.append((results[0].contender, *(f"{f.value:.1%} ({f.low:.1%}–{f.high:.1%})" for f in figures)))
        reporter.table(("method", *(f"accuracy, {experiment.name}" for experiment in found.experiments)), rows)
        reporter.say(f"report: {found.report}")


@app.command()
def export(
    head: HeadOption = None,
    output: Annotated[Path, typer.Option(help="Folder to write the bundle to.")] = Path("bundle"),
    weights: WeightsOption = None,
    force: Annotated[
        bool,
        typer.Option(help="Write the bundle even if the folder is up to date or holds one of another head of yours."),
    ] = False,
) -> None:
    """Export a head to a bundle: fp32, fp16 and int8 ONNX files, checked against Keras, and a manifest.

    A bundle in the same folder is replaced if it was made from the same head or from one that came with Limelight. One
    that was made from another head of yours is replaced only with --force: without it, --head fails, and the
    pretrained head leaves the bundle in place and succeeds.
    """
    with _one_sentence_errors():
        _start_tensorflow()
        from model_export.export import export_bundle
        from model_export.head import PRETRAINED, load_head
        from model_export.provenance import own_bundle_of_earlier_versions
        from model_export.weights import fetch_weights

        vgg19 = fetch_weights(weights, reporter=reporter)
        chosen = load_head(head or PRETRAINED)
        try:
            written = export_bundle(chosen, vgg19, output, force=force, reporter=reporter)
        except OwnBundleError as kept:
            if head is not None:
                raise
            # `docker compose up` and `make demo` only need a bundle: they go on with this one.
            reporter.say(f"bundle: {kept}")
            return
        reporter.say(f"bundle: {output} ({'written' if written else 'already up to date'})")
        if head is None and (earlier := own_bundle_of_earlier_versions(output, chosen)):
            reporter.say(
                f"{earlier} was made from a head of your own, which earlier versions served; to serve it, replace "
                f"{output} by a copy of it (docs/operations.md, Your own head)"
            )


@app.command()
def verify(
    clips: Annotated[Path, typer.Option(help="Folder with one folder of clips per class.")],
    bundle: Annotated[Path, typer.Option(help="Bundle to verify.")] = Path("bundle"),
    head: HeadOption = None,
    # A clip takes seconds for each precision.
    clips_per_class: Annotated[
        int,
        typer.Option(
            min=1,
            help="Use at most this many clips per class, taken in turn from its source videos; raise it for a narrower "
            "interval.",
        ),
    ] = 20,
    precision: Annotated[Precision | None, typer.Option(help="Verify only this precision (default: all).")] = None,
    features: Annotated[
        Path | None,
        typer.Option(
            help="Folder of float32 features (`features --dtype float32`), used instead of running VGG19 in Keras."
        ),
    ] = None,
    log: Annotated[Path, typer.Option(help="File of results by clip; an interrupted run continues from it.")] = Path(
        "runs/verify.jsonl"
    ),
    record: Annotated[
        bool, typer.Option(help="Also save the agreement beside the head's weights, for later exports.")
    ] = False,
    weights: WeightsOption = None,
) -> None:
    """Measure how often each precision of a bundle agrees with Keras, and write it into the manifest.

    On a CPU the service uses int8 only if the lower bound of its 95 % interval is at least 98 %. That takes clips from
    189 source videos without a disagreement, and more with some. The last line says if it will, or why not.
    """
    with _one_sentence_errors():
        _start_tensorflow()
        from model_export.data.gathering import Selection
        from model_export.head import PRETRAINED, load_head
        from model_export.verify import verify_bundle
        from service.model.bundle import read_manifest

        measured = verify_bundle(
            bundle,
            load_head(head or PRETRAINED),
            Selection(clips, count=clips_per_class),
            log,
            precisions=[precision] if precision else [],
            features=features,
            record=record,
            weights=weights,
            reporter=reporter,
        )
        reporter.table(
            ("precision", "top-1 agreement", "95 % interval", "clips", "not finite", "largest difference"),
            [
                (
                    precision,
                    f"{found.top1:.2%}",
                    f"{found.low:.2%} – {found.high:.2%}",
                    str(found.n),
                    str(found.not_finite or 0),
                    "–" if found.not_finite == found.n else f"{found.max_abs_difference:.1e}",
                )
                for precision, found in measured.items()
            ],
        )
        shortfall = read_manifest(bundle).int8_shortfall
        reporter.say(f"on CPUs with VNNI, the service runs {f'fp32: {shortfall}' if shortfall else 'int8'}")


def main() -> None:
    """Run the command that the arguments of the process name."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # its encoding may not have all characters of texts and file names
    signal.signal(signal.SIGTERM, _terminate)
    app()


if __name__ == "__main__":
    main()
