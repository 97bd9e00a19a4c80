"""A `timm` network that looks at clean images: the labelers of the filter and the evaluators of generated images."""

from __future__ import annotations

import math
from typing import Any

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
        sample_size: of the images it was trained on in pixels, a square's or height and width.
        num_members: networks that start apart; their probabilities are averaged, or the logits of a number.
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
        sample_size: int | tuple[int, int] = 64,
        num_members: int = 1,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        if model not in timm.list_models():
            raise ValueError(f"`model` is {model!r}; expected a name that `timm.list_models()` lists.")
        self.members = torch.nn.ModuleList(self._create_network() for _ in range(num_members))

    def _create_network(self) -> torch.nn.Module:
        name, classes = self.config["model"], self.config["classes"] or [self.config["attribute"]]
        options: dict[str, Any] = {"num_classes": len(classes), "in_chans": self.config["in_channels"]}
        defaults = timm.get_pretrained_cfg(name)
        if defaults is not None and defaults.fixed_input_size:
            try:
                return timm.create_model(name, img_size=self.image_size, **options)
            except TypeError:  # some of them can't be told
                pass
        return timm.create_model(name, **options)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels of the images it was trained on."""
        size = self.config["sample_size"]
        return (size, size) if isinstance(size, int) else tuple(size)

    def forward(self, images: torch.Tensor, pooled: bool = True) -> torch.Tensor:
        """(B, C, H, W) in [-1, 1] to logits (B, number of classes); of one number, the logit (B, 1).

        Args:
            pooled: the whole ensemble's, over the temperature (Rahaman and Thiery 2021: averaged first, then
                calibrated). False: (number of members, B, number of classes), to train each for itself.
        """
        logits = torch.stack([member(images) for member in self.members])
        return self.pool(logits) / self.config["temperature"] if pooled else logits

    def pool(self, logits: torch.Tensor) -> torch.Tensor:
        """The members' logits (number of members, B, number of outputs) as the ensemble's, without the temperature."""
        if self.config["classes"] is None:
            return logits.mean(dim=0)
        return logits.log_softmax(dim=2).logsumexp(dim=0) - math.log(len(logits))

    def logits_and_features(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """In one pass the logits, not pooled, and what the members see before they decide, side by side: (B, F)."""
        members: Any = self.members
        maps = [member.forward_features(images) for member in members]
        logits = [member.forward_head(seen) for member, seen in zip(members, maps, strict=True)]
        features = [member.forward_head(seen, pre_logits=True) for member, seen in zip(members, maps, strict=True)]
        return torch.stack(logits), torch.cat(features, dim=1)


def check_timm_model(model: str, channels: int, size: tuple[int, int], batch_size: int) -> None:
    """Raise `ValueError` for a network of timm that can't learn from such images, by trying it on one or two."""
    try:
        network = ImageClassifier(model, "", ["", ""], channels, size)
        network.train()
        with torch.no_grad():
            logits = network(torch.zeros(min(batch_size, 2), channels, *size))
        if logits.shape[1:] != (2,):
            raise ValueError(f"it answers with numbers of shape {tuple(logits.shape)}")
    except Exception as error:  # every architecture fails in its own way
        if model not in timm.list_models():
            raise
        raise ValueError(
            f"`model` is {model!r}, which can't learn from {min(batch_size, 2)} images of {size[0]}x{size[1]} pixels "
            f"and {channels} channels ({' '.join(str(error).split())[:200]}); expected another network or size."
        ) from error
