"""What brings images nearer to their targets at equal cost: more steps, a choice, Langevin corrector steps, particles.

    python benchmarks/narrow.py pipelines/circles-drawn --attribute position --out runs/benchmarks/narrow

Each way costs two or four times what its base does, ancestral steps. Nothing is calibrated:
targets are set points. Writes `narrow.json`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from diffusers_multiguidance.cli import MeasureName, load_pipeline
from diffusers_multiguidance.diffusion import GaussianDiffusion
from diffusers_multiguidance.evaluation.evaluators import load_measure
from diffusers_multiguidance.utils.files import add_to_folder
from diffusers_multiguidance.generate import image_generators
from diffusers_multiguidance.guidance import guidance_gradient, is_guided, weights_from_target
from targets import TARGETS, figures

Callback = Callable[[Any, int, int, dict[str, torch.Tensor]], dict[str, torch.Tensor]]
RESAMPLED_EVERY = 5  # steps
SHOWN = ("share_near", "share_malformed", "mean_absolute_error", "seconds_per_image")


@torch.no_grad()
def nearest(loaded: Any, images: np.ndarray, attribute: str, aim: float, count: int) -> np.ndarray:
    """Of images (N, H, W, C), the one of every N / count neighbours whose probability is nearest to the target."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    probability = loaded.classifiers(pixels, 0).logits[attribute].softmax(dim=1)[:, 1].numpy()
    chosen = np.abs(probability - aim).reshape(count, -1).argmin(axis=1)
    return images.reshape(count, -1, *images.shape[1:])[np.arange(count), chosen]


def langevin(
    diffusion: GaussianDiffusion, guide: dict[str, Any], interval: tuple[float, float], noise: torch.Generator
) -> Callback:
    """One corrector step after each guided step (Du et al. 2023), with as much noise as the next ancestral step."""

    def correct(pipe: Any, step: int, timestep: int, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        x_t, index = tensors["sample"], len(diffusion) - 2 - step
        if index < 0 or not is_guided(step, len(diffusion), interval):
            return {}
        t = diffusion.timesteps[index]
        moments = diffusion.p_mean_variance(pipe.unet(x_t, t).sample, x_t, index)
        abar = diffusion.alphas_cumprod[index].float()
        score = (abar.sqrt() * moments.pred_x0 - x_t) / (1 - abar)
        weights = weights_from_target(pipe.attributes, batch_size=len(x_t), **guide)
        score = score + guidance_gradient(pipe.classifiers, x_t, t, weights)
        fresh = torch.randn(x_t.shape, generator=noise)
        return {"sample": x_t + moments.variance / 2 * score + moments.variance.sqrt() * fresh}

    return correct


def particles(
    diffusion: GaussianDiffusion,
    guide: dict[str, Any],
    interval: tuple[float, float],
    noise: torch.Generator,
    group: int,
) -> Callback:
    """Every few guided steps, each of `group` neighbours is replaced by one of them, drawn by exp(objective)."""

    def resample(pipe: Any, step: int, timestep: int, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        x_t, index = tensors["sample"], len(diffusion) - 2 - step
        if index < 0 or step % RESAMPLED_EVERY or not is_guided(step, len(diffusion), interval):
            return {}
        weights = weights_from_target(pipe.attributes, batch_size=len(x_t), **guide)
        logits = pipe.classifiers(x_t, diffusion.timesteps[index]).logits
        objective = sum((weights[name] * logits[name].log_softmax(dim=1)).sum(dim=1) for name in weights)
        chosen = torch.multinomial(objective.reshape(-1, group).softmax(dim=1), group, True, generator=noise)
        first = torch.arange(0, len(x_t), group)[:, None]
        return {"sample": x_t[(first + chosen).flatten()]}

    return resample


def main(
    pipeline: Path,
    out: Annotated[Path, typer.Option()],
    attribute: Annotated[str, typer.Option()],
    measure: MeasureName = None,
    num_images: Annotated[int, typer.Option(help="For each of nine targets.")] = 20,
    num_inference_steps: Annotated[int, typer.Option(help="Of the base.")] = 25,
    seed: Annotated[int, typer.Option()] = 3000,
) -> None:
    loaded, measured = load_pipeline(pipeline), load_measure(measure or attribute)
    interval = tuple(loaded.config["default_guidance_interval"])
    scale = loaded.config["default_guidance_scale"]
    base = num_inference_steps
    # Name: steps, images drawn for each that is kept, what happens between the steps.
    ways: dict[str, tuple[int, int, Callable[..., Callback] | None]] = {
        f"{base} steps": (base, 1, None),
        f"{2 * base} steps": (2 * base, 1, None),
        "best of 2": (base, 2, None),
        "Langevin corrector": (base, 1, langevin),
        "2 particles": (base, 2, partial(particles, group=2)),
        f"{4 * base} steps": (4 * base, 1, None),
        f"{2 * base} steps, best of 2": (2 * base, 2, None),
        "best of 4": (base, 4, None),
        "4 particles": (base, 4, partial(particles, group=4)),
    }
    loaded.set_progress_bar_config(disable=True)
    results: dict[str, Any] = {}
    table = Table("", *(name.replace("_", " ") for name in SHOWN), title=str(pipeline))
    for name, (steps, draw, between) in ways.items():
        diffusion = GaussianDiffusion.from_scheduler(loaded.scheduler, steps)
        started = time.monotonic()
        batches = []
        for number, aim in enumerate(track(TARGETS, name)):
            target = {attribute: float(aim)}
            call: dict[str, Any] = {"sampler": "ddpm", "num_inference_steps": steps, "guidance_scale": scale}
            call["calibration"] = None
            if between is not None:
                guide = {"target": target, "guidance_scale": scale}
                noise = torch.Generator().manual_seed(seed + number)
                call["callback_on_step_end"] = between(diffusion, guide, interval, noise)
            generators = image_generators(seed + number, 0, draw * num_images)
            drawn = loaded(draw * num_images, generator=generators, target=target, output_type="np", **call).images
            batches.append(nearest(loaded, (drawn * 255).round().astype(np.uint8), attribute, float(aim), num_images))
        seconds = time.monotonic() - started
        obtained = np.stack([measured(images) for images in batches])
        results[name] = {**figures(obtained), "seconds_per_image": seconds / obtained.size}
        table.add_row(name, *(f"{results[name][figure]:.3f}" for figure in SHOWN))
    Console().print(table)
    with add_to_folder(out) as folder:
        (folder / "narrow.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
