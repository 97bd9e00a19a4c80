"""The filter of the paper's appendix D.1: keep images whose noisy label a labeler, then an ensemble, is sure of.

The paper's ensemble learns from what the labeler kept, where only clear labels are left, and is asked about what it
has learnt by heart. Learning from all labels keeps the grades between the ends, and with cross-fitting a member is
only asked about images that it has not seen; docs/results.md has what each is worth.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch.utils.data import Subset, TensorDataset

from ..training.settings import read_size
from ..utils.seeds import stream_seed
from .extremes import (
    Selection,
    confident,
    leak,
    least_confident,
    most_extreme,
    precise_threshold,
    signed_log_odds,
    wrong_images_bound,
)
from .labelers import decode, log_odds, train_labeler
from .settings import DatasetSettings

ASSUMED_ERROR = 0.15  # of each network, the paper's worst case (appendix D.3)


class LabelFilter:
    """Labeler and ensembles for one label column, trained when asked for, and found again after a killed run.

    Args:
        folder: for finished networks and scores.
    """

    def __init__(
        self, accelerator: Accelerator, dataset: Dataset, attribute: str, settings: DatasetSettings, folder: Path
    ) -> None:
        self.accelerator, self.attribute, self.settings, self.folder = accelerator, attribute, settings, folder
        self.classes = dataset.features[attribute].names
        self.labels = np.asarray(dataset[attribute])
        size, batch_size = read_size(settings.labeler_resolution, "labeler_resolution"), settings.eval_batch_size
        self.pixels = decode(accelerator, dataset, size, batch_size, folder / "pixels.npy")

    def scores(self, name: str, pools: np.ndarray) -> np.ndarray:
        """Signed log-odds (networks, N) of all images by networks that learnt the labels of `pools`, as many masks."""
        path = self.folder / f"{name}.npy"
        if not path.exists():
            networks, labelled = [], TensorDataset(self.pixels, torch.from_numpy(self.labels))
            for number, rows in enumerate(pools):
                if not {0, 1} <= set(self.labels[rows]):
                    raise ValueError(
                        f"`--attribute` '{self.attribute}' leaves one label for the {name}; expected images with both "
                        "labels: lower the thresholds."
                    )
                subset = Subset(labelled, np.flatnonzero(rows).tolist())
                seed = stream_seed(self.settings.seed, name, number)
                folder = self.folder / f"{name}-{number}"
                what = (subset, self.attribute, self.classes)
                networks.append(train_labeler(self.accelerator, *what, self.settings, folder, seed))
            asked = (self.pixels, self.settings.eval_batch_size, f"{name} scores", self.settings.random_flip)
            result = log_odds(self.accelerator, networks, *asked)
            if self.accelerator.is_main_process:
                temporary = path.with_suffix(".tmp.npy")
                np.save(temporary, result)
                temporary.rename(path)
            self.accelerator.wait_for_everyone()
        return signed_log_odds(np.load(path), self.labels)

    def ensemble(self, name: str, pool: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Signed log-odds (members, N) by networks on different subsets of the mask `pool`, and who saw what.

        Every image of the pool is seen by three of five members, so that cross-fitting leaves each two to ask.
        """
        size = self.settings.ensemble_size
        rng = np.random.default_rng((self.settings.seed, 1))
        order = rng.permuted(np.tile(np.arange(size), (len(pool), 1)), axis=1).T
        seen = (order < size - size // 2) & pool
        return self.scores(name, seen), seen


def select_by_labels(
    accelerator: Accelerator,
    dataset: Dataset,
    attribute: str,
    holdout: dict[int, int] | None,
    settings: DatasetSettings,
    folder: Path,
) -> Selection:
    """Train a labeler and an ensemble on a label column, and keep the images they are surest of.

    Args:
        holdout: image number to 0 or 1 for images that clearly show the one end or the other, -1 for mild ones. No
            network is trained on them and none is kept; where given, they choose the thresholds.
        folder: for finished networks and scores; a killed run goes on from there.
    """
    labels = np.asarray(dataset[attribute])
    numbers = np.asarray(dataset["source_index"])
    is_holdout = np.isin(numbers, list(holdout or {}))
    trainable = (labels >= 0) & ~is_holdout
    between = (labels < 0) & ~is_holdout & (settings.unlabelled == "between")
    label_filter = LabelFilter(accelerator, dataset, attribute, settings, folder)

    def threshold(signed: np.ndarray, given: float) -> float:
        if holdout is None:
            return given
        known = is_holdout & (labels >= 0)  # without a label none could be kept
        truth = np.array([holdout[number] for number in numbers[known]])
        return precise_threshold(signed[known], truth != labels[known])

    labeler = label_filter.scores("labeler", (trainable | between)[None])[0]
    tau_1 = threshold(labeler, settings.tau_1)
    agreed = trainable & confident(labeler, tau_1)

    def ask(pool: str, cross_fit: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        """Mean opinion of the members, where all are sure of the label, where all are sure of the other, tau_2."""
        ensemble, seen = label_filter.ensemble(f"on-{pool}", {"all": trainable | between, "agreed": agreed}[pool])
        barred = seen if cross_fit else np.zeros_like(seen)
        doubt = least_confident(ensemble, barred)
        tau_2 = threshold(doubt, settings.tau_2)
        contradicting = trainable & confident(least_confident(-ensemble, barred), tau_2)
        mean = np.ma.masked_array(ensemble, barred).mean(axis=0).filled(-np.inf)
        return mean, agreed & confident(doubt, tau_2), contradicting, tau_2

    def as_many_surest(scores: np.ndarray, passed: np.ndarray) -> np.ndarray:
        """As many of each side as were kept, or all that are left, for comparison."""
        sides = [np.flatnonzero(passed & (labels == label)) for label in (0, 1)]
        chosen = [
            side[np.argsort(-scores[side])[: (kept & (labels == label)).sum()]] for label, side in enumerate(sides)
        ]
        return np.isin(np.arange(len(labels)), np.concatenate(chosen))

    mean, unanimous, contradicting, tau_2 = ask(settings.ensemble_pool, settings.cross_fit)
    # How many the user asked for must be there; of a share only what is left.
    share = round(settings.share_of(len(dataset)) * len(dataset))
    left = [int((unanimous & (labels == label)).sum()) for label in (0, 1)]
    wanted = settings.num_extremes or [min(share, left[0]), min(share, left[1])]
    kept = most_extreme(mean, labels, unanimous, (wanted[0], wanted[-1]))
    record: dict[str, Any] = {
        "by": "labels",
        "labeler": {"model": settings.labeler_model, "steps": settings.max_train_steps, "seed": settings.seed},
        "ensemble_size": settings.ensemble_size,
        "ensemble_pool": settings.ensemble_pool,
        "cross_fit": settings.cross_fit,
        "unlabelled": settings.unlabelled,
        "tau_1": tau_1,
        "tau_2": tau_2,
        "thresholds_from_holdout": holdout is not None,
        "num_images": {
            "source": len(dataset),
            "without label": int((labels < 0).sum()),
            "held out": int(is_holdout.sum()),
            "labeler agrees": int(agreed.sum()),
            "ensemble agrees": int(unanimous.sum()),
            "most extreme": int(kept.sum()),
        },
        "num_per_label": [int((kept & (labels == label)).sum()) for label in (0, 1)],
        "num_contradicting": int(contradicting.sum()),
        "wrong_images_bound": {
            str(count): wrong_images_bound(count, int(kept.sum()), ASSUMED_ERROR**settings.ensemble_size)
            for count in (10, 15, 20)
        },
    }
    if f"factor_{attribute}" in dataset.column_names:
        factor = np.asarray(dataset[f"factor_{attribute}"])
        leaks = {
            "labels alone": trainable,
            "labeler, thresholds": agreed,
            "labeler, surest": as_many_surest(labeler, agreed),
        }
        for pool in ("agreed", "all") if settings.compare else (settings.ensemble_pool,):
            for cross_fit in (False, True):
                scores, passed, _, _ = ask(pool, cross_fit)
                name = f"ensemble on {pool}{', cross-fitted' if cross_fit else ''}"
                leaks |= {f"{name}, thresholds": passed, f"{name}, surest": as_many_surest(scores, passed)}
        record["leak"] = {name: leak(factor[mask], settings.delta) for name, mask in leaks.items()}
        truly = trainable & ((factor <= settings.delta) | (factor >= 1 - settings.delta))
        record["share_of_truly_extreme_kept"] = float(kept[truly].sum() / truly.sum())
    return Selection(kept, labels, np.where(labels == 1, mean, -mean), contradicting, record)
