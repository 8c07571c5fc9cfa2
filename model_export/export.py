"""From Keras to a bundle: fp32, fp16 and int8 ONNX files that were checked against Keras, and their manifest."""

import errno
import hashlib
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias

import keras
import numpy as np
import numpy.typing as npt
import onnx
import tensorflow as tf
import tf2onnx

import model_export
from model_export.head import TrainedHead
from model_export.network.vgg19 import build_encoder
from model_export.quantize import quantize
from model_export.rendering.figure import render_clip
from model_export.verify import OnnxNetwork, Outputs, keras_outputs, largest_difference
from service.errors import BundleError
from service.model.bundle import (
    MANIFEST,
    Manifest,
    Precision,
    VariantFile,
    file_sha256,
    load_bundle,
    read_manifest,
    write_manifest,
)
from service.video.decoder import IMAGE_SIZE, decode_clip
from service.video.sampling import FRAME_COUNT

OPSET = 17
# Largest difference from Keras in any probability or attention value that a correct fp32 export can have.
TOLERANCE = 1e-4
# What the three files and the largest intermediate one take together, with room to spare.
DISK_BYTES = 400 * 2**20

Frames = npt.NDArray[np.uint8]
# VGG19's channels by block; None: as its weights file has them.
Filters: TypeAlias = tuple[int, ...] | None
Say = Callable[[str], None]


class ExportError(Exception):
    """A bundle was not written. One sentence that names the file and the remedy."""


def convert(encoder: keras.Model, head: keras.Model) -> onnx.ModelProto:
    """One ONNX graph of the whole network: uint8 ``frames`` ``(batch, 40, 224, 224, 3)`` in, the head's outputs out.

    The head must be unrolled, so that the graph holds no loop.

    Raises:
        ExportError: the graph is not what CUDA graphs and the service need.
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
            f"the converted graph has inputs {[v.name for v in graph.input]} and holds {loops or 'no loop'}"
        )
    return model


def _name_encoder_tensors(graph: onnx.GraphProto) -> None:
    """Names VGG19's tensors Conv_1, Relu_1, …: calibration goes by name, and the converter's change from run to run.

    Only the encoder holds convolutions, rectifiers and poolings, and it is a chain.
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
    say: Say = lambda line: None,
) -> bool:
    """Writes a bundle, whole or not at all.

    Args:
        head: trained head, with its calibration ranges.
        weights: VGG19's; ``None`` only in tests, where random ones do.
        output: the bundle's folder. One that is there already is replaced, once the new one is complete.
        filters: VGG19's channels by block where ``weights`` do not tell; narrower in tests.
        force: write it even where ``output`` already is this bundle.
        say: told each step in a line.

    Returns:
        Whether a bundle was written: not where ``output`` already was the one this would have made.

    Raises:
        ExportError: ``output`` is something else, the disk is full, or a variant does not compute what Keras does.
        HeadError: the head cannot be used.
    """
    built_from = _fingerprint(head, weights, filters)
    _check_output(output)
    if not force and _is_current(output, built_from):
        _refresh_agreement(output, head)
        return False
    if not head.calibration.exists():
        raise ExportError(f"{head.calibration} is missing, without it there is no int8; train the head anew")
    with _fresh_folder(output) as folder:
        _write_models(head, weights, filters, folder, say)
        differences = _check(head, weights, filters, folder, say)
        manifest = _manifest(head, folder, built_from, differences)
        write_manifest(folder, manifest)
    return True


def _fingerprint(head: TrainedHead, weights: Path | None, filters: Filters) -> str:
    """Identity of all that a bundle is made from: head, VGG19 weights, and the code and converters at work."""
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
    if output.exists() and not (output / MANIFEST).exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ExportError(f"{output} is there and is not a bundle; choose another --output or remove it")


def _is_current(output: Path, built_from: str) -> bool:
    try:
        return load_bundle(output).manifest.built_from == built_from
    except BundleError:
        return False


def _refresh_agreement(output: Path, head: TrainedHead) -> None:
    """Takes over agreement that was measured after the bundle was written."""
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
    """A temporary folder beside ``output`` that takes its place if the block succeeds, and is gone otherwise."""
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
                f"{output} was not written, the disk is full ({error.strerror}); free {DISK_BYTES >> 20} MiB "
                "or choose another --output"
            ) from error
        raise ExportError(f"{output} was not written ({error}); mend that or choose another --output") from error


def _write_models(head: TrainedHead, weights: Path | None, filters: Filters, folder: Path, say: Say) -> None:
    unrolled = head.build(unroll=True)
    for precision, dtype in (("fp32", "float32"), ("fp16", "float16")):
        say(f"converting to ONNX, {precision}")
        encoder = build_seeded_encoder(weights, dtype, filters)
        (folder / _file_name(precision)).write_bytes(convert(encoder, unrolled).SerializeToString())
    say("quantizing to int8")
    # A copy: ONNX Runtime would write a missing cache, and must never write into the head.
    ranges = folder.parent / "calibration.json"
    shutil.copyfile(head.calibration, ranges)
    quantize(folder / _file_name("fp32"), folder / _file_name("int8"), ranges)


def build_seeded_encoder(weights: Path | None, dtype: str, filters: Filters) -> keras.Model:
    """The encoder; where it has no weights file, with random weights that are the same for every dtype."""
    if weights is None:
        keras.utils.set_random_seed(0)
    return build_encoder(weights, dtype, filters=filters)


def _file_name(precision: str) -> str:
    return f"model.{precision}.onnx"


def _check(head: TrainedHead, weights: Path | None, filters: Filters, folder: Path, say: Say) -> dict[Precision, float]:
    """Largest difference of each variant from Keras on two rendered clips."""
    clips = [
        decode_clip(render_clip(action, seed=seed).data).frames
        for seed, action in enumerate(("jumping_jacks", "waving"))
    ]
    say("checking: Keras")
    encoder = build_seeded_encoder(weights, "float32", filters)
    looped = head.build()
    expected = [keras_outputs(encoder, looped, frames) for frames in clips]
    differences: dict[Precision, float] = {}
    for precision in ("fp32", "fp16", "int8"):
        network = OnnxNetwork(folder / _file_name(precision))
        outputs = [network(frames) for frames in clips]
        difference = max(map(largest_difference, outputs, expected))
        say(f"checking: {precision} differs from Keras by at most {difference:.1e}")
        _judge(precision, outputs, difference, folder)
        differences[precision] = difference
    return differences


def _judge(precision: Precision, outputs: list[Outputs], difference: float, folder: Path) -> None:
    file = _file_name(precision)
    if not all(np.isfinite(value).all() for output in outputs for value in output.values()):
        raise ExportError(
            f"{file} computes values that are not finite; no bundle was written, this is a defect to report"
        )
    if precision == "fp32" and difference > TOLERANCE:
        raise ExportError(
            f"{file} differs from Keras by {difference:.1e}, more than {TOLERANCE:g}; no bundle was written, "
            "this is a defect to report"
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
            "attention_scores": facts.attention_scores,
            "readout": facts.readout,
            "export_check": {
                "clips": "2 rendered",
                "max_abs_difference": {precision: float(f"{found:.3g}") for precision, found in differences.items()},
            },
        },
        built_from=built_from,
    )
