"""Extractors: images to the features in which quality and newness are told.

A figure in features means nothing without their name, so every extractor has one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from rich.progress import track
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
from torch_fidelity.utils import create_feature_extractor

from ..data.transforms import scale_pixels
from ..models.evaluator import ImageClassifier
from ..utils.grids import to_pil
from .evaluators import Evaluator, TrainedEvaluator, check_fits, load_network, to_values

BATCH_SIZE = 256


@dataclass(frozen=True)
class Extractor:
    """Features (N, F) float32 of images (N, H, W, C) uint8, and their name.

    Attributes:
        network: the evaluator's whose features these are, if any.
    """

    name: str
    extract: Callable[[np.ndarray], torch.Tensor]
    network: ImageClassifier | None = None

    def __call__(self, images: np.ndarray) -> torch.Tensor:
        with torch.inference_mode():
            return self.extract(images).float().cpu()


def load_extractor(name: str | Path) -> Extractor:
    """An extractor by its name.

    Args:
        name: "pixels"; "inception-v3-compat", "dinov2-vit-b-14" or another that torch-fidelity publishes;
            "timm:NAME", a model that timm can create; "transformers:NAME", one of the Hub or a folder; or the folder
            of an evaluator that train_evaluator.py wrote. Published weights are downloaded unless they are there.

    Raises:
        ValueError: for any other name, and for weights that can't be read or downloaded.
    """
    name = str(name)
    if name == "pixels":
        return Extractor(name, to_points)
    kind, colon, model = name.partition(":")
    if name in FEATURE_EXTRACTORS_REGISTRY:
        load, model = _load_published, name
    elif colon and kind in ("timm", "transformers"):
        load = _load_timm if kind == "timm" else _load_transformers
    elif Path(name).is_dir():
        return evaluator_extractor(load_network(name))
    else:
        raise ValueError(
            f"`extractor` is {name!r}; expected 'pixels', one of {list(FEATURE_EXTRACTORS_REGISTRY)}, 'timm:NAME', "
            "'transformers:NAME' or the folder of an evaluator."
        )
    try:
        return Extractor(name, load(model))
    except ImportError:
        raise
    except Exception as error:  # every library fails in its own way, most of them without a network
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"`extractor` {name!r} can't be loaded or downloaded ({reason}); expected one that is there, such as "
            "the folder of an evaluator."
        ) from error


def evaluator_extractor(network: ImageClassifier) -> Extractor:
    """The features of an evaluator's network, which refuses images that it was not made for."""
    members, model, learnt = (network.config[key] for key in ("num_members", "model", "attribute"))
    name = f"{members} {model} that learnt '{learnt}'" if members > 1 else f"{model} that learnt '{learnt}'"

    def extract(images: np.ndarray) -> torch.Tensor:
        check_fits(network, images)
        return network.eval().logits_and_features(_scaled(images))[1]

    return Extractor(name, extract, network)


def to_points(images: np.ndarray) -> torch.Tensor:
    """Images as points whose distance is the root mean square of their pixels' differences, 1 for black and white."""
    return torch.from_numpy(images).flatten(1).float() / (255 * images[0].size ** 0.5)


@dataclass
class Seen:
    """What was seen of N images: values (N,), features (N, F), and the disagreement of an ensemble's members (N,)."""

    values: Any = None
    features: Any = None
    uncertainty: Any = None


def look(images: np.ndarray, evaluate: Evaluator | None, extract: Extractor | None, description: str) -> Seen:
    """Values and features, with a progress bar, and in one pass where one network tells both.

    Args:
        images: (N, H, W, C) uint8, of which no copy is made beyond a batch.
    """
    seen = Seen()
    for start in track(range(0, len(images), BATCH_SIZE), description, transient=True):
        batch = slice(start, start + BATCH_SIZE)
        for name, part in vars(_look(images[batch], evaluate, extract)).items():
            if part is None:
                continue
            if start == 0:
                setattr(seen, name, np.empty((len(images), *part.shape[1:]), part.dtype))
            getattr(seen, name)[batch] = part
    seen.features = None if seen.features is None else torch.from_numpy(seen.features)
    return seen


def _look(images: np.ndarray, evaluate: Evaluator | None, extract: Extractor | None) -> Seen:
    if not isinstance(evaluate, TrainedEvaluator):
        return Seen(evaluate and evaluate(images), extract and extract(images).numpy())
    network, features = evaluate.network.eval(), None
    with torch.inference_mode():
        if extract is not None and extract.network is not None and extract.network is network:
            logits, seen = network.logits_and_features(_scaled(images))
            features = seen.numpy()
        else:
            logits = network(_scaled(images), pooled=False)
    temperature = network.config["temperature"]
    values = to_values(network.pool(logits) / temperature).numpy()
    uncertainty = to_values(logits / temperature).std(dim=0, correction=0).numpy() if len(logits) > 1 else None
    if extract is not None and features is None:
        features = extract(images).numpy()
    return Seen(values, features, uncertainty)


def _scaled(images: np.ndarray) -> torch.Tensor:
    return scale_pixels(torch.from_numpy(images))


def _load_published(name: str) -> Callable[[np.ndarray], torch.Tensor]:
    """Of torch-fidelity, which resizes as the published figures want it."""
    layer = FEATURE_EXTRACTORS_REGISTRY[name].get_default_feature_layer_for_metric("fid")
    model = create_feature_extractor(name, [layer], cuda=torch.cuda.is_available(), verbose=False)
    device = next(model.parameters()).device
    return lambda images: model(_three_channels(images).to(device))[0]


def _load_timm(name: str) -> Callable[[np.ndarray], torch.Tensor]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = timm.create_model(name, pretrained=True, num_classes=0).eval().to(device)
    config = timm.data.resolve_model_data_config(model)
    mean, std = (torch.tensor(config[key], device=device)[:, None, None] for key in ("mean", "std"))

    def extract(images: np.ndarray) -> torch.Tensor:
        pixels = _three_channels(images).to(device) / 255
        fitted = F.interpolate(pixels, config["input_size"][1:], mode="bicubic", antialias=True)
        return model((fitted - mean) / std)

    return extract


def _load_transformers(name: str) -> Callable[[np.ndarray], torch.Tensor]:
    from transformers import AutoImageProcessor, AutoModel  # seconds

    device = "cuda" if torch.cuda.is_available() else "cpu"
    processor, model = AutoImageProcessor.from_pretrained(name), AutoModel.from_pretrained(name).eval().to(device)
    see = getattr(model, "get_image_features", model)  # of a model of images and texts

    def extract(images: np.ndarray) -> torch.Tensor:
        pictures = [picture.convert("RGB") for picture in to_pil(images)]
        output = see(**processor(images=pictures, return_tensors="pt").to(device))
        if isinstance(output, torch.Tensor):
            return output
        pooled = getattr(output, "pooler_output", None)
        return (output.last_hidden_state.mean(dim=1) if pooled is None else pooled).flatten(1)

    return extract


def _three_channels(images: np.ndarray) -> torch.Tensor:
    """(N, 3, H, W) uint8."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).expand(-1, 3, -1, -1)
