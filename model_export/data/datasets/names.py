"""Names of files and folders: what is left when spelling does not count, and the parts that a video was cut into.

Spelling is case, Unicode's forms (composed or not, full-width), separators, leading zeros and invisible characters.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_WORD = re.compile(r"\d+|[^\d\s]+")
# Characters that are drawn as nothing or as a blank, though Unicode's categories say neither.
_BLANK = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
# They join the signs of emoji, and join or part letters, as Persian needs it.
_JOINERS = "\u200c\u200d"
# Spaces that do not keep two numbers apart.
_NEEDLESS = re.compile(r"(?<!\d) | (?!\d)")
_PART = re.compile(
    r"(?P<video>.+?) (?:part|pt|parte|partie|teil|deel|cd|dvd|disc|disk) "
    r"(?:\d+|[a-z]|[ivx]+|one|two|three|four|five|six|seven|eight|nine|ten)\b"
)


def words(text: str, separators: str = "CPSZ") -> str:
    """Return the words and numbers of a name, separated by single spaces, without differences of spelling.

    ``Part_02``, ``part 2``, ``Part2`` and ``PART-２`` all give ``part 2``.

    Args:
        text: The name.
        separators: First letters of the Unicode categories that separate words: controls, punctuation, symbols, spaces.
    """
    text = _CAMEL.sub(" ", unicodedata.normalize("NFKC", _visible(text)))
    text = unicodedata.normalize("NFKC", text.casefold())
    text = "".join(" " if unicodedata.category(letter)[0] in separators else letter for letter in text)
    return " ".join(str(int(word)) if word.isdecimal() else word for word in _WORD.findall(text))


def joined(text: str) -> str:
    """Remove the spaces of ``words``, except between numbers: ``push up`` is ``pushup``, ``1 1`` is not ``11``."""
    return _NEEDLESS.sub("", text)


def look(name: str) -> str:
    """Return what two class names that look equal have in common; symbols count, so that ``A+`` is not ``A``."""
    return joined(words(name, "CPZ")) or _visible(unicodedata.normalize("NFKC", name))


def label_of(folder: str) -> str:
    """Return the name of a class as it is shown and stored: its folder's, composed, with neither odd nor extra spaces.

    Controls and invisible characters are left out. It is empty if nothing visible is left.
    """
    spaced = "".join(" " if letter.isspace() else letter for letter in folder)
    kept = "".join(c for c in spaced if c in _JOINERS or unicodedata.category(c) not in ("Cc", "Cf"))
    label = unicodedata.normalize("NFC", " ".join(kept.split()).strip(_JOINERS + " "))
    return label if _visible(label).strip() else ""


def equal_looking(names: Iterable[str]) -> tuple[str, str] | None:
    """Return the first two class names that look equal, if there are any."""
    seen: dict[str, str] = {}
    for name in names:
        if (key := look(name)) in seen:
            return seen[key], name
        seen[key] = name
    return None


def matching(names: Iterable[str], labels: Sequence[str]) -> Mapping[str, str]:
    """Return the label of each name that has one: an equal one or, failing that, one that looks equal."""
    by_look = {look(label): label for label in reversed(labels)}
    found = {name: name if name in labels else by_look.get(look(name)) for name in names}
    return {name: label for name, label in found.items() if label is not None}


def whole_video(text: str) -> str | None:
    """Return what stands before the first ``part 2`` (``pt``, ``CD``, ``Teil``, …) in ``words``, if there is one."""
    match = _PART.match(text)
    return match["video"] if match else None


def _visible(text: str) -> str:
    """Leave out what is drawn as nothing."""
    return "".join(letter for letter in _BLANK.sub("", text) if unicodedata.category(letter) != "Cf")
