"""The command ``export``: from Keras to a bundle of fp32, fp16 and int8 ONNX files, checked against Keras."""

import errno
import hashlib
import itertools
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import keras
import numpy as np
import onnx
import tensorflow as tf
import tf2onnx

import model_export
from model_export.data.datasets import check_different, label_of
from model_export.errors import ExportError, OwnBundleError
from model_export.head import TrainedHead
from model_export.network.arrays import predictor
from model_export.network.float16 import crafted_frame, measured_encoder
from model_export.network.spec import FRAME_COUNT, IMAGE_SIZE
from model_export.network.vgg19 import build_encoder
from model_export.provenance import can_be_made_again, with_record
from model_export.quantize import QUANTIZER_REVISION, quantize
from model_export.rendering.figure import render_clip
from model_export.reporter import SILENT, Reporter
from model_export.storing import FULL, explained, mebibytes, require_space
from model_export.verify import OnnxNetwork, Outcome, compare
from service.errors import BundleError
from service.files import OLD, locked, recover_folder, replace_folder
from service.model.bundle import (
    MANIFEST,
    Agreement,
    Manifest,
    Precision,
    VariantFile,
    file_sha256,
    load_bundle,
    read_manifest,
    write_manifest,
)
from service.video.decoder import decode_clip

OPSET = 17
# Largest difference from Keras in any probability or attention value of a correct fp32 export.
TOLERANCE = 1e-4
# A difference on the rendered clips this many times the largest one recorded on real clips contradicts the record.
CONTRADICTION = 2.0
CRAFTED = "a crafted frame"
# Room for the graphs, which the sizes of the weights leave out, and for the manifest.
SPARE_BYTES = 32 * 2**20

_LOCK = "lock"
_MOUNTED = (
    "{output} is a mount point, which cannot be replaced as a whole; choose a folder inside it, such as --output "
    "{output}/bundle"
)

Filters: TypeAlias = tuple[int, ...] | None
"""VGG19's channels by block; ``None``: those of the weights file."""


@dataclass(frozen=True, slots=True)
class ExportCheck:
    """How the files of a bundle compare with Keras on the rendered clips.

    Attributes:
        results: Of each precision that the bundle gets, the worst outcome and the largest difference.
        activations: Largest activation of each of VGG19's convolutions in float32, by what was shown.
        overflows: The layer that overflows first in float16, by what was shown.
    """

    results: dict[Precision, tuple[Outcome, float]]
    activations: dict[str, dict[str, float]] = field(default_factory=dict)
    overflows: dict[str, str] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """Return the check for the manifest."""
        return {
            "clips": "2 rendered",
            "outcome": {precision: outcome for precision, (outcome, _) in self.results.items()},
            "max_abs_difference": {precision: float(f"{found:.3g}") for precision, (_, found) in self.results.items()},
            "largest_activation": {
                shown: {layer: float(f"{found:.4g}") for layer, found in layers.items()}
                for shown, layers in self.activations.items()
            },
            "float16_overflow": self.overflows,
        }


def contradiction(check: dict[str, Any], precision: Precision, agreement: Agreement) -> str | None:
    """Say how the facts of an export's check contradict recorded agreement, if they do."""
    if check.get("outcome", {}).get(precision) == "disagrees":
        return "it names another class than Keras on a rendered clip"
    difference = check.get("max_abs_difference", {}).get(precision, 0.0)
    if difference > CONTRADICTION * agreement.max_abs_difference:
        return (
            f"it differs by {difference:.1e} on a rendered clip, more than {CONTRADICTION:g} times the recorded "
            f"{agreement.max_abs_difference:.1e}"
        )
    return None


def convert(encoder: keras.Model, head: keras.Model | None = None) -> onnx.ModelProto:
    """Convert the whole network to one ONNX graph, or the encoder alone.

    Args:
        encoder: The encoder.
        head: The head, unrolled, so that the graph has no loop.

    Returns:
        A graph from uint8 ``frames`` ``(batch, 40, 224, 224, 3)`` to the head's outputs. Without a head, from
        ``(batch, frames, 224, 224, 3)`` to ``cuboids`` ``(batch · frames, 7, 7, channels)``, with tensors of the same
        names.

    Raises:
        ExportError: The graph has other inputs, or a loop, which CUDA graphs do not allow.
    """
    size = encoder.input_shape[1]
    signature = [tf.TensorSpec([None, FRAME_COUNT if head else None, size, size, 3], tf.uint8, name="frames")]

    def network(frames: tf.Tensor) -> dict[str, tf.Tensor]:
        cuboids = encoder(tf.reshape(frames, [-1, size, size, 3]), training=False)
        if head is None:
            return {"cuboids": cuboids}
        outputs: dict[str, tf.Tensor] = head(tf.reshape(cuboids, [-1, *head.input_shape[1:]]), training=False)
        return outputs

    function = tf.function(network, input_signature=signature)
    model: onnx.ModelProto
    model, _ = tf2onnx.convert.from_function(function, input_signature=signature, opset=OPSET)
    graph = model.graph
    _name_encoder_tensors(graph)
    for value in [*graph.input, *graph.output] if head else []:
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    loops = {node.op_type for node in graph.node} & {"If", "Loop", "Scan"}
    if loops or [value.name for value in graph.input] != ["frames"]:
        raise ExportError(
            f"the converted graph has inputs {[v.name for v in graph.input]} and holds {loops or 'no loop'}; "
            "this is a bug, please report it"
        )
    return model


def _name_encoder_tensors(graph: onnx.GraphProto) -> None:
    """Name VGG19's tensors Conv_1, Relu_1, …: calibration goes by name, and the converter's names change between runs.

    Convolutions, rectifiers and poolings occur in the encoder only, and it is a chain.
    """
    names: dict[str, str] = {}
    count: Counter[str] = Counter()
    for node in graph.node:
        if node.op_type in ("Conv", "MaxPool", "Relu"):
            count[node.op_type] += 1
            names.setdefault(node.input[0], "encoder_input")
            names[node.output[0]] = f"{node.op_type}_{count[node.op_type]}"
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]


def export_bundle(
    head: TrainedHead,
    weights: Path | None,
    output: Path,
    *,
    filters: Filters = None,
    force: bool = False,
    reporter: Reporter = SILENT,
) -> bool:
    """Write a bundle, completely or not at all.

    Args:
        head: Trained head, with its calibration ranges.
        weights: VGG19's weights file; ``None`` for random weights, in tests.
        output: The bundle's folder, or a link to it, which is kept. A bundle that can be made again is replaced once
            the new one is complete, and a folder whose manifest cannot be read is renamed. What an export that was
            killed left behind is put back or removed.
        filters: VGG19's channels by block if there is no weights file; narrower in tests.
        force: Write the bundle whatever ``output`` was made from, and even if it is up to date.
        reporter: Receives progress.

    Returns:
        Whether a bundle was written; ``False`` if ``output`` was up to date.

    Raises:
        OwnBundleError: ``output`` was made from another head that did not come with the package.
        ExportError: ``output`` is not a bundle, the disk is full, or a precision does not compute what Keras does.
        HeadError: The head cannot be loaded, or was trained with another revision of the network or of frames.
        DatasetError: Two of the head's classes look equal.
    """
    if warning := head.check_revisions():
        reporter.say(warning)
    _labels(head)
    built_from = _fingerprint(head, weights, filters)
    output = _follow_links(output)
    _recover(output, reporter)
    _check_output(output)
    if not force:
        if _is_current(output, built_from):
            _refresh_agreement(output, head, built_from, reporter)
            return False
        _check_ownership(output, head)
    if not head.calibration.exists():
        raise ExportError(f"{head.calibration} is missing, and int8 needs it; train the head again")
    with _fresh_folder(output, disk_bytes(head, weights)) as folder:
        _write_models(head, weights, filters, folder, reporter)
        check = _check(head, weights, filters, folder, reporter)
        write_manifest(folder, with_record(_manifest(head, folder, built_from, check, reporter), head))
        with locked(output.absolute().parent), _locked_if_there(output):
            _check_output(output)
            if not force:
                _check_ownership(output, head)  # again: it took minutes
                _set_aside(output, reporter)
            replace_folder(folder, output)
    return True


def _follow_links(output: Path) -> Path:
    """Return the folder that a link leads to, for it to be replaced and not the link."""
    resolved = Path(os.path.realpath(output))
    return output if resolved == output.absolute() else resolved


@contextmanager
def _locked_if_there(output: Path) -> Iterator[None]:
    if not output.exists():
        yield
        return
    with locked(output):
        yield


def _fingerprint(head: TrainedHead, weights: Path | None, filters: Filters) -> str:
    """Return the identity of everything that a bundle is made from: head, VGG19 weights, code and converters."""
    digest = hashlib.sha256(f"{head.sha256()} {file_sha256(weights) if weights else None} {filters}".encode())
    digest.update(head.facts.model_dump_json().encode())
    package = Path(model_export.__file__).parent
    for source in sorted([*package.glob("network/*.py"), package / "export.py", package / "quantize.py"]):
        digest.update(source.read_bytes())
    for distribution in ("keras", "onnx", "onnxruntime", "tensorflow", "tf2onnx"):
        try:
            digest.update(version(distribution).encode())
        except ModuleNotFoundError:  # onnxruntime-gpu installs the module under another distribution name
            digest.update(version("onnxruntime-gpu").encode())
    return digest.hexdigest()


def _check_output(output: Path) -> None:
    """Refuse what is no folder, or one that this user cannot read or that contains other things than a bundle does."""
    other = ExportError(f"{output} exists and is not a bundle; choose another --output or remove it")
    if output.exists() and not output.is_dir():
        raise other
    for path, needed in ((output, os.R_OK | os.X_OK), (output / MANIFEST, os.R_OK)):
        if path.exists() and not os.access(path, needed):
            raise ExportError(f"{path} cannot be read; let user {os.getuid()} read it, or choose another --output")
    if output.exists() and not all(map(_belongs_to_a_bundle, output.iterdir())):
        raise other


def _belongs_to_a_bundle(file: Path) -> bool:
    return file.name == MANIFEST or file.suffix == ".onnx" or file.name.startswith(".part-")


def _check_ownership(output: Path, head: TrainedHead) -> None:
    """Refuse to replace a bundle that was made from somebody's own head."""
    try:
        manifest = read_manifest(output)
    except BundleError:
        return
    if can_be_made_again(manifest, head):
        return
    own = f"was made from a head of your own, {manifest.name} {manifest.version}"
    try:
        load_bundle(output)
    except BundleError as error:
        raise ExportError(f"{output} {own}, but {error}, with its --head and --force") from error
    raise OwnBundleError(f"{output} is kept because it {own}; replace it with --force or choose another --output")


def _set_aside(output: Path, reporter: Reporter) -> None:
    """Rename what may be somebody's bundle and cannot be read: half-copied, damaged or of another schema."""
    if not output.exists() or not any(output.iterdir()):
        return
    try:
        read_manifest(output)
    except BundleError:
        names = (output.parent / f"{output.name}.unreadable-{number}" for number in itertools.count(1))
        aside = next(name for name in names if not name.exists())
        output.rename(aside)
        reporter.say(f"{output} was not a bundle that this version can read: it is now {aside}; remove it if you like")


def _is_current(output: Path, built_from: str) -> bool:
    try:
        return load_bundle(output).manifest.built_from == built_from
    except BundleError:
        return False


def _refresh_agreement(output: Path, head: TrainedHead, built_from: str, reporter: Reporter) -> None:
    """Add agreement that was recorded after the bundle was written; what was measured on its own files stays."""
    with locked(output), explained(output / MANIFEST, 1, "choose another --output"):
        manifest = read_manifest(output)
        if manifest.built_from != built_from:  # it has just been replaced
            return
        missing = [precision for precision, entry in manifest.precisions.items() if entry.agreement is None]
        recorded = _trusted_agreement(head, missing, manifest.training.get("export_check", {}), reporter)
        if recorded:
            updated = {p: manifest.precisions[p].model_copy(update={"agreement": recorded[p]}) for p in recorded}
            write_manifest(output, manifest.model_copy(update={"precisions": {**manifest.precisions, **updated}}))


def _trusted_agreement(
    head: TrainedHead, precisions: Iterable[Precision], check: dict[str, Any], reporter: Reporter
) -> dict[Precision, Agreement]:
    """Return the recorded agreement of precisions, without what an export's check contradicts."""
    recorded = head.agreement(QUANTIZER_REVISION)
    trusted: dict[Precision, Agreement] = {}
    for precision in precisions:
        if (agreement := recorded.get(precision)) is None:
            continue
        if why := contradiction(check, precision, agreement):
            reporter.say(
                f"the recorded agreement of {precision} is left out, because {why}; measure it with "
                "`limelight-model verify`"
            )
        else:
            trusted[precision] = agreement
    return trusted


def disk_bytes(head: TrainedHead, weights: Path | None) -> int:
    """Return how much an export takes while it runs.

    VGG19 is written in 32, 16 and 8 bits, but ONNX Runtime writes a copy of the fp32 file before it writes the int8
    file; the head is written in 32 bits each time.
    """
    encoder = weights.stat().st_size if weights else 0
    return encoder * 5 // 2 + 3 * (head.path / "head.weights.h5").stat().st_size + SPARE_BYTES


@contextmanager
def _fresh_folder(output: Path, size: int) -> Iterator[Path]:
    """Yield an empty folder to write into, beside ``output``, which is removed afterwards with what is left in it.

    Args:
        output: The folder.
        size: Bytes that are written.
    """
    parent = output.absolute().parent
    if output.is_mount():
        raise ExportError(_MOUNTED.format(output=output))
    try:
        parent.mkdir(parents=True, exist_ok=True)
        require_space(parent, size)
        with ExitStack() as stack:
            with locked(parent):  # ``_recover`` finds no folder that is not locked yet
                work = Path(tempfile.mkdtemp(dir=parent, prefix=f".{output.name}-"))
                stack.callback(_clear, work, output)
                (work / _LOCK).touch()
                stack.enter_context(locked(work / _LOCK))  # until the process ends: ``_recover`` leaves it alone
            folder = work / "new"
            folder.mkdir()
            yield folder
    except OSError as error:
        if error.errno in FULL:
            raise ExportError(
                f"{output} was not written because the disk is full ({error.strerror}); free {mebibytes(size)} there, "
                "or choose another --output"
            ) from error
        if error.errno == errno.EBUSY:
            raise ExportError(_MOUNTED.format(output=output)) from error
        raise ExportError(
            f"{output} was not written ({error}); correct the cause, or choose another --output"
        ) from error


def _recover(output: Path, reporter: Reporter) -> None:
    """Put back what an export that was killed took away, and remove what it left."""
    leftover = re.compile(re.escape(f".{output.name}-") + "[a-z0-9_]{8}")  # see ``tempfile.mkdtemp``
    parent = output.absolute().parent
    if not parent.is_dir() or not os.access(parent, os.R_OK | os.W_OK | os.X_OK):
        return
    with locked(parent):
        for work in sorted(path for path in parent.iterdir() if leftover.fullmatch(path.name)):
            # Not that of an export that runs, which holds its lock.
            with suppress(OSError), locked(work / _LOCK, wait=False):
                if recover_folder(work, output):
                    reporter.say(f"{output} is as it was before an export that was interrupted")
                _clear(work, output)


def _clear(work: Path, output: Path) -> None:
    """Remove a folder of work, unless it holds the only copy of the bundle."""
    if output.exists() or not (work / OLD).exists():
        for bundle in ("new", OLD, ""):  # the lock last: ``_recover`` goes on by it if this is killed
            shutil.rmtree(work / bundle, ignore_errors=True)


def _write_models(head: TrainedHead, weights: Path | None, filters: Filters, folder: Path, reporter: Reporter) -> None:
    unrolled = head.build(unroll=True)
    for precision, dtype in (("fp32", "float32"), ("fp16", "float16")):
        reporter.say(f"converting to ONNX: {precision}")
        encoder = build_seeded_encoder(weights, dtype, filters)
        (folder / _file_name(precision)).write_bytes(convert(encoder, unrolled).SerializeToString())
    reporter.say("quantizing to int8")
    # A copy: ONNX Runtime writes a missing cache, and must never write into the head.
    ranges = folder.parent / "calibration.json"
    shutil.copyfile(head.calibration, ranges)
    quantize(folder / _file_name("fp32"), folder / _file_name("int8"), ranges)


def build_seeded_encoder(weights: Path | None, dtype: str, filters: Filters) -> keras.Model:
    """Build the encoder; without a weights file, its weights are random but the same for every dtype."""
    if weights is None:
        keras.utils.set_random_seed(0)
    return build_encoder(weights, dtype, filters=filters)


def _file_name(precision: str) -> str:
    return f"model.{precision}.onnx"


def _check(head: TrainedHead, weights: Path | None, filters: Filters, folder: Path, reporter: Reporter) -> ExportCheck:
    """Compare each precision with Keras on two rendered clips, and see whether VGG19 overflows in float16.

    On a CPU the fp16 file runs in float32. It is therefore compared on one clip only, to see that it is complete; what
    a GPU makes of both clips is computed in Keras. The fp16 file is removed if values overflow on a rendered clip.
    """
    clips = {
        action: decode_clip(render_clip(action, seed=seed).data).frames
        for seed, action in enumerate(("jumping_jacks", "waving"))
    }
    reporter.say("checking: Keras")
    encoder = build_seeded_encoder(weights, "float32", filters)
    predict = predictor(head.build())
    shown = {**clips, CRAFTED: crafted_frame()[np.newaxis]}
    exact, rounded = (
        {name: encode(frames) for name, frames in shown.items()}
        for encode in (measured_encoder(encoder), measured_encoder(encoder, float16=True))
    )
    expected = {name: predict(exact[name].cuboids[np.newaxis]) for name in clips}
    overflows = {name: layer for name, found in rounded.items() if (layer := found.overflow)}
    for name, layer in overflows.items():
        reporter.say(f"checking: float16 overflows in {layer} for {name}")
    results: dict[Precision, tuple[Outcome, float]] = {}
    for precision in ("fp32", "fp16", "int8"):
        network = OnnxNetwork(folder / _file_name(precision))
        names = list(clips)[:1] if precision == "fp16" else list(clips)
        compared = [compare(name, network(clips[name][np.newaxis]), expected[name]) for name in names]
        if precision == "fp16":
            if overflows.keys() & clips.keys():
                (folder / _file_name(precision)).unlink()
                reporter.say("the bundle gets no fp16 file, because float16 overflows on ordinary clips")
                continue
            compared += [compare(name, predict(rounded[name].cuboids[np.newaxis]), expected[name]) for name in clips]
        results[precision] = _judge(precision, compared)
        reporter.say(f"checking: {precision} differs from Keras by at most {results[precision][1]:.1e}")
    return ExportCheck(results, {name: found.peaks for name, found in exact.items()}, overflows)


def _judge(precision: Precision, compared: list[tuple[Outcome, float | None]]) -> tuple[Outcome, float]:
    """Return the worst outcome and the largest difference."""
    file = _file_name(precision)
    differences = [difference for _, difference in compared if difference is not None]
    if len(differences) < len(compared):
        raise ExportError(
            f"{file} computes values that are not finite, so no bundle was written; this is a bug, please report it"
        )
    if precision == "fp32" and max(differences) > TOLERANCE:
        raise ExportError(
            f"{file} differs from Keras by {max(differences):.1e}, more than {TOLERANCE:g}, so no bundle was written; "
            "this is a bug, please report it"
        )
    return ("agrees" if all(outcome == "agrees" for outcome, _ in compared) else "disagrees"), max(differences)


def _labels(head: TrainedHead) -> list[str]:
    """Return the names of the classes as they are shown; earlier versions took the names of folders as they were.

    Raises:
        DatasetError: Two of them look equal.
        ExportError: One of them is invisible.
    """
    check_different(head.facts.labels, head.path)
    labels = [label_of(label) for label in head.facts.labels]
    if not all(labels):
        raise ExportError(
            f"{head.path} has a class whose name is invisible; rename its folder, and train the head again"
        )
    return labels


def _manifest(head: TrainedHead, folder: Path, built_from: str, check: ExportCheck, reporter: Reporter) -> Manifest:
    agreement = _trusted_agreement(head, check.results, check.facts(), reporter)
    facts = head.facts
    return Manifest(
        name=facts.name,
        version=facts.version,
        variant=facts.variant,
        labels=_labels(head),
        frame_count=FRAME_COUNT,
        image_size=IMAGE_SIZE,
        precisions={
            precision: VariantFile(
                file=_file_name(precision),
                sha256=file_sha256(folder / _file_name(precision)),
                agreement=agreement.get(precision),
            )
            for precision in check.results
        },
        training={
            **facts.training,
            "revisions": facts.revisions.model_dump(),
            "attention_scores": facts.attention_scores,
            "readout": facts.readout,
            "export_check": check.facts(),
        },
        built_from=built_from,
    )
