"""The official split in a folder, of whichever data set its lists are."""

from pathlib import Path

from model_export.data.datasets import hmdb51, ucf101
from model_export.data.datasets.clips import DatasetError
from model_export.data.datasets.split import Split


def read_official_split(folder: Path, number: int) -> Split:
    """Split ``number`` (1 to 3) of UCF-101 or HMDB-51, told apart by the names of the lists.

    Raises:
        DatasetError: the folder holds the lists of neither, or they are not of the format.
    """
    if any(folder.glob("*_test_split?.txt")):
        return hmdb51.read_split(folder, number)
    if any(folder.glob("*list0?.txt")) or (folder / "classInd.txt").exists():
        return ucf101.read_split(folder, number)
    raise DatasetError(
        f"{folder} holds no official split lists: it needs UCF-101's classInd.txt, trainlist0N.txt and testlist0N.txt, "
        "or HMDB-51's *_test_splitN.txt."
    )
