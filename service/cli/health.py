"""Asks a running service how it is. The image's health check runs this module every few seconds.

That takes 50 ms of processor time. It reads the three variables that it needs by itself, because importing the class of
the settings takes 180 ms.
"""

import http.client
import os
import socket
import sys
from collections.abc import Mapping

from service.http.listening import Endpoint
from service.streams import run

TIMEOUT_S = 4


def main(environment: Mapping[str, str]) -> int:
    """Say whether the service is ready, in one line on standard output.

    Args:
        environment: The environment's variables, which say where the service listens.

    Returns:
        The exit code: 0 if it is ready, otherwise 1.
    """
    endpoint = endpoint_of(environment)
    try:
        status, body = ask(endpoint, "/health/ready")
    except OSError as error:
        sys.stdout.write(f"no service answers at {endpoint} ({error.strerror or error})\n")
        return 1
    sys.stdout.write(f"{body.decode(errors='replace')}\n")
    return 0 if status == http.HTTPStatus.OK else 1


def endpoint_of(environment: Mapping[str, str]) -> Endpoint:
    """Return where a service with these variables listens, as ``Settings`` reads them."""
    variables = {name.upper(): value.strip() for name, value in environment.items() if value.strip()}
    try:
        port = int(variables["LIMELIGHT_PORT"])
    except (KeyError, ValueError):  # Kubernetes sets LIMELIGHT_PORT to a URL if a Service is named limelight
        port = 8000
    return Endpoint(variables.get("LIMELIGHT_HOST", "127.0.0.1"), port, variables.get("LIMELIGHT_UNIX_SOCKET"))


def ask(endpoint: Endpoint, path: str) -> tuple[int, bytes]:
    """Send a GET request to the service that listens at an endpoint.

    Returns:
        The status and the body of its answer.

    Raises:
        OSError: Nothing answers there, or not with HTTP.
    """
    connection = http.client.HTTPConnection("localhost")
    try:
        connection.sock = _connect(endpoint)
        connection.request("GET", path, headers={"Connection": "close"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (http.client.HTTPException, ValueError, OverflowError) as error:
        raise OSError(str(error)) from error
    finally:
        connection.close()


def _connect(endpoint: Endpoint) -> socket.socket:
    """Connect to the first address that accepts. On Linux, connecting to 0.0.0.0 or :: reaches this machine itself."""
    failures = []
    for family, address in endpoint.places():
        connection = socket.socket(family)
        connection.settimeout(TIMEOUT_S)
        try:
            connection.connect(address)
        except OSError as error:
            connection.close()
            failures.append(error)
        else:
            return connection
    raise failures[0]


if __name__ == "__main__":
    run(lambda: sys.exit(main(os.environ)))
