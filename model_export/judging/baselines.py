"""Two baselines that attention has to beat: neither looks at single cells, and one does not use the order of frames.

Both read VGG19's features averaged over the 49 cells, of the same clips and views as the heads; with motion, also the
motion features that heads read beside the attended cells, so that a gain by attention is not taken for one by motion.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from model_export.data.examples import Example
from model_export.data.folds import hold_out_groups
from model_export.errors import FoldError
from model_export.judging.cross_validation import Contender
from model_export.network.arrays import Probabilities
from model_export.network.motion import REGIONS, Motion, region_weights
from model_export.processes import Run, run_here
from model_export.reporter import Advance, Listener

Pooling = Callable[[Example, bool], npt.NDArray[np.float16]]
"""Returns features ``(40, 3, channels)`` of an example or, if the second argument is true, of its mirrored view."""

Pooled = Mapping[tuple[Example, bool], npt.NDArray[np.float16]]
"""What ``Pooling`` returned, by its arguments."""
# Raised with any change of what a baseline predicts under the same settings: kept predictions are reused otherwise.
BASELINES_REVISION = 3


def baselines(
    classes: int,
    *,
    flip: bool,
    epochs: int = 40,
    patience: int = 6,
    seed: int = 0,
    run: Run = run_here,
    listener: Listener = lambda told: None,
) -> list[Contender]:
    """Build both baselines, without and with motion, sharing the pooled features: each clip is read from disk once.

    The pooled features take 120 KB per clip and view of 512 channels: 1.6 GB for UCF-101. The arguments are those of
    ``plain_lstm``.
    """
    pooling = cache(pool_cells)
    lstm = partial(plain_lstm, epochs=epochs, patience=patience, run=run, listener=listener)
    return [
        make(classes, flip=flip, motion=motion, seed=seed, pooling=pooling)
        for make in (logistic_regression, lstm)
        for motion in (False, True)
    ]


def pool_cells(example: Example, flipped: bool = False) -> npt.NDArray[np.float16]:
    """Average over the cells of each frame, and of its upper and lower rows; return float16 ``(40, 3, channels)``."""
    cuboids = example.load(flipped=flipped)
    frames, rows, columns, channels = cuboids.shape
    means: npt.NDArray[np.float32] = region_weights(rows, columns) @ cuboids.reshape(frames, -1, channels)
    return means.astype(np.float16)


def logistic_regression(
    classes: int,
    *,
    flip: bool,
    motion: bool = False,
    C: float = 0.01,
    seed: int = 0,
    pooling: Pooling = pool_cells,
) -> Contender:
    """Multinomial logistic regression on the standardised mean over frames and cells.

    Args:
        classes: Number of classes.
        flip: Also train on the mirrored views.
        motion: Also read the mean over frames of the motion features.
        C: Inverse strength of the L2 penalty. The default is a strong penalty: with 512 numbers per clip and a few
            dozen clips per class, training clips can always be separated.
        seed: Seed of the solver's shuffling.
        pooling: Replaces ``pool_cells``, for example by a cached one.
    """

    def fit(train: Sequence[Example], test: Sequence[Example]) -> Probabilities:
        pooled = _pool(train, test, pooling, flip=flip, motion=motion)
        X, y = _clips(train, pooled, flip=flip)
        model = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=5000, random_state=seed))
        model.fit(_clip_means(X), y)
        found = np.zeros((len(test), classes))
        found[:, model.classes_] = model.predict_proba(_clip_means(_clips(test, pooled)[0]))
        return found

    recipe = f"{C=} {flip=} {motion=} {seed=} revision={BASELINES_REVISION}"
    return Contender(_name("logistic regression", motion), fit, recipe)


def plain_lstm(
    classes: int,
    *,
    flip: bool,
    motion: bool = False,
    units: int = 256,
    epochs: int = 40,
    patience: int = 6,
    batch_size: int = 16,
    learning_rate: float = 1e-3,
    holdout: float = 0.25,
    seed: int = 0,
    pooling: Pooling = pool_cells,
    run: Run = run_here,
    listener: Listener = lambda told: None,
) -> Contender:
    """An LSTM as wide as the sLSTM on the standardised mean over cells of each frame; then dropout 0.5 and softmax.

    It is trained twice: first without a share of the training side's groups, to find the epoch with the lowest loss on
    them, then on the whole training side for that many epochs. If a class has a single group there, it is trained once,
    for all epochs.

    Args:
        classes: Number of classes.
        flip: Also train on the mirrored views; epochs are chosen by plain views.
        motion: Also read the motion features of each frame.
        units: Units of the LSTM.
        epochs: Largest number of epochs.
        patience: Number of epochs without a lower held-out loss after which the search ends.
        batch_size: Clips per step.
        learning_rate: Learning rate of RMSProp.
        holdout: Share of each class's groups that is held out.
        seed: Seed of weights, dropout, order and held-out groups.
        pooling: Replaces ``pool_cells``, for example by a cached one.
        run: How the training is run; features are pooled in this process.
        listener: Is told how many epochs are done.
    """
    settings = _PlainLSTM(classes, flip, units, epochs, patience, batch_size, learning_rate, holdout, seed)

    def fit(train: Sequence[Example], test: Sequence[Example]) -> Probabilities:
        pooled = _pool(train, test, pooling, flip=flip, motion=motion)
        return run(partial(settings.predict, train, test, pooled), listener)

    recipe = (
        f"{flip=} {motion=} {units=} {epochs=} {patience=} {batch_size=} {learning_rate=} {holdout=} {seed=} "
        f"revision={BASELINES_REVISION}, epochs chosen on groups held out of its training side, also with --holdout 0"
    )
    return Contender(_name("plain LSTM", motion), fit, recipe)


@dataclass(frozen=True, slots=True)
class _PlainLSTM:
    """The settings of ``plain_lstm``, which can be sent to another process."""

    classes: int
    flip: bool
    units: int
    epochs: int
    patience: int
    batch_size: int
    learning_rate: float
    holdout: float
    seed: int

    def predict(
        self, train: Sequence[Example], test: Sequence[Example], pooled: Pooled, tell: Listener
    ) -> Probabilities:
        """Train on the first examples and return probabilities of the second."""
        model, _ = self._learn(train, [], pooled, self._best_epoch(train, pooled, tell), tell)
        found: Probabilities = model.predict(_clips(test, pooled)[0], verbose=0).astype(np.float64)
        return found

    def _best_epoch(self, train: Sequence[Example], pooled: Pooled, tell: Listener) -> int:
        try:
            keep, hold = hold_out_groups(train, self.holdout, self.seed)
        except FoldError:
            return self.epochs
        _, losses = self._learn(keep, hold, pooled, self.epochs, tell)
        return 1 + int(np.argmin(losses))

    def _learn(
        self, train: Sequence[Example], hold: Sequence[Example], pooled: Pooled, epochs: int, tell: Listener
    ) -> tuple[keras.Model, list[float]]:
        """Return the trained network and its loss on ``hold`` after each epoch."""
        keras.utils.set_random_seed(self.seed)
        X, y = _clips(train, pooled, flip=self.flip)
        model = _lstm(X, self.units, self.classes)
        model.compile(
            optimizer=keras.optimizers.RMSprop(self.learning_rate, clipnorm=1.0), loss="sparse_categorical_crossentropy"
        )
        phase = "epochs to choose from" if hold else "epochs"
        callbacks: list[keras.callbacks.Callback] = [
            keras.callbacks.LambdaCallback(
                on_epoch_end=lambda epoch, logs: tell(Advance(f"  plain LSTM, {phase}", epoch + 1, epochs))
            )
        ]
        if hold:
            callbacks.append(keras.callbacks.EarlyStopping("val_loss", patience=self.patience))
        history = model.fit(
            X,
            y,
            batch_size=self.batch_size,
            epochs=epochs,
            validation_data=_clips(hold, pooled) if hold else None,
            callbacks=callbacks,
            verbose=0,
        )
        return model, history.history.get("val_loss", [])


def _lstm(X: npt.NDArray[np.float16], units: int, classes: int) -> keras.Model:
    """Build the untrained network; it standardises features by those of ``X (clips, 40, 1 or 3, channels)``."""
    # StandardScaler gives a channel that never varies the scale 1, so a test clip that uses it is not blown up.
    scaler = StandardScaler()
    for clip in X:  # one at a time: motion features take six times the memory of the pooled ones
        scaler.partial_fit(np.asarray(_frames(clip[np.newaxis].astype(np.float32)))[0])
    layers = [
        keras.layers.Normalization(mean=scaler.mean_, variance=scaler.scale_**2),
        keras.layers.LSTM(units),
        keras.layers.Dropout(0.5),
        keras.layers.Dense(classes, activation="softmax"),
    ]
    pooled = keras.Input(X.shape[1:])
    return keras.Model(pooled, keras.Sequential(layers)(_frames(pooled)))


def _name(baseline: str, motion: bool) -> str:
    return f"{baseline}, with motion" if motion else baseline


def _pool(train: Sequence[Example], test: Sequence[Example], pooling: Pooling, *, flip: bool, motion: bool) -> Pooled:
    """Pool the views of clips to train on, and the plain views of clips to test; without motion, all rows only."""
    views = [*product(train, _views(flip)), *product(test, _views(False))]
    return {view: pooling(*view)[:, : REGIONS if motion else 1] for view in views}


def _clips(
    examples: Sequence[Example], pooled: Pooled, *, flip: bool = False
) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.int64]]:
    """Return pooled features, float16 ``(clips, 40, 1 or 3, channels)``, and labels, plain views before mirrored."""
    views = [(example, view) for view in _views(flip) for example in examples]
    return np.stack([pooled[view] for view in views]), np.array([example.label for example, _ in views])


def _clip_means(X: npt.NDArray[np.float16]) -> npt.NDArray[np.float32]:
    """Average what is read of each frame over the frames, ``(clips, features)``."""
    return np.concatenate([np.asarray(_frames(clip[np.newaxis].astype(np.float32))).mean(axis=1) for clip in X])


def _frames(pooled: Any) -> Any:
    """Compute what is read of each frame, ``(clips, 40, features)``: the mean of all rows and, with motion, changes.

    Args:
        pooled: Means of all rows, ``(clips, 40, 1, channels)``, or with motion of each region, ``(clips, 40, 3, …)``.
    """
    means = pooled[:, :, 0]
    return ops.concatenate([means, Motion()(pooled)], axis=-1) if pooled.shape[2] == REGIONS else means


def _views(flip: bool) -> tuple[bool, ...]:
    return (False, True) if flip else (False,)
