"""Builds a warm pipeline from the settings. The server, ``predict --bundle`` and the doctor all start here."""

import asyncio
import contextlib

from service.errors import ClipError, ClipTooLong, DecodersError, ResolutionTooLarge
from service.isolation.processes import DecoderProcesses, start_decoders
from service.metrics import Metrics
from service.model.bundle import load_bundle
from service.model.engine import Engine
from service.model.model import Model
from service.model.spec import CudaOptions
from service.pipeline import Pipeline
from service.settings import Settings
from service.video.limits import DecodeLimits
from service.web import sample_clip


def load_model(settings: Settings, metrics: Metrics) -> Model:
    """Load the bundle that the settings name, and warm its network up. Takes seconds.

    Raises:
        BundleError: The bundle is missing, damaged or of another schema.
        EngineError: The network cannot run as configured.
    """
    bundle = load_bundle(settings.bundle)
    engine = Engine(
        bundle,
        device=settings.device,
        precision=settings.precision,
        batch_sizes=settings.batch_sizes,
        threads=settings.threads,
        spinning=settings.spinning,
        cuda=CudaOptions(
            conv_search=settings.cuda_conv_search,
            memory_limit_bytes=settings.gpu_mem_limit_bytes,
            graphs=settings.cuda_graphs,
            prefer_nhwc=settings.cuda_prefer_nhwc,
        ),
    )
    return Model(
        bundle,
        engine,
        max_queue=settings.max_queue,
        on_batch=metrics.batch_size.observe,
        on_failure=metrics.inference_failures.inc,
    )


def load_decoders(settings: Settings, metrics: Metrics) -> DecoderProcesses:
    """Start the decoder processes with the limits that the settings name. Takes half a second.

    Raises:
        DecodersError: They cannot be started, or the sandbox lacks a layer that the settings require.
    """
    return start_decoders(
        _decode_limits(settings),
        memory_bytes=settings.decode_memory_bytes,
        require_sandbox=settings.require_sandbox,
        on_restart=metrics.fork_server_restarts.inc,
    )


def load_pipeline(settings: Settings, metrics: Metrics) -> Pipeline:
    """Load the bundle, warm its network up, and start the decoder processes. Takes seconds.

    Raises:
        BundleError: The bundle is missing, damaged or of another schema.
        EngineError: The network cannot run as configured.
        DecodersError: The decoder processes cannot be started, or the sandbox lacks a layer that the settings require.
    """
    return start_pipeline(load_model(settings, metrics), settings, metrics)


def start_pipeline(model: Model, settings: Settings, metrics: Metrics) -> Pipeline:
    """Start the decoder processes for a model, which is closed if they cannot be used. Takes half a second.

    Call it outside an event loop.

    Raises:
        DecodersError: The decoder processes cannot be started, no clip can be decoded under the settings' limits, or
            the sandbox lacks a layer that the settings require.
    """
    with contextlib.ExitStack() as opened:
        opened.callback(model.close)
        decoders = opened.enter_context(contextlib.closing(load_decoders(settings, metrics)))
        if _decode_limits(settings) != DecodeLimits():  # under which decoders warm up
            _check_limits(decoders, settings)
        opened.pop_all()
    return Pipeline(model, decoders, metrics, decode_workers=settings.decode_workers)


def _decode_limits(settings: Settings) -> DecodeLimits:
    return DecodeLimits(
        max_duration_s=settings.max_duration_s,
        max_pixels=settings.max_pixels,
        max_frames=settings.max_frames,
        timeout_s=settings.decode_timeout_s,
    )


def _check_limits(decoders: DecoderProcesses, settings: Settings) -> None:
    """Decode the sample clip as clips of requests are decoded, to find limits that no clip can keep to."""
    clip = sample_clip()
    try:
        with contextlib.suppress(ClipTooLong, ResolutionTooLarge):
            asyncio.run(decoders.decode(clip))
            return
        # Only smaller clips than the sample are allowed. They take time and memory, too.
        limits = DecodeLimits(timeout_s=settings.decode_timeout_s)
        with contextlib.closing(DecoderProcesses(limits, memory_bytes=settings.decode_memory_bytes)) as for_any_size:
            asyncio.run(for_any_size.decode(clip))
    except ClipError as error:
        raise DecodersError(
            f"no clip can be decoded with these settings: {error}; raise LIMELIGHT_DECODE_TIMEOUT_S or "
            "LIMELIGHT_DECODE_MEMORY_BYTES"
        ) from error
