"""Text that is safe to print: names of files and classes may hold characters that terminals obey or nobody sees."""


def printable(text: str) -> str:
    """Return a text on one line, with escapes for controls, formats such as those of direction, and odd spaces."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def with_ascii(error: UnicodeError) -> tuple[str, int]:
    """Handle characters that an encoding lacks, as ``codecs.register_error`` takes it: by ASCII that says the same.

    Raises:
        UnicodeError: The error is not one of encoding.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_ASCII.get(letter) or ascii(letter)[1:-1] for letter in lacking), error.end


# The characters beyond ASCII in the texts of ``limelight-model``.
_ASCII = {"–": "-", "—": "-", "−": "-", "…": "...", "·": ".", "×": "x", "±": "+-", "→": "->", "²": "^2", "’": "'"}
