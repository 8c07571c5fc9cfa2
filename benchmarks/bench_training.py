"""Time of training a head on stored features, with this code and, in turn, with that of another checkout.

Each round trains each network once for a few epochs on random features of 512 channels, about as sparse as VGG19's, in
a process of its own. The first epoch, which compiles the network, is not counted. The table has the median and the
range of an epoch's time for each batch of 16 clips, reading included, and the processor time.

    python benchmarks/bench_training.py --before ../earlier --rounds 3
"""

import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.report import REPOSITORY, argument_parser, publish

# Fields of ``HeadSpec``.
NETWORKS = {
    "attention": {"variant": "attention"},
    "attention, state scores": {"variant": "attention", "attention_scores": "state"},
    "base": {"variant": "base"},
}
CLIPS, EPOCHS = 160, 4
TRAINING = Path(__file__).with_name("training_contender.py")


def main() -> None:
    """Measure, print, and append to RESULTS.md."""
    parser = argument_parser(__doc__)
    parser.add_argument("--before", type=Path, help="another checkout, to compare with")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    checkouts = {"this": REPOSITORY, **({"before": options.before.resolve()} if options.before else {})}
    with tempfile.TemporaryDirectory() as features:
        write_features(Path(features))
        times: defaultdict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
        for _ in range(options.rounds):
            for network in NETWORKS:
                for code, checkout in checkouts.items():
                    times[network, code] += measured(checkout, features, network)
    rows = ["| network | code | a batch, ms | min–max, ms | processor time, ms | speed |"]
    for network in NETWORKS:
        last = "before" if options.before else "this"
        for code in reversed(checkouts):
            walls, processor = ([1000 * one[i] for one in times[network, code]] for i in (0, 1))
            speed = median(wall for wall, _ in times[network, last]) * 1000 / median(walls)
            spread = f"{min(walls):.0f}–{max(walls):.0f}"
            rows.append(
                f"| {network} | {code} | {median(walls):.0f} | {spread} | {median(processor):.0f} | {speed:.2f} |"
            )
    facts = [f"{CLIPS} clips, {EPOCHS - 1} epochs a round, {options.rounds} rounds, the codes in turn"]
    publish("Training a head", facts, rows, record=not options.no_record)


def write_features(folder: Path) -> None:
    """Write random features, a third of which are above 0."""
    random = np.random.default_rng(0)
    for clip in range(CLIPS):
        shape = (40, 7, 7, 512)
        active = random.random(shape, np.float32) < 0.3
        np.save(folder / f"{clip}.npy", (3 * random.standard_gamma(0.3, shape, np.float32) * active).astype(np.float16))


def measured(checkout: Path, features: str, network: str) -> list[tuple[float, float]]:
    """Return wall and processor time of a batch in seconds, for each epoch but the first."""
    command = [sys.executable, str(TRAINING), features, json.dumps(NETWORKS[network]), str(EPOCHS)]
    environment = os.environ | {"PYTHONPATH": str(checkout), "TF_CPP_MIN_LOG_LEVEL": "3"}
    ended = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, encoding="utf-8")
    return [(wall, processor) for wall, processor in json.loads(ended.stdout.splitlines()[-1])]


if __name__ == "__main__":
    main()
