"""Images repeated where they are rare: the rarer end, or the sparse parts of the range."""

from __future__ import annotations

import numpy as np


def oversample(indices: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """`indices` (N,) with those of the rarer label repeated, as many whole times as brings the two nearest."""
    counts = np.bincount(labels, minlength=2)
    rarer = int(counts.argmin())
    repeats = max(1, round(counts.max() / max(1, counts.min())))
    return np.sort(np.concatenate([indices[labels != rarer], np.repeat(indices[labels == rarer], repeats)]))


def evenly_spread(values: np.ndarray, num_images: int, seed: int) -> np.ndarray:
    """About `num_images` row numbers, repeated where images are rare, that fill the range of values evenly.

    Args:
        values: (attributes, N) in [0, 1]; the range is cut into 20 bins, that of several attributes into 8 by 8.
    """
    bins = 20 if len(values) == 1 else 8
    cells = np.ravel_multi_index(tuple((values * bins).astype(int).clip(0, bins - 1)), (bins,) * len(values))
    filled, rng = np.unique(cells), np.random.default_rng(seed)
    rows = [np.flatnonzero(cells == cell) for cell in filled]
    return np.concatenate(
        [rng.permutation(np.resize(rng.permutation(r), -(-num_images // len(filled)))) for r in rows]
    )
