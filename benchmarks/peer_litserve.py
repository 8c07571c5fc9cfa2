"""The bundle's network behind LitServe, for ``bench_peers.py``: ``python -m benchmarks.peer_litserve PORT WORKERS``."""

import io
import sys
from typing import Any

import litserve
from fastapi import Request

from benchmarks.peer_clip import ClipModel


class ClipApi(litserve.LitAPI):
    """Classifies a clip sent as the file ``file`` of a form."""

    def setup(self, device: str) -> None:
        """See LitAPI."""
        self.model = ClipModel()

    def decode_request(self, request: Request) -> io.BytesIO:
        """See LitAPI. The request is the form."""
        return io.BytesIO(request["file"].file.read())

    def predict(self, clip: io.BytesIO) -> dict[str, Any]:
        """See LitAPI."""
        return self.model.predict(clip)


if __name__ == "__main__":
    server = litserve.LitServer(ClipApi(), accelerator="cpu", workers_per_device=int(sys.argv[2]))
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False)
