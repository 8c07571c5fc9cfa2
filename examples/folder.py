"""Classify each clip of a folder and write a CSV file: python examples/folder.py clips results.csv

Set ``LIMELIGHT_URL`` to the service's address (default: ``http://127.0.0.1:8000``) and ``LIMELIGHT_API_KEY`` to its API
key, if it requires one. Hidden files and folders are left out. Exits with 1 if a clip was refused (its row has the
reason), and with 2 if another server answered, such as a proxy, or if the service cannot be reached or refuses the key.
The file always has the results so far.
"""

import argparse
import csv
import os
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx
from rich.console import Console
from rich.progress import track

URL = os.environ.get("LIMELIGHT_URL") or "http://127.0.0.1:8000"
KEY = os.environ.get("LIMELIGHT_API_KEY", "").strip()
COLUMNS = ("clip", "label", "probability", "problem", "detail")
CONCURRENCY = 4  # clips are decoded while the model is busy with another one
ATTEMPTS = 20
LONGEST_WAIT_S = 30  # between two attempts, whatever the service asks for

Row = dict[str, object]


def main() -> None:
    """Classify each clip and write its row."""
    parser = argparse.ArgumentParser(description="Recognise the action in each clip of a folder and write a CSV file.")
    parser.add_argument("folder", type=Path, help="folder of clips; its subfolders are searched, too")
    parser.add_argument("results", type=Path, help="CSV file to write")
    options = parser.parse_args()
    if not options.folder.is_dir():
        parser.error(f"{options.folder} is not a folder")
    try:
        problems = classify(options.folder, options.results)
    except (httpx.HTTPError, OSError) as error:
        parser.exit(2, f"{URL}: {error}\n")
    foreign = [row for row in problems if " " in str(row["problem"])]  # codes of the service have no spaces
    if foreign:
        parser.exit(2, f"{URL}: {foreign[0]['problem']}: {foreign[0]['detail']}\n")
    parser.exit(min(len(problems), 1))


def classify(folder: Path, results: Path) -> list[Row]:
    """Classify each clip of a folder, and write a row for each to a file. Return the rows of problems.

    Raises:
        httpx.HTTPError: The service cannot be reached, or refuses the key.
        OSError: The file cannot be written.
    """
    clips = sorted(path for path in folder.rglob("*") if path.is_file() and not is_hidden(path.relative_to(folder)))
    clips = [clip for clip in clips if clip.resolve() != results.resolve()]
    headers = {"Content-Type": "application/octet-stream"} | ({"X-API-Key": KEY} if KEY else {})
    console, problems = Console(stderr=True), []
    with (
        results.open("w", buffering=1, encoding="utf-8", errors="surrogateescape", newline="") as file,
        httpx.Client(base_url=URL, headers=headers, timeout=httpx.Timeout(120, connect=10)) as client,
        ThreadPoolExecutor(CONCURRENCY) as threads,
    ):
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        rows = {clip: threads.submit(predict, client, clip, str(clip.relative_to(folder))) for clip in clips}
        try:
            for clip in track(clips, "Clips", console=console):
                table.writerow(row := rows[clip].result())
                del rows[clip]
                if "problem" in row:
                    problems.append(row)
        finally:
            threads.shutdown(cancel_futures=True)
            table.writerows(row.result() for row in rows.values() if not (row.cancelled() or row.exception()))
    console.print(f"{len(clips) - len(problems)} classified, {len(problems)} refused: {results}")
    return problems


def is_hidden(path: Path) -> bool:
    """Return whether a file or one of the folders on its path is hidden."""
    return any(part.startswith(".") for part in path.parts)


def predict(client: httpx.Client, clip: Path, name: str) -> Row:
    """Classify one clip, waiting and trying again if the service is overloaded.

    Returns:
        ``clip``, and ``label`` and ``probability`` of the most likely action or ``problem`` and ``detail``.

    Raises:
        httpx.HTTPError: The service cannot be reached, or refuses the key.
    """
    for _ in range(ATTEMPTS):
        try:
            with clip.open("rb") as file:
                answer = client.post("/predict", params={"attention": False}, content=file)
        except OSError as error:
            return {"clip": name, "problem": "unreadable", "detail": error.strerror}
        if answer.is_success or "Retry-After" not in answer.headers:
            break
        time.sleep(wait_s(answer.headers["Retry-After"]))
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        answer.raise_for_status()
    try:
        content = answer.json()
        if answer.is_success:
            best = content["predictions"][0]
            return {"clip": name, "label": best["label"], "probability": best["probability"]}
        return {"clip": name, "problem": content["code"], "detail": content["detail"]}
    except (ValueError, LookupError, TypeError):  # it is not the service's
        text = " ".join(answer.text[:200].split())
        return {"clip": name, "problem": f"{answer.status_code} {answer.reason_phrase}", "detail": text}


def wait_s(retry_after: str) -> float:
    """Return the seconds that the header Retry-After asks for, as a number or as a date (RFC 9110, section 10.2.3)."""
    try:
        if retry_after.isdecimal():
            seconds = float(retry_after)
        else:
            date = parsedate_to_datetime(retry_after)
            seconds = (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    except (ValueError, OverflowError):
        seconds = 1
    return min(max(seconds, 0), LONGEST_WAIT_S)


if __name__ == "__main__":
    main()
