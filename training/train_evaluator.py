"""Train a judge of clean images: which class of a label column (say, which digit), or how much of a factor.

    accelerate launch training/train_evaluator.py --recipe training/recipes/digits.yaml
    accelerate launch training/train_evaluator.py --train_data_dir faces --attribute factor_Smiling --output_dir out

A column of floats in [0, 1] is regressed (paper, appendix K), a label column is classified; either is calibrated by a
temperature on the held-out images (paper, appendix D). Writes an `ImageClassifier` to
`<output_dir>/evaluator`, with its figures on the held-out images in `training.json`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import ClassLabel, Dataset, Value

from diffusers_multiguidance.utils.files import replace_folder
from diffusers_multiguidance.models.evaluator import ImageClassifier
from diffusers_multiguidance.training.recipe import run_script
from diffusers_multiguidance.training.trainer import (
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
    parser.add_argument("--attribute", help="Label column to classify, or column of numbers in [0, 1] to regress.")
    parser.add_argument("--model", default="resnet10t", help="Any network of timm.")
    parser.add_argument("--eval_share", type=float, default=0.1, help="Held out to measure and calibrate; may be 0.")
    return parser


def judge(model: ImageClassifier, dataset: Dataset, resolution: int, column: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and true values of every row of `dataset`."""
    batches = with_tensors(dataset, resolution, [column]).iter(256)
    with torch.no_grad():
        pairs = [(model(batch["image"]), torch.tensor(batch[column])) for batch in batches]
    return torch.cat([logits for logits, _ in pairs]), torch.cat([values for _, values in pairs])


def fit_temperature(logits: torch.Tensor, loss: Callable[[torch.Tensor], torch.Tensor]) -> float:
    """The temperature at which held-out images have the least loss (temperature scaling, Guo et al. 2017)."""
    log_temperature = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperature], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss(logits / log_temperature.exp())
        value.backward()
        return value

    optimizer.step(closure)
    return float(log_temperature.detach().exp())


def classification_figures(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    probabilities, predicted = logits.softmax(dim=1).max(dim=1)
    return {
        "held_out_images": len(labels),
        "held_out_accuracy": float((predicted == labels).float().mean()),
        "held_out_cross_entropy": float(F.cross_entropy(logits, labels)),
        "held_out_recognized_above_0.9": float((probabilities > 0.9).float().mean()),
    }


def regression_figures(logits: torch.Tensor, values: torch.Tensor) -> dict[str, Any]:
    error = (logits.squeeze(1).sigmoid() - values).double()
    tenths = (values * 10).long().clamp(0, 9)
    return {
        "held_out_images": len(values),
        "held_out_mean_absolute_error": float(error.abs().mean()),
        "held_out_root_mean_squared_error": float(error.square().mean().sqrt()),
        "held_out_bias_by_tenth": [round(float(error[tenths == tenth].mean()), 4) for tenth in range(10)],
    }


def main(args: argparse.Namespace) -> None:
    check_training_arguments(args)
    dataset = load_training_set(args)
    feature = dataset.features.get(args.attribute)
    is_factor = feature in (Value("float32"), Value("float64"))
    if not (is_factor or isinstance(feature, ClassLabel)):
        raise ValueError(
            f"`--attribute` is {args.attribute!r}; expected a column of labels or numbers, of {dataset.column_names}."
        )
    column = np.asarray(dataset[args.attribute])
    known = np.flatnonzero((column >= 0) & (column <= 1) if is_factor else column >= 0)
    if len(known) < len(dataset):
        print(f"{len(dataset) - len(known)} of {len(dataset)} images have no '{args.attribute}' and are left out.")
        dataset = dataset.select(known)
    if not 0 <= args.eval_share < 1:
        raise ValueError(f"`--eval_share` is {args.eval_share}; expected a number from 0 to below 1.")
    held_out = None
    if args.eval_share:
        stratify = None if is_factor else args.attribute
        split = dataset.train_test_split(test_size=args.eval_share, seed=args.seed, stratify_by_column=stratify)
        dataset, held_out = split["train"], split["test"]
    accelerator = create_accelerator(args)
    torch.manual_seed(args.seed)
    classes = None if is_factor else feature.names
    model = ImageClassifier(args.model, args.attribute, classes, image_channels(dataset), args.resolution)

    def loss(logits: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        if is_factor:
            return F.mse_loss(logits.squeeze(1).sigmoid(), values.float())
        return F.cross_entropy(logits, values)

    def compute_loss(model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        return {"loss": loss(model(batch["image"]), batch[args.attribute])}

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
            logits, values = judge(model, held_out, args.resolution, args.attribute)
            temperature = fit_temperature(logits, lambda scaled: loss(scaled, values))
            model.register_to_config(temperature=temperature)
            figures = regression_figures if is_factor else classification_figures
            record |= figures(logits / temperature, values)
        with replace_folder(args.output_dir / "evaluator") as folder:
            model.save_pretrained(folder)
            write_record(folder, record, args)
    accelerator.end_training()


if __name__ == "__main__":
    run_script(main, create_parser(), section="train_evaluator")
