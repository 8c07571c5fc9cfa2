"""Heads of other revisions: the same weights are another head under another network, or on other frames."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from model_export import head as heads
from model_export.errors import HeadError
from model_export.export import export_bundle
from model_export.head import PRETRAINED, TrainedHead, load_head
from model_export.network.spec import ENCODER_REVISION, NETWORK_REVISION
from model_export.revisions import CURRENT
from model_export.verify import verify_bundle
from tests.model_export.cached_clips import CachedClips
from tests.model_export.conftest import NARROW
from tests.model_export.reporting import Recording

Of = Callable[..., TrainedHead]


@pytest.fixture
def of(narrow_head: Path, tmp_path: Path) -> Of:
    """Returns a copy of the narrow head that says it was trained at other revisions."""

    def copy(**revisions: int) -> TrainedHead:
        folder = Path(shutil.copytree(narrow_head, tmp_path / "head"))
        file = folder / "head.json"
        facts = json.loads(file.read_text(encoding="utf-8"))
        facts["revisions"] |= revisions
        file.write_text(json.dumps(facts), encoding="utf-8")
        return load_head(folder)

    return copy


@pytest.mark.parametrize(
    ("revisions", "found", "remedy"),
    [
        ({"network": 0}, f"network 0 (now {NETWORK_REVISION})", "train the head again"),
        ({"encoder": 0}, f"encoder 0 (now {ENCODER_REVISION})", "train the head again, on features in a new folder"),
        (
            {"sampling": 3, "resize": 2},
            f"sampling 3 (now {CURRENT.sampling}) and resize 2 (now {CURRENT.resize})",
            "train the head again, on features in a new folder",
        ),
    ],
    ids=("network", "encoder", "frames"),
)
def test_a_head_of_other_revisions_is_neither_exported_nor_compared(
    of: Of, narrow_bundle: Path, cached: CachedClips, revisions: dict[str, int], found: str, remedy: str
) -> None:
    head = of(**revisions)
    selection = cached.add("squats/a.mp4")
    for refuse in (
        lambda: export_bundle(head, None, cached.folder / "bundle", filters=NARROW),
        lambda: verify_bundle(narrow_bundle, head, selection, cached.folder / "log", weights=cached.weights),
    ):
        with pytest.raises(HeadError) as refused:
            refuse()
        assert str(refused.value) == f"{head.path} was trained with {found}; {remedy}"
    assert not (cached.folder / "bundle").exists()


def test_a_head_that_names_no_revisions_is_refused(of: Of) -> None:
    file = of().path / "head.json"
    facts = json.loads(file.read_text(encoding="utf-8"))
    del facts["revisions"]
    file.write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(
        HeadError,
        match=r"head.json is not valid \(revisions: Field required\); train the head again, on features in a new",
    ):
        load_head(file.parent)


@pytest.mark.usefixtures("quick_export")
def test_the_shipped_head_is_exported_with_a_warning_on_frames_that_are_made_differently_now(
    of: Of, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = of(sampling=3, resize=2)
    monkeypatch.setattr(heads, "PRETRAINED", head.path)
    for written in (True, False):
        reporter = Recording()
        assert export_bundle(head, None, tmp_path / "bundle", filters=NARROW, reporter=reporter) is written
        assert reporter.lines[0] == (
            f"warning: the pretrained head was trained on frames of sampling 3 (now {CURRENT.sampling}) and resize 2 "
            f"(now {CURRENT.resize}), so that its accuracy on the frames of today may differ from what its model card "
            "states"
        )


@pytest.mark.parametrize("revision", ["network", "encoder"])
def test_even_the_shipped_head_is_refused_by_a_network_that_computes_something_else(
    of: Of, revision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = of(sampling=3, **{revision: 0})
    monkeypatch.setattr(heads, "PRETRAINED", head.path)
    with pytest.raises(HeadError, match=f"{revision} 0"):
        head.check_revisions()


def test_the_pretrained_head_can_be_exported() -> None:
    """``make demo`` exports it."""
    pretrained = load_head(PRETRAINED)
    warning = pretrained.check_revisions()
    assert warning is None or warning.startswith("warning: ")
    assert pretrained.facts.revisions.model_dump() == {"network": 1, "encoder": 1, "sampling": 3, "resize": 2}
