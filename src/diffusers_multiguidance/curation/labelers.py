"""Labelers: networks trained on noisy labels, or on words, and what they say of every image.

They read every image many times, and to decode one takes as long as to label it, so that is done once: `decode`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset
from torch.utils.data import DataLoader, Subset
from torchvision.transforms.v2 import RandomCrop
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModel, AutoProcessor

from ..data.transforms import image_channels, random_flips, scale_pixels, to_pixels
from ..models.evaluator import ImageClassifier
from ..training.trainer import train
from ..utils.files import replace_folder, uninterrupted
from .settings import DatasetSettings


def decode(
    accelerator: Accelerator, dataset: Dataset, size: tuple[int, int], batch_size: int, path: Path
) -> torch.Tensor:
    """All images, (N, H, W, C) uint8, mapped from the file at `path`, which is written once.

    It takes 12 KiB for an image of 64 x 64 pixels; the system holds in memory what it has room for.
    """
    with accelerator.main_process_first():
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            channels, temporary = image_channels(dataset), path.with_suffix(".tmp")
            shape = (len(dataset), *size, channels)
            images = dataset.select_columns("image")
            try:
                pixels = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
                for start in tqdm(range(0, len(dataset), batch_size), desc="decoding", unit="batch"):
                    rows = images[start : start + batch_size]["image"]
                    pixels[start : start + len(rows)] = to_pixels(rows, size, channels)
                pixels.flush()
                temporary.rename(path)
            finally:
                with uninterrupted():
                    temporary.unlink(missing_ok=True)
    return torch.from_numpy(np.load(path, mmap_mode="c"))


def train_labeler(
    accelerator: Accelerator,
    dataset: Subset[tuple[torch.Tensor, ...]],
    attribute: str,
    classes: list[str],
    settings: DatasetSettings,
    folder: Path,
    seed: int,
) -> ImageClassifier:
    """Train a `timm` network on labels of two classes, or load it where that was done before.

    Args:
        dataset: uint8 pixels (H, W, C) as of `decode`, and a label: 0, 1, or -1 for an image between the two.
        settings: how to train, with what network.
        folder: for checkpoints, and the finished network in its `labeler`.
    """
    finished = folder / "labeler"
    if not finished.exists():
        torch.manual_seed(seed)
        *size, channels = dataset[0][0].shape
        model = ImageClassifier(settings.labeler_model, attribute, classes, channels, tuple(size))
        shift = RandomCrop(size, padding=min(size) // 16, padding_mode="edge")  # by the same for a batch

        def compute_loss(model: Any, batch: list[torch.Tensor]) -> dict[str, torch.Tensor]:
            images, labels = scale_pixels(batch[0]), batch[1]
            images = shift(random_flips(images, settings.random_flip, settings.random_vertical_flip))
            logits = model(images)
            labelled = labels >= 0
            # An image of neither kind has both probabilities at one half.
            shares = torch.where(labelled[:, None], F.one_hot(labels.clamp(min=0), 2).float(), 0.5)
            accuracy = (logits.argmax(dim=1) == labels)[labelled].float().mean()
            return {"loss": F.cross_entropy(logits, shares), "accuracy": accuracy}

        own = replace(settings, output_dir=folder, seed=seed)
        model, _ = train(accelerator, model, dataset, compute_loss, own, folder.name)
        if accelerator.is_main_process:
            with replace_folder(finished) as temporary:
                model.cpu().to(memory_format=torch.contiguous_format).save_pretrained(temporary)
        accelerator.wait_for_everyone()
    return ImageClassifier.from_pretrained(finished)


def log_odds(
    accelerator: Accelerator,
    models: list[ImageClassifier],
    pixels: torch.Tensor,
    batch_size: int,
    description: str,
    mirror: bool = False,
) -> np.ndarray:
    """Log-odds of the second class, (models, N) float32, of every image of `decode`, in its order.

    Each process labels its part of the images, in batches of `batch_size`.

    Args:
        mirror: ask about the image and its mirror image, and take the mean.
    """
    for model in models:
        model.to(accelerator.device, memory_format=torch.channels_last).eval()
    part = pixels.tensor_split(accelerator.num_processes)[accelerator.process_index]
    scores = []
    with torch.inference_mode():
        for batch in tqdm(part.split(batch_size), desc=description, disable=not accelerator.is_main_process):
            images = scale_pixels(batch.to(accelerator.device))
            views = [images, images.flip(3)] if mirror else [images]
            logits = torch.stack([sum(model(view) for view in views) / len(views) for model in models], dim=1)
            scores.append((logits[..., 1] - logits[..., 0]).float().cpu())
    return torch.cat(gather_object(scores)).T.numpy()


def zero_shot_log_odds(
    accelerator: Accelerator, dataset: Dataset, model_name: str, prompts: list[str], batch_size: int
) -> np.ndarray:
    """How much more an image fits the second prompt than the first, (N,) float32, by any CLIP-like checkpoint.

    The paper orders CelebA by age in this way, with FaRL (appendix D).
    """
    processor = AutoProcessor.from_pretrained(model_name)
    model = AutoModel.from_pretrained(model_name).to(accelerator.device).eval()
    collate = partial(_process_rows, processor=processor, prompts=prompts)
    scores = []
    with torch.inference_mode():
        for batch in tqdm(
            DataLoader(dataset.select_columns("image"), batch_size, collate_fn=collate),
            desc="zero-shot scores",
            disable=not accelerator.is_main_process,
        ):
            logits = model(**batch.to(accelerator.device)).logits_per_image
            scores.append((logits[:, 1] - logits[:, 0]).float().cpu())
    return torch.cat(scores).numpy()


def _process_rows(rows: list[dict[str, Any]], processor: Any, prompts: list[str]) -> Any:
    # No local function, which could not be sent to a process that loads images.
    images = [row["image"].convert("RGB") for row in rows]
    return processor(text=prompts, images=images, return_tensors="pt", padding=True)


def check_zero_shot_model(name: str) -> None:
    """Raise `ValueError` unless `name` is a checkpoint that, by its configuration, encodes images and texts."""
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"`--zero_shot_model` {name!r} can't be read ({error}); expected a checkpoint.") from error
    if not (hasattr(config, "vision_config") and hasattr(config, "text_config")):
        raise ValueError(
            f"`--zero_shot_model` {name!r} is a {config.model_type}; expected an image and a text encoder, as of CLIP."
        )
