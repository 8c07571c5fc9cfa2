"""Classify each clip of a folder and write a CSV file: python examples/folder.py clips results.csv

Set ``LIMELIGHT_URL`` to the service's address (default: ``http://127.0.0.1:8000``) and ``LIMELIGHT_API_KEY`` to its API
key, if it requires one. Exits with 1 if a clip was refused (its row has the reason), and with 2 if the service cannot
be reached or refuses the key.
"""

import argparse
import csv
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from rich.console import Console
from rich.progress import track

URL = os.environ.get("LIMELIGHT_URL") or "http://127.0.0.1:8000"
KEY = os.environ.get("LIMELIGHT_API_KEY", "").strip()
COLUMNS = ("clip", "label", "probability", "problem", "detail")
CONCURRENCY = 4  # clips are decoded while the model is busy with another one
ATTEMPTS = 20


def main() -> None:
    """Classify each clip and write its row."""
    parser = argparse.ArgumentParser(description="Recognise the action in each clip of a folder and write a CSV file.")
    parser.add_argument("folder", type=Path, help="folder of clips; its subfolders are searched, too")
    parser.add_argument("results", type=Path, help="CSV file to write")
    options = parser.parse_args()
    results = options.results.resolve()
    clips = sorted(path for path in options.folder.rglob("[!.]*") if path.is_file() and path.resolve() != results)
    headers = {"Content-Type": "application/octet-stream"} | ({"X-API-Key": KEY} if KEY else {})
    console, refused = Console(stderr=True), 0
    with (
        options.results.open("w", newline="") as file,
        httpx.Client(base_url=URL, headers=headers, timeout=httpx.Timeout(120, connect=10)) as client,
        ThreadPoolExecutor(CONCURRENCY) as threads,
    ):
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        answers = threads.map(lambda clip: predict(client, clip), clips)
        try:
            for clip, answer in zip(clips, track(answers, "Clips", len(clips), console=console), strict=True):
                table.writerow({"clip": clip.relative_to(options.folder)} | answer)
                refused += "problem" in answer
        except httpx.HTTPError as error:
            parser.exit(2, f"{URL}: {error}\n")
    console.print(f"{len(clips) - refused} classified, {refused} refused: {options.results}")
    parser.exit(min(refused, 1))


def predict(client: httpx.Client, clip: Path) -> dict[str, object]:
    """Classify one clip, waiting and trying again if the service is overloaded.

    Returns:
        ``label`` and ``probability`` of the most likely action, or ``problem`` and ``detail`` if the clip was refused.

    Raises:
        httpx.HTTPError: The service cannot be reached, refuses the key, or the answer is not its own.
    """
    for _ in range(ATTEMPTS):
        with clip.open("rb") as file:
            answer = client.post("/predict", params={"attention": False}, content=file)
        if "Retry-After" not in answer.headers:
            break
        time.sleep(int(answer.headers["Retry-After"]))
    if answer.is_success:
        best = answer.json()["predictions"][0]
        return {"label": best["label"], "probability": best["probability"]}
    is_problem = answer.headers.get("Content-Type") == "application/problem+json"
    if not is_problem or answer.status_code == httpx.codes.UNAUTHORIZED:
        answer.raise_for_status()
    problem = answer.json()
    return {"problem": problem["code"], "detail": problem["detail"]}


if __name__ == "__main__":
    main()
