"""Between Keras' layers and the references: fill a layer's weights, read them under the references' names."""

from typing import Any

import numpy as np

from tests.model_export.network.reference import Weights, printed_weights


def fill(layer: Any, seed: int, scale: float = 0.5) -> None:
    """Draw every trainable weight of a built layer, the biases included (their own initial zeros would hide them)."""
    rng = np.random.default_rng(seed)
    for variable in layer.trainable_weights:
        fan_in = variable.shape[0] if len(variable.shape) > 1 else 4
        variable.assign(rng.normal(0.0, scale * 2 / np.sqrt(fan_in), variable.shape))


def slstm_weights(cell: Any) -> Weights:
    return printed_weights(*(np.asarray(v) for v in (cell.kernel, cell.recurrent_kernel, cell.bias)))


def dense_weights(**layers: Any) -> Weights:
    return {
        f"{name}/{part}": np.asarray(getattr(layer, part), np.float64)
        for name, layer in layers.items()
        for part in ("kernel", "bias")
    }


def attention_weights(cell: Any) -> Weights:
    dense = dense_weights(mlp2=cell.mlp2, mlp3=cell.mlp3, mlp4=cell.mlp4, scores=cell.linear)
    return {**dense, **slstm_weights(cell.slstm)}


def head_weights(head: Any) -> Weights:
    initial, cell = head.get_layer("initial_state"), head.get_layer("slstm").cell
    dense = dense_weights(mlp_h=initial.mlp_h, mlp_c=initial.mlp_c, mlp1=head.get_layer("probabilities"))
    return {**dense, **(attention_weights(cell) if hasattr(cell, "mlp2") else slstm_weights(cell))}
