"""Where images lie in the square of two attributes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

CELLS = 10


def count_cells(values: np.ndarray, cells: int = CELLS) -> np.ndarray:
    """Images by cell of the square, (cells, cells), the first attribute along the first axis.

    Args:
        values: (2, N) in [0, 1]; an image with a NaN is in no cell.

    Raises:
        ValueError: for another shape, or values outside [0, 1].
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or len(values) != 2:
        raise ValueError(f"`values` have shape {values.shape}; expected (2, N), a row for each attribute.")
    known = values[:, ~np.isnan(values).any(axis=0)]
    if known.size and (known.min() < 0 or known.max() > 1):
        raise ValueError(f"`values` run from {known.min():.3f} to {known.max():.3f}; expected numbers in [0, 1].")
    counts, _ = np.histogramdd(known.T, bins=cells, range=((0, 1), (0, 1)))
    return counts.astype(int)


def save_heat_maps(
    values_by_name: dict[str, np.ndarray], attributes: tuple[str, str], path: Path, cells: int = CELLS
) -> None:
    """Images by cell of two attributes, on a scale of logarithms (paper, figure 9), a map for each name; as a PNG.

    Args:
        values_by_name: as for `count_cells`. Empty cells stay white.
        attributes: names of the two, the first to the right.
    """
    counts = {name: count_cells(values, cells) for name, values in values_by_name.items()}
    figure = Figure(figsize=(4.2 * len(counts) + 0.8, 4.2), layout="constrained")
    panels = figure.subplots(1, len(counts), squeeze=False)[0]
    # One scale for all maps; up to two images at least, else there is none.
    norm = LogNorm(1, max(2, *(each.max() for each in counts.values())))
    for axes, (name, each) in zip(panels, counts.items(), strict=True):
        shown = np.ma.masked_equal(each.T, 0)
        image = axes.imshow(shown, norm=norm, cmap="viridis", origin="lower", extent=(0, 1, 0, 1))
        axes.set(title=name, xlabel=attributes[0], ylabel=attributes[1])
    figure.colorbar(image, ax=list(panels), label="images")
    figure.savefig(path, dpi=120)
