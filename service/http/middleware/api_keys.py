"""API keys: required for every path except health, metrics, the page, and the files of ``/docs``."""

import base64
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
# A browser that opens these can send a key only as the password of HTTP Basic. It then sends the password with every
# request to this host, even if another site causes it, so Basic is accepted nowhere else.
BASIC_PATHS = frozenset({"/docs", "/openapi.json"})


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
        if requires_key:
            self._check(scope)
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        basic = scope["path"] in BASIC_PATHS and scope["method"] in {"GET", "HEAD"}
        if not self._has_valid_key(Headers(scope=scope), basic=basic):
            schemes, hint = ["Bearer"], ""
            if basic:
                schemes, hint = ["Bearer", "Basic"], "; in a browser, enter it as the password, with any user name"
            raise Problem(
                "unauthorized",
                f"the API key is missing or not valid; send one as `Authorization: Bearer …` or `{HEADER}: …`{hint}",
                # One line each: browsers look for one scheme in a line.
                headers=[("WWW-Authenticate", f'{scheme} realm="limelight"') for scheme in schemes],
            )

    def _has_valid_key(self, headers: Headers, *, basic: bool) -> bool:
        sent = [key.encode("latin-1") for key in headers.getlist(HEADER)]  # as Starlette decodes headers
        for credentials in headers.getlist("Authorization"):
            scheme, _, token = credentials.partition(" ")
            if scheme.lower() == "bearer":
                sent.append(token.strip().encode("latin-1"))
            elif scheme.lower() == "basic" and basic:
                sent.append(_password(token))
        digests = [_digest(key) for key in sent]
        # Compare every pair in constant time, so that the time taken does not reveal which key nearly matched.
        return sum(hmac.compare_digest(digest, key) for digest in digests for key in self._digests) > 0


def _password(token: str) -> bytes:
    """Return the password of a token of HTTP Basic, or b"" if the token is malformed (RFC 7617)."""
    try:
        return base64.b64decode(token).partition(b":")[2]
    except ValueError:
        return b""


def _digest(key: bytes) -> bytes:
    """Hash a key, because comparing keys of different lengths would reveal their lengths."""
    return hashlib.sha256(key).digest()
