"""What is done in each clip of a folder, as CSV: python examples/folder.py clips results.csv

LIMELIGHT_URL says where the service is, LIMELIGHT_API_KEY is sent if it is set. Exit status 1 where a clip was refused,
which its row explains; 2 where the service does not answer or wants another key.
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

URL = os.environ.get("LIMELIGHT_URL", "http://127.0.0.1:8000")
KEY = os.environ.get("LIMELIGHT_API_KEY")
COLUMNS = ("clip", "label", "probability", "problem", "detail")
AT_A_TIME = 4  # some are decoded while the network is busy with another
TRIES = 20


def main() -> None:
    """Asks for each clip and writes its row."""
    parser = argparse.ArgumentParser(description="Name the action in each clip of a folder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("results", type=Path, help="CSV file to write")
    options = parser.parse_args()
    results = options.results.resolve()
    clips = sorted(path for path in options.folder.rglob("[!.]*") if path.is_file() and path.resolve() != results)
    headers = {"Content-Type": "application/octet-stream"} | ({"X-API-Key": KEY} if KEY else {})
    console, refused = Console(stderr=True), 0
    with (
        options.results.open("w", newline="") as file,
        httpx.Client(base_url=URL, headers=headers, timeout=httpx.Timeout(120, connect=10)) as client,
        ThreadPoolExecutor(AT_A_TIME) as threads,
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
    console.print(f"{len(clips) - refused} named, {refused} refused: {options.results}")
    parser.exit(min(refused, 1))


def predict(client: httpx.Client, clip: Path) -> dict[str, object]:
    """The likeliest action, or the problem. Raises httpx.HTTPError where the clip is not at fault."""
    for _ in range(TRIES):
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
