"""From set points and what was measured there to a monotone map, an even spread, and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.optimize import minimize
from scipy.stats import beta, entropy, spearmanr
from sklearn.isotonic import IsotonicRegression

BINS = 20
IMAGES = 500  # that the even spread is worked out for


def fit_calibration(set_points: np.ndarray, strengths: np.ndarray) -> dict[str, Any]:
    """The monotone map from set point to mean strength (isotonic regression).

    Args:
        set_points: (P,) ascending, in [0, 1].
        strengths: (P, n) measured, NaN where an image can't be.

    Returns:
        The map, `set_points` to `strengths`, both ascending, where the middle of a flat stretch stands for it;
        `even_strengths`, see that function; and what was `measured` at every set point: mean, standard deviation and
        share malformed.

    Raises:
        ValueError: if most images can't be measured, or the strength does not rise with the set point.
    """
    if np.isnan(strengths).mean() > 0.5:
        raise ValueError(
            f"`measure` fails on {100 * np.isnan(strengths).mean():.0f} % of the images; expected it to know most."
        )
    counts = (~np.isnan(strengths)).sum(axis=1)
    known = counts > 0
    mean, spread = np.nanmean(strengths[known], axis=1), np.nanstd(strengths[known], axis=1)
    correlation = float(spearmanr(set_points[known], mean).statistic)
    if not correlation >= 0.8:
        raise ValueError(
            f"`attribute` does not follow its set point (rank correlation {correlation:.2f}); expected at least 0.8: "
            "more images, better classifiers or another guidance scale."
        )
    isotonic = IsotonicRegression(y_min=0, y_max=1).fit(set_points[known], mean, sample_weight=counts[known])
    fitted = isotonic.predict(set_points[known])
    levels = np.unique(fitted)
    middles = [float(set_points[known][fitted == level].mean()) for level in levels]
    return {
        "set_points": [round(value, 5) for value in middles],
        "strengths": [round(float(level), 5) for level in levels],
        "even_strengths": even_strengths(set_points[known], strengths[known], middles, levels),
        "measured": {
            "set_points": [float(value) for value in set_points[known]],
            "mean": [round(float(value), 5) for value in mean],
            "standard_deviation": [round(float(value), 5) for value in spread],
            "malformed": [round(float(value), 5) for value in np.isnan(strengths[known]).mean(axis=1)],
        },
    }


def even_strengths(
    set_points: np.ndarray, strengths: np.ndarray, mapped: list[float], levels: np.ndarray
) -> list[float]:
    """Where a batch has to aim so that what comes out is spread evenly.

    Images stray from their target, and mostly towards the ends, so evenly spread targets leave the middle sparse.
    Targets that follow a beta distribution can make up for it; its two parameters are those whose mixture of measured
    strengths is nearest to uniform.

    Args:
        set_points: (P,) ascending.
        strengths: (P, n) measured there, NaN where an image can't be.
        mapped: set points of the monotone map to `levels`, both ascending.
        levels: strengths of the map.

    Returns:
        Targets at the shares 0, 0.05, ... 1 of the batch, ascending.
    """
    known = [row[~np.isnan(row)] for row in strengths]
    shares = np.stack([np.histogram(row, BINS, (0, 1))[0] / len(row) for row in known])
    batch = (np.arange(IMAGES) + 0.5) / IMAGES

    def unevenness(parameters: np.ndarray) -> float:
        aims = np.interp(beta.ppf(batch, *np.exp(parameters)), levels, mapped)
        place = np.interp(aims, set_points, np.arange(len(set_points)))
        below = np.minimum(place.astype(int), len(set_points) - 2)
        upper = (place - below)[:, None]
        mixture = ((1 - upper) * shares[below] + upper * shares[below + 1]).mean(axis=0)
        return float(entropy(mixture, np.full(BINS, 1 / BINS)))

    best = minimize(unevenness, np.zeros(2), method="Nelder-Mead", bounds=[(-2.3, 2.3)] * 2)
    return [round(float(value), 5) for value in beta.ppf(np.linspace(0, 1, 21), *np.exp(best.x))]


def save_calibration_plot(fit: dict[str, Any], attribute: str, path: Path) -> None:
    """Set point against measured strength, with the spread of the images and the fit."""
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    measured = fit["measured"]
    axes.plot((0, 1), (0, 1), color="0.85")
    axes.errorbar(
        measured["set_points"], measured["mean"], measured["standard_deviation"], fmt=".", capsize=2, label="measured"
    )
    axes.plot(fit["set_points"], fit["strengths"], label="isotonic fit")
    axes.set(xlabel="set point", ylabel=f"{attribute}, mean and standard deviation", xlim=(0, 1), ylim=(0, 1))
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
