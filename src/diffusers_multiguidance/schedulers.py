"""Stock schedulers: their short names, and how each takes one step on a guided prediction.

`DDPMScheduler` and `DDIMScheduler` only say what to do: `ExactSteps` does it by the float64 tables of
`GaussianDiffusion`. Every other one does it itself, in `StockSteps`. Both have the same three methods, so that the
loop in `denoising.py` need not tell them apart.
"""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import torch
from diffusers.utils.torch_utils import randn_tensor

from .diffusion import GaussianDiffusion

# Class and settings by short name: the names of the command line, of calibrations and of sampling defaults.
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm": ("DDPMScheduler", {}),
    "ddim": ("DDIMScheduler", {}),
    "dpmsolver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "sde-dpmsolver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpmsolver": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
    ),
    "sde-dpmsolver": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"},
    ),
    "dpmsolver-singlestep": ("DPMSolverSinglestepScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "sasolver": ("SASolverScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-ancestral": ("EulerAncestralDiscreteScheduler", {}),
    # Spaced like the timesteps, its first step from the enormous noise of a cosine schedule would go astray.
    "heun": ("HeunDiscreteScheduler", {"use_karras_sigmas": True}),
    "lms": ("LMSDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
}


def create_scheduler(name: str, scheduler: Any) -> Any:
    """The stock scheduler of a short name, with the noise schedule and the prediction type of another one.

    Raises:
        ValueError: for a name that is not in `SCHEDULERS`.
    """
    if name not in SCHEDULERS:
        raise ValueError(f"`scheduler` is {name!r}; expected one of {list(SCHEDULERS)}.")
    class_name, settings = SCHEDULERS[name]
    config = dict(scheduler.config)
    # What one scheduler calls its algorithm means nothing to another, and what it has by default is to be kept.
    for setting in ("algorithm_type", "solver_type", "final_sigmas_type", "_use_default_values"):
        config.pop(setting, None)
    return getattr(diffusers, class_name).from_config(config, **settings)


def scheduler_name(scheduler: Any) -> str:
    """The short name of a stock scheduler.

    Raises:
        ValueError: for one that can't be guided.
    """
    for name, (class_name, settings) in SCHEDULERS.items():
        algorithm = settings.get("algorithm_type", scheduler.config.get("algorithm_type"))
        if type(scheduler).__name__ == class_name and scheduler.config.get("algorithm_type") == algorithm:
            return name
    known = sorted({class_name for class_name, _ in SCHEDULERS.values()})
    raise ValueError(f"`scheduler` is a {type(scheduler).__name__} that can't be guided; expected one of {known}.")


def create_steps(scheduler: Any, num_inference_steps: int, device: torch.device) -> ExactSteps | StockSteps:
    """The steps from noise to image that a scheduler means by `num_inference_steps`."""
    name = scheduler_name(scheduler)
    if name in ("ddpm", "ddim"):
        diffusion = GaussianDiffusion.from_scheduler(scheduler, num_inference_steps, scheduler.config.timestep_spacing)
        return ExactSteps(diffusion, name, device)
    return StockSteps(scheduler, num_inference_steps, device)


def used_output(diffusion: GaussianDiffusion, model_output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
    """The network's output without a learned variance, such as a DiT's, that its scheduler has no use for."""
    return model_output if diffusion.variance_type == "learned_range" else model_output[:, : sample.shape[1]]


class ExactSteps:
    """DDPM (the mean is guided) and DDIM (the score is) by float64 tables.

    Args:
        kind: "ddpm" or "ddim".
    """

    def __init__(self, diffusion: GaussianDiffusion, kind: str, device: torch.device) -> None:
        self.diffusion, self.kind = diffusion, kind
        self.timesteps = diffusion.timesteps.flip(0).to(device)  # from noise to image

    def first_sample(self, noise: torch.Tensor) -> torch.Tensor:
        return noise

    def model_input(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return sample

    def step(
        self,
        number: int,
        model_output: torch.Tensor,
        sample: torch.Tensor,
        x_t: torch.Tensor,
        grad: torch.Tensor | None,
        eta: float,
        generator: torch.Generator | list[torch.Generator] | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Step `number`, from 0: the next sample and the image that the step aims at, both (B, C, H, W).

        Args:
            model_output: the denoiser's at `x_t`, which is `model_input` of `sample`.
            grad: the guidance gradient there, or None.
            eta: noise of DDIM.
        """
        diffusion, index = self.diffusion, len(self.timesteps) - 1 - number
        noise = torch.zeros_like(sample)
        if index > 0 and (self.kind == "ddpm" or eta > 0):
            noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
        moments = diffusion.p_mean_variance(used_output(diffusion, model_output, sample), sample, index)
        if self.kind == "ddim":
            if grad is not None:
                moments = diffusion.guide_score(moments, sample, grad, index)
            return diffusion.ddim_from_moments(moments, sample, index, eta, noise), moments.pred_x0
        mean = moments.mean if grad is None else diffusion.guide_mean(moments, grad)
        return mean + (0.5 * moments.log_variance).exp() * noise, moments.pred_x0


class StockSteps:
    """Any other scheduler by its own `step`, on the guided prediction in the type that it expects."""

    def __init__(self, scheduler: Any, num_inference_steps: int, device: torch.device) -> None:
        self.diffusion = GaussianDiffusion.from_scheduler(scheduler)
        GaussianDiffusion.from_scheduler(scheduler, num_inference_steps)  # refuses a number of steps that can't be
        # A copy, since a scheduler remembers the steps of the one sampling that it is in; and with the prediction
        # alone, since of a learned variance some schedulers cut off all but three channels.
        self.scheduler = type(scheduler).from_config(scheduler.config, variance_type=None)
        try:
            self.scheduler.set_timesteps(num_inference_steps, device=device)
        except (ValueError, IndexError, AssertionError) as error:
            raise ValueError(
                f"`num_inference_steps` is {num_inference_steps}, which {type(scheduler).__name__} refuses: {error}"
            ) from error
        self.timesteps = self.scheduler.timesteps
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(0)  # timesteps may occur twice, and can't tell where it is
        self.takes_generator = "generator" in inspect.signature(self.scheduler.step).parameters

    def first_sample(self, noise: torch.Tensor) -> torch.Tensor:
        return noise * self.scheduler.init_noise_sigma

    def model_input(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return self.scheduler.scale_model_input(sample, timestep)

    def step(
        self,
        number: int,
        model_output: torch.Tensor,
        sample: torch.Tensor,
        x_t: torch.Tensor,
        grad: torch.Tensor | None,
        eta: float,
        generator: torch.Generator | list[torch.Generator] | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `ExactSteps.step`."""
        timestep = self.timesteps[number]
        prediction, pred_x0 = self.diffusion.guide_prediction(model_output, x_t, float(timestep), grad)
        extra = {"generator": generator} if self.takes_generator else {}
        return self.scheduler.step(prediction, timestep, sample, **extra).prev_sample, pred_x0
