"""What the denoiser and the classifiers are trained on: pixels, or latents that are encoded once and kept."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from datasets import Array4D, Dataset, Features, concatenate_datasets
from datasets.fingerprint import Hasher

from ..data.transforms import image_channels, random_flips, to_tensors, with_tensors
from ..guidance import weights_fingerprint
from ..models.autoencoder import downsampling, to_latents
from .settings import TrainingSettings


def with_inputs(
    accelerator: Accelerator, dataset: Dataset, vae: Any, settings: TrainingSettings, columns: list[str]
) -> Dataset:
    """`dataset` giving `image` tensors and the named columns: pixels, or the latents of every way it may be mirrored.

    Latents are encoded where the accelerator is and kept in the cache of `datasets`.

    Raises:
        ValueError: for images that the `vae` is not for.
    """
    if vae is None:
        return with_tensors(dataset, settings.size, columns)
    factor, channels = downsampling(vae), image_channels(dataset)
    if channels != vae.config.in_channels or any(side % factor for side in settings.size):
        raise ValueError(
            f"`--resolution` is {settings.resolution} with {channels} channels; expected multiples of {factor} with "
            f"{vae.config.in_channels}, as the `vae` has them."
        )
    height, width = (side // factor for side in settings.size)
    num_mirrored = len(_mirrored(torch.zeros(1, 1, 1, 1), settings))
    shape = (num_mirrored, vae.config.latent_channels, height, width)
    # Where the weights lie says nothing: the denoiser's run and the classifiers' know the same `vae` by two paths.
    config = {name: value for name, value in vae.config.items() if not name.startswith("_")}
    fingerprint = Hasher.hash((dataset._fingerprint, weights_fingerprint([vae]), config, shape, settings.size))
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "multiguidance-latents" / f"{fingerprint}.arrow"
    with accelerator.main_process_first():
        cache.parent.mkdir(parents=True, exist_ok=True)
        encoded = dataset.select_columns("image").map(
            partial(_encode, vae=vae.to(accelerator.device), settings=settings, channels=channels),
            batched=True,
            batch_size=64,
            features=Features({"image": Array4D(shape, "float32")}),
            cache_file_name=str(cache),
            new_fingerprint=fingerprint,
            desc="encoding",
        )
    labels = [dataset.select_columns(columns)] if columns else []
    return concatenate_datasets([encoded, *labels], axis=1).with_format("torch")


def take_inputs(batch: Mapping[str, torch.Tensor], vae: Any, settings: TrainingSettings) -> torch.Tensor:
    """The images of a batch, or their latents, each mirrored at random where the settings say so; (B, C, H, W)."""
    images = batch["image"]
    if vae is None:
        return random_flips(images, settings.random_flip, settings.random_vertical_flip)
    return images[torch.arange(len(images)), torch.randint(images.shape[1], (len(images),))]


def _encode(rows: dict[str, list[Any]], vae: Any, settings: TrainingSettings, channels: int) -> dict[str, Any]:
    images = to_tensors(rows["image"], settings.size, channels).to(vae.device)
    latents = torch.stack([to_latents(vae, mirrored) for mirrored in _mirrored(images, settings)], dim=1)
    return {"image": latents.cpu().numpy()}


def _mirrored(images: torch.Tensor, settings: TrainingSettings) -> list[torch.Tensor]:
    """Images (B, C, H, W) in every way that the settings let them be mirrored, as they are first."""
    ways = [images]
    for wanted, side in ((settings.random_flip, -1), (settings.random_vertical_flip, -2)):
        ways += [way.flip(side) for way in ways] if wanted else []
    return ways
