"""What guidance and data are needed (paper, sections 5.2 and 5.3, appendices G to I): one command for each table.

    python benchmarks/ablations.py guidance-scale pipelines/digits --attribute thickness \\
        --out runs/benchmarks/guidance-scale-digits
    python benchmarks/ablations.py training-size training/recipes/circles-16.yaml --attribute position \\
        --evaluator circle-position --out runs/benchmarks/training-size

`guidance-scale` guides a committed pipeline with lambda on either class; `training-size` trains a recipe's denoiser
and classifiers anew on the first images of its training set. Both write a JSON with a row for each value, plots, and
for each row a grid and the images, so that a run that was cut off goes on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from datasets import load_from_disk
from matplotlib.figure import Figure

from diffusers_multiguidance.cli import EvaluatorName, SchedulerName
from diffusers_multiguidance.data.load import load_pixels
from diffusers_multiguidance.evaluation.evaluation import Evaluation, without_training
from diffusers_multiguidance.evaluation.evaluators import find_evaluator, load_evaluator
from diffusers_multiguidance.evaluation.extractors import load_extractor
from diffusers_multiguidance.evaluation.memorization import save_neighbours
from diffusers_multiguidance.evaluation.samples import read_images
from diffusers_multiguidance.evaluation.summary import save_histogram
from diffusers_multiguidance.evaluation.uniformity import GAP
from diffusers_multiguidance.generate import generate, load_pipeline
from diffusers_multiguidance.training.classifier import ClassifierSettings, train_classifiers
from diffusers_multiguidance.training.denoiser import DenoiserSettings, train_denoiser
from diffusers_multiguidance.training.recipe import parse
from diffusers_multiguidance.utils.files import add_to_folder
from diffusers_multiguidance.utils.grids import image_grid, to_pil
from record import save_results

app = typer.Typer(help=__doc__, pretty_exceptions_enable=False)
Attribute = Annotated[str, typer.Option()]
Out = Annotated[Path, typer.Option()]
Gap = Annotated[tuple[float, float], typer.Option(help="The values that training did not show.")]
ExtractorName = Annotated[str | None, typer.Option("--extractor", help="For quality, against --reference.")]
Reference = Annotated[Path | None, typer.Option(help="Real images.")]
NumImages = Annotated[int, typer.Option(help="For each row.")]


@app.command()
def guidance_scale(
    pipeline: Path,
    attribute: Attribute,
    out: Out,
    weight: Annotated[list[float], typer.Option(help="Lambda of either class; repeatable.")] = [  # noqa: B006
        3.5,
        10,
        30,
        50,
        75,
        100,
    ],
    evaluator: EvaluatorName = None,
    scheduler: SchedulerName = None,
    gap: Gap = GAP,
    reference: Reference = None,
    training: Annotated[Path | None, typer.Option(help="The extreme set.")] = None,
    extractor: ExtractorName = None,
    num_images: NumImages = 200,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Guide with lambda on either class of a committed pipeline (paper, figure S13 and table S2)."""
    loaded = load_pipeline(pipeline, scheduler)
    size, channels = loaded.image_size, loaded.channels
    known = None if training is None else load_pixels(training, "training", size, channels)[0]
    real = None if reference is None else load_pixels(reference, "reference", size, channels)[0]
    evaluation = Evaluation(
        load_evaluator(evaluator or find_evaluator(pipeline, attribute)),
        gap,
        load_extractor(extractor) if extractor else None,
        real if real is None or known is None else without_training(real, known),
        known,
    )
    rows: dict[str, Any] = {"unguided": {}}
    rows |= {f"{value:g}": {"guidance_weights": both_classes(loaded, attribute, value)} for value in weight}
    values = {}
    for name, call in rows.items():
        sampling = {"num_images": num_images, "seed": seed, "description": f"lambda {name}", **call}
        images = kept_images(out / f"lambda-{name}", loaded, sampling)
        found = evaluation(images, f"lambda {name}")
        values[name] = found.values
        rows[name] = without_ratios(found.figures)
        print(name, rows[name])
    call = loaded.resolve_call()
    results: dict[str, Any] = {"scheduler": call["scheduler"], "num_inference_steps": call["num_inference_steps"]}
    results |= {"num_images": num_images, "extractor": extractor, "rows": rows}
    with add_to_folder(out) as folder:
        save_results(folder / "guidance-scale.json", results)
        save_plot({float(name): row for name, row in rows.items() if name != "unguided"}, "lambda", folder)
        save_histogram(values, attribute, folder / "histograms.png", gap)


@app.command()
def training_size(
    recipe: Path,
    attribute: Attribute,
    out: Out,
    evaluator: EvaluatorName = None,
    size: Annotated[list[int], typer.Option(help="Training images; repeatable.")] = [10000, 1000, 100, 30],  # noqa: B006
    gap: Gap = GAP,
    reference: Annotated[Path | None, typer.Option(help="Real images; unless given, those after the first.")] = None,
    extractor: ExtractorName = None,
    max_train_steps: Annotated[int, typer.Option(help="Of each denoiser.")] = 1500,
    num_images: NumImages = 200,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Train on fewer and fewer images (paper, table 1 and appendix H): is the middle still reached, are images new?

    The images that even the largest size leaves over are held out of all training; without any, give --reference.
    """
    resume = ["--recipe", str(recipe), "--resume_from_checkpoint", "latest"]
    whole = load_from_disk(str(parse(DenoiserSettings, "train_unet", resume).train_data_dir)).shuffle(seed=seed)
    if len(whole) < max(size):
        raise ValueError(f"`size` is {max(size)}; expected at most the {len(whole)} images of the training set.")
    rows: dict[str, Any] = {}
    values = {}
    for count in sorted(size, reverse=True):
        folder = out / f"{count}-images"
        data = folder / "data"
        if not data.exists():
            whole.select(range(count)).save_to_disk(str(data))
        flags = [*resume, "--train_data_dir", str(data)]
        steps = ["--max_train_steps", str(max_train_steps), "--save_images_steps", str(max_train_steps)]
        trained = train_denoiser(
            parse(DenoiserSettings, "train_unet", [*flags, *steps, "--output_dir", str(folder / "unet")])
        )
        flags += ["--pipeline", str(trained), "--output_dir", str(folder / "classifiers")]
        loaded = load_pipeline(train_classifiers(parse(ClassifierSettings, "train_classifier", flags)))
        known, _ = load_pixels(data, "training", loaded.image_size, loaded.channels)
        if reference is not None:
            real, _ = load_pixels(reference, "reference", loaded.image_size, loaded.channels)
        else:
            left_over = out / "held-out"
            if not left_over.exists():
                whole.select(range(max(size), len(whole))).save_to_disk(str(left_over))
            real, _ = load_pixels(left_over, "reference", loaded.image_size, loaded.channels)
        evaluation = Evaluation(
            load_evaluator(evaluator or find_evaluator(loaded.config._name_or_path, attribute)),
            gap,
            load_extractor(extractor) if extractor else None,
            without_training(real, known),
            known,
        )
        rows[str(count)] = {}
        for name, call in {"unguided": {}, "guided": {"target": {attribute: 0.5}, "calibration": None}}.items():
            description = f"{count} images, {name}"
            sampling = {"num_images": num_images, "seed": seed, "description": description, **call}
            images = kept_images(folder / name, loaded, sampling)
            found = evaluation(images, description)
            rows[str(count)][name] = without_ratios(found.figures)
            values[description] = found.values
            nearest = np.argsort(found.distances)[:32]
            with add_to_folder(folder / name) as new:
                save_neighbours(images[nearest], known[found.nearest[nearest]], new / "nearest.png")
        print(count, rows[str(count)])
        results = {"max_train_steps": max_train_steps, "num_images": num_images, "extractor": extractor, "rows": rows}
        with add_to_folder(out) as new:
            save_results(new / "training-size.json", results)
            save_plot({float(name): row["guided"] for name, row in rows.items()}, "training images", new)
            save_histogram(values, attribute, new / "histograms.png", gap)


def both_classes(pipeline: Any, attribute: str, weight: float) -> dict[str, dict[str, float]]:
    """The same lambda on every class of an attribute, as in the paper."""
    return {attribute: dict.fromkeys(pipeline.attributes[attribute], weight)}


def kept_images(folder: Path, pipeline: Any, sampling: dict[str, Any]) -> np.ndarray:
    """The images in a folder, or else those of `generate`, which are put there."""
    if not (folder / "images.npz").exists():
        images = generate(pipeline, **sampling)
        with add_to_folder(folder) as new:
            np.savez_compressed(new / "images.npz", images=images)
            image_grid(to_pil(images[:128])).save(new / "grid.png")
    return read_images(folder / "images.npz")


def without_ratios(figures: dict[str, Any]) -> dict[str, Any]:
    """Figures without the one number for each image."""
    known = figures.get("memorization")
    return figures if known is None else {**figures, "memorization": {**known, "ratios": None}}


def save_plot(rows: dict[float, dict[str, Any]], label: str, folder: Path) -> None:
    """The figures by lambda or by training images, as the paper's figure S13 has them."""
    panels: dict[str, list[Any]] = {
        "share in the gap": [row["summary"]["share_in_gap"] for row in rows.values()],
        "KLD to uniform": [row["summary"].get("kld_to_uniform") for row in rows.values()],
        "MSE to uniform": [row["summary"].get("mse_to_uniform") for row in rows.values()],
    }
    if all("quality" in row for row in rows.values()):
        panels["KID to the middle"] = [row["quality"]["middle"]["kid"] for row in rows.values()]
    if all("memorization" in row for row in rows.values()):
        panels["nearer than held-out"] = [row["memorization"]["share_nearer_than_held_out"] for row in rows.values()]
    figure = Figure(figsize=(2.8 * len(panels), 2.6), layout="constrained")
    for axes, (title, heights) in zip(np.ravel(figure.subplots(1, len(panels))), panels.items(), strict=True):
        axes.semilogx(list(rows), [np.nan if height is None else height for height in heights], "o-")
        axes.set(title=title, xlabel=label)
    figure.savefig(folder / "ablation.png", dpi=120)


if __name__ == "__main__":
    app()
