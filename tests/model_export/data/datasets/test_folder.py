"""Folders of class folders become labelled clips, grouped by the video they were cut from."""

import errno
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import pytest

from model_export.data.datasets import (
    SUFFIXES,
    VIDEO_SUFFIXES,
    LabelledClip,
    class_names,
    find_clips,
    find_left_out,
)
from model_export.errors import DatasetError
from model_export.rendering.figure import render_clip
from service.video.formats import DEMUXERS
from tests.conftest import REPOSITORY

MakeFolder = Callable[..., Path]


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """Makes ``tmp_path/clips`` with empty files of the given names."""

    def make(*names: str) -> Path:
        folder = tmp_path / "clips"
        for name in names:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return folder

    return make


def groups(clips: list[LabelledClip]) -> dict[str, str]:
    return {clip.path.name: clip.group for clip in clips}


class TestClips:
    def test_clips_are_sorted_and_labelled_by_their_folder(self, make_folder: MakeFolder) -> None:
        folder = make_folder("b/1.mp4", "a/2.avi", "a/1.webm")
        clips = find_clips(folder)
        assert [(clip.path, clip.label) for clip in clips] == [
            (folder / "a/1.webm", "a"),
            (folder / "a/2.avi", "a"),
            (folder / "b/1.mp4", "b"),
        ]
        assert class_names(reversed(clips)) == ["a", "b"]

    def test_suffixes_match_in_any_case_and_other_files_are_ignored(self, make_folder: MakeFolder) -> None:
        folder = make_folder("a/1.AVI", "a/notes.txt", "a/.2.avi", "a/sub.avi/3.avi", ".git/4.avi", "list.txt")
        assert [clip.name for clip in find_clips(folder)] == ["a/1.AVI", "a/sub.avi/3.avi"]
        assert find_left_out(folder) == {}

    def test_every_container_of_the_service_has_its_suffixes(self) -> None:
        assert SUFFIXES.keys() == DEMUXERS.keys()
        assert len(VIDEO_SUFFIXES) == sum(map(len, SUFFIXES.values())), "a suffix belongs to one container"
        for name, suffixes in SUFFIXES.items():
            known = {f".{extension}" for extension in av.ContainerFormat(name.partition(",")[0], "r").extensions}
            assert not known or known & set(suffixes), f"FFmpeg expects {known} of {name}"
            named = set(re.findall(r"\.\w+", DEMUXERS[name]))
            assert named <= set(suffixes), "the service's documentation names others"

    def test_the_documentation_names_all_suffixes(self) -> None:
        text = (REPOSITORY / "docs" / "training.md").read_text(encoding="utf-8")
        listed = re.search(r"container that the service accepts \(([^)]+)\)", text)
        assert listed
        assert listed[1].replace(",", "").split() == sorted(VIDEO_SUFFIXES)

    def test_folders_within_a_class_are_read_and_are_groups_unless_names_say_more(
        self, make_folder: MakeFolder
    ) -> None:
        folder = make_folder(
            "a/1.mp4",
            "a/kitchen/1.mp4",
            "a/kitchen/2.mp4",
            "a/garden/Day_02/1.mp4",
            "a/garden/day 2/2.mp4",
            "a/garden part 1/2.mp4",
            "a/garden/v_a_g01_c01.mp4",
            "a/v_a_g01_c02.mp4",
            "a/.cache/1.mp4",
        )
        assert {clip.name: clip.group for clip in find_clips(folder)} == {
            "a/1.mp4": "a/1",
            "a/kitchen/1.mp4": "a/kitchen/",
            "a/kitchen/2.mp4": "a/kitchen/",
            "a/garden/Day_02/1.mp4": "a/garden day 2/",
            "a/garden/day 2/2.mp4": "a/garden day 2/",
            "a/garden part 1/2.mp4": "garden",
            "a/garden/v_a_g01_c01.mp4": "v_a_g01",
            "a/v_a_g01_c02.mp4": "v_a_g01",
        }

    def test_links_are_followed_and_no_folder_is_read_twice(self, make_folder: MakeFolder, tmp_path: Path) -> None:
        folder = make_folder("a/1.mp4", "a/sub/2.mp4", "b/1.mp4")
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "3.mp4").touch()
        (folder / "a" / "away").symlink_to(tmp_path / "elsewhere")
        (folder / "a" / "zz").symlink_to(folder / "a" / "sub")
        (folder / "a" / "first").symlink_to("sub")
        (folder / "a" / "sub" / "up").symlink_to(folder)
        (folder / "a" / "sub" / "round").symlink_to("..")
        (folder / "a" / "4.mp4").symlink_to(folder / "b" / "1.mp4")
        assert [clip.name for clip in find_clips(folder)] == [
            "a/1.mp4",
            "a/4.mp4",
            "a/away/3.mp4",
            "a/sub/2.mp4",
            "b/1.mp4",
        ]
        elsewhere = "it is a link to a folder that is read elsewhere"
        assert find_left_out(folder) == dict.fromkeys(("a/first", "a/sub/round", "a/sub/up", "a/zz"), elsewhere)

    def test_what_may_have_been_meant_as_a_clip_is_listed(
        self, make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = make_folder("a/1.mp4", "a/locked/2.mp4", "a/notes.txt", "b/1.mp4", "loose.mp4", "loose.txt")
        video = render_clip("waving", frames=3, width=32, height=32).data
        for name in ("a/download.mp4.part", "loose.part"):
            (folder / name).write_bytes(video)
        (folder / "a" / "3.mp4").symlink_to("3.mp4")
        (folder / "b" / "gone.avi").symlink_to(folder / "gone.avi")
        (folder / "c").symlink_to("moved away")
        os.mkfifo(folder / "b" / "pipe.mp4")
        iterdir = Path.iterdir

        def locked(path: Path) -> Iterator[Path]:
            if path.name == "locked":
                raise PermissionError(errno.EACCES, "Permission denied")
            return iterdir(path)

        monkeypatch.setattr(Path, "iterdir", locked)
        suffix = "its name has no video's suffix; rename it, for example to .mp4"
        assert [clip.name for clip in find_clips(folder)] == ["a/1.mp4", "b/1.mp4"]
        assert find_left_out(folder) == {
            "a/3.mp4": "it is a link that leads nowhere",
            "a/download.mp4.part": suffix,
            "a/locked": "it cannot be read (Permission denied)",
            "b/gone.avi": "it is a link that leads nowhere",
            "b/pipe.mp4": "it is no regular file",
            "c": "it is a link that leads nowhere",
            "loose.mp4": "it is in no class's folder; move it into one",
            "loose.part": "it is in no class's folder; move it into one",
        }
        assert list(find_left_out(folder, ["b"])) == ["b/gone.avi", "b/pipe.mp4"]

    def test_only_the_requested_classes_are_read_and_an_empty_folder_elsewhere_is_ignored(
        self, make_folder: MakeFolder
    ) -> None:
        folder = make_folder("a/1.avi", "b/1.avi", "c/1.avi", "empty/readme.txt")
        assert class_names(find_clips(folder, ["c", "a"])) == ["a", "c"]


class TestGroups:
    def test_ucf101_clips_of_one_class_and_number_share_a_group(self, make_folder: MakeFolder) -> None:
        folder = make_folder(
            "Diving/v_Diving_g08_c01.avi",
            "Diving/v_Diving_g08_c02.mp4",
            "Diving/v_Diving_g09_c01.avi",
            "Punch/v_Punch_g08_c01.avi",
        )
        assert groups(find_clips(folder)) == {
            "v_Diving_g08_c01.avi": "v_diving_g08",
            "v_Diving_g08_c02.mp4": "v_diving_g08",
            "v_Diving_g09_c01.avi": "v_diving_g09",
            "v_Punch_g08_c01.avi": "v_punch_g08",
        }

    @pytest.mark.parametrize(
        ("name", "video"),
        (
            ("brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_0.avi", "april"),
            ("hit/Jaten_getting_hit_with_stick_hit_f_cm_np1_ba_bad_0.avi", "jatengettinghitwithstick"),
            ("pour/How_to_pour_beer__eh__pour_u_nm_np1_fr_goo_0.avi", "howtopourbeereh"),
            ("wave/prelinger_LetsBeGo1953_wave_u_cm_np10_ba_med_2.avi", "prelingerletsbego1953"),
            ("stand/prelinger_LetsBeGo1953_stand_u_nm_np10_ba_med_4.avi", "prelingerletsbego1953"),
            ("climb/Hayoz_(klettern)_climb_f_cm_np1_ba_med_0.avi", "hayozklettern"),
            ("renamed/April_09_brush_hair_u_nm_np1_ba_goo_0.avi", "april"),
        ),
    )
    def test_hmdb51_clips_are_grouped_by_source_video(self, make_folder: MakeFolder, name: str, video: str) -> None:
        assert [clip.group for clip in find_clips(make_folder(name))] == [video]

    def test_any_other_clip_is_a_group_of_its_own(self, make_folder: MakeFolder) -> None:
        clips = find_clips(make_folder("a/1.mp4", "a/2.mp4", "b/1.mp4"))
        assert len({clip.group for clip in clips}) == 3

    def test_own_classes_can_be_mixed_with_ucf101(self, make_folder: MakeFolder) -> None:
        clips = find_clips(make_folder("Diving/v_Diving_g08_c01.avi", "Juggle/holiday.mov"))
        assert [clip.group for clip in clips] == ["v_diving_g08", "Juggle/holiday"]

    def test_every_real_clip_of_ucf101_is_found_once_with_its_class_and_its_video(self, shared: Path) -> None:
        folder = shared / "clips" / "ucf101"
        official = re.compile(r"v_(?P<name>[A-Za-z]+)_g(?P<video>\d\d)_c\d\d\.(avi|mp4)")
        listed = {}
        for root, _, names in os.walk(folder):
            for name in names:
                if match := official.fullmatch(name):
                    listed[Path(root, name)] = (Path(root).name, f"v_{match['name'].lower()}_g{match['video']}")
        assert listed

        clips = find_clips(folder)

        assert len(clips) == len(listed)
        assert {clip.path: (clip.label, clip.group) for clip in clips} == listed


class TestRefusals:
    def test_missing_folder_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(
            DatasetError, match=rf"{tmp_path}/none cannot be read \(No such file or directory\); name a folder"
        ):
            find_clips(tmp_path / "none")

    def test_file_instead_of_a_folder_is_refused(self, make_folder: MakeFolder) -> None:
        with pytest.raises(DatasetError, match=r"1\.avi cannot be read \(Not a directory\)"):
            find_clips(make_folder("a/1.avi") / "a" / "1.avi")

    def test_folder_without_class_folders_is_refused(self, make_folder: MakeFolder) -> None:
        with pytest.raises(DatasetError, match="holds no folders; it needs one folder of clips per class"):
            find_clips(make_folder("1.avi", "2.avi"))

    def test_class_without_clips_is_named(self, make_folder: MakeFolder) -> None:
        with pytest.raises(DatasetError, match=r"clips/b holds no clips \(\.3g2, .*\); add clips or remove"):
            find_clips(make_folder("a/1.avi", "b/readme.txt"))

    def test_unknown_class_is_refused_with_the_known_ones(self, make_folder: MakeFolder) -> None:
        with pytest.raises(DatasetError, match=r"clips has no class c; choose among a, b$"):
            find_clips(make_folder("a/1.avi", "b/1.avi"), ["a", "c"])

    @pytest.mark.parametrize("second", ("a", "A"))
    def test_class_requested_twice_is_refused(self, make_folder: MakeFolder, second: str) -> None:
        with pytest.raises(DatasetError, match=rf"--class: the classes 'a' and '{second}' look equal; make them one"):
            find_clips(make_folder("a/1.avi", "b/1.avi"), ["a", "b", second])

    @pytest.mark.parametrize(
        "names",
        [
            ("Diving", "diving"),
            ("push up", "Push-Up"),
            ("push_up", "pushup"),
            ("1", "01"),
            ("Caf\u00e9", "Cafe\u0301"),
            ("run", "run "),
            ("run", "ru\u200bn"),
            ("run", "\ufeffrun"),
            ("run", "r\u00adun"),
            ("run", "ｒｕｎ"),
            ("a b", "a\u00a0b"),
        ],
    )
    def test_folders_that_look_equal_are_refused_by_their_names(
        self, make_folder: MakeFolder, names: tuple[str, str]
    ) -> None:
        folder = make_folder(*(f"{name}/1.avi" for name in names))
        if len(list(folder.iterdir())) == 1:
            pytest.skip("this file system ignores the difference")
        with pytest.raises(DatasetError, match="look equal; make them one class or rename one") as raised:
            find_clips(folder)
        assert all(repr(name) in str(raised.value) or ascii(name) in str(raised.value) for name in names)
        assert str(raised.value).isprintable()

    @pytest.mark.parametrize(
        ("name", "label"),
        [
            ("Cafe\u0301", "Caf\u00e9"),
            (" run\u00a0 fast ", "run fast"),
            ("ru\u200bn", "run"),
            ("a\u202eb\x1b[2J", "ab[2J"),
            ("می\u200cدود", "می\u200cدود"),
            ("[red] :smile:", "[red] :smile:"),
        ],
    )
    def test_a_class_is_called_as_its_folder_looks(self, make_folder: MakeFolder, name: str, label: str) -> None:
        folder = make_folder(f"{name}/1.avi")
        (clip,) = find_clips(folder)
        assert (clip.label, clip.path.parent.name) == (label, name)
        assert find_clips(folder, [label]) == find_clips(folder, [name]) == [clip]

    @pytest.mark.parametrize("name", ["\u200b", "\u3164", "\x1b", " "])
    def test_a_class_whose_name_is_invisible_is_refused(self, make_folder: MakeFolder, name: str) -> None:
        with pytest.raises(DatasetError, match="of a class is invisible; rename its folder"):
            find_clips(make_folder(f"{name}/1.avi", "run/1.avi"))
