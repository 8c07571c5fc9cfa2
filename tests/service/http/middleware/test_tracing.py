"""Tracing of requests that do not reach ``AccessLog``; tests/e2e/test_tracing.py has all others."""

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.responses import PlainTextResponse

from service.http.middleware.tracing import Tracing
from service.http.proxies import TrustedProxies


@pytest.mark.anyio
async def test_what_another_middleware_answers_is_not_traced() -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    preflight = Tracing(PlainTextResponse("OK"), provider.get_tracer("test"), TrustedProxies(()))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(preflight), base_url="http://localhost") as client:
        answer = await client.options("/predict")

    assert answer.status_code == 200
    assert exporter.get_finished_spans() == ()
