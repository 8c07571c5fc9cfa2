"""The choice of device, precision and options for ONNX Runtime, tested without a GPU."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from service.model import spec as module
from service.model.bundle import Agreement, Bundle, load_bundle
from service.model.spec import (
    CUDA,
    CudaOptions,
    SessionSpec,
    choose_batch_sizes,
    choose_precision,
    choose_threads,
    has_vnni,
)
from tests.conftest import REPOSITORY
from tests.tiny_bundle import write_tiny_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return load_bundle(write_tiny_bundle(tmp_path))


class TestPrecision:
    def test_auto_is_fp16_on_cuda(self, bundle: Bundle) -> None:
        assert choose_precision(bundle.manifest, on_cuda=True, vnni=True)[0] == "fp16"

    def test_auto_is_int8_on_a_processor_with_vnni_if_it_agrees(self, bundle: Bundle) -> None:
        assert choose_precision(bundle.manifest, on_cuda=False, vnni=True)[0] == "int8"

    def test_auto_is_fp32_on_a_processor_without_vnni(self, bundle: Bundle) -> None:
        precision, reason = choose_precision(bundle.manifest, on_cuda=False, vnni=False)

        assert precision == "fp32"
        assert "VNNI" in reason

    # The bounds are those of Wilson's interval (scipy.stats.binomtest) for n clips, and for 60 videos.
    @pytest.mark.parametrize(
        ("found", "chosen", "why"),
        [
            ({"top1": 1.0, "n": 189, "low": 0.98008}, "int8", "known to agree"),
            ({"top1": 1.0, "n": 188, "low": 0.97998}, "fp32", "fewer clips than the required 189 (188)"),
            ({"top1": 1.0, "n": 1, "low": 0.20655}, "fp32", "compared on fewer clips than the required 189 (1)"),
            ({"top1": 1.0, "n": 600, "low": 0.93983}, "fp32", "of more videos"),
            ({"top1": 0.985, "n": 1000, "low": 0.97540}, "fp32", "lower bound of the 95 % interval is 97.54%"),
            ({"top1": 0.97, "n": 1000, "low": 0.95753}, "fp32", "agrees on only 97.00% of the clips"),
            ({"top1": 48 / 49, "n": 49, "low": 0.89306}, "fp32", "agrees on only 97.96% of the clips"),
            ({"top1": 0.999, "n": 1000, "low": 0.99435, "not_finite": 1}, "fp32", "not finite for 1 of 1000 clips"),
        ],
    )
    def test_int8_needs_a_lower_bound_of_98_percent_over_enough_clips(
        self, tmp_path: Path, found: dict[str, Any], chosen: str, why: str
    ) -> None:
        agreement = Agreement(high=1.0, max_abs_difference=0.1, device="test", **found)
        manifest = load_bundle(write_tiny_bundle(tmp_path, int8_agreement=agreement)).manifest

        precision, reason = choose_precision(manifest, on_cuda=False, vnni=True)

        assert precision == chosen
        assert why in reason

    def test_int8_needs_recorded_agreement(self, tmp_path: Path) -> None:
        manifest = load_bundle(write_tiny_bundle(tmp_path, int8_agreement=None)).manifest

        precision, reason = choose_precision(manifest, on_cuda=False, vnni=True)

        assert precision == "fp32"
        assert "`limelight-model verify` measures it" in reason

    def test_int8_of_the_shipped_head_is_chosen(self, tmp_path: Path) -> None:
        recorded = json.loads((REPOSITORY / "model_export/pretrained/agreement.json").read_text(encoding="utf-8"))
        agreement = Agreement.model_validate(recorded["precisions"]["int8"])
        manifest = load_bundle(write_tiny_bundle(tmp_path, int8_agreement=agreement)).manifest

        assert choose_precision(manifest, on_cuda=False, vnni=True)[0] == "int8"

    def test_a_bundle_without_int8_is_served_in_fp32(self, tmp_path: Path) -> None:
        manifest = load_bundle(write_tiny_bundle(tmp_path, precisions=["fp32"])).manifest

        assert choose_precision(manifest, on_cuda=False, vnni=True)[0] == "fp32"

    @pytest.mark.parametrize(
        ("flags", "answer"), [("fma avx2 avx512_vnni", True), ("fma avx_vnni", True), ("avx2 avx512f", False)]
    )
    def test_vnni_is_found_in_the_processor_flags(self, tmp_path: Path, flags: str, answer: bool) -> None:
        cpuinfo = tmp_path / "cpuinfo"
        cpuinfo.write_text(f"processor\t: 0\nflags\t\t: fpu {flags} rdpid\nbugs\t\t: none\n", encoding="utf-8")

        assert has_vnni(cpuinfo) is answer

    def test_an_unreadable_cpuinfo_means_no_vnni(self, tmp_path: Path) -> None:
        assert not has_vnni(tmp_path / "none")


class TestBatchSizes:
    @pytest.mark.parametrize(
        ("asked", "on_cuda", "sizes"),
        [(None, False, (1,)), (None, True, (1, 2, 4, 8)), ((4, 1, 4), False, (1, 4)), ((2,), True, (2,))],
    )
    def test_given_batch_sizes_replace_the_default_of_the_device(
        self, asked: tuple[int, ...] | None, on_cuda: bool, sizes: tuple[int, ...]
    ) -> None:
        assert choose_batch_sizes(asked, on_cuda=on_cuda) == sizes


class TestThreads:
    # Four processors: 0 and 2 are hyperthreads of one core, 1 and 3 of another.
    @pytest.mark.parametrize(
        ("asked", "affinity", "quota", "threads"),
        [
            (0, {0, 1, 2, 3}, 4, 2),
            (0, {0, 2}, 4, 1),
            (0, {1, 2}, 4, 2),
            (0, {0, 1, 2, 3}, 0.5, 1),
            (0, {0, 1, 2, 3}, 1.5, 2),
            (3, {0}, 0.5, 3),
        ],
        ids=["every core", "hyperthreads", "two cores", "half a processor", "one and a half", "as set"],
    )
    def test_there_is_one_per_core_that_the_process_may_use(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        asked: int,
        affinity: set[int],
        quota: float,
        threads: int,
    ) -> None:
        for processor, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
            topology = tmp_path / f"sys/devices/system/cpu/cpu{processor}/topology"
            topology.mkdir(parents=True)
            (topology / "thread_siblings_list").write_text(f"{siblings}\n", encoding="ascii")
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: affinity)
        monkeypatch.setattr(module, "processors", lambda: min(len(affinity), quota))

        assert choose_threads(asked, tmp_path) == threads

    def test_without_facts_about_cores_each_processor_counts_as_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
        monkeypatch.setattr(module, "processors", lambda: 3)

        assert choose_threads(0, tmp_path) == 3


def spec(provider: str, *, spinning: bool = False, cuda: CudaOptions = CudaOptions()) -> SessionSpec:
    return SessionSpec(provider, "fp16", (1, 2), threads=0, spinning=spinning, cuda=cuda)


class TestCuda:
    def test_by_default_convolutions_are_picked_heuristically_in_nhwc(self) -> None:
        assert CudaOptions().provider_options() == {
            "cudnn_conv_algo_search": "HEURISTIC",
            "prefer_nhwc": "1",
            "enable_cuda_graph": "0",
            "arena_extend_strategy": "kSameAsRequested",
        }

    def test_every_option_reaches_the_provider(self) -> None:
        options = CudaOptions(conv_search="EXHAUSTIVE", memory_limit_bytes=2**31, graphs=True, prefer_nhwc=False)

        assert options.provider_options() == {
            "cudnn_conv_algo_search": "EXHAUSTIVE",
            "prefer_nhwc": "0",
            "enable_cuda_graph": "1",
            "arena_extend_strategy": "kSameAsRequested",
            "gpu_mem_limit": "2147483648",
        }

    def test_only_a_cuda_session_has_a_fallback_provider(self) -> None:
        assert spec(CUDA).providers() == [(CUDA, CudaOptions().provider_options()), "CPUExecutionProvider"]
        assert spec("CPUExecutionProvider").providers() == ["CPUExecutionProvider"]

    def test_each_batch_size_has_a_cuda_graph_of_its_own(self) -> None:
        graphs = spec(CUDA, cuda=CudaOptions(graphs=True))

        assert [graphs.run_config(size) for size in (1, 2)] == [{"gpu_graph_id": "1"}, {"gpu_graph_id": "2"}]

    def test_no_cuda_graph_is_requested_without_graphs_or_without_cuda(self) -> None:
        assert spec(CUDA).run_config(1) == {}
        assert spec("CPUExecutionProvider", cuda=CudaOptions(graphs=True)).run_config(1) == {}


@pytest.mark.parametrize(("spinning", "value"), [(True, "1"), (False, "0")])
def test_the_spinning_setting_reaches_onnx_runtime(spinning: bool, value: str) -> None:
    entries = spec("CPUExecutionProvider", spinning=spinning).session_config()

    assert entries["session.intra_op.allow_spinning"] == value
