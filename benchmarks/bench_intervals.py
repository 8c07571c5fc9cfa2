"""Simulated coverage and width of the 95 % intervals of an evaluation's report, and of other methods.

Each experiment draws videos of one to seven clips from a population whose figures are known: those of a classifier,
the difference of two, or the mean of real values. Clips of one video are alike by a given correlation. A method covers
if its interval contains the population's figure. For each kind of figure and number of videos, the table shows the
lowest coverage of all settings, and the mean width over them; what covers 93 % is in bold. The last column divides the
width of the report's intervals by that of the narrowest method in bold. A second table shows how often methods that are
equally good have p < 0.05. Both go to standard output.

``previous`` is the percentile bootstrap that the report used before; ``t`` is Student's t of the jackknife;
``Wilson`` and ``Clopper-Pearson`` count as many clips as their variance is worth (E. L. Korn and B. I. Graubard,
"Confidence intervals for proportions with small expected number of positive counts", Survey Methodology 24 (1998) 193);
``bootstrap-t`` and ``BCa`` are those of B. Efron and R. J. Tibshirani, "An introduction to the bootstrap" (1993).
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
from scipy import special
from scipy.stats import beta

from model_export.judging.actor import ratios_of_other_clips
from model_export.judging.intervals import Jackknife, mean_over_groups

Floats = npt.NDArray[np.float64]
Intervals = tuple[Floats, Floats]

MOST_CLIPS = 7
RESAMPLES = 200
# Experiments at a time, which bounds the memory.
BATCH = 500
ENOUGH = 0.93
VIDEOS = (12, 24, 40, 100, 233)
# Four folds need four videos of each class.
CLASSES = {12: 3, 24: 6, 40: 10, 100: 13, 233: 13}
ACCURACIES = (0.5, 0.8, 0.9, 0.97, 0.99)
# Shares of videos on which only the first and only the second method is right.
GAINS = ((0.1, 0.1), (0.03, 0.03), (0.01, 0.01), (0.02, 0.0), (0.1, 0.05), (0.15, 0.01), (0.3, 0.2))


def _gap(u: Floats) -> Floats:
    """Quantiles of a difference: six of ten clips about 0, the others above it, most of them little."""
    near, far = np.clip(u / 0.6, 1e-6, 1 - 1e-6), np.clip((u - 0.6) / 0.4, 0, 1)
    return np.asarray(np.where(u < 0.6, 0.01 * special.ndtri(near), beta.ppf(far, 0.5, 3)))


def _both(u: Floats) -> Floats:
    """Quantiles of a difference that is about 0 for seven of ten clips, and as often far below as far above."""
    tail = np.clip((np.abs(2 * u - 1) - 0.7) / 0.3, 0, 1)
    return np.where(tail > 0, np.sign(u - 0.5) * beta.ppf(tail, 0.5, 3), (u - 0.5) * 0.02)


# Quantile functions of real values: the drops of a deletion, their differences, and the ratio of a rendered actor.
DROPS: Mapping[str, Callable[[Floats], Floats]] = {
    "drop": lambda u: beta.ppf(u, 0.3, 4),
    "rare drop": lambda u: beta.ppf(u, 0.15, 2),
    "gap": _gap,
    "no gap": _both,
}
RATIOS: Mapping[str, Callable[[Floats], Floats]] = {
    "ratio": lambda u: 2 * np.exp(0.4 * special.ndtri(np.clip(u, 1e-6, 1 - 1e-6))),
}
# How often a rendered actor stands in each of the seven columns.
COLUMNS = np.array([1, 4, 10, 20, 10, 4, 1]) / 50


@dataclass(frozen=True, slots=True)
class Sample:
    """Experiments with a known truth.

    Attributes:
        parts: What each video adds to the figure's counts, ``(experiments, videos, ...)``.
        figure: Computes the figure from added-up parts, ``(experiments, ..., parts)`` to ``(experiments, ...)``.
        truth: The population's figure.
        report: The report's intervals.
        fraction: Whether the figure is one of 0 to 1.
    """

    parts: Floats
    figure: Callable[[Floats], Floats]
    truth: float
    report: Intervals
    fraction: bool = False


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experiments", type=int, default=2000, help="experiments for each setting")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    error = 100 * np.sqrt(0.95 * 0.05 / options.experiments)
    print(
        f"{options.experiments:,} experiments for each setting; standard error of a coverage of 95 %: {error:.1f} %\n"
    )
    methods = ("report", "previous", "t", "Wilson", "Clopper-Pearson", "bootstrap-t", "BCa")
    print(f"| figure | videos | settings | {' | '.join(methods)} | width ÷ narrowest |")
    print(f"|---|{'---:|' * (3 + len(methods))}")
    for kind, videos, settings in _rows(rng):
        found: dict[str, list[tuple[float, float]]] = {}
        for simulate in settings:
            batches: dict[str, list[Intervals]] = {}
            for begin in range(0, options.experiments, BATCH):
                sample = simulate(min(BATCH, options.experiments - begin))
                for method, (low, high) in {"report": sample.report, **_others(sample, rng)}.items():
                    inside = (low <= sample.truth) & (sample.truth <= high)
                    batches.setdefault(method, []).append((inside.astype(np.float64), high - low))
            for method, columns in batches.items():
                covered, widths = (float(np.concatenate(column).mean()) for column in zip(*columns, strict=True))
                found.setdefault(method, []).append((covered, widths))
        summary = {
            name: (min(c for c, _ in rows), float(np.mean([w for _, w in rows]))) for name, rows in found.items()
        }
        narrowest = min((width for coverage, width in summary.values() if coverage >= ENOUGH), default=None)
        cells = [_cell(*summary[name]) if name in summary else "–" for name in methods]
        ratio = f"{summary['report'][1] / narrowest:.2f}" if narrowest else "–"
        print(f"| {kind} | {videos} | {len(settings)} | {' | '.join(cells)} | {ratio} |", flush=True)
    print("\nMethods that are equally good: share of experiments with p < 0.05, the largest of 12 settings.\n")
    print("| videos | report | McNemar |\n|---:|---:|---:|")
    for videos in VIDEOS:
        pairs = [(share, alike) for share in (0.01, 0.03, 0.1, 0.3) for alike in (0, 0.5, 1)]
        errors = np.array([_false_alarms(rng, videos, *pair, options.experiments) for pair in pairs])
        print(f"| {videos} | {' | '.join(f'{100 * error:.1f} %' for error in errors.max(axis=0))} |", flush=True)


def _cell(coverage: float, width: float) -> str:
    text = f"{100 * coverage:.1f} %"
    return f"{f'**{text}**' if coverage >= ENOUGH else text}, {width:.3f}"


def _rows(rng: np.random.Generator) -> Iterator[tuple[str, int, list[Callable[[int], Sample]]]]:
    """Return kind of figure, number of videos, and what simulates a number of experiments in each setting."""
    for index, metric in enumerate(("accuracy", "macro precision", "macro recall")):
        for videos in VIDEOS:
            settings = [(accuracy, alike) for accuracy in ACCURACIES for alike in (0, 0.5, 1)]
            yield metric, videos, [partial(_classified, rng, videos, index, *setting) for setting in settings]
    for videos in VIDEOS:
        pairs = [(gain, alike) for gain in GAINS for alike in (0, 0.5, 1)]
        yield "difference of accuracies", videos, [partial(_compared, rng, videos, *pair) for pair in pairs]
    for videos in VIDEOS:
        reals = [(quantile, alike) for quantile in DROPS.values() for alike in (0, 0.3, 0.6)]
        yield "drop, gap (−1 to 1)", videos, [partial(_measured, rng, videos, *real) for real in reals]
    for name, quantile in RATIOS.items():
        for videos in (12, 24):
            yield f"{name}, clips", videos, [partial(_measured, rng, videos, quantile, None)]
    for clips in (12, 24):
        yield "own − blind, clips", clips, [partial(_followed, rng, clips, share) for share in (0.1, 0.3, 0.6)]
    for videos in VIDEOS:
        equal = "drop, gap; all clips of a video equal"
        yield equal, videos, [partial(_measured, rng, videos, quantile, 1) for quantile in DROPS.values()]


# --- simulations --------------------------------------------------------------------------------------------------


def _clips(experiments: int, videos: int, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Return which clips exist: one to seven of each video."""
    return np.arange(MOST_CLIPS) < rng.integers(1, MOST_CLIPS + 1, (experiments, videos, 1))


def _mixed(experiments: int, videos: int, alike: float, rng: np.random.Generator) -> Floats:
    """Draw uniform numbers for clips; two clips of a video have the same number with the probability ``alike``."""
    shape = experiments, videos, MOST_CLIPS
    common = rng.random(shape) < np.sqrt(alike)
    return np.where(common, rng.random((experiments, videos, 1)), rng.random(shape))


def _classified(
    rng: np.random.Generator, videos: int, metric: int, accuracy: float, alike: float, experiments: int
) -> Sample:
    """Classify clips: each class is right as often, and wrong clips of a video are taken for one other class.

    All classes have as many videos, but for the remainder of the division, so that macro recall and accuracy are the
    same in the population. Precision is then that of the class's share of all that is taken for it.
    """
    classes = CLASSES[videos]
    truth = np.arange(videos) % classes
    exist, right = _clips(experiments, videos, rng), _mixed(experiments, videos, alike, rng) < accuracy
    other = (truth[:, np.newaxis] + rng.integers(1, classes, (experiments, videos, 1))) % classes
    named = np.where(right, truth[:, np.newaxis], other)
    every = np.arange(classes)
    hits = (exist & right).sum(axis=2)[..., np.newaxis] * (truth[:, np.newaxis] == every)
    actual = exist.sum(axis=2)[..., np.newaxis] * (truth[:, np.newaxis] == every)
    counts = np.stack([hits, ((named[..., np.newaxis] == every) & exist[..., np.newaxis]).sum(axis=2), actual], axis=2)
    share = np.bincount(truth) / videos
    taken = share * accuracy + (1 - share) * (1 - accuracy) / (classes - 1)
    true = (accuracy, float((share * accuracy / taken).mean()), accuracy)[metric]

    def figure(sums: Floats) -> Floats:
        right, named, actual = np.moveaxis(sums, -2, 0)
        if metric == 0:
            return np.asarray(right.sum(axis=-1) / actual.sum(axis=-1))
        ratio = right / np.maximum(named if metric == 1 else actual, 1)
        return np.asarray(ratio.sum(axis=-1) / (actual > 0).sum(axis=-1))

    parts = counts.astype(np.float64)
    value, deviations = _pseudo_values(parts, figure)
    widened = deviations * (np.sqrt(videos / (videos - classes)) if metric else 1)
    low, high = np.clip(Jackknife(value, widened, 0, 1).interval(), 0, 1)
    return Sample(parts, figure, true, (low, high), fraction=True)


def _ratio(sums: Floats) -> Floats:
    return np.asarray(sums[..., 0] / sums[..., 1])


def _compared(
    rng: np.random.Generator, videos: int, gain: tuple[float, float], alike: float, experiments: int
) -> Sample:
    """Compare two methods: only the first is right on a share of the clips, only the second on another."""
    exist, numbers = _clips(experiments, videos, rng), _mixed(experiments, videos, alike, rng)
    values = exist * ((numbers < gain[0]).astype(np.float64) - (numbers >= 1 - gain[1]))
    parts = np.stack([values.sum(axis=2), exist.sum(axis=2)], axis=2)
    low, high = np.clip(Jackknife(*_pseudo_values(parts, _ratio), -1, 1).interval(), -1, 1)
    return Sample(parts, _ratio, gain[0] - gain[1], (low, high))


def _measured(
    rng: np.random.Generator,
    videos: int,
    quantile: Callable[[Floats], Floats],
    alike: float | None,
    experiments: int,
) -> Sample:
    """Measure real values with the given quantiles, of clips with a normal correlation; ``None``: of single clips."""
    exist = _clips(experiments, videos, rng)
    if alike is None:
        exist = np.broadcast_to(np.arange(MOST_CLIPS) == 0, exist.shape)
    common, own = rng.normal(size=(experiments, videos, 1)), rng.normal(size=exist.shape)
    grid = (np.arange(100_000) + 0.5) / 100_000
    table = quantile(grid)
    values = np.interp(special.ndtr(np.sqrt(alike or 0) * common + np.sqrt(1 - (alike or 0)) * own), grid, table)
    parts = np.stack([(values * exist).sum(axis=2), exist.sum(axis=2)], axis=2)
    names = np.broadcast_to(np.arange(videos)[:, np.newaxis].astype(str), exist.shape[1:])
    limit = 1 if alike is not None else np.inf
    found = [
        mean_over_groups(one[clips], names[clips].tolist(), least=-limit, most=limit)
        for one, clips in zip(values, exist, strict=True)
    ]
    ends = np.array([[one.low, one.high] for one in found]).T
    return Sample(parts, _ratio, float(table.mean()), (ends[0], ends[1]))


def _followed(rng: np.random.Generator, clips: int, share: float, experiments: int) -> Sample:
    """Attend to the actor's column by a share that differs between clips, and to all columns by the rest."""
    columns = rng.choice(len(COLUMNS), (experiments, clips), p=COLUMNS)
    shares = np.clip(share + 0.1 * rng.normal(size=columns.shape), 0, 1)
    same = columns[:, :, np.newaxis] == columns[:, np.newaxis, :]
    ratios = len(COLUMNS) * same * shares[:, np.newaxis, :] + (1 - shares)[:, np.newaxis, :]
    values = np.stack([one.diagonal() - ratios_of_other_clips(one) for one in ratios])
    found = [mean_over_groups(one) for one in values]
    ends = np.array([[one.low, one.high] for one in found]).T
    mean = float(np.clip(share + 0.1 * special.ndtri((np.arange(100_000) + 0.5) / 100_000), 0, 1).mean())
    true = len(COLUMNS) * mean * (1 - float((COLUMNS**2).sum()))
    return Sample(np.stack([values, np.ones_like(values)], axis=2), _ratio, true, (ends[0], ends[1]))


def _false_alarms(
    rng: np.random.Generator, videos: int, gain: float, alike: float, experiments: int
) -> tuple[float, float]:
    """Compare equally good methods; return how often p < 0.05, by the report and by McNemar's exact test."""
    exist, numbers = _clips(experiments, videos, rng), _mixed(experiments, videos, alike, rng)
    first, second = exist & (numbers < gain), exist & (numbers >= 1 - gain)
    parts = np.stack([first.sum(axis=2) - second.sum(axis=2), exist.sum(axis=2)], axis=2).astype(np.float64)
    found = Jackknife(*_pseudo_values(parts, _ratio), -1, 1).p_value()
    fewer = np.minimum(first.sum(axis=(1, 2)), second.sum(axis=(1, 2)))
    mcnemar = 2 * special.bdtr(fewer, (first | second).sum(axis=(1, 2)), 0.5)
    return float((found < 0.05).mean()), float((mcnemar < 0.05).mean())


# --- methods ------------------------------------------------------------------------------------------------------


def _pseudo_values(parts: Floats, figure: Callable[[Floats], Floats]) -> Intervals:
    """Compute the figure ``(experiments,)`` and the videos' deviations ``(experiments, videos)``."""
    total = parts.sum(axis=1, keepdims=True)
    value = figure(total)
    return value[:, 0], (parts.shape[1] - 1) * (value - figure(total - parts))


def _others(sample: Sample, rng: np.random.Generator) -> dict[str, Intervals]:
    """Compute the intervals of the other methods, each ``(experiments,)``."""
    value, deviations = _pseudo_values(sample.parts, sample.figure)
    videos = deviations.shape[1]
    quantile = float(special.stdtrit(videos - 1, 0.975))
    variance = deviations.var(axis=1) / (videos - 1)
    reach = quantile * np.sqrt(variance)
    found = {"t": (value - reach, value + reach)}
    if sample.fraction:
        found["t"] = np.clip(found["t"][0], 0, 1), np.clip(found["t"][1], 0, 1)
        clips = sample.parts[:, :, 2].sum(axis=2)
        worth = value * (1 - value) / np.maximum(variance, 1e-15)
        all_alike = clips.sum(axis=1) ** 2 / (clips**2).sum(axis=1)
        worth = np.where(variance > 1e-15, np.minimum(worth, clips.sum(axis=1)), all_alike)
        found |= {
            "Wilson": _wilson(value, worth, quantile),
            "Clopper-Pearson": _exact(value, worth * (1.96 / quantile) ** 2),
        }
    return found | _bootstrap(sample, value, deviations, variance, rng)


def _wilson(value: Floats, clips: Floats, quantile: float) -> Intervals:
    middle = (value * clips + quantile**2 / 2) / (clips + quantile**2)
    reach = quantile / (clips + quantile**2) * np.sqrt(clips * value * (1 - value) + quantile**2 / 4)
    return middle - reach, middle + reach


def _exact(value: Floats, clips: Floats) -> Intervals:
    right, wrong = value * clips, (1 - value) * clips
    low = np.where(right > 0, special.betaincinv(np.maximum(right, 1e-9), wrong + 1, 0.025), 0)
    return low, np.where(wrong > 0, special.betaincinv(right + 1, np.maximum(wrong, 1e-9), 0.975), 1)


def _bootstrap(
    sample: Sample, value: Floats, deviations: Floats, variance: Floats, rng: np.random.Generator
) -> dict[str, Intervals]:
    """Draw videos with replacement; the percentile interval, and for means bootstrap-t and BCa."""
    videos = deviations.shape[1]
    drawn = rng.multinomial(videos, np.full(videos, 1 / videos), RESAMPLES).astype(np.float64)
    flat = sample.parts.reshape(len(value), videos, -1)
    found = np.concatenate(
        [
            sample.figure((drawn @ chunk).reshape(len(chunk), RESAMPLES, *sample.parts.shape[2:]))
            for chunk in np.array_split(flat, max(1, len(flat) // 200))
        ]
    )
    low, high = np.quantile(found, (0.025, 0.975), axis=1) + value - found.mean(axis=1)
    if sample.fraction:
        return {"previous": (np.clip(low, 0, 1), np.clip(high, 0, 1))}
    sums, clips = flat[..., 0], flat[..., 1]
    squares = (sums**2) @ drawn.T - 2 * found * ((sums * clips) @ drawn.T) + found**2 * (clips**2 @ drawn.T)
    error = np.sqrt(np.maximum(squares, 0)) / (clips @ drawn.T)
    centred = found - value[:, np.newaxis]
    ratios = np.where(error > 1e-9, centred / np.maximum(error, 1e-9), 50 * np.sign(centred))
    lower, upper = np.quantile(ratios, (0.025, 0.975), axis=1) * np.sqrt(variance * (videos - 1) / videos)
    cubes, second = (deviations**3).sum(axis=1), (deviations**2).sum(axis=1)
    skew = cubes / np.maximum(6 * second**1.5, 1e-12)
    bias = special.ndtri(np.clip((centred < 0).mean(axis=1), 1 / RESAMPLES, 1 - 1 / RESAMPLES))
    ordered, ends = np.sort(found, axis=1), []
    for end in (-1.96, 1.96):
        share = special.ndtr(bias + (bias + end) / (1 - skew * (bias + end)))
        ends.append(ordered[np.arange(len(value)), np.minimum((share * RESAMPLES).astype(int), RESAMPLES - 1)])
    return {"previous": (low, high), "bootstrap-t": (value - upper, value - lower), "BCa": (ends[0], ends[1])}


if __name__ == "__main__":
    main()
