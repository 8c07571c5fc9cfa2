"""Which bundles ``limelight-model export`` replaces. The models are those of the shared bundle, for speed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest
from typer.testing import CliRunner, Result

from model_export import export, head
from model_export.cli import app
from model_export.export import ExportCheck
from service.model.bundle import SCHEMA_VERSION, load_bundle, read_manifest
from tests.conftest import REPOSITORY
from tests.tiny_bundle import write_tiny_bundle

AGREES = ExportCheck({"fp32": ("agrees", 0.0), "fp16": ("agrees", 0.0), "int8": ("agrees", 0.0)})


class Export(Protocol):
    """Runs ``limelight-model export``; options without a value are given as flags."""

    def __call__(self, *options: object) -> Result: ...


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "bundle"


@pytest.fixture
def run(quick_export: None, quick_check: None, vgg19: Path, output: Path) -> Export:
    def run(*options: object) -> Result:
        arguments = ["export", "--output", output, "--weights", vgg19, *options]
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run


@pytest.fixture
def ship(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Makes the package ship another head."""

    def ship(folder: Path) -> None:
        monkeypatch.setattr(head, "PRETRAINED", folder)

    return ship


@pytest.fixture
def shipped(ship: Callable[[Path], None], narrow_head: Path) -> Path:
    """The package ships the narrow head."""
    ship(narrow_head)
    return narrow_head


@pytest.fixture
def own(narrow_head: Path, tmp_path: Path) -> Path:
    """Somebody's own head."""
    return altered(narrow_head, tmp_path / "own", name="mine", version="2")


def altered(folder: Path, copy: Path, **facts: object) -> Path:
    """Copy a head and change its facts."""
    shutil.copytree(folder, copy)
    file = copy / "head.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | facts), encoding="utf-8")
    return copy


def edit(bundle: Path, **fields: object) -> None:
    """Change a bundle's manifest by hand."""
    file = bundle / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | fields), encoding="utf-8")


def name_of(bundle: Path) -> str:
    return load_bundle(bundle).manifest.name


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_bundle_of_the_shipped_head_is_replaced_once_another_one_ships(
    run: Export, shipped: Path, ship: Callable[[Path], None], output: Path, tmp_path: Path
) -> None:
    assert "written" in run().stdout
    assert "already up to date" in run().stdout
    ship(altered(shipped, tmp_path / "next", name="next"))

    assert "written" in run().stdout
    assert name_of(output) == "next"


def test_a_bundle_of_the_shipped_head_is_replaced_by_one_of_somebodys_own(
    run: Export, shipped: Path, own: Path, output: Path
) -> None:
    run()
    assert run("--head", own).exit_code == 0
    assert name_of(output) == "mine"


def test_a_bundle_of_somebodys_own_head_is_kept_and_the_command_succeeds(
    run: Export, shipped: Path, ship: Callable[[Path], None], own: Path, output: Path, tmp_path: Path
) -> None:
    run("--head", own)
    before = content(output)
    for following in ("next", "the one after"):
        result = run()

        assert (result.exit_code, result.stderr) == (0, "")
        (line,) = result.stdout.splitlines()
        for part in (str(output), "is kept", "a head of your own, mine 2", "--force"):
            assert part in line
        assert content(output) == before
        ship(altered(shipped, tmp_path / following, name=following))

    assert run("--force").exit_code == 0
    assert name_of(output) == "the one after"


def test_a_head_that_is_named_does_not_replace_another_one_of_somebodys_own(
    run: Export, shipped: Path, own: Path, output: Path, tmp_path: Path
) -> None:
    other = altered(own, tmp_path / "other", version="3")
    run("--head", own)
    for given in (other, shipped):
        result = run("--head", given)
        assert result.exit_code == 2
        (line,) = result.stderr.splitlines()
        assert "is kept because it was made from a head of your own, mine 2; replace it with --force" in line
        assert read_manifest(output).version == "2"

    assert run("--head", other, "--force").exit_code == 0
    assert read_manifest(output).version == "3"


def test_a_bundle_is_renewed_from_its_own_head(run: Export, shipped: Path, own: Path, output: Path) -> None:
    run("--head", own)
    edit(output, built_from="an earlier version of Limelight")

    assert "written" in run("--head", own).stdout
    assert name_of(output) == "mine"


@pytest.mark.parametrize(
    "change",
    [
        {"name": "mine"},
        {"labels": ["Hampelmann", "Klimmzug", "Surfen"]},
        {"training": {}},
        {"training": {"made_from": True}},
        {"training": {"made_from": {"head_sha256": "0" * 64, "shipped": True, "seal": "0" * 64}}},
    ],
    ids=("name", "labels", "no record", "a record of another form", "a forged record"),
)
def test_a_copy_of_the_shipped_bundle_that_was_edited_is_kept(
    run: Export, shipped: Path, output: Path, change: dict[str, object]
) -> None:
    run()
    edit(output, built_from="somebody's hand", **change)
    before = content(output)

    assert "is kept" in run().stdout
    assert content(output) == before


def test_a_bundle_that_another_program_wrote_is_kept(run: Export, shipped: Path, output: Path) -> None:
    write_tiny_bundle(output)
    assert "is kept because it was made from a head of your own, tiny 1" in run().stdout


def test_measured_agreement_does_not_make_a_shipped_bundle_somebodys_own(
    run: Export, shipped: Path, ship: Callable[[Path], None], output: Path, tmp_path: Path
) -> None:
    run()
    manifest = json.loads((output / "manifest.json").read_text(encoding="utf-8"))
    for entry in manifest["precisions"].values():
        entry["agreement"] = {"top1": 1, "n": 9, "low": 0.7, "high": 1, "max_abs_difference": 0.1, "device": "here"}
    edit(output, precisions=manifest["precisions"])
    ship(altered(shipped, tmp_path / "next", name="next"))

    assert "written" in run().stdout


def test_a_bundle_that_an_earlier_version_made_from_the_shipped_head_is_replaced(run: Export, output: Path) -> None:
    write_as_before_records(output)
    assert "written" in run("--head", head.PRETRAINED).stdout


@pytest.mark.parametrize("own", [{"version": "0.3.1"}, {"labels": [str(n) for n in range(13)]}, "agreement"])
def test_a_bundle_that_an_earlier_version_made_from_somebodys_own_head_is_kept(
    run: Export, output: Path, own: dict[str, object] | str
) -> None:
    write_as_before_records(output)
    if isinstance(own, dict):
        edit(output, **own)
    else:  # of other weights with the facts of the shipped head, so that an export did not copy its agreement
        precisions = json.loads((output / "manifest.json").read_text(encoding="utf-8"))["precisions"]
        edit(output, precisions={p: {"file": e["file"], "sha256": e["sha256"]} for p, e in precisions.items()})

    assert "is kept" in run().stdout


def write_as_before_records(output: Path) -> None:
    """Write what a version that recorded no head made of the head 0.3.0, but for the network."""
    write_tiny_bundle(output)
    precisions = json.loads((output / "manifest.json").read_text(encoding="utf-8"))["precisions"]
    recorded = json.loads((head.PRETRAINED / "agreement.json").read_text(encoding="utf-8"))["precisions"]
    facts = head.load_head(head.PRETRAINED).facts
    edit(
        output,
        name=facts.name,
        version=facts.version,
        labels=list(facts.labels),
        precisions={p: entry | {"agreement": recorded[p]} for p, entry in precisions.items()},
        training=facts.training | {"attention_scores": "content", "readout": "mean", "export_check": {"clips": "2"}},
        built_from="0" * 64,
    )


def cut_the_manifest(bundle: Path) -> None:
    (bundle / "manifest.json").write_text("{", encoding="utf-8")


def change_the_schema(bundle: Path) -> None:
    edit(bundle, schema=SCHEMA_VERSION + 1)


def interrupt_the_copy(bundle: Path) -> None:
    (bundle / "manifest.json").unlink()
    (bundle / "model.int8.onnx").write_bytes(b"the beginning")


@pytest.mark.parametrize("damage", [cut_the_manifest, change_the_schema, interrupt_the_copy])
def test_a_folder_that_cannot_be_read_is_renamed_and_does_not_stop_the_export(
    run: Export, shipped: Path, output: Path, damage: Callable[[Path], None]
) -> None:
    for number in (1, 2):
        if output.exists():
            shutil.rmtree(output)
        damage(write_tiny_bundle(output))
        before = content(output)
        result = run()

        aside = output.with_name(f"bundle.unreadable-{number}")
        assert result.exit_code == 0
        assert f"it is now {aside}" in result.stdout
        assert content(aside) == before
        assert name_of(output) == "narrow"


def test_a_damaged_bundle_of_somebodys_own_head_is_neither_replaced_nor_passed_over(
    run: Export, shipped: Path, own: Path, output: Path
) -> None:
    run("--head", own)
    (output / "model.fp16.onnx").write_bytes(b"the beginning")
    result = run()

    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    for part in ("a head of your own, mine 2", "model.fp16.onnx is damaged", "--head", "--force"):
        assert part in line
    assert run("--head", own).exit_code == 0
    assert name_of(output) == "mine"


def test_an_own_bundle_that_arrives_while_the_shipped_one_is_exported_is_kept(
    run: Export, shipped: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(*_: object) -> ExportCheck:
        write_tiny_bundle(output)
        return AGREES

    monkeypatch.setattr(export, "_check", check)
    assert "is kept" in run().stdout
    assert name_of(output) == "tiny"


def test_the_own_bundle_of_an_earlier_image_is_named(run: Export, shipped: Path, own: Path, tmp_path: Path) -> None:
    earlier, current = tmp_path / "limelight", tmp_path / f"limelight-{SCHEMA_VERSION}"
    write_tiny_bundle(earlier)
    for _ in range(2):
        assert f"{earlier} was made from a head of your own" in run("--output", current).stdout.splitlines()[-1]

    assert "earlier versions" not in run("--output", current, "--head", own).stdout
    assert "earlier versions" not in run("--output", current).stdout


def test_the_shipped_bundle_of_an_earlier_image_is_not_mentioned(run: Export, shipped: Path, tmp_path: Path) -> None:
    run("--output", tmp_path / "limelight")
    assert "served" not in run("--output", tmp_path / f"limelight-{SCHEMA_VERSION}").stdout


def test_readers_of_schema_1_know_every_field_of_a_new_manifest(run: Export, shipped: Path, output: Path) -> None:
    run()
    known = {"schema", "name", "version", "variant", "labels", "frame_count", "image_size", "sampling", "resize"}
    assert set(json.loads((output / "manifest.json").read_text(encoding="utf-8"))) == known | {
        "precisions",
        "training",
        "built_from",
    }


def test_the_images_name_the_schema_in_the_bundles_folder() -> None:
    folder = f"/bundles/limelight-{SCHEMA_VERSION}"
    lines = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8").splitlines()
    assert f'CMD ["export", "--output", "{folder}"]' in lines
    assert any(line.startswith("ENV ") and line.endswith(f" LIMELIGHT_BUNDLE={folder}") for line in lines)
