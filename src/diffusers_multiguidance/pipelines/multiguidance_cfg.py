"""Multi-guidance without classifiers: by a denoiser that is told classes, for some images none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline

from ..denoising import Denoiser
from ..guidance import ConditionalPrediction, is_number
from .multiguidance_ddpm import MultiGuidanceDDPMPipeline


class MultiGuidanceCFGPipeline(MultiGuidanceDDPMPipeline):
    """Guide a class-conditional denoiser towards all classes of an attribute at once (paper, eq. 12).

    The call is that of `MultiGuidanceDDPMPipeline`. Its `target` is the mixture of the predictions for each class, and
    `guidance_scale` is w: how far to go beyond the mixture, away from the prediction without a class. In
    `guidance_weights` the lambda of a class says how far to go from the prediction without a class to its own,
    (1 + w) times its share.

    Args:
        unet: a `UNet2DModel` whose last label means no class; or None.
        transformer: a `DiTTransformer2DModel` in its place.
        vae: as of `MultiGuidanceDDPMPipeline`; so are `scheduler` and all below `attributes`.
        attributes: the denoiser's label of each class, low and high, by attribute: {"Smiling": {"no": 0, "yes": 1}}.

    Raises:
        ValueError: as of `MultiGuidanceDDPMPipeline`, for attributes that are missing, and labels that are none.
    """

    model_cpu_offload_seq = "unet->transformer->vae"
    _scale_means = "w"
    _settings = (*MultiGuidanceDDPMPipeline._settings, "attributes")
    _optional_components = ["unet", "transformer", "vae"]  # noqa: RUF012
    classifiers = None

    def __init__(
        self,
        unet: Any,
        transformer: Any,
        vae: Any,
        scheduler: Any,
        attributes: dict[str, Any] | None = None,
        patch_size: int = 1,
        sampling_defaults: dict[str, dict[str, Any]] | None = None,
        calibrations: dict[str, list[dict[str, Any]]] | None = None,
    ) -> None:
        DiffusionPipeline.__init__(self)
        parts = {"unet": unet, "transformer": transformer, "vae": vae}
        self._register(parts, scheduler, patch_size, sampling_defaults, calibrations)
        if not self._null_label:
            raise ValueError(
                f"`{'transformer' if unet is None else 'unet'}` is told no classes; expected one that is."
            )
        if not (attributes and isinstance(attributes, Mapping)):
            raise ValueError(
                f"`attributes` is {attributes!r}; expected labels by class, by attribute: "
                "{'Smiling': {'no': 0, 'yes': 1}}."
            )
        # Pairs, since a saved configuration has its keys sorted.
        self.register_to_config(attributes={name: self._pairs(name, classes) for name, classes in attributes.items()})

    def _pairs(self, attribute: str, classes: Any) -> list[list[Any]]:
        """Classes and their labels, given as a dict or as pairs."""
        try:
            by_class = dict(classes)
        except (TypeError, ValueError):
            by_class = {}
        labels = [*by_class.values()]
        known = all(type(label) is int and 0 <= label < self._null_label for label in labels)
        if len(labels) < 2 or not known or len(set(labels)) < len(labels):
            raise ValueError(
                f"`attributes` has {classes!r} for '{attribute}'; expected at least two classes with labels of their "
                f"own that the denoiser has, from 0 to {self._null_label - 1}."
            )
        return [[name, label] for name, label in by_class.items()]

    @property
    def attributes(self) -> dict[str, list[str]]:
        """Class names by attribute."""
        return {name: [key for key, _ in classes] for name, classes in self.config["attributes"].items()}

    @property
    def _null_label(self) -> int:
        """The label that means no class."""
        config = self.denoiser.config
        return config.get("num_embeds_ada_norm") or (config.get("num_class_embeds") or 1) - 1

    def _class_labels(self, class_labels: Sequence[int] | None, batch_size: int) -> torch.Tensor:
        if class_labels is not None:
            raise ValueError(f"`class_labels` is {class_labels!r}; expected None, as `target` says which classes.")
        return torch.full((batch_size,), self._null_label, device=self._execution_device)

    def _total_weight(self, guidance_scale: float) -> float:
        if not is_number(guidance_scale, 0, float("inf")):
            raise ValueError(f"`guidance_scale` is {guidance_scale!r}; expected a finite number of at least 0.")
        return 1 + guidance_scale

    def _guidance(self, denoiser: Denoiser, weights: dict[str, torch.Tensor]) -> dict[str, Any]:
        labels = {name: [label for _, label in classes] for name, classes in self.config["attributes"].items()}
        return {"guided_predict": ConditionalPrediction(denoiser.predict, labels, self._null_label, weights)}
