"""Reverse variance, noise schedule and loss (paper, appendix J): what each leads to after the same training.

    python benchmarks/variance.py training/recipes/circles-32.yaml --attribute position --out runs/benchmarks/variance

Trains the recipe's denoiser anew for every row, and for each schedule one set of classifiers, which guides all rows
of it. A run that was cut off goes on. Writes `variance.json` and for each row a grid of unguided images.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from diffusers_multiguidance.cli import EvaluatorName
from diffusers_multiguidance.evaluation.evaluators import load_evaluator
from diffusers_multiguidance.evaluation.uniformity import share_in_gap, share_malformed
from diffusers_multiguidance.generate import generate, load_pipeline
from diffusers_multiguidance.training.classifier import ClassifierSettings, train_classifiers
from diffusers_multiguidance.training.denoiser import DenoiserSettings, train_denoiser
from diffusers_multiguidance.training.recipe import parse
from diffusers_multiguidance.utils.files import add_to_folder
from diffusers_multiguidance.utils.grids import image_grid, to_pil
from record import save_results

SCHEDULES = {"cosine": "squaredcos_cap_v2", "linear": "linear"}
LOSSES = {
    "fixed small, L_simple": ("fixed_small", "hybrid"),  # which is L_simple where the variance is fixed
    "fixed large, L_simple": ("fixed_large", "hybrid"),
    "learned, L_hybrid": ("learned_range", "hybrid"),
    "learned, L_vlb": ("learned_range", "vlb"),
}


def main(
    recipe: Path,
    attribute: Annotated[str, typer.Option()],
    out: Annotated[Path, typer.Option()],
    evaluator: EvaluatorName = "circle-position",
    max_train_steps: Annotated[int, typer.Option(help="Of each denoiser.")] = 1500,
    num_images: Annotated[int, typer.Option(help="Unguided, and at 0.5, for each row.")] = 200,
) -> None:
    evaluate = load_evaluator(evaluator or "")
    results: dict[str, Any] = {}
    resume = ["--recipe", str(recipe), "--resume_from_checkpoint", "latest"]
    for schedule, beta_schedule in SCHEDULES.items():
        guides: Any = None
        for loss, (variance_type, loss_type) in LOSSES.items():
            name = f"{schedule}, {loss}"
            folder = out / name.replace(",", "").replace(" ", "-")
            varied = f"--ddpm_beta_schedule {beta_schedule} --variance_type {variance_type} --loss_type {loss_type}"
            steps = f"--max_train_steps {max_train_steps} --save_images_steps {max_train_steps}"
            flags = [*resume, *varied.split(), *steps.split(), "--output_dir", str(folder)]
            trained = train_denoiser(parse(DenoiserSettings, "train_unet", flags))
            if guides is None:
                flags = [*resume, "--pipeline", str(trained), "--output_dir", str(folder / "classifiers")]
                guides = load_pipeline(train_classifiers(parse(ClassifierSettings, "train_classifier", flags)))
            pipeline = load_pipeline(trained)
            pipeline.classifiers = guides.classifiers
            call = guides.resolve_call()
            guidance = {key: call[key] for key in ("guidance_scale", "guidance_interval")}
            unguided = generate(pipeline, num_images, description=f"{name}, unguided")
            guided = generate(
                pipeline, num_images, description=name, target={attribute: 0.5}, calibration=None, **guidance
            )
            values, middle = evaluate(unguided), evaluate(guided)
            component = "unet" if pipeline.transformer is None else "transformer"
            record = json.loads((trained / component / "training.json").read_text())
            results[name] = {
                **record["last"],
                "unguided_share_malformed": share_malformed(values),
                "unguided_share_in_gap": share_in_gap(values),
                "share_malformed": share_malformed(middle),
                "share_in_gap": share_in_gap(middle),
            }
            print(name, results[name])
            with add_to_folder(out) as new:
                image_grid(to_pil(unguided[:64])).save(new / f"{folder.name}.png")
                save_results(new / "variance.json", {"max_train_steps": max_train_steps, "rows": results})


if __name__ == "__main__":
    typer.run(main)
