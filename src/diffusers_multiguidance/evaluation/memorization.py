"""Whether generated images are new, or copies of what training showed (paper, appendix H).

Distances are Euclidean, between the points that an extractor makes of images; `extractors.to_points` makes them of
pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from rich.progress import track

from ..utils.grids import image_grid, to_pil
from .extractors import BATCH_SIZE, Extractor
from .intervals import share_interval

NEAREST = 0.01  # of the held-out images


class TrainingImages:
    """Training images and their mirror images, which count alike, to search for the nearest.

    Args:
        images: (M, H, W, C) uint8.
    """

    def __init__(self, images: np.ndarray, extract: Extractor) -> None:
        self.images, self.extract = images, extract
        starts = range(0, len(images), BATCH_SIZE)
        for number, start in enumerate(track([*starts, *starts], "training images", transient=True)):
            batch = images[start : start + BATCH_SIZE]
            points = extract(batch if number < len(starts) else np.ascontiguousarray(batch[:, :, ::-1])).numpy()
            if number == 0:
                self.index = faiss.IndexFlatL2(points.shape[1])
            self.index.add(points)

    def nearest(self, images: np.ndarray, features: torch.Tensor | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Distance of each image to the nearest training image (N,), and that one's number (N,).

        Args:
            images: (N, H, W, C) uint8.
            features: of them by `extract` (N, F), where they are known.
        """
        distances, rows = [], []
        for start in range(0, len(images), BATCH_SIZE):
            batch = slice(start, start + BATCH_SIZE)
            points = (self.extract(images[batch]) if features is None else features[batch]).numpy()
            found = self.index.search(points, 1)[1][:, 0]
            # The search's own distances are differences of large numbers, and copies have to come out near 0.
            distances.append(np.linalg.norm(points - self.index.reconstruct_batch(found), axis=1))
            rows.append(found)
        return np.concatenate(distances), np.concatenate(rows) % len(self.images)


def memorization(distances: np.ndarray, held_out: np.ndarray) -> dict[str, Any]:
    """Figures of how near generated images (N,) come to training, compared with held-out ones (M,).

    The ratio of an image is its distance over the median held-out one: about 1 where it is as new as an image that
    training never saw, near 0 for a copy. Of such new images the share `floor` is nearer than the nearest 1 % of the
    held-out ones: 1 %, or more where those are fewer than 99, of which the nearest one counts.
    """
    near = distances < np.quantile(held_out, NEAREST, method="weibull")  # right on average, however few there are
    ratios = distances / max(np.median(held_out), np.finfo(np.float32).tiny)
    return {
        "num_held_out": len(held_out),
        "median_ratio": float(np.median(ratios)),
        "smallest_ratio": float(ratios.min()),
        "share_nearer_than_held_out": float(near.mean()),
        "interval": share_interval(int(near.sum()), len(near)),
        "floor": max(NEAREST, 1 / (len(held_out) + 1)),
        "ratios": ratios.round(4).tolist(),
    }


def save_neighbours(images: np.ndarray, neighbours: np.ndarray, path: Path) -> None:
    """Images (N, H, W, C), each with its nearest training image on its right, as a PNG."""
    pairs = np.stack([images, neighbours], axis=1).reshape(-1, *images.shape[1:])
    image_grid(to_pil(pairs)).save(path)
