"""The output and exit codes of ``limelight-model``. The commands are tested as functions elsewhere."""

import errno
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.main import get_group
from typer.testing import CliRunner, Result

from model_export import terminal as terminals
from model_export import training, verify
from model_export.cli import Terminated, app
from model_export.errors import EvaluationError
from model_export.head import PRETRAINED, load_head
from model_export.judging import evaluation
from model_export.judging.report import Experiment
from model_export.reporter import Advance
from model_export.storing import sole_writer
from model_export.terminal import TerminalReporter, console
from model_export.verify import verify_command
from service.model.bundle import Agreement, read_manifest, write_manifest
from tests.conftest import REPOSITORY
from tests.model_export.cached_clips import CachedClips
from tests.model_export.judging.eight_clips import results
from tests.tiny_bundle import AGREES


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run in a folder of their own, since their default outputs are relative and locked."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def assert_one_sentence(result: Result, *parts: str) -> None:
    assert result.exit_code == 2
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    for part in parts:
        assert part in lines[0]


def test_names_that_look_like_markup_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("clip [hd].mp4", "a[/b].mp4", ":smile:.mp4")
    TerminalReporter().table(("skipped clip",), [(name,) for name in names])
    TerminalReporter().say(names[-1])
    printed = capsys.readouterr().out
    for name in names:
        assert name in printed
    assert printed.count(":smile:") == 2


class TestProgress:
    @pytest.fixture
    def output(self) -> io.StringIO:
        return io.StringIO()

    def follow(self, monkeypatch: pytest.MonkeyPatch, output: io.StringIO, *, terminal: bool) -> None:
        """Track 40 clips that take 5 s each, after 10 that take no time, and hear of two epochs of 3 steps of 20 s."""
        clock = [0.0]
        screen = Console(file=output, force_terminal=terminal, width=100, get_time=lambda: clock[0], markup=False)
        monkeypatch.setattr(terminals, "console", screen)
        with TerminalReporter().track(range(50), "features [hd]") as clips:
            for clip in clips:
                clock[0] += 5 * (clip >= 10)
        with TerminalReporter().listen() as listener:
            for epoch in (1, 2):
                for done in range(4):
                    listener(Advance(f"epoch {epoch}", done, 3))
                    clock[0] += 20
                listener(f"epoch {epoch}: loss {1 / epoch}")
            for done in range(2):
                listener(Advance("one slow clip", done, 2))
                clock[0] += 40

    @pytest.mark.parametrize(("terminal", "kind"), [(False, "xterm"), (True, "dumb")])
    def test_away_from_a_terminal_it_is_a_line_every_half_minute(
        self, monkeypatch: pytest.MonkeyPatch, output: io.StringIO, *, terminal: bool, kind: str
    ) -> None:
        monkeypatch.setenv("TERM", kind)
        self.follow(monkeypatch, output, terminal=terminal)
        lines = output.getvalue().splitlines()
        assert [line.partition(",")[0] for line in lines[:6]] == [
            f"features [hd]: {done} of 50" for done in (16, 22, 28, 34, 40, 46)
        ]
        assert lines[2].endswith(", 0:01:50 left"), "clips that took no time no longer count"
        assert lines[6:] == [
            "epoch 1: 2 of 3, 0:00:20 left",
            "epoch 1: loss 1.0",
            "epoch 2: 2 of 3, 0:00:20 left",
            "epoch 2: loss 0.5",
            "one slow clip: 1 of 2",
        ]

    def test_a_slow_download_is_a_line_every_half_minute_too(
        self, monkeypatch: pytest.MonkeyPatch, output: io.StringIO
    ) -> None:
        clock = [0.0]
        monkeypatch.setattr(terminals, "console", Console(file=output, width=100, get_time=lambda: clock[0]))
        with TerminalReporter().transfer("vgg19.h5") as received:
            for mebibytes in range(0, 77, 2):
                received(mebibytes << 20, 76 << 20)
                clock[0] += 2
        assert output.getvalue().splitlines() == [
            "vgg19.h5, MiB: 30 of 76, 0:00:46 left",
            "vgg19.h5, MiB: 60 of 76, 0:00:16 left",
        ]

    def test_on_a_terminal_it_is_a_bar_that_lines_do_not_break(
        self, monkeypatch: pytest.MonkeyPatch, output: io.StringIO
    ) -> None:
        monkeypatch.setenv("TERM", "xterm")
        self.follow(monkeypatch, output, terminal=True)
        shown = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", output.getvalue())
        assert re.search(r"features \[hd\] ━+ 50/50 0:03:20", shown)
        assert re.search(r"^epoch 1: loss 1.0$", shown.replace("\r", "\n"), re.MULTILINE)
        assert re.search(r"one slow clip ━+.* 1/2 0:01:20 · left -:--:--\s*$", shown)


def test_a_report_states_a_command_that_can_be_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def report(*_: object, command: str, **__: object) -> None:
        raise EvaluationError(command)

    monkeypatch.setattr(evaluation, "evaluate", report)
    monkeypatch.setattr(sys, "argv", ["limelight-model", "evaluate", "--videos", "my clips", "--output", "caf\udce9"])
    assert_one_sentence(run(*sys.argv[1:]), "limelight-model evaluate --videos 'my clips' --output 'caf\\udce9'")


def test_evaluate_prints_the_mean_over_official_splits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    predictions = {1: [0, 0, 1, 1, 0, 0, 1, 1], 2: [0, 0, 1, 1, 0, 0, 0, 0]}
    splits = tuple(
        Experiment(f"split {number}", "official", (results("attention", predicted),))
        for number, predicted in predictions.items()
    )
    found = evaluation.Evaluation(tmp_path / "report.md", splits)
    monkeypatch.setattr(evaluation, "evaluate", lambda *_, **__: found)
    monkeypatch.setattr(console, "width", 200)
    printed = run("evaluate", "--videos", tmp_path).stdout
    assert "accuracy, mean of the splits" in printed
    assert "87.5% ± 17.7% (" in printed


@pytest.mark.parametrize(
    ("stop", "status", "said"),
    [
        (KeyboardInterrupt(), 130, "limelight-model: interrupted; run the same command again to continue\n"),
        (Terminated(), 143, "limelight-model: terminated; run the same command again to continue\n"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 1, ""),
        (
            OSError(errno.ENOSPC, "No space left on device", "x"),
            2,
            "limelight-model: [Errno 28] No space left on device: 'x'\n",
        ),
    ],
)
def test_the_end_of_a_command_is_said_in_one_line_and_in_its_status(
    monkeypatch: pytest.MonkeyPatch, stop: BaseException, status: int, said: str
) -> None:
    def evaluate(*_: object, **__: object) -> None:
        raise stop

    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    result = run("evaluate", "--videos", "videos")
    assert (result.exit_code, result.stderr) == (status, said)
    assert list(Path().iterdir()) == [], "no empty folder is left"


@pytest.mark.parametrize(("command", "folder"), [("train", "run"), ("evaluate", "runs"), ("test", "answers")])
def test_a_second_run_on_one_output_is_one_sentence(tmp_path: Path, command: str, folder: str) -> None:
    output = tmp_path / "output"
    with sole_writer(output, folder):
        result = run(command, "--videos", tmp_path, "--output", output)
    assert_one_sentence(result, f"another run is writing to {output}; wait until it has ended, or choose")


# Begins `fetch-weights`, says so, and waits.
FETCHING = """
import sys, time
from model_export import cli, weights
def fetch_weights(*_, **__):
    print("fetching", flush=True)
    time.sleep(60)
weights.fetch_weights = fetch_weights
sys.argv = ["limelight-model", "fetch-weights"]
cli.main()
"""


def test_a_head_alone_has_no_precision(tmp_path: Path) -> None:
    result = run("test", "--videos", tmp_path, "--head", PRETRAINED, "--precision", "int8")
    assert_one_sentence(result, "--precision is one of a bundle", "name the bundle with --bundle")


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_command_with_one_line(end: signal.Signals) -> None:
    started = subprocess.Popen(
        [sys.executable, "-c", FETCHING],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with started:
        assert started.stdout is not None
        assert started.stdout.readline() == "fetching\n"
        started.send_signal(end)
        _, errors = started.communicate(timeout=30)
    assert started.returncode == -end
    (line,) = errors.splitlines()
    assert line.endswith("; run the same command again to continue")


def test_fetch_weights_prints_the_path(vgg19: Path) -> None:
    result = run("fetch-weights", "--weights", vgg19)
    assert result.exit_code == 0
    assert str(vgg19) in result.stdout


def test_train_names_a_missing_folder(vgg19: Path, tmp_path: Path) -> None:
    assert_one_sentence(
        run("train", "--videos", tmp_path / "none", "--weights", vgg19), str(tmp_path / "none"), "cannot be read"
    )


@pytest.mark.parametrize(
    ("option", "value"), (("--variant", "transformer"), ("--attention-scores", "self"), ("--readout", "first"))
)
def test_train_refuses_unknown_networks(vgg19: Path, tmp_path: Path, option: str, value: str) -> None:
    result = run("train", "--videos", tmp_path, "--weights", vgg19, option, value)
    assert result.exit_code == 2
    assert option in result.stderr
    assert value in result.stderr


@pytest.mark.parametrize("option", ["--name", "--version"])
def test_train_refuses_a_head_without_a_name_before_any_work(tmp_path: Path, option: str) -> None:
    assert_one_sentence(
        run("train", "--videos", tmp_path / "none", option, ""), "--name and --version must not be empty"
    )


def test_export_names_a_missing_head(vgg19: Path, tmp_path: Path) -> None:
    result = run("export", "--head", tmp_path, "--output", tmp_path / "bundle", "--weights", vgg19)
    assert_one_sentence(result, str(tmp_path / "head.json"), "limelight-model train")
    assert not (tmp_path / "bundle").exists()


def test_export_does_not_overwrite_a_folder_that_is_not_a_bundle(
    vgg19: Path, tmp_path: Path, narrow_head: Path
) -> None:
    result = run("export", "--head", narrow_head, "--output", tmp_path, "--weights", vgg19)
    assert_one_sentence(result, str(tmp_path), "is not a bundle")


def test_verify_names_a_damaged_bundle(vgg19: Path, tmp_path: Path, narrow_bundle: Path) -> None:
    damaged = tmp_path / "bundle"
    shutil.copytree(narrow_bundle, damaged)
    (damaged / "model.fp16.onnx").write_bytes(b"")
    result = run("verify", "--bundle", damaged, "--videos", tmp_path, "--weights", vgg19)
    assert_one_sentence(result, "model.fp16.onnx is damaged", "limelight-model export")


@pytest.mark.parametrize("name", ["--videos", "--clips"])  # the second one is the earlier name, which help leaves out
def test_verify_refuses_the_head_of_another_bundle(vgg19: Path, tmp_path: Path, narrow_bundle: Path, name: str) -> None:
    result = run("verify", "--bundle", narrow_bundle, name, tmp_path, "--weights", vgg19)
    assert_one_sentence(result, str(narrow_bundle), "--head")
    assert "--clips " not in run("verify", "--help").stdout


def parsed(text: str) -> dict[str, Any]:
    """Return the options of the first command that a text quotes; they have to be accepted."""
    words = shlex.split(text.partition("`")[2].partition("`")[0])
    assert words[0] == "limelight-model"
    options: dict[str, Any] = get_group(app).commands[words[1]].make_context(words[1], words[2:]).params
    return options


def test_train_says_which_commands_come_next(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(training, "train_head", lambda *_, **__: None)
    monkeypatch.setattr(console, "width", 500)
    last = run("train", "--videos", tmp_path / "my clips", "--output", tmp_path / "head").stdout.splitlines()[-1]
    assert (parsed(last)["head"], parsed(last)["videos"]) == (tmp_path / "head", tmp_path / "my clips")
    assert last.endswith("Then `limelight serve --bundle bundle`")


class TestAfterAnExport:
    @pytest.fixture
    def export(
        self, monkeypatch: pytest.MonkeyPatch, quick_export: None, quick_check: None, narrow_head: Path,
        vgg19: Path, tmp_path: Path,
    ) -> Callable[..., str]:  # fmt: skip
        """Exports the narrow head in a folder of clips' folders, and returns the last line."""
        monkeypatch.setattr(console, "width", 500)
        head = Path(shutil.copytree(narrow_head, tmp_path / "head"))
        facts = json.loads((head / "head.json").read_text(encoding="utf-8"))
        facts["training"]["data"] = "my clips"
        (head / "head.json").write_text(json.dumps(facts), encoding="utf-8")
        monkeypatch.chdir(tmp_path)

        def run_export(*more: object) -> str:
            result = run("export", "--head", "head", "--output", "new bundle", "--weights", vgg19, *more)
            assert result.exit_code == 0, result.output
            return result.stdout.splitlines()[-1]

        return run_export

    def test_it_says_that_int8_is_not_used_and_what_to_run(
        self, export: Callable[..., str], tmp_path: Path, vgg19: Path
    ) -> None:
        last = export()
        assert last.startswith("on CPUs, the service runs fp32, because int8 has not been compared with Keras")
        expected = {"bundle": Path("new bundle"), "head": Path("head"), "videos": Path("VIDEOS"), "weights": vgg19}
        assert parsed(last).items() >= (expected | {"record": True, "clips_per_class": 63}).items(), "3 x 63 videos"
        for label in ("JumpingJack", "PullUps", "Surfing"):
            (tmp_path / "my clips" / label).mkdir(parents=True)
        assert parsed(export())["videos"] == Path("my clips"), "the folder of that name has its classes"

    def test_it_goes_on_with_the_comparison(self, export: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
        called: list[Any] = []

        def measure(bundle: Path, head: Any, selection: Any, log: Path, **options: Any) -> dict[str, Agreement]:
            called.append((bundle, head.path, selection.videos, selection.count, options["record"]))
            manifest = read_manifest(bundle)
            files = manifest.precisions
            int8 = files["int8"].model_copy(update={"agreement": AGREES})
            write_manifest(bundle, manifest.model_copy(update={"precisions": {**files, "int8": int8}}))
            return {"int8": AGREES}

        monkeypatch.setattr(verify, "verify_bundle", measure)
        for label in ("JumpingJack", "PullUps", "Surfing"):
            Path("clips", label).mkdir(parents=True)
            Path("clips", label, "one.mp4").touch()
        assert export("--verify", "clips") == "on CPUs with VNNI, the service runs int8"
        assert called == [(Path("new bundle"), Path("head"), Path("clips"), 63, True)]
        assert export() == "on CPUs with VNNI, the service runs int8", "it is up to date"


def test_the_pretrained_head_needs_neither_its_folder_nor_a_record() -> None:
    command = verify_command(Path("bundle"), load_head(PRETRAINED))
    assert command == "limelight-model verify --bundle bundle --videos VIDEOS"


@pytest.mark.parametrize("command", ["features", "train", "evaluate"])
def test_a_class_that_is_missing_is_one_sentence(cached: CachedClips, command: str) -> None:
    cached.add("squats/a.mp4", "waving/a.mp4")
    result = run(command, "--videos", cached.videos, "--weights", cached.weights, "--class", "diving")
    assert_one_sentence(result, str(cached.videos), "diving", "squats, waving")


@pytest.mark.parametrize("command", ["features", "train", "evaluate"])
def test_classes_that_look_equal_are_one_sentence(cached: CachedClips, command: str) -> None:
    cached.add("squats/a.mp4", "waving/a.mp4")
    names = ("--class", "squats", "--class", "waving", "--class", "Squats")
    result = run(command, "--videos", cached.videos, "--weights", cached.weights, *names)
    assert_one_sentence(result, "the classes 'squats' and 'Squats' look equal", "make them one")


@pytest.mark.parametrize("command", ["train", "evaluate"])
@pytest.mark.parametrize("value", [-1, 2**31])
def test_a_seed_that_no_library_takes_is_a_usage_error(tmp_path: Path, command: str, value: int) -> None:
    result = run(command, "--videos", tmp_path, "--seed", value)
    assert (result.exit_code, result.exception.__class__) == (2, SystemExit)
    assert "--seed" in result.stderr


@pytest.mark.parametrize(
    ("command", "taken"),
    [
        ("train", "head.json"),
        ("train", "clips.txt"),
        ("evaluate", "report.json"),
        ("evaluate", "csv"),
        ("test", "predictions.csv"),
    ],
)
def test_outputs_that_cannot_be_written_are_refused_before_the_first_clip_is_read(
    cached: CachedClips, tmp_path: Path, command: str, taken: str
) -> None:
    """A folder is where a file has to be written, or a file where a folder has to be."""
    selection, output = cached.add("squats/a.mp4", "waving/a.mp4"), tmp_path / "out"
    output.mkdir()
    (output / "head.weights.h5").write_bytes(b"the old head")
    (output / taken).touch() if taken == "csv" else (output / taken).mkdir()
    model = ["--head", PRETRAINED] if command == "test" else []
    result = run(command, "--videos", selection.videos, "--output", output, "--weights", cached.weights, *model)
    assert_one_sentence(result, taken, "choose another --output")
    assert not result.stdout
    assert (output / "head.weights.h5").read_bytes() == b"the old head"


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_a_folder_for_tensorboard_that_is_none_is_refused_first(
    cached: CachedClips, tmp_path: Path, command: str
) -> None:
    selection, events = cached.add("squats/a.mp4", "waving/a.mp4"), tmp_path / "events"
    events.touch()
    result = run(
        command, "--videos", selection.videos, "--output", tmp_path / "out", "--tensorboard", events,
        "--weights", cached.weights,
    )  # fmt: skip
    assert_one_sentence(result, "events is no folder", "choose another --tensorboard")
    assert not result.stdout


def test_a_name_that_no_encoding_can_write_is_one_sentence(cached: CachedClips) -> None:
    """Names of files are bytes; some are no characters in the locale's encoding."""
    selection = cached.add("squats/a.mp4", "waving/a.mp4")
    (cached.videos / os.fsdecode(b"squats/caf\xe9.mp4")).touch()
    for command in ("features", "train", "evaluate"):
        result = run(command, "--videos", selection.videos, "--weights", cached.weights)
        assert_one_sentence(result, "squats/caf\\udce9.mp4", "rename the file")
    assert_one_sentence(
        run("train", "--videos", selection.videos, "--name", os.fsdecode(b"caf\xe9")), "--name", "'caf\\udce9'"
    )
    (cached.videos / os.fsdecode(b"squats/caf\xe9.mp4")).unlink()
    odd = cached.videos / os.fsdecode(b"squ\xe9ts")
    odd.mkdir()
    (odd / "a.mp4").touch()
    for command in ("features", "train", "evaluate"):
        result = run(command, "--videos", selection.videos, "--weights", cached.weights)
        assert_one_sentence(result, "squ\\udce9ts/a.mp4", "rename the file")
    other = cached.videos.rename(cached.folder / os.fsdecode(b"vid\xe9os"))
    assert_one_sentence(run("train", "--videos", other, "--weights", cached.weights), "vid\\udce9os", "rename the file")


def test_features_of_another_type_are_one_sentence(cached: CachedClips) -> None:
    cached.add("squats/a.mp4")
    named = ("--videos", cached.videos, "--features", cached.features, "--weights", cached.weights)
    assert_one_sentence(run("features", *named, "--dtype", "float32"), "holds float16 features", "another folder")


@pytest.mark.parametrize("option", ["--features", "--output"])
def test_features_are_written_to_the_folder_that_every_command_names_alike(cached: CachedClips, option: str) -> None:
    cached.add("squats/a.mp4")
    result = run("features", "--videos", cached.videos, option, cached.features, "--weights", cached.weights)
    assert result.exit_code == 0, result.output
    assert f"features of 1 clips: {cached.features}" in result.stdout
    assert ("--output of this command is called --features now" in result.stdout) == (option == "--output")
    assert "--output" not in run("features", "--help").stdout


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (("--split", 1, "--split-files", ".", "--folds", "grouped"), "leave out --folds and --k-fold"),
        (("--split", 1, "--split-files", ".", "--k-fold", 4), "leave out --folds and --k-fold"),
        (("--split-files", "."), "--split-files has no effect without --split"),
    ],
)
def test_a_split_and_folds_are_a_usage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[object, ...], fault: str
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    result = run("evaluate", "--videos", tmp_path, *options)
    assert result.exit_code == 2
    assert fault in result.stderr


def test_evaluate_refuses_the_number_of_a_split_that_does_not_exist(tmp_path: Path) -> None:
    result = run("evaluate", "--videos", tmp_path, "--split", 4, "--split-files", tmp_path)
    assert result.exit_code == 2
    assert "--split" in result.stderr


def in_ascii(program: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run a program where the locale's encoding has no characters but those of ASCII."""
    ascii_only = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, env=ascii_only, cwd=REPOSITORY, check=False)


def test_what_the_encoding_of_the_terminal_lacks_is_printed_in_ascii() -> None:
    found = in_ascii("from limelight_start import limelight_model; limelight_model()", "train", "--help")
    assert (found.returncode, found.stderr) == (0, b"")
    assert b"attends to 7x7" in found.stdout


def test_heads_are_written_and_read_in_utf8_whatever_the_locale(tmp_path: Path) -> None:
    """In ISO-8859-1 a label would be read as other characters, in ASCII not at all."""
    program = r"""
import sys
from pathlib import Path
from model_export.head import HeadFacts, load_head, save_head
from model_export.network.classifier import build_head
from model_export.revisions import CURRENT

facts = HeadFacts(name="n", version="1", channels=2, labels=("Caf\xe9", "\u8dd1\u6b65"), encoder_sha256="0",
                  revisions=CURRENT, training={"data": "\xfcben"})
save_head(Path(sys.argv[1]), facts, build_head(2, facts))
assert load_head(Path(sys.argv[1])).facts == facts
"""
    found = in_ascii(program, str(tmp_path / "head"))
    assert found.returncode == 0, found.stderr.decode()
    assert json.loads((tmp_path / "head" / "head.json").read_bytes())["labels"] == ["Café", "跑步"]


def test_help_imports_neither_tensorflow_nor_other_slow_libraries() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from model_export.cli import app;"
        "assert CliRunner().invoke(app, ['train', '--help']).exit_code == 0;"
        "print(*(m for m in ('tensorflow', 'keras', 'sklearn', 'scipy', 'onnxruntime', 'av') if m in sys.modules))"
    )
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert fresh.stdout.split() == []
