"""The filter of the paper's appendix D.1: keep images whose noisy label a scorer, then an ensemble, is sure of.

With cross-fitting, which the paper does without, a member of the ensemble only judges images it was not trained on.
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
        args: see build_dataset.py: `tau_1`, `tau_2`, `ensemble_size`, `cross_fit`, `num_extremes`, `keep_share`.
        folder: for finished networks and scores; a killed run goes on from there.
    """
    labels = np.asarray(dataset[attribute])
    numbers = np.asarray(dataset["source_index"])
    is_holdout = np.isin(numbers, list(holdout or {}))
    trainable = (labels >= 0) & ~is_holdout
    if min(np.bincount(labels[trainable], minlength=2)) == 0:
        raise ValueError(f"`attribute` '{attribute}' has images of one label only; expected both.")

    def scores(name: str, rows: np.ndarray, seed: int) -> np.ndarray:
        path = folder / f"{name}.npy"
        if not path.exists():
            scorer = train_scorer(accelerator, dataset.select(rows), attribute, args, folder / name, seed)
            result = log_odds(accelerator, scorer, dataset, args, f"{attribute}: {name} scores")
            if accelerator.is_main_process:
                temporary = path.with_suffix(".tmp.npy")
                np.save(temporary, result)
                temporary.rename(path)
            accelerator.wait_for_everyone()
        return np.load(path)

    def holdout_threshold(signed: np.ndarray, given: float) -> float:
        if holdout is None:
            return given
        truth = np.array([holdout[number] for number in numbers[is_holdout]])
        return precise_threshold(signed[is_holdout], truth != labels[is_holdout])

    first = signed_log_odds(scores("scorer", np.flatnonzero(trainable), stream_seed(args.seed, 0)), labels)
    tau_1 = holdout_threshold(first, args.tau_1)
    agreed = trainable & confident(first, tau_1)

    # Each image is seen by the same number of members, two of five, so that cross-fitting leaves each as many judges.
    rng = np.random.default_rng((args.seed, 1))
    order = rng.permuted(np.tile(np.arange(args.ensemble_size), (len(dataset), 1)), axis=1).T
    seen = (order < max(1, args.ensemble_size // 2)) & agreed
    members = []
    for number, rows in enumerate(seen):
        if min(np.bincount(labels[rows], minlength=2)) == 0:
            raise ValueError(f"`tau_1` is {tau_1}, which leaves a member of the ensemble one label; expected a lower.")
        members.append(scores(f"member-{number}", np.flatnonzero(rows), stream_seed(args.seed, number + 1)))
    ensemble = signed_log_odds(np.stack(members), labels)
    judges = seen if args.cross_fit else np.zeros_like(seen)
    doubt = least_confident(ensemble, judges)
    tau_2 = holdout_threshold(doubt, args.tau_2)
    unanimous = agreed & confident(doubt, tau_2)
    mean = np.ma.masked_array(ensemble, judges).mean(axis=0).filled(-np.inf)
    counts = args.num_extremes or [round(args.keep_share * trainable.sum())] * 2
    if args.num_extremes is None:
        counts = [min(count, (unanimous & (labels == label)).sum()) for label, count in enumerate(counts)]
    kept = most_extreme(mean, labels, unanimous, (counts[0], counts[-1]))
    contradicting = trainable & confident(least_confident(-ensemble, judges), tau_2)

    record: dict[str, Any] = {
        "by": "labels",
        "scorer": {"model": args.scorer_model, "steps": args.max_train_steps, "seed": args.seed},
        "ensemble_size": args.ensemble_size,
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
    factor_column = f"factor_{attribute}"
    if factor_column in dataset.column_names:
        factor = np.asarray(dataset[factor_column])
        pool = {
            "scorer": (first, agreed),
            "paper's ensemble": (ensemble.mean(axis=0), agreed & confident(least_confident(ensemble), tau_2)),
            "cross-fitted ensemble": (
                np.ma.masked_array(ensemble, seen).mean(axis=0).filled(-np.inf),
                agreed & confident(least_confident(ensemble, seen), tau_2),
            ),
        }
        record["leak"] = {"labels alone": leak(factor[trainable], args.delta)}
        for name, (strength, passed) in pool.items():
            sides = [min(count, int((passed & (labels == label)).sum())) for label, count in enumerate(counts)]
            chosen = most_extreme(strength, labels, passed, (sides[0], sides[-1]))
            record["leak"][name] = {"above the thresholds": leak(factor[passed], args.delta)}
            record["leak"][name]["most extreme"] = leak(factor[chosen], args.delta)
        truly = trainable & ((factor <= args.delta) | (factor >= 1 - args.delta))
        record["leak"]["share_of_truly_extreme_kept"] = float(kept[truly].sum() / truly.sum())
    strength = np.where(labels == 1, mean, -mean)
    return Selection(kept, labels, strength, contradicting, record)
