"""Where images lie in the square of two attributes (paper, section 6, figure 9)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

CELLS = 10


def cells_of(values: np.ndarray) -> np.ndarray:
    """Column and row of the cell of each image without a NaN, (2, n).

    Args:
        values: (2, N) in [0, 1].

    Raises:
        ValueError: for another shape, or values outside [0, 1].
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or len(values) != 2:
        raise ValueError(f"`values` have shape {values.shape}; expected (2, N), a row for each attribute.")
    known = values[:, ~np.isnan(values).any(axis=0)]
    if known.size and (known.min() < 0 or known.max() > 1):
        raise ValueError(f"`values` run from {known.min():.3f} to {known.max():.3f}; expected numbers in [0, 1].")
    return (known * CELLS).astype(int).clip(0, CELLS - 1)


def count_cells(values: np.ndarray) -> np.ndarray:
    """Images by cell of the square, (CELLS, CELLS), the first attribute along the first axis; see `cells_of`."""
    counts = np.zeros((CELLS, CELLS), int)
    np.add.at(counts, tuple(cells_of(values)), 1)
    return counts


def square_figures(values: np.ndarray) -> dict[str, Any]:
    """How much of the square is covered by images with values (2, N), NaN where malformed.

    `cells_by_chance` is how many cells as many images fill that are spread over the square at random.
    """
    counts = count_cells(values)
    return {
        "num_images": values.shape[1],
        "cells_with_an_image": int((counts > 0).sum()),
        "cells_by_chance": counts.size * (1 - (1 - 1 / counts.size) ** values.shape[1]),
        "images_by_cell": counts.tolist(),
        "share_malformed": float(np.isnan(values).any(axis=0).mean()),
    }


def by_cell(images: np.ndarray, values: np.ndarray) -> np.ndarray:
    """An image of each cell, black where there is none: (CELLS * CELLS, H, W, C), row by row from the top.

    The first attribute grows to the right, the second upwards, as in the heat map.

    Args:
        images: (N, H, W, C) uint8.
        values: (2, N), see `cells_of`.
    """
    shown = np.zeros((CELLS, CELLS, *images.shape[1:]), np.uint8)
    shown[tuple(cells_of(values))] = images[~np.isnan(values).any(axis=0)]
    return shown.swapaxes(0, 1)[::-1].reshape(-1, *images.shape[1:])


def save_heat_maps(values_by_name: dict[str, np.ndarray], attributes: tuple[str, str], path: Path) -> None:
    """Images by cell of two attributes, on a scale of logarithms (paper, figure 9), a map for each name; as a PNG.

    Args:
        values_by_name: as for `count_cells`. Empty cells stay white.
        attributes: names of the two, the first to the right.
    """
    counts = {name: count_cells(values) for name, values in values_by_name.items()}
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
