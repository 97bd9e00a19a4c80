"""Generated photographs against real ones that training did not show: how alike, how new, how editable.

    python benchmarks/photographs.py pipelines/smiles --attribute Smiling --training runs/smiles/data \\
        --photographs SMILEsmileD/SMILEs --samples runs/benchmarks/interpolation-smiles \\
        --out runs/benchmarks/photographs-smiles

`--samples` is what interpolation.py wrote. Writes `photographs.json`, `middle.png` (100 real photographs that the
evaluator puts near the target), `guided.png`, `unguided.png`, `edited.png` (before, after) and `nearest.png`
(generated, nearest of training).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from datasets import load_from_disk
from scipy.stats import spearmanr

from diffusers_multiguidance import MultiGuidanceEditPipeline
from diffusers_multiguidance.data.load import held_out_images
from diffusers_multiguidance.data.transforms import to_pixels
from diffusers_multiguidance.evaluation.evaluators import Evaluator, find_evaluator, load_evaluator, load_network
from diffusers_multiguidance.evaluation.extractors import evaluator_extractor, load_extractor
from diffusers_multiguidance.evaluation.fidelity import kernel_distance
from diffusers_multiguidance.evaluation.memorization import TrainingImages, memorization, save_neighbours
from diffusers_multiguidance.evaluation.uniformity import GAP, share_in_gap
from diffusers_multiguidance.generate import image_generators
from diffusers_multiguidance.utils.files import add_to_folder
from diffusers_multiguidance.utils.grids import image_grid, to_pil
from record import save_results


def main(
    pipeline: Path,
    out: Annotated[Path, typer.Option()],
    attribute: Annotated[str, typer.Option()],
    samples: Annotated[Path, typer.Option()],
    training: Annotated[Path, typer.Option(help="The extreme set.")],
    photographs: Annotated[Path, typer.Option(help="All of them.")],
    gap: Annotated[tuple[float, float], typer.Option(help="The values that training did not show.")] = GAP,
    target: Annotated[float, typer.Option(help="That of the samples.")] = 0.5,
    num_edited: Annotated[int, typer.Option(help="Of either end; 0 edits none.")] = 32,
    other_evaluator: Annotated[Path | None, typer.Option(help="An evaluator that taught no classifier.")] = None,
) -> None:
    edit = MultiGuidanceEditPipeline.from_pretrained(pipeline)
    edit.set_progress_bar_config(desc="editing")
    folder = find_evaluator(pipeline, attribute)
    evaluate, extract = load_evaluator(folder), evaluator_extractor(load_network(folder))
    record = json.loads((Path(folder) / "training.json").read_text())
    dataset = load_from_disk(training)
    known = to_pixels(dataset["image"][:], edit.image_size, edit.channels)
    held_out = held_out_images(photographs, training, edit.image_size, edit.channels)
    values = evaluate(held_out)
    middle = held_out[(values > gap[0]) & (values < gap[1])]
    generated = {name: np.load(samples / name / "images.npz")["images"] for name in ("unguided", "guided")}

    real = extract(middle)
    training_images = TrainingImages(known, load_extractor("pixels"))
    distances, nearest = training_images.nearest(generated["guided"])
    as_near, _ = training_images.nearest(held_out)
    results: dict[str, Any] = {
        "num_training": len(known),
        "num_held_out": len(held_out),
        "num_middle": len(middle),
        "training_share_in_gap": share_in_gap(evaluate(known), gap),
        "features": extract.name,
        "held_out_share_in_gap": share_in_gap(values, gap),
        "evaluator": {name: value for name, value in record.items() if name.startswith("held_out")},
        "share_nearer_than_held_out": memorization(distances, as_near)["share_nearer_than_held_out"],
    }
    for name, images in generated.items():
        mean, deviation = kernel_distance(extract(images), real)
        results[f"kid_to_middle_{name}"] = {"mean": mean, "standard_deviation": deviation}
    if other_evaluator is not None:
        opinions = {name: load_evaluator(other_evaluator)(images) for name, images in generated.items()}
        results["other_evaluator_share_in_gap"] = {
            name: share_in_gap(opinion, gap) for name, opinion in opinions.items()
        }
        agreement = spearmanr(opinions["guided"], evaluate(generated["guided"]))
        results["other_evaluator_rank_correlation"] = float(agreement.statistic)

    if num_edited:
        results["edits"], pairs = edit_ends(edit, attribute, evaluate, held_out, values, num_edited)
    with add_to_folder(out) as temporary:
        save_results(temporary / "photographs.json", results)
        near = np.argsort(np.abs(values - target))[:100]
        image_grid(to_pil(held_out[near]), columns=20).save(temporary / "middle.png")
        for name, images in generated.items():
            image_grid(to_pil(images[:100]), columns=20).save(temporary / f"{name}.png")
        if num_edited:
            image_grid(to_pil(pairs), columns=16).save(temporary / "edited.png")
        save_neighbours(generated["guided"][:32], known[nearest[:32]], temporary / "nearest.png")
    print(results)


def edit_ends(
    edit: MultiGuidanceEditPipeline,
    attribute: str,
    evaluate: Evaluator,
    held_out: np.ndarray,
    values: np.ndarray,
    count: int,
) -> tuple[dict[str, Any], np.ndarray]:
    """Figures of edits to targets, and the pairs, before and after, of those to 0.5.

    Edited are the photographs of which the evaluator is surest, among those that training did not show.
    """
    order = np.argsort(values)
    edits: dict[str, Any] = {}
    pairs = []
    for name, rows, aims in (("low", order[:count], (0.5, 0.8)), ("high", order[-count:], (0.5, 0.2))):
        before = held_out[rows]
        for aim in aims:
            generators = image_generators(0, 0, count)
            after = edit(to_pil(before), {attribute: aim}, generator=generators, output_type="np").images
            after = (after * 255).round().astype(np.uint8)
            measured = evaluate(after)
            edits[f"{name} to {aim}"] = {
                "mean_before": float(values[rows].mean()),
                "mean_after": float(measured.mean()),
                "standard_deviation_after": float(measured.std()),
                "mean_pixel_change": float(np.abs(after.astype(int) - before).mean() / 255),
            }
            if aim == 0.5:
                pairs.append(np.stack([before, after], axis=1).reshape(-1, *before.shape[1:]))
    return edits, np.concatenate(pairs)


if __name__ == "__main__":
    typer.run(main)
