"""Extreme sets: keep the two ends of a factor, and say what was kept."""

from __future__ import annotations

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
