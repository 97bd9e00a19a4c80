"""Sampling with multi-guidance: the middle of an attribute from a diffusion model that saw only its ends."""

from __future__ import annotations

import importlib
import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler, UNet2DModel
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from safetensors import SafetensorError

from ..calibration import find_calibrations
from ..diffusion import GaussianDiffusion, noise_schedule
from ..guidance import (
    Target,
    check_guidance_interval,
    guidance_gradient,
    is_guided,
    is_number,
    weights_from_classes,
    weights_from_target,
)
from ..models.noisy_classifier import NoisyClassifierSet
from ..hub.bundle import inline_source

# What `model_index.json` may name, by component: nothing else is ever imported or loaded.
COMPONENT_CLASSES = {
    "unet": (["diffusers", "UNet2DModel"],),
    "scheduler": (["diffusers", "DDPMScheduler"], ["diffusers", "DDIMScheduler"]),
    "classifiers": (["noisy_classifier", "NoisyClassifierSet"], [None, None]),
}
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")
SHARED_ARGUMENTS = (*HUB_ARGUMENTS, "dtype", "torch_dtype", "variant", "low_cpu_mem_usage")
SAMPLERS = ("ddpm", "ddim", "dpmsolver++", "sde-dpmsolver++")


@dataclass
class MultiGuidanceOutput(BaseOutput):
    """Images, and what the classifiers say of them: (B, number of classes) probabilities by attribute."""

    images: list[Image.Image] | np.ndarray | torch.Tensor
    probabilities: dict[str, np.ndarray] | None


class MultiGuidanceDDPMPipeline(DiffusionPipeline):
    """Guide an unconditional DDPM by classifiers of noisy images towards all classes at once (paper, section 4).

    Args:
        unet: the denoiser, trained on extremes only.
        classifiers: a `NoisyClassifierSet`, or None to sample without guidance.
        scheduler: a stock scheduler, whose configuration alone is used.
        default_num_inference_steps: what the call's `num_inference_steps=None` means.
        default_guidance_scale: what the call's `guidance_scale=None` means.
        default_guidance_interval: what the call's `guidance_interval=None` means.
        default_sampler: what the call's `sampler=None` means.
        calibrations: what `multiguidance calibrate` found, by attribute; see `find_calibrations`.
    """

    model_cpu_offload_seq = "unet->classifiers"
    _optional_components = ["classifiers"]  # noqa: RUF012

    def __init__(
        self,
        unet: UNet2DModel,
        classifiers: Any,
        scheduler: DDPMScheduler,
        default_num_inference_steps: int = 250,
        default_guidance_scale: float = 60.0,
        default_guidance_interval: Sequence = (0.0, 1.0),  # bare, or diffusers complains of it at every load
        default_sampler: str = "ddpm",
        calibrations: dict[str, list[dict[str, Any]]] | None = None,
    ) -> None:
        super().__init__()
        for config in [] if classifiers is None else classifiers.config["member_configs"]:
            if (config["sample_size"], config["in_channels"]) != (unet.config.sample_size, unet.config.in_channels):
                raise ValueError(
                    f"`classifiers` are for {config['sample_size']} pixels and {config['in_channels']} channels; "
                    f"expected those of `unet`, {unet.config.sample_size} and {unet.config.in_channels}."
                )
        self.register_modules(unet=unet, classifiers=classifiers, scheduler=scheduler)
        self.register_to_config(
            default_num_inference_steps=default_num_inference_steps,
            default_guidance_scale=default_guidance_scale,
            default_guidance_interval=default_guidance_interval,
            default_sampler=default_sampler,
            calibrations=calibrations or {},
        )

    @property
    def attributes(self) -> dict[str, list[str]]:
        """Class names by attribute, as the classifiers know them."""
        return {} if self.classifiers is None else self.classifiers.attributes

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        target: Mapping[str, Target] | str | None = None,
        guidance_scale: float | None = None,
        guidance_weights: Mapping[str, Mapping[str, float]] | None = None,
        guidance_interval: tuple[float, float] | None = None,
        num_inference_steps: int | None = None,
        sampler: str | None = None,
        eta: float = 0.0,
        calibration: str | None = "same",
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, int, dict[str, torch.Tensor]], dict[str, Any] | None] | None = None,
    ) -> MultiGuidanceOutput | tuple[Any, dict[str, np.ndarray] | None]:
        """Draw images; without `target` and `guidance_weights` the plain, unguided ones.

        Args:
            batch_size: number of images B.
            target: where to aim, by attribute: a number from 0 (its first class) to 1 (its second), a dict of shares
                for any number of classes, or "uniform", which spreads the batch evenly. A number is a measured
                strength where there is a calibration, else the classifiers' probability at which guidance vanishes.
            guidance_scale: total weight L of an attribute's classes; 60 is the paper's 30 + 30. None takes the
                pipeline's default.
            guidance_weights: raw weights lambda by attribute and class, in place of `target`; negative ones lead away.
            guidance_interval: share of the steps, from noise to image, in which to guide; (0, 1) is all. None takes
                the pipeline's default.
            num_inference_steps: evenly respaced steps S, at most the T of training. None takes the pipeline's default.
            sampler: "ddpm", ancestral, the mean shifted by variance * gradient; "ddim"; or, of second order and
                multistep (Lu et al. 2022), "dpmsolver++" and, with the ancestral sampler's noise, "sde-dpmsolver++":
                these shift the score. The same scale is not the same strength under each. None takes the pipeline's
                default.
            eta: noise of "ddim", from 0 (deterministic) to 1.
            calibration: "same", the one measured with this sampler, number of steps, guidance scale and interval;
                "nearest", else of this sampler that with the nearest number of steps; None, no calibration.
            generator: one for the batch, or a list with one per image, which makes an image independent of its batch.
            output_type: "pil", "np" (B, H, W, C in [0, 1]) or "pt" (B, C, H, W in [0, 1]).
            callback_on_step_end: called after every step as `(pipeline, step, timestep, {"sample": x})`; may return
                `{"sample": ...}` to replace x, (B, C, H, W).

        Returns:
            `MultiGuidanceOutput`, or the tuple of its two fields where `return_dict` is False.

        Raises:
            ValueError: for any argument outside what is said here, in one sentence that names it.
        """
        num_inference_steps = self._default(num_inference_steps, "default_num_inference_steps")
        guidance_scale = self._default(guidance_scale, "default_guidance_scale")
        guidance_interval = self._default(guidance_interval, "default_guidance_interval")
        sampler = self._default(sampler, "default_sampler")
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"`batch_size` is {batch_size!r}; expected a whole number of at least 1.")
        self._check_call(batch_size, generator, guidance_scale, output_type, callback_on_step_end)
        if sampler not in SAMPLERS:
            raise ValueError(f"`sampler` is {sampler!r}; expected one of {list(SAMPLERS)}.")
        if not is_number(eta, 0, 1 if sampler == "ddim" else 0):
            raise ValueError(f"`eta` is {eta}; expected 0 to 1 for the sampler 'ddim', and 0 for the others.")
        if calibration not in ("same", "nearest", None):
            raise ValueError(f"`calibration` is {calibration!r}; expected 'same', 'nearest' or None.")
        check_guidance_interval(guidance_interval)
        weights: dict[str, torch.Tensor] = {}
        if target is not None and guidance_weights is not None:
            raise ValueError("`target` and `guidance_weights` are both given; expected at most one of them.")
        if target is not None:
            call = {
                "sampler": sampler,
                "num_inference_steps": num_inference_steps,
                "guidance_scale": guidance_scale,
                "guidance_interval": guidance_interval,
            }
            aims = target if isinstance(target, Mapping) else dict.fromkeys(self.attributes)
            numbers = [name for name in aims if not isinstance(aims[name], Mapping)]
            networks = [self.unet, *([] if self.classifiers is None else self.classifiers.members)]
            found = find_calibrations(self.config["calibrations"], numbers, call, calibration, networks)
            weights = weights_from_target(self.attributes, target, guidance_scale, batch_size, found)
        elif guidance_weights is not None:
            weights = weights_from_classes(self.attributes, guidance_weights, batch_size)

        device = self._execution_device
        weights = {attribute: row.to(device) for attribute, row in weights.items()}
        diffusion = GaussianDiffusion.from_scheduler(self.scheduler, num_inference_steps)
        clip = self.scheduler.config.get("clip_sample", True)
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        shape = (batch_size, self.unet.config.in_channels, height, width)
        sample = randn_tensor(shape, generator=generator, device=device)

        solver = None
        if sampler in ("dpmsolver++", "sde-dpmsolver++"):
            # For its model's output it is given the predicted image, guided and clipped here.
            betas = noise_schedule(self.scheduler.config)
            solver = DPMSolverMultistepScheduler(trained_betas=betas, prediction_type="sample", algorithm_type=sampler)
            solver.set_timesteps(timesteps=diffusion.timesteps.flip(0).tolist(), device=device)

        # Arithmetic stays in float32 whatever the networks' precision: the steps are differences of near equals.
        for step in self.progress_bar(range(num_inference_steps)):
            index = num_inference_steps - 1 - step
            timestep = diffusion.timesteps[index].to(device)
            model_output = self.unet(sample.to(self.unet.dtype), timestep).sample.float()
            grad = None
            if weights and is_guided(step, num_inference_steps, guidance_interval):
                x_t = sample.to(self.classifiers.dtype)
                grad = guidance_gradient(self.classifiers, x_t, timestep, weights).float()
            needs_noise = index > 0 and (sampler in ("ddpm", "sde-dpmsolver++") or eta > 0)
            noise = (
                randn_tensor(shape, generator=generator, device=device) if needs_noise else torch.zeros_like(sample)
            )
            if sampler == "ddpm":
                moments = diffusion.p_mean_variance(model_output, sample, index, clip)
                mean = moments.mean if grad is None else diffusion.guide_mean(moments, grad)
                sample = mean + (0.5 * moments.log_variance).exp() * noise
            elif solver is not None:
                moments = diffusion.p_mean_variance(model_output, sample, index, clip)
                if grad is not None:
                    moments = diffusion.guide_score(moments, sample, grad, index)
                pred_x0 = moments.pred_x0.clamp(-1, 1) if clip else moments.pred_x0
                sample = solver.step(pred_x0, timestep, sample, variance_noise=noise).prev_sample
            else:
                # An ancestral model's second half, the variance, has no place in DDIM.
                sample = diffusion.ddim_step(model_output, sample, index, eta, grad, noise, clip)
            if callback_on_step_end is not None:
                changed = callback_on_step_end(self, step, int(timestep), {"sample": sample})
                sample = (changed or {}).get("sample", sample)

        return self._finish(sample, output_type, return_dict)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Save as it stands on the Hub: stock components, `pipeline.py` and `classifiers/noisy_classifier.py`.

        Such a folder also loads where this package is not installed, by `DiffusionPipeline.from_pretrained(folder,
        trust_remote_code=True)`.
        """
        if kwargs.get("push_to_hub"):
            raise ValueError(
                "`push_to_hub` is True; expected a call of `push_to_hub(repo_id)`, which uploads all files."
            )
        super().save_pretrained(save_directory, **kwargs)
        folder = Path(save_directory)
        index = json.loads((folder / self.config_name).read_text())
        index["_class_name"] = ["pipeline", type(self).__name__]
        (folder / "pipeline.py").write_text(inline_source(inspect.getfile(type(self))))
        if self.classifiers is not None:
            index["classifiers"] = ["noisy_classifier", "NoisyClassifierSet"]
            code = Path(inspect.getfile(type(self.classifiers))).read_text()
            (folder / "classifiers" / "noisy_classifier.py").write_text(code)
        configs = {folder / self.config_name: index}
        for component in ("unet", "classifiers"):
            path = folder / component / "config.json"
            if getattr(self, component) is not None:
                configs[path] = json.loads(path.read_text())
        for path, config in configs.items():
            config.pop("_name_or_path", None)  # where it once lay is nobody's business
            path.write_text(json.dumps(config, indent=2) + "\n")

    def push_to_hub(
        self, repo_id: str, token: str | None = None, private: bool = False, revision: str | None = None
    ) -> str:
        """Save and upload in one commit, with a card where there is none yet; see `hub.publish.publish`.

        Needs this package also where the pipeline came from a Hub with its own code.

        Raises:
            ValueError: for a token that is missing or has no right, a `repo_id` that is taken by something else, or a
                connection that broke, in one sentence.
        """
        # No import statement: diffusers would ask everyone who loads the published copy of this file to install it.
        hub = importlib.import_module("diffusers_multiguidance.hub.publish")
        return hub.publish_pipeline(self, repo_id, token, private, revision)

    @classmethod
    def from_pipe(cls, pipeline: Any, **kwargs: Any) -> Any:
        """Another of our pipelines with the networks and defaults of `pipeline`."""
        # Unless it is given, diffusers leaves out a component whose class it can't tell from the constructor.
        return super().from_pipe(pipeline, **{"classifiers": pipeline.classifiers, **kwargs})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Any:
        """Load from a folder or the Hub without running any code that lies there.

        Arguments are those of `DiffusionPipeline.from_pretrained`. Weights are read from safetensors only.

        Raises:
            ValueError: where a file is missing or broken, or `model_index.json` names a class that does not belong.
        """
        path = str(pretrained_model_name_or_path)
        shared = {name: kwargs[name] for name in SHARED_ARGUMENTS if name in kwargs}
        kwargs["use_safetensors"] = True
        try:
            index = DiffusionPipeline.load_config(
                path, **{name: shared[name] for name in shared if name in HUB_ARGUMENTS}
            )
            for name, model_class in (("unet", UNet2DModel), ("classifiers", NoisyClassifierSet)):
                if name in kwargs or index.get(name) == [None, None]:
                    continue
                kwargs[name], info = model_class.from_pretrained(
                    path, subfolder=name, use_safetensors=True, output_loading_info=True, **shared
                )
                if info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"]:
                    raise OSError(f"the weights of '{name}' are not those that its config.json describes")
            return super().from_pretrained(path, **kwargs)
        except (OSError, SafetensorError, RuntimeError, LookupError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"`pretrained_model_name_or_path` {path!r} is no whole pipeline: {reason}") from error

    @classmethod
    def _dict_from_json_file(cls, json_file: str | Path, *args: Any) -> dict[str, Any]:
        # diffusers demands trust for a list `_class_name` and for a component with code, even of a class that is
        # installed. This class is, and `from_pretrained` passes it the classifiers.
        index = super()._dict_from_json_file(json_file, *args)
        if not isinstance(index, dict):
            raise OSError(f"{cls.config_name} is no JSON object")
        for component, known in COMPONENT_CLASSES.items():
            if index.get(component) not in known:
                raise ValueError(
                    f"`model_index.json` names {index.get(component)} as '{component}'; expected one of {list(known)}."
                )
        return {**index, "_class_name": cls.__name__, "classifiers": [None, None]}

    def _default(self, value: Any, name: str) -> Any:
        return self.config[name] if value is None else value

    @staticmethod
    def _check_call(
        batch_size: int, generator: Any, guidance_scale: Any, output_type: Any, callback_on_step_end: Any
    ) -> None:
        """Raise `ValueError` for what is wrong with the arguments that sampling and editing share."""
        for stream in generator if isinstance(generator, list) else [generator]:
            if not isinstance(stream, torch.Generator | None):
                raise ValueError(f"`generator` is {generator!r}; expected a torch.Generator or a list of them.")
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(f"`generator` has {len(generator)} generators; expected one per image, {batch_size}.")
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"`output_type` is {output_type!r}; expected 'pil', 'np' or 'pt'.")
        if callback_on_step_end is not None and not callable(callback_on_step_end):
            raise ValueError(f"`callback_on_step_end` is {callback_on_step_end!r}; expected a function.")
        if not is_number(guidance_scale, 0, math.inf):
            raise ValueError(f"`guidance_scale` is {guidance_scale!r}; expected a finite number of at least 0.")

    def _finish(
        self, sample: torch.Tensor, output_type: str, return_dict: bool
    ) -> MultiGuidanceOutput | tuple[Any, dict[str, np.ndarray] | None]:
        """Finished images as the caller wants them, and what the classifiers say of them."""
        sample = sample.clamp(-1, 1)
        probabilities = None
        if self.classifiers is not None:
            logits = self.classifiers(sample.to(self.classifiers.dtype), 0).logits
            probabilities = {name: values.float().softmax(dim=1).cpu().numpy() for name, values in logits.items()}
        self.maybe_free_model_hooks()
        images: Any = sample / 2 + 0.5
        if output_type != "pt":
            images = images.permute(0, 2, 3, 1).cpu().numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        if not return_dict:
            return images, probabilities
        return MultiGuidanceOutput(images=images, probabilities=probabilities)
