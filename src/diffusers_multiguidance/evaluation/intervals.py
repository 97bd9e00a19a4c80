"""How sure the figures on values are: intervals that hold the truth in 95 of 100 repetitions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.stats import binomtest, bootstrap

from .uniformity import GAP, NUM_BINS, histogram, kld_of, mse_of

LEVEL = 0.95
RESAMPLES = 1000

Interval = tuple[float, float]


def confidence_intervals(
    values: np.ndarray, gap: tuple[float, float] = GAP, num_bins: int = NUM_BINS, seed: int = 0
) -> dict[str, Interval]:
    """Low and high ends by the names of the figures: the shares, and with two values or more the rest.

    Args:
        values: (N,) in [0, 1], NaN where malformed.
        seed: of the bootstrap.

    Raises:
        ValueError: for no values, or any outside [0, 1].
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"`values` have shape {values.shape}; expected (N,) with N of at least 1.")
    measured = values[~np.isnan(values)]
    intervals = {
        "share_malformed": share_interval(int(np.isnan(values).sum()), len(values)),
        "share_in_gap": share_interval(int(((values > gap[0]) & (values < gap[1])).sum()), len(values)),
    }
    if len(measured) > 1:
        intervals |= {
            "mean": mean_interval(measured, seed),
            "kld_to_uniform": uniformity_interval(measured, kld_of, num_bins, seed),
            "mse_to_uniform": uniformity_interval(measured, mse_of, num_bins, seed),
        }
    return intervals


def share_interval(count: int, total: int) -> Interval:
    """Of the share of all images there could be, where `count` of `total` are so (Wilson 1927).

    No bootstrap, which takes none of 500 for a proof that there are none: it resamples only what it saw.
    """
    interval = binomtest(count, total).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


def mean_interval(values: np.ndarray, seed: int = 0) -> Interval:
    """Of the mean, by the percentile bootstrap; `values` (N,) without NaN."""
    if values.min() == values.max():
        return float(values[0]), float(values[0])
    interval = bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, 10_000_000 // len(values)),
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def uniformity_interval(
    values: np.ndarray, figure: Callable[[np.ndarray], np.ndarray], num_bins: int = NUM_BINS, seed: int = 0
) -> Interval:
    """Of what a figure on the histogram would be on average over further samples of as many images, floor included.

    Sampling raises such a figure above the population's, by the floor, and resampling raises it once more; it also
    takes the sample's own noise for structure, which makes it vary too much. So the bootstrap draws from the histogram
    led towards a flat one over the same filled bins, until its distance to that is what it is without noise; and only
    how far the resampled figures lie from their mean counts (the basic bootstrap). Fewer than ten images a bin are
    few: at two a bin the intervals held the truth in 86 to 98 of 100 simulated repetitions.

    Args:
        values: (N,) in [0, 1], NaN where malformed.
        figure: `uniformity.kld_of` or `uniformity.mse_of`.
    """
    observed = histogram(values, num_bins)
    count = int((~np.isnan(values)).sum())
    flat = (observed > 0) / np.count_nonzero(observed)
    squared_distance = np.square(observed - flat).sum()
    noise = (1 - np.square(observed).sum()) / count
    kept = np.sqrt(max(0.0, 1 - noise / squared_distance)) if squared_distance > 0 else 0.0
    probabilities = flat + kept * (observed - flat)
    drawn = np.random.default_rng(seed).multinomial(count, probabilities / probabilities.sum(), RESAMPLES)
    resampled = figure(drawn / count)
    low, high = np.quantile(resampled - resampled.mean(), ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return float(figure(observed) - high), float(figure(observed) - low)
