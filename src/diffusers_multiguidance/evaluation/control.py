"""How near the values of generated images come to the targets that were asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import spearmanr

TARGETS = np.round(np.arange(0.1, 0.95, 0.1), 1)
NEAR = 0.05


def control_figures(values: np.ndarray, targets: np.ndarray = TARGETS) -> dict[str, Any]:
    """Share near the target, rank correlation and errors.

    Args:
        values: (number of targets, N), NaN where malformed: such an image is not near its target.
        targets: what was asked for.
    """
    error = np.abs(values - targets[:, None])
    near = (error <= NEAR).mean(axis=1)  # NaN compares as False
    known = ~np.isnan(values)
    requested = np.broadcast_to(targets[:, None], values.shape)
    return {
        "share_near": float(near.mean()),
        "share_near_at_worst_target": float(near.min()),
        "share_near_by_target": dict(zip(map(str, targets), near.round(4).tolist(), strict=True)),
        "share_malformed": float((~known).mean()),
        "rank_correlation": float(spearmanr(requested[known], values[known]).statistic),
        "mean_absolute_error": float(error[known].mean()),
        "mean_error_of_means": float(np.abs(np.nanmean(values, axis=1) - targets).mean()),
        "mean_by_target": np.nanmean(values, axis=1).round(4).tolist(),
        "standard_deviation_by_target": np.nanstd(values, axis=1).round(4).tolist(),
    }


def save_control_plot(values: np.ndarray, attribute: str, path: Path, targets: np.ndarray = TARGETS) -> None:
    """The values by target, as boxes."""
    figure = Figure(figsize=(5, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.plot((0, 1), (0, 1), color="0.85")
    kept = [row[~np.isnan(row)] for row in values]
    axes.boxplot(kept, positions=targets, widths=0.05, sym=".", manage_ticks=False)
    axes.set(xlabel="target", ylabel=f"{attribute}, measured", xlim=(0, 1), ylim=(0, 1))
    figure.savefig(path, dpi=120)
