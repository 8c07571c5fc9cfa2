"""Text for terminals and for encodings that lack characters: names of files, labels and answers may hold anything."""

import unicodedata
from collections.abc import Mapping
from types import MappingProxyType

# What is printed in place of characters that the encoding of a stream lacks; "?" for all others.
PLAIN: Mapping[str, str] = MappingProxyType(
    {
        "█": "#", "×": "x", "±": "+-", "−": "-", "–": "-", "—": "-", "²": "^2", "→": "->", "…": "...", "’": "'",
        "·": "-", "\u200c": "", "\u200d": "",
    }
)  # fmt: skip
JOINERS = "\u200c\u200d"  # which words and emojis are made with


def visible(text: str) -> str:
    r"""Return a text on one line that no terminal obeys: what cannot be printed becomes an escape such as ``\x1b``.

    Bytes of file names that are no characters (see ``os.fsdecode``) become escapes, too.
    """
    return "".join(letter if _is_visible(letter) else _escaped(letter) for letter in text)


def _is_visible(letter: str) -> bool:
    return letter.isprintable() or letter in JOINERS or unicodedata.category(letter) == "Zs"


def _escaped(letter: str) -> str:
    return f"\\x{ord(letter) - 0xDC00:02x}" if "\udc80" <= letter <= "\udcff" else ascii(letter)[1:-1]


def plain(error: UnicodeError) -> tuple[str, int]:
    """Replace characters that an encoding lacks (see ``codecs.register_error``).

    Raises:
        UnicodeError: The error is not one of encoding.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(PLAIN.get(letter, "?") for letter in error.object[error.start : error.end]), error.end
