"""The head: the trained part of the network, from the cuboids X_t to class probabilities (paper, Figs 1 and 6)."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import keras
from keras import ops

from model_export.network.attention import AttentionSLSTMCell
from model_export.network.motion import Motion, RegionMeans
from model_export.network.recurrence import RNN
from model_export.network.scaling import RootScaling
from model_export.network.slstm import SLSTMCell, initial_state
from model_export.network.spec import CELLS, FRAME_COUNT, GRID, HeadSpec

# The paper's Table 2.
UNITS = 256
ATTENTION_UNITS = 128


@keras.saving.register_keras_serializable("limelight")
class InitialState(keras.Layer):
    """Compute h_0 = mlp_h(v) and c_0 = mlp_c(v) from the mean cell v of the whole clip (eqs 9, 10).

    In training, also draw the attention's dropout masks for the sequence.

    Args:
        units: Size of h.
        masks: Sizes of the dropout masks to draw.
        dropout: Share of units dropped from h_0, from c_0 and in each mask.
    """

    def __init__(self, units: int, masks: tuple[int, ...] = (), dropout: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units, self.masks, self.dropout = units, tuple(masks), dropout
        self.mlp_h = keras.layers.Dense(units, "tanh", dtype=self.dtype_policy, name="mlp_h")
        self.mlp_c = keras.layers.Dense(units, "tanh", dtype=self.dtype_policy, name="mlp_c")
        self.seed_generator = keras.random.SeedGenerator()

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.mlp_h.build(input_shape)
        self.mlp_c.build(input_shape)

    def call(self, clip_mean: Any, training: bool | None = None) -> list[Any]:
        """Compute [h_0, c_0, n_0, m_0, *masks] from the mean cell ``(batch, channels)``.

        Outside training, masks are 1.
        """

        def drop(x: Any) -> Any:
            return keras.random.dropout(x, self.dropout, seed=self.seed_generator) if training else x

        h = drop(self.mlp_h(clip_mean))
        c = drop(self.mlp_c(clip_mean))
        masks = [drop(ops.ones((ops.shape(clip_mean)[0], size))) for size in self.masks]
        return [*initial_state(h, c), *masks]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units, "masks": self.masks, "dropout": self.dropout}


def build_head(
    classes: int,
    spec: HeadSpec,
    *,
    dropout: float = 0.5,
    feature_dropout: float = 0.0,
    unroll: bool = False,
) -> keras.Model:
    """Build the network that follows the encoder, with random weights.

    The variant ``attention`` is ``AttentionSLSTMCell`` over the cells; ``base`` feeds the sLSTM every X_t completely,
    flattened to 25088 values. MLP1 reads h_40 (readout ``last``) or the mean of all h_t (``mean``).

    Args:
        classes: Number of classes.
        spec: Which network. Several members are averaged as ``average_heads`` does.
        dropout: Rate of Table 2, in training only.
        feature_dropout: Rate at which whole channels of X are dropped, in training only; one mask per clip.
        unroll: Write the 40 steps out instead of looping, for export.

    Returns:
        A model from features, float32 ``(batch, 40, 7, 7, channels)``, to a dict of ``probabilities``
        ``(batch, classes)`` and, unless the variant is ``base``, ``attention`` ``(batch, 40, 7, 7)``, each map of which
        sums to 1.
    """
    if spec.members > 1:
        one = spec.model_copy(update={"members": 1})
        build = partial(build_head, classes, one, dropout=dropout, feature_dropout=feature_dropout, unroll=unroll)
        return average_heads([build() for _ in range(spec.members)])
    cuboids = keras.Input((FRAME_COUNT, GRID, GRID, spec.channels), name="features")
    features = RootScaling(name="scaled")(cuboids) if spec.feature_scaling == "root" else cuboids
    if feature_dropout:
        # A product with one mask for each clip: a Dropout layer would read and write all features once more.
        ones = ops.ones_like(features[:, :1, :1, :1])
        features *= keras.layers.Dropout(feature_dropout, name="feature_dropout")(ones)
    means = RegionMeans(name="region_means")(features)
    clip_mean = keras.layers.GlobalAveragePooling1D(name="clip_mean")(means[:, :, 0])
    moves = [Motion(name="motion")(means)] if spec.motion else []
    outputs = {}
    if spec.variant == "attention":
        beside = sum(move.shape[-1] for move in moves)
        cell = AttentionSLSTMCell(UNITS, ATTENTION_UNITS, spec.attention_scores, beside, name="cell")
        state = InitialState(UNITS, (ATTENTION_UNITS,) * 3, dropout, name="initial_state")(clip_mean)
        cells = keras.layers.Reshape((FRAME_COUNT, CELLS, -1), name="flat")(features)
        read = [cells, *(_project(move, "motion_kernel") for move in moves)]
        steps = RNN(cell, unroll, name="slstm")(read, state)
        hidden = steps[:, :, :UNITS]
        outputs["attention"] = keras.layers.Reshape((FRAME_COUNT, GRID, GRID), name="attention")(steps[:, :, UNITS:])
    else:
        state = InitialState(UNITS, dropout=dropout, name="initial_state")(clip_mean)
        flat = keras.layers.Reshape((FRAME_COUNT, -1), name="flat")(features)
        read = _project(ops.concatenate([flat, *moves], axis=-1), "kernel")
        hidden = RNN(SLSTMCell(UNITS, projected=True, name="cell"), unroll, name="slstm")([read], state)
    read = hidden[:, -1] if spec.readout == "last" else keras.layers.GlobalAveragePooling1D(name="readout")(hidden)
    read = keras.layers.Dropout(dropout, name="dropout")(read)
    outputs["probabilities"] = keras.layers.Dense(classes, "softmax", name="probabilities")(read)
    return keras.Model(cuboids, outputs, name=f"limelight_{spec.variant}")


def _project(inputs: Any, name: str) -> Any:
    """Compute W_x x_t ``(batch, frames, 4 · units)`` of all steps in one product, from ``(batch, frames, any)``.

    On two axes: a Dense layer on three is exported as a Tensordot with all its shape arithmetic.
    """
    gates = keras.layers.Dense(4 * UNITS, use_bias=False, name=name)(ops.reshape(inputs, (-1, inputs.shape[-1])))
    return ops.reshape(gates, (-1, FRAME_COUNT, 4 * UNITS))


def average_heads(heads: Sequence[keras.Model]) -> keras.Model:
    """Build a head that answers with the mean of the heads' probabilities and maps; a single head is returned as it is.

    Raises:
        ValueError: ``heads`` is empty.
    """
    if not heads:
        raise ValueError("no heads to average")
    if len(heads) == 1:
        return heads[0]
    cuboids = keras.Input(heads[0].input_shape[1:], name="features")
    answers = []
    for number, head in enumerate(heads, 1):
        head.name = f"member_{number}"
        answers.append(head(cuboids))
    return keras.Model(cuboids, _mean(answers), name="limelight_average")


def _mean(answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {name: keras.layers.Average(name=name)([answer[name] for answer in answers]) for name in answers[0]}


def separate_paths(head: keras.Model) -> keras.Model:
    """Build a network of two inputs from a head with attention, which shares its layers.

    A head reads the cuboids by several paths, of which its maps describe one: scores and context. The others are the
    initial state (eqs 9, 10) and motion. Measurements of attention must be able to change the first one alone.

    Args:
        head: A head of the variant ``attention``, of one member or several.

    Returns:
        A model from ``[attended, others]``, both float32 ``(batch, 40, 7, 7, channels)``, to the head's outputs. Equal
        inputs give what the head gives.
    """
    attended = keras.Input(head.input_shape[1:], name="attended")
    others = keras.Input(head.input_shape[1:], name="others")
    answers = [_with_two_inputs(member)([others, attended]) for member in _members(head)]
    if len(answers) == 1:
        return keras.Model([attended, others], answers[0])
    return keras.Model([attended, others], _mean(answers))


def without_context(head: keras.Model) -> AbstractContextManager[None]:
    """Set the weights that read the context to 0 within the ``with`` statement, so that the maps have no effect."""
    return _zeroed([member.get_layer("slstm").cell.kernel for member in _members(head)])


def with_uniform_maps(head: keras.Model) -> AbstractContextManager[None]:
    """Set the last weights of the scores to 0 within the ``with`` statement, so that all maps are uniform."""
    return _zeroed([weights for member in _members(head) for weights in member.get_layer("slstm").cell.linear.weights])


@contextmanager
def _zeroed(weights: Sequence[keras.Variable]) -> Iterator[None]:
    before = [variable.numpy() for variable in weights]
    try:
        for variable in weights:
            variable.assign(ops.zeros_like(variable))
        yield
    finally:
        for variable, values in zip(weights, before, strict=True):
            variable.assign(values)


def _members(head: keras.Model) -> list[keras.Model]:
    return [layer for layer in head.layers if isinstance(layer, keras.Model)] or [head]


def _with_two_inputs(head: keras.Model) -> keras.Model:
    """Build a model from the cuboids of the other paths and those of attention to the outputs, sharing all layers."""
    cells = head.get_layer("flat").output
    attended = keras.Input(head.input_shape[1:], name="attended_cells")
    read = keras.Model(head.input, cells)(attended)
    others = keras.Input(head.input_shape[1:], name="other_cells")
    answers = keras.Model([head.input, cells], head.output)([others, read])
    return keras.Model([others, attended], answers)
