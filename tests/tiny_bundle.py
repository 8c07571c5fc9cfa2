"""Writes a small bundle without TensorFlow: a toy network with the inputs and outputs of the real one."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from service.model.bundle import Agreement, Manifest, Precision, VariantFile, write_manifest

LABELS = ("Basketball", "Diving", "JumpingJack", "Surfing", "Swing", "WalkingWithDog")
# Enough for int8 to be chosen.
AGREES = Agreement(top1=1.0, n=208, low=0.982, high=1.0, max_abs_difference=0.01, device="test")


def write_tiny_bundle(
    path: Path,
    labels: Sequence[str] = LABELS,
    *,
    version: str = "1",
    variant: Literal["attention", "base"] = "attention",
    precisions: Sequence[Precision] = ("fp32", "fp16", "int8"),
    int8_agreement: Agreement | None = AGREES,
    seed: int = 0,
    overflow_above: float | None = None,
) -> Path:
    """Write a bundle to ``path`` and return the path. Every precision has the same float32 network."""
    path.mkdir(parents=True, exist_ok=True)
    network = tiny_network(len(labels), attention=variant == "attention", seed=seed, overflow_above=overflow_above)
    model = network.SerializeToString()
    digest = hashlib.sha256(model).hexdigest()
    files = {precision: VariantFile(file=f"model.{precision}.onnx", sha256=digest) for precision in precisions}
    for entry in files.values():
        (path / entry.file).write_bytes(model)
    if "int8" in files:
        files["int8"] = files["int8"].model_copy(update={"agreement": int8_agreement})
    manifest = Manifest(name="tiny", version=version, variant=variant, labels=list(labels), precisions=files)
    write_manifest(path, manifest)
    return path


def tiny_network(
    classes: int, *, attention: bool = True, seed: int = 0, overflow_above: float | None = None
) -> onnx.ModelProto:
    """Build a network that reads the brightness of 7×7 cells.

    The attention is its softmax over cells; the probabilities are a random projection of its mean over frames.

    Args:
        classes: Number of classes.
        attention: Whether it has attention maps.
        seed: Seed of the projection.
        overflow_above: Mean brightness, from 0 to 1, above which the logits overflow and the probabilities are NaN.
    """
    weights = np.random.default_rng(seed).normal(scale=2, size=(49, classes)).astype(np.float32)
    constants = {
        "scale": np.float32(1 / 255),
        "weights": weights,
        "to_cells": np.array([0, 40, 7, 32, 7, 32], np.int64),
        "to_rows": np.array([0, 40, 49], np.int64),
        "colours": np.array([4], np.int64),
        "pixels": np.array([3, 5], np.int64),
        "steps": np.array([1], np.int64),
    }
    node = helper.make_node
    nodes = [
        node("Cast", ["frames"], ["pixels_f"], to=TensorProto.FLOAT),
        node("ReduceMean", ["pixels_f", "colours"], ["grey"], keepdims=0),
        node("Reshape", ["grey", "to_cells"], ["blocks"]),
        node("ReduceMean", ["blocks", "pixels"], ["bright"], keepdims=0),
        node("Mul", ["bright", "scale"], ["cells"]),
        node("Reshape", ["cells", "to_rows"], ["rows"]),
        node("ReduceMean", ["rows", "steps"], ["mean"], keepdims=0),
        node("MatMul", ["mean", "weights"], ["logits"]),
        node("Softmax", ["logits"], ["probabilities"], axis=-1),
    ]
    outputs = [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", classes])]
    if attention:
        constants["to_maps"] = np.array([0, 40, 7, 7], np.int64)
        nodes += [node("Softmax", ["rows"], ["alpha"], axis=-1), node("Reshape", ["alpha", "to_maps"], ["attention"])]
        outputs.append(helper.make_tensor_value_info("attention", TensorProto.FLOAT, ["batch", 40, 7, 7]))
    if overflow_above is not None:
        constants |= {
            "limit": np.float32(overflow_above),
            "steep": np.float32(1e5),
            "cells_axis": np.array([1], np.int64),
        }
        logits = nodes.index(next(each for each in nodes if each.op_type == "MatMul"))
        nodes[logits].output[0] = "finite"
        nodes[logits + 1 : logits + 1] = [
            node("ReduceMean", ["mean", "cells_axis"], ["brightness"]),
            node("Sub", ["brightness", "limit"], ["excess"]),
            node("Mul", ["excess", "steep"], ["exponent"]),
            node("Exp", ["exponent"], ["infinite"]),  # or nothing, far below the limit
            node("Add", ["finite", "infinite"], ["logits"]),
        ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, ["batch", 40, 224, 224, 3])],
        outputs,
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
