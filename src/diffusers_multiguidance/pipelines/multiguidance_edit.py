"""Editing with multi-guidance: move an attribute of a given image, also to where no training image ever was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..denoising import Denoiser, DenoisingStep, denoise, invert
from ..diffusion import GaussianDiffusion
from ..guidance import ClassifierScore, Target, is_number, weights_from_classes, weights_from_target
from ..schedulers import ExactSteps
from ..utils.images import BadImage, fit_image, load_upright
from .multiguidance_ddpm import MultiGuidanceDDPMPipeline, MultiGuidanceOutput, _check_generator, _check_output


class MultiGuidanceEditPipeline(MultiGuidanceDDPMPipeline):
    """Turn an image part of the way into noise, then denoise it, guided (paper, appendix N).

    Loads the same folders as `MultiGuidanceDDPMPipeline`. There and back it takes DDIM steps, whatever the scheduler,
    of which it needs the noise schedule only.
    """

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        image: Image.Image | list[Image.Image],
        target: Mapping[str, Target] | str | None = None,
        strength: float | None = None,
        guidance_scale: float | None = None,
        guidance_weights: Mapping[str, Mapping[str, float]] | None = None,
        num_inference_steps: int | None = None,
        eta: float = 1.0,
        calibration: str | None = "same",
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
            target: where to aim, by attribute, as in `MultiGuidanceDDPMPipeline`. A number means a measured value
                where editing was calibrated with this strength, scale and number of steps; else, with a warning, the
                classifiers' probability at which guidance vanishes.
            strength: share of the steps to go back towards noise, above 0 and up to 1; more changes more, also of what
                was to stay. None takes the pipeline's default, or else the paper's half.
            guidance_scale: total weight L of an attribute's classes. None takes the pipeline's default for editing.
            guidance_weights: raw weights lambda by attribute and class, in place of `target`.
            num_inference_steps: evenly respaced steps S; `strength` of them are taken, there and back. None takes the
                pipeline's default for editing, or else 50.
            eta: noise of the first step back, from 0 to 1; it falls linearly to 0 at the last. With 0 no noise is
                drawn at all.
            calibration: "same", or None to mean the classifiers' probability by a number.
            generator: one for all images, or a list with one per image, which makes an image independent of its batch.
            output_type: "pil", "np" (B, H, W, C in [0, 1]) or "pt" (B, C, H, W in [0, 1]).
            callback_on_step_end: called after every guided step as `(pipeline, step, timestep, {"sample": x})`; may
                return `{"sample": ...}` to replace x, (B, C, H, W).

        Returns:
            `MultiGuidanceOutput`, or the tuple of its two fields where `return_dict` is False.

        Raises:
            ValueError: for any argument outside what is said here, in one sentence that names it.
        """
        _check_output(output_type, callback_on_step_end)
        steps = self.denoise(
            image, target, strength, guidance_scale, guidance_weights, num_inference_steps, eta, calibration, generator
        )
        return self._run(steps, output_type, return_dict, callback_on_step_end)

    def denoise(  # type: ignore[override]
        self,
        image: Image.Image | list[Image.Image],
        target: Mapping[str, Target] | str | None = None,
        strength: float | None = None,
        guidance_scale: float | None = None,
        guidance_weights: Mapping[str, Mapping[str, float]] | None = None,
        num_inference_steps: int | None = None,
        eta: float = 1.0,
        calibration: str | None = "same",
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> Iterator[DenoisingStep]:
        """The call, step by step, once the image is turned into noise; arguments and errors are those of the call."""
        call = self.resolve_call(num_inference_steps, guidance_scale, strength)
        num_inference_steps, strength = call["num_inference_steps"], call["strength"]
        sample = self._to_sample(image)
        _check_generator(generator, len(sample))
        if not (is_number(strength, 0, 1) and strength > 0):
            raise ValueError(f"`strength` is {strength!r}; expected a number above 0 and up to 1.")
        if not is_number(eta, 0, 1):
            raise ValueError(f"`eta` is {eta!r}; expected a number from 0 to 1.")
        if calibration not in ("same", None):
            raise ValueError(f"`calibration` is {calibration!r}; expected 'same' or None.")
        if (target is None) == (guidance_weights is None):
            number = "neither" if target is None else "both"
            raise ValueError(f"`target` and `guidance_weights`: {number} given; expected exactly one of them.")

        self._class_labels(None, len(sample))
        device = self._execution_device
        x_0 = self.encode(sample.to(device))
        if target is None:
            weights = weights_from_classes(self.attributes, guidance_weights or {}, len(sample))
        else:
            self._need_scale(call["guidance_scale"], "edit")
            weights = self._weights(x_0, target, call, calibration)
        # Spaced to the very last timestep, so that a strength of 1 goes all the way to noise.
        diffusion = GaussianDiffusion.from_scheduler(self.scheduler, num_inference_steps)
        num_steps = max(1, round(strength * num_inference_steps))
        predict = Denoiser(self.denoiser).predict
        return denoise(
            predict,
            ExactSteps(diffusion, "ddim", device),
            invert(predict, diffusion, x_0, num_steps),
            ClassifierScore(self.classifiers, weights),
            eta=lambda number: eta * (num_steps - number) / num_steps,  # the paper's t / 2000
            generator=generator,
            start=num_inference_steps - num_steps,
        )

    def resolve_call(  # type: ignore[override]
        self,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        strength: float | None = None,
    ) -> dict[str, Any]:
        """What these arguments of the call stand for where they are None, and "edit" in place of a scheduler."""
        given = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale, "strength": strength}
        usual = min(50, self.scheduler.config.num_train_timesteps)
        tuned = {"num_inference_steps": usual, "guidance_scale": None, "strength": 0.5}
        tuned |= self.config["sampling_defaults"].get("edit", {})
        return {"scheduler": "edit"} | {key: tuned[key] if value is None else value for key, value in given.items()}

    def _weights(
        self, x_0: torch.Tensor, target: Any, call: dict[str, Any], calibration: str | None
    ) -> dict[str, torch.Tensor]:
        """Those that lead every image to the target from where the classifiers see it, between both ends."""
        found = self._find_calibrations(target, call, calibration)
        low, high = (
            weights_from_target(
                self.attributes,
                target,
                call["guidance_scale"],
                len(x_0),
                {name: calibration[end] for name, calibration in found.items()},
            )
            for end in ("from_low", "from_high")
        )
        if not found:
            return low
        logits = self.classifiers(x_0.to(self.classifiers.dtype), 0).logits
        starts = {name: logits[name].float().softmax(dim=1)[:, 1:].cpu() for name in found}
        return {name: torch.lerp(low[name], high[name], starts[name]) if name in found else low[name] for name in low}

    def _to_sample(self, image: Any) -> torch.Tensor:
        """(B, C, H, W) in [-1, 1], of the pipeline's size and channels."""
        images = image if isinstance(image, list) else [image]
        if not images:
            raise ValueError("`image` is an empty list; expected at least one image.")
        (height, width), channels = self.image_size, self.channels
        arrays = []
        for one in images:
            if not isinstance(one, Image.Image):
                raise ValueError(f"`image` is or has a {type(one).__name__}; expected a PIL image or a list of them.")
            try:
                fitted = fit_image(load_upright(one), (height, width), channels)
            except BadImage as error:
                raise ValueError(
                    f"`image` can't be used ({error}); expected a single picture of 8 or 16 bits a channel."
                ) from error
            arrays.append(np.asarray(fitted).reshape(height, width, channels))
        return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1
