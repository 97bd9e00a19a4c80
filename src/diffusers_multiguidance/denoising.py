"""From noise to image, step by step: the one loop that sampling, editing and previews take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .diffusion import GaussianDiffusion
from .guidance import is_guided
from .schedulers import ExactSteps, StockSteps, used_output

Network = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of x_t (B, C, H, W) and the timestep


@dataclass
class DenoisingStep:
    """What a step of `denoise` ended in. Whoever takes the steps may set `sample`, and the next one starts there."""

    number: int  # from 1
    total: int
    timestep: torch.Tensor
    sample: torch.Tensor  # (B, C, H, W), x after the step, as the scheduler scales it
    pred_x0: torch.Tensor  # (B, C, H, W), the image that the step aimed at


class Denoiser:
    """A `UNet2DModel` or `DiTTransformer2DModel`, to be asked in one way."""

    def __init__(self, network: Any) -> None:
        # channels_last is what convolutions like best, on CPUs too.
        self.network = network.to(memory_format=torch.channels_last)
        self.dtype = network.dtype  # once: each look-up walks through all modules
        size = network.config.sample_size
        self.sample_shape = (network.config.in_channels, *((size, size) if isinstance(size, int) else size))
        self.num_classes = network.config.get("num_embeds_ada_norm")  # of a transformer, which always wants a label

    def predict(
        self, x_t: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """What the network says of x_t (B, C, H, W), in float32; perhaps with a second half, the variance.

        Args:
            timestep: one for all.
            class_labels: (B,); None means the only class, or else that of the left-out label.
        """
        if class_labels is None and self.num_classes is not None:
            class_labels = torch.full((len(x_t),), self.num_classes if self.num_classes > 1 else 0, device=x_t.device)
        if len(x_t) >= 64 and x_t.device.type == "cpu":  # from there on diffusers' upsampling undoes channels_last
            parts = x_t.split(32)
            labels_of = [None] * len(parts) if class_labels is None else class_labels.split(32)
            return torch.cat([self.predict(p, timestep, labels) for p, labels in zip(parts, labels_of, strict=True)])
        labels = {} if class_labels is None else {"class_labels": class_labels}
        return self.network(x_t.to(self.dtype), timestep.expand(len(x_t)), **labels).sample.float()


@torch.no_grad()
def denoise(
    predict: Network,
    steps: ExactSteps | StockSteps,
    noise: torch.Tensor,
    guidance: Network | None = None,
    guidance_interval: Sequence[float] = (0.0, 1.0),
    eta: Callable[[int], float] = lambda number: 0.0,
    generator: torch.Generator | list[torch.Generator] | None = None,
    start: int = 0,
    guided_predict: Network | None = None,
) -> Iterator[DenoisingStep]:
    """Take the steps from noise to image, one at a time.

    Arithmetic stays in float32 whatever the networks' precision: the steps are differences of near equals.

    Args:
        predict: the denoiser's prediction at (x_t, timestep).
        steps: see `schedulers.create_steps`.
        noise: (B, C, H, W) standard normal; or x at step `start`.
        guidance: the score to follow at (x_t, timestep), as `ClassifierScore` answers it; None for no guidance.
        guidance_interval: share of the steps in which to guide.
        eta: noise of DDIM by number of the step, from 0.
        generator: one for the batch, or a list with one per image.
        start: number of steps to leave out, of x that is already that near to the image.
        guided_predict: asked in place of `predict` where to guide, as a `ConditionalPrediction`.
    """
    sample = steps.first_sample(noise) if start == 0 else noise
    total = len(steps.timesteps)
    for number in range(start, total):
        timestep = steps.timesteps[number]
        x_t = steps.model_input(sample, timestep)
        guided = is_guided(number - start, total - start, guidance_interval)
        model_output = (guided_predict if guided and guided_predict else predict)(x_t, timestep)
        grad = guidance(x_t, timestep) if guided and guidance else None
        sample, pred_x0 = steps.step(number, model_output, sample, x_t, grad, eta(number - start), generator)
        step = DenoisingStep(number - start + 1, total - start, timestep, sample, pred_x0)
        yield step
        sample = step.sample


@torch.no_grad()
def invert(predict: Network, diffusion: GaussianDiffusion, sample: torch.Tensor, num_steps: int) -> torch.Tensor:
    """An image (B, C, H, W) after `num_steps` deterministic DDIM steps towards noise.

    The image counts as already at the first kept timestep, where hardly any noise is.
    """
    for index in range(num_steps - 1):
        # Where there is more noise than image, asked at the timestep that it goes to the network is nearer to what it
        # will say on the way back; see docs/lab-notebook.md.
        asked_at = index if diffusion.alphas_cumprod[index] > 0.5 else index + 1
        model_output = predict(sample, diffusion.timesteps[asked_at].to(sample.device))
        sample = diffusion.ddim_inverse_step(used_output(diffusion, model_output, sample), sample, index)
    return sample
