"""Build a data set with a known factor, keep its extremes, and save or push it.

python training/build_dataset.py --recipe training/recipes/circles.yaml
python training/build_dataset.py --dataset digits --extremes thickness --output_dir digits-extremes
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from diffusers_multiguidance.data.circles import circles
from diffusers_multiguidance.data.digits import digits
from diffusers_multiguidance.data.extremes import keep_extremes
from diffusers_multiguidance.files import replace_folder
from diffusers_multiguidance.recipe import run_script


def create_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=["circles", "digits"], help="Which builder.")
    parser.add_argument("--num_images", type=int, default=10_000, help="How many circles to draw before filtering.")
    parser.add_argument("--resolution", type=int, default=64, help="Height and width of circles; digits have 32.")
    parser.add_argument("--extremes", metavar="ATTRIBUTE", help="Keep only the two ends of this attribute's factor.")
    parser.add_argument(
        "--delta", type=float, default=0.2, help="Width of each end, as a share of the factor's range."
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", type=Path, help="Folder for `datasets.load_from_disk`.")
    parser.add_argument("--push_to_hub", action="store_true")
    parser.add_argument("--hub_dataset_id", help="Repository to push to; defaults to the output folder's name.")
    return parser


def main(args: argparse.Namespace) -> None:
    if args.dataset is None or args.output_dir is None:
        raise ValueError(
            "`--dataset` and `--output_dir` are needed; expected both on the command line or in the recipe."
        )
    if args.num_images < 1:
        raise ValueError(f"`--num_images` is {args.num_images}; expected at least 1.")
    if args.resolution < 8:
        raise ValueError(f"`--resolution` is {args.resolution}; expected at least 8.")
    if args.output_dir.exists() and not (args.output_dir / "dataset_info.json").exists():
        raise ValueError(f"`--output_dir` {args.output_dir} exists; expected a data set to replace, or a free name.")
    dataset = circles(args.num_images, args.resolution, args.seed) if args.dataset == "circles" else digits()
    provenance = None
    if args.extremes:
        dataset, provenance = keep_extremes(dataset, args.extremes, args.delta)
    with replace_folder(args.output_dir) as folder:
        dataset.save_to_disk(folder)
        if provenance:
            (folder / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")
    print(f"{len(dataset)} images in {args.output_dir}")
    if args.push_to_hub:
        dataset.push_to_hub(args.hub_dataset_id or args.output_dir.name)


if __name__ == "__main__":
    run_script(main, create_parser(), section="build_dataset")
