"""Extreme sets: which images are kept, decided on numbers alone (paper, section 4.3 and appendix D).

A network's opinion of an image is its log-odds of the attribute's second class, log p(1 | x) / p(0 | x). It is signed
here by the image's label, so that more is surer and 0 is a toss-up: see `signed_log_odds`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from datasets import Dataset


def keep_extremes(dataset: Dataset, attribute: str, delta: float = 0.2) -> tuple[Dataset, dict[str, Any]]:
    """Keep the images whose known factor is in [0, delta] or [1 - delta, 1] (paper, section 4.1).

    Returns:
        The filtered data set and its provenance: source fingerprint, threshold, counts and the widest gap.

    Raises:
        ValueError: for a data set without `factor_<attribute>`, a delta outside (0, 0.5), or an end left empty.
    """
    column = f"factor_{attribute}"
    if column not in dataset.column_names:
        raise ValueError(
            f"`attribute` is {attribute!r}; expected one with a factor column, of {dataset.column_names}."
        )
    if not 0 < delta < 0.5:
        raise ValueError(f"`delta` is {delta}; expected a number above 0 and below 0.5.")
    factor = np.asarray(dataset[column], dtype=np.float64)
    low, high = factor <= delta, factor >= 1 - delta
    if not (low.any() and high.any()):
        raise ValueError(f"`delta` is {delta}; expected one that leaves images at both ends of '{attribute}'.")
    provenance = {
        "source_fingerprint": dataset._fingerprint,
        "attribute": attribute,
        "delta": delta,
        "num_source_images": len(dataset),
        "num_low": int(low.sum()),
        "num_high": int(high.sum()),
        "widest_gap": [float(factor[low].max()), float(factor[high].min())],
    }
    return dataset.select(np.flatnonzero(low | high)), provenance


def signed_log_odds(log_odds: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Log-odds (..., N) of the class that each label (N,), 0 or 1, names."""
    return np.where(labels == 1, log_odds, -log_odds)


def confident(signed: np.ndarray, threshold: float) -> np.ndarray:
    """Where p(label | x) > `threshold`, for signed log-odds of any shape.

    Raises:
        ValueError: for a threshold outside [0.5, 1).
    """
    if not 0.5 <= threshold < 1:
        raise ValueError(f"`threshold` is {threshold}; expected a probability from 0.5 to below 1.")
    return signed > math.log(threshold / (1 - threshold))


def least_confident(signed: np.ndarray, seen: np.ndarray | None = None) -> np.ndarray:
    """What the most doubtful member of an ensemble says of each image.

    Args:
        signed: (members, N) signed log-odds.
        seen: (members, N), which members were trained on which images; their opinion does not count (cross-fitting).

    Returns:
        (N,); minus infinity where no member may judge.
    """
    if seen is None:
        return signed.min(axis=0)
    return np.where(seen.all(axis=0), -np.inf, np.where(seen, np.inf, signed).min(axis=0))


def most_extreme(signed: np.ndarray, labels: np.ndarray, kept: np.ndarray, count: int) -> np.ndarray:
    """Of the images in the mask `kept`, the `count` surest of each label; a mask (N,).

    Raises:
        ValueError: if a side has fewer.
    """
    chosen = np.zeros_like(kept)
    for label in (0, 1):
        side = np.flatnonzero(kept & (labels == label))
        if len(side) < count:
            raise ValueError(
                f"`num_extremes` is {count}, but {len(side)} images with label {label} are left; "
                "expected at most that many, or lower thresholds."
            )
        chosen[side[np.argsort(-signed[side], kind="stable")[:count]]] = True
    return chosen


def precise_threshold(signed: np.ndarray, wrong: np.ndarray) -> float:
    """The lowest probability above which a labelled hold-out has a precision of 1 (paper, appendix D.1).

    Args:
        signed: (H,) signed log-odds of the hold-out images.
        wrong: (H,) which of them must not be kept: mild ones, and those whose label is not what they show.
    """
    highest = max(0.0, float(signed[wrong].max(initial=0.0)))
    return min(1 / (1 + math.exp(-highest)), 1 - 1e-12)


def wrong_images_bound(count: int, num_images: int, probability: float) -> float:
    """Chernoff's bound on P(at least `count` of `num_images` are wrong), each with `probability` (appendix D.3)."""
    expected = num_images * probability
    if count <= expected:
        return 1.0
    return math.exp(count - expected + count * math.log(expected / count))


def leak(factor: np.ndarray, delta: float) -> dict[str, float]:
    """How much of a kept set with known latents (N,) is not extreme after all."""
    return {
        "num_images": len(factor),
        "num_mild": int(((factor > delta + 0.1) & (factor < 0.9 - delta)).sum()),
        "share_outside": float(((factor > delta) & (factor < 1 - delta)).mean()) if len(factor) else 0.0,
    }
