"""Extrapolation (paper, appendix E): guide to what the denoiser never saw, by classifiers of rendered examples of it.

    python benchmarks/extrapolation.py lips --out runs/benchmarks/green-lips
    python benchmarks/extrapolation.py positions --out runs/benchmarks/outer-positions

`lips`: the committed faces, none of which had green lips. `positions`: circles whose denoiser, trained here, saw none
further out than a quarter of the range. Both train the classifiers; a run that was cut off goes on. Writes
`extrapolation.json`, and grids of unguided and guided images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from datasets import ClassLabel, Dataset, Features, Image, concatenate_datasets
from PIL import Image as PILImage
from rich.progress import track

from diffusers_multiguidance.data.circles import circles
from diffusers_multiguidance.data.faces import Latents, render_face
from diffusers_multiguidance.evaluation.evaluators import CirclePosition, load_evaluator
from diffusers_multiguidance.evaluation.uniformity import share_malformed
from diffusers_multiguidance.generate import generate, load_pipeline
from diffusers_multiguidance.training.classifier import ClassifierSettings, train_classifiers
from diffusers_multiguidance.training.denoiser import DenoiserSettings, train_denoiser
from diffusers_multiguidance.training.recipe import parse
from diffusers_multiguidance.utils.files import add_to_folder
from diffusers_multiguidance.utils.grids import image_grid, to_pil
from record import save_results

FACES = Path("pipelines/faces-rendered")
RECIPES = Path("training/recipes")
GREEN_LIPS = (20, 220, 40)
INNER = (0.25, 0.42)  # and mirrored: the positions that training shows
OUTER = 0.17  # further out than this, on either side, is what the classifiers are taught beside

app = typer.Typer()
Out = Annotated[Path, typer.Option()]
Scales = Annotated[list[float], typer.Option(help="Total weight of the two classes; all goes to the new one.")]
NumImages = Annotated[int, typer.Option(help="For each scale.")]


@app.command()
def lips(
    out: Out,
    scale: Scales = [30.0, 60.0, 120.0, 240.0],  # noqa: B006
    num_images: NumImages = 200,
    num_rendered: Annotated[int, typer.Option(help="Faces that the classifiers learn from.")] = 6000,
    max_train_steps: Annotated[int, typer.Option(help="Of each classifier.")] = 1000,
) -> None:
    size = load_pipeline(FACES).image_size[0]
    data = out / "data"
    if not data.exists():
        with_lips(num_rendered, size).save_to_disk(data)
    flags = f"--train_data_dir {data} --attributes lips --pipeline {FACES} --num_classifiers 2 --output_dir {out}/lips"
    guided = train(RECIPES / "faces-rendered.yaml", f"{flags} --max_train_steps {max_train_steps}")
    rendered = with_lips(400, size, seed=1)
    pixels, colors = np.stack([np.asarray(image) for image in rendered["image"]]), np.array(rendered["lips"])
    smile, hair = (load_evaluator(FACES / "evaluators" / name) for name in ("Smiling", "Hair"))

    def figures(images: np.ndarray) -> dict[str, float]:
        return {
            "share_extrapolated": float(has_green_lips(images).mean()),
            "mean_smile": float(smile(images).mean()),
            "mean_hair": float(hair(images).mean()),
        }

    seen = {
        "rendered_red_found_green": float(has_green_lips(pixels[colors == 0]).mean()),
        "rendered_green_found_green": float(has_green_lips(pixels[colors == 1]).mean()),
    }
    compare(guided, {"lips": {"red": 0.0, "green": 1.0}}, scale, num_images, figures, out, seen)


@app.command()
def positions(
    out: Out,
    scale: Scales = [30.0, 60.0, 120.0, 240.0],  # noqa: B006
    num_images: NumImages = 500,
    max_train_steps: Annotated[int, typer.Option(help="Of the denoiser.")] = 3000,
) -> None:
    rendered = circles(20_000, 16)
    outwards = np.abs(np.array(rendered["factor_position"]) - 0.5)
    inner = rendered.select(np.flatnonzero((outwards >= 0.5 - INNER[1]) & (outwards <= 0.5 - INNER[0])))
    outer = rendered.select(np.flatnonzero(outwards >= 0.5 - OUTER))
    if not (out / "data").exists():
        inner.save_to_disk(out / "inner")
        place = ClassLabel(names=["inner", "outer"])
        labelled = [
            part.select_columns("image").add_column("place", np.full(len(part), label), feature=place)
            for label, part in enumerate((inner, outer))
        ]
        concatenate_datasets(labelled).save_to_disk(out / "data")
    recipe = RECIPES / "circles-16.yaml"
    flags = f"--train_data_dir {out}/inner --output_dir {out}/unet --max_train_steps {max_train_steps}"
    words = ["--recipe", str(recipe), "--resume_from_checkpoint", "latest", *flags.split()]
    denoiser = train_denoiser(parse(DenoiserSettings, "train_unet", words))
    flags = f"--train_data_dir {out}/data --attributes place --pipeline {denoiser} --output_dir {out}/place"
    guided = train(recipe, flags)
    evaluate = CirclePosition()

    def figures(images: np.ndarray) -> dict[str, float]:
        values = evaluate(images)
        beyond = np.abs(values - 0.5) > 0.5 - INNER[0] + 0.5 / (16 - 5)  # by more than half a pixel
        return {"share_extrapolated": float(beyond.mean()), "share_malformed": share_malformed(values)}

    compare(guided, {"place": {"inner": 0.0, "outer": 1.0}}, scale, num_images, figures, out, {})


def train(recipe: Path, flags: str) -> Path:
    """Classifiers of the recipe's size; what is done of them is not done again."""
    words = ["--recipe", str(recipe), "--resume_from_checkpoint", "latest", *flags.split()]
    return train_classifiers(parse(ClassifierSettings, "train_classifier", words))


def compare(
    folder: Path,
    target: dict[str, dict[str, float]],
    scales: list[float],
    num_images: int,
    figures: Callable[[np.ndarray], dict[str, float]],
    out: Path,
    results: dict[str, Any],
) -> None:
    """Figures and grids of unguided images, and of guided ones at each scale."""
    pipeline = load_pipeline(folder)
    rows: dict[str, Any] = {}
    for name, scale in {"unguided": None, **{f"scale {scale:g}": scale for scale in scales}}.items():
        call = {} if scale is None else {"target": target, "guidance_scale": scale, "calibration": None}
        images = generate(pipeline, num_images, description=name, **call)
        rows[name] = {**figures(images), "call": pipeline.resolve_call(guidance_scale=scale)}
        print(name, rows[name])
        with add_to_folder(out) as new:
            image_grid(to_pil(images[:64])).save(new / f"{name.replace(' ', '-')}.png")
            results = {**results, "num_images": num_images, "rows": rows}
            save_results(new / "extrapolation.json", results)


def with_lips(count: int, size: int, seed: int = 0) -> Dataset:
    """Rendered faces, half of them with green lips, and which; all else is drawn alike."""

    def rows() -> Iterator[dict[str, Any]]:
        for number in track(range(count), "rendering"):
            rng = np.random.default_rng((seed, number))
            latents, green = Latents(*rng.random(3)), number % 2
            color = {"lip_color": GREEN_LIPS} if green else {}
            yield {"image": PILImage.fromarray(render_face(latents, rng, size, size, **color)), "lips": green}

    features = Features({"image": Image(), "lips": ClassLabel(names=["red", "green"])})
    return Dataset.from_list(list(rows()), features=features)


def has_green_lips(images: np.ndarray) -> np.ndarray:
    """Whether each of (N, H, W, 3) uint8 has green pixels where mouths are, and fewer around; (N,)."""
    size = images.shape[1]
    red, green, blue = np.moveaxis(images.astype(int), -1, 0)
    is_green = green - np.maximum(red, blue) > 15
    rows, columns = slice(round(0.62 * size), round(0.8 * size)), slice(round(0.34 * size), round(0.66 * size))
    in_mouth = is_green[:, rows, columns].sum(axis=(1, 2))
    cheeks = is_green[:, round(0.4 * size) : rows.start, columns].sum(axis=(1, 2))
    return (in_mouth >= 4 * (size / 32) ** 2) & (cheeks < in_mouth)


if __name__ == "__main__":
    app()
