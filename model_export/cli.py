"""``limelight-model``: weights, features, training, evaluation, export and verification.

This module declares options and prints results. What the commands do is in the modules that they import, which tests
call without the command line.
"""

import os
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import version as version_of
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer

from model_export.errors import EvaluationError, LimelightModelError, OwnBundleError
from model_export.judging.plan import EvaluationPlan
from model_export.library_output import LibraryOutput, kept_back
from model_export.network.spec import FeatureDtype, HeadSpec
from model_export.options import takes
from model_export.processes import prepare_tensorflow
from model_export.recipe import Recipe
from model_export.storing import sole_writer
from model_export.terminal import TerminalReporter
from service.errors import LibraryMissing, LimelightError
from service.model.bundle import Agreement, Precision, read_manifest
from service.signals import end_by
from service.streams import complain, run

# Leaves room on a GPU for the processes of trainings: TensorFlow otherwise reserves all of its memory.
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")

app = typer.Typer(no_args_is_help=True)
VERBOSE = ContextVar("VERBOSE", default=False)
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
        help="Use at most this many clips per class, spread over all groups by their names; lower it for a quick try "
        "(default: all).",
    ),
]
HeadOption = Annotated[
    Path | None, typer.Option(help="Folder of a trained head, as `train` writes it (default: the pretrained head).")
]


LogOption = Annotated[Path, typer.Option(help="File of results by clip; an interrupted run continues from it.")]
VERIFY_LOG = Path("runs/verify.jsonl")


reporter = TerminalReporter()
# What shells report of a program that a signal has ended: 128 and the signal's number.
SIGNALLED = frozenset(128 + number for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM))


class Terminated(BaseException):
    """The process received SIGTERM or, because its terminal was closed, SIGHUP."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__(number)
        self.number = number


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated(number)


@contextmanager
def _command() -> Iterator[LibraryOutput]:
    """Keep back what libraries print, and print why a command ended as one sentence.

    The exit status is 2 after errors that the user can fix and, after a signal, one of ``SIGNALLED``.
    """
    # TensorFlow's levels begin with 0, information, and 1, warnings.
    level = os.environ.get("TF_CPP_MIN_LOG_LEVEL") or ("0" if VERBOSE.get() else "1")
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = level
    try:
        with kept_back(verbose=VERBOSE.get()) as output:
            yield output
    except BrokenPipeError:
        raise  # nobody reads any more; `run` ends the command without a word
    except (LimelightModelError, LimelightError, OSError) as error:
        raise _ended(str(error), 2) from error
    except ImportError as error:
        raise _ended(str(LibraryMissing(error)), 2) from error
    except KeyboardInterrupt as error:
        raise _ended("interrupted; run the same command again to continue", 128 + signal.SIGINT) from error
    except Terminated as error:
        raise _ended("terminated; run the same command again to continue", 128 + error.number) from error


def _ended(why: str, status: int) -> typer.Exit:
    complain(why, "limelight-model")
    return typer.Exit(status)


def _start_tensorflow(output: LibraryOutput) -> None:
    """Import TensorFlow; its messages about missing GPUs and instructions are of no interest if that succeeds."""
    import tensorflow  # noqa: F401

    prepare_tensorflow()
    output.forget()


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"limelight-model {version_of('limelight')}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose", help="Also print what TensorFlow and other libraries print, and not only on failure."
        ),
    ] = False,
) -> None:
    """Train a head on your clips, evaluate it, export it to a bundle for `limelight serve`, and verify the bundle."""
    VERBOSE.set(verbose)


@app.command("fetch-weights")
def fetch_weights_command(weights: WeightsOption = None) -> None:
    """Find or download VGG19's ImageNet weights and check their hashes."""
    from model_export.weights import fetch_weights

    with _command():
        reporter.say(f"VGG19 weights: {fetch_weights(weights, reporter=reporter)}")


@app.command()
def features(
    videos: VideosOption,
    features: FeaturesOption = Path("features"),
    classes: ClassOption = None,
    clips_per_class: CountOption = None,
    dtype: Annotated[
        FeatureDtype | None,
        typer.Option(
            help="Type to store features in: `float16` for training, `float32` for `verify --features`. A folder holds "
            "features of one type only (default: the folder's, `float16` for a new one)."
        ),
    ] = None,
    flip: Annotated[
        bool, typer.Option("--flip", help="Also compute features of mirrored clips, which `--flip` of `train` needs.")
    ] = False,
    weights: WeightsOption = None,
    output: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Compute the VGG19 features of clips, which `train` and `evaluate` otherwise do first.

    If interrupted, run it again to continue.
    """
    with _command() as libraries:
        _start_tensorflow(libraries)
        from model_export.data.gathering import Selection, gather_features
        from model_export.weights import fetch_weights

        if output:
            reporter.say("--output of this command is called --features now, as everywhere else")
            features = output
        vgg19 = fetch_weights(weights, reporter=reporter)
        selection = Selection(videos, classes, clips_per_class)
        data = gather_features(selection, vgg19, features, flip=flip, dtype=dtype, reporter=reporter)
        reporter.say(f"features of {len(data.examples)} clips: {features}")


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
    start: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Folder of a head of the same network to begin with, for other or more classes; lower "
            "--learning-rate to change it less.",
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the network in manifests and answers.")] = "limelight",
    version: Annotated[str, typer.Option(help="Version of the network; raise it when you train again.")] = "1",
    weights: WeightsOption = None,
) -> None:
    """Train a head on folders of clips, after computing features that are missing.

    If interrupted, run it again to continue after the last complete epoch.
    """
    with _command() as libraries, sole_writer(output, "run"):
        _start_tensorflow(libraries)
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
            start=start,
            weights=weights,
            reporter=reporter,
        )
        reporter.say(f"trained head: {output}")
        export = shlex.join(["limelight-model", "export", "--head", str(output), "--verify", str(videos)])
        reporter.say(
            f"next: `{export}` writes `bundle` and compares it with Keras, which takes seconds a clip for each "
            "precision; without --verify, CPUs run fp32. Then `limelight serve --bundle bundle`"
        )


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

    Heads and two baselines, with and without motion, are trained and tested on the same folds, or on official splits.
    Writes report.md, report.json, tables in CSV and pictures. If interrupted, run it again to continue.
    """
    with _command() as libraries, sole_writer(output, "runs"):
        _start_tensorflow(libraries)
        from model_export.data.gathering import Selection
        from model_export.judging.evaluation import evaluate as run_evaluation
        from model_export.judging.report import means_of_splits

        found = run_evaluation(
            Selection(videos, classes, clips_per_class),
            features,
            output,
            plan,
            spec,
            recipe,
            weights=weights,
            command=_command_line(),
            reporter=reporter,
        )
        means = means_of_splits(found.experiments)
        rows = []
        for results in zip(*(experiment.results for experiment in found.experiments), strict=True):
            figures = [result.figures()["accuracy"] for result in results]
            cells = [f"{f.value:.1%} ({f.low:.1%}–{f.high:.1%})" for f in figures]
            if mean := means.get(results[0].contender, {}).get("accuracy"):
                cells.append(f"{mean.mean:.1%} ± {mean.deviation:.1%} ({mean.low:.1%}–{mean.high:.1%})")
            rows.append((results[0].contender, *cells))
        names = [experiment.name for experiment in found.experiments] + ["mean of the splits"] * bool(means)
        reporter.table(("method", *(f"accuracy, {name}" for name in names)), rows)
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
    videos: Annotated[
        Path | None,
        typer.Option(
            "--verify",
            help="Then compare the bundle with Keras on the clips of this folder, as `verify --record` does, so that "
            "the service may use int8 on CPUs; takes seconds a clip for each precision.",
        ),
    ] = None,
    log: LogOption = VERIFY_LOG,
) -> None:
    """Export a head to a bundle: fp32, fp16 and int8 ONNX files, checked against Keras, and a manifest.

    A bundle in the same folder is replaced if it was made from the same head or from one that came with Limelight. One
    that was made from another head of yours is replaced only with --force: without it, --head fails, and the
    pretrained head leaves the bundle in place and succeeds.
    """
    with _command() as libraries:
        _start_tensorflow(libraries)
        from model_export.data.gathering import Selection
        from model_export.export import export_bundle
        from model_export.head import PRETRAINED, load_head
        from model_export.provenance import own_bundle_of_earlier_versions
        from model_export.verify import check_outputs, clips_for_int8, verify_bundle, verify_command
        from model_export.weights import fetch_weights

        chosen = load_head(head or PRETRAINED)
        selection = Selection(videos, count=clips_for_int8(chosen)) if videos else None
        if selection:  # an export takes minutes
            selection.clips()
            check_outputs(output, log, chosen if head else None)
        vgg19 = fetch_weights(weights, reporter=reporter)
        try:
            written = export_bundle(chosen, vgg19, output, force=force, reporter=reporter)
        except OwnBundleError as kept:
            if head is not None:
                raise
            # `docker compose up` and `make demo` only need a bundle: they go on with this one.
            reporter.say(f"bundle: {kept}")
            return
        reporter.say(f"bundle: {output} ({'written' if written else 'already up to date'})")
        if selection:
            measured = verify_bundle(
                output,
                chosen,
                selection,
                log,
                record=head is not None,
                weights=weights,
                reporter=reporter,
            )
            _show_agreement(output, measured)
        elif (int8 := read_manifest(output).precisions.get("int8")) and int8.agreement is None:
            reporter.say(
                "on CPUs, the service runs fp32, because int8 has not been compared with Keras on real clips; to "
                f"compare it, run `{verify_command(output, chosen, weights)}`"
            )
        else:
            _show_agreement(output, {})
        if head is None and (earlier := own_bundle_of_earlier_versions(output, chosen)):
            reporter.say(
                f"{earlier} was made from a head of your own, which earlier versions served; to serve it, replace "
                f"{output} by a copy of it (docs/operations.md, Your own head)"
            )


# ``--clips`` was the name of ``--videos`` before other commands had it.
@app.command(context_settings={"token_normalize_func": lambda name: "videos" if name == "clips" else name})
def verify(
    videos: Annotated[Path, typer.Option(help="Folder with one folder of clips per class.")],
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
            help="Folder of float32 features (`features --dtype float32`), used instead of running VGG19 in Keras; "
            "features that are missing are computed and added."
        ),
    ] = None,
    log: LogOption = VERIFY_LOG,
    record: Annotated[
        bool, typer.Option(help="Also save the agreement beside the head's weights, for later exports.")
    ] = False,
    weights: WeightsOption = None,
) -> None:
    """Measure how often each precision of a bundle agrees with Keras, and write it into the manifest.

    On a CPU the service uses int8 only if the lower bound of its 95 % interval is at least 98 %. That takes clips from
    189 source videos without a disagreement, and more with some. The last line says if it will, or why not.
    """
    with _command() as libraries:
        _start_tensorflow(libraries)
        from model_export.data.gathering import Selection
        from model_export.head import PRETRAINED, load_head
        from model_export.verify import verify_bundle

        measured = verify_bundle(
            bundle,
            load_head(head or PRETRAINED),
            Selection(videos, count=clips_per_class),
            log,
            precisions=[precision] if precision else [],
            features=features,
            record=record,
            weights=weights,
            reporter=reporter,
        )
        _show_agreement(bundle, measured)


def _show_agreement(bundle: Path, measured: Mapping[Precision, Agreement]) -> None:
    """Print the agreement, and which precision the service will run."""
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


@app.command("test")
def measure(
    videos: VideosOption,
    bundle: Annotated[
        Path | None, typer.Option(help="Bundle to test (default: `bundle`, unless only a head is named).")
    ] = None,
    head: Annotated[
        Path | None,
        typer.Option(
            help="Head to test in Keras. With --bundle, the head that it was made from: heads know which clips they "
            "were trained on."
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option(help="Folder to write the report to; also keeps answers to continue from.")
    ] = Path("runs/test"),
    classes: ClassOption = None,
    clips_per_class: CountOption = None,
    precision: Annotated[
        Precision | None,
        typer.Option(help="Precision of the bundle (default: the one that the service would use on this CPU)."),
    ] = None,
    features: FeaturesOption = Path("features"),
    weights: WeightsOption = None,
) -> None:
    """Measure how well a bundle or a head names the clips of a labelled folder, such as clips it was not trained on.

    Classes are compared by the names of folders. Writes test.md, test.json, predictions.csv, classes.csv and a picture.
    If interrupted, run it again to continue.
    """
    with _command() as libraries, sole_writer(output, "answers"):
        _start_tensorflow(libraries)
        from model_export.data.gathering import Selection
        from model_export.head import load_head
        from model_export.judging.report import COLUMNS
        from model_export.judging.testing import judge_bundle, judge_head

        selection, loaded = Selection(videos, classes, clips_per_class), load_head(head) if head else None
        if loaded and not bundle:
            if precision:
                raise EvaluationError(
                    "--precision is one of a bundle, and a head alone is tested in Keras; name the bundle with "
                    "--bundle, or leave --precision out"
                )
            found = judge_head(
                loaded,
                selection,
                output,
                features=features,
                weights=weights,
                command=_command_line(),
                reporter=reporter,
            )
        else:
            found = judge_bundle(
                bundle or Path("bundle"),
                selection,
                output,
                precision=precision,
                head=loaded,
                command=_command_line(),
                reporter=reporter,
            )
        reporter.table(
            ("figure", "value", "95 % interval"),
            [
                (COLUMNS[metric], f"{one.value:.1%}", f"{one.low:.1%} – {one.high:.1%}")
                for metric, one in found.results.figures().items()
            ],
        )
        reporter.say(f"report: {output / 'test.md'}")


def _command_line() -> str:
    """Return the command line of this process; arguments may have bytes that are no characters."""
    return shlex.join(["limelight-model", *sys.argv[1:]]).encode(errors="backslashreplace").decode()


def main() -> None:
    """Run the command that the arguments of the process name. After a signal the process ends by it."""
    signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # which nohup sets
        signal.signal(signal.SIGHUP, _terminate)
    try:
        run(app, "limelight-model", discard=True)
    except SystemExit as ending:
        if ending.code in SIGNALLED:
            end_by(int(ending.code) - 128)
        raise


if __name__ == "__main__":
    main()
