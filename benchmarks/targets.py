"""Requested against obtained: how near the target images come, and how evenly "uniform" covers the range.

    python benchmarks/targets.py pipelines/circles --attribute position --out runs/benchmarks/targets
    python benchmarks/targets.py pipelines/digits-drawn --attribute thickness --num-images 50 --num-uniform 0 \\
        --evaluator runs/digits/evaluator/evaluator --out runs/benchmarks/thickness-drawn

Writes `targets.json`, `targets.png` (obtained strength by target) and `sweep.png` (eight images a target).
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from diffusers_multiguidance.cli import MeasureName, SamplerName, load_pipeline
from diffusers_multiguidance.evaluation.evaluators import load_measure
from diffusers_multiguidance.evaluation.fidelity import class_probabilities, share_recognized
from diffusers_multiguidance.evaluation.report import summarize
from diffusers_multiguidance.evaluation.uniformity import kld_floor, kld_to_uniform, mse_floor, mse_to_uniform
from diffusers_multiguidance.utils.files import add_to_folder
from diffusers_multiguidance.generate import generate
from diffusers_multiguidance.utils.images import image_grid, to_pil

TARGETS = np.round(np.arange(0.1, 0.95, 0.1), 1)
NEAR = 0.05


def figures(obtained: np.ndarray) -> dict[str, Any]:
    """Of strengths (9, N), NaN where malformed: a malformed image is not near its target."""
    error = np.abs(obtained - TARGETS[:, None])
    near = (error <= NEAR).mean(axis=1)  # NaN compares as False
    known = ~np.isnan(obtained)
    requested = np.broadcast_to(TARGETS[:, None], obtained.shape)
    return {
        "share_near": float(near.mean()),
        "share_near_at_worst_target": float(near.min()),
        "share_near_by_target": dict(zip(map(str, TARGETS), near.round(4).tolist(), strict=True)),
        "share_malformed": float((~known).mean()),
        "rank_correlation": float(spearmanr(requested[known], obtained[known]).statistic),
        "mean_absolute_error": float(error[known].mean()),
        "mean_error_of_means": float(np.abs(np.nanmean(obtained, axis=1) - TARGETS).mean()),
        "mean_by_target": np.nanmean(obtained, axis=1).round(4).tolist(),
        "standard_deviation_by_target": np.nanstd(obtained, axis=1).round(4).tolist(),
    }


def rounded(values: np.ndarray) -> list[float | None]:
    """For JSON, which knows no NaN."""
    return [None if np.isnan(value) else round(float(value), 4) for value in values]


def save_plot(obtained: np.ndarray, attribute: str, path: Path) -> None:
    figure = Figure(figsize=(5, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.plot((0, 1), (0, 1), color="0.85")
    kept = [row[~np.isnan(row)] for row in obtained]
    axes.boxplot(kept, positions=TARGETS, widths=0.05, sym=".", manage_ticks=False)
    axes.set(xlabel="target", ylabel=f"measured {attribute}", xlim=(0, 1), ylim=(0, 1))
    figure.savefig(path, dpi=120)


def main(
    pipeline: Path,
    out: Annotated[Path, typer.Option()],
    attribute: Annotated[str, typer.Option()],
    measure: MeasureName = None,
    num_images: Annotated[int, typer.Option(help="For each target.")] = 100,
    num_uniform: Annotated[int, typer.Option(help="Images for 'uniform'; 0 leaves it out.")] = 1000,
    sampler: SamplerName = None,
    num_inference_steps: Annotated[int | None, typer.Option()] = None,
    guidance_scale: Annotated[float | None, typer.Option()] = None,
    bins: Annotated[int, typer.Option(help="Of the KLD and MSE of 'uniform'.")] = 20,
    evaluator: Annotated[Path | None, typer.Option(help="Also measure how many images it recognises.")] = None,
    seed: Annotated[int, typer.Option()] = 1000,
) -> None:
    loaded, measured = load_pipeline(pipeline), load_measure(measure or attribute)
    call: dict[str, Any] = {
        "sampler": sampler,
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
    }
    started = time.monotonic()
    batches = []
    for number, aim in enumerate(TARGETS):
        target = {attribute: float(aim)}
        batches.append(generate(loaded, num_images, seed + number, description=f"target {aim}", target=target, **call))
    seconds = time.monotonic() - started
    obtained = np.stack([measured(images) for images in batches])
    results = {"call": call, "num_images": num_images, **figures(obtained)}
    results["seconds_per_image"] = seconds / obtained.size
    if evaluator is not None:
        shares = [share_recognized(class_probabilities(evaluator, images)) for images in batches]
        results["share_recognized"] = float(np.mean(shares))
        results["share_recognized_by_target"] = dict(zip(map(str, TARGETS), shares, strict=True))
    results["values"] = [rounded(row) for row in obtained]
    if num_uniform:
        # One batch, so that its targets are stratified over all images.
        images = generate(loaded, num_uniform, seed, num_uniform, "uniform", target={attribute: "uniform"}, **call)
        values = measured(images)
        count = int((~np.isnan(values)).sum())
        results["uniform"] = {
            **summarize(values),
            "values": rounded(values),
            f"kld_{bins}_bins": kld_to_uniform(values, bins),
            f"kld_floor_{bins}_bins": kld_floor(count, bins),
            f"mse_{bins}_bins": mse_to_uniform(values, bins),
            f"mse_floor_{bins}_bins": mse_floor(count, bins),
        }
    print(json.dumps(results, indent=2))
    with add_to_folder(out) as folder:
        (folder / "targets.json").write_text(json.dumps(results, indent=2) + "\n")
        save_plot(obtained, attribute, folder / "targets.png")
        shown = np.concatenate([images[:8] for images in batches])
        image_grid(to_pil(shown), columns=8).save(folder / "sweep.png")


if __name__ == "__main__":
    typer.run(main)
