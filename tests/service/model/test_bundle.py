"""Reading and writing bundles: a bundle that cannot be used is refused with the file at fault and the remedy."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import BundleError
from service.model.bundle import (
    GRID,
    MANIFEST,
    Agreement,
    Manifest,
    Outputs,
    VariantFile,
    file_sha256,
    load_bundle,
    read_manifest,
    write_manifest,
)
from service.video.decoder import IMAGE_SIZE, RESIZE_RULE
from service.video.sampling import FRAME_COUNT, SAMPLING_RULE
from tests.conftest import REPOSITORY
from tests.tiny_bundle import LABELS, write_tiny_bundle

REMEDY = "limelight-model export"
SPARE_BYTES = 2**26
READ_WITH_LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
from service.errors import BundleError
from service.model.bundle import load_bundle
bundle = load_bundle(Path(sys.argv[1]))
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    bundle.read_model("fp32")
except BundleError as error:
    print(error)
"""


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "bundle")


def refusal(read: Callable[[Path], object], bundle: Path, *, names: str) -> str:
    """The error of ``read``, which must be one sentence that names the file at fault and the remedy."""
    with pytest.raises(BundleError) as refused:
        read(bundle)
    sentence = str(refused.value)
    assert str(bundle / names) in sentence
    assert REMEDY in sentence
    assert "\n" not in sentence
    return sentence


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
    change(manifest)
    (bundle / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


@pytest.mark.parametrize("variant", ["attention", "base"])
def test_outputs_that_are_stacked_are_those_of_each_clip(variant: str) -> None:
    maps = np.random.default_rng(1).random((3, 40, GRID, GRID), np.float32) if variant == "attention" else None
    outputs = Outputs(np.eye(3, 5, dtype=np.float32), maps)
    stacked = Outputs.stack([outputs[clip] for clip in range(3)])

    np.testing.assert_equal(asdict(stacked), asdict(outputs))
    assert stacked.finite


def test_a_bundle_with_all_its_files_is_loaded(bundle: Path) -> None:
    loaded = load_bundle(bundle)

    assert loaded.path == bundle
    assert loaded.manifest == read_manifest(bundle)
    assert loaded.manifest.labels == list(LABELS)
    assert loaded.model_path("fp16") == bundle / "model.fp16.onnx"
    assert file_sha256(loaded.model_path("fp16")) == loaded.manifest.precisions["fp16"].sha256


def test_the_error_for_a_missing_precision_lists_those_there_are(tmp_path: Path) -> None:
    loaded = load_bundle(write_tiny_bundle(tmp_path, precisions=["fp32", "int8"]))

    with pytest.raises(BundleError, match=r"no fp16 model, only fp32, int8; .*limelight-model export"):
        loaded.model_path("fp16")


class TestBundleFolder:
    @pytest.mark.parametrize("read", [read_manifest, load_bundle])
    def test_a_missing_folder_is_refused(self, tmp_path: Path, read: Callable[[Path], object]) -> None:
        assert "does not exist" in refusal(read, tmp_path / "nowhere", names=MANIFEST)

    @pytest.mark.parametrize("read", [read_manifest, load_bundle])
    def test_a_folder_without_a_manifest_is_refused(self, tmp_path: Path, read: Callable[[Path], object]) -> None:
        assert "does not exist" in refusal(read, tmp_path, names=MANIFEST)

    def test_a_file_in_place_of_the_folder_is_refused(self, tmp_path: Path) -> None:
        file = tmp_path / "model.onnx"
        file.touch()

        refusal(load_bundle, file, names=MANIFEST)


class TestManifest:
    @pytest.mark.parametrize("text", [b"", b"{", b"not JSON", b"[]", b"null", b'{"schema": 1}', b"\xff\xfe\x00"])
    def test_invalid_json_or_fields_are_refused(self, bundle: Path, text: bytes) -> None:
        (bundle / MANIFEST).write_bytes(text)

        refusal(load_bundle, bundle, names=MANIFEST)

    @pytest.mark.parametrize("schema", [0, 2, "1.0", None])
    def test_another_schema_is_refused_with_both_numbers(self, bundle: Path, schema: object) -> None:
        edit(bundle, lambda manifest: manifest.update(schema=schema))

        assert f"has schema {schema!r}, but this version reads schema 1" in refusal(load_bundle, bundle, names=MANIFEST)

    def test_a_schema_of_any_size_is_refused_in_a_short_sentence(self, bundle: Path) -> None:
        edit(bundle, lambda manifest: manifest.update(schema=["x" * 1000] * 1000))

        assert len(refusal(load_bundle, bundle, names=MANIFEST)) < 1000

    def test_a_manifest_that_could_fill_the_memory_is_refused_before_it_is_read(self, bundle: Path) -> None:
        os.truncate(bundle / MANIFEST, 2**40)  # sparse: it takes no space

        assert "more than 16777216 bytes" in refusal(load_bundle, bundle, names=MANIFEST)

    def test_a_later_schema_is_refused_for_its_number_even_if_other_fields_differ(self, bundle: Path) -> None:
        (bundle / MANIFEST).write_text('{"schema": 2, "models": []}', encoding="utf-8")

        assert "has schema 2" in refusal(load_bundle, bundle, names=MANIFEST)

    @pytest.mark.parametrize("name", ["../model.fp32.onnx", "/etc/passwd", "models/a.onnx", "..", ".", "", "a\0b"])
    def test_file_names_that_leave_the_folder_are_refused(self, bundle: Path, name: str) -> None:
        edit(bundle, lambda manifest: manifest["precisions"]["fp32"].update(file=name))

        assert "precisions.fp32.file" in refusal(load_bundle, bundle, names=MANIFEST)

    def test_duplicate_labels_are_refused(self, bundle: Path) -> None:
        edit(bundle, lambda manifest: manifest["labels"].append(manifest["labels"][0]))

        assert "a label occurs twice" in refusal(load_bundle, bundle, names=MANIFEST)

    def test_an_unknown_precision_is_refused(self, bundle: Path) -> None:
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
    def test_a_value_that_the_service_does_not_support_is_refused_by_its_field(
        self, bundle: Path, field: str, value: object
    ) -> None:
        edit(bundle, lambda manifest: manifest.update({field: value}))

        assert field in refusal(load_bundle, bundle, names=MANIFEST)

    def test_a_malformed_checksum_is_refused(self, bundle: Path) -> None:
        edit(bundle, lambda manifest: manifest["precisions"]["int8"].update(sha256="A" * 64))

        assert "precisions.int8.sha256" in refusal(load_bundle, bundle, names=MANIFEST)

    @pytest.mark.parametrize(
        ("field", "value"),
        [("top1", -0.1), ("top1", 1.1), ("low", -0.1), ("low", 1.1), ("high", -0.1), ("high", 1.1), ("n", 0)],
    )
    def test_an_agreement_that_cannot_be_is_refused_by_its_field(self, bundle: Path, field: str, value: float) -> None:
        edit(bundle, lambda manifest: manifest["precisions"]["int8"]["agreement"].update({field: value}))

        assert f"precisions.int8.agreement.{field}" in refusal(load_bundle, bundle, names=MANIFEST)

    @pytest.mark.parametrize(
        ("change", "complaint"),
        [
            ({"low": 0.95, "top1": 0.9}, "top1 0.9 is not between low 0.95 and high 1"),
            ({"top1": 0.99, "high": 0.985}, "top1 0.99 is not between"),
            ({"top1": 1.0, "not_finite": 1}, "1 clips are not finite, but fewer disagree"),
            ({"top1": 0.99, "not_finite": 0}, "not_finite"),
            ({"max_abs_difference": float("inf")}, "max_abs_difference"),
            ({"max_abs_difference": float("nan")}, "max_abs_difference"),
        ],
    )
    def test_an_agreement_that_contradicts_itself_is_refused(
        self, bundle: Path, change: dict[str, float], complaint: str
    ) -> None:
        edit(bundle, lambda manifest: manifest["precisions"]["int8"]["agreement"].update(change))

        assert complaint in refusal(load_bundle, bundle, names=MANIFEST)

    def test_earlier_versions_know_every_field_of_an_agreement_without_values_that_are_not_finite(
        self, bundle: Path
    ) -> None:
        agreement = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))["precisions"]["int8"]["agreement"]

        assert set(agreement) == {"top1", "n", "low", "high", "max_abs_difference", "device"}


class TestModelFiles:
    def test_a_bundle_stays_the_same_if_the_link_to_it_is_replaced(self, bundle: Path, tmp_path: Path) -> None:
        link = tmp_path / "link"
        link.symlink_to(bundle)
        loaded = load_bundle(link)
        link.unlink()
        link.symlink_to(write_tiny_bundle(tmp_path / "other", ["a", "b"], seed=1))

        assert loaded.read_model("fp32") == (bundle / "model.fp32.onnx").read_bytes()

    def test_a_file_that_is_replaced_after_it_was_checked_is_refused(self, bundle: Path) -> None:
        loaded = load_bundle(bundle)
        write_tiny_bundle(bundle, seed=1)

        assert "is damaged" in refusal(lambda _: loaded.read_model("fp32"), bundle, names="model.fp32.onnx")
        assert load_bundle(bundle).read_model("fp32")

    def test_a_folder_that_is_removed_after_it_was_checked_is_refused(self, bundle: Path) -> None:
        loaded = load_bundle(bundle)
        shutil.rmtree(bundle)

        assert "is missing" in refusal(lambda _: loaded.read_model("fp32"), bundle, names="model.fp32.onnx")

    def test_a_circle_of_links_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a").symlink_to(tmp_path / "b")
        (tmp_path / "b").symlink_to(tmp_path / "a")

        assert "cannot be read" in refusal(load_bundle, tmp_path / "a", names=MANIFEST)

    @pytest.mark.parametrize("name", ["model.fp32.onnx", "model.int8.onnx"])
    def test_a_missing_file_is_refused(self, bundle: Path, name: str) -> None:
        (bundle / name).unlink()

        assert "is missing" in refusal(load_bundle, bundle, names=name)

    def test_a_file_that_differs_from_its_checksum_is_refused(self, bundle: Path) -> None:
        model = bundle / "model.fp16.onnx"
        content = bytearray(model.read_bytes())
        content[-1] ^= 1
        model.write_bytes(content)

        assert "is damaged" in refusal(load_bundle, bundle, names=model.name)

    def test_a_folder_in_place_of_a_file_is_refused(self, bundle: Path) -> None:
        model = bundle / "model.fp32.onnx"
        model.unlink()
        model.mkdir()

        assert "cannot be read" in refusal(load_bundle, bundle, names=model.name)

    @pytest.mark.parametrize("name", [MANIFEST, "model.fp32.onnx", "model.int8.onnx"])
    def test_a_device_in_place_of_a_file_is_refused(self, bundle: Path, name: str) -> None:
        (bundle / name).unlink()
        (bundle / name).symlink_to("/dev/null")

        assert "is not a regular file" in refusal(load_bundle, bundle, names=name)

    def test_a_file_that_does_not_fit_into_memory_is_refused(self, bundle: Path) -> None:
        model = bundle / "model.fp32.onnx"
        os.truncate(model, 2 * SPARE_BYTES)
        digest = file_sha256(model)
        edit(bundle, lambda manifest: manifest["precisions"]["fp32"].update(sha256=digest))
        fresh = [sys.executable, "-c", READ_WITH_LITTLE_MEMORY, str(bundle), str(SPARE_BYTES)]  # a heap without gaps

        sentence = subprocess.run(fresh, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.strip()

        assert sentence.startswith(f"{model} does not fit into memory")
        assert REMEDY in sentence
        assert "\n" not in sentence

    def test_reading_only_the_manifest_does_not_check_the_files(self, bundle: Path) -> None:
        (bundle / "model.fp32.onnx").unlink()

        assert read_manifest(bundle).labels == list(LABELS)


texts = st.text(min_size=1, max_size=20)


@st.composite
def agreements(draw: st.DrawFn) -> Agreement:
    low, top1, high = sorted(draw(st.tuples(*[st.floats(0, 1)] * 3)))
    n = draw(st.integers(1, 10**6))
    return Agreement(
        top1=top1,
        n=n,
        low=low,
        high=high,
        max_abs_difference=draw(st.floats(0, 10)),
        device=draw(texts),
        not_finite=draw(st.none() | st.integers(1, disagreeing)) if (disagreeing := round((1 - top1) * n)) else None,
    )


variant_files = st.builds(
    VariantFile,
    file=st.from_regex(r"[a-z0-9]+\.onnx", fullmatch=True),
    sha256=st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
    agreement=st.none() | agreements(),
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


class TestWriteManifest:
    @given(manifest=manifests)
    def test_a_written_manifest_is_read_back_unchanged(
        self, tmp_path_factory: pytest.TempPathFactory, manifest: Manifest
    ) -> None:
        folder = tmp_path_factory.mktemp("bundle")

        write_manifest(folder, manifest)

        assert read_manifest(folder) == manifest
        assert [file.name for file in folder.iterdir()] == [MANIFEST]

    def test_the_schema_version_is_called_schema_in_json(self, bundle: Path) -> None:
        manifest = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))

        assert manifest["schema"] == 1
        assert "schema_version" not in manifest

    def test_an_existing_manifest_is_replaced(self, bundle: Path) -> None:
        newer = read_manifest(bundle).model_copy(update={"version": "2"})

        write_manifest(bundle, newer)

        assert read_manifest(bundle).version == "2"

    def test_a_failed_write_leaves_the_existing_manifest(self, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        before = (bundle / MANIFEST).read_bytes()

        def full_disk(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "replace", full_disk)
        with pytest.raises(OSError, match="No space left"):
            write_manifest(bundle, read_manifest(bundle))

        assert (bundle / MANIFEST).read_bytes() == before
        assert not list(bundle.glob("*.part"))


def test_the_decoder_makes_the_clips_that_a_manifest_describes(bundle: Path) -> None:
    manifest = read_manifest(bundle)

    assert manifest.clip_shape == (FRAME_COUNT, IMAGE_SIZE, IMAGE_SIZE, 3)
    assert (manifest.sampling, manifest.resize) == (SAMPLING_RULE, RESIZE_RULE)
