import os
from pathlib import Path
from typing import Any

import pytest

from service import assembly
from service.metrics import Metrics
from service.model.bundle import Bundle
from service.model.engine import Engine
from service.settings import Settings


@pytest.mark.parametrize(
    ("usable", "threads", "expected"),
    [(0.5, 0, 1), (1.5, 0, 2), (4, 0, 0), (0.5, 3, 3)],
    ids=["half a processor", "one and a half", "no quota: ONNX Runtime chooses", "as set"],
)
def test_onnx_runtime_gets_as_many_threads_as_processors_may_be_kept_busy(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, usable: float, threads: int, expected: int
) -> None:
    given: list[int] = []

    def open_engine(bundle: Bundle, **options: Any) -> Engine:
        given.append(options["threads"])
        return Engine(bundle, **options)

    monkeypatch.setattr(assembly, "Engine", open_engine)
    monkeypatch.setattr(assembly, "processors", lambda: usable)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    assembly.load_model(Settings(bundle=tiny_bundle, device="cpu", threads=threads), Metrics()).close()

    assert given == [expected]
