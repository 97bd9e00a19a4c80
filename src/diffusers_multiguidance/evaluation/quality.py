"""Whether generated images are still what they should be, judged by an evaluator that train_evaluator.py trained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import load_file


def class_probabilities(evaluator: Path, images: np.ndarray, batch_size: int = 256) -> np.ndarray:
    """What an evaluator says of images.

    Args:
        evaluator: folder with `config.json` and `model.safetensors`.
        images: (N, H, W, C) uint8.

    Returns:
        (N, number of classes).
    """
    config = json.loads((evaluator / "config.json").read_text())
    if images.shape[-1] != config["channels"]:
        raise ValueError(f"`images` have {images.shape[-1]} channels; expected {config['channels']}.")
    model = timm.create_model(config["model"], num_classes=len(config["classes"]), in_chans=config["channels"])
    model.load_state_dict(load_file(evaluator / "model.safetensors"))
    model.eval()
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.inference_mode():
        return torch.cat([model(batch).softmax(dim=1) for batch in pixels.split(batch_size)]).numpy()


def share_recognized(probabilities: np.ndarray, threshold: float = 0.9) -> float:
    """Share of images for which some class has a probability above `threshold`."""
    return float((probabilities.max(axis=1) > threshold).mean())
