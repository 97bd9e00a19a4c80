"""Training of an evaluator of clean images: which class of a label column (say, which digit), or how much of a value.

A column of floats in [0, 1] is regressed (paper, appendix K), a label column is classified; either is calibrated by a
temperature on the held-out images (paper, appendix D).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from matplotlib.figure import Figure
from torchmetrics.functional.classification import multiclass_calibration_error
from torchmetrics.functional.regression import spearman_corrcoef

from ..data.labels import with_labels, with_numbers
from ..data.transforms import image_channels, random_flips, with_tensors
from ..models.evaluator import ImageClassifier, check_timm_model
from ..utils.files import replace_folder
from ..utils.seeds import stream_seed
from ..utils.writable import check_attributes
from .settings import TrainingSettings, check_numbers, flag
from .trainer import Batch, create_accelerator, read_training_set, train, write_record


@dataclass(kw_only=True)
class EvaluatorSettings(TrainingSettings):
    """Settings of train_evaluator.py."""

    attribute: str = flag(help="Label column to classify, or column of numbers in [0, 1] to regress.")
    model: str = flag("resnet10t", "Any network of timm.")
    num_members: int = flag(1, "Networks that start apart and are averaged.")
    eval_share: float = flag(0.1, "Held out to measure and calibrate; may be 0.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_attributes([self.attribute], "attribute")
        check_numbers(self, "num_members", at_least=1)
        check_numbers(self, "eval_share", at_least=0, below=1)


def train_evaluator(settings: EvaluatorSettings) -> Path:
    """Train an `ImageClassifier`, with its figures on the held-out images in `training.json`.

    Returns:
        Its folder, `<output_dir>/evaluator`.

    Raises:
        ValueError: for a training set or settings that no run can be made of, before anything is written.
    """
    accelerator = create_accelerator(settings)
    dataset = read_training_set(accelerator, settings)
    attribute = settings.attribute
    is_number = str(getattr(dataset.features.get(attribute), "dtype", None)).startswith("float")
    dataset = (with_numbers if is_number else with_labels)(dataset, attribute, "attribute", accelerator.print)
    classes = None if is_number else dataset.features[attribute].names
    held_out = None
    if settings.eval_share:
        stratify = None if is_number else attribute
        try:
            split = dataset.train_test_split(settings.eval_share, seed=settings.seed, stratify_by_column=stratify)
        except ValueError as error:
            raise ValueError(
                f"`--eval_share` is {settings.eval_share}, which can't be held out of {len(dataset)} images "
                f"({error}); expected another share, or 0."
            ) from error
        dataset, held_out = split["train"], split["test"]
    check_timm_model(settings.model, image_channels(dataset), settings.size, settings.train_batch_size)
    torch.manual_seed(stream_seed(settings.seed, "weights", 0))
    model = ImageClassifier(
        settings.model, attribute, classes, image_channels(dataset), settings.size, settings.num_members
    )

    def loss(logits: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        if is_number:
            return F.mse_loss(logits.squeeze(1).sigmoid(), values.float())
        return F.cross_entropy(logits, values)

    def compute_loss(model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        images = random_flips(batch["image"], settings.random_flip, settings.random_vertical_flip)
        members = model(images, pooled=False)
        return {"loss": torch.stack([loss(logits, batch[attribute]) for logits in members]).mean()}

    tensors = with_tensors(dataset, settings.size, [attribute])
    model, record = train(accelerator, model, tensors, compute_loss, settings, "evaluator")
    if accelerator.is_main_process:
        model = model.cpu().to(memory_format=torch.contiguous_format)
        if held_out is not None:
            members, values = predict(model, held_out, settings.size, attribute)
            logits = model.pool(members)
            temperature = fit_temperature(logits, lambda scaled: loss(scaled, values))
            model.register_to_config(temperature=temperature)
            before, logits = logits, logits / temperature
            if not is_number:
                record["held_out_calibration_error_before"] = calibration_error(before, values)
            record |= regression_figures(logits, values) if is_number else classification_figures(logits, values)
            if settings.num_members > 1:
                record |= disagreement_figures(members / temperature, logits, values)
        with replace_folder(settings.output_dir / "evaluator") as folder:
            model.save_pretrained(folder)
            if held_out is not None:
                save_held_out(before, logits, values, classes, folder / "held_out.png")
            write_record(folder, record, settings)
    accelerator.end_training()
    return settings.output_dir / "evaluator"


def predict(
    model: ImageClassifier, dataset: Dataset, size: tuple[int, int], column: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of every member (number of members, N, number of outputs) and true values of the rows of `dataset`."""
    batches = with_tensors(dataset, size, [column]).iter(256)
    with torch.no_grad():
        pairs = [(model(batch["image"], pooled=False), torch.tensor(batch[column])) for batch in batches]
    return torch.cat([logits for logits, _ in pairs], dim=1), torch.cat([values for _, values in pairs])


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
        "held_out_calibration_error": calibration_error(logits, labels),
        "held_out_recognized_above_0.9": float((probabilities > 0.9).float().mean()),
    }


def calibration_error(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Expected calibration error over 15 bins of confidence (Guo et al. 2017)."""
    return float(multiclass_calibration_error(logits.softmax(dim=1), labels, logits.shape[1], n_bins=15))


def regression_figures(logits: torch.Tensor, values: torch.Tensor) -> dict[str, Any]:
    predicted = logits.squeeze(1).sigmoid()
    error = (predicted - values).double()
    tenths = (values * 10).long().clamp(0, 9)
    return {
        "held_out_images": len(values),
        "held_out_mean_absolute_error": float(error.abs().mean()),
        "held_out_root_mean_squared_error": float(error.square().mean().sqrt()),
        "held_out_rank_correlation": float(spearman_corrcoef(predicted, values.float())),
        "held_out_bias_by_tenth": [round(float(error[tenths == tenth].mean()), 4) for tenth in range(10)],
    }


def disagreement_figures(members: torch.Tensor, logits: torch.Tensor, values: torch.Tensor) -> dict[str, float]:
    """How far an ensemble's members are apart, and whether they are further where the ensemble is wrong.

    An image's disagreement is the standard deviation over the members of the number, or of the probabilities, the mean
    of the classes; its error is that of the number, or what the true class lacks to a probability of 1.

    Args:
        members: (number of members, N, number of outputs) logits.
        logits: (N, number of outputs) of the ensemble.
        values: (N,) true numbers or classes.
    """
    if logits.shape[1] == 1:
        each, error = members.double().sigmoid(), (logits[:, 0].sigmoid() - values).abs()
    else:
        each, error = members.double().softmax(dim=2), 1 - logits.softmax(dim=1).gather(1, values[:, None])[:, 0]
    disagreement = each.std(dim=0, correction=0).mean(dim=1)
    return {
        "held_out_disagreement": float(disagreement.mean()),
        "held_out_mean_error": float(error.mean()),
        "held_out_disagreement_error_rank_correlation": float(spearman_corrcoef(disagreement.float(), error.float())),
    }


def save_held_out(
    before: torch.Tensor, logits: torch.Tensor, values: torch.Tensor, classes: list[str] | None, path: Path
) -> None:
    """What the evaluator says of the held-out images, against the truth.

    Of classes the reliability diagram (Guo et al. 2017), by ten bins, before and after the temperature: how often it
    is right, by how sure it is; of two classes by the second one's probability. Of a number every image, after it.

    Args:
        before, logits: (N, number of outputs), without the temperature and over it.
        values: (N,) true numbers or classes.
    """
    figure = Figure(figsize=(4, 4), layout="constrained")
    axes: Any = figure.subplots()
    axes.axline((0, 0), slope=1, color="0.7", linewidth=1)
    if classes is None:
        axes.plot(values, logits.squeeze(1).sigmoid(), ".", alpha=0.4)
        axes.set(xlabel="true value", ylabel="value by the evaluator")
    else:
        for each, name in ((before, "before"), (logits, "after")):
            error = calibration_error(each, values)
            axes.plot(*reliability(each, values), "o-", label=f"{name} scaling, calibration error {error:.3f}")
        axes.legend(frameon=False, fontsize="small")
        axes.set(
            xlabel=f"probability of {classes[1]}" if len(classes) == 2 else "confidence", ylabel="share of images"
        )
    axes.set(xlim=(0, 1), ylim=(0, 1))
    figure.savefig(path, dpi=120)


def reliability(logits: torch.Tensor, labels: torch.Tensor, num_bins: int = 10) -> tuple[list[float], list[float]]:
    """How sure the evaluator is, and how often it is right, by bins of how sure it is; empty ones are left out.

    Of two classes it is the second one's probability and share.
    """
    probabilities = logits.softmax(dim=1)
    sure, right = (
        (probabilities[:, 1], labels)
        if logits.shape[1] == 2
        else (probabilities.max(dim=1).values, probabilities.argmax(dim=1) == labels)
    )
    bins = (sure * num_bins).long().clamp(0, num_bins - 1)
    filled = [bins == number for number in range(num_bins) if (bins == number).any()]
    return [float(sure[rows].mean()) for rows in filled], [float(right[rows].float().mean()) for rows in filled]
