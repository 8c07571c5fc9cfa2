"""HMDB-51: its file names, which contain the source video, and its official splits.

Kuehne, Jhuang, Garrote, Poggio and Serre, "HMDB: A Large Video Database for Human Motion Recognition", ICCV 2011.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from model_export.data.datasets.names import joined, whole_video, words
from model_export.data.datasets.split import Line, Side, Split, read_lines
from model_export.errors import DatasetError

# Visible body parts, camera motion, number of people, viewpoint, quality, and the clip's number within the video.
CODES = re.compile(r"(?P<subject>.+) [fhlu] [cn]m np \d+ (?:ba|fr|le|ri) (?:bad|med|goo) \d+")
CLASS = re.compile(
    r" (?:brush hair|cartwheel|catch|chew|clap|climb|climb stairs|dive|draw sword|dribble|drink|eat|fall floor|fencing|"
    r"flic flac|golf|handstand|hit|hug|jump|kick|kick ball|kiss|laugh|pick|pour|pullup|punch|push|pushup|ride bike|"
    r"ride horse|run|shake hands|shoot ball|shoot bow|shoot gun|sit|situp|smile|smoke|somersault|stand|swing baseball|"
    r"sword|sword exercise|talk|throw|turn|walk|wave)$"
)
# What follows a title: a number (up to three digits, so no year) or letter, words of parts and of files.
TAIL = re.compile(
    r"(?: (?:\d{1,3}|[a-d]|[ivx]+|of|to|part|vol|volume|hd|hq|avi|divx|mov|mp 4|wmv))+$|(?<= (?:19|20)\d\d)\d$"
)
RATE = re.compile(r" ?(?:256|512) kb$")
# What no rule can tell, in ``words``: films whose number is no part, and parts that have titles of their own.
FILMS = {
    "oceans 11": "oceans 11",
    "oceans 12": "oceans 12",
    "oceans 13": "oceans 13",
    "base jumping compilation 3 fmj": "base jumping compilation",
    "goal 2 living the dream movie": "goal",
    "kill bill uma thruman sword fight with lucy liu": "kill bill",
    "baddest fight scenes ever kill bill vol 1 vs crazy 88 s": "kill bill",
    "the three musketeers 1993 the first fight": "the three musketeers 1993 final battle",
    "torwarttraining 2 sterreich": "torwarttraining sterreich",
    "torwarttraining 3 sterreich": "torwarttraining sterreich",
}
SPLIT_LINE = re.compile(r"(?P<file>\S+)\s+(?P<mark>[012])")
MARKS = {"0": Side.UNUSED, "1": Side.TRAIN, "2": Side.TEST}


def group(label: str, text: str) -> str | None:
    """Return the film of a clip named ``<film>_<class>_<codes>``, or ``None`` for any other name.

    The class is not part of it, since clips of one film occur in several classes, and neither is what tells the files
    of a film apart: ``Return_of_the_King_13`` and ``RETURN_OF_THE_KING`` are one. Several short videos that share a
    title (``Smile!_1``, ``Smile!_2``) become one group as well, which costs a little choice of folds; a film in two
    groups would be trained on and tested.

    Args:
        label: The clip's class.
        text: The ``words`` of its file name.
    """
    match = CODES.fullmatch(text)
    if match is None:
        return None
    subject = match["subject"]
    title = subject.removesuffix(f" {words(label)}")
    # The class is removed even if its folder was renamed.
    return joined(_film(CLASS.sub("", subject) if title == subject else title))


def _film(title: str) -> str:
    """Remove what tells the files of one film apart."""
    title = RATE.sub("", whole_video(title) or title)
    return FILMS.get(title) or TAIL.sub("", title)


def read_split(folder: Path, number: int) -> Split:
    """Read official 70/30 split ``number`` (1 to 3) from ``<class>_test_splitN.txt``.

    The split keeps the clips of one file on one side within a class, but not across classes, and films are cut into
    several files.

    Raises:
        DatasetError: There is no such file, a line is malformed, or a clip is listed twice.
    """
    return Split.of(f"HMDB-51 split {number}", _entries(folder, number))


def _entries(folder: Path, number: int) -> Iterator[tuple[Line, str, str, Side]]:
    ending = f"_test_split{number}.txt"
    paths = sorted(folder.glob(f"*{ending}"))
    if not paths:
        raise DatasetError(f"{folder} holds no *{ending}; put the official split lists there")
    for path in paths:
        for line in read_lines(path):
            match = SPLIT_LINE.fullmatch(line.text)
            if match is None:
                raise line.malformed("'clip.avi' and 0 (unused), 1 (training) or 2 (test)")
            yield line, path.name.removesuffix(ending), match["file"], MARKS[match["mark"]]
