"""Extreme sets: which images are kept, decided on numbers alone (paper, section 4.3 and appendix D).

A network's opinion of an image is its log-odds of the attribute's second class, log p(1 | x) / p(0 | x). It is signed
here by the image's label, so that more is surer and 0 is a toss-up: see `signed_log_odds`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset


@dataclass(frozen=True)
class Selection:
    """What is kept for one attribute, of the N images of a source.

    Attributes:
        kept: (N,) mask.
        labels: (N,) 0 or 1, the end that an image stands for; -1 where it has none.
        scores: (N,) what was decided on: factor, score, or log-odds of the second class.
        contradicting: (N,) mask, where the networks are sure of the other label.
        record: how it was decided; part of the provenance.
    """

    kept: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    contradicting: np.ndarray
    record: dict[str, Any]


def select_by_factor(dataset: Dataset, attribute: str, delta: float = 0.2) -> Selection:
    """Keep the images whose known factor is in [0, delta] or [1 - delta, 1] (paper, section 4.1).

    Raises:
        ValueError: for a data set without `factor_<attribute>`, or an end left empty.
    """
    column = f"factor_{attribute}"
    if column not in dataset.column_names:
        raise ValueError(
            f"`--attribute` is {attribute!r}; expected one with a factor column, of {dataset.column_names}."
        )
    factor = np.asarray(dataset[column], dtype=np.float64)
    low, high = factor <= delta, factor >= 1 - delta
    if not (low.any() and high.any()):
        raise ValueError(f"`--delta` is {delta}; expected one that leaves images at both ends of '{attribute}'.")
    record = {
        "by": "factor",
        "delta": delta,
        "num_images": {"source": len(dataset), "low": int(low.sum()), "high": int(high.sum())},
        "widest_gap": [float(factor[low].max()), float(factor[high].min())],
    }
    return Selection(low | high, np.where(factor > 0.5, 1, 0), factor, np.zeros_like(low), record)


def select_by_score(scores: np.ndarray, counts: tuple[int, int]) -> Selection:
    """Keep the images with the lowest and the highest scores.

    Args:
        scores: (N,); those that are not a number are left out.
        counts: how many at the low and at the high end.

    Raises:
        ValueError: if an end is to be empty or both would overlap.
    """
    known = np.isfinite(scores)
    if min(counts) < 1 or sum(counts) > known.sum():
        raise ValueError(
            f"`--num_extremes` is {counts[0]} and {counts[1]}; expected at least 1 each, and at most the "
            f"{known.sum()} images that have a score together."
        )
    order = np.flatnonzero(known)[np.argsort(scores[known], kind="stable")]
    low, high = order[: counts[0]], order[-counts[1] :]
    kept, labels = np.zeros(len(scores), bool), np.full(len(scores), -1)
    labels[low], labels[high] = 0, 1
    kept[low] = kept[high] = True
    record = {
        "by": "score",
        "num_images": {
            "source": len(scores),
            "without score": int((~known).sum()),
            "low": counts[0],
            "high": counts[1],
        },
        "widest_gap": [float(scores[low[-1]]), float(scores[high[0]])],
    }
    return Selection(kept, labels, scores, np.zeros_like(kept), record)


def signed_log_odds(log_odds: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Log-odds (..., N) of the class that each label (N,), 0 or 1, names."""
    return np.where(labels == 1, log_odds, -log_odds)


def confident(signed: np.ndarray, threshold: float) -> np.ndarray:
    """Where p(label | x) > `threshold`, a probability below 1, for signed log-odds of any shape."""
    return signed > math.log(threshold / (1 - threshold))


def least_confident(signed: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """What the most doubtful member of an ensemble says of each image.

    Args:
        signed: (members, N) signed log-odds.
        seen: (members, N), which members were trained on which images; their opinion does not count (cross-fitting).

    Returns:
        (N,); minus infinity where every member has seen the image.
    """
    return np.where(seen.all(axis=0), -np.inf, np.where(seen, np.inf, signed).min(axis=0))


def most_extreme(scores: np.ndarray, labels: np.ndarray, kept: np.ndarray, counts: tuple[int, int]) -> np.ndarray:
    """Of the images in the mask `kept`, the `counts` highest with label 0 and with label 1; a mask (N,).

    Raises:
        ValueError: if a side has fewer, or none is wanted.
    """
    chosen = np.zeros_like(kept)
    for label, count in enumerate(counts):
        side = np.flatnonzero(kept & (labels == label))
        if not 0 < count <= len(side):
            raise ValueError(
                f"`--num_extremes` is {count} for a side with {len(side)} images left; expected at least 1 and at "
                "most that many: lower the thresholds or start from more images."
            )
        chosen[side[np.argsort(-scores[side], kind="stable")[:count]]] = True
    return chosen


def precise_threshold(signed: np.ndarray, wrong: np.ndarray) -> float:
    """The lowest probability above which a labelled hold-out has a precision of 1 (paper, appendix D.1).

    Args:
        signed: (H,) signed log-odds of the hold-out images.
        wrong: (H,) which of them must not be kept: mild ones, and those whose label is not what they show.
    """
    highest = float(signed[wrong].max(initial=0.0))
    # A little above, so that rounding does not let that very image in.
    return min(1 / (1 + math.exp(-highest - 1e-6)), 1 - 1e-15) if wrong.any() else 0.5


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
