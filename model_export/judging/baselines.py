"""Two baselines that attention has to beat: neither knows where in a frame anything is, and one not even when.

Both read VGG19's features averaged over the 49 cells, of the same clips and views as the heads they stand beside.
"""

from collections.abc import Callable, Sequence
from functools import cache

import keras
import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from model_export.evaluation import Contender, Probabilities, hold_out_groups
from model_export.data.examples import Example

Labels = npt.NDArray[np.int64]
# Features (40, channels) of an example or, where told so, of its mirrored view.
Pooling = Callable[[Example, bool], npt.NDArray[np.float16]]


def baselines(
    classes: int, *, flip: bool, epochs: int = 40, patience: int = 6, holdout: float = 0.25, seed: int = 0
) -> list[Contender]:
    """Both baselines; they share what they read, so that each clip's features are read from disk only once.

    That takes 40 KB a clip and view of 512 channels: half a gigabyte for UCF-101. Arguments as of `plain_lstm`.
    """
    pooling = cache(pool_cells)
    return [
        logistic_regression(classes, flip=flip, seed=seed, pooling=pooling),
        plain_lstm(classes, flip=flip, epochs=epochs, patience=patience, holdout=holdout, seed=seed, pooling=pooling),
    ]


def pool_cells(example: Example, flipped: bool = False) -> npt.NDArray[np.float16]:
    """Mean over the cells of each frame, float16 ``(40, channels)``."""
    means: npt.NDArray[np.float32] = example.load(flipped=flipped).mean(axis=(1, 2))
    return means.astype(np.float16)


def logistic_regression(
    classes: int, *, flip: bool, C: float = 0.01, seed: int = 0, pooling: Pooling = pool_cells
) -> Contender:
    """Multinomial logistic regression on the mean over frames and cells, standardised.

    Args:
        classes: number of classes.
        flip: train on the mirrored views too.
        C: inverse strength of the L2 penalty. A strong one: with 512 numbers a clip and a few dozen clips a class,
            training clips can always be told apart.
        seed: of the solver's shuffling.
        pooling: replaces `pool_cells` where its answers are kept.
    """

    def fit(train: Sequence[Example], test: Sequence[Example]) -> Probabilities:
        X, y = _clips(train, pooling, flip=flip)
        model = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=5000, random_state=seed))
        model.fit(X.mean(axis=1), y)
        found = np.zeros((len(test), classes))
        found[:, model.classes_] = model.predict_proba(_clips(test, pooling)[0].mean(axis=1))
        return found

    return Contender("logistic regression", fit, f"{C=} {flip=} {seed=}")


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
    """An LSTM as wide as the sLSTM on the mean over cells of each frame, standardised; dropout 0.5, dense, softmax.

    It is trained twice, as the heads are: first without a share of the training side's groups, to find the epoch of
    the least loss on them, then on the whole training side for so many epochs.

    Args:
        classes: number of classes.
        flip: train on the mirrored views too; epochs are chosen by plain views.
        units: of the LSTM.
        epochs: the most.
        patience: epochs without a smaller held-out loss before the search is over.
        batch_size: clips a step.
        learning_rate: of RMSprop.
        holdout: share of each class's groups that is held out; 0: no search, all epochs.
        seed: of weights, dropout, order and groups held out.
        pooling: replaces `pool_cells` where its answers are kept.
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
    return Contender("plain LSTM", fit, recipe)


def _lstm(X: npt.NDArray[np.float32], units: int, classes: int) -> keras.Model:
    """The untrained network for features like ``X (clips, 40, channels)``, which it standardises by."""
    # It gives a channel that never varies the scale 1: a test clip that uses it is not blown up.
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
) -> tuple[npt.NDArray[np.float32], Labels]:
    """Pooled features, float32 ``(clips, 40, channels)``, and labels; mirrored views after the plain ones."""
    views = (False, True) if flip else (False,)
    X = np.stack([pooling(example, view) for view in views for example in examples]).astype(np.float32)
    return X, np.array([example.label for _ in views for example in examples])
