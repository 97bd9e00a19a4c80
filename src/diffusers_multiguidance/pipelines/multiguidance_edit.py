"""Editing with multi-guidance: move an attribute of a given image, also to where no training image ever was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..denoising import Denoiser, DenoisingStep, denoise, invert
from ..diffusion import GaussianDiffusion, noise_schedule
from ..guidance import ClassifierScore, Target, is_number, weights_from_classes, weights_from_target
from ..schedulers import ExactSteps, StockSteps
from ..utils.images import BadImage, fit_image, load_upright
from .multiguidance_ddpm import (
    MultiGuidanceDDPMPipeline,
    MultiGuidanceOutput,
    _check_generator,
    _check_guided,
    _check_output,
)


class MultiGuidanceEditPipeline(MultiGuidanceDDPMPipeline):
    """Turn an image part of the way into noise, then denoise it, guided (paper, appendix N).

    `invert` gives that noise, the latents, and `interpolate` goes from image to image by way of them (appendix M).
    Loads the same folders as `MultiGuidanceDDPMPipeline`. There and back it takes DDIM steps, whatever the scheduler,
    of which it needs the noise schedule only.
    """

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        image: Image.Image | list[Image.Image] | None = None,
        target: Mapping[str, Target] | str | None = None,
        strength: float | None = None,
        guidance_scale: float | None = None,
        guidance_weights: Mapping[str, Mapping[str, float]] | None = None,
        num_inference_steps: int | None = None,
        eta: float = 1.0,
        calibration: str | None = "same",
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, int, dict[str, torch.Tensor]], dict[str, Any] | None] | None = None,
    ) -> MultiGuidanceOutput | tuple[Any, dict[str, np.ndarray] | None]:
        """Move an attribute of one image or more.

        Exactly one of `target` and `guidance_weights` has to be given; a guidance scale of 0 and an `eta` of 0 give
        the image back. With `latents` both may be left out: nothing guides then, and with an `eta` of 0 the image
        comes back.

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
                drawn at all, and what was to stay changes less.
            calibration: "same", or None to mean the classifiers' probability by a number.
            generator: one for all images, or a list with one per image, which makes an image independent of its batch.
            latents: (B, C, H, W), in place of `image`: what `invert` returned with the same number of steps and
                strength. A calibrated target needs the image, to see where it starts: set `calibration` to None.
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
            image,
            target,
            strength,
            guidance_scale,
            guidance_weights,
            num_inference_steps,
            eta,
            calibration,
            generator,
            latents,
        )
        return self._run(steps, output_type, return_dict, callback_on_step_end)

    def denoise(  # type: ignore[override]
        self,
        image: Image.Image | list[Image.Image] | None = None,
        target: Mapping[str, Target] | str | None = None,
        strength: float | None = None,
        guidance_scale: float | None = None,
        guidance_weights: Mapping[str, Mapping[str, float]] | None = None,
        num_inference_steps: int | None = None,
        eta: float = 1.0,
        calibration: str | None = "same",
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
    ) -> Iterator[DenoisingStep]:
        """The call, step by step, once the image is turned into noise; arguments and errors are those of the call."""
        call = self.resolve_call(num_inference_steps, guidance_scale, strength)
        diffusion, num_steps = self._process(call)
        if (image is None) == (latents is None):
            number = "neither" if image is None else "both"
            raise ValueError(f"`image` and `latents`: {number} given; expected exactly one of them.")
        start = self._check_latents(latents) if image is None else self._to_sample(image)
        _check_generator(generator, len(start))
        if not is_number(eta, 0, 1):
            raise ValueError(f"`eta` is {eta!r}; expected a number from 0 to 1.")
        if calibration not in ("same", None):
            raise ValueError(f"`calibration` is {calibration!r}; expected 'same' or None.")
        if (target is None) == (guidance_weights is None) and (target is not None or latents is None):
            number = "neither" if target is None else "both"
            raise ValueError(f"`target` and `guidance_weights`: {number} given; expected exactly one of them.")
        _check_guided("guidance_scale", guidance_scale, {"target": target})
        if calibration is not None and target is not None and image is None:
            raise ValueError(
                "`calibration` is 'same' with `latents`; expected None, as only an image shows where an edit starts."
            )

        start = start if image is None else self.encode(start)
        weights = {}
        if guidance_weights is not None:
            weights = weights_from_classes(self.attributes, guidance_weights, len(start))
        elif target is not None:
            self._need_scale(call["guidance_scale"], "edit")
            weights = self._weights(start, target, call, calibration)
        predict = Denoiser(self.denoiser).predict
        return denoise(
            predict,
            ExactSteps(diffusion, "ddim", start.device),
            start if image is None else invert(predict, diffusion, start, num_steps),
            ClassifierScore(self.classifiers, weights) if weights else None,
            eta=lambda number: eta * (num_steps - number) / num_steps,  # the paper's t / 2000
            generator=generator,
            start=len(diffusion) - num_steps,
        )

    @torch.no_grad()
    def invert(
        self,
        image: Image.Image | list[Image.Image],
        num_inference_steps: int | None = None,
        strength: float | None = None,
        inverse_scheduler: Any = None,
    ) -> torch.Tensor:
        """Latents of one image or more: the noise from which deterministic, unguided steps lead back to it.

        Args:
            image: as of the call; so with the two below.
            inverse_scheduler: `DPMSolverMultistepInverseScheduler.from_config(pipe.scheduler.config,
                algorithm_type="dpmsolver++", timestep_spacing="linspace")`, to take its steps over the same timesteps;
                None takes DDIM's.

        Returns:
            (B, C, H, W) float32, as the denoiser sees images; at a strength of 1 about standard normal. The call takes
            them as `latents`.

        Raises:
            ValueError: for any argument outside what is said here, in one sentence that names it.
        """
        diffusion, num_steps = self._process(self.resolve_call(num_inference_steps, strength=strength))
        x_0 = self.encode(self._to_sample(image))
        predict = Denoiser(self.denoiser).predict
        if inverse_scheduler is None:
            latents = invert(predict, diffusion, x_0, num_steps)
        else:
            latents = x_0
            steps = self._inverse_steps(inverse_scheduler, diffusion)
            for step in islice(denoise(predict, steps, x_0), num_steps - 1):
                latents = step.sample
        self.maybe_free_model_hooks()
        return latents

    def interpolate(
        self,
        image_a: Image.Image,
        image_b: Image.Image,
        num_images: int = 8,
        method: str = "slerp",
        strength: float | None = None,
        num_inference_steps: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, int, dict[str, torch.Tensor]], dict[str, Any] | None] | None = None,
    ) -> MultiGuidanceOutput | tuple[Any, dict[str, np.ndarray] | None]:
        """From one image to another by way of their latents, without guidance (paper, appendix M).

        Args:
            image_a: the first image; cropped, resized and made grey or coloured as by the call.
            image_b: the last one.
            num_images: evenly spaced from the one to the other, both among them; at least 2.
            method: "slerp", along the sphere on which noise lies, or "lerp", straight.
            strength: see the call; so with everything below.

        Returns:
            As the call. The ends are the two images, there and back.

        Raises:
            ValueError: for any argument outside what is said here, in one sentence that names it.
        """
        _check_output(output_type, callback_on_step_end)
        if isinstance(num_images, bool) or not isinstance(num_images, int) or num_images < 2:
            raise ValueError(f"`num_images` is {num_images!r}; expected a whole number of at least 2.")
        if method not in ("slerp", "lerp"):
            raise ValueError(f"`method` is {method!r}; expected 'slerp' or 'lerp'.")
        for name, image in (("image_a", image_a), ("image_b", image_b)):
            if not isinstance(image, Image.Image):
                raise ValueError(f"`{name}` is a {type(image).__name__}; expected a PIL image.")
        first, last = self.invert([image_a, image_b], num_inference_steps, strength)
        mix = slerp if method == "slerp" else torch.lerp
        return self(
            latents=torch.stack([mix(first, last, share) for share in np.linspace(0, 1, num_images).tolist()]),
            strength=strength,
            num_inference_steps=num_inference_steps,
            eta=0.0,
            output_type=output_type,
            return_dict=return_dict,
            callback_on_step_end=callback_on_step_end,
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

    def _process(self, call: Mapping[str, Any]) -> tuple[GaussianDiffusion, int]:
        """The process of all steps of a call, and how many of them it goes back, and forth."""
        if self.denoiser.config.get("num_class_embeds"):
            raise ValueError("`unet` is told a class for each image; expected one that is not, for editing.")
        strength = call["strength"]
        if not (is_number(strength, 0, 1) and strength > 0):
            raise ValueError(f"`strength` is {strength!r}; expected a number above 0 and up to 1.")
        # Spaced to the very last timestep, so that a strength of 1 goes all the way to noise.
        diffusion = GaussianDiffusion.from_scheduler(self.scheduler, call["num_inference_steps"])
        return diffusion, max(1, round(strength * len(diffusion)))

    def _inverse_steps(self, scheduler: Any, diffusion: GaussianDiffusion) -> StockSteps:
        """Those of an inverse scheduler from image to noise, over the timesteps of `diffusion`."""
        if type(scheduler).__name__ != "DPMSolverMultistepInverseScheduler":
            raise ValueError(
                f"`inverse_scheduler` is a {type(scheduler).__name__}; expected a DPMSolverMultistepInverseScheduler."
            )
        # It counts steps, of which there is one less than there are timesteps.
        steps = StockSteps(scheduler, max(1, len(diffusion) - 1), self._execution_device)
        same = torch.equal(steps.timesteps[: len(diffusion) - 1].cpu(), diffusion.timesteps[:-1])
        same = same and np.array_equal(noise_schedule(scheduler.config), noise_schedule(self.scheduler.config))
        same = same and scheduler.config.prediction_type == self.scheduler.config.prediction_type
        if not same or scheduler.config.algorithm_type != "dpmsolver++":
            raise ValueError(
                "`inverse_scheduler` has other settings than the pipeline; expected DPMSolverMultistepInverseScheduler"
                '.from_config(pipe.scheduler.config, algorithm_type="dpmsolver++", timestep_spacing="linspace").'
            )
        return steps

    def _check_latents(self, latents: Any) -> torch.Tensor:
        """The latents, in float32 where the networks are."""
        shape = Denoiser(self.denoiser).sample_shape
        if not isinstance(latents, torch.Tensor):
            raise ValueError(f"`latents` is a {type(latents).__name__}; expected a tensor, what `invert` returns.")
        if not latents.is_floating_point() or latents.shape[1:] != shape or len(latents) == 0:
            raise ValueError(
                f"`latents` is {latents.dtype} of shape {tuple(latents.shape)}; expected floating point numbers of "
                f"shape (B, {', '.join(map(str, shape))}), what `invert` returns."
            )
        if not latents.isfinite().all():
            raise ValueError("`latents` has infinite numbers or NaN; expected finite ones, what `invert` returns.")
        return latents.to(self._execution_device, torch.float32)

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
        sample = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1
        return sample.to(self._execution_device)


def slerp(first: torch.Tensor, last: torch.Tensor, share: float) -> torch.Tensor:
    """The tensor at `share` of the way from `first` to `last`, both of one shape, along the arc between them."""
    cosine = torch.nn.functional.cosine_similarity(first.flatten(), last.flatten(), dim=0).clamp(-1, 1)
    angle = cosine.double().acos()
    if angle.sin() < 1e-6:  # there is hardly an arc
        return torch.lerp(first, last, share)
    return ((((1 - share) * angle).sin() * first + (share * angle).sin() * last) / angle.sin()).to(first.dtype)
