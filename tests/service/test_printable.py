"""Texts that terminals do not obey, and plain characters for encodings that lack others."""

import os

import pytest

from service.printable import visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Morning run [abcdefghijk].mp4", "Morning run [abcdefghijk].mp4"),
        ("a\x1b[31mb\x9b\x7f\t\r\nc", r"a\x1b[31mb\x9b\x7f\t\r\nc"),
        ("Screen Shot 9.41\u202fAM\u3000Café カフェ.mov", "Screen Shot 9.41\u202fAM\u3000Café カフェ.mov"),
        ("👩\u200d👧", "👩\u200d👧"),
        ("photo\u202egpj.mp4\u2028", r"photo\u202egpj.mp4\u2028"),
        (os.fsdecode(b"caf\xe9.mp4"), r"caf\xe9.mp4"),
    ],
)
def test_a_text_is_shown_as_it_is_but_for_what_terminals_obey(text: str, shown: str) -> None:
    assert visible(text) == shown
