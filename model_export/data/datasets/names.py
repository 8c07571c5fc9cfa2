"""Names of files and folders: what is left when spelling does not count, and the parts that a video was cut into.

Spelling is case, Unicode's forms (composed or not, full-width), separators and leading zeros.
"""

import re
import unicodedata

_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_WORD = re.compile(r"\d+|[^\d\s]+")
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
    text = _CAMEL.sub(" ", unicodedata.normalize("NFKC", text))
    text = unicodedata.normalize("NFKC", text.casefold())
    text = "".join(" " if unicodedata.category(letter)[0] in separators else letter for letter in text)
    return " ".join(str(int(word)) if word.isdecimal() else word for word in _WORD.findall(text))


def joined(text: str) -> str:
    """Remove the spaces of ``words``, except between numbers: ``push up`` is ``pushup``, ``1 1`` is not ``11``."""
    return _NEEDLESS.sub("", text)


def look(name: str) -> str:
    """Return what two class names that look equal have in common; symbols count, so that ``A+`` is not ``A``."""
    return joined(words(name, "CPZ")) or name


def whole_video(text: str) -> str | None:
    """Return what stands before the first ``part 2`` (``pt``, ``CD``, ``Teil``, …) in ``words``, if there is one."""
    match = _PART.match(text)
    return match["video"] if match else None
