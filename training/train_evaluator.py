"""Train a classifier of clean images, to judge generated ones: for example which digit, and how surely.

    accelerate launch training/train_evaluator.py --recipe training/recipes/digits.yaml

Writes a `timm` network and its labels to `<output_dir>/evaluator`; `evaluation.quality` reads it.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import timm
import torch
import torch.nn.functional as F
from datasets import ClassLabel
from safetensors.torch import save_file

from diffusers_multiguidance.files import replace_folder
from diffusers_multiguidance.recipe import run_script
from diffusers_multiguidance.trainer import (
    Batch,
    add_training_arguments,
    check_training_arguments,
    create_accelerator,
    image_channels,
    load_training_set,
    train,
    with_tensors,
    write_record,
)


def create_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_training_arguments(parser)
    parser.add_argument("--attribute", help="Label column to classify.")
    parser.add_argument("--model", default="resnet10t", help="Any network of timm.")
    parser.add_argument("--eval_share", type=float, default=0.1, help="Held out to measure accuracy; may be 0.")
    return parser


def main(args: argparse.Namespace) -> None:
    check_training_arguments(args)
    dataset = load_training_set(args)
    feature = dataset.features.get(args.attribute)
    if not isinstance(feature, ClassLabel):
        raise ValueError(f"`--attribute` is {args.attribute!r}; expected a label column of {dataset.column_names}.")
    if not 0 <= args.eval_share < 1:
        raise ValueError(f"`--eval_share` is {args.eval_share}; expected a number from 0 to below 1.")
    if args.model not in timm.list_models():
        raise ValueError(f"`--model` is {args.model!r}; expected a name that `timm.list_models()` lists.")
    channels = image_channels(dataset)
    held_out = None
    if args.eval_share:
        split = dataset.train_test_split(test_size=args.eval_share, seed=args.seed, stratify_by_column=args.attribute)
        dataset, held_out = split["train"], split["test"]
    accelerator = create_accelerator(args)
    torch.manual_seed(args.seed)
    model = timm.create_model(args.model, num_classes=feature.num_classes, in_chans=channels)

    def compute_loss(model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        logits = model(batch["image"])
        accuracy = (logits.argmax(dim=1) == batch[args.attribute]).float().mean()
        return {"loss": F.cross_entropy(logits, batch[args.attribute]), "accuracy": accuracy}

    model, record = train(
        accelerator,
        model,
        with_tensors(dataset, args.resolution, [args.attribute]),
        compute_loss,
        args,
        args.output_dir,
        "evaluator",
        args.seed,
    )
    if accelerator.is_main_process:
        model = model.cpu().to(memory_format=torch.contiguous_format)
        if held_out is not None:
            rows = with_tensors(held_out, args.resolution, [args.attribute])
            with torch.no_grad():
                probabilities = model(torch.stack([row["image"] for row in rows])).softmax(dim=1)
            labels = torch.tensor(held_out[args.attribute])
            record["held_out_images"] = len(labels)
            record["held_out_accuracy"] = float((probabilities.argmax(dim=1) == labels).float().mean())
            record["held_out_recognized_above_0.9"] = float((probabilities.max(dim=1).values > 0.9).float().mean())
        config = {"model": args.model, "channels": channels, "attribute": args.attribute, "classes": feature.names}
        with replace_folder(args.output_dir / "evaluator") as folder:
            save_file(model.state_dict(), folder / "model.safetensors")
            (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
            write_record(folder, record, args)
    accelerator.end_training()


if __name__ == "__main__":
    run_script(main, create_parser(), section="train_evaluator")
