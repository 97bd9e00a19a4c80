"""How each stock scheduler samples guided images, and in how few steps: quality and time, all in one run.

    python benchmarks/schedulers.py pipelines/circles-32-exact --attribute position --out runs/benchmarks/schedulers

A row is SCHEDULER:STEPS:SCALE[:START:END], with the guided share of the steps behind where it is not the pipeline's.
Quality is that of the middle: the share in the gap and of malformed images at 0.5, and the spread. Nothing is
calibrated, so that rows can be compared. Writes `schedulers.json`, `schedulers.png` and `grid.png` (a row each).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from diffusers_multiguidance.cli import EvaluatorName
from diffusers_multiguidance.evaluation.evaluators import find_evaluator, load_evaluator
from diffusers_multiguidance.evaluation.uniformity import share_in_gap, share_malformed
from diffusers_multiguidance.generate import generate, load_pipeline
from diffusers_multiguidance.schedulers import SCHEDULERS, create_scheduler
from diffusers_multiguidance.utils.files import add_to_folder
from diffusers_multiguidance.utils.grids import image_grid, to_pil
from record import save_results

ROWS = ["sde-dpmsolver++:20:5000"]


def save_plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Share in the gap and malformed against seconds per image, a point for each row."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, name in zip(panels, ("share_in_gap", "share_malformed"), strict=True):
        for row in rows:
            axes.plot(row["seconds_per_image"], row[name], "o", label=f"{row['scheduler']}, {row['steps']} steps")
        axes.set(xlabel="seconds per image", ylabel=name.replace("_", " "), xscale="log")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize="small")
    figure.savefig(path, dpi=120)


def main(
    pipeline: Path,
    out: Annotated[Path, typer.Option()],
    attribute: Annotated[str, typer.Option()],
    evaluator: EvaluatorName = None,
    row: Annotated[list[str], typer.Option(metavar="SCHEDULER:STEPS:SCALE[:START:END]", help="Repeatable.")] = ROWS,
    num_images: Annotated[int, typer.Option(help="For each row.")] = 200,
    target: Annotated[float, typer.Option()] = 0.5,
    seed: Annotated[int, typer.Option()] = 2000,
) -> None:
    loaded, evaluate = load_pipeline(pipeline), load_evaluator(evaluator or find_evaluator(pipeline, attribute))
    own, rows, shown = loaded.scheduler, [], []
    interval = loaded.resolve_call()["guidance_interval"]
    table = Table("scheduler", "steps", "scale", "guided", "in the gap", "malformed", "spread", "s / image")
    for name in row:
        scheduler, steps, scale, *guided = name.split(":")
        loaded.scheduler = create_scheduler(scheduler, own)
        call = {
            "num_inference_steps": int(steps),
            "guidance_scale": float(scale),
            "guidance_interval": tuple(map(float, guided)) if guided else interval,
        }
        started = time.monotonic()
        images = generate(loaded, num_images, seed, 50, name, target={attribute: target}, calibration=None, **call)
        seconds = (time.monotonic() - started) / num_images
        values = evaluate(images)
        shown.append(images[:16])
        rows.append(
            {
                "scheduler": scheduler,
                "class": SCHEDULERS[scheduler][0],
                "steps": int(steps),
                "scale": float(scale),
                "interval": list(call["guidance_interval"]),
                "share_in_gap": share_in_gap(values),
                "share_malformed": share_malformed(values),
                "standard_deviation": float(np.nanstd(values)),
                "seconds_per_image": seconds,
            }
        )
        figures = [rows[-1][key] for key in ("share_in_gap", "share_malformed", "standard_deviation")]
        cells = (scheduler, steps, scale, str(call["guidance_interval"]))
        table.add_row(*cells, *(f"{figure:.3f}" for figure in (*figures, seconds)))
    Console().print(table)
    with add_to_folder(out) as folder:
        save_results(folder / "schedulers.json", {"num_images": num_images, "target": target, "rows": rows})
        save_plot(rows, folder / "schedulers.png")
        image_grid(to_pil(np.concatenate(shown)), columns=16).save(folder / "grid.png")


if __name__ == "__main__":
    typer.run(main)
