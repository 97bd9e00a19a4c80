"""Share of samples in the gap: unguided, guided, and by one classifier at a time.

    python benchmarks/interpolation.py pipelines/circles-32 --attribute position --out runs/benchmarks/circles-32
    python benchmarks/interpolation.py pipelines/faces-rendered --attribute Smiling --num-images 500 \\
        --num-classifiers 0 --out runs/benchmarks/faces-rendered

Writes `interpolation.json`, the images and a grid of them per row, and `histogram.png` over all rows.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from diffusers_multiguidance.cli import EvaluatorName, SchedulerName
from diffusers_multiguidance.evaluation.batch import Evaluation
from diffusers_multiguidance.evaluation.evaluators import find_evaluator, load_evaluator
from diffusers_multiguidance.evaluation.fidelity import class_probabilities, share_recognized
from diffusers_multiguidance.evaluation.summary import save_histogram
from diffusers_multiguidance.evaluation.uniformity import GAP
from diffusers_multiguidance.generate import generate, load_pipeline
from diffusers_multiguidance.models import NoisyClassifierSet
from diffusers_multiguidance.utils.files import add_to_folder
from diffusers_multiguidance.utils.grids import image_grid, to_pil
from record import save_results


def main(
    pipeline: Path,
    out: Annotated[Path, typer.Option()],
    attribute: Annotated[str, typer.Option()],
    evaluator: EvaluatorName = None,
    num_images: Annotated[int, typer.Option()] = 1000,
    num_classifiers: Annotated[int, typer.Option(help="How many single members to measure.")] = 5,
    target: Annotated[float, typer.Option()] = 0.5,
    gap: Annotated[tuple[float, float], typer.Option(help="The values that training did not show.")] = GAP,
    scheduler: SchedulerName = None,
    recognizer: Annotated[Path | None, typer.Option(help="Also measure how many images it recognises.")] = None,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    loaded = load_pipeline(pipeline, scheduler)
    classifiers = loaded.classifiers
    evaluation = Evaluation(load_evaluator(evaluator or find_evaluator(pipeline, attribute)), gap)
    rows: dict[str, Any] = {"unguided": None, "guided": None}
    # The single classifiers are the set's members, which differ in nothing but their seed.
    for number, member in enumerate([] if classifiers is None else classifiers.members[:num_classifiers]):
        rows[f"classifier {number}"] = NoisyClassifierSet.from_members([member])

    results: dict[str, Any] = {}
    values = {}
    for name, guides in rows.items():
        started = time.monotonic()
        call: dict[str, Any] = {} if name == "unguided" else {"target": {attribute: target}}
        if guides is not None:
            loaded.classifiers = guides
            call["guidance_scale"] = loaded.resolve_call()["guidance_scale"] / 2  # the default is for the set
            call["calibration"] = None  # it was measured with the set
        images = generate(loaded, num_images, seed, description=name, **call)
        seconds = time.monotonic() - started
        found = evaluation(images, name)
        values[name] = found.values
        with add_to_folder(out / name.replace(" ", "-")) as folder:
            results[name] = {**found.figures["summary"], "seconds": round(seconds, 1)}
            image_grid(to_pil(images[:256])).save(folder / "grid.png")
            np.savez_compressed(folder / "images.npz", images=images)
        if recognizer is not None:
            results[name]["share_recognized"] = share_recognized(class_probabilities(recognizer, images))
        print(name, results[name])
    singles = [result for name, result in results.items() if name.startswith("classifier")]
    for figure in ("share_in_gap", "share_malformed"):
        shares = [single[figure] for single in singles]
        if shares[1:]:
            results[f"one classifier, {figure}, mean"] = float(np.mean(shares))
            results[f"one classifier, {figure}, standard deviation"] = float(np.std(shares, ddof=1))
    with add_to_folder(out) as folder:
        save_results(folder / "interpolation.json", {"call": loaded.resolve_call(), **results})
        shown = {name: values[name] for name in ("unguided", "guided")}
        save_histogram(shown, attribute, folder / "histogram.png", gap)


if __name__ == "__main__":
    typer.run(main)
