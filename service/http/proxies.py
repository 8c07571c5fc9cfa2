"""Where a request comes from: its client and its trace, as reported by trusted proxies."""

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Literal

from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Getter
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers
from starlette.types import Scope

from service.settings import UNIX

Address = IPv4Address | IPv6Address
Hop = Address | Literal["unix"] | None

# How many entries of X-Forwarded-For are read, so that a long header costs no time.
MAX_HOPS = 32
# Addresses with a port or in brackets, as some load balancers write them: 10.0.0.1:555, [::1]:443, [::1].
_DECORATED = re.compile(r"(?P<v4>[0-9.]+):\d{1,5}|\[(?P<v6>[^]]*)\](?::\d{1,5})?", re.ASCII)


class TrustedProxies:
    """The proxies whose headers ``X-Forwarded-For`` and ``traceparent`` are trusted.

    Args:
        proxies: Addresses, networks, ``unix`` for the clients of a Unix socket, or ``*`` for everybody.
    """

    def __init__(self, proxies: Sequence[str]) -> None:
        self._everybody = "*" in proxies
        self._unix = UNIX in proxies
        self._networks = [ip_network(proxy) for proxy in proxies if proxy not in {"*", UNIX}]

    def client_of(self, scope: Scope) -> str | None:
        """Return the address of a request's client: ``unix`` for a Unix socket's, ``None`` if it is not known.

        Each proxy appends the address that called it to ``X-Forwarded-For``. The header is therefore read from the
        right, as long as the address read last is that of a trusted proxy. Whatever is not an address ends the reading.
        """
        hop = _peer(scope)
        if self._trusts(hop):
            forwarded = ",".join(Headers(scope=scope).getlist("X-Forwarded-For"))
            for entry in reversed(forwarded.split(",")[-MAX_HOPS:]):
                address = _forwarded_address(entry.strip())
                if address is None:
                    break
                hop = address
                if not self._trusts(hop):
                    break
        return None if hop is None else str(hop)

    def parent_of(self, scope: Scope) -> Context:
        """Return a context that holds the caller's span, or an empty one if no trusted ``traceparent`` names it."""
        context = Context()
        return _TRACE_CONTEXT.extract(scope, context, _HEADERS) if self._trusts(_peer(scope)) else context

    def _trusts(self, hop: Hop) -> bool:
        if hop is None:
            return False
        return self._everybody or (self._unix if hop == UNIX else any(hop in network for network in self._networks))


class _Headers(Getter[Scope]):
    """Reads headers for OpenTelemetry's propagator. Of several ``traceparent`` headers none is valid."""

    def get(self, carrier: Scope, key: str) -> list[str] | None:
        values = Headers(scope=carrier).getlist(key)
        return None if key == "traceparent" and len(values) > 1 else values or None

    def keys(self, carrier: Scope) -> list[str]:
        return Headers(scope=carrier).keys()


_HEADERS = _Headers()
_TRACE_CONTEXT = TraceContextTextMapPropagator()


def _peer(scope: Scope) -> Hop:
    """Return the other end of the connection."""
    client, server = scope.get("client"), scope.get("server")
    if client is not None:
        return _address(client[0])
    return UNIX if server is not None and server[1] is None else None


def _forwarded_address(text: str) -> Address | None:
    """Return the address in an entry of ``X-Forwarded-For``, or ``None`` if it is none."""
    match = _DECORATED.fullmatch(text)
    address = _address(match["v4"] or match["v6"] if match else text)
    # A zone means nothing to another machine, and may contain any characters.
    return None if isinstance(address, IPv6Address) and address.scope_id is not None else address


def _address(text: str) -> Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    # The form in which a socket for both families reports an IPv4 peer.
    return (isinstance(address, IPv6Address) and address.ipv4_mapped) or address
