from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from service.isolation.processes import DecoderProcesses
from service.video.decoder import DecodeLimits

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def start_hostile() -> Iterator[Callable[..., DecoderProcesses]]:
    """Return a function that starts decoders in the real sandbox that a clip can take over (see ``hostile.py``).

    Its first argument is the time limit of a clip, in seconds. The decoders are closed after the module's tests.
    """
    with pytest.MonkeyPatch.context() as patch, ExitStack() as started:
        patch.setenv("PYTHONPATH", str(REPOSITORY))
        patch.setenv("LIMELIGHT_API_KEY", "a secret")

        def start(timeout_s: float, program: str = "tests.service.isolation.hostile") -> DecoderProcesses:
            decoders = DecoderProcesses(DecodeLimits(timeout_s=timeout_s), memory_bytes=2**30, program=program)
            return started.enter_context(closing(decoders))

        yield start


@pytest.fixture(scope="module")
def hostile(start_hostile: Callable[..., DecoderProcesses]) -> DecoderProcesses:
    """Decoders that a clip can take over, shared by the tests of a module."""
    return start_hostile(60)
