"""The output and exit codes of ``limelight-model``. The commands are tested as functions elsewhere."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from model_export.cli import TerminalReporter, Terminated, app
from model_export.errors import EvaluationError
from model_export.judging import evaluation
from model_export.storing import sole_writer
from tests.conftest import REPOSITORY
from tests.model_export.cached_clips import CachedClips


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


def test_a_report_states_a_command_that_can_be_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def report(*_: object, command: str, **__: object) -> None:
        raise EvaluationError(command)

    monkeypatch.setattr(evaluation, "evaluate", report)
    monkeypatch.setattr(sys, "argv", ["limelight-model", "evaluate", "--videos", "my clips", "--output", "caf\udce9"])
    assert_one_sentence(run(*sys.argv[1:]), "limelight-model evaluate --videos 'my clips' --output 'caf\\udce9'")


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


@pytest.mark.parametrize(("command", "folder"), [("train", "run"), ("evaluate", "runs")])
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
    assert started.returncode == 128 + end
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
    result = run("verify", "--bundle", damaged, "--clips", tmp_path, "--weights", vgg19)
    assert_one_sentence(result, "model.fp16.onnx is damaged", "limelight-model export")


def test_verify_refuses_the_head_of_another_bundle(vgg19: Path, tmp_path: Path, narrow_bundle: Path) -> None:
    result = run("verify", "--bundle", narrow_bundle, "--clips", tmp_path, "--weights", vgg19)
    assert_one_sentence(result, str(narrow_bundle), "--head")


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
    other = cached.videos.rename(cached.folder / os.fsdecode(b"vid\xe9os"))
    assert_one_sentence(run("train", "--videos", other, "--weights", cached.weights), "vid\\udce9os", "rename the file")


def test_features_reports_its_output_folder(cached: CachedClips) -> None:
    cached.add("squats/a.mp4")
    result = run("features", "--videos", cached.videos, "--output", cached.features, "--weights", cached.weights)
    assert result.exit_code == 0, result.output
    assert f"features of 1 clips: {cached.features}" in result.stdout


def test_evaluate_refuses_the_number_of_a_split_that_does_not_exist(tmp_path: Path) -> None:
    result = run("evaluate", "--videos", tmp_path, "--split", 4, "--split-files", tmp_path)
    assert result.exit_code == 2
    assert "--split" in result.stderr


def in_ascii(program: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run a program where the locale's encoding has no characters but those of ASCII."""
    ascii_only = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, env=ascii_only, cwd=REPOSITORY, check=False)


def test_what_the_encoding_of_the_terminal_lacks_is_printed_as_question_marks() -> None:
    found = in_ascii("from limelight_start import limelight_model; limelight_model()", "train", "--help")
    assert (found.returncode, found.stderr) == (0, b"")
    assert b"attends to 7?7" in found.stdout


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
