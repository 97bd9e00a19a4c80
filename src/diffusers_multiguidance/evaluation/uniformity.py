"""How evenly samples cover an attribute's range [0, 1], and how many lie where no training image was."""

from __future__ import annotations

import numpy as np
from scipy.special import xlogy
from scipy.stats import binom

NUM_BINS = 100
GAP = (0.2, 0.8)  # what extremes of a fifth of the range leave out


def histogram(values: np.ndarray, num_bins: int = NUM_BINS) -> np.ndarray:
    """Normalised counts over [0, 1] of the values that are not NaN; (num_bins,)."""
    values = np.asarray(values, dtype=np.float64)
    values = values[~np.isnan(values)]
    if len(values) == 0:
        raise ValueError("`values` has no number; expected at least one that is not NaN.")
    if values.min() < 0 or values.max() > 1:
        raise ValueError(f"`values` run from {values.min():.3f} to {values.max():.3f}; expected numbers in [0, 1].")
    counts, _ = np.histogram(values, bins=num_bins, range=(0, 1))
    return counts / len(values)


def mse_to_uniform(values: np.ndarray, num_bins: int = NUM_BINS) -> float:
    """The paper's "MSE" (section 5.1): sqrt(sum_i (h_i - 1/n)^2) over normalised counts."""
    return float(mse_of(histogram(values, num_bins)))


def kld_to_uniform(values: np.ndarray, num_bins: int = NUM_BINS) -> float:
    """KL(histogram || uniform) in nats (paper, appendix B): sum_i h_i log(n h_i)."""
    return float(kld_of(histogram(values, num_bins)))


def mse_of(histograms: np.ndarray) -> np.ndarray:
    """`mse_to_uniform` of each of (..., n) histograms."""
    return np.sqrt(np.square(histograms - 1 / histograms.shape[-1]).sum(axis=-1))


def kld_of(histograms: np.ndarray) -> np.ndarray:
    """`kld_to_uniform` of each of (..., n) histograms."""
    return xlogy(histograms, histograms.shape[-1] * histograms).sum(axis=-1)


def mse_floor(num_values: int, num_bins: int = NUM_BINS) -> float:
    """What `mse_to_uniform` is to expect of that many values drawn from the uniform distribution itself."""
    return float(np.sqrt((1 - 1 / num_bins) / num_values))


def kld_floor(num_values: int, num_bins: int = NUM_BINS) -> float:
    """What `kld_to_uniform` is to expect of that many values drawn from the uniform distribution itself.

    With many values a bin it is about (num_bins - 1) / (2 num_values); with few that is too much.
    """
    counts = np.arange(num_values + 1)
    terms = xlogy(counts / num_values, num_bins * counts / num_values)
    return float(num_bins * (binom.pmf(counts, num_values, 1 / num_bins) * terms).sum())


def share_in_gap(values: np.ndarray, gap: tuple[float, float] = GAP) -> float:
    """Share of *all* samples strictly within the gap; NaN, a malformed image, is not."""
    values = np.asarray(values, dtype=np.float64)
    return float(((values > gap[0]) & (values < gap[1])).mean())


def share_malformed(values: np.ndarray) -> float:
    """Share of samples whose attribute can't be measured."""
    return float(np.isnan(values).mean())
