import os
from pathlib import Path

import pytest

from model_export.rendering.figure import render_clip
from tests.tiny_bundle import write_tiny_bundle

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real clips and splits, which are not the project's to publish.

    A test that asks for it is skipped where there is none, and fails where LIMELIGHT_SHARED promises one that is not
    there.
    """
    promised = os.environ.get("LIMELIGHT_SHARED")
    folder = (REPOSITORY / (promised or "../shared")).resolve()
    if folder.is_dir():
        return folder
    if promised:
        pytest.fail(f"LIMELIGHT_SHARED={promised} is not a folder")
    pytest.skip("needs real clips: set LIMELIGHT_SHARED to the folder that holds clips/ and splits/")


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose network is a toy that keeps the contract: for all that the network does not matter to."""
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="session")
def clip() -> bytes:
    """A small rendered clip."""
    return render_clip(frames=50, width=160, height=120).data
