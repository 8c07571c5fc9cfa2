"""The command ``export``: from Keras to a bundle of fp32, fp16 and int8 ONNX files, checked against Keras."""

import errno
import hashlib
import itertools
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias

import keras
import numpy as np
import onnx
import tensorflow as tf
import tf2onnx

import model_export
from model_export.data.encoders import keras_encoder
from model_export.errors import ExportError, OwnBundleError
from model_export.head import TrainedHead
from model_export.network.arrays import all_values, largest_difference, predictor
from model_export.network.spec import FRAME_COUNT, IMAGE_SIZE
from model_export.network.vgg19 import build_encoder
from model_export.provenance import can_be_made_again, with_record
from model_export.quantize import quantize
from model_export.rendering.figure import render_clip
from model_export.reporter import SILENT, Reporter
from model_export.verify import OnnxNetwork
from service.errors import BundleError
from service.model.bundle import (
    MANIFEST,
    Manifest,
    Outputs,
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
# The three files and the largest intermediate file together, with room to spare.
DISK_BYTES = 400 * 2**20

Filters: TypeAlias = tuple[int, ...] | None
"""VGG19's channels by block; ``None``: those of the weights file."""


def convert(encoder: keras.Model, head: keras.Model) -> onnx.ModelProto:
    """Convert the whole network to one ONNX graph.

    Args:
        encoder: The encoder.
        head: The head, unrolled, so that the graph has no loop.

    Returns:
        A graph from uint8 ``frames`` ``(batch, 40, 224, 224, 3)`` to the head's outputs.

    Raises:
        ExportError: The graph has other inputs, or a loop, which CUDA graphs do not allow.
    """
    size = encoder.input_shape[1]
    signature = [tf.TensorSpec([None, FRAME_COUNT, size, size, 3], tf.uint8, name="frames")]

    def network(frames: tf.Tensor) -> dict[str, tf.Tensor]:
        cuboids = encoder(tf.reshape(frames, [-1, size, size, 3]), training=False)
        outputs: dict[str, tf.Tensor] = head(tf.reshape(cuboids, [-1, *head.input_shape[1:]]), training=False)
        return outputs

    function = tf.function(network, input_signature=signature)
    model: onnx.ModelProto
    model, _ = tf2onnx.convert.from_function(function, input_signature=signature, opset=OPSET)
    graph = model.graph
    _name_encoder_tensors(graph)
    for value in [*graph.input, *graph.output]:
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
        output: The bundle's folder. A bundle that can be made again is replaced once the new one is complete, and a
            folder whose manifest cannot be read is renamed.
        filters: VGG19's channels by block if there is no weights file; narrower in tests.
        force: Write the bundle whatever ``output`` was made from, and even if it is up to date.
        reporter: Receives progress.

    Returns:
        Whether a bundle was written; ``False`` if ``output`` was up to date.

    Raises:
        OwnBundleError: ``output`` was made from another head that did not come with the package.
        ExportError: ``output`` is not a bundle, the disk is full, or a precision does not compute what Keras does.
        HeadError: The head cannot be loaded, or was trained with another revision of the network or of frames.
    """
    if warning := head.check_revisions():
        reporter.say(warning)
    built_from = _fingerprint(head, weights, filters)
    _check_output(output)
    if not force:
        if _is_current(output, built_from):
            _refresh_agreement(output, head)
            return False
        _check_ownership(output, head)
    if not head.calibration.exists():
        raise ExportError(f"{head.calibration} is missing, and int8 needs it; train the head again")
    with _fresh_folder(output) as folder:
        _write_models(head, weights, filters, folder, reporter)
        differences = _check(head, weights, filters, folder, reporter)
        write_manifest(folder, with_record(_manifest(head, folder, built_from, differences), head))
        if not force:
            _check_ownership(output, head)  # again: it took minutes
            _set_aside(output, reporter)
    return True


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
    """Refuse a folder that this user cannot read, or that contains other things than a bundle does."""
    for path, needed in ((output, os.R_OK | os.X_OK), (output / MANIFEST, os.R_OK)):
        if path.exists() and not os.access(path, needed):
            raise ExportError(f"{path} cannot be read; let user {os.getuid()} read it, or choose another --output")
    if output.exists() and not (output.is_dir() and all(map(_belongs_to_a_bundle, output.iterdir()))):
        raise ExportError(f"{output} exists and is not a bundle; choose another --output or remove it")


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


def _refresh_agreement(output: Path, head: TrainedHead) -> None:
    """Copy agreement that was measured after the bundle was written into its manifest."""
    manifest = read_manifest(output)
    measured = head.agreement()
    precisions = {
        precision: entry.model_copy(update={"agreement": measured.get(precision, entry.agreement)})
        for precision, entry in manifest.precisions.items()
    }
    if precisions != manifest.precisions:
        write_manifest(output, manifest.model_copy(update={"precisions": precisions}))


@contextmanager
def _fresh_folder(output: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces ``output`` if the block succeeds and is removed otherwise."""
    parent = output.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(parent).free) < DISK_BYTES:
            raise OSError(errno.ENOSPC, f"only {free >> 20} MiB are free")
        with tempfile.TemporaryDirectory(dir=parent, prefix=f".{output.name}-") as name:
            folder = Path(name) / "new"
            folder.mkdir()
            yield folder
            if output.exists():
                output.rename(Path(name) / "old")
            folder.rename(output)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ExportError(
                f"{output} was not written because the disk is full ({error.strerror}); free {DISK_BYTES >> 20} MiB "
                "or choose another --output"
            ) from error
        raise ExportError(
            f"{output} was not written ({error}); correct the cause, or choose another --output"
        ) from error


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


def _check(
    head: TrainedHead, weights: Path | None, filters: Filters, folder: Path, reporter: Reporter
) -> dict[Precision, float]:
    """Measure the largest difference of each precision from Keras on two rendered clips."""
    clips = [
        decode_clip(render_clip(action, seed=seed).data).frames
        for seed, action in enumerate(("jumping_jacks", "waving"))
    ]
    reporter.say("checking: Keras")
    encode = keras_encoder(build_seeded_encoder(weights, "float32", filters))
    predict = predictor(head.build())
    expected = [predict(encode(frames)[np.newaxis]) for frames in clips]
    differences: dict[Precision, float] = {}
    for precision in ("fp32", "fp16", "int8"):
        network = OnnxNetwork(folder / _file_name(precision))
        outputs = [network(frames[np.newaxis]) for frames in clips]
        difference = max(map(largest_difference, outputs, expected))
        reporter.say(f"checking: {precision} differs from Keras by at most {difference:.1e}")
        _judge(precision, outputs, difference, folder)
        differences[precision] = difference
    return differences


def _judge(precision: Precision, outputs: list[Outputs], difference: float, folder: Path) -> None:
    file = _file_name(precision)
    if not all(np.isfinite(all_values(output)).all() for output in outputs):
        raise ExportError(
            f"{file} computes values that are not finite, so no bundle was written; this is a bug, please report it"
        )
    if precision == "fp32" and difference > TOLERANCE:
        raise ExportError(
            f"{file} differs from Keras by {difference:.1e}, more than {TOLERANCE:g}, so no bundle was written; this "
            "is a bug, please report it"
        )


def _manifest(head: TrainedHead, folder: Path, built_from: str, differences: dict[Precision, float]) -> Manifest:
    agreement = head.agreement()
    facts = head.facts
    return Manifest(
        name=facts.name,
        version=facts.version,
        variant=facts.variant,
        labels=list(facts.labels),
        frame_count=FRAME_COUNT,
        image_size=IMAGE_SIZE,
        precisions={
            precision: VariantFile(
                file=_file_name(precision),
                sha256=file_sha256(folder / _file_name(precision)),
                agreement=agreement.get(precision),
            )
            for precision in differences
        },
        training={
            **facts.training,
            "revisions": facts.revisions.model_dump(),
            "attention_scores": facts.attention_scores,
            "readout": facts.readout,
            "export_check": {
                "clips": "2 rendered",
                "max_abs_difference": {precision: float(f"{found:.3g}") for precision, found in differences.items()},
            },
        },
        built_from=built_from,
    )
