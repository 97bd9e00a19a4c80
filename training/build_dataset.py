"""Build a data set, keep its extremes, and save or push it with a data card.

    python training/build_dataset.py --recipe training/recipes/circles.yaml
    accelerate launch training/build_dataset.py --dataset faces --num_images 30000 --attribute Smiling --extremes \\
        --output_dir runs/smiling
    python training/build_dataset.py --dataset images --train_data_dir photos --label_column label --extremes \\
        --output_dir runs/mine

With several attributes an image must be extreme in each. What is extreme is decided by a known factor (drawn data), by
networks that learn noisy labels (paper, appendix D.1), by a column of scores, or by a zero-shot model's prompts.
A build that was killed goes on where it was when the same command is given again.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset

from diffusers_multiguidance.data.celeba import celeba
from diffusers_multiguidance.data.circles import circles
from diffusers_multiguidance.data.digits import digits
from diffusers_multiguidance.curation.extremes import Selection, oversample, select_by_factor, select_by_score
from diffusers_multiguidance.data.faces import faces
from diffusers_multiguidance.data.images import image_dataset
from diffusers_multiguidance.data.objects import objects
from diffusers_multiguidance.curation.data_card import push_data_set, write_card
from diffusers_multiguidance.utils.files import replace_folder
from diffusers_multiguidance.hub.publish import find_token
from diffusers_multiguidance.curation.label_filter import select_by_labels
from diffusers_multiguidance.training.recipe import run_script
from diffusers_multiguidance.curation.labelers import zero_shot_log_odds
from diffusers_multiguidance.training.trainer import add_training_arguments, check_training_arguments, create_accelerator

CARD = Path(__file__).parents[1] / "model_cards" / "extreme_set.md"


def create_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = argparse.BooleanOptionalAction
    source = parser.add_argument_group("source")
    names = ["circles", "digits", "faces", "celeba", "objects", "images"]
    source.add_argument(
        "--dataset",
        choices=names,
        help="celeba and images read --train_data_dir or --dataset_name; objects has coins, or the cut-outs in "
        "--train_data_dir.",
    )
    source.add_argument("--num_images", type=int, default=10_000, help="How many to draw, before filtering.")
    source.add_argument("--split", default="train", help="Of celeba and images.")
    source.add_argument("--image_column", default="image", help="Of images.")
    source.add_argument("--label_column", help="Of images: two values.")
    source.add_argument("--score_column", help="Of images: numbers.")
    source.add_argument("--num_proc", type=int, help="Processes to draw or read images with.")
    choice = parser.add_argument_group("what is kept")
    choice.add_argument("--attribute", nargs="+", help="One or more; an image is kept if it is extreme in all.")
    choice.add_argument("--extremes", action=flag, default=False, help="Keep only the two ends of the attributes.")
    choice.add_argument(
        "--by",
        choices=["factor", "labels", "score", "zero_shot"],
        help="Decided by the known factor (default: circles, digits, objects), networks that learn the labels "
        "(default: faces, celeba, images), a score column, or a CLIP-like model.",
    )
    choice.add_argument("--delta", type=float, default=0.2, help="Width of each end, as a share of a factor's range.")
    choice.add_argument("--num_extremes", type=int, nargs="+", help="How many to keep at each end, or low and high.")
    choice.add_argument(
        "--keep_share", type=float, default=0.12, help="Without --num_extremes: of all, at most this at each end."
    )
    choice.add_argument("--index_file", type=Path, help="Text file of image numbers that replaces the filter.")
    choice.add_argument("--oversample", action=flag, default=False, help="Repeat the rarer end.")
    scorer = parser.add_argument_group("scorers")
    scorer.add_argument("--scorer_model", default="test_resnet", help="Any network of timm.")
    scorer.add_argument("--scorer_resolution", type=int, default=64, help="Images are resized to this for it.")
    scorer.add_argument("--ensemble_size", type=int, default=5)
    scorer.add_argument("--tau_1", type=float, default=0.9, help="Least probability by the scorer.")
    scorer.add_argument("--tau_2", type=float, default=0.9, help="Least probability by every judge of the ensemble.")
    scorer.add_argument(
        "--holdout_file", type=Path, help="CSV: source_index, label (a class, or mild). Sets the taus."
    )
    scorer.add_argument(
        "--ensemble_pool",
        choices=["all", "agreed"],
        default="all",
        help="Its members learn from all labels, or as in the paper from those that the scorer agrees with.",
    )
    scorer.add_argument(
        "--unlabelled",
        choices=["ignore", "between"],
        default="ignore",
        help="What networks make of images without a label: nothing, or that they show neither end (say, brown hair).",
    )
    scorer.add_argument("--cross_fit", action=flag, default=True, help="Judge only by networks that did not see it.")
    scorer.add_argument("--compare", action=flag, default=False, help="With known latents: measure both pools.")
    scorer.add_argument("--random_flip", action=flag, default=True)
    scorer.add_argument("--eval_batch_size", type=int, default=64)
    scorer.add_argument("--zero_shot_model", help="Checkpoint with image and text encoders, a folder or of the Hub.")
    scorer.add_argument("--prompts", nargs=2, metavar=("LOW", "HIGH"), help="What each end looks like, in words.")
    scorer.add_argument("--class_names", nargs=2, default=["low", "high"], help="Of ends found by a score or prompts.")
    parser.add_argument("--push_to_hub", action=flag, default=False)
    parser.add_argument("--hub_dataset_id", help="Repository to push to; defaults to the output folder's name.")
    add_training_arguments(parser.add_argument_group("training of the scorers"))
    parser.set_defaults(
        max_train_steps=800,
        train_batch_size=64,
        learning_rate=3e-3,
        lr_scheduler="cosine",
        lr_warmup_steps=80,
        adam_weight_decay=0.05,
        use_ema=False,
        checkpointing_steps=200,
        checkpoints_total_limit=1,
        resume_from_checkpoint="latest",
    )
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    if args.dataset is None or args.output_dir is None:
        raise ValueError(
            "`--dataset` and `--output_dir` are needed; expected both on the command line or in the recipe."
        )
    check_training_arguments(args)
    if args.push_to_hub:
        find_token()  # hours later would be late
    if args.resolution < 8:
        raise ValueError(f"`--resolution` is {args.resolution}; expected at least 8.")
    if args.output_dir.exists() and not (args.output_dir / "dataset_info.json").exists():
        raise ValueError(f"`--output_dir` {args.output_dir} exists; expected a data set to replace, or a free name.")
    for name in (
        "num_images",
        "ensemble_size",
        "scorer_resolution",
        "eval_batch_size",
        *(["num_proc"] if args.num_proc is not None else []),
    ):
        if getattr(args, name) < 1:
            raise ValueError(f"`--{name}` is {getattr(args, name)}; expected at least 1.")
    if args.cross_fit and args.ensemble_size < 2:
        raise ValueError(f"`--ensemble_size` is {args.ensemble_size}; expected at least 2 with `--cross_fit`.")
    for name, low, high in (("tau_1", 0.5, 1), ("tau_2", 0.5, 1), ("keep_share", 0, 0.5)):
        if not low <= getattr(args, name) < high:
            raise ValueError(f"`--{name}` is {getattr(args, name)}; expected a number from {low} to below {high}.")
    if args.num_extremes is not None and not (len(args.num_extremes) <= 2 and min(args.num_extremes) >= 1):
        raise ValueError(f"`--num_extremes` is {args.num_extremes}; expected one or two numbers of at least 1.")
    if args.extremes and not args.attribute and args.dataset != "images":
        raise ValueError("`--attribute` is missing; expected the attribute whose `--extremes` to keep.")
    needs_source = args.dataset in ("celeba", "images")
    given = [name for name in ("train_data_dir", "dataset_name") if getattr(args, name) is not None]
    if needs_source and len(given) != 1:
        raise ValueError(f"`--dataset {args.dataset}` has {given}; expected `--train_data_dir` or `--dataset_name`.")
    if args.by == "zero_shot" and not (args.zero_shot_model and args.prompts):
        raise ValueError("`--by zero_shot` is incomplete; expected `--zero_shot_model` and `--prompts` as well.")
    if decided_by(args) in ("score", "zero_shot") and args.attribute and len(args.attribute) > 1:
        raise ValueError(f"`--attribute` is {args.attribute}; expected one with scores or prompts.")


def decided_by(args: argparse.Namespace) -> str:
    """What `--by` says, or else what the source offers."""
    drawn = args.dataset in ("circles", "digits", "objects")
    return args.by or ("score" if args.score_column else "factor" if drawn else "labels")


def build(args: argparse.Namespace) -> tuple[Dataset, dict[str, dict[str, int]]]:
    """The source, and the counts of images skipped and converted."""
    nothing: dict[str, dict[str, int]] = {"skipped": {}, "converted": {}}
    source = args.train_data_dir or args.dataset_name
    if args.dataset == "circles":
        return circles(args.num_images, args.resolution, args.seed), nothing
    if args.dataset == "digits":
        return digits(), nothing
    if args.dataset == "faces":
        return faces(args.num_images, args.resolution, args.seed, args.num_proc), nothing
    if args.dataset == "celeba":
        return celeba(source, args.split, args.resolution, args.num_proc)
    if args.dataset == "objects":
        return objects(args.num_images, args.resolution, args.seed, args.train_data_dir, args.num_proc)
    columns = (args.image_column, args.label_column, args.score_column)
    return image_dataset(source, *columns, args.resolution, args.split, args.num_proc)


def read_holdout(path: Path, classes: list[str]) -> dict[int, int]:
    """Image number to 0 or 1, or -1 for mild."""
    values = {**{name: label for label, name in enumerate(classes)}, "mild": -1}
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        return {int(row["source_index"]): values[row["label"].strip()] for row in rows}
    except (KeyError, ValueError, AttributeError) as error:
        raise ValueError(
            f"`--holdout_file` {path} has {error} somewhere; expected columns source_index (a number) and label "
            f"(one of {list(values)})."
        ) from error


def read_index(path: Path, dataset: Dataset) -> np.ndarray:
    """Mask of the images whose numbers a text file lists."""
    words = path.read_text().replace(",", " ").split()
    if not words or not all(word.isdigit() for word in words):
        raise ValueError(f"`--index_file` {path} holds something else; expected image numbers, one a line.")
    numbers, wanted = np.asarray(dataset["source_index"]), np.array(words, dtype=np.int64)
    missing = np.setdiff1d(wanted, numbers)
    if len(missing):
        raise ValueError(f"`--index_file` {path} names image {missing[0]}; expected numbers of the source's images.")
    return np.isin(numbers, wanted)


def select(accelerator: Any, dataset: Dataset, attribute: str, args: argparse.Namespace, folder: Path) -> Selection:
    by, counts = decided_by(args), args.num_extremes or [max(1, round(args.keep_share * len(dataset)))]
    if args.index_file is not None:
        kept = read_index(args.index_file, dataset)
        labels = label_column(dataset, attribute)
        record = {"by": "index", "num_images": {"source": len(dataset), "listed": int(kept.sum())}}
        return Selection(kept, labels, labels.astype(float), np.zeros_like(kept), record)
    if by == "factor":
        return select_by_factor(dataset, attribute, args.delta)
    if by == "score":
        if "score" not in dataset.column_names:
            raise ValueError("`--by score` needs scores; expected `--score_column` with `--dataset images`.")
        return select_by_score(np.asarray(dataset["score"], dtype=np.float64), (counts[0], counts[-1]))
    if by == "zero_shot":
        if attribute in dataset.column_names:
            raise ValueError(f"`--attribute` is {attribute!r}, a column of the source; expected a new name.")
        scores = zero_shot_log_odds(accelerator, dataset, args.zero_shot_model, args.prompts, args)
        selection = select_by_score(scores.astype(np.float64), (counts[0], counts[-1]))
        selection.record.update(zero_shot_model=args.zero_shot_model, prompts=args.prompts)
        return selection
    label_column(dataset, attribute)
    holdout = args.holdout_file and read_holdout(args.holdout_file, dataset.features[attribute].names)
    return select_by_labels(accelerator, dataset, attribute, holdout, args, folder)


def label_column(dataset: Dataset, attribute: str) -> np.ndarray:
    feature = dataset.features.get(attribute)
    if not isinstance(feature, ClassLabel) or feature.num_classes != 2:
        raise ValueError(
            f"`--attribute` is {attribute!r}; expected a column with two classes, of {dataset.column_names}."
        )
    return np.asarray(dataset[attribute])


def work_folder(dataset: Dataset, args: argparse.Namespace) -> Path:
    """Beside the output: what a killed build left, if it had the same source and flags; else empty."""
    folder = args.output_dir.resolve().with_name(args.output_dir.name + ".work")
    unlike = ("num_proc", "dataloader_num_workers", "push_to_hub", "hub_dataset_id", "recipe", "output_dir", "compare")
    flags = {name: str(value) for name, value in vars(args).items() if name not in unlike}
    content = json.dumps({**flags, "source": dataset._fingerprint}, indent=2)
    if not (folder / "build.json").exists() or (folder / "build.json").read_text() != content:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "build.json").write_text(content)
    return folder


def main(args: argparse.Namespace) -> None:
    check_arguments(args)
    accelerator = create_accelerator(args)
    with accelerator.main_process_first():
        dataset, counts = build(args)
    for kind, reasons in counts.items():
        for reason, count in reasons.items():
            accelerator.print(f"{kind}: {count} ({reason})")
    if not args.extremes:
        if accelerator.is_main_process:
            save_whole(dataset, counts, args)
        return
    with accelerator.main_process_first():
        folder = work_folder(dataset, args)
    attributes = args.attribute or [args.label_column or args.score_column]
    selections = {
        attribute: select(accelerator, dataset, attribute, args, folder / attribute) for attribute in attributes
    }
    if accelerator.is_main_process:
        write_extreme_set(dataset, selections, counts, args)
        shutil.rmtree(folder)
    accelerator.wait_for_everyone()


def save_whole(dataset: Dataset, counts: dict[str, dict[str, int]], args: argparse.Namespace) -> None:
    with replace_folder(args.output_dir) as output:
        dataset.save_to_disk(output)
        (output / "provenance.json").write_text(json.dumps({"source": source_record(dataset, counts)}) + "\n")
    print(f"{len(dataset)} images in {args.output_dir}")
    if args.push_to_hub:
        push_data_set(args.output_dir, args.hub_dataset_id or args.output_dir.name)


def source_record(dataset: Dataset, counts: dict[str, dict[str, int]]) -> dict[str, Any]:
    return {"fingerprint": dataset._fingerprint, "num_images": len(dataset), **counts}


def write_extreme_set(
    dataset: Dataset,
    selections: dict[str, Selection],
    counts: dict[str, dict[str, int]],
    args: argparse.Namespace,
) -> None:
    kept = np.logical_and.reduce([selection.kept for selection in selections.values()])
    for attribute, selection in selections.items():
        present = np.unique(selection.labels[kept])
        if len(present) < 2:
            raise ValueError(
                f"`--attribute` '{attribute}' has {len(present)} of its two ends among the {kept.sum()} images kept; "
                "expected both: keep more or start from more images."
            )
        if selection.record["by"] == "score":
            if "score" in dataset.column_names:
                dataset = dataset.rename_column("score", f"score_{attribute}")
            names = ClassLabel(names=args.class_names)
            dataset = dataset.add_column(attribute, selection.labels, feature=names)
    indices = np.flatnonzero(kept)
    if args.oversample:
        first = next(iter(selections.values()))
        indices = oversample(indices, first.labels[indices])
    with replace_folder(args.output_dir) as output:
        dataset.select(indices).save_to_disk(output)
        write_card(output, CARD, dataset, selections, kept, len(indices), source_record(dataset, counts), args)
    print(f"{len(indices)} of {len(dataset)} images in {args.output_dir}")
    if args.push_to_hub:
        push_data_set(args.output_dir, args.hub_dataset_id or args.output_dir.name)


if __name__ == "__main__":
    run_script(main, create_parser(), section="build_dataset")
