"""A `timm` network that looks at clean images: the labelers of the filter and the evaluators of generated images."""

from __future__ import annotations

import timm
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config


class ImageClassifier(ModelMixin, ConfigMixin):
    """Classes of one attribute, or with `classes` of None its value.

    Args:
        model: a name that `timm.list_models()` has.
        attribute: what it looks for.
        classes: names in the order of the outputs; None for a regression of a number in [0, 1].
        in_channels: of the images.
        sample_size: height and width in pixels of the images it was trained on.
        temperature: divides the logits, so that probabilities mean what they say (fitted on held-out images).

    Raises:
        ValueError: for a model that timm does not have.
    """

    @register_to_config
    def __init__(
        self,
        model: str,
        attribute: str,
        classes: list[str] | None,
        in_channels: int = 3,
        sample_size: int = 64,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        if model not in timm.list_models():
            raise ValueError(f"`model` is {model!r}; expected a name that `timm.list_models()` lists.")
        self.network = timm.create_model(model, num_classes=len(classes or [attribute]), in_chans=in_channels)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) in [-1, 1] to logits (B, number of classes); of one number, the logit (B, 1)."""
        return self.network(images) / self.config["temperature"]
