"""How far from one end to the other an image lies, told by its neighbours alone: for where no measure exists."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.sparse.csgraph import dijkstra
from sklearn.neighbors import kneighbors_graph

NEIGHBORS = 20
BLUR = 0.1  # of the image's size


def geodesic_strengths(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Strengths of images that fill the way between two ends, without knowing what the attribute is.

    Neighbouring images are joined to a graph, as in Isomap (Tenenbaum et al. 2000), and an image's strength is how
    much longer its way to the nearest image of the first end is than that to the second. A way's length is the sum of
    its squared hops, so that it keeps to where images are (Hwang, Damelin and Hero 2016). So there have to be enough
    images for neighbours to differ little, and what differs between the ends has to show in pixels (blurred ones, so
    that what has moved a little is near).

    Args:
        images: (N, H, W, C) uint8.
        labels: (N,) 0 and 1 for images of the two ends, -1 for those in between.

    Returns:
        (N,) from 0 to 1, 0.5 where both ends are equally far; NaN where an end can't be reached. Rising with the
        attribute, not equal to it: calibrate what was learnt from them.

    Raises:
        ValueError: if an end has no image, or there are too few images.
    """
    if not (np.isin(labels, (-1, 0, 1)).all() and (labels == 0).any() and (labels == 1).any()):
        raise ValueError(
            f"`labels` has the values {np.unique(labels).tolist()}; expected images of both ends, 0 and 1."
        )
    if len(images) <= NEIGHBORS:
        raise ValueError(f"`images` has {len(images)} images; expected more than {NEIGHBORS}.")
    sigma = BLUR * images.shape[1]
    blurred = gaussian_filter(images.astype(np.float32) / 255, (0, sigma, sigma, 0)).reshape(len(images), -1)
    graph = kneighbors_graph(blurred, NEIGHBORS, mode="distance")
    graph.data = graph.data**2 + 1e-9  # a stored 0, of two equal images, would count as no edge
    graph = graph.maximum(graph.T)
    low, high = (
        dijkstra(graph, directed=False, indices=np.flatnonzero(labels == end), min_only=True) for end in (0, 1)
    )
    known = np.isfinite(low) & np.isfinite(high)
    longer = np.where(known, low, np.nan) - np.where(known, high, np.nan)
    # A few images far from all others would stretch the scale.
    return np.clip(0.5 + longer / (2 * np.nanquantile(np.abs(longer), 0.99)), 0, 1)
