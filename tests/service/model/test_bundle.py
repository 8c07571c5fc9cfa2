"""A bundle is read whole or refused in one sentence that names the file and the remedy."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import BundleError
from service.model.bundle import (
    MANIFEST,
    Agreement,
    Manifest,
    VariantFile,
    file_sha256,
    load_bundle,
    read_manifest,
    write_manifest,
)
from tests.tiny_bundle import LABELS, write_tiny_bundle

REMEDY = "limelight-model export"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "bundle")


def refusal(read: Callable[[Path], object], bundle: Path, *, names: str) -> str:
    """What `read` says against the bundle: one sentence with the name of the file at fault and the remedy."""
    with pytest.raises(BundleError) as refused:
        read(bundle)
    sentence = str(refused.value)
    assert str(bundle / names) in sentence
    assert REMEDY in sentence
    assert "\n" not in sentence
    return sentence


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text())
    change(manifest)
    (bundle / MANIFEST).write_text(json.dumps(manifest))


def test_a_whole_bundle_is_loaded(bundle: Path) -> None:
    loaded = load_bundle(bundle)

    assert loaded.path == bundle
    assert loaded.manifest == read_manifest(bundle)
    assert loaded.manifest.labels == list(LABELS)
    assert loaded.model_path("fp16") == bundle / "model.fp16.onnx"
    assert file_sha256(loaded.model_path("fp16")) == loaded.manifest.precisions["fp16"].sha256


def test_a_precision_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    loaded = load_bundle(write_tiny_bundle(tmp_path, precisions=["fp32", "int8"]))

    with pytest.raises(BundleError, match=r"no fp16 model, only fp32, int8; .*limelight-model export"):
        loaded.model_path("fp16")


class TestFolder:
    @pytest.mark.parametrize("read", [read_manifest, load_bundle])
    def test_must_exist(self, tmp_path: Path, read: Callable[[Path], object]) -> None:
        assert "does not exist" in refusal(read, tmp_path / "nowhere", names=MANIFEST)

    @pytest.mark.parametrize("read", [read_manifest, load_bundle])
    def test_must_hold_a_manifest(self, tmp_path: Path, read: Callable[[Path], object]) -> None:
        assert "does not exist" in refusal(read, tmp_path, names=MANIFEST)

    def test_must_be_a_folder(self, tmp_path: Path) -> None:
        file = tmp_path / "model.onnx"
        file.touch()

        refusal(load_bundle, file, names=MANIFEST)


class TestManifest:
    @pytest.mark.parametrize("text", [b"", b"{", b"not JSON", b"[]", b"null", b'{"schema": 1}', b"\xff\xfe\x00"])
    def test_must_be_one(self, bundle: Path, text: bytes) -> None:
        (bundle / MANIFEST).write_bytes(text)

        refusal(load_bundle, bundle, names=MANIFEST)

    @pytest.mark.parametrize("schema", [0, 2, "1.0", None])
    def test_of_another_schema_is_refused_with_both_numbers(self, bundle: Path, schema: object) -> None:
        edit(bundle, lambda manifest: manifest.update(schema=schema))

        assert f"is of schema {schema!r}, this program reads schema 1" in refusal(load_bundle, bundle, names=MANIFEST)

    def test_of_a_later_schema_is_refused_for_its_schema_whatever_else_differs(self, bundle: Path) -> None:
        (bundle / MANIFEST).write_text('{"schema": 2, "models": []}')

        assert "is of schema 2" in refusal(load_bundle, bundle, names=MANIFEST)

    @pytest.mark.parametrize("name", ["../model.fp32.onnx", "/etc/passwd", "models/a.onnx", "..", ".", "", "a\0b"])
    def test_names_only_files_of_its_own_folder(self, bundle: Path, name: str) -> None:
        edit(bundle, lambda manifest: manifest["precisions"]["fp32"].update(file=name))

        assert "precisions.fp32.file" in refusal(load_bundle, bundle, names=MANIFEST)

    def test_names_no_label_twice(self, bundle: Path) -> None:
        edit(bundle, lambda manifest: manifest["labels"].append(manifest["labels"][0]))

        assert "a label stands twice" in refusal(load_bundle, bundle, names=MANIFEST)

    def test_knows_no_other_precision(self, bundle: Path) -> None:
        edit(bundle, lambda manifest: manifest["precisions"].update(fp8=manifest["precisions"]["fp32"]))

        assert "fp8" in refusal(load_bundle, bundle, names=MANIFEST)

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("labels", []),
            ("precisions", {}),
            ("name", ""),
            ("version", ""),
            ("variant", "transformer"),
            ("frame_count", 16),
            ("image_size", 299),
            ("sampling", "uniform"),
            ("resize", "crop"),
            ("surprise", 1),
        ],
    )
    def test_is_refused_by_the_field_that_this_program_cannot_serve(
        self, bundle: Path, field: str, value: object
    ) -> None:
        edit(bundle, lambda manifest: manifest.update({field: value}))

        assert field in refusal(load_bundle, bundle, names=MANIFEST)

    def test_gives_a_hash_that_is_one(self, bundle: Path) -> None:
        edit(bundle, lambda manifest: manifest["precisions"]["int8"].update(sha256="A" * 64))

        assert "precisions.int8.sha256" in refusal(load_bundle, bundle, names=MANIFEST)


class TestModels:
    @pytest.mark.parametrize("name", ["model.fp32.onnx", "model.int8.onnx"])
    def test_must_all_be_there(self, bundle: Path, name: str) -> None:
        (bundle / name).unlink()

        assert "is missing" in refusal(load_bundle, bundle, names=name)

    def test_must_be_the_ones_the_manifest_means(self, bundle: Path) -> None:
        model = bundle / "model.fp16.onnx"
        content = bytearray(model.read_bytes())
        content[-1] ^= 1
        model.write_bytes(content)

        assert "is damaged" in refusal(load_bundle, bundle, names=model.name)

    def test_must_be_files(self, bundle: Path) -> None:
        model = bundle / "model.fp32.onnx"
        model.unlink()
        model.mkdir()

        assert "cannot be read" in refusal(load_bundle, bundle, names=model.name)

    def test_are_not_looked_at_for_the_manifest_alone(self, bundle: Path) -> None:
        (bundle / "model.fp32.onnx").unlink()

        assert read_manifest(bundle).labels == list(LABELS)


texts = st.text(min_size=1, max_size=20)
fractions = st.floats(0, 1)
agreements = st.builds(
    Agreement,
    top1=fractions,
    n=st.integers(1, 10**6),
    low=fractions,
    high=fractions,
    max_abs_difference=st.floats(0, 10),
    device=texts,
)
variant_files = st.builds(
    VariantFile,
    file=st.from_regex(r"[a-z0-9]+\.onnx", fullmatch=True),
    sha256=st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
    agreement=st.none() | agreements,
)
facts = st.dictionaries(texts, texts | st.integers() | st.booleans() | st.lists(st.integers(), max_size=3), max_size=3)
manifests = st.builds(
    Manifest,
    schema_version=st.just(1),
    name=texts,
    version=texts,
    variant=st.sampled_from(["attention", "base"]),
    labels=st.lists(texts, min_size=1, max_size=10, unique=True),
    precisions=st.dictionaries(st.sampled_from(["fp32", "fp16", "int8"]), variant_files, min_size=1),
    training=facts,
    built_from=st.none() | texts,
)


class TestWriting:
    @given(manifest=manifests)
    def test_what_is_written_is_read_again(self, tmp_path_factory: pytest.TempPathFactory, manifest: Manifest) -> None:
        folder = tmp_path_factory.mktemp("bundle")

        write_manifest(folder, manifest)

        assert read_manifest(folder) == manifest
        assert [file.name for file in folder.iterdir()] == [MANIFEST]

    def test_the_file_is_json_that_calls_its_schema_so(self, bundle: Path) -> None:
        manifest = json.loads((bundle / MANIFEST).read_text())

        assert manifest["schema"] == 1
        assert "schema_version" not in manifest

    def test_replaces_the_manifest_before(self, bundle: Path) -> None:
        newer = read_manifest(bundle).model_copy(update={"version": "2"})

        write_manifest(bundle, newer)

        assert read_manifest(bundle).version == "2"

    def test_a_manifest_that_cannot_be_written_leaves_the_one_before(
        self, bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = (bundle / MANIFEST).read_bytes()

        def full_disk(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "replace", full_disk)
        with pytest.raises(OSError, match="No space left"):
            write_manifest(bundle, read_manifest(bundle))

        assert (bundle / MANIFEST).read_bytes() == before
        assert not list(bundle.glob("*.part"))
