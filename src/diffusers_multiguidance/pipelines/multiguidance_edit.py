"""Editing with multi-guidance: move an attribute of a given image, also to where no training image ever was."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image, ImageOps

from ..diffusion import GaussianDiffusion
from ..guidance import Target, guidance_gradient, is_number, weights_from_classes, weights_from_target
from .multiguidance_ddpm import MultiGuidanceDDPMPipeline, MultiGuidanceOutput


class MultiGuidanceEditPipeline(MultiGuidanceDDPMPipeline):
    """Turn an image part of the way into noise, then denoise it, guided (paper, appendix N).

    Loads the same folders as `MultiGuidanceDDPMPipeline`.
    """

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        image: Image.Image | list[Image.Image],
        target: Mapping[str, Target] | str | None = None,
        strength: float = 0.5,
        guidance_scale: float | None = None,
        guidance_weights: Mapping[str, Mapping[str, float]] | None = None,
        num_inference_steps: int | None = None,
        eta: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, int, dict[str, torch.Tensor]], dict[str, Any] | None] | None = None,
    ) -> MultiGuidanceOutput | tuple[Any, dict[str, np.ndarray] | None]:
        """Move an attribute of one image or more.

        Exactly one of `target` and `guidance_weights` has to be given; a guidance scale of 0 gives the image back.

        Args:
            image: an image or a list of them; cropped around the middle and resized to the model's size, and made grey
                or coloured as its images are.
            target: where to aim, by attribute, as in `MultiGuidanceDDPMPipeline`; but a number always means the
                classifiers' probability at which guidance vanishes, since calibrations are of whole samplings.
            strength: share of the steps to go back towards noise, above 0 and up to 1; the paper went back by half.
                More changes more, also of what was to stay.
            guidance_scale: total weight L of an attribute's classes. None takes the pipeline's default.
            guidance_weights: raw weights lambda by attribute and class, in place of `target`.
            num_inference_steps: evenly respaced steps S; `strength` of them are taken, there and back. None takes the
                pipeline's default.
            eta: noise of the first step back, from 0 to 1; it falls linearly to 0 at the last. With 0 no noise is
                drawn at all.
            generator: one for all images, or a list with one per image, which makes an image independent of its batch.
            output_type: "pil", "np" (B, H, W, C in [0, 1]) or "pt" (B, C, H, W in [0, 1]).
            callback_on_step_end: called after every guided step as `(pipeline, step, timestep, {"sample": x})`; may
                return `{"sample": ...}` to replace x, (B, C, H, W).

        Returns:
            `MultiGuidanceOutput`, or the tuple of its two fields where `return_dict` is False.

        Raises:
            ValueError: for any argument outside what is said here, in one sentence that names it.
        """
        num_inference_steps = self._default(num_inference_steps, "default_num_inference_steps")
        guidance_scale = self._default(guidance_scale, "default_guidance_scale")
        sample = self._to_sample(image)
        batch_size = len(sample)
        self._check_call(batch_size, generator, guidance_scale, output_type, callback_on_step_end)
        if not (is_number(strength, 0, 1) and strength > 0):
            raise ValueError(f"`strength` is {strength!r}; expected a number above 0 and up to 1.")
        if not is_number(eta, 0, 1):
            raise ValueError(f"`eta` is {eta!r}; expected a number from 0 to 1.")
        if target is not None and guidance_weights is None:
            weights = weights_from_target(self.attributes, target, guidance_scale, batch_size)
        elif guidance_weights is not None and target is None:
            weights = weights_from_classes(self.attributes, guidance_weights, batch_size)
        else:
            number = "neither" if target is None else "both"
            raise ValueError(f"`target` and `guidance_weights`: {number} given; expected exactly one of them.")

        device = self._execution_device
        sample = sample.to(device)
        weights = {attribute: row.to(device) for attribute, row in weights.items()}
        diffusion = GaussianDiffusion.from_scheduler(self.scheduler, num_inference_steps)
        clip = self.scheduler.config.get("clip_sample", True)
        num_steps = max(1, round(strength * num_inference_steps))

        # The image counts as already at the first kept timestep, where hardly any noise is.
        for index in range(num_steps - 1):
            timestep = diffusion.timesteps[index].to(device)
            model_output = self.unet(sample.to(self.unet.dtype), timestep).sample.float()
            sample = diffusion.ddim_inverse_step(model_output, sample, index, clip)

        for step in self.progress_bar(range(num_steps)):
            index = num_steps - 1 - step
            timestep = diffusion.timesteps[index].to(device)
            model_output = self.unet(sample.to(self.unet.dtype), timestep).sample.float()
            grad = guidance_gradient(self.classifiers, sample.to(self.classifiers.dtype), timestep, weights).float()
            eta_of_step = eta * (index + 1) / num_steps  # the paper's t / 2000
            noise = None
            if eta > 0:
                noise = (
                    randn_tensor(sample.shape, generator=generator, device=device)
                    if index > 0
                    else torch.zeros_like(sample)
                )
            sample = diffusion.ddim_step(model_output, sample, index, eta_of_step, grad, noise, clip)
            if callback_on_step_end is not None:
                changed = callback_on_step_end(self, step, int(timestep), {"sample": sample})
                sample = (changed or {}).get("sample", sample)
        return self._finish(sample, output_type, return_dict)

    def _to_sample(self, image: Any) -> torch.Tensor:
        """(B, C, H, W) in [-1, 1], of the model's size and channels."""
        images = image if isinstance(image, list) else [image]
        if not images:
            raise ValueError("`image` is an empty list; expected at least one image.")
        size, channels = self.unet.config.sample_size, self.unet.config.in_channels
        height, width = (size, size) if isinstance(size, int) else size
        arrays = []
        for one in images:
            if not isinstance(one, Image.Image):
                raise ValueError(f"`image` is or has a {type(one).__name__}; expected a PIL image or a list of them.")
            if one.mode.startswith(("I", "F")):
                raise ValueError(f"`image` has the mode '{one.mode}'; expected 8 bits a channel.")
            one = ImageOps.exif_transpose(one).convert("L" if channels == 1 else "RGB")
            one = ImageOps.fit(one, (width, height), Image.Resampling.LANCZOS)
            arrays.append(np.asarray(one).reshape(height, width, channels))
        return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1
