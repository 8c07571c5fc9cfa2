"""Reading an official split without knowing which data set its lists belong to."""

from pathlib import Path

from model_export.data.datasets import hmdb51, ucf101
from model_export.data.datasets.split import Split
from model_export.errors import DatasetError


def read_official_split(folder: Path, number: int) -> Split:
    """Read split ``number`` (1 to 3) of UCF-101 or HMDB-51, whichever the names of the lists belong to.

    Raises:
        DatasetError: The folder holds the lists of neither, or a list is malformed.
    """
    if any(folder.glob("*_test_split?.txt")):
        return hmdb51.read_split(folder, number)
    if any(folder.glob("*list0?.txt")) or (folder / "classInd.txt").exists():
        return ucf101.read_split(folder, number)
    raise DatasetError(
        f"{folder} holds no official split lists; it needs UCF-101's classInd.txt, trainlist0N.txt and testlist0N.txt, "
        "or HMDB-51's *_test_splitN.txt"
    )
