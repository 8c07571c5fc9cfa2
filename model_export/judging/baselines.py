"""Two baselines that attention has to beat: neither uses positions in a frame, and one does not use time either.

Both read VGG19's features averaged over the 49 cells, of the same clips and views as the heads.
"""

from collections.abc import Callable, Sequence
from functools import cache

import keras
import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from model_export.data.examples import Example
from model_export.data.folds import hold_out_groups
from model_export.judging.cross_validation import Contender
from model_export.network.arrays import Probabilities

Pooling = Callable[[Example, bool], npt.NDArray[np.float16]]
"""Returns features ``(40, channels)`` of an example or, if the second argument is true, of its mirrored view."""

# Raised with any change of what a baseline predicts under the same settings: kept predictions are reused otherwise.
BASELINES_REVISION = 1


def baselines(
    classes: int, *, flip: bool, epochs: int = 40, patience: int = 6, holdout: float = 0.25, seed: int = 0
) -> list[Contender]:
    """Build both baselines, sharing the pooled features, so that each clip is read from disk only once.

    The pooled features take 40 KB per clip and view of 512 channels: half a gigabyte for UCF-101. The arguments are
    those of ``plain_lstm``.
    """
    pooling = cache(pool_cells)
    return [
        logistic_regression(classes, flip=flip, seed=seed, pooling=pooling),
        plain_lstm(classes, flip=flip, epochs=epochs, patience=patience, holdout=holdout, seed=seed, pooling=pooling),
    ]


def pool_cells(example: Example, flipped: bool = False) -> npt.NDArray[np.float16]:
    """Average over the cells of each frame; return float16 ``(40, channels)``."""
    means: npt.NDArray[np.float32] = example.load(flipped=flipped).mean(axis=(1, 2))
    return means.astype(np.float16)


def logistic_regression(
    classes: int, *, flip: bool, C: float = 0.01, seed: int = 0, pooling: Pooling = pool_cells
) -> Contender:
    """Multinomial logistic regression on the standardised mean over frames and cells.

    Args:
        classes: Number of classes.
        flip: Also train on the mirrored views.
        C: Inverse strength of the L2 penalty. The default is a strong penalty: with 512 numbers per clip and a few
            dozen clips per class, training clips can always be separated.
        seed: Seed of the solver's shuffling.
        pooling: Replaces ``pool_cells``, for example by a cached one.
    """

    def fit(train: Sequence[Example], test: Sequence[Example]) -> Probabilities:
        X, y = _clips(train, pooling, flip=flip)
        model = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=5000, random_state=seed))
        model.fit(X.mean(axis=1), y)
        found = np.zeros((len(test), classes))
        found[:, model.classes_] = model.predict_proba(_clips(test, pooling)[0].mean(axis=1))
        return found

    return Contender("logistic regression", fit, f"{C=} {flip=} {seed=} revision={BASELINES_REVISION}")


def plain_lstm(
    classes: int,
    *,
    flip: bool,
    units: int = 256,
    epochs: int = 40,
    patience: int = 6,
    batch_size: int = 16,
    learning_rate: float = 1e-3,
    holdout: float = 0.25,
    seed: int = 0,
    pooling: Pooling = pool_cells,
) -> Contender:
    """An LSTM as wide as the sLSTM on the standardised mean over cells of each frame; then dropout 0.5 and softmax.

    Like the heads, it is trained twice: first without a share of the training side's groups, to find the epoch with
    the lowest loss on them, then on the whole training side for that many epochs.

    Args:
        classes: Number of classes.
        flip: Also train on the mirrored views; epochs are chosen by plain views.
        units: Units of the LSTM.
        epochs: Largest number of epochs.
        patience: Number of epochs without a lower held-out loss after which the search ends.
        batch_size: Clips per step.
        learning_rate: Learning rate of RMSProp.
        holdout: Share of each class's groups that is held out; 0: no search, all epochs.
        seed: Seed of weights, dropout, order and held-out groups.
        pooling: Replaces ``pool_cells``, for example by a cached one.
    """

    def learn(train: Sequence[Example], hold: Sequence[Example], epochs: int) -> tuple[keras.Model, list[float]]:
        keras.utils.set_random_seed(seed)
        X, y = _clips(train, pooling, flip=flip)
        model = _lstm(X, units, classes)
        model.compile(
            optimizer=keras.optimizers.RMSprop(learning_rate, clipnorm=1.0), loss="sparse_categorical_crossentropy"
        )
        history = model.fit(
            X,
            y,
            batch_size=batch_size,
            epochs=epochs,
            validation_data=_clips(hold, pooling) if hold else None,
            callbacks=[keras.callbacks.EarlyStopping("val_loss", patience=patience)] if hold else [],
            verbose=0,
        )
        return model, history.history.get("val_loss", [])

    def fit(train: Sequence[Example], test: Sequence[Example]) -> Probabilities:
        best = epochs
        if holdout:
            _, losses = learn(*hold_out_groups(train, holdout, seed), epochs)
            best = 1 + int(np.argmin(losses))
        model, _ = learn(train, [], best)
        found: Probabilities = model.predict(_clips(test, pooling)[0], verbose=0).astype(np.float64)
        return found

    recipe = f"{flip=} {units=} {epochs=} {patience=} {batch_size=} {learning_rate=} {holdout=} {seed=}"
    return Contender("plain LSTM", fit, f"{recipe} revision={BASELINES_REVISION}")


def _lstm(X: npt.NDArray[np.float32], units: int, classes: int) -> keras.Model:
    """Build the untrained network; it standardises features by those of ``X (clips, 40, channels)``."""
    # StandardScaler gives a channel that never varies the scale 1, so a test clip that uses it is not blown up.
    scaler = StandardScaler().fit(X.reshape(-1, X.shape[-1]))
    return keras.Sequential(
        [
            keras.Input(X.shape[1:]),
            keras.layers.Normalization(mean=scaler.mean_, variance=scaler.scale_**2),
            keras.layers.LSTM(units),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(classes, activation="softmax"),
        ]
    )


def _clips(
    examples: Sequence[Example], pooling: Pooling, *, flip: bool = False
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return pooled features, float32 ``(clips, 40, channels)``, and labels, plain views before mirrored ones."""
    views = (False, True) if flip else (False,)
    X = np.stack([pooling(example, view) for view in views for example in examples]).astype(np.float32)
    return X, np.array([example.label for _ in views for example in examples])
