"""Whether generated images are what they should be, and new."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torchmetrics.image.kid import KernelInceptionDistance

from ..data.transforms import scale_pixels
from ..models.evaluator import ImageClassifier
from .evaluators import load_network, network_logits


def class_probabilities(evaluator: str | Path, images: np.ndarray) -> np.ndarray:
    """(N, number of classes), from the evaluator in a folder; see `evaluators.network_logits`."""
    return network_logits(load_network(evaluator), images).softmax(dim=1).numpy()


def share_recognized(probabilities: np.ndarray, threshold: float = 0.9) -> float:
    """Share of images for which some class has a probability above `threshold`."""
    return float((probabilities.max(axis=1) > threshold).mean())


def features(network: ImageClassifier, images: np.ndarray, batch_size: int = 256) -> torch.Tensor:
    """What an evaluator sees before it decides, all its members side by side: (N, F), of images (N, H, W, C) uint8."""
    network.eval()
    with torch.inference_mode():
        pixels = torch.from_numpy(images).split(batch_size)
        return torch.cat([network.features(scale_pixels(batch)) for batch in pixels])


def kernel_distance(generated: torch.Tensor, real: torch.Tensor, seed: int = 0) -> tuple[float, float]:
    """KID (Binkowski et al. 2018) of features (N, F) and (M, F): mean and standard deviation over 100 subsets.

    Unlike FID it is not biased when images are few.
    """
    size = min(1000, len(generated), len(real))
    distance = KernelInceptionDistance(feature=torch.nn.Identity(), subsets=100, subset_size=size)
    distance.update(real, real=True)
    distance.update(generated, real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mean, deviation = distance.compute()
    return float(mean), float(deviation)


def nearest_training_images(images: np.ndarray, training: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance between pixels, root mean square of the range, to the nearest training image, and its number.

    A training image and its mirror image count alike.

    Args:
        images, training: (N, H, W, C) and (M, H, W, C) uint8.
    """
    known = np.concatenate([training, training[:, :, ::-1]])
    pixels, others = (torch.from_numpy(each.reshape(len(each), -1)).float() for each in (images, known))
    distances, numbers = zip(*(torch.cdist(part, others).min(dim=1) for part in pixels.split(256)), strict=True)
    root_mean_square = torch.cat(distances) / (255 * pixels.shape[1] ** 0.5)
    return root_mean_square.numpy(), torch.cat(numbers).numpy() % len(training)


def share_nearer_than_held_out(generated: np.ndarray, held_out: np.ndarray, training: np.ndarray) -> float:
    """Share of generated images nearer to a training image than held-out ones are at their nearest 1 %.

    One per cent is what images that were never seen would have.
    """
    nearest, as_near = (nearest_training_images(images, training)[0] for images in (generated, held_out))
    return float((nearest < np.quantile(as_near, 0.01)).mean())
