"""How few steps are enough: quality and time of each sampler and number of steps, all in one run.

    python benchmarks/steps.py pipelines/circles-drawn --attribute position --out runs/benchmarks/steps

Quality is that of the middle (share in the gap at 0.5, malformed) and of the whole range (`target="uniform"`, KLD).
A row is SAMPLER:STEPS, with :SCALE where it is not the pipeline's, and a further :N asks the classifiers at every N-th
step only and follows their last answer in between. Calibrate every row before, `multiguidance calibrate PIPELINE
--sampler ... --num-inference-steps ...`: a row without calibration says so. Writes `steps.json` and `steps.png`.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import torch
import typer
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from diffusers_multiguidance.cli import MeasureName, load_pipeline
from diffusers_multiguidance.evaluation.evaluators import load_measure
from diffusers_multiguidance.evaluation.uniformity import kld_floor, kld_to_uniform, share_in_gap, share_malformed
from diffusers_multiguidance.utils.files import add_to_folder
from diffusers_multiguidance.generate import generate
from diffusers_multiguidance.guidance import guidance_gradient
from diffusers_multiguidance.pipelines import multiguidance_ddpm

ROWS = ["ddpm:250", "ddpm:50", "ddpm:20", "sde-dpmsolver++:20", "sde-dpmsolver++:10", "dpmsolver++:20", "ddim:20"]


def every_nth(n: int) -> Callable[..., torch.Tensor]:
    """`guidance_gradient` at the guided steps 0, n, 2 n, ... of a batch, and in between what it was last."""
    last: dict[str, Any] = {}

    def gradient(classifiers: Any, x_t: torch.Tensor, timestep: torch.Tensor, weights: Any) -> torch.Tensor:
        if last.get("weights") is not weights:  # of another batch
            last.update(weights=weights, asked=0)
        if last["asked"] % n == 0:
            last["gradient"] = guidance_gradient(classifiers, x_t, timestep, weights)
        last["asked"] += 1
        return last["gradient"]

    return gradient


def save_plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Each figure against seconds per image, one colour a sampler."""
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, name in zip(panels, ("share_in_gap", "share_malformed", "kld"), strict=True):
        for sampler in dict.fromkeys(row["sampler"] for row in rows):
            points = sorted((row["seconds_per_image"], row[name]) for row in rows if row["sampler"] == sampler)
            axes.plot(*zip(*points, strict=True), "o", label=sampler)
        axes.set(xlabel="seconds per image", ylabel=name.replace("_", " "), xscale="log")
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=120)


def main(
    pipeline: Path,
    out: Annotated[Path, typer.Option()],
    attribute: Annotated[str, typer.Option()],
    measure: MeasureName = None,
    row: Annotated[list[str], typer.Option(metavar="SAMPLER:STEPS[:SCALE[:N]]", help="Repeatable.")] = ROWS,
    guidance_interval: Annotated[tuple[float, float] | None, typer.Option(help="Of all rows.")] = None,
    num_images: Annotated[int, typer.Option(help="At 0.5, and as many for 'uniform'.")] = 500,
    bins: Annotated[int, typer.Option(help="Of the KLD.")] = 20,
    seed: Annotated[int, typer.Option()] = 2000,
) -> None:
    loaded, measured = load_pipeline(pipeline), load_measure(measure or attribute)
    rows: list[dict[str, Any]] = []
    table = Table(
        "sampler",
        "steps",
        "calibrated",
        "in the gap",
        "malformed",
        f"KLD, {bins} bins",
        "s / image",
        title=str(pipeline),
    )
    for name in row:
        sampler, steps, scale, n = [*name.split(":"), "", ""][:4]
        call: dict[str, Any] = {"sampler": sampler, "num_inference_steps": int(steps)}
        call["guidance_scale"] = float(scale) if scale else None
        call["guidance_interval"] = guidance_interval
        with (
            warnings.catch_warnings(record=True) as caught,
            patch.object(multiguidance_ddpm, "guidance_gradient", every_nth(int(n or 1))),
        ):
            warnings.simplefilter("always")
            started = time.monotonic()
            middle = generate(loaded, num_images, seed, description=f"{name}, 0.5", target={attribute: 0.5}, **call)
            # One batch, so that its targets are stratified over all images.
            spread = generate(
                loaded, num_images, seed, num_images, f"{name}, uniform", target={attribute: "uniform"}, **call
            )
            seconds = (time.monotonic() - started) / (2 * num_images)
        values, covered = measured(middle), measured(spread)
        rows.append(
            {
                "row": name,
                **call,
                "calibrated": not any("no calibration" in str(warning.message) for warning in caught),
                "share_in_gap": share_in_gap(values),
                "share_malformed": share_malformed(values),
                "kld": kld_to_uniform(covered, bins),
                "kld_floor": kld_floor(num_images, bins),
                "share_malformed_uniform": share_malformed(covered),
                "seconds_per_image": seconds,
            }
        )
        figures = [rows[-1][key] for key in ("share_in_gap", "share_malformed", "kld", "seconds_per_image")]
        table.add_row(
            sampler, name.partition(":")[2], str(rows[-1]["calibrated"]), *(f"{figure:.3f}" for figure in figures)
        )
    Console().print(table)
    with add_to_folder(out) as folder:
        (folder / "steps.json").write_text(json.dumps(rows, indent=2) + "\n")
        save_plot(rows, folder / "steps.png")


if __name__ == "__main__":
    typer.run(main)
