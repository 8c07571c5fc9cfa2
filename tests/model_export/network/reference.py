"""The paper's equations in float64 NumPy, as a reference for the Keras layers.

Written from the paper, not from the layers, and for readability rather than speed. Weights are mappings from names to
arrays:

* an sLSTM has the twelve that the paper prints: ``W_xf``, ``W_hf``, ``b_f`` and the same for the gates ``i``, ``z`` and
  ``o``;
* a multilayer perceptron called ``mlp2`` has ``mlp2/kernel`` and ``mlp2/bias``.

Shapes: B clips, T frames, F² = 49 cells, C = 512 channels, U units.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Weights = Mapping[str, Array]

GATES = "fizo"
NO_MASKS: Weights = MappingProxyType({})


class Prediction(NamedTuple):
    """The outputs of a head: probabilities (B, classes) and attention (B, T, 7, 7), or None for the base variant."""

    probabilities: Array
    attention: Array | None


def printed_weights(kernel: npt.ArrayLike, recurrent_kernel: npt.ArrayLike, bias: npt.ArrayLike) -> dict[str, Array]:
    """Cut fused weights (gates side by side in the order f, i, z, o) into the twelve of eqs 1-5."""
    fused = {"W_x": kernel, "W_h": recurrent_kernel, "b_": bias}
    return {
        name + gate: part
        for name, array in fused.items()
        for gate, part in zip(GATES, np.split(np.asarray(array, np.float64), len(GATES), axis=-1), strict=True)
    }


def sigmoid(a: Array) -> Array:
    result: Array = np.exp(-np.logaddexp(0.0, -a))  # 1 / (1 + e^-a) overflows; tanh's form rounds σ(-40) to 0
    return result


def softmax(a: Array) -> Array:
    e: Array = np.exp(a - a.max(axis=-1, keepdims=True))
    total: Array = e.sum(axis=-1, keepdims=True)
    return e / total


def linear(w: Weights, name: str, a: Array) -> Array:
    return a @ w[f"{name}/kernel"] + w[f"{name}/bias"]


def mlp(w: Weights, name: str, a: Array) -> Array:
    return np.tanh(linear(w, name, a))


def slstm_step(w: Weights, x: Array, h: Array, c: Array, n: Array) -> tuple[Array, Array, Array]:
    """One step of eqs 1-8 as printed: x (B, inputs) and the states (B, U) to the new h, c and n.

    Eq 4's W_xc, W_hc, b_c are eq 2's W_xz, W_hz, b_z. Valid for |i~| <= 300 and f that does not underflow to 0.
    """

    def gate(name: str) -> Array:
        return x @ w[f"W_x{name}"] + h @ w[f"W_h{name}"] + w[f"b_{name}"]

    f = sigmoid(gate("f"))  # eq 1
    z = np.tanh(gate("z"))  # eq 2
    i = np.exp(gate("i"))  # eq 3
    c = f * c + i * z  # eq 4
    o = sigmoid(gate("o"))  # eq 5
    n = f * n + i  # eq 8
    return o * (c / n), c, n  # eqs 6, 7


def slstm(w: Weights, x: Array, h0: Array, c0: Array) -> Array:
    """Eqs 1-8 as printed over x (B, T, inputs), from n_0 = 1: h at every step, (B, T, U)."""
    h, c, n = h0, c0, np.ones_like(c0)
    steps = []
    for t in range(x.shape[1]):
        h, c, n = slstm_step(w, x[:, t], h, c, n)
        steps.append(h)
    return np.stack(steps, axis=1)


def slstm_in_log_space(w: Weights, x: Array, h0: Array, c0: Array) -> Array:
    """Compute the same as ``slstm``, for gate inputs of any size.

    Unrolling eqs 4 and 8 gives c_t = Π f · c_0 + Σ_s (Π_{r>s} f_r) i_s z_s, and n_t the same sum without the values
    (n_0 = 1). So h~_t = c_t / n_t is a weighted mean of c_0, z_1 … z_t, and only the logarithms of the weights,
    log i_s + Σ_{r>s} log f_r, are ever needed: they are sums of gate inputs, which do not overflow.
    """
    h = h0
    values, log_weights = [c0], [np.zeros_like(c0)]
    steps = []
    for t in range(x.shape[1]):
        f, i, z, o = (x[:, t] @ w[f"W_x{g}"] + h @ w[f"W_h{g}"] + w[f"b_{g}"] for g in GATES)
        log_f = -np.logaddexp(0.0, -f)
        values = [*values, np.tanh(z)]
        log_weights = [*(log_weight + log_f for log_weight in log_weights), i]
        shares = softmax(np.stack(log_weights, axis=-1))
        h = sigmoid(o) * (shares * np.stack(values, axis=-1)).sum(axis=-1)
        steps.append(h)
    return np.stack(steps, axis=1)


def initial_state(w: Weights, cells: Array) -> tuple[Array, Array]:
    """Eqs 9 and 10: cells (B, T, 49, C) to h_0 and c_0, each (B, U)."""
    v = cells.mean(axis=2).mean(axis=1)
    return mlp(w, "mlp_h", v), mlp(w, "mlp_c", v)


def attend(
    w: Weights, cells: Array, h: Array, scores: Literal["state", "content", "uniform"], masks: Weights = NO_MASKS
) -> tuple[Array, Array]:
    """Attend: cells (B, 49, C) of one frame and h_{t-1} (B, U) to the map (B, 49) and the context (B, C).

    ``masks`` are the dropout masks (B, attention units) by the name of their perceptron.
    """
    if scores == "uniform":
        return np.full(cells.shape[:2], 1 / cells.shape[1]), cells.mean(axis=1)
    mean = cells.mean(axis=1)
    mask2, mask3, mask4 = (masks.get(name, np.ones((1, 1))) for name in ("mlp2", "mlp3", "mlp4"))
    if scores == "state":
        p, q = mask4 * mlp(w, "mlp4", mean), mask2 * mlp(w, "mlp2", h)
        score = linear(w, "scores", mask3 * mlp(w, "mlp3", np.concatenate([p, q], axis=-1)))
    else:
        of_frame = mask2 * linear(w, "mlp2", h) + mask4 * linear(w, "mlp4", mean)
        of_cells = mask3[:, None, :] * linear(w, "mlp3", cells)
        score = linear(w, "scores", np.tanh(of_frame[:, None, :] + of_cells))[..., 0]
    alpha = softmax(score)
    return alpha, (alpha[..., None] * cells).sum(axis=1)


def attend_over_time(
    w: Weights,
    cells: Array,
    h0: Array,
    c0: Array,
    scores: Literal["state", "content", "uniform"],
    masks: Weights = NO_MASKS,
    beside: Array | None = None,
) -> tuple[Array, Array]:
    """Feed the sLSTM with the context of each frame: cells (B, T, 49, C) to h (B, T, U) and maps (B, T, 49).

    ``beside`` (B, T, any), if given, is appended to each context.
    """
    h, c, n = h0, c0, np.ones_like(c0)
    hidden, maps = [], []
    for t in range(cells.shape[1]):
        alpha, context = attend(w, cells[:, t], h, scores, masks)
        x = context if beside is None else np.concatenate([context, beside[:, t]], axis=-1)
        h, c, n = slstm_step(w, x, h, c, n)
        hidden.append(h)
        maps.append(alpha)
    return np.stack(hidden, axis=1), np.stack(maps, axis=1)


def root_scaled(features: Array) -> Array:
    """Take the root of every channel of each cell (…, C) and bring the cell to the length √C, a mean square of 1.

    1 is added to the divisor, so that a cell of zeros stays zero.
    """
    root = np.sqrt(features)
    scaled: Array = np.sqrt(features.shape[-1]) * root / (1.0 + np.linalg.norm(root, axis=-1, keepdims=True))
    return scaled


def motion(features: Array) -> Array:
    """Features (B, T, 7, 7, C) to (B, T, 6 C): four times the change of mean cells since 1 and 4 frames before.

    The mean cells are those of all seven rows, of the upper three and of the lower three. Frames before the clip equal
    its first one.
    """
    changes = []
    for t in range(features.shape[1]):
        for low, high in ((0, 7), (0, 3), (4, 7)):
            mean = features[:, :, low:high].mean(axis=(2, 3))
            changes += [4 * np.abs(mean[:, t] - mean[:, max(0, t - lag)]) for lag in (1, 4)]
    return np.stack(changes, axis=1).reshape(*features.shape[:2], -1)


def head(
    w: Weights,
    features: Array,
    variant: Literal["attention", "base"],
    scores: Literal["state", "content", "uniform"] = "state",
    readout: Literal["last", "mean"] = "last",
    feature_scaling: Literal["none", "root"] = "none",
    moving: bool = False,
) -> Prediction:
    """Everything after VGG19, in inference: features (B, T, 7, 7, C) to probabilities and maps."""
    if feature_scaling == "root":
        features = root_scaled(features)
    clips, frames, height, width, channels = features.shape
    cells = features.reshape(clips, frames, height * width, channels)
    h0, c0 = initial_state(w, cells)
    beside = motion(features) if moving else None
    if variant == "attention":
        hidden, maps = attend_over_time(w, cells, h0, c0, scores, beside=beside)
        attention = maps.reshape(clips, frames, height, width)
    else:
        flat = features.reshape(clips, frames, -1)
        x = flat if beside is None else np.concatenate([flat, beside], axis=-1)
        hidden, attention = slstm(w, x, h0, c0), None
    read = hidden[:, -1] if readout == "last" else hidden.mean(axis=1)
    return Prediction(softmax(linear(w, "mlp1", read)), attention)


def caffe_input(frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Convert RGB frames (N, H, W, 3) to the input of VGG19's ImageNet weights: BGR without ImageNet's mean colour."""
    bgr = frames[..., ::-1].astype(np.float32)
    return bgr - np.array([103.939, 116.779, 123.68], np.float32)
