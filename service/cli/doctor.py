"""`limelight doctor`: what would keep the service from working here, or from working well, and how to mend it."""

import asyncio
import contextlib
import errno
import io
import os
import resource
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

import httpx

from service.assembly import load_pipeline
from service.errors import BundleError, ClipError, DecodersError, EngineError
from service.isolation.processes import start_decoders
from service.metrics import Metrics
from service.model.bundle import Bundle, load_bundle
from service.model.spec import CUDA, choose_precision, has_vnni
from service.pipeline import Stages
from service.settings import Settings
from service.video.decoder import DecodeLimits
from service.web import sample_clip

PREFIX = "LIMELIGHT_"
ELSEWHERE = frozenset({"API_KEY", "SHARED", "SOAK_S"})  # variables of the command line and of the tests
SHORT_KEY = 16
CLIP_BYTES = 40 * 224 * 224 * 3
# A connection takes one descriptor and a clip that is decoded a few; beyond these there is no reason to be sparing.
FEW_FILES = 1024
# fp32 takes 1.4 GB at batch 1 (DESIGN §6), a decoder a hundred MB.
LITTLE_MEMORY = 2 * 2**30
DECODERS = "LIMELIGHT_DECODE_MEMORY_BYTES and LIMELIGHT_DECODE_TIMEOUT_S bound them; docs/sandbox.md says more"
# By layer: what it does, and what it takes.
SANDBOX = {
    "rlimits": "bounds memory, processor time and open files; Linux",
    "no_new_privs": "keeps rights from being gained; Linux",
    "landlock": "no file by name, no TCP; Linux 5.13 with `landlock` in lsm=, in a container whose runtime allows it",
    "seccomp": "no system call but to read, compute and end; Linux with CONFIG_SECCOMP_FILTER on x86-64 or aarch64",
}


class Verdict(StrEnum):
    """`BAD` keeps the service from working, `POOR` from working well or safely."""

    GOOD = "ok"
    POOR = "warning"
    BAD = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """One row: what was looked at, what was found, and how to mend it where that is called for."""

    subject: str
    verdict: Verdict
    found: str
    remedy: str = ""


def examine(settings: Settings, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Look at everything, one after the other. Takes as long as starting the service."""
    yield from _settings(settings, environment)
    yield from _limits(settings)
    yield _port(settings)
    yield from _decoders(settings)
    yield from _cuda_libraries(settings)
    yield from _bundle(settings)


def _settings(settings: Settings, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Settings that nobody reads, or that do not go together."""
    known = {name.upper() for name in Settings.model_fields} | ELSEWHERE
    unknown = [name for name in environment if name.startswith(PREFIX) and name.removeprefix(PREFIX) not in known]
    doubts = [*_doubts(settings)]
    if unknown:
        doubts.append((f"{', '.join(sorted(unknown))}: no such setting", "docs/operations.md lists those there are"))
    for found, remedy in doubts:
        yield Finding("settings", Verdict.POOR, found, remedy)
    if not doubts:
        yield Finding("settings", Verdict.GOOD, "they go together")


def _doubts(settings: Settings) -> Iterator[tuple[str, str]]:
    """What does not go together, and the remedy."""
    if not settings.api_keys and settings.host not in {"127.0.0.1", "localhost", "::1"}:
        yield "anybody who reaches it may ask", "set LIMELIGHT_API_KEYS, or let only a gateway reach it"
    if any(len(key.get_secret_value()) < SHORT_KEY for key in settings.api_keys):
        yield f"an API key is shorter than {SHORT_KEY} letters", "make keys with `openssl rand -hex 32`"
    if settings.decode_timeout_s >= settings.request_timeout_s:
        remedy = "set LIMELIGHT_DECODE_TIMEOUT_S well below LIMELIGHT_REQUEST_TIMEOUT_S"
        yield "one clip may be decoded for as long as a whole request may take", remedy
    if settings.max_body_bytes < CLIP_BYTES:
        remedy = f"a clip is {CLIP_BYTES} bytes there: set LIMELIGHT_MAX_BODY_BYTES higher, if you want to use it"
        yield "no request of the Open Inference Protocol fits", remedy
    if settings.batch_sizes is not None and 1 not in settings.batch_sizes:
        yield "a lone clip is filled up to a larger batch", "let LIMELIGHT_BATCH_SIZES begin with 1"
    if (settings.device, settings.precision) in {("cpu", "fp16"), ("cuda", "int8")}:
        remedy = "set LIMELIGHT_PRECISION=auto"
        yield f"{settings.precision} is slow on {settings.device}", remedy
    if max(settings.threads, settings.decode_workers or 0) > len(os.sched_getaffinity(0)):
        remedy = "leave LIMELIGHT_THREADS and LIMELIGHT_DECODE_WORKERS to their defaults"
        yield "there are more threads or decoders than cores, and they compete for them", remedy


def _limits(settings: Settings) -> Iterator[Finding]:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = files == resource.RLIM_INFINITY or files >= FEW_FILES
    yield Finding(
        "open files",
        Verdict.GOOD if enough else Verdict.POOR,
        f"at most {files}",
        "" if enough else f"raise it to {FEW_FILES} or more (`ulimit -n`, LimitNOFILE=, --ulimit nofile=)",
    )
    memory = _memory_bytes()
    plenty = memory >= LITTLE_MEMORY
    yield Finding(
        "memory",
        Verdict.GOOD if plenty else Verdict.POOR,
        f"{memory / 2**30:.1f} GiB left to this process",
        "" if plenty else "give it 2 GiB or more; the int8 network takes least",
    )


def _memory_bytes() -> int:
    """What the machine has available, or the container's limit leaves, whichever is less."""
    values = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    left = 1024 * int(values["MemAvailable"].split()[0])
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # no limit is "max", and there may be no version 2 here
        left = min(left, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return left


def _port(settings: Settings) -> Finding:
    address = f"{settings.host}:{settings.port}"
    try:
        family, _, _, _, place = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        socket.create_server(place, family=family).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE and _answers(settings):
            return Finding("address", Verdict.GOOD, f"a service answers at {address} already")
        remedy = "choose others with LIMELIGHT_HOST and LIMELIGHT_PORT"
        return Finding("address", Verdict.BAD, f"{address} cannot be listened on ({error.strerror})", remedy)
    return Finding("address", Verdict.GOOD, f"{address} is free")


def _answers(settings: Settings) -> bool:
    with contextlib.suppress(httpx.HTTPError, ValueError):
        live = httpx.get(f"http://{settings.host}:{settings.port}/health/live", timeout=5, trust_env=False)
        return bool(live.json() == {"status": "live"})
    return False


def _decoders(settings: Settings) -> Iterator[Finding]:
    """The sandbox, and whether a clip can be decoded in it."""
    limits = DecodeLimits(timeout_s=settings.decode_timeout_s)
    lacking = Verdict.BAD if settings.require_sandbox else Verdict.POOR
    try:
        decoders = start_decoders(limits, memory_bytes=settings.decode_memory_bytes)
    except (DecodersError, OSError) as error:
        yield Finding("decoders", Verdict.BAD, str(error), DECODERS)
        return
    with contextlib.closing(decoders):
        for layer, granted in asdict(decoders.grants).items():
            remedy = "" if granted else SANDBOX[layer]
            verdict = Verdict.GOOD if granted else lacking
            yield Finding(f"sandbox: {layer}", verdict, "granted" if granted else "missing", remedy)
        started = time.monotonic()
        try:
            clip = asyncio.run(decoders.decode(sample_clip()))
        except (ClipError, DecodersError) as error:
            yield Finding("decoders", Verdict.BAD, f"a good clip was refused: {error}", DECODERS)
        else:
            found = f"{clip.facts.frames} frames of {clip.facts.codec} in {1000 * (time.monotonic() - started):.0f} ms"
            yield Finding("decoders", Verdict.GOOD, found)


def _cuda_libraries(settings: Settings) -> Iterator[Finding]:
    """Where ONNX Runtime's build for GPUs is installed: what it was built for, and what there is of it."""
    import onnxruntime as ort

    if CUDA not in ort.get_available_providers():
        verdict = Verdict.BAD if settings.device == "cuda" else Verdict.GOOD
        remedy = "install requirements/serve-gpu.txt in place of serve-cpu.txt" if verdict is Verdict.BAD else ""
        yield Finding("ONNX Runtime", verdict, f"{ort.__version__}, built for CPUs only", remedy)
        return
    from onnxruntime.capi import build_and_package_info as built

    yield Finding("ONNX Runtime", Verdict.GOOD, f"{ort.__version__}, built for CUDA {built.cuda_version}")
    wanted = Verdict.BAD if settings.device == "cuda" else Verdict.POOR
    driver = Path("/proc/driver/nvidia/version")
    if driver.exists():
        yield Finding("NVIDIA driver", Verdict.GOOD, driver.read_text().splitlines()[0])
    else:
        remedy = "install the driver, or start the container with --gpus all"
        yield Finding("NVIDIA driver", wanted, "none is loaded", remedy)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        ort.preload_dlls()
    if failures := said.getvalue().strip():
        remedy = "install requirements/serve-gpu.txt, which brings CUDA and cuDNN"
        yield Finding("CUDA libraries", wanted, failures.splitlines()[0], remedy)
    else:
        yield Finding("CUDA libraries", Verdict.GOOD, f"CUDA and cuDNN {built.cudnn_version} are loaded")


def _bundle(settings: Settings) -> Iterator[Finding]:
    """The files of the bundle, and the network in them."""
    try:
        bundle = load_bundle(settings.bundle)
    except BundleError as error:
        yield Finding("bundle", Verdict.BAD, str(error))
        return
    manifest = bundle.manifest
    found = f"{manifest.name} {manifest.version}, {len(manifest.labels)} classes, {', '.join(manifest.precisions)}"
    yield Finding("bundle", Verdict.GOOD, f"{found}; every file is whole")
    yield _network(settings, bundle)


def _network(settings: Settings, bundle: Bundle) -> Finding:
    """Whether a clip gets its answer, on what, and why on that."""
    try:
        pipeline = load_pipeline(settings, Metrics())
    except (EngineError, DecodersError) as error:
        return Finding("network", Verdict.BAD, str(error))
    model, stages = pipeline.model, Stages()
    with contextlib.closing(pipeline):
        reason = "as LIMELIGHT_PRECISION asks"
        if settings.precision == "auto":
            _, reason = choose_precision(bundle.manifest, on_cuda=model.provider == CUDA, vnni=has_vnni())
        try:
            asyncio.run(pipeline.predict(sample_clip(), deadline=time.monotonic() + 600, stages=stages))
        except Exception as error:  # whatever it is, the service would meet it, too
            return Finding("network", Verdict.BAD, f"a clip gets no answer: {error}", "the log above may say more")
    found = f"{model.precision} on {model.provider}, {stages.inference:.2f} s a clip ({reason})"
    return Finding("network", Verdict.GOOD, found)
