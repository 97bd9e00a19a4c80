"""Multi-guidance as a guider of diffusers, for denoising loops other than our pipelines'."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.guiders import BaseGuidance
from diffusers.guiders.guider_utils import GuiderOutput

from .diffusion import GaussianDiffusion
from .guidance import ClassifierScore, Target, is_guided, weights_from_classes, weights_from_target


class ClassifierGuidance(BaseGuidance):
    """Shift a denoiser's prediction by the score of noisy classifiers (Dhariwal & Nichol 2021, algorithm 2).

    For a loop of one's own that steps with a stock scheduler. diffusers hands a guider what the denoiser is
    conditioned on and what it predicted, but not x_t: that is looked up at the denoiser's input, by a hook that is
    there for the one call. The score is shifted, never the mean, and the predicted image clipped where the scheduler's
    configuration says `clip_sample`, as our pipelines do it.

    Args:
        classifiers: a `NoisyClassifierSet` that knows images like the denoiser's.
        scheduler: with the noise schedule and the prediction type of the denoiser.
        target: see `MultiGuidanceDDPMPipeline`; a number is the classifiers' probability.
        guidance_scale: total weight L of an attribute's classes, with `target`; None is 60.
        guidance_weights: raw weights by attribute and class, in place of `target`.
        start: share of the steps, from noise to image, before guidance.
        stop: share of the steps after which there is none.
        enabled: whether to guide at all.

    Raises:
        ValueError: unless exactly one of `target` and `guidance_weights` is given, and for wrong ones.
    """

    _input_predictions = ["pred_cond"]  # noqa: RUF012

    def __init__(
        self,
        classifiers: Any,
        scheduler: Any,
        target: Mapping[str, Target] | str | None = None,
        guidance_scale: float | None = None,
        guidance_weights: Mapping[str, Mapping[str, float]] | None = None,
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
    ) -> None:
        super().__init__(start, stop, enabled)
        if (target is None) == (guidance_weights is None):
            raise ValueError("`target` and `guidance_weights` are both or neither given; expected one of them.")
        if guidance_scale is not None and target is None:
            raise ValueError(f"`guidance_scale` is {guidance_scale!r} without `target`; expected it with that only.")
        self.classifiers, self.scheduler = classifiers, scheduler
        self.target, self.guidance_scale, self.guidance_weights = target, guidance_scale, guidance_weights
        self.diffusion = GaussianDiffusion.from_scheduler(scheduler)
        self._weights(1)  # wrong ones are refused here, not in mid-sampling
        self._x_t: torch.Tensor | None = None
        self._hook: Any = None

    def new(self, **kwargs: Any) -> ClassifierGuidance:
        """A copy with some arguments changed."""
        names = ("classifiers", "scheduler", "target", "guidance_scale", "guidance_weights")
        own = {name: getattr(self, name) for name in names}
        if "guidance_weights" in kwargs:  # in place of the target, and its scale
            own |= {"target": None, "guidance_scale": None}
        return type(self)(**{**own, "start": self._start, "stop": self._stop, "enabled": self._enabled, **kwargs})

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Refused, as the classifiers are no part of a guider's configuration.

        Raises:
            ValueError: always.
        """
        raise ValueError("`ClassifierGuidance` has classifiers; expected to save those, and to make it anew.")

    def prepare_models(self, denoiser: torch.nn.Module) -> None:
        super().prepare_models(denoiser)

        def look(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._x_t = args[0] if args else kwargs["sample"]

        self._hook = denoiser.register_forward_pre_hook(look, with_kwargs=True)

    def cleanup_models(self, denoiser: torch.nn.Module) -> None:
        if self._hook is not None:
            self._hook.remove()

    def prepare_inputs(self, data: dict[str, Any]) -> list[Any]:
        return [self._prepare_batch(data, 0, "pred_cond")]

    def forward(self, pred_cond: torch.Tensor) -> GuiderOutput:
        if self._x_t is None:
            raise ValueError("`pred_cond` has no x_t; expected `prepare_models` before the denoiser is called.")
        x_t, timestep = self._x_t, torch.as_tensor(self._timestep, device=self._x_t.device)
        grad = None
        if self._enabled and is_guided(self._step, self._num_inference_steps, (self._start, self._stop)):
            grad = ClassifierScore(self.classifiers, self._weights(len(x_t)))(x_t, timestep)
        guided, _ = self.diffusion.guide_prediction(pred_cond.float(), x_t.float(), float(timestep), grad)
        # A second half, the variance, stays.
        pred = torch.cat([guided.to(pred_cond.dtype), pred_cond[:, x_t.shape[1] :]], dim=1)
        return GuiderOutput(pred=pred, pred_cond=pred_cond, pred_uncond=None)

    @property
    def is_conditional(self) -> bool:
        return True

    @property
    def num_conditions(self) -> int:
        return 1

    def _weights(self, batch_size: int) -> dict[str, torch.Tensor]:
        if self.target is None:
            return weights_from_classes(self.classifiers.attributes, self.guidance_weights or {}, batch_size)
        scale = 60.0 if self.guidance_scale is None else self.guidance_scale
        return weights_from_target(self.classifiers.attributes, self.target, scale, batch_size)
