"""Whether generated images are still what they should be, as a trained network sees it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .evaluators import load_network, network_logits


def class_probabilities(evaluator: str | Path, images: np.ndarray) -> np.ndarray:
    """(N, number of classes), from the evaluator in a folder; see `evaluators.network_logits`."""
    return network_logits(load_network(evaluator), images).softmax(dim=1).numpy()


def share_recognized(probabilities: np.ndarray, threshold: float = 0.9) -> float:
    """Share of images for which some class has a probability above `threshold`."""
    return float((probabilities.max(axis=1) > threshold).mean())
