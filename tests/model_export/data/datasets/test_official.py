"""Official split lists are recognised by their file names."""

from pathlib import Path

import pytest

from model_export.data.datasets import Side, read_official_split
from model_export.errors import DatasetError


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


UCF_FILES = {
    "classInd.txt": "1 Diving\n",
    "trainlist02.txt": "Diving/v_Diving_g08_c01.avi 1\n",
    "testlist02.txt": "Diving/v_Diving_g01_c01.avi\n",
}
HMDB_FILES = {"wave_test_split2.txt": "a.avi 1\nb.avi 2\nc.avi 0\n"}


def test_ucf101_lists_are_recognised(tmp_path: Path) -> None:
    split = read_official_split(write(tmp_path, UCF_FILES), 2)
    assert split.name == "UCF-101 split 2"
    assert split.sides == {("Diving", "v_Diving_g08_c01"): Side.TRAIN, ("Diving", "v_Diving_g01_c01"): Side.TEST}


def test_hmdb51_lists_are_recognised(tmp_path: Path) -> None:
    split = read_official_split(write(tmp_path, HMDB_FILES), 2)
    assert split.name == "HMDB-51 split 2"
    assert split.sides == {("wave", "a"): Side.TRAIN, ("wave", "b"): Side.TEST, ("wave", "c"): Side.UNUSED}


@pytest.mark.parametrize(("files", "absent"), ((UCF_FILES, r"trainlist03\.txt"), (HMDB_FILES, r"\*_test_split3\.txt")))
def test_missing_split_is_reported_by_the_names_of_its_lists(
    tmp_path: Path, files: dict[str, str], absent: str
) -> None:
    with pytest.raises(DatasetError, match=absent):
        read_official_split(write(tmp_path, files), 3)


@pytest.mark.parametrize("name", ("classInd.txt", "trainlist01.txt", "testlist01.txt"))
def test_incomplete_ucf101_lists_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError, match=r"(classInd|trainlist02)\.txt cannot be read"):
        read_official_split(write(tmp_path, {name: "1 Diving\n"}), 2)


@pytest.mark.parametrize("folder", (".", "none"))
def test_folder_without_lists_is_refused_with_the_names_of_the_lists(tmp_path: Path, folder: str) -> None:
    with pytest.raises(DatasetError, match="holds no official split lists; it needs UCF-101's classInd") as raised:
        read_official_split(tmp_path / folder, 1)
    assert str(tmp_path / folder) in str(raised.value)
    assert "_test_splitN.txt" in str(raised.value)


@pytest.mark.parametrize("number", (1, 2, 3))
def test_the_authors_lists_are_read(shared: Path, number: int) -> None:
    assert read_official_split(shared / "splits" / "ucfTrainTestlist", number).name == f"UCF-101 split {number}"
    assert read_official_split(shared / "splits" / "hmdb51", number).name == f"HMDB-51 split {number}"
