"""The checks of ``limelight doctor``: each finds what would keep the service from working here, and the remedy."""

import asyncio
import contextlib
import io
import json
import math
import re
import resource
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from service.assembly import load_pipeline
from service.cgroup import memory_limits, processors
from service.cli.health import ask
from service.errors import BundleError, ClipError, DecodersError, EngineError, ListenError
from service.http.listening import Endpoint, Listeners
from service.isolation.processes import start_decoders
from service.metrics import Metrics
from service.model.bundle import load_bundle
from service.model.spec import CUDA, choose_precision, has_vnni
from service.pipeline import Stages
from service.settings import (
    COMPOSE_VARIABLES,
    LOOPBACK,
    MAX_CONNECTIONS,
    SERVICE_ADDRESS,
    Settings,
    connections_allowed_by_files,
    misplaced,
)
from service.video.limits import DecodeLimits
from service.web import sample_clip

PREFIX = "LIMELIGHT_"
TIMEOUT_S = 600
# Variables of the command line, the examples and the tests.
NOT_SETTINGS = frozenset({"API_KEY", "SCREENSHOT", "SHARED", "SOAK_S", "URL"})
# Variables that Kubernetes sets in every pod beside a Service whose name is or begins with `limelight`.
SERVICE_LINKS = re.compile(
    r"LIMELIGHT(_\w+)?_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
MIN_KEY_LENGTH = 16
# What the fp32 network takes at batch size 1, and what decoding a clip usually takes.
NETWORK_BYTES = 1_400_000_000
DECODER_BYTES = 100_000_000
DECODER_REMEDY = (
    "raise LIMELIGHT_DECODE_MEMORY_BYTES or LIMELIGHT_DECODE_TIMEOUT_S if they are low; see docs/sandbox.md"
)
# What each layer of the sandbox does, and what it needs.
LAYER_REMEDIES = {
    "rlimits": "limits memory, processor time and open files; every Linux has it",
    "no_new_privs": "keeps decoders from gaining privileges; every Linux has it",
    "no_capabilities": "takes root's privileges from decoders; needs a container runtime that allows `capset`, or an "
    "ordinary user",
    "landlock": "blocks files by name and TCP; needs Linux 5.13 with `landlock` in lsm=, and in a container a runtime "
    "that allows it",
    "seccomp": "blocks all system calls except those for reading, computing and exiting; needs Linux with "
    "CONFIG_SECCOMP_FILTER on x86-64 or aarch64",
}


class Verdict(StrEnum):
    """How serious a finding is: ``BAD`` keeps the service from working, ``POOR`` from working well or safely."""

    GOOD = "ok"
    POOR = "warning"
    BAD = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """One row of the doctor's table.

    Attributes:
        subject: What was checked.
        verdict: How serious the finding is.
        found: What was found.
        remedy: What to do about it; empty if nothing needs doing.
    """

    subject: str
    verdict: Verdict
    found: str
    remedy: str = ""


def examine(settings: Settings, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Check everything, one after the other. Takes as long as starting the service.

    Args:
        settings: The settings to check.
        environment: The environment's variables, to find misspelt settings.

    Yields:
        One finding for each check as soon as it is done.
    """
    yield from _settings(settings, environment)
    yield _api_keys(settings)
    yield _open_files(settings)
    yield _memory(settings)
    yield _address(settings)
    yield from _decoders(settings)
    yield from _cuda_libraries(settings)
    yield from _bundle(settings)


def _settings(settings: Settings, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Find variables that name no setting or are Compose's, and settings that conflict."""
    conflicts = [*misplaced(environment), *_conflicts(settings)]
    if unknown := [name for name, value in environment.items() if _is_unknown(name, value)]:
        conflicts.append(
            (
                f"{', '.join(sorted(unknown))}: no such setting",
                "check the spelling; docs/operations.md lists all settings",
            )
        )
    for found, remedy in conflicts:
        yield Finding("settings", Verdict.POOR, found, remedy)
    if not conflicts:
        yield Finding("settings", Verdict.GOOD, "no conflicts")


def _is_unknown(name: str, value: str) -> bool:
    """Return whether a variable looks like a setting, but is none."""
    known = {name.upper() for name in Settings.model_fields} | NOT_SETTINGS
    if not name.startswith(PREFIX) or name.removeprefix(PREFIX) in known or name in COMPOSE_VARIABLES:
        return False
    return not (SERVICE_LINKS.fullmatch(name) or (name.endswith("_PORT") and SERVICE_ADDRESS.fullmatch(value)))


def _conflicts(settings: Settings) -> Iterator[tuple[str, str]]:
    """Yield each conflict between settings, with its remedy."""
    if settings.decode_timeout_s >= settings.request_timeout_s:
        remedy = "set LIMELIGHT_DECODE_TIMEOUT_S well below LIMELIGHT_REQUEST_TIMEOUT_S"
        yield "decoding alone may take as long as a whole request", remedy
    if settings.batch_sizes is not None and 1 not in settings.batch_sizes:
        yield "a single clip is padded to a larger batch", "add 1 to LIMELIGHT_BATCH_SIZES"
    if (settings.device, settings.precision) in {("cpu", "fp16"), ("cuda", "int8")}:
        yield f"{settings.precision} is slow on {settings.device}", "set LIMELIGHT_PRECISION=auto"
    usable = processors()
    if max(settings.threads, settings.decode_workers) > math.ceil(usable):
        remedy = "leave LIMELIGHT_THREADS and LIMELIGHT_DECODE_WORKERS at their defaults, or raise the CPU quota"
        yield (
            f"more threads or decoders than processors ({usable:g} by affinity and CPU quota) compete for time",
            remedy,
        )


def _api_keys(settings: Settings) -> Finding:
    """Check whether requests are authenticated, and by keys that cannot be guessed and are as they were written."""
    found = settings.authentication
    keys = [key.get_secret_value() for key in settings.api_keys]
    if any(key[0] == key[-1] and key[0] in "\"'" for key in keys):
        remedy = "write keys without quotes, which belong to the key in an env file with `format: raw` and in a file"
        return Finding("API keys", Verdict.POOR, f"{found}, of which one is in quotes", remedy)
    if any(len(key) < MIN_KEY_LENGTH for key in keys):
        found += f", of which one is shorter than {MIN_KEY_LENGTH} characters"
        return Finding("API keys", Verdict.POOR, found, "generate keys with `openssl rand -hex 32`")
    if not (keys or settings.unix_socket or settings.host in LOOPBACK):
        remedy = "set LIMELIGHT_API_KEYS or LIMELIGHT_API_KEYS_FILE, or let only a gateway reach the service"
        return Finding("API keys", Verdict.POOR, found, remedy)
    return Finding("API keys", Verdict.GOOD, found)


def _open_files(settings: Settings) -> Finding:
    """Check whether the limit of open files allows the connections that the service accepts."""
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    connections, allowed = settings.max_connections, connections_allowed_by_files(settings.decode_workers)
    found = f"{'any number of' if files == resource.RLIM_INFINITY else files} files, {connections} connections"
    raise_it = "raise the limit of open files (`ulimit -n`, LimitNOFILE=, --ulimit nofile=)"
    if connections > allowed:
        return Finding(
            "open files", Verdict.POOR, found, f"{raise_it} or set LIMELIGHT_MAX_CONNECTIONS to {allowed} or less"
        )
    if connections < MAX_CONNECTIONS and "max_connections" not in settings.model_fields_set:
        return Finding("open files", Verdict.POOR, found, f"{raise_it}; it allows fewer connections than by default")
    return Finding("open files", Verdict.GOOD, found)


def _memory(settings: Settings) -> Finding:
    """Check whether the network, decoders and uploads fit into the memory that this process may take."""
    limits = memory_limits()
    free = min([_free_on_machine(), *(limit.limit_bytes - limit.used_bytes for limit in limits)])
    needed = NETWORK_BYTES + settings.decode_workers * DECODER_BYTES + settings.upload_memory_bytes
    least = f" within the limit of {_gib(limits[0].limit_bytes)} in {limits[0].file}" if limits else ""
    fits = needed <= free
    return Finding(
        "memory",
        Verdict.GOOD if fits else Verdict.POOR,
        f"{_gib(free)} available{least}",
        ""
        if fits
        else f"the fp32 network, {settings.decode_workers} decoders and LIMELIGHT_UPLOAD_MEMORY_BYTES may take "
        f"{_gib(needed)}: make that available, or lower LIMELIGHT_UPLOAD_MEMORY_BYTES; int8 needs the least",
    )


def _free_on_machine() -> int:
    """Return the bytes of memory that the machine has available."""
    values = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines())
    return 1024 * int(values["MemAvailable"].split()[0])


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def _address(settings: Settings) -> Finding:
    """Check whether the server can listen on its address."""
    endpoint = Endpoint(settings.host, settings.port, settings.unix_socket)
    try:
        Listeners(endpoint).close()
    except ListenError as error:
        if _service_runs(endpoint):
            return Finding("address", Verdict.GOOD, f"a service is already running at {endpoint}")
        found, _, remedy = str(error).partition("; ")
        return Finding("address", Verdict.BAD, found, remedy)
    return Finding("address", Verdict.GOOD, f"{endpoint} is free")


def _service_runs(endpoint: Endpoint) -> bool:
    """Return whether a Limelight service already answers there."""
    with contextlib.suppress(OSError, ValueError):
        _, body = ask(endpoint, "/health/live")
        return bool(json.loads(body) == {"status": "live"})
    return False


def _decoders(settings: Settings) -> Iterator[Finding]:
    """Check the layers of the sandbox, and decode a clip in it."""
    missing = Verdict.BAD if settings.require_sandbox else Verdict.POOR
    try:
        # Without limits that may exclude the sample clip, and without requiring layers, so as to list them all.
        decoders = start_decoders(
            DecodeLimits(timeout_s=settings.decode_timeout_s), memory_bytes=settings.decode_memory_bytes
        )
    except (DecodersError, OSError) as error:
        yield Finding("decoders", Verdict.BAD, str(error), DECODER_REMEDY)
        return
    with contextlib.closing(decoders):
        for layer, granted in asdict(decoders.grants).items():
            remedy = "" if granted else LAYER_REMEDIES[layer]
            verdict = Verdict.GOOD if granted else missing
            yield Finding(f"sandbox: {layer}", verdict, "active" if granted else "missing", remedy)
        started = time.monotonic()
        try:
            clip = asyncio.run(decoders.decode(sample_clip()))
        except (ClipError, DecodersError) as error:
            yield Finding("decoders", Verdict.BAD, f"the sample clip was refused: {error}", DECODER_REMEDY)
        else:
            found = f"{clip.facts.frames} frames of {clip.facts.codec} in {1000 * (time.monotonic() - started):.0f} ms"
            yield Finding("decoders", Verdict.GOOD, found)


def _cuda_libraries(settings: Settings) -> Iterator[Finding]:
    """Check ONNX Runtime's build, and for its GPU build the driver and the CUDA libraries."""
    import onnxruntime as ort

    if CUDA not in ort.get_available_providers():
        verdict = Verdict.BAD if settings.device == "cuda" else Verdict.GOOD
        remedy = "install requirements/serve-gpu.txt instead of serve-cpu.txt" if verdict is Verdict.BAD else ""
        yield Finding("ONNX Runtime", verdict, f"{ort.__version__}, CPU build", remedy)
        return
    from onnxruntime.capi import build_and_package_info as built

    yield Finding("ONNX Runtime", Verdict.GOOD, f"{ort.__version__}, GPU build for CUDA {built.cuda_version}")
    needed = Verdict.BAD if settings.device == "cuda" else Verdict.POOR
    driver = Path("/proc/driver/nvidia/version")
    if driver.exists():
        yield Finding("NVIDIA driver", Verdict.GOOD, driver.read_text(encoding="utf-8").splitlines()[0])
    else:
        remedy = "install the driver; for a container, start it with --gpus all"
        yield Finding("NVIDIA driver", needed, "not loaded", remedy)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        ort.preload_dlls()
    if failures := output.getvalue().strip():
        remedy = "install requirements/serve-gpu.txt, which includes CUDA and cuDNN"
        yield Finding("CUDA libraries", needed, failures.splitlines()[0], remedy)
    else:
        yield Finding("CUDA libraries", Verdict.GOOD, f"CUDA and cuDNN {built.cudnn_version}")


def _bundle(settings: Settings) -> Iterator[Finding]:
    """Check the bundle's files, then run its network."""
    try:
        manifest = load_bundle(settings.bundle).manifest
    except BundleError as error:
        yield Finding("bundle", Verdict.BAD, str(error))
        return
    found = f"{manifest.name} {manifest.version}, {len(manifest.labels)} classes, {', '.join(manifest.precisions)}"
    yield Finding("bundle", Verdict.GOOD, f"{found}; every checksum matches")
    clip_bytes = math.prod(manifest.clip_shape)
    if settings.max_body_bytes < clip_bytes:
        remedy = f"set LIMELIGHT_MAX_BODY_BYTES above {clip_bytes}, the size of one clip's frames, if clients use it"
        yield Finding("request size", Verdict.POOR, "requests of the Open Inference Protocol exceed it", remedy)
    yield _network(settings)


def _network(settings: Settings) -> Finding:
    """Answer a clip, and say which precision and provider ran, and why."""
    try:
        pipeline = load_pipeline(settings, Metrics())
    except (BundleError, EngineError, DecodersError) as error:
        return Finding("network", Verdict.BAD, str(error))
    model, stages = pipeline.model, Stages()
    with contextlib.closing(pipeline):
        reason = "set by LIMELIGHT_PRECISION"
        if settings.precision == "auto":
            _, reason = choose_precision(model.manifest, on_cuda=model.provider == CUDA, vnni=has_vnni())
        try:
            asyncio.run(pipeline.predict(sample_clip(), deadline=time.monotonic() + TIMEOUT_S, stages=stages))
        except Exception as error:  # the service would fail with the same error
            return Finding("network", Verdict.BAD, f"the sample clip was not answered: {error}", "see the log above")
    found = f"{model.precision} on {model.provider}, {stages.inference:.2f} s per clip ({reason})"
    return Finding("network", Verdict.GOOD, found)
