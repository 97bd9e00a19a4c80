"""Draw images from a pipeline over the whole range of its attributes, and measure them: a data set of the middle.

    python training/generate.py --pipeline pipelines/circles --attributes position --extremes runs/circles/data \\
        --num_images 1000 --output_dir runs/circles/drawn
    accelerate launch training/train_classifier.py --recipe training/recipes/circles_drawn.yaml

Classifiers that learn these measured strengths (`train_classifier.py --soft_labels`) know the middle much better than
those that learnt the two ends. They never see a real image of the middle, but the measure is used: a mode of its own.
Images that can't be measured are left out and counted. The set fills the range evenly: extremes are added at the ends.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, Value, concatenate_datasets

from diffusers_multiguidance.cli import load_pipeline
from diffusers_multiguidance.data.extremes import evenly_spread
from diffusers_multiguidance.evaluation.attributes import load_measure
from diffusers_multiguidance.evaluation.report import save_histogram
from diffusers_multiguidance.files import replace_folder
from diffusers_multiguidance.generate import generate
from diffusers_multiguidance.images import image_grid, to_pil
from diffusers_multiguidance.recipe import run_script
from diffusers_multiguidance.trainer import fit_image, load_training_set


def create_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", help="A pipeline folder, or its id on the Hub.")
    parser.add_argument("--attributes", nargs="+", help="One or two, spread evenly over their range.")
    parser.add_argument(
        "--measures", nargs="+", help="One for each attribute: position, thickness or an evaluator's folder."
    )
    parser.add_argument("--extremes", type=Path, dest="train_data_dir", help="Folder that build_dataset.py wrote.")
    parser.add_argument("--output_dir", type=Path)
    parser.add_argument("--num_images", type=int, default=1000, help="How many to draw.")
    parser.add_argument("--eval_batch_size", type=int, default=64)
    parser.add_argument("--ddpm_num_inference_steps", type=int, help="The pipeline's default unless given.")
    parser.add_argument("--guidance_scale", type=float, help="The pipeline's default unless given.")
    parser.add_argument("--sampler", default="ddpm", help="ddpm, ddim or dpmsolver++.")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def measured(images: list[Any], attributes: dict[str, Any], names: dict[str, list[str]], first: int) -> Dataset:
    """Images with what was measured of them, numbered from `first`; those with an unknown strength are left out."""
    pixels = np.stack([np.asarray(image) for image in images])
    pixels = pixels[..., None] if pixels.ndim == 3 else pixels
    strengths = {attribute: measure(pixels) for attribute, measure in attributes.items()}
    known = np.flatnonzero(~np.isnan(np.stack(list(strengths.values()))).any(axis=0))
    print(f"{len(known)} of {len(images)} images could be measured")
    return Dataset.from_dict(
        {
            "image": [images[row] for row in known],
            **{name: (values[known] > 0.5).astype(int) for name, values in strengths.items()},
            **{f"factor_{name}": values[known] for name, values in strengths.items()},
            "source_index": first + known,
        },
        features=Features(
            {
                "image": Image(),
                **{name: ClassLabel(names=names[name]) for name in attributes},
                **{f"factor_{name}": Value("float32") for name in attributes},
                "source_index": Value("int64"),
            }
        ),
    )


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
    attributes = {name: load_measure(measure) for name, measure in zip(args.attributes, measures, strict=True)}
    args.dataset_name = None
    extremes = load_training_set(args)
    extremes = extremes.shuffle(seed=args.seed).select(range(min(len(extremes), args.num_images)))
    pipeline = load_pipeline(args.pipeline)
    size, channels = pipeline.unet.config.sample_size, pipeline.unet.config.in_channels
    names = pipeline.attributes
    drawn = generate(
        pipeline,
        args.num_images,
        args.seed,
        args.eval_batch_size,
        target=dict.fromkeys(attributes, "uniform"),
        guidance_scale=args.guidance_scale,
        num_inference_steps=args.ddpm_num_inference_steps,
        sampler=args.sampler,
    )
    real = [fit_image(image, size, channels) for image in extremes["image"]]
    parts = [measured(to_pil(drawn), attributes, names, len(real)), measured(real, attributes, names, 0)]
    dataset = concatenate_datasets(parts)
    strengths = np.stack([np.asarray(dataset[f"factor_{name}"]) for name in attributes])
    dataset = dataset.select(evenly_spread(strengths, args.num_images, args.seed))
    with replace_folder(args.output_dir) as folder:
        dataset.save_to_disk(folder)
        for name in attributes:
            drawn_values, real_values = (np.asarray(part[f"factor_{name}"]) for part in parts)
            save_histogram({"drawn": drawn_values, "extremes": real_values}, name, folder / f"histogram_{name}.png")
        image_grid(to_pil(drawn[:256])).save(folder / "grid.png")
        flags = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
        provenance = {"num_images": len(dataset), "drawn": len(parts[0]), "extremes": len(parts[1]), "flags": flags}
        (folder / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")
    print(f"{len(dataset)} images in {args.output_dir}")


if __name__ == "__main__":
    run_script(main, create_parser(), section="generate")
