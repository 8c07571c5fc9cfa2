"""``HeadSpec``, the description of a head's network."""

from typing import Any

import pytest
from pydantic import ValidationError

from model_export.network import spec
from model_export.network.spec import HeadSpec


@pytest.mark.parametrize(
    "fields",
    [
        {"variant": "basic"},
        {"readout": "first"},
        {"attention_scores": "cells"},
        {"feature_scaling": "log"},
        {"members": 0},
        {"members": -3},
        {"transformer": True},
    ],
)
def test_unknown_networks_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(fields))):
        HeadSpec(**fields)


def test_a_spec_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        HeadSpec().members = 2  # type: ignore[misc]


def test_frames_and_grid_are_those_of_the_paper() -> None:
    assert (spec.FRAME_COUNT, spec.IMAGE_SIZE, spec.GRID, spec.CELLS) == (40, 224, 7, 49)
