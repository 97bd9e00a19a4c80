"""Requested against obtained: how near the target images come, and how evenly "uniform" covers the range.

    python benchmarks/targets.py pipelines/circles-32-exact --attribute position --out runs/benchmarks/targets
    python benchmarks/targets.py pipelines/digits-exact --attribute thickness --num-images 50 --num-uniform 0 \\
        --recognizer runs/digits/evaluator/evaluator --out runs/benchmarks/thickness-exact

Writes `targets.json`, `targets.png` (values by target) and `sweep.png` (eight images a target).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from diffusers_multiguidance.cli import EvaluatorName, SchedulerName
from diffusers_multiguidance.evaluation.control import TARGETS, control_figures, save_control_plot
from diffusers_multiguidance.evaluation.evaluate import for_json
from diffusers_multiguidance.evaluation.evaluators import find_evaluator, load_evaluator
from diffusers_multiguidance.evaluation.fidelity import class_probabilities, share_recognized
from diffusers_multiguidance.evaluation.summary import summarize
from diffusers_multiguidance.evaluation.uniformity import kld_floor, kld_to_uniform, mse_floor, mse_to_uniform
from diffusers_multiguidance.generate import generate, load_pipeline
from diffusers_multiguidance.utils.files import add_to_folder
from diffusers_multiguidance.utils.grids import image_grid, to_pil
from record import save_results


def main(
    pipeline: Path,
    out: Annotated[Path, typer.Option()],
    attribute: Annotated[str, typer.Option()],
    evaluator: EvaluatorName = None,
    num_images: Annotated[int, typer.Option(help="For each target.")] = 100,
    num_uniform: Annotated[int, typer.Option(help="Images for 'uniform'; 0 leaves it out.")] = 1000,
    scheduler: SchedulerName = None,
    num_inference_steps: Annotated[int | None, typer.Option()] = None,
    guidance_scale: Annotated[float | None, typer.Option()] = None,
    bins: Annotated[int, typer.Option(help="Of the KLD and MSE of 'uniform'.")] = 20,
    recognizer: Annotated[Path | None, typer.Option(help="Also measure how many images it recognises.")] = None,
    seed: Annotated[int, typer.Option()] = 1000,
) -> None:
    loaded = load_pipeline(pipeline, scheduler)
    evaluate = load_evaluator(evaluator or find_evaluator(pipeline, attribute))
    call: dict[str, Any] = {
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
    }
    started = time.monotonic()
    batches = []
    for number, aim in enumerate(TARGETS):
        target = {attribute: float(aim)}
        batches.append(generate(loaded, num_images, seed + number, description=f"target {aim}", target=target, **call))
    seconds = time.monotonic() - started
    obtained = np.stack([evaluate(images) for images in batches])
    results: dict[str, Any] = {
        "call": loaded.resolve_call(num_inference_steps, guidance_scale),
        "num_images": num_images,
        **control_figures(obtained),
    }
    results["seconds_per_image"] = seconds / obtained.size
    if recognizer is not None:
        shares = [share_recognized(class_probabilities(recognizer, images)) for images in batches]
        results["share_recognized"] = float(np.mean(shares))
        results["share_recognized_by_target"] = dict(zip(map(str, TARGETS), shares, strict=True))
    results["values"] = [for_json(row) for row in obtained]
    if num_uniform:
        # One batch, so that its targets are stratified over all images.
        images = generate(loaded, num_uniform, seed, num_uniform, "uniform", target={attribute: "uniform"}, **call)
        values = evaluate(images)
        count = int((~np.isnan(values)).sum())
        results["uniform"] = {
            **summarize(values),
            "values": for_json(values),
            f"kld_{bins}_bins": kld_to_uniform(values, bins),
            f"kld_floor_{bins}_bins": kld_floor(count, bins),
            f"mse_{bins}_bins": mse_to_uniform(values, bins),
            f"mse_floor_{bins}_bins": mse_floor(count, bins),
        }
    with add_to_folder(out) as folder:
        save_results(folder / "targets.json", results)
        save_control_plot(obtained, attribute, folder / "targets.png")
        shown = np.concatenate([images[:8] for images in batches])
        image_grid(to_pil(shown), columns=8).save(folder / "sweep.png")


if __name__ == "__main__":
    typer.run(main)
