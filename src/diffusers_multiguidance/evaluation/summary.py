"""The figures on the values of a batch of images, and their histogram."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .uniformity import GAP, kld_floor, kld_to_uniform, mse_floor, mse_to_uniform, share_in_gap, share_malformed


def summarize(values: np.ndarray, gap: tuple[float, float] = GAP) -> dict[str, Any]:
    """All figures on measured values (N,), NaN where malformed."""
    measured = values[~np.isnan(values)]
    summary: dict[str, Any] = {
        "num_images": len(values),
        "share_malformed": share_malformed(values),
        "gap": list(gap),
        "share_in_gap": share_in_gap(values, gap),
    }
    if len(measured):
        summary |= {
            "mean": float(measured.mean()),
            "standard_deviation": float(measured.std()),
            "kld_to_uniform": kld_to_uniform(values),
            "kld_floor": kld_floor(len(measured)),
            "mse_to_uniform": mse_to_uniform(values),
            "mse_floor": mse_floor(len(measured)),
        }
    return summary


def draw_histogram(
    axes: Any, values_by_name: dict[str, np.ndarray], attribute: str, gap: tuple[float, float] = GAP
) -> None:
    """Histograms of an attribute over [0, 1], the gap shaded, on matplotlib axes."""
    axes.axvspan(*gap, color="0.92", label=f"gap, {gap[0]:g} to {gap[1]:g}")
    for name, values in values_by_name.items():
        measured = values[~np.isnan(values)]
        weights = np.full(len(measured), 1 / len(values))
        axes.hist(measured, bins=50, range=(0, 1), weights=weights, histtype="stepfilled", alpha=0.6, label=name)
    axes.set(xlabel=attribute, ylabel="share of images", xlim=(0, 1))
    axes.legend(frameon=False)


def save_histogram(
    values_by_name: dict[str, np.ndarray], attribute: str, path: Path, gap: tuple[float, float] = GAP
) -> None:
    """`draw_histogram` as a PNG."""
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    draw_histogram(figure.subplots(), values_by_name, attribute, gap)
    figure.savefig(path, dpi=120)
