"""Percentile bootstrap over prompts, for a mean and for a paired difference of two means.

It knows prompts and numbers, nothing of models or metrics. The one idea: the prompt is the unit that is
drawn. Samples of one prompt are alike, so they stay together; and because both sides of a comparison
answer the same prompts, their difference is taken prompt by prompt before anything is drawn, which
removes the spread between easy and hard prompts (Efron and Tibshirani 1993, chapters 8 and 13).

Every prompt weighs the same, however many samples of it survived: the statistic is the mean over
prompts of the mean over samples.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

LEVEL = 0.95
"""Coverage that the intervals are made for."""
BLOCK = 1 << 22
"""Draws that are held in memory at once."""

Values = Mapping[str, Sequence[float]]
"""prompt_id -> values of its samples."""


@dataclasses.dataclass(frozen=True, slots=True)
class Interval:
    """A mean with the ends of its 95 % interval, in the unit of the values."""

    mean: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        return dataclasses.asdict(self)


def mean_interval(values: Values, *, seed: int, num_resamples: int = 2000) -> Interval:
    """Return the mean over prompts and its percentile interval.

    Example: `{"a": [1.0, 0.0], "b": [1.0]}` has the mean (0.5 + 1) / 2 = 0.75.

    Raises:
        ValueError: no prompt, a prompt without values, or a value that is not finite; the prompt is named.
    """
    means_P = _prompt_means(values)
    order = np.argsort(np.array(list(values), dtype=object))  # the same draws whatever order the prompts came in
    resampled_R = _resampled_means(means_P[order], seed=seed, num_resamples=num_resamples)
    low, high = np.quantile(resampled_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(means_P.mean()), float(low), float(high))


def paired_difference(a: Values, b: Values, *, seed: int, num_resamples: int = 2000) -> Interval:
    """Return mean(a) - mean(b) over the same prompts and its percentile interval.

    Example: a = {"x": [1.0], "y": [0.5]}, b = {"x": [0.5], "y": [0.0]} differ by exactly 0.5 on every prompt,
    so the interval is 0.5 to 0.5 although the means of each are uncertain.

    Raises:
        ValueError: the prompts of `a` and `b` are not the same; the first that is missing is named.
    """
    if unshared := sorted(a.keys() ^ b.keys()):
        raise ValueError(
            f"a paired difference needs the same prompts on both sides; {len(unshared)} are on one side only, "
            f"first {unshared[0]!r}"
        )
    means_a, means_b = _prompt_means(a), dict(zip(b, _prompt_means(b), strict=True))
    differences = {p: [float(mean - means_b[p])] for p, mean in zip(a, means_a, strict=True)}
    return mean_interval(differences, seed=seed, num_resamples=num_resamples)


def shared_prompts(sides: Sequence[Values]) -> set[str]:
    """Return the prompts that every side has."""
    return set.intersection(*(set(side) for side in sides)) if sides else set()


def _prompt_means(values: Values) -> np.ndarray:
    """(P,) mean of each prompt's samples, in the order of `values`."""
    if not values:
        raise ValueError("no prompt to take a mean over")
    means = []
    for prompt_id, samples in values.items():
        if not len(samples):
            raise ValueError(f"prompt {prompt_id!r} has no value")
        means.append(float(np.mean(np.asarray(samples, dtype=np.float64))))
        if not np.isfinite(means[-1]):
            raise ValueError(f"prompt {prompt_id!r} has a value that is not finite")
    return np.array(means)


def _resampled_means(means_P: np.ndarray, *, seed: int, num_resamples: int) -> np.ndarray:
    """(R,) means of `num_resamples` draws of P prompts with replacement."""
    rng, num_prompts = np.random.default_rng(seed), len(means_P)
    rows = max(1, BLOCK // num_prompts)
    blocks = [
        means_P[rng.integers(num_prompts, size=(min(rows, num_resamples - start), num_prompts))].mean(axis=1)
        for start in range(0, num_resamples, rows)
    ]
    return np.concatenate(blocks)
