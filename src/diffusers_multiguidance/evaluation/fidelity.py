"""Whether generated images are what they should be: FID, KID, precision and recall, by torch-fidelity, on features.

Features (N, F) are of any extractor, see `extractors.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from .evaluators import load_network, network_logits

NEIGHBORHOOD = 3  # the k of precision and recall, as in the paper that defines them
MOST = 5_000  # images of either side for precision and recall, which cost N x M distances


def class_probabilities(evaluator: str | Path, images: np.ndarray) -> np.ndarray:
    """(N, number of classes), from the evaluator in a folder; see `evaluators.network_logits`."""
    return network_logits(load_network(evaluator), images).softmax(dim=1).numpy()


def share_recognized(probabilities: np.ndarray, threshold: float = 0.9) -> float:
    """Share of images for which some class has a probability above `threshold`."""
    return float((probabilities.max(axis=1) > threshold).mean())


def frechet_distance(generated: torch.Tensor, real: torch.Tensor) -> float:
    """FID (Heusel et al. 2017).

    Raises:
        ValueError: for features of two sizes, and for no more images than features: their covariance would have no
            full rank, and the distance would mostly say how few they are.
    """
    if generated.shape[1] != real.shape[1]:
        raise ValueError(
            f"`generated` has {generated.shape[1]} features and `real` {real.shape[1]}; expected as many."
        )
    for name, features in (("generated", generated), ("real", real)):
        if len(features) <= features.shape[1]:
            raise ValueError(
                f"FID of {features.shape[1]} features has {len(features)} {name} images; expected at least "
                f"{features.shape[1] + 1}, or KID in its place."
            )
    statistics = [fid_features_to_statistics(features) for features in (generated, real)]
    return fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]


def kernel_distance(generated: torch.Tensor, real: torch.Tensor) -> tuple[float, float]:
    """KID (Binkowski et al. 2018): its mean over 50 random subsets, and its standard error.

    The estimator is unbiased for any number of images, while FID grows as they get fewer. A subset has half of the
    fewer images, at most 1000: the deviation over halves is about the standard error of the whole, or more.

    Raises:
        ValueError: for less than four images.
    """
    _check_at_least(4, generated, real, "KID")
    size = min(1000, len(generated) // 2, len(real) // 2)
    result = kid_features_to_metric(generated, real, kid_subsets=50, kid_subset_size=size, verbose=False)
    return result["kernel_inception_distance_mean"], result["kernel_inception_distance_std"]


def precision_and_recall(generated: torch.Tensor, real: torch.Tensor) -> tuple[float, float]:
    """Share of generated images within the real ones' neighbourhoods, and the reverse (Kynkaanniemi et al. 2019).

    The neighbourhood of an image reaches to its third nearest of its own kind. Of more than 5,000 images as many
    count, evenly spaced.

    Raises:
        ValueError: for less than four images.
    """
    _check_at_least(NEIGHBORHOOD + 1, generated, real, "precision and recall")
    generated, real = (features[evenly_spaced(len(features), MOST)] for features in (generated, real))
    result = prc_features_to_metric(
        generated, real, prc_neighborhood=NEIGHBORHOOD, prc_batch_size=1000, save_cpu_ram=True, verbose=False
    )
    return result["precision"], result["recall"]


def evenly_spaced(count: int, most: int) -> np.ndarray:
    """At most that many of `count` numbers from 0 on: images may be sorted, and the first of one kind."""
    return np.linspace(0, count - 1, min(count, most)).astype(int)


def quality(generated: torch.Tensor, real: torch.Tensor) -> dict[str, Any]:
    """All of them; None for those that so few images don't give, and then `why_no_fid`."""
    figures: dict[str, Any] = {"num_generated": len(generated), "num_real": len(real)}
    try:
        figures["fid"] = frechet_distance(generated, real)
    except ValueError as error:
        figures |= {"fid": None, "why_no_fid": str(error)}
    enough = min(len(generated), len(real)) > NEIGHBORHOOD
    figures["kid"], figures["kid_standard_error"] = kernel_distance(generated, real) if enough else (None, None)
    figures["precision"], figures["recall"] = precision_and_recall(generated, real) if enough else (None, None)
    return figures


def _check_at_least(least: int, generated: torch.Tensor, real: torch.Tensor, figure: str) -> None:
    fewest = min(len(generated), len(real))
    if fewest < least:
        raise ValueError(f"{figure} of {fewest} images; expected at least {least} of either kind.")
