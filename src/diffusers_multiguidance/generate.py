"""Many images from a pipeline, batch by batch, each from its own random generator."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .denoising import DenoisingStep
from .pipelines import MultiGuidanceCFGPipeline, MultiGuidanceDDPMPipeline
from .schedulers import create_scheduler
from .utils.seeds import stream_seed


def load_pipeline(pipeline: str | Path, scheduler: str | None = None) -> MultiGuidanceDDPMPipeline:
    """A pipeline ready to sample, from a folder or the Hub, on a GPU where there is one.

    Args:
        scheduler: short name of the one to sample with, see `schedulers.SCHEDULERS`; the pipeline's own unless given.
    """
    try:
        class_name = DiffusionPipeline.load_config(str(pipeline)).get("_class_name")
    except (OSError, AttributeError):
        class_name = None  # `from_pretrained` says what is wrong
    is_cfg = MultiGuidanceCFGPipeline.__name__ in (class_name if isinstance(class_name, list) else [class_name])
    pipeline_class = MultiGuidanceCFGPipeline if is_cfg else MultiGuidanceDDPMPipeline
    loaded = pipeline_class.from_pretrained(pipeline)
    if scheduler is not None:
        loaded.scheduler = create_scheduler(scheduler, loaded.scheduler)
    loaded.set_progress_bar_config(disable=True)  # `generate` has one over all batches
    return loaded.to("cuda" if torch.cuda.is_available() else "cpu")


def image_generators(seed: int, start: int, count: int) -> list[torch.Generator]:
    """Generators of the images number `start` to `start + count - 1` of a seed, whatever batch they are drawn in."""
    return [torch.Generator().manual_seed(stream_seed(seed, number)) for number in range(start, start + count)]


def generate(
    pipeline: Any,
    num_images: int,
    seed: int = 0,
    batch_size: int = 64,
    description: str = "images",
    watch: Callable[[DenoisingStep], None] | None = None,
    **call: Any,
) -> np.ndarray:
    """Generate `num_images` with a progress bar and its time left.

    Args:
        pipeline: a `MultiGuidanceDDPMPipeline`.
        watch: shown every step of every batch, as `evaluation.artefacts.TrajectoryVariance` wants to see them.
        call: further arguments of the pipeline's call, the same for every batch.

    Returns:
        (num_images, H, W, C) uint8.

    Raises:
        ValueError: for less than one image, a negative seed, or what the pipeline's call refuses.
    """
    if num_images < 1:
        raise ValueError(f"`num_images` is {num_images}; expected at least 1.")
    if seed < 0:
        raise ValueError(f"`seed` is {seed}; expected at least 0.")
    starts = range(0, num_images, batch_size)
    images = []
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    ) as progress:
        task = progress.add_task(f"{description} (steps)", total=None)
        for start in starts:
            count = min(batch_size, num_images - start)
            for step in pipeline.denoise(count, generator=image_generators(seed, start, count), **call):
                if watch is not None:
                    watch(step)
                progress.update(task, total=len(starts) * step.total, advance=1)
            batch, _ = pipeline.finish(step.sample, "np")
            images.append((batch * 255).round().astype(np.uint8))
    return np.concatenate(images)
