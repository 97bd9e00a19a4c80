"""Signs that an image went wrong, for which nobody has to say what a right one is."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

FEWEST_OF_EITHER = 10


class TrajectoryVariance:
    """How much the predicted clean image still moves late in sampling, by image (Aithal et al. 2024, section 5).

    The variance over the steps, of each pixel's predicted value in [-1, 1], averaged over the image. Take it along:

        variance = TrajectoryVariance()
        images = generate(pipeline, 1000, watch=variance)
        variance.scores()  # (1000,)

    Args:
        start, end: share of the steps, from noise to image, between which it looks.

    Raises:
        ValueError: unless 0 <= start < end <= 1.
    """

    def __init__(self, start: float = 0.7, end: float = 1.0) -> None:
        if not 0 <= start < end <= 1:
            raise ValueError(f"`start` and `end` are {start} and {end}; expected 0 <= start < end <= 1.")
        self.start, self.end = start, end
        self._finished: list[np.ndarray] = []
        self._count = 0
        self._mean = self._squares = torch.zeros(())

    def __call__(self, step: Any) -> None:
        """Look at a `denoising.DenoisingStep`; one with the number 1 begins another batch."""
        if step.number == 1:
            self._count, self._mean, self._squares = 0, torch.zeros(()), torch.zeros(())
        if self.start * step.total < step.number <= self.end * step.total:
            # One pass (Welford), as all predictions of a batch would fill the memory.
            self._count += 1
            difference = step.pred_x0.double().cpu() - self._mean
            self._mean = self._mean + difference / self._count
            self._squares = self._squares + difference * (step.pred_x0.double().cpu() - self._mean)
        if step.number == step.total:
            if self._count < 2:
                raise ValueError(
                    f"`start` and `end` are {self.start} and {self.end}, between which there are {self._count} of "
                    f"{step.total} steps; expected at least 2."
                )
            self._finished.append((self._squares / self._count).flatten(1).mean(dim=1).numpy())

    def scores(self) -> np.ndarray:
        """(N,), of the images of all batches so far."""
        return np.concatenate(self._finished) if self._finished else np.zeros(0)


def variance_figures(variances: np.ndarray, values: np.ndarray) -> dict[str, float | None]:
    """The usual and the highest trajectory variance (N,), and how well it tells malformed images from whole ones.

    Args:
        values: (N,), NaN where malformed.

    Returns:
        `area_under_roc` is 1 where every malformed image has a higher variance than every whole one, and 0.5 by
        chance; None where fewer than 10 images are malformed or whole, of which it could say about anything.
    """
    malformed = np.isnan(values)
    is_told = min(malformed.sum(), (~malformed).sum()) >= FEWEST_OF_EITHER
    told = float(roc_auc_score(malformed, variances)) if is_told else None
    return {
        "median_variance": float(np.median(variances)),
        "highest_variance": float(variances.max()),
        "area_under_roc": told,
    }
