"""Two attributes at once: how much of their square do images cover that are spread over it evenly?

    python benchmarks/square.py pipelines/circles-32-two-attributes --attributes position height --out runs/square

Counts the cells of a 10 x 10 grid that hold an image, as `multiguidance evaluate --second-attribute` does, but samples
nothing else. A single four-class classifier of the corners (paper, section 6)
aims by shares of its classes: give `--corner` and the attributes that its corners are made of, the first one changing
slower. Writes `square.json`, `heat_map.png` and `cells.png` (an image for each cell, if there is).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from diffusers_multiguidance.cli import SchedulerName
from diffusers_multiguidance.evaluation.evaluators import find_evaluator, load_evaluator
from diffusers_multiguidance.evaluation.heat_map import CELLS, by_cell, save_heat_maps, square_figures
from diffusers_multiguidance.evaluation.samples import SPREAD
from diffusers_multiguidance.generate import generate, load_pipeline
from diffusers_multiguidance.utils.files import add_to_folder
from diffusers_multiguidance.utils.grids import image_grid, to_pil
from record import save_results


def draw_by_corner(loaded: Any, attribute: str, num_images: int, seed: int, call: dict[str, Any]) -> np.ndarray:
    """Images for the middle of every cell: the corners' shares are those of two independent attributes."""
    middles = (np.arange(CELLS) + 0.5) / CELLS
    names = loaded.attributes[attribute]
    batches = []
    for number, (first, second) in enumerate((a, b) for a in middles for b in middles):
        shares = np.outer((1 - first, first), (1 - second, second)).ravel()
        target = {attribute: dict(zip(names, shares.tolist(), strict=True))}
        batches.append(
            generate(
                loaded, num_images // CELLS**2, seed + number, description=f"cell {number}", target=target, **call
            )
        )
    return np.concatenate(batches)


def main(
    pipeline: Path,
    out: Annotated[Path, typer.Option()],
    attributes: Annotated[tuple[str, str], typer.Option()],
    evaluators: Annotated[tuple[str, str] | None, typer.Option(help="The pipeline's own unless given.")] = None,
    corner: Annotated[str | None, typer.Option(help="The attribute of a four-class classifier.")] = None,
    num_images: Annotated[int, typer.Option()] = 2000,
    scheduler: SchedulerName = None,
    num_inference_steps: Annotated[int | None, typer.Option()] = None,
    guidance_scale: Annotated[float | None, typer.Option()] = None,
    seed: Annotated[int, typer.Option()] = 3000,
) -> None:
    loaded = load_pipeline(pipeline, scheduler)
    names = evaluators or [find_evaluator(pipeline, attribute) for attribute in attributes]
    call: dict[str, Any] = {
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
    }
    started = time.monotonic()
    if corner:
        images = draw_by_corner(loaded, corner, num_images, seed, call)
    else:
        # Every batch is spread over the whole square by itself.
        target = dict.fromkeys(attributes, "uniform")
        images = generate(loaded, num_images, seed, SPREAD, "uniform", target=target, **call)
    seconds = time.monotonic() - started
    values = np.stack([load_evaluator(name)(images) for name in names])
    results = {
        "call": loaded.resolve_call(num_inference_steps, guidance_scale),
        **square_figures(values),
        "seconds_per_image": seconds / len(images),
    }
    with add_to_folder(out) as folder:
        save_results(folder / "square.json", results)
        save_heat_maps({"uniform": values}, attributes, folder / "heat_map.png")
        image_grid(to_pil(by_cell(images, values)), columns=CELLS).save(folder / "cells.png")


if __name__ == "__main__":
    typer.run(main)
