"""How much disk and memory features and trainings take, told before they take them."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from model_export.errors import StorageError
from model_export.network.spec import FRAME_COUNT, GRID, FeatureDtype
from model_export.reporter import Reporter
from model_export.storing import MIB, check_writable, mebibytes

CHANNELS = 512
"""Channels of VGG19's last block."""


# What converting VGG19 to ONNX and measuring int8 ranges takes: 5.3 to 6.1 GB of resident memory were measured on two
# cores with TensorFlow 2.21, of which tf2onnx takes 4.4.
RANGES_BYTES = 6 * 10**9


def feature_bytes(dtype: FeatureDtype) -> int:
    """Return the size of the features of one view of a clip: 2.0 MB in float16, twice that in float32."""
    return FRAME_COUNT * GRID**2 * CHANNELS * (2 if dtype == "float16" else 4)


def checkpoint_bytes(weights: int) -> int:
    """Return the size of the checkpoint of one training: the weights and RMSProp's mean squares, in float32."""
    return 8 * weights


def training_bytes(weights: int, batch_size: int) -> int:
    """Return about how much memory a training takes.

    Fitted to the largest resident set of two epochs of two steps with a checkpoint after each, measured in MiB by a
    scratch program on 512 channels and 13 classes, with TensorFlow 2.21 on two cores: 650 before the network is built;
    with batches of 8, 16 and 32 clips 1,087, 1,288 and 1,771 for ``attention`` (4.4 million weights) and 2,016, 1,909
    and 1,966 for ``base`` (29.4 million). The formula is between 7 % too low and 30 % too high.
    """
    return 650 * MIB + 36 * weights + 28 * MIB * batch_size


def check_features(folder: Path, missing: int, dtype: FeatureDtype, reporter: Reporter) -> None:
    """Say how much disk the features that are missing take.

    Args:
        folder: Folder of cached features.
        missing: Number of views of clips that have none.
        dtype: Type in which they are stored.
        reporter: Receives it.

    Raises:
        StorageError: They do not fit, or the folder cannot be written.
    """
    if not missing:
        return
    check_writable(folder, "--features")
    size, free = missing * feature_bytes(dtype), free_disk(folder)
    reporter.say(f"features to compute: {missing:,} views of clips, {mebibytes(size)} of disk ({mebibytes(free)} free)")
    if size > free:
        raise StorageError(
            f"the features do not fit on the disk of {folder}; free {mebibytes(size - free)} there, or choose another "
            "folder for them"
        )


def tell_trainings(folder: Path, weights: list[int], batch_size: int, reporter: Reporter) -> None:
    """Say how much disk and memory trainings take, and warn if that is more than there is.

    Args:
        folder: Folder of their checkpoints; what it holds already is not counted again.
        weights: The number of weights of each training.
        batch_size: Number of clips of a batch.
        reporter: Receives it.
    """
    present = sum(file.stat().st_size for file in folder.rglob("*.npz"))
    # One more: a checkpoint is written beside the former one.
    size = max(0, sum(map(checkpoint_bytes, weights)) - present) + checkpoint_bytes(max(weights))
    needed, free, available = training_bytes(max(weights), batch_size), free_disk(folder), available_memory()
    reporter.say(
        f"trainings: {len(weights)}, one after another; {mebibytes(size)} of disk for checkpoints ({mebibytes(free)} "
        f"free), {_memory(needed, available)}"
    )
    if size > free:
        reporter.say(f"warning: the disk of {folder} will be full before the end; free {mebibytes(size - free)} there")
    if available and needed > available:
        reporter.say("warning: memory may run out; end other programs, or lower --batch-size")


def tell_ranges(reporter: Reporter) -> None:
    """Say how much memory measuring int8 ranges takes, and warn if that is more than there is."""
    available = available_memory()
    reporter.say(f"int8 ranges, after training: {_memory(RANGES_BYTES, available)}")
    if available and available < RANGES_BYTES:
        reporter.say("warning: memory may run out after training; end other programs by then")


def _memory(needed: int, available: int | None) -> str:
    return f"about {mebibytes(needed)} of memory" + (f" ({mebibytes(available)} available)" if available else "")


def free_disk(path: Path) -> int:
    """Return the free bytes of the disk that holds a path, which need not exist yet."""
    return shutil.disk_usage(next(there for there in (path, *path.absolute().parents) if there.exists())).free


def available_memory(root: Path = Path("/")) -> int | None:
    """Return how many bytes of memory are available to this process, as far as the system says so.

    Args:
        root: Where ``/proc`` and ``/sys`` are; for tests.
    """
    return min(_available(root), default=None)


def _available(root: Path) -> Iterator[int]:
    if found := re.search(r"^MemAvailable: *(\d+) kB$", _read(root / "proc/meminfo"), re.MULTILINE):
        yield 1024 * int(found[1])
    # The group at the top of the mount is this process's own in a container, which is where limits are usual.
    for folder, limit, used, cached in (
        ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
        ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        texts = [_read(root / folder / name).strip() for name in (limit, used)]
        if all(text.isdecimal() for text in texts):
            # Files that were read once: the kernel drops them when memory is needed.
            dropped = re.search(rf"^{cached} (\d+)$", _read(root / folder / "memory.stat"), re.MULTILINE)
            yield max(0, int(texts[0]) - int(texts[1]) + int(dropped[1] if dropped else 0))


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return ""
