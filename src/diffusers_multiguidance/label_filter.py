"""The filter of the paper's appendix D.1: keep images whose noisy label a scorer, then an ensemble, is sure of.

The paper's ensemble learns from what the scorer kept, where only clear labels are left, and judges what it has learnt
by heart. Learning from all labels keeps the grades between the ends, and with cross-fitting a member only judges
images that it has not seen; docs/results.md has what each is worth.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from datasets import Dataset

from .data.extremes import (
    Selection,
    confident,
    leak,
    least_confident,
    most_extreme,
    precise_threshold,
    signed_log_odds,
)
from .scoring import log_odds, train_scorer
from .seeds import stream_seed


class LabelFilter:
    """Scorer and ensembles for one label column, trained when asked for, and found again after a killed run.

    Args:
        folder: for finished networks and scores.
        trainable: (N,) mask of the images with a label that are not held out.
        args: see build_dataset.py.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        dataset: Dataset,
        attribute: str,
        trainable: np.ndarray,
        args: argparse.Namespace,
        folder: Path,
    ) -> None:
        self.accelerator, self.dataset, self.attribute = accelerator, dataset, attribute
        self.trainable, self.args, self.folder = trainable, args, folder
        self.labels = np.asarray(dataset[attribute])

    def scores(self, name: str, rows: np.ndarray, stream: int) -> np.ndarray:
        """Signed log-odds (N,) of all images by a network that learnt the labels of `rows` (a mask)."""
        if min(np.bincount(self.labels[rows], minlength=2)) == 0:
            raise ValueError(
                f"`attribute` '{self.attribute}' leaves one label for the {name}; expected images with both labels: "
                "lower the thresholds."
            )
        path = self.folder / f"{name}.npy"
        if not path.exists():
            rows, seed = np.flatnonzero(rows), stream_seed(self.args.seed, stream)
            subset = self.dataset.select(rows)
            scorer = train_scorer(self.accelerator, subset, self.attribute, self.args, self.folder / name, seed)
            result = log_odds(self.accelerator, scorer, self.dataset, self.args, f"{name} scores")
            if self.accelerator.is_main_process:
                temporary = path.with_suffix(".tmp.npy")
                np.save(temporary, result)
                temporary.rename(path)
            self.accelerator.wait_for_everyone()
        return signed_log_odds(np.load(path), self.labels)

    def ensemble(self, name: str, pool: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Signed log-odds (members, N) by networks on different subsets of the mask `pool`, and who saw what.

        Every image of the pool is seen by three of five members, so that cross-fitting leaves each as many judges.
        """
        size = self.args.ensemble_size
        rng = np.random.default_rng((self.args.seed, 1))
        order = rng.permuted(np.tile(np.arange(size), (len(pool), 1)), axis=1).T
        seen = (order < size - size // 2) & pool
        members = [self.scores(f"{name}-{number}", rows, number + 1) for number, rows in enumerate(seen)]
        return np.stack(members), seen


def select_by_labels(
    accelerator: Accelerator,
    dataset: Dataset,
    attribute: str,
    holdout: dict[int, int] | None,
    args: argparse.Namespace,
    folder: Path,
) -> Selection:
    """Train a scorer and an ensemble on a label column, and keep the images they are surest of.

    Args:
        holdout: image number to 0 or 1 for images that clearly show the one end or the other, -1 for mild ones. No
            network is trained on them and none is kept; where given, they choose the thresholds.
        args: see build_dataset.py.
        folder: for finished networks and scores; a killed run goes on from there.
    """
    labels = np.asarray(dataset[attribute])
    numbers = np.asarray(dataset["source_index"])
    is_holdout = np.isin(numbers, list(holdout or {}))
    trainable = (labels >= 0) & ~is_holdout
    label_filter = LabelFilter(accelerator, dataset, attribute, trainable, args, folder)

    def threshold(signed: np.ndarray, given: float) -> float:
        if holdout is None:
            return given
        truth = np.array([holdout[number] for number in numbers[is_holdout]])
        return precise_threshold(signed[is_holdout], truth != labels[is_holdout])

    scorer = label_filter.scores("scorer", trainable, 0)
    tau_1 = threshold(scorer, args.tau_1)
    agreed = trainable & confident(scorer, tau_1)
    counts = args.num_extremes or [round(args.keep_share * trainable.sum())]
    counts = (counts[0], counts[-1])

    def judge(pool: str, cross_fit: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        """Mean opinion of the judges, where all are sure of the label, where all are sure of the other, tau_2."""
        ensemble, seen = label_filter.ensemble(f"on-{pool}", {"all": trainable, "agreed": agreed}[pool])
        barred = seen if cross_fit else np.zeros_like(seen)
        doubt = least_confident(ensemble, barred)
        tau_2 = threshold(doubt, args.tau_2)
        contradicting = trainable & confident(least_confident(-ensemble, barred), tau_2)
        mean = np.ma.masked_array(ensemble, barred).mean(axis=0).filled(-np.inf)
        return mean, agreed & confident(doubt, tau_2), contradicting, tau_2

    def surest(strength: np.ndarray, passed: np.ndarray) -> np.ndarray:
        left = [int((passed & (labels == label)).sum()) for label in (0, 1)]
        # How many the user asked for must be there; a share is taken of what is.
        wanted = counts if args.num_extremes else (min(counts[0], left[0]), min(counts[1], left[1]))
        return most_extreme(strength, labels, passed, wanted)

    def surest_share(strength: np.ndarray, passed: np.ndarray) -> np.ndarray:
        """As many of each side as were kept, or all that are left, for comparison."""
        sides = [np.flatnonzero(passed & (labels == label)) for label in (0, 1)]
        chosen = [
            side[np.argsort(-strength[side])[: (kept & (labels == label)).sum()]] for label, side in enumerate(sides)
        ]
        return np.isin(np.arange(len(labels)), np.concatenate(chosen))

    mean, unanimous, contradicting, tau_2 = judge(args.ensemble_pool, args.cross_fit)
    kept = surest(mean, unanimous)
    record: dict[str, Any] = {
        "by": "labels",
        "scorer": {"model": args.scorer_model, "steps": args.max_train_steps, "seed": args.seed},
        "ensemble_size": args.ensemble_size,
        "ensemble_pool": args.ensemble_pool,
        "cross_fit": args.cross_fit,
        "tau_1": tau_1,
        "tau_2": tau_2,
        "thresholds_from_holdout": holdout is not None,
        "num_images": {
            "source": len(dataset),
            "without label": int((labels < 0).sum()),
            "held out": int(is_holdout.sum()),
            "scorer agrees": int(agreed.sum()),
            "ensemble agrees": int(unanimous.sum()),
            "most extreme": int(kept.sum()),
        },
        "num_per_label": [int((kept & (labels == label)).sum()) for label in (0, 1)],
        "num_contradicting": int(contradicting.sum()),
    }
    if f"factor_{attribute}" in dataset.column_names:
        factor = np.asarray(dataset[f"factor_{attribute}"])
        leaks = {
            "labels alone": trainable,
            "scorer, thresholds": agreed,
            "scorer, surest": surest_share(scorer, agreed),
        }
        for pool in ("agreed", "all") if args.compare else (args.ensemble_pool,):
            for cross_fit in (False, True):
                strength, passed, _, _ = judge(pool, cross_fit)
                name = f"ensemble on {pool}{', cross-fitted' if cross_fit else ''}"
                leaks |= {f"{name}, thresholds": passed, f"{name}, surest": surest_share(strength, passed)}
        record["leak"] = {name: leak(factor[mask], args.delta) for name, mask in leaks.items()}
        truly = trainable & ((factor <= args.delta) | (factor >= 1 - args.delta))
        record["share_of_truly_extreme_kept"] = float(kept[truly].sum() / truly.sum())
    return Selection(kept, labels, np.where(labels == 1, mean, -mean), contradicting, record)
