"""What guidance and data are needed (paper, sections 5.2 and 5.3, appendices G to I): one command for each table.

    python benchmarks/ablations.py guidance-scale pipelines/digits --attribute thickness --reference runs/digits/all \\
        --training runs/digits/data --extractor runs/digits/evaluator/evaluator \\
        --recognizer runs/digits/evaluator/evaluator --out runs/benchmarks/guidance-scale-digits
    python benchmarks/ablations.py training-size training/recipes/digits.yaml --attribute thickness \\
        --evaluator stroke-thickness --reference runs/digits/all --extractor runs/digits/evaluator/evaluator \\
        --out runs/benchmarks/training-size-digits

`guidance-scale` guides a committed pipeline with lambda on either class; `training-size` trains a recipe's denoiser
and classifiers anew on a part of its training set. Both write a JSON with a row for each value, plots, and for each
row a grid and the images, so that a run that was cut off goes on where it is called in the same way.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from datasets import load_from_disk
from matplotlib.figure import Figure

from diffusers_multiguidance.cli import EvaluatorName, SchedulerName
from diffusers_multiguidance.data.load import load_pixels, read_npz
from diffusers_multiguidance.evaluation.batch import Evaluation, without_training
from diffusers_multiguidance.evaluation.evaluators import find_evaluator, load_evaluator
from diffusers_multiguidance.evaluation.extractors import load_extractor
from diffusers_multiguidance.evaluation.fidelity import class_probabilities, share_recognized
from diffusers_multiguidance.evaluation.figures import look_up
from diffusers_multiguidance.evaluation.memorization import save_neighbours
from diffusers_multiguidance.evaluation.summary import save_histogram
from diffusers_multiguidance.evaluation.uniformity import GAP
from diffusers_multiguidance.generate import generate, load_pipeline
from diffusers_multiguidance.training.classifier import ClassifierSettings, train_classifiers
from diffusers_multiguidance.training.denoiser import DenoiserSettings, train_denoiser
from diffusers_multiguidance.training.recipe import parse, read_section
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
    recognizer: Annotated[Path | None, typer.Option(help="Also tell how many images it recognises.")] = None,
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
    go_on(out, {"pipeline": pipeline, "scheduler": scheduler, "num_images": num_images, "seed": seed})
    rows: dict[str, Any] = {"unguided": {}}
    rows |= {f"{value:g}": {"guidance_weights": both_classes(loaded, attribute, value)} for value in weight}
    values = {}
    for name, call in rows.items():
        sampling = {"num_images": num_images, "seed": seed, "description": f"lambda {name}", **call}
        images = kept_images(out / f"lambda-{name}", loaded, sampling)
        found = evaluation(images, f"lambda {name}")
        values[name] = found.values
        rows[name] = without_ratios(found.figures)
        if recognizer is not None:
            rows[name]["recognized"] = {"share": share_recognized(class_probabilities(recognizer, images))}
        print(name, rows[name])
    call = loaded.resolve_call()
    results: dict[str, Any] = {"scheduler": call["scheduler"], "num_inference_steps": call["num_inference_steps"]}
    results |= {"num_images": num_images, "extractor": name_of(evaluation), "rows": rows}
    with add_to_folder(out) as folder:
        save_results(folder / "guidance-scale.json", results)
        save_plot({float(name): row for name, row in rows.items() if name != "unguided"}, "lambda", folder)
        save_histogram(values, attribute, folder / "histograms.png", gap)


@app.command()
def training_size(
    recipe: Path,
    attribute: Attribute,
    out: Out,
    evaluator: Annotated[str, typer.Option(help="As of `multiguidance evaluate`.")],
    size: Annotated[list[int], typer.Option(help="Training images; repeatable.")] = [1000, 300, 100, 30],  # noqa: B006
    gap: Gap = GAP,
    reference: Annotated[Path | None, typer.Option(help="Real images; unless given, what no size trains on.")] = None,
    extractor: ExtractorName = None,
    max_train_steps: Annotated[int, typer.Option(help="Of each denoiser.")] = 1500,
    num_images: NumImages = 200,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Train on fewer and fewer images (paper, table 1 and appendix H): is the middle still reached, are images new?

    No training shows the reference, from which the images' distance to training is told.
    """
    resume = ["--recipe", str(recipe), "--resume_from_checkpoint", "latest"]
    whole = load_from_disk(read_section(recipe, "train_unet")["train_data_dir"]).shuffle(seed=seed)
    if len(whole) < max(size) + (reference is None):
        raise ValueError(f"`size` is {max(size)}, and the training set has {len(whole)}; expected fewer than that.")
    settings = {"recipe": recipe, "max_train_steps": max_train_steps, "num_images": num_images, "seed": seed}
    go_on(out, {**settings, "largest size": max(size)})
    if reference is None:
        reference = out / "held-out"
        whole.select(range(max(size), len(whole))).save_to_disk(str(reference))
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
        real, _ = load_pixels(reference, "reference", loaded.image_size, loaded.channels)
        evaluation = Evaluation(
            load_evaluator(evaluator),
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
        results: dict[str, Any] = {"max_train_steps": max_train_steps, "num_images": num_images}
        results |= {"extractor": name_of(evaluation), "rows": rows}
        with add_to_folder(out) as new:
            save_results(new / "training-size.json", results)
            save_plot({float(name): row["guided"] for name, row in rows.items()}, "training images", new)
            save_histogram(values, attribute, new / "histograms.png", gap)


def both_classes(pipeline: Any, attribute: str, weight: float) -> dict[str, dict[str, float]]:
    """The same lambda on every class of an attribute, as in the paper."""
    return {attribute: dict.fromkeys(pipeline.attributes[attribute], weight)}


def name_of(evaluation: Evaluation) -> str | None:
    """Of the features, without which no distance in them means anything."""
    return evaluation.extract.name if evaluation.extract else None


def go_on(out: Path, call: dict[str, Any]) -> None:
    """Note in a folder how its images come about.

    Raises:
        ValueError: where they came about in another way, as they would be taken for these.
    """
    call = {name: str(value) for name, value in call.items()}
    note = out / "call.json"
    if note.exists():
        before = json.loads(note.read_text())
        if before != call:
            raise ValueError(f"`out` {str(out)!r} has images of {before}; expected a new folder for {call}.")
        return
    with add_to_folder(out) as folder:
        (folder / note.name).write_text(json.dumps(call))


def kept_images(folder: Path, pipeline: Any, sampling: dict[str, Any]) -> np.ndarray:
    """The images in a folder, or else those of `generate`, which are put there."""
    if not (folder / "images.npz").exists():
        images = generate(pipeline, **sampling)
        with add_to_folder(folder) as new:
            np.savez_compressed(new / "images.npz", images=images)
            image_grid(to_pil(images[:128])).save(new / "grid.png")
    return read_npz(folder / "images.npz")


def without_ratios(figures: dict[str, Any]) -> dict[str, Any]:
    """Figures without the one number for each image."""
    known = figures.get("memorization")
    return figures if known is None else {**figures, "memorization": {**known, "ratios": None}}


def save_plot(rows: dict[float, dict[str, Any]], label: str, folder: Path) -> None:
    """The figures by lambda or by training images, as the paper's figure S13 has them, with 95 % intervals."""
    panels = {
        "share in the gap": ("summary.share_in_gap", "intervals.share_in_gap"),
        "KLD to uniform": ("summary.kld_to_uniform", "intervals.kld_to_uniform"),
        "MSE to uniform": ("summary.mse_to_uniform", "intervals.mse_to_uniform"),
        "recognised": ("recognized.share", ""),
        "KID to the middle": ("quality.middle.kid", "quality.middle.kid_standard_error"),
        "nearer than held-out": ("memorization.share_nearer_than_held_out", "memorization.interval"),
    }
    shown = {
        title: paths
        for title, paths in panels.items()
        if all(look_up(row, paths[0]) is not None for row in rows.values())
    }
    figure = Figure(figsize=(2.8 * len(shown), 2.6), layout="constrained")
    for axes, (title, (path, error)) in zip(np.ravel(figure.subplots(1, len(shown))), shown.items(), strict=True):
        for value, row in rows.items():
            height, spread = look_up(row, path), look_up(row, error)
            ends = (
                spread
                if isinstance(spread, list | tuple)
                else (height - 2 * (spread or 0), height + 2 * (spread or 0))
            )
            axes.plot([value, value], ends, color="0.7")
        axes.semilogx(list(rows), [look_up(row, path) for row in rows.values()], "o-")
        axes.set(title=title, xlabel=label)
        axes.set_ylim(bottom=0)
    figure.savefig(folder / "ablation.png", dpi=120)


if __name__ == "__main__":
    app()
