"""Training of an evaluator of clean images: which class of a label column (say, which digit), or how much of a value.

A column of floats in [0, 1] is regressed (paper, appendix K), a label column is classified; either is calibrated by a
temperature on the held-out images (paper, appendix D).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import ClassLabel, Dataset, Value

from ..data.load import load_training_set
from ..data.transforms import image_channels, with_tensors
from ..models.evaluator import ImageClassifier
from ..utils.files import replace_folder
from ..utils.seeds import stream_seed
from .settings import TrainingSettings, check_numbers, flag
from .trainer import Batch, create_accelerator, train, write_record


@dataclass(kw_only=True)
class EvaluatorSettings(TrainingSettings):
    """Settings of train_evaluator.py."""

    attribute: str = flag(help="Label column to classify, or column of numbers in [0, 1] to regress.")
    model: str = flag("resnet10t", "Any network of timm.")
    eval_share: float = flag(0.1, "Held out to measure and calibrate; may be 0.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "eval_share", at_least=0, below=1)


def train_evaluator(settings: EvaluatorSettings) -> Path:
    """Train an `ImageClassifier`, with its figures on the held-out images in `training.json`.

    Returns:
        Its folder, `<output_dir>/evaluator`.

    Raises:
        ValueError: for a training set or settings that no run can be made of, before anything is written.
    """
    dataset = load_training_set(settings.dataset_name, settings.train_data_dir)
    attribute = settings.attribute
    feature = dataset.features.get(attribute)
    is_number = feature in (Value("float32"), Value("float64"))
    if not (is_number or isinstance(feature, ClassLabel)):
        raise ValueError(
            f"`--attribute` is {attribute!r}; expected a column of labels or numbers, of {dataset.column_names}."
        )
    column = np.asarray(dataset[attribute])
    known = np.flatnonzero((column >= 0) & (column <= 1) if is_number else column >= 0)
    if len(known) < len(dataset):
        print(f"{len(dataset) - len(known)} of {len(dataset)} images have no '{attribute}' and are left out.")
        dataset = dataset.select(known)
    held_out = None
    if settings.eval_share:
        stratify = None if is_number else attribute
        split = dataset.train_test_split(settings.eval_share, seed=settings.seed, stratify_by_column=stratify)
        dataset, held_out = split["train"], split["test"]
    torch.manual_seed(stream_seed(settings.seed, "weights", 0))
    classes = None if is_number else feature.names
    model = ImageClassifier(settings.model, attribute, classes, image_channels(dataset), settings.resolution)
    accelerator = create_accelerator(settings)

    def loss(logits: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        if is_number:
            return F.mse_loss(logits.squeeze(1).sigmoid(), values.float())
        return F.cross_entropy(logits, values)

    def compute_loss(model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        return {"loss": loss(model(batch["image"]), batch[attribute])}

    tensors = with_tensors(dataset, settings.resolution, [attribute])
    model, record = train(accelerator, model, tensors, compute_loss, settings, "evaluator")
    if accelerator.is_main_process:
        model = model.cpu().to(memory_format=torch.contiguous_format)
        if held_out is not None:
            logits, values = predict(model, held_out, settings.resolution, attribute)
            temperature = fit_temperature(logits, lambda scaled: loss(scaled, values))
            model.register_to_config(temperature=temperature)
            figures = regression_figures if is_number else classification_figures
            record |= figures(logits / temperature, values)
        with replace_folder(settings.output_dir / "evaluator") as folder:
            model.save_pretrained(folder)
            write_record(folder, record, settings)
    accelerator.end_training()
    return settings.output_dir / "evaluator"


def predict(
    model: ImageClassifier, dataset: Dataset, resolution: int, column: str
) -> tuple[torch.Tensor, torch.Tensor]:
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
