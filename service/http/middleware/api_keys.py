"""API keys: who may ask for anything but health, metrics and the page."""

import hashlib
import hmac
from collections.abc import Collection, Sequence

from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.http.problems import Problem

HEADER = "X-API-Key"
# What probes and scrapers ask for, who are configured by other people than those who hold keys.
OPEN = frozenset({"/health/live", "/health/ready", "/metrics", "/v2/health/live", "/v2/health/ready"})


class ApiKeys:
    """Pure ASGI middleware: requests without one of `keys` go no further, and nothing of their body is read.

    They raise Problem. Every path but `open_paths` is guarded, so that no route can be forgotten. Without keys
    everybody may ask.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[SecretStr], open_paths: Collection[str]) -> None:
        self._app = app
        self._open_paths = open_paths
        self._digests = [_digest(key.get_secret_value().encode("ascii")) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        guarded = scope["type"] == "http" and self._digests and scope["path"] not in self._open_paths
        if guarded and not self._admits(scope):
            raise Problem(
                "unauthorized",
                f"this service asks for an API key: send `Authorization: Bearer …` or `{HEADER}: …`",
                headers={"WWW-Authenticate": 'Bearer realm="limelight"'},
            )
        await self._app(scope, receive, send)

    def _admits(self, scope: Scope) -> bool:
        headers = Headers(scope=scope)
        presented = headers.getlist(HEADER)
        for credentials in headers.getlist("Authorization"):
            scheme, _, token = credentials.partition(" ")
            if scheme.lower() == "bearer":
                presented.append(token.strip())
        # Every pair is compared, in constant time: how long it takes tells nothing of which key is near.
        digests = [_digest(key.encode("latin-1")) for key in presented]  # as Starlette decodes headers
        return sum(hmac.compare_digest(digest, key) for digest in digests for key in self._digests) > 0


def _digest(key: bytes) -> bytes:
    """Of one length whatever the key's, which a comparison would tell otherwise."""
    return hashlib.sha256(key).digest()
