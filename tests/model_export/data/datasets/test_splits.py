"""The official splits of UCF-101 and HMDB-51, read from their authors' files and applied to clips."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from model_export.data.datasets import LabelledClip, Side, Split, find_clips, hmdb51, ucf101
from model_export.errors import DatasetError

UCF_FILES = {
    "classInd.txt": "1 Diving\n2 Punch\n",
    "trainlist01.txt": "Diving/v_Diving_g08_c01.avi 1\nPunch/v_Punch_g08_c01.avi 2\n",
    "testlist01.txt": "Diving/v_Diving_g01_c01.avi\nPunch/v_Punch_g01_c01.avi\n",
}
HMDB_FILES = {
    "brush_hair_test_split1.txt": "April_brush_hair_u_nm_np1_ba_goo_0.avi 1 \n"
    "May_brush_hair_h_cm_np2_fr_bad_3.avi 2 \n",
    "wave_test_split1.txt": "June_wave_u_nm_np1_ba_goo_0.avi 0 \n",
}

Write = Callable[[dict[str, str]], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_files(files: dict[str, str]) -> Path:
        for name, text in files.items():
            (tmp_path / name).write_bytes(text.encode())
        return tmp_path

    return write_files


def clip(path: str) -> LabelledClip:
    return LabelledClip(Path(path), Path(path).parent.name, Path(path).stem)


class TestUcf101:
    @pytest.mark.parametrize("line_end", ("\n", "\r\n"))
    def test_each_listed_clip_has_its_side(self, write: Write, line_end: str) -> None:
        folder = write({name: text.replace("\n", line_end) for name, text in UCF_FILES.items()})
        split = ucf101.read_split(folder, 1)
        assert split.sides == {
            ("Diving", "v_Diving_g08_c01"): Side.TRAIN,
            ("Punch", "v_Punch_g08_c01"): Side.TRAIN,
            ("Diving", "v_Diving_g01_c01"): Side.TEST,
            ("Punch", "v_Punch_g01_c01"): Side.TEST,
        }

    @pytest.mark.parametrize(
        ("file", "text", "complaint"),
        (
            ("trainlist01.txt", "v_Diving_g08_c01.avi 1", "is not 'Class/clip.avi'"),
            ("trainlist01.txt", "Diving/v_Diving_g08_c01.avi one", "is not 'Class/clip.avi'"),
            ("trainlist01.txt", "Diving/v_Diving_g08_c01.avi 2", "is not of a class and index in classInd.txt"),
            ("testlist01.txt", "Golf/v_Golf_g01_c01.avi", "is not of a class and index in classInd.txt"),
            ("testlist01.txt", "Diving/v_Diving_g08_c01.avi", "is not a clip not listed before"),
            ("classInd.txt", "Diving 1", "is not an index and a class"),
            ("classInd.txt", "1 Diving\n2 Diving", "line 2: '2 Diving' is not a class and an index not named before"),
            ("classInd.txt", "1 Diving\n1 Punch", "line 2: '1 Punch' is not a class and an index not named before"),
            ("classInd.txt", "\n", "is empty"),
        ),
    )
    def test_malformed_line_is_named(self, write: Write, file: str, text: str, complaint: str) -> None:
        folder = write(UCF_FILES | {file: text})
        with pytest.raises(DatasetError, match=complaint) as raised:
            ucf101.read_split(folder, 1)
        assert str(folder / file) in str(raised.value)
        assert "download the official list again" in str(raised.value)

    def test_missing_list_is_named(self, write: Write) -> None:
        folder = write(UCF_FILES)
        with pytest.raises(DatasetError, match=r"trainlist02\.txt cannot be read \(No such file or directory\); put"):
            ucf101.read_split(folder, 2)

    def test_list_that_is_not_a_text_file_is_refused(self, write: Write) -> None:
        folder = write(UCF_FILES)
        (folder / "testlist01.txt").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(DatasetError, match=r"testlist01\.txt cannot be read \(not a text file\)"):
            ucf101.read_split(folder, 1)

    @pytest.mark.parametrize(("number", "train", "test"), ((1, 9537, 3783), (2, 9586, 3734), (3, 9624, 3696)))
    def test_official_lists_have_the_published_numbers_of_clips(
        self, shared: Path, number: int, train: int, test: int
    ) -> None:
        split = ucf101.read_split(shared / "splits" / "ucfTrainTestlist", number)
        assert Counter(split.sides.values()) == {Side.TRAIN: train, Side.TEST: test}
        assert len({label for label, _ in split.sides}) == 101

    def test_the_available_clips_are_on_the_training_side_of_split_1(self, shared: Path) -> None:
        clips = find_clips(shared / "clips" / "ucf101")
        division = ucf101.read_split(shared / "splits" / "ucfTrainTestlist", 1).divide(clips)
        assert division.train == tuple(clips)
        assert (division.test, division.extra) == ((), ())


class TestHmdb51:
    @pytest.mark.parametrize("line_end", ("\n", "\r\n"))
    def test_marks_0_1_and_2_are_unused_training_and_test(self, write: Write, line_end: str) -> None:
        folder = write({name: text.replace("\n", line_end) for name, text in HMDB_FILES.items()})
        assert hmdb51.read_split(folder, 1).sides == {
            ("brush_hair", "April_brush_hair_u_nm_np1_ba_goo_0"): Side.TRAIN,
            ("brush_hair", "May_brush_hair_h_cm_np2_fr_bad_3"): Side.TEST,
            ("wave", "June_wave_u_nm_np1_ba_goo_0"): Side.UNUSED,
        }

    @pytest.mark.parametrize("line", ("a_wave_u_nm_np1_ba_goo_0.avi 3", "a_wave_u_nm_np1_ba_goo_0.avi", "1"))
    def test_malformed_line_is_named(self, write: Write, line: str) -> None:
        folder = write(HMDB_FILES | {"wave_test_split1.txt": f"\n{line}\n"})
        with pytest.raises(
            DatasetError, match=r"wave_test_split1\.txt, line 2: '.*' is not 'clip\.avi' and 0 \(unused"
        ):
            hmdb51.read_split(folder, 1)

    def test_folder_without_lists_is_named(self, write: Write) -> None:
        with pytest.raises(DatasetError, match=r"holds no \*_test_split2\.txt; put the official split lists there"):
            hmdb51.read_split(write(HMDB_FILES), 2)

    @pytest.mark.parametrize("number", (1, 2, 3))
    def test_official_lists_hold_70_and_30_clips_of_each_class(self, shared: Path, number: int) -> None:
        sides = hmdb51.read_split(shared / "splits" / "hmdb51", number).sides
        counts = Counter((label, side) for (label, _), side in sides.items())
        labels = {label for label, _ in counts}
        assert len(labels) == 51
        assert {counts[label, Side.TRAIN] for label in labels} == {70}
        assert {counts[label, Side.TEST] for label in labels} == {30}


class TestDivide:
    @pytest.fixture
    def split(self, write: Write) -> Split:
        return ucf101.read_split(write(UCF_FILES), 1)

    def test_clips_are_matched_without_their_suffix(self, split: Split) -> None:
        clips = [clip("Diving/v_Diving_g08_c01.mp4"), clip("Diving/v_Diving_g01_c01.mkv")]
        division = split.divide(clips)
        assert division.train == (clips[0],)
        assert division.test == (clips[1],)

    def test_clip_that_is_not_listed_is_extra(self, split: Split) -> None:
        clips = [clip("Diving/v_Diving_g01_c02.avi"), clip("Punch/v_Diving_g01_c01.avi")]
        assert split.divide(clips).extra == tuple(clips)

    def test_second_file_of_a_clip_is_extra(self, split: Split) -> None:
        clips = [clip("Diving/v_Diving_g08_c01.avi"), clip("Diving/v_Diving_g08_c01.mp4")]
        division = split.divide(clips)
        assert (division.train, division.extra) == ((clips[0],), (clips[1],))

    def test_listed_clip_without_a_file_is_missing_if_its_class_is_available(self, split: Split) -> None:
        division = split.divide([clip("Diving/v_Diving_g08_c01.avi")])
        assert division.missing == ("Diving/v_Diving_g01_c01",)

    def test_unused_clip_is_neither_extra_nor_missing(self, write: Write) -> None:
        split = hmdb51.read_split(write(HMDB_FILES), 1)
        june, other = clip("wave/June_wave_u_nm_np1_ba_goo_0.avi"), clip("wave/x.avi")
        division = split.divide([june, other])
        assert (division.unused, division.extra) == ((june,), (other,))
        assert split.divide([other]).missing == ()
