"""Finding and opening the clips that ``limelight predict`` is given."""

import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from service.cli.clips import MOST_PIPED_BYTES, ClipProblem, find_clips, opened


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def make(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"a clip")


def problem_of(open_and_read: Callable[[], object]) -> ClipProblem:
    with pytest.raises(ClipProblem) as error:
        open_and_read()
    return error.value


def read(name: str, most_bytes: int | None = None) -> bytes:
    with opened(name, most_bytes) as clip:
        data = b"".join(clip.pieces())
        assert len(data) == clip.size
        assert b"".join(clip.pieces()) == data  # again, to be sent again
    return data


class TestFind:
    def test_a_folder_stands_for_its_videos_sorted_and_without_hidden_ones(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        make("v/b.mp4", "v/a/z.MOV", "v/a/y.webm", "v/.hidden.mp4", "v/.cache/c.mp4", "v/notes.txt", "v/d.mp4.part")

        assert list(find_clips(["v"])) == ["v/a/y.webm", "v/a/z.MOV", "v/b.mp4"]
        assert capsys.readouterr().err == "limelight: v: 2 files are left out, without a video's suffix such as .mp4\n"

    def test_files_that_are_named_are_taken_whatever_their_names_are_and_in_their_order(self) -> None:
        make("v/b.mp4", ".hidden", "odd.name")

        assert list(find_clips(["odd.name", "v", ".hidden", "none", "odd.name", "-"])) == [
            *("odd.name", "v/b.mp4", ".hidden", "none", "odd.name", "-")
        ]

    def test_links_to_files_are_followed_and_links_in_a_circle_are_not(self) -> None:
        make("clip.mp4")
        Path("v").mkdir()
        Path("v/link.mp4").symlink_to("../clip.mp4")
        Path("v/circle").symlink_to(".")
        Path("v/gone.mp4").symlink_to("nothing")

        assert list(find_clips(["v"])) == ["v/gone.mp4", "v/link.mp4"]

    def test_pipes_and_devices_in_a_folder_are_left_out(self) -> None:
        make("v/b.mp4")
        os.mkfifo("v/pipe.mp4")

        assert list(find_clips(["v"])) == ["v/b.mp4"]

    def test_a_folder_without_videos_is_a_problem(self) -> None:
        Path("empty").mkdir()
        (problem,) = find_clips(["empty"])

        assert isinstance(problem, ClipProblem)
        assert (problem.name, problem.code) == ("empty", "no_clips")

    def test_a_folder_that_cannot_be_read_is_a_problem(self, monkeypatch: pytest.MonkeyPatch) -> None:
        make("v/b.mp4", "v/closed/c.mp4")
        scandir = os.scandir

        def scan(path: str) -> object:  # root reads every folder
            if path.endswith("closed"):
                raise PermissionError(13, "Permission denied", path)
            return scandir(path)

        monkeypatch.setattr(os, "scandir", scan)
        problem, clip = find_clips(["v"])

        assert str(problem).startswith("v/closed cannot be read (Permission denied)")
        assert clip == "v/b.mp4"

    def test_a_name_that_is_not_utf8_is_found(self) -> None:
        name = os.fsdecode(b"v/\xff.mp4")
        make(name)

        assert list(find_clips(["v"])) == [name]


class TestOpen:
    def test_a_file_is_read_in_pieces(self) -> None:
        data = os.urandom(1_000_000)
        Path("clip.mp4").write_bytes(data)

        assert read("clip.mp4") == data
        with opened("clip.mp4") as clip:
            assert max(map(len, clip.pieces())) < 300_000

    def test_a_pipe_is_read_to_its_end(self) -> None:
        os.mkfifo("pipe")
        threading.Thread(target=Path("pipe").write_bytes, args=(b"a clip" * 100_000,)).start()

        assert read("pipe") == b"a clip" * 100_000

    def test_a_file_that_seems_empty_is_read_to_its_end(self) -> None:
        assert stat.S_ISREG(Path("/proc/version").stat().st_mode)
        assert read("/proc/version").startswith(b"Linux")

    def test_a_file_that_is_too_large_is_not_read(self) -> None:
        make("clip.mp4")
        problem = problem_of(lambda: read("clip.mp4", 5))

        assert problem.code == "body_too_large"
        assert str(problem) == "clip.mp4: the clip has 6 bytes, more than the 5 allowed"
        assert read("clip.mp4", 6) == b"a clip"

    def test_a_device_without_end_is_read_up_to_the_limit(self) -> None:
        assert problem_of(lambda: read("/dev/zero", 1000)).code == "body_too_large"
        assert str(MOST_PIPED_BYTES) in problem_of(lambda: read("/dev/zero")).detail

    @pytest.mark.parametrize("change", [lambda f: f.write_bytes(b"a"), lambda f: f.write_bytes(b"a long clip")])
    def test_a_file_that_is_changed_while_it_is_read_is_a_problem(self, change: Callable[[Path], object]) -> None:
        make("clip.mp4")
        with opened("clip.mp4") as clip:
            change(Path("clip.mp4"))
            problem = problem_of(lambda: list(clip.pieces()))

        assert str(problem).startswith("clip.mp4: the file was changed while it was read; ")

    @pytest.mark.parametrize(("name", "reason"), [("none", "No such file or directory"), ("folder", "Is a directory")])
    def test_what_cannot_be_opened_is_a_problem_with_the_reason(self, name: str, reason: str) -> None:
        Path("folder").mkdir()

        assert str(problem_of(lambda: read(name))).startswith(f"{name} cannot be read ({reason})")
