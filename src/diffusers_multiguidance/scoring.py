"""Scorers of an extreme set: networks trained on its noisy labels, and what they say of every image."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from datasets import Dataset
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import RandomCrop
from tqdm.auto import tqdm
from transformers import AutoModel, AutoProcessor

from .files import replace_folder
from .models.image_classifier import ImageClassifier
from .trainer import Batch, image_channels, random_flip, train, with_tensors


def train_scorer(
    accelerator: Accelerator, dataset: Dataset, attribute: str, args: argparse.Namespace, folder: Path, seed: int
) -> ImageClassifier:
    """Train a `timm` network on a label column with two classes, or load it where that was done before.

    Args:
        dataset: a label of -1 is taken for an image between the two.
        args: the training flags, and `--scorer_model`, `--scorer_resolution` and `--random_flip`.
        folder: for checkpoints, and the finished network in its `scorer`.
    """
    finished = folder / "scorer"
    if not finished.exists():
        torch.manual_seed(seed)
        classes = dataset.features[attribute].names
        size = args.scorer_resolution
        model = ImageClassifier(args.scorer_model, attribute, classes, image_channels(dataset), size)
        shift = RandomCrop(size, padding=size // 16, padding_mode="edge")  # by the same for a batch

        def compute_loss(model: Any, batch: Batch) -> dict[str, torch.Tensor]:
            images, labels = batch["image"], batch[attribute]
            if args.random_flip:
                images = random_flip(images)
            images = shift(images)
            logits = model(images)
            labelled = labels >= 0
            # An image of neither kind has both probabilities at one half.
            shares = torch.where(labelled[:, None], F.one_hot(labels.clamp(min=0), 2).float(), 0.5)
            accuracy = (logits.argmax(dim=1) == labels)[labelled].float().mean()
            return {"loss": F.cross_entropy(logits, shares), "accuracy": accuracy}

        tensors = with_tensors(dataset, size, [attribute])
        model, _ = train(accelerator, model, tensors, compute_loss, args, folder, folder.name, seed)
        if accelerator.is_main_process:
            with replace_folder(finished) as temporary:
                model.cpu().to(memory_format=torch.contiguous_format).save_pretrained(temporary)
        accelerator.wait_for_everyone()
    return ImageClassifier.from_pretrained(finished)


def log_odds(
    accelerator: Accelerator,
    models: list[ImageClassifier],
    dataset: Dataset,
    args: argparse.Namespace,
    description: str,
) -> np.ndarray:
    """Log-odds of the second class, (models, N) float32, of every image in `dataset`, in its order.

    All models judge an image while it is there: reading it costs a third as much as a small network.
    """
    for model in models:
        model.to(accelerator.device, memory_format=torch.channels_last).eval()
    loader = accelerator.prepare(
        DataLoader(
            with_tensors(dataset, args.scorer_resolution, []),
            args.eval_batch_size,
            num_workers=args.dataloader_num_workers,
        )
    )
    scores = []
    with torch.inference_mode():
        for batch in tqdm(loader, desc=description, disable=not accelerator.is_main_process):
            images = batch["image"].contiguous(memory_format=torch.channels_last)
            logits = torch.stack([model(images) for model in models], dim=1)
            scores.append(accelerator.gather_for_metrics(logits[..., 1] - logits[..., 0]).float().cpu())
    return torch.cat(scores).T.numpy()


def zero_shot_log_odds(
    accelerator: Accelerator, dataset: Dataset, model_name: str, prompts: list[str], args: argparse.Namespace
) -> np.ndarray:
    """How much more an image fits the second prompt than the first, (N,) float32, by any CLIP-like checkpoint.

    The paper orders CelebA by age in this way, with FaRL (appendix D).
    """
    processor = AutoProcessor.from_pretrained(model_name)
    model = AutoModel.from_pretrained(model_name).to(accelerator.device).eval()

    def collate(rows: list[dict[str, Any]]) -> Any:
        images = [row["image"].convert("RGB") for row in rows]
        return processor(text=prompts, images=images, return_tensors="pt", padding=True)

    scores = []
    with torch.inference_mode():
        for batch in tqdm(
            DataLoader(dataset.select_columns("image"), args.eval_batch_size, collate_fn=collate),
            desc="zero-shot scores",
            disable=not accelerator.is_main_process,
        ):
            logits = model(**batch.to(accelerator.device)).logits_per_image
            scores.append((logits[:, 1] - logits[:, 0]).float().cpu())
    return torch.cat(scores).numpy()
