"""Whether generated images are still what they should be, judged by an evaluator that train_evaluator.py trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError

from ..models.evaluator import ImageClassifier


def load_evaluator(folder: str | Path) -> ImageClassifier:
    """The evaluator in a folder.

    Raises:
        ValueError: where there is none, or a broken one.
    """
    try:
        return ImageClassifier.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, SafetensorError, RuntimeError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"`{folder}` can't be read ({reason}); expected what train_evaluator.py writes.") from error


def evaluator_logits(evaluator: ImageClassifier, images: np.ndarray, batch_size: int = 256) -> torch.Tensor:
    """What an evaluator says of images.

    Args:
        images: (N, H, W, C) uint8.

    Returns:
        (N, number of outputs).

    Raises:
        ValueError: for images that the evaluator was not made for.
    """
    size, channels = evaluator.config["sample_size"], evaluator.config["in_channels"]
    if images.shape[1:] != (size, size, channels):
        raise ValueError(
            f"`images` have shape {images.shape}; expected (N, {size}, {size}, {channels}) for this evaluator."
        )
    evaluator.eval()
    with torch.inference_mode():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
        return torch.cat([evaluator(batch.float() / 127.5 - 1) for batch in pixels.split(batch_size)])


def class_probabilities(evaluator: str | Path, images: np.ndarray) -> np.ndarray:
    """(N, number of classes), from the evaluator in a folder; see `evaluator_logits`."""
    return evaluator_logits(load_evaluator(evaluator), images).softmax(dim=1).numpy()


def share_recognized(probabilities: np.ndarray, threshold: float = 0.9) -> float:
    """Share of images for which some class has a probability above `threshold`."""
    return float((probabilities.max(axis=1) > threshold).mean())
