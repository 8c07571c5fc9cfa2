"""Reads numbers of any width in bits."""


class Bits:
    """Reads unsigned numbers, highest bit first. Behind the end there are only zeros, as in FFmpeg's buffers."""

    def __init__(self, data: bytes | memoryview) -> None:
        """Read from the first bit of ``data``."""
        self._value = int.from_bytes(data)
        self._left = 8 * len(data)

    def read(self, width: int) -> int:
        """Return the next ``width`` bits as a number."""
        self._left -= width
        number = self._value >> self._left if self._left >= 0 else self._value << -self._left
        return number & ((1 << width) - 1)

    def skip(self, width: int) -> None:
        """Pass over ``width`` bits."""
        self._left -= width

    def read_rest(self) -> int:
        """Return all bits that are left as a number."""
        return self.read(max(self._left, 0))
