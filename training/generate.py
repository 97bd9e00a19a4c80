"""Draw images from a pipeline over the whole range of its attributes, and measure them: a data set of the middle.

    python training/generate.py --pipeline pipelines/circles --attributes position --extremes runs/circles/data \\
        --num_images 1000 --output_dir runs/circles/drawn
    accelerate launch training/train_classifier.py --recipe training/recipes/circles_drawn.yaml

Classifiers that learn these strengths (`train_classifier.py --soft_labels`) know the middle much better than those
that learnt the two ends. They never see a real image of the middle, but the measure is used: a mode of its own. With
`--measures geodesic` no measure is used, and no calibration either: neighbours among the drawn images tell which are
nearer to which end. Images that can't be measured are left out and counted. The set fills the range evenly: extremes
are added at the ends.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, Value

from diffusers_multiguidance.cli import load_pipeline
from diffusers_multiguidance.curation.extremes import evenly_spread
from diffusers_multiguidance.evaluation.evaluators import load_measure
from diffusers_multiguidance.curation.pseudo_labels import geodesic_strengths
from diffusers_multiguidance.evaluation.report import save_histogram
from diffusers_multiguidance.utils.files import replace_folder
from diffusers_multiguidance.generate import generate
from diffusers_multiguidance.utils.images import image_grid, to_pil
from diffusers_multiguidance.training.recipe import run_script
from diffusers_multiguidance.training.trainer import fit_image, load_training_set


def create_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", help="A pipeline folder, or its id on the Hub.")
    parser.add_argument("--attributes", nargs="+", help="One or two, spread evenly over their range.")
    parser.add_argument(
        "--measures", nargs="+", help="One for each attribute: position, thickness, an evaluator's folder or geodesic."
    )
    parser.add_argument("--extremes", type=Path, dest="train_data_dir", help="Folder that build_dataset.py wrote.")
    parser.add_argument("--output_dir", type=Path)
    parser.add_argument("--num_images", type=int, default=1000, help="How many to draw.")
    parser.add_argument("--eval_batch_size", type=int, default=64)
    parser.add_argument("--ddpm_num_inference_steps", type=int, help="The pipeline's default unless given.")
    parser.add_argument("--guidance_scale", type=float, help="The pipeline's default unless given.")
    parser.add_argument("--sampler", help="The pipeline's default unless given.")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main(args: argparse.Namespace) -> None:
    if not (args.pipeline and args.attributes and args.train_data_dir and args.output_dir):
        raise ValueError("`--pipeline`, `--attributes`, `--extremes` and `--output_dir`: expected all of them.")
    measures = args.measures or args.attributes
    if len(measures) != len(args.attributes):
        raise ValueError(f"`--measures` are {measures}; expected one for each of {args.attributes}.")
    if args.output_dir.exists() and not (args.output_dir / "dataset_info.json").exists():
        raise ValueError(f"`--output_dir` {args.output_dir} exists; expected a data set to replace, or a free name.")
    for name in ("num_images", "eval_batch_size"):
        if getattr(args, name) < 1:
            raise ValueError(f"`--{name}` is {getattr(args, name)}; expected at least 1.")
    judges = {
        name: None if measure == "geodesic" else load_measure(measure)
        for name, measure in zip(args.attributes, measures, strict=True)
    }
    args.dataset_name = None
    extremes = load_training_set(args)
    for name, judge in judges.items():
        if judge is None and not isinstance(extremes.features.get(name), ClassLabel):
            raise ValueError(f"`--extremes` has no labels of '{name}'; expected them, which 'geodesic' starts from.")
    extremes = extremes.shuffle(seed=args.seed).select(range(min(len(extremes), args.num_images)))
    pipeline = load_pipeline(args.pipeline)
    size, channels = pipeline.unet.config.sample_size, pipeline.unet.config.in_channels
    drawn = generate(
        pipeline,
        args.num_images,
        args.seed,
        args.eval_batch_size,
        target=dict.fromkeys(args.attributes, "uniform"),
        guidance_scale=args.guidance_scale,
        num_inference_steps=args.ddpm_num_inference_steps,
        sampler=args.sampler,
        calibration=None if "geodesic" in measures else "same",
    )
    real = np.stack([np.asarray(fit_image(image, size, channels)) for image in extremes["image"]])
    pixels = np.concatenate([drawn, real.reshape(-1, *drawn.shape[1:])])
    values = {}
    for name, judge in judges.items():
        if judge is None:
            labels = np.concatenate([np.full(len(drawn), -1), extremes[name]])
            values[name] = geodesic_strengths(pixels, labels)
        else:
            values[name] = judge(pixels)
    known = np.flatnonzero(~np.isnan(np.stack(list(values.values()))).any(axis=0))
    num_drawn = int((known < len(drawn)).sum())
    print(
        f"{num_drawn} of {len(drawn)} drawn images and {len(known) - num_drawn} of {len(real)} extremes are measured"
    )
    rows = known[evenly_spread(np.stack([values[name][known] for name in values]), args.num_images, args.seed)]
    dataset = Dataset.from_dict(
        {
            "image": to_pil(pixels[rows]),
            **{name: (values[name][rows] > 0.5).astype(int) for name in values},
            **{f"factor_{name}": values[name][rows] for name in values},
            "source_index": rows,
        },
        features=Features(
            {
                "image": Image(),
                **{name: ClassLabel(names=pipeline.attributes[name]) for name in values},
                **{f"factor_{name}": Value("float32") for name in values},
                "source_index": Value("int64"),
            }
        ),
    )
    with replace_folder(args.output_dir) as folder:
        dataset.save_to_disk(folder)
        for name in values:
            parts = {"drawn": values[name][: len(drawn)], "extremes": values[name][len(drawn) :]}
            save_histogram(parts, name, folder / f"histogram_{name}.png")
        image_grid(to_pil(drawn[:256])).save(folder / "grid.png")
        flags = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
        counts = {"num_images": len(dataset), "drawn": num_drawn, "extremes": len(known) - num_drawn}
        (folder / "provenance.json").write_text(json.dumps({**counts, "flags": flags}, indent=2) + "\n")
    print(f"{len(dataset)} images in {args.output_dir}")


if __name__ == "__main__":
    run_script(main, create_parser(), section="generate")
