"""API keys: required for every path except health, metrics and the page."""

import hashlib
import hmac
from collections.abc import Collection, Sequence

from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.http.problems import Problem

HEADER = "X-API-Key"
# Probes and scrapers request these, and need no key.
OPEN_PATHS = frozenset({"/health/live", "/health/ready", "/metrics", "/v2/health/live", "/v2/health/ready"})


class ApiKeys:
    """Pure ASGI middleware that refuses requests without a valid key before their body is read.

    Every path but the open ones requires a key, so that a new route cannot be forgotten.

    Args:
        app: The application to call for requests with a valid key.
        keys: The valid keys. If there are none, requests are not authenticated.
        open_paths: Paths that require no key.

    Raises:
        Problem: The key is missing or not valid (``unauthorized``).
    """

    def __init__(self, app: ASGIApp, keys: Sequence[SecretStr], open_paths: Collection[str]) -> None:
        self._app = app
        self._open_paths = open_paths
        self._digests = [_digest(key.get_secret_value().encode("ascii")) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check the request's key if its path requires one."""
        requires_key = scope["type"] == "http" and self._digests and scope["path"] not in self._open_paths
        if requires_key and not self._has_valid_key(scope):
            raise Problem(
                "unauthorized",
                f"the API key is missing or not valid; send one as `Authorization: Bearer …` or `{HEADER}: …`",
                headers={"WWW-Authenticate": 'Bearer realm="limelight"'},
            )
        await self._app(scope, receive, send)

    def _has_valid_key(self, scope: Scope) -> bool:
        headers = Headers(scope=scope)
        sent = headers.getlist(HEADER)
        for credentials in headers.getlist("Authorization"):
            scheme, _, token = credentials.partition(" ")
            if scheme.lower() == "bearer":
                sent.append(token.strip())
        digests = [_digest(key.encode("latin-1")) for key in sent]  # the encoding that Starlette decodes headers with
        # Compare every pair in constant time, so that the time taken does not reveal which key nearly matched.
        return sum(hmac.compare_digest(digest, key) for digest in digests for key in self._digests) > 0


def _digest(key: bytes) -> bytes:
    """Hash a key, because comparing keys of different lengths would reveal their lengths."""
    return hashlib.sha256(key).digest()
