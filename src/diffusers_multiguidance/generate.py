"""Many images from a pipeline, batch by batch, each from its own random generator."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .utils.seeds import stream_seed


def image_generators(seed: int, start: int, count: int) -> list[torch.Generator]:
    """Generators of the images number `start` to `start + count - 1` of a seed, whatever batch they are drawn in."""
    return [torch.Generator().manual_seed(stream_seed(seed, number)) for number in range(start, start + count)]


def generate(
    pipeline: Any, num_images: int, seed: int = 0, batch_size: int = 64, description: str = "images", **call: Any
) -> np.ndarray:
    """Draw `num_images` with a progress bar and its time left.

    Args:
        pipeline: a `MultiGuidanceDDPMPipeline`.
        call: further arguments of the pipeline's call, the same for every batch.

    Returns:
        (num_images, H, W, C) uint8.
    """
    if num_images < 1:
        raise ValueError(f"`num_images` is {num_images}; expected at least 1.")
    if seed < 0:
        raise ValueError(f"`seed` is {seed}; expected at least 0.")
    pipeline.set_progress_bar_config(disable=True)
    starts = range(0, num_images, batch_size)
    images = []
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    ) as progress:
        num_steps = call.get("num_inference_steps") or pipeline.config["default_num_inference_steps"]
        task = progress.add_task(f"{description} (steps)", total=len(starts) * num_steps)

        def advance(pipeline: Any, step: int, timestep: int, tensors: dict[str, torch.Tensor]) -> None:
            progress.advance(task)

        for start in starts:
            count = min(batch_size, num_images - start)
            batch = pipeline(
                count,
                generator=image_generators(seed, start, count),
                output_type="np",
                callback_on_step_end=advance,
                **call,
            ).images
            images.append((batch * 255).round().astype(np.uint8))
    return np.concatenate(images)
