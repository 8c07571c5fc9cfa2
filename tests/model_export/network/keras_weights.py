"""Weights of Keras' layers: filling them, and reading them under the names of the reference."""

from typing import Any

import numpy as np

from tests.model_export.network.reference import Weights, printed_weights


def fill(layer: Any, seed: int, scale: float = 0.5) -> None:
    """Draw every trainable weight of a built layer, including biases, whose initial zeros would hide errors."""
    rng = np.random.default_rng(seed)
    for variable in layer.trainable_weights:
        fan_in = variable.shape[0] if len(variable.shape) > 1 else 4
        variable.assign(rng.normal(0.0, scale * 2 / np.sqrt(fan_in), variable.shape))


def slstm_weights(cell: Any, kernel: Any = None) -> Weights:
    """The weights of a cell and, if its inputs are projected already, of the kernel that projects them."""
    kernel = cell.kernel if kernel is None else kernel
    return printed_weights(*(np.asarray(v) for v in (kernel, cell.recurrent_kernel, cell.bias)))


def dense_weights(**layers: Any) -> Weights:
    return {
        f"{name}/{part}": np.asarray(getattr(layer, part), np.float64)
        for name, layer in layers.items()
        for part in ("kernel", "bias")
    }


def attention_weights(cell: Any, beside: Any = None) -> Weights:
    """The weights of a cell and of the kernel of its second input, if it has one."""
    scored = cell.scores != "uniform"
    dense = dense_weights(mlp2=cell.mlp2, mlp3=cell.mlp3, mlp4=cell.mlp4, scores=cell.linear) if scored else {}
    kernels = [np.asarray(kernel) for kernel in (cell.kernel, beside) if kernel is not None]
    return {**dense, **slstm_weights(cell.slstm, np.concatenate(kernels))}


def head_weights(head: Any) -> Weights:
    initial, cell = head.get_layer("initial_state"), head.get_layer("slstm").cell
    dense = dense_weights(mlp_h=initial.mlp_h, mlp_c=initial.mlp_c, mlp1=head.get_layer("probabilities"))
    kernels = {layer.name: layer.kernel for layer in head.layers if layer.name in ("kernel", "motion_kernel")}
    if hasattr(cell, "scores"):
        return {**dense, **attention_weights(cell, kernels.get("motion_kernel"))}
    return {**dense, **slstm_weights(cell, kernels["kernel"])}
