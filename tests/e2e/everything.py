"""Uses the page, the API and the commands of a bundle, as a program of its own. ``test_offline.py`` watches it.

Arguments: the bundle, a clip, and a folder for what is written.
"""

import re
import subprocess
import sys
from pathlib import Path

import httpx

from tests.e2e.process import PATIENCE_S, running


def main(bundle: Path, clip: Path, folder: Path) -> None:
    with (
        running(bundle, folder / "log.jsonl", {"DRAIN_DELAY_S": "0"}) as server,
        httpx.Client(base_url=server.url, timeout=PATIENCE_S, trust_env=False) as client,
    ):
        page = client.get("/").raise_for_status().text
        files = re.findall(r'(?:src|href)="([^":]+)"', page)
        assert files
        for path in (*files, "/docs", "/openapi.json", "/metrics", "/health/ready", "/v2"):
            client.get(path).raise_for_status()
        client.post("/predict", content=clip.read_bytes()).raise_for_status()
        limelight("predict", clip, "--url", server.url)
        server.process.terminate()
        assert server.process.wait(PATIENCE_S) == 0
    limelight("predict", clip, "--bundle", bundle, "--overlay", folder / "overlay.png")
    limelight("demo", "--bundle", bundle, "--overlay", folder / "demo.png")
    limelight("doctor", "--bundle", bundle)


def limelight(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "service.cli", *map(str, arguments)], check=True, timeout=PATIENCE_S)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
