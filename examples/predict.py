"""Classify a clip and print its most likely actions: python examples/predict.py clip.mp4

Set ``LIMELIGHT_URL`` to the service's address (default: ``http://127.0.0.1:8000``) and ``LIMELIGHT_API_KEY`` to its API
key, if it requires one. If the clip is refused, another server answers, such as a proxy, or there is no answer, the
program says so in one sentence and exits with 1. Needs ``httpx``. For many clips use ``limelight predict``.
"""

import os
import sys
import time
from collections.abc import Iterator
from datetime import UTC
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx

URL = os.environ.get("LIMELIGHT_URL") or "http://127.0.0.1:8000"
KEY = os.environ.get("LIMELIGHT_API_KEY", "").strip()
PATIENCE_S = 600  # for a busy service


def predict(clip: Path) -> httpx.Response:
    """Send a clip from its file, without reading it into memory, again and again while the service is busy."""
    headers = {"Content-Type": "application/octet-stream"} | ({"X-API-Key": KEY} if KEY else {})
    give_up = time.monotonic() + PATIENCE_S
    while True:
        with clip.open("rb") as file:
            options = {"top_k": 5, "attention": False}
            answer = httpx.post(f"{URL}/predict", params=options, content=file, headers=headers, timeout=120)
        wait_s = asked_to_wait_s(answer)
        if wait_s is None or time.monotonic() + wait_s > give_up:
            return answer
        time.sleep(wait_s)


def asked_to_wait_s(answer: httpx.Response) -> float | None:
    """Return how long a busy service wants the client to wait: a number of seconds, or until a date (RFC 9110)."""
    asked = answer.headers.get("Retry-After")
    if answer.status_code not in {429, 503} or asked is None:
        return None
    if asked.isdecimal():
        return float(asked)
    try:
        date = parsedate_to_datetime(asked)
        return max(0.0, date.replace(tzinfo=date.tzinfo or UTC).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 1.0


def lines_of(answer: httpx.Response) -> Iterator[str]:
    """Yield a line for each of the most likely actions.

    Raises:
        RuntimeError: The service refused the clip, or another server answered in its place.
    """
    try:
        content = answer.json()
        if answer.is_success:
            yield from (f"{action['probability']:.4f}  {action['label']}" for action in content["predictions"])
            return
        why = f"{content['title']}: {content['detail']} ({content['status']} {content['code']})"
    except (ValueError, LookupError, TypeError):  # it is not the service's
        why = f"{answer.status_code} {answer.reason_phrase}: {' '.join(answer.text[:200].split())}"
    raise RuntimeError(why)


def visible(text: str) -> str:
    """Escape characters that control a terminal, which names of files, answers of servers and labels may hold."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def main() -> None:
    """Classify the clip that is named on the command line."""
    if len(sys.argv) != 2:
        sys.exit("usage: predict.py CLIP")
    try:
        lines = [*lines_of(predict(Path(sys.argv[1])))]
    except (OSError, RuntimeError) as error:
        sys.exit(visible(str(error)))
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        sys.exit(visible(f"{URL}: {error}"))
    for line in lines:
        print(visible(line))


if __name__ == "__main__":
    main()
