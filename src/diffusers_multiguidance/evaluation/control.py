"""Control: how near values come to their targets, and how good and diverse the images are at each value.

As CcGAN (Ding et al. 2021) and CCDM (Ding et al. 2024) measure it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.special import xlogy
from scipy.stats import spearmanr

TARGETS = np.round(np.arange(0.1, 0.95, 0.1), 1)
NEAR = 0.05
RADIUS = 0.1  # of a window of values
MIN_IMAGES = 30  # of a window


def control_figures(values: np.ndarray, targets: np.ndarray = TARGETS) -> dict[str, Any]:
    """Share near the target, rank correlation and errors.

    Args:
        values: (number of targets, N), NaN where malformed: such an image is not near its target.
        targets: what was asked for.

    Returns:
        By name. At a target with nothing but malformed images the figures by target are None; where all images are
        malformed, only the shares are there. The rank correlation is None where all values or their targets are one.

    Raises:
        ValueError: for values that are not a row for each target.
    """
    if values.ndim != 2 or len(values) != len(targets):
        raise ValueError(f"`values` have shape {values.shape}; expected a row for each of {len(targets)} targets.")
    error = np.abs(values - targets[:, None])
    near = (error <= NEAR).mean(axis=1)  # NaN compares as False
    known = ~np.isnan(values)
    shares: dict[str, Any] = {
        "share_near": float(near.mean()),
        "share_near_at_worst_target": float(near.min()),
        "share_near_by_target": dict(zip(map(str, targets), near.round(4).tolist(), strict=True)),
        "share_malformed": float((~known).mean()),
    }
    if not known.any():
        return shares
    requested = np.broadcast_to(targets[:, None], values.shape)[known]
    varies = np.ptp(requested) > 0 and np.ptp(values[known]) > 0
    some = known.any(axis=1)
    return {
        **shares,
        "rank_correlation": float(spearmanr(requested, values[known]).statistic) if varies else None,
        "mean_absolute_error": float(error[known].mean()),
        "mean_absolute_error_by_target": _by_row(np.mean, error),
        "mean_error_of_means": float(np.abs(np.nanmean(values[some], axis=1) - targets[some]).mean()),
        "mean_by_target": _by_row(np.mean, values),
        "standard_deviation_by_target": _by_row(np.std, values),
    }


def _by_row(figure: Callable[[np.ndarray], Any], values: np.ndarray) -> list[float | None]:
    """A figure of each row of (T, N) without its NaNs, for JSON; None where there is nothing else."""
    rows = [row[~np.isnan(row)] for row in values]
    return [round(float(figure(row)), 4) if len(row) else None for row in rows]


def save_control_plot(values: np.ndarray, attribute: str, path: Path, targets: np.ndarray = TARGETS) -> None:
    """The values by target, as boxes."""
    figure = Figure(figsize=(5, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.plot((0, 1), (0, 1), color="0.85")
    kept = [row[~np.isnan(row)] for row in values]
    axes.boxplot(kept, positions=targets, widths=0.05, sym=".", manage_ticks=False)
    axes.set(xlabel="target", ylabel=f"{attribute}, measured", xlim=(0, 1), ylim=(0, 1))
    figure.savefig(path, dpi=120)


def sliding_distance(
    generated: torch.Tensor,
    values: np.ndarray,
    real: torch.Tensor,
    real_values: np.ndarray,
    distance: Callable[[torch.Tensor, torch.Tensor], float],
    centres: np.ndarray = TARGETS,
    radius: float = RADIUS,
    min_images: int = MIN_IMAGES,
) -> dict[str, Any]:
    """Sliding FID or KID (CcGAN): the distance among images with values within a window, averaged over the windows.

    Args:
        generated: (N, F) features.
        values: (N,), the targets that were asked for or the values; NaN is in no window. No two images may come from
            one noise, or those of a window would be too much alike.
        real: (M, F) features of real images.
        real_values: (M,) of them.
        distance: `fidelity.frechet_distance`, or for KID `lambda *both: fidelity.kernel_distance(*both)[0]`.
        centres: of the windows, from `centre - radius` to `centre + radius` with both ends.
        min_images: generated ones and real ones, each; a window with fewer is left out.

    Returns:
        `mean` and `standard_deviation` over the windows (None where all are left out), `by_value`, and in `left_out` a
        sentence for each window without a distance.

    Raises:
        ValueError: for features and values that are not as many.
    """
    for name, features, given in (("generated", generated, values), ("real", real, real_values)):
        if len(features) != len(given):
            raise ValueError(f"`{name}` has {len(features)} images and {len(given)} values; expected as many.")
    by_value, left_out = {}, {}
    for centre in centres:
        inside, really = (np.flatnonzero(within(each, centre, radius)) for each in (values, real_values))
        if min(len(inside), len(really)) < min_images:
            left_out[f"{centre:.4g}"] = (
                f"{len(inside)} generated and {len(really)} real images within {radius:g}; expected {min_images} each."
            )
            continue
        try:
            by_value[f"{centre:.4g}"] = distance(generated[torch.from_numpy(inside)], real[torch.from_numpy(really)])
        except ValueError as error:  # too few of them for this distance
            left_out[f"{centre:.4g}"] = str(error)
    return {**_mean_by_value(by_value), "left_out": left_out}


def diversity(
    probabilities: np.ndarray,
    values: np.ndarray,
    centres: np.ndarray = TARGETS,
    radius: float = RADIUS,
    min_images: int = MIN_IMAGES,
) -> dict[str, Any]:
    """Entropy in nats of the classes of what should vary, among images with values within a window, over the windows.

    It is that of the mean probabilities: the logarithm of the number of classes where each is as frequent, 0 where all
    images are of one class.

    Args:
        probabilities: (N, K) by a classifier of what should vary, say the digit; or 1 for the class and 0 for others.
        values, centres, radius, min_images: as for `sliding_distance`.

    Returns:
        As of `sliding_distance`, and `share_of_maximum`, the mean over the logarithm of K.

    Raises:
        ValueError: for other shapes, or rows that do not add up to 1.
    """
    if probabilities.ndim != 2 or len(probabilities) != len(values) or probabilities.shape[1] < 2:
        raise ValueError(
            f"`probabilities` have shape {probabilities.shape}; expected (N, K) with N of {len(values)}, as many as "
            "`values`, and K of at least 2."
        )
    sums = probabilities.sum(axis=1)
    if len(sums) and np.abs(sums - 1).max() > 1e-3:
        raise ValueError(f"`probabilities` add up to {sums.min():.4g} to {sums.max():.4g}; expected 1 for each image.")
    by_value, left_out = {}, {}
    for centre in centres:
        inside = within(values, centre, radius)
        if inside.sum() < min_images:
            left_out[f"{centre:.4g}"] = f"{inside.sum()} images within {radius:g}; expected {min_images}."
            continue
        shares = probabilities[inside].mean(axis=0, dtype=np.float64)
        by_value[f"{centre:.4g}"] = float(-xlogy(shares, shares).sum())
    result = _mean_by_value(by_value)
    most = float(np.log(probabilities.shape[1]))
    share = None if result["mean"] is None else result["mean"] / most
    return {**result, "share_of_maximum": share, "left_out": left_out}


def within(values: np.ndarray, centre: float, radius: float) -> np.ndarray:
    """Which of (N,) values are within a window; NaN is not."""
    return np.abs(values - centre) <= radius + 1e-9


def _mean_by_value(by_value: dict[str, float]) -> dict[str, Any]:
    figures = list(by_value.values())
    return {
        "mean": float(np.mean(figures)) if figures else None,
        "standard_deviation": float(np.std(figures)) if figures else None,
        "by_value": by_value,
    }


def sweep_smoothness(values: np.ndarray, images: np.ndarray) -> dict[str, Any]:
    """Largest step over mean step from target to target, the mean of all rows: 1 is even, T - 1 all in one step.

    Args:
        values: (rows, T), a row for each noise and a column for each target, evenly spaced; NaN where malformed.
        images: (rows, T, H, W, C) uint8; a step of theirs is the root mean square over all pixels.

    Returns:
        `values` and `pixels`, None where no row can tell; and how many rows are left out of each, those with a
        malformed image and those in which nothing moves.

    Raises:
        ValueError: for fewer than three targets, or shapes that differ.
    """
    if values.ndim != 2 or values.shape[1] < 3 or images.ndim != 5 or images.shape[:2] != values.shape:
        raise ValueError(
            f"`values` and `images` have shapes {values.shape} and {images.shape}; expected (rows, T) and "
            "(rows, T, H, W, C) with T of at least 3."
        )
    steps = {
        "values": np.abs(np.diff(values, axis=1)),
        # Row by row, as all of them as floats would fill the memory.
        "pixels": np.array([np.square(np.diff(row / 255, axis=0)).mean(axis=(1, 2, 3)) ** 0.5 for row in images]),
    }
    smoothness: dict[str, Any] = {}
    for name, each in steps.items():
        kept = each[each.mean(axis=1) > 0]  # NaN compares as False
        smoothness[name] = float((kept.max(axis=1) / kept.mean(axis=1)).mean()) if len(kept) else None
        smoothness[f"rows_left_out_of_{name}"] = len(each) - len(kept)
    return smoothness
