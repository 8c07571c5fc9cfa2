"""Keeps web pages of other hosts from using a service on loopback that requires no key.

Such a service trusts everybody on its machine, and a browser there runs pages of everybody. A page can post to the
service from its own origin, and it can read answers if the name of its host is made to point to the machine (DNS
rebinding): the browser then takes the service for the page's own host.
"""

import ipaddress
import re
import socket
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.http.problems import Problem

# The host of a ``Host`` header or an origin. The port does not matter.
_HOST = re.compile(r"(\[[^\[\]]*\]|[^\[\]:]*)(:\d*)?")


class AllowedHosts:
    """Pure ASGI middleware that refuses requests for hosts other than this machine, and those of other hosts' pages.

    ``localhost``, the names under it and loopback addresses are allowed, on every port. A request without ``Host`` is
    none of a browser, and passes; so does one without ``Origin``, to which a page does not get the answer.

    Args:
        app: The application.
        hosts: Further hosts that are allowed; ``*`` stands for all.
        origins: Origins whose pages may call the service, whatever their host is; ``*`` stands for all.

    Raises:
        Problem: The host (``host_not_allowed``) or the origin (``origin_not_allowed``) is not allowed.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str], origins: Collection[str]) -> None:
        self._app = app
        self._hosts = {_host(host) for host in hosts} - {""}
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check the headers ``Host`` and ``Origin``."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            for host in headers.getlist("Host"):
                self._check_host(host)
            for origin in headers.getlist("Origin"):
                self._check_origin(origin)
        await self._app(scope, receive, send)

    def _check_host(self, host: str) -> None:
        if not self._allows(host):
            raise Problem(
                "host_not_allowed",
                f"this service does not answer for the host {host}; list it in LIMELIGHT_ALLOWED_HOSTS",
            )

    def _check_origin(self, origin: str) -> None:
        if not self._allows(origin.partition("://")[2]) and self._origins.isdisjoint({"*", origin}):
            raise Problem(
                "origin_not_allowed",
                f"pages of {origin} may not call this service; list the origin in LIMELIGHT_CORS_ORIGINS, or its host "
                "in LIMELIGHT_ALLOWED_HOSTS",
            )

    def _allows(self, authority: str) -> bool:
        host = _host(authority)
        return bool(self._hosts & {"*", host}) or host.endswith(".localhost") or _is_loopback(host)


def is_on_loopback(host: str) -> bool:
    """Return whether a server that listens on this host can be reached only from its own machine.

    Args:
        host: An address, or a name that is resolved.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, ValueError):
        return False  # the server cannot listen there
    return all(_is_loopback(str(address[0])) for *_, address in found)


def _host(authority: str) -> str:
    """Return the host of an authority in lower case, or "" if it is malformed."""
    match = _HOST.fullmatch(authority.lower())
    return match[1].strip("[]").removesuffix(".") if match else ""


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback
