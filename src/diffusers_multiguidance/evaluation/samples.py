"""What a report is about: images that are there already, or those that a pipeline is asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..data.load import load_pixels
from ..generate import generate
from ..guidance import Target
from .artefacts import TrajectoryVariance
from .control import TARGETS

SPREAD = 200  # images of a batch over which "uniform" is spread: many for an even spread, few for the memory
FEWEST_STEPS = 4  # of which two are late enough for the trajectory variance
RECORDED = ("pipeline", "target", "scheduler", "num_inference_steps", "guidance_scale", "guidance_interval", "seed")


@dataclass
class Samples:
    """Images, and how they came about.

    Attributes:
        batches: (N, H, W, C) uint8 by name.
        sweep: (T, N, H, W, C) uint8, for each of `control.TARGETS` images from the same N noises; None without a
            pipeline.
        variances: (N,), the trajectory variance of the images of a batch, by its name; empty without a pipeline.
        asked: what was asked for, in words and numbers, for the reader.
        remarks: sentences on what was left out.
    """

    batches: dict[str, np.ndarray]
    sweep: np.ndarray | None = None
    variances: dict[str, np.ndarray] = field(default_factory=dict)
    asked: dict[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def is_pipeline(samples: str | Path) -> bool:
    """Whether `samples` is the folder of a pipeline, or may be an id on the Hub; else it is a place of images."""
    path = Path(samples)
    may_be_id = (
        not path.exists() and not path.parent.exists() and str(samples).count("/") == 1 and path.suffix != ".npz"
    )
    return (path / "model_index.json").is_file() or may_be_id


def check_samples(samples: str | Path) -> None:
    """Raise `ValueError` for what is neither there nor may be an id on the Hub."""
    if not is_pipeline(samples) and not Path(samples).exists():
        raise ValueError(
            f"`samples` is {str(samples)!r}; expected a folder of images, an .npz file, or the folder or Hub id of a "
            "pipeline."
        )


def read_samples(samples: str | Path, channels: int | None = None) -> Samples:
    """Images of an `.npz`, of the folder that `multiguidance sample` wrote, or of any folder of images.

    Args:
        channels: see `load_pixels`.

    Raises:
        ValueError: where there are none, or of different sizes.
    """
    path = Path(samples)
    record = read_record(path)
    asked = {name: record[name] for name in RECORDED if name in record}
    images, remarks = load_pixels(path, "samples", channels=channels)
    return Samples({"samples": images}, asked=asked, remarks=remarks)


def read_record(samples: str | Path) -> dict[str, Any]:
    """The `sample.json` that lies beside images; empty where there is none.

    Raises:
        ValueError: for a broken one.
    """
    beside = Path(samples).parent if Path(samples).name == "images.npz" else Path(samples)
    path = beside / "sample.json"
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text())
        if not isinstance(record, dict):
            raise ValueError("no JSON object")
        return record
    except (OSError, ValueError) as error:
        raise ValueError(f"`{path}` can't be read ({error}); expected what `multiguidance sample` writes.") from error


def batch_targets(
    attribute: str, second_attribute: str | None, target: dict[str, Target]
) -> dict[str, dict[str, Target] | None]:
    """What a report asks of a pipeline, by the name of the batch."""
    targets: dict[str, dict[str, Target] | None] = {
        "unguided": None,
        "guided": target,
        "uniform": {attribute: "uniform"},
    }
    if second_attribute is not None:
        targets["square"] = {attribute: "uniform", second_attribute: "uniform"}
    return targets


def sample_pipeline(
    pipeline: Any,
    attribute: str,
    num_images: int,
    targets: Mapping[str, dict[str, Target] | None],
    seed: int = 0,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
) -> Samples:
    """What a report wants to see of a pipeline: the batches, and a sweep of one attribute.

    Args:
        num_images: of each batch; a tenth as many noises are swept over `control.TARGETS`, at least two.
        targets: see `batch_targets`.
    """
    unguided: dict[str, Any] = {"num_inference_steps": num_inference_steps}
    call = {**unguided, "guidance_scale": guidance_scale}
    resolved = pipeline.resolve_call(num_inference_steps, guidance_scale)
    batches, variances = {}, {}
    for name, aims in targets.items():
        variance = TrajectoryVariance() if resolved["num_inference_steps"] >= FEWEST_STEPS else None
        batch_size = SPREAD if "uniform" in (aims or {}).values() else 64
        guided = {"target": aims, **call} if aims else unguided
        batches[name] = generate(pipeline, num_images, seed, batch_size, name, variance, **guided)
        if variance is not None:
            variances[name] = variance.scores()
    count = max(2, num_images // 10)
    sweep = [
        generate(pipeline, count, seed + 1, description=f"target {aim}", target={attribute: float(aim)}, **call)
        for aim in TARGETS
    ]
    return Samples(batches, np.stack(sweep), variances, {"target": targets["guided"], **resolved, "seed": seed})
