"""What guidance, steps and data are needed (paper, sections 5.2 and 5.3, appendices G to I): one command for a table.

    python benchmarks/ablations.py guidance-scale pipelines/digits --attribute thickness --reference runs/digits/all \\
        --training runs/digits/data --extractor runs/digits/evaluator/evaluator \\
        --recognizer runs/digits/evaluator/evaluator --out runs/benchmarks/guidance-scale-digits
    python benchmarks/ablations.py steps pipelines/circles-32-exact --attribute position --row ddpm:50:5000 \\
        --row sde-dpmsolver++:20:5000 --row sde-dpmsolver++:20:5000:0:0.7 --out runs/benchmarks/steps-circles-32-exact
    python benchmarks/ablations.py training-size training/recipes/digits.yaml --attribute thickness \\
        --evaluator stroke-thickness --reference runs/digits/all --extractor runs/digits/evaluator/evaluator \\
        --out runs/benchmarks/training-size-digits

`guidance-scale` guides a committed pipeline with lambda on either class; `steps` with other schedulers, each at steps
and a scale of its own; `training-size` trains a recipe's denoiser and classifiers anew on a part of its training set.
All write a JSON with a row for each value, plots, and for each row a grid and the images, so that a run that was cut
off goes on where it is called in the same way.

The paper's own, for GPUs, by CelebA's recipe and Inception; we did not run these:

    python benchmarks/ablations.py guidance-scale runs/paper_celeba_smile/classifiers/pipeline --attribute Smiling \\
        --evaluator "openai/clip-vit-base-patch32:a neutral face:a smiling face" --extractor inception-v3-compat \\
        --reference runs/CelebA/img_align_celeba --training runs/paper_celeba_smile/data --num-images 10000 \\
        --out runs/benchmarks/guidance-scale-celeba
    python benchmarks/ablations.py training-size training/recipes/paper_celeba_smile.yaml --attribute Smiling \\
        --evaluator "openai/clip-vit-base-patch32:a neutral face:a smiling face" --extractor inception-v3-compat \\
        --reference runs/CelebA/img_align_celeba --size 60000 --size 30000 --size 10000 --size 5000 \\
        --max-train-steps 250000 --num-images 10000 --out runs/benchmarks/training-size-celeba
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from datasets import load_from_disk
from matplotlib import colormaps
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
from diffusers_multiguidance.schedulers import create_scheduler
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
Training = Annotated[Path | None, typer.Option(help="The extreme set.")]
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
    training: Training = None,
    extractor: ExtractorName = None,
    recognizer: Annotated[Path | None, typer.Option(help="Also tell how many images it recognises.")] = None,
    num_images: NumImages = 200,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Guide with lambda on either class of a committed pipeline (paper, figure S13 and table S2)."""
    loaded = load_pipeline(pipeline, scheduler)
    evaluation = prepare(loaded, evaluator or find_evaluator(pipeline, attribute), gap, extractor, reference, training)
    go_on(
        out,
        {"pipeline": pipeline, "attribute": attribute, "scheduler": scheduler, "num_images": num_images, "seed": seed},
    )
    rows: dict[str, Any] = {"unguided": {}}
    rows |= {f"{value:g}": {"guidance_weights": both_classes(loaded, attribute, value)} for value in weight}
    values = {}
    for name, call in rows.items():
        sampling = {"num_images": num_images, "seed": seed, "description": f"lambda {name}", **call}
        images, _ = kept_images(out / f"lambda-{name}", loaded, sampling)
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
def steps(
    pipeline: Path,
    attribute: Attribute,
    out: Out,
    row: Annotated[list[str], typer.Option(metavar="SCHEDULER:STEPS:SCALE[:START:END]", help="Repeatable.")],
    target: Annotated[float, typer.Option()] = 0.5,
    evaluator: EvaluatorName = None,
    gap: Gap = GAP,
    reference: Reference = None,
    training: Training = None,
    extractor: ExtractorName = None,
    num_images: NumImages = 200,
    seed: Annotated[int, typer.Option()] = 2000,
) -> None:
    """Guide by each scheduler in few and many steps: quality and time. Uncalibrated, so that rows can be compared.

    The guided share of the steps stands behind where it is not the pipeline's.
    """
    loaded = load_pipeline(pipeline)
    own, interval = loaded.scheduler, loaded.resolve_call()["guidance_interval"]
    evaluation = prepare(loaded, evaluator or find_evaluator(pipeline, attribute), gap, extractor, reference, training)
    go_on(
        out, {"pipeline": pipeline, "attribute": attribute, "target": target, "num_images": num_images, "seed": seed}
    )
    rows, values, shown = [], {}, []
    for name in row:
        if name.count(":") not in (2, 4):
            raise ValueError(f"`row` is {name!r}; expected SCHEDULER:STEPS:SCALE or SCHEDULER:STEPS:SCALE:START:END.")
        scheduler, num_steps, scale, *guided = name.split(":")
        loaded.scheduler = create_scheduler(scheduler, own)
        call: dict[str, Any] = {
            "num_inference_steps": int(num_steps),
            "guidance_scale": float(scale),
            "guidance_interval": tuple(map(float, guided)) if guided else interval,
        }
        sampling = {"num_images": num_images, "seed": seed, "batch_size": 50, "description": name, **call}
        sampling |= {"target": {attribute: target}, "calibration": None}
        images, seconds = kept_images(out / name.replace(":", "-"), loaded, sampling)
        found = evaluation(images, name)
        values[name] = found.values
        shown.append(images[:16])
        how = {"pipeline": pipeline.name, "scheduler": scheduler, **call, "seconds_per_image": seconds}
        rows.append({**how, **without_ratios(found.figures)})
        print(name, rows[-1])
    results: dict[str, Any] = {"num_images": num_images, "target": target, "extractor": name_of(evaluation)}
    with add_to_folder(out) as folder:
        save_results(folder / "steps.json", {**results, "rows": rows})
        save_time_plot(rows, folder / "steps.png")
        save_histogram(values, attribute, folder / "histograms.png", gap)
        image_grid(to_pil(np.concatenate(shown)), columns=16).save(folder / "grid.png")


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
    settings = {
        "recipe": recipe,
        "attribute": attribute,
        "max_train_steps": max_train_steps,
        "num_images": num_images,
        "seed": seed,
    }
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
        evaluation = prepare(loaded, evaluator, gap, extractor, reference, data)
        known = evaluation.training.images
        rows[str(count)] = {}
        for name, call in {"unguided": {}, "guided": {"target": {attribute: 0.5}, "calibration": None}}.items():
            description = f"{count} images, {name}"
            sampling = {"num_images": num_images, "seed": seed, "description": description, **call}
            images, _ = kept_images(folder / name, loaded, sampling)
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


def prepare(
    pipeline: Any,
    evaluator: str,
    gap: tuple[float, float],
    extractor: str | None,
    reference: Path | None,
    training: Path | None,
) -> Evaluation:
    """What images of a pipeline are evaluated by."""
    size, channels = pipeline.image_size, pipeline.channels
    known = None if training is None else load_pixels(training, "training", size, channels)[0]
    real = None if reference is None else load_pixels(reference, "reference", size, channels)[0]
    if real is not None and known is not None:
        real = without_training(real, known)
    extract = load_extractor(extractor) if extractor else None
    return Evaluation(load_evaluator(evaluator), gap, extract, real, known)


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


def kept_images(folder: Path, pipeline: Any, sampling: dict[str, Any]) -> tuple[np.ndarray, float]:
    """The images in a folder, or else those of `generate`, which are put there; and the seconds that each took."""
    path = folder / "images.npz"
    if not path.exists():
        started = time.monotonic()
        images = generate(pipeline, **sampling)
        seconds = (time.monotonic() - started) / len(images)
        with add_to_folder(folder) as new:
            np.savez_compressed(new / path.name, images=images, seconds_per_image=seconds)
            image_grid(to_pil(images[:128])).save(new / "grid.png")
    with np.load(path) as kept:
        return read_npz(path), float(kept["seconds_per_image"])


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


def save_time_plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Share in the gap and malformed against seconds per image: a line for each scheduler, from few steps to many."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, name in zip(panels, ("share_in_gap", "share_malformed"), strict=True):
        axes.set_prop_cycle(color=colormaps["tab20"].colors)
        for scheduler in dict.fromkeys(row["scheduler"] for row in rows):
            points = [
                (row["seconds_per_image"], row["summary"][name]) for row in rows if row["scheduler"] == scheduler
            ]
            axes.plot(*zip(*sorted(points), strict=True), "o-", label=scheduler)
        axes.set(title=name.replace("_", " "), xlabel="seconds per image", xlim=(0, None), ylim=(-0.03, 1.03))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize="small")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    app()
