"""Sampling with multi-guidance: the middle of an attribute from a diffusion model that saw only its ends."""

from __future__ import annotations

import functools
import importlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from safetensors import SafetensorError

from ..denoising import Denoiser, DenoisingStep, denoise
from ..guidance import (
    ClassifierScore,
    Target,
    check_guidance_interval,
    find_calibrations,
    is_number,
    weights_fingerprint,
    weights_from_classes,
    weights_from_target,
)
from ..hub.bundle import inline_source
from ..models.autoencoder import VAE_CLASSES, downsampling, to_images, to_latents
from ..models.heads import restore_num_heads
from ..models.noisy_classifier import NoisyClassifierSet
from ..schedulers import SCHEDULERS, create_steps, scheduler_name

# Classes that `model_index.json` may name, by component: nothing else is ever imported or loaded.
COMPONENT_CLASSES = {
    "unet": {"UNet2DModel"},
    "transformer": {"DiTTransformer2DModel"},
    "vae": set(VAE_CLASSES),
    "scheduler": {class_name for class_name, _ in SCHEDULERS.values()},
    "classifiers": {"NoisyClassifierSet"},
}
STOCK_PIPELINES = ("DDPMPipeline", "DDIMPipeline", "LDMPipeline", "DiTPipeline")
# What a component, and its class in folders of old, is called there, and here.
STOCK_NAMES = {"vqvae": "vae", "Transformer2DModel": "DiTTransformer2DModel"}
CLASSIFIER_FREE = "MultiGuidanceCFGPipeline"
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")
SHARED_ARGUMENTS = (*HUB_ARGUMENTS, "dtype", "torch_dtype", "variant", "low_cpu_mem_usage")


@dataclass
class MultiGuidanceOutput(BaseOutput):
    """Images, and what the classifiers say of them: (B, number of classes) probabilities by attribute."""

    images: list[Image.Image] | np.ndarray | torch.Tensor
    probabilities: dict[str, np.ndarray] | None


class MultiGuidanceDDPMPipeline(DiffusionPipeline):
    """Guide a DDPM by classifiers of noisy images towards all classes at once (paper, section 4).

    The scheduler decides how to sample: `DDPMScheduler` and `DDIMScheduler` by exact float64 tables, the others in
    `schedulers.SCHEDULERS` by their own steps. Exchange it as everywhere in diffusers:
    `pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config)`.

    Args:
        unet: a `UNet2DModel`, the denoiser, trained on extremes only; or None.
        transformer: a `DiTTransformer2DModel` in its place; exactly one of the two.
        vae: where given, the denoiser and the classifiers live in its latents, scaled by its `scaling_factor`.
        classifiers: a `NoisyClassifierSet`, or None to sample without guidance.
        scheduler: a stock scheduler.
        patch_size: the denoiser and the classifiers see every square of this many pixels a side as one pixel, with
            that many more channels: a quarter of the work with 2.
        sampling_defaults: by the short name of a scheduler, the `num_inference_steps`, `guidance_scale` and
            `guidance_interval` that it was tuned for; what the call's None means. Under "edit", those of editing.
        calibrations: what `multiguidance calibrate` found, by attribute; see `guidance.find_calibrations`.

    Raises:
        ValueError: for no or two denoisers, parts that do not fit each other, or a scheduler that can't be guided.
    """

    model_cpu_offload_seq = "unet->transformer->classifiers->vae"
    _scale_means = "weight"  # a `guidance_scale` tuned for one meaning is none for the other
    _settings: tuple[str, ...] = ("patch_size", "sampling_defaults", "calibrations")
    # diffusers silently ignores a component that has a default in the signature.
    _optional_components = ["unet", "transformer", "vae", "classifiers"]  # noqa: RUF012

    def __init__(
        self,
        unet: Any,
        transformer: Any,
        vae: Any,
        classifiers: Any,
        scheduler: Any,
        patch_size: int = 1,
        sampling_defaults: dict[str, dict[str, Any]] | None = None,
        calibrations: dict[str, list[dict[str, Any]]] | None = None,
    ) -> None:
        super().__init__()
        parts = {"unet": unet, "transformer": transformer, "vae": vae, "classifiers": classifiers}
        self._register(parts, scheduler, patch_size, sampling_defaults, calibrations)

    def _register(
        self, parts: dict[str, Any], scheduler: Any, patch_size: int, sampling_defaults: Any, calibrations: Any
    ) -> None:
        _check_parts(**parts, scheduler=scheduler, patch_size=patch_size)
        # What it has by default it has: else `from_config` of another scheduler would forget it, say to clip.
        said = {name: value for name, value in scheduler.config.items() if name != "_use_default_values"}
        scheduler = type(scheduler).from_config(said)
        if parts.get("classifiers") is not None:
            # Else every backward pass prepares for gradients of its weights; and as `Denoiser` lays out its network.
            parts["classifiers"].requires_grad_(False).to(memory_format=torch.channels_last)
        self.register_to_config(
            patch_size=patch_size, sampling_defaults=sampling_defaults or {}, calibrations=calibrations or {}
        )
        self.register_modules(**parts, scheduler=scheduler)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name not in self._optional_components or value is None:
            return
        if name == "unet":
            restore_num_heads(value)
        if self.config[name][0] is None:  # else diffusers would not save what was not there from the start
            self.register_modules(**{name: value})
        if self.config["calibrations"] and name != "vae":
            weights_fingerprint(_networks(value))  # as long as the weights are there: they may be offloaded

    @property
    def attributes(self) -> dict[str, list[str]]:
        """Class names by attribute, as the classifiers know them."""
        return {} if self.classifiers is None else self.classifiers.attributes

    @property
    def denoiser(self) -> Any:
        """The `unet` or the `transformer`, whichever there is."""
        return self.transformer if self.unet is None else self.unet

    @property
    def networks(self) -> list[torch.nn.Module]:
        """The denoiser and each classifier: what a calibration belongs to."""
        return [*_networks(self.denoiser), *_networks(self.classifiers)]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        height, width = _height_and_width(self.denoiser.config.sample_size)
        factor = self.config["patch_size"]
        if self.vae is not None:
            factor = downsampling(self.vae)
        return height * factor, width * factor

    @property
    def channels(self) -> int:
        """Channels of the images."""
        if self.vae is not None:
            return self.vae.config.in_channels
        return self.denoiser.config.in_channels // self.config["patch_size"] ** 2

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        target: Mapping[str, Target] | str | None = None,
        guidance_scale: float | None = None,
        guidance_weights: Mapping[str, Mapping[str, float]] | None = None,
        guidance_interval: tuple[float, float] | None = None,
        num_inference_steps: int | None = None,
        eta: float = 0.0,
        calibration: str | None = "same",
        class_labels: Sequence[int] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, int, dict[str, torch.Tensor]], dict[str, Any] | None] | None = None,
    ) -> MultiGuidanceOutput | tuple[Any, dict[str, np.ndarray] | None]:
        """Generate images; without `target` and `guidance_weights` the plain, unguided ones.

        Args:
            batch_size: number of images B.
            target: where to aim, by attribute: a number from 0 (its low class) to 1 (its high class), a dict of
                shares for any number of classes, or "uniform", which spreads the batch evenly. A number is a measured
                value where there is a calibration, else the classifiers' probability at which guidance vanishes.
            guidance_scale: total weight L of an attribute's classes; 60 is the paper's 30 + 30. The same scale does
                not pull alike under two schedulers: None takes what the pipeline was tuned for with this one. Only
                with `target`.
            guidance_weights: raw weights lambda by attribute and class, in place of `target`; negative ones lead away.
            guidance_interval: share of the steps, from noise to image, in which to guide; (0, 1) is all. None takes
                the pipeline's default for this scheduler.
            num_inference_steps: steps S. None takes the pipeline's default for this scheduler, or else 250 ancestral
                ones and 50 of any other.
            eta: noise of `DDIMScheduler`, from 0 (deterministic) to 1; 0 with any other.
            calibration: "same", the one measured with this scheduler, number of steps, guidance scale and interval;
                "nearest", else of this scheduler that with the nearest number of steps; None, no calibration.
            class_labels: one for each image, where the denoiser knows classes; None samples without, as a
                transformer can.
            generator: one for the batch, or a list with one per image, which makes an image independent of its batch.
            output_type: "pil", "np" (B, H, W, C in [0, 1]) or "pt" (B, C, H, W in [0, 1]).
            callback_on_step_end: called after every step as `(pipeline, step, timestep, {"sample": x})`; may return
                `{"sample": ...}` to replace x, (B, C, H, W).

        Returns:
            `MultiGuidanceOutput`, or the tuple of its two fields where `return_dict` is False.

        Raises:
            ValueError: for any argument outside what is said here, in one sentence that names it.
        """
        _check_output(output_type, callback_on_step_end)
        steps = self.denoise(
            batch_size,
            target,
            guidance_scale,
            guidance_weights,
            guidance_interval,
            num_inference_steps,
            eta,
            calibration,
            class_labels,
            generator,
        )
        return self._run(steps, output_type, return_dict, callback_on_step_end)

    def denoise(
        self,
        batch_size: int = 1,
        target: Mapping[str, Target] | str | None = None,
        guidance_scale: float | None = None,
        guidance_weights: Mapping[str, Mapping[str, float]] | None = None,
        guidance_interval: tuple[float, float] | None = None,
        num_inference_steps: int | None = None,
        eta: float = 0.0,
        calibration: str | None = "same",
        class_labels: Sequence[int] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> Iterator[DenoisingStep]:
        """The call, step by step, for whoever wants to look at images while they emerge; see `finish`.

        Arguments and errors are those of the call.
        """
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"`batch_size` is {batch_size!r}; expected a whole number of at least 1.")
        if target is not None and guidance_weights is not None:
            raise ValueError("`target` and `guidance_weights` are both given; expected at most one of them.")
        if calibration not in ("same", "nearest", None):
            raise ValueError(f"`calibration` is {calibration!r}; expected 'same', 'nearest' or None.")
        name = scheduler_name(self.scheduler)
        if not is_number(eta, 0, 1 if name == "ddim" else 0):
            raise ValueError(f"`eta` is {eta}; expected 0 to 1 with DDIMScheduler, and 0 with any other.")
        call = self.resolve_call(num_inference_steps, guidance_scale, guidance_interval)
        check_guidance_interval(call["guidance_interval"])
        _check_guided("guidance_scale", guidance_scale, {"target": target})
        _check_guided("guidance_interval", guidance_interval, {"target": target, "guidance_weights": guidance_weights})
        weights = {}
        if target is not None:
            scale = self._need_scale(call["guidance_scale"], name)
            found = self._find_calibrations(target, call, calibration)
            weights = weights_from_target(self.attributes, target, self._total_weight(scale), batch_size, found)
        elif guidance_weights is not None:
            weights = weights_from_classes(self.attributes, guidance_weights, batch_size)
        _check_generator(generator, batch_size)
        labels = self._class_labels(class_labels, batch_size)

        device = self._execution_device
        denoiser = Denoiser(self.denoiser)
        noise = randn_tensor((batch_size, *denoiser.sample_shape), generator=generator, device=device)
        return denoise(
            functools.partial(denoiser.predict, class_labels=labels),
            create_steps(self.scheduler, call["num_inference_steps"], device),
            noise,
            guidance_interval=call["guidance_interval"],
            eta=lambda number: eta,
            generator=generator,
            **(self._guidance(denoiser, weights) if weights else {}),
        )

    def _total_weight(self, guidance_scale: float) -> float:
        """Of the classes of an attribute."""
        return guidance_scale

    def _guidance(self, denoiser: Denoiser, weights: dict[str, torch.Tensor]) -> dict[str, Any]:
        """What `denoise` follows where it guides."""
        return {"guidance": ClassifierScore(self.classifiers, weights)}

    def resolve_call(
        self,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_interval: Sequence[float] | None = None,
    ) -> dict[str, Any]:
        """What these arguments of the call, where they are None, stand for with the scheduler of now, and its name."""
        name = scheduler_name(self.scheduler)
        tuned = self.config["sampling_defaults"].get(name, {})
        usual = min(250 if name == "ddpm" else 50, self.scheduler.config.num_train_timesteps)
        given = {
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "guidance_interval": guidance_interval,
        }
        otherwise = {"num_inference_steps": usual, "guidance_scale": None, "guidance_interval": (0.0, 1.0)}
        call = {key: tuned.get(key, otherwise[key]) if value is None else value for key, value in given.items()}
        return {"scheduler": name, **call}

    def _run(
        self,
        steps: Iterator[DenoisingStep],
        output_type: str,
        return_dict: bool,
        callback_on_step_end: Callable[[Any, int, int, dict[str, torch.Tensor]], dict[str, Any] | None] | None,
    ) -> MultiGuidanceOutput | tuple[Any, dict[str, np.ndarray] | None]:
        """Take all steps, with a progress bar and the caller's callback, and finish the images."""
        bar: Any = None
        for step in steps:
            bar = self.progress_bar(total=step.total) if bar is None else bar
            if callback_on_step_end is not None:
                tensors = {"sample": step.sample}
                changed = callback_on_step_end(self, step.number - 1, int(step.timestep), tensors)
                step.sample = _sample_after(changed, step.sample)
            bar.update()
        bar.close()
        images, probabilities = self.finish(step.sample, output_type)
        return MultiGuidanceOutput(images, probabilities) if return_dict else (images, probabilities)

    @torch.no_grad()
    def finish(self, sample: torch.Tensor, output_type: str = "pil") -> tuple[Any, dict[str, np.ndarray] | None]:
        """Finished images of the last step's sample, and what the classifiers say of them."""
        probabilities = None
        if self.vae is None:
            sample = sample.clamp(-1, 1)
        if self.classifiers is not None:
            logits = self.classifiers(sample.to(self.classifiers.dtype), 0).logits
            probabilities = {name: values.float().softmax(dim=1).cpu().numpy() for name, values in logits.items()}
        images: Any = (self.decode(sample) / 2 + 0.5).clamp(0, 1)
        self.maybe_free_model_hooks()
        if output_type != "pt":
            images = images.permute(0, 2, 3, 1).cpu().numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        return images, probabilities

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """What the denoiser and the classifiers see of images (B, C, H, W) in [-1, 1]: patches, or latents."""
        if self.vae is None:
            return F.pixel_unshuffle(images, self.config["patch_size"])
        return to_latents(self.vae, images)

    @torch.no_grad()
    def decode(self, sample: torch.Tensor) -> torch.Tensor:
        """The reverse of `encode`."""
        if self.vae is None:
            return F.pixel_shuffle(sample, self.config["patch_size"])
        return to_images(self.vae, sample)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Save as it stands on the Hub: stock components, `pipeline.py` and `classifiers/noisy_classifier.py`.

        Such a folder also loads where this package is not installed, by `DiffusionPipeline.from_pretrained(folder,
        trust_remote_code=True)`.

        Raises:
            ValueError: for what could not be loaded again, before anything is written.
        """
        if kwargs.get("push_to_hub"):
            raise ValueError(
                "`push_to_hub` is True; expected a call of `push_to_hub(repo_id)`, which uploads all files."
            )
        if not kwargs.get("safe_serialization", True) or kwargs.get("use_flashpack"):
            raise ValueError(
                "`safe_serialization` is False or `use_flashpack` True; expected neither, as pipelines load from "
                "safetensors only."
            )
        _check_parts(**self.components, patch_size=self.config["patch_size"])
        for name, part in self.components.items():
            class_name = self.config[name][1]
            if part is not None and class_name not in COMPONENT_CLASSES[name]:
                raise ValueError(f"`{name}` is a {class_name}; expected one of {sorted(COMPONENT_CLASSES[name])}.")
            if isinstance(part, torch.nn.Module) and any(weight.is_meta for weight in part.parameters()):
                raise ValueError(f"`{name}` is offloaded; expected the pipeline after `remove_all_hooks()`.")
        super().save_pretrained(save_directory, **kwargs)
        folder = Path(save_directory)
        index = json.loads((folder / self.config_name).read_text())
        index["_class_name"] = ["pipeline", type(self).__name__]
        (folder / "pipeline.py").write_text(inline_source(inspect.getfile(type(self))))
        if self.classifiers is not None:
            index["classifiers"] = ["noisy_classifier", "NoisyClassifierSet"]
            uncompiled = getattr(self.classifiers, "_orig_mod", self.classifiers)
            code = Path(inspect.getfile(type(uncompiled))).read_text()
            (folder / "classifiers" / "noisy_classifier.py").write_text(code)
        configs = {folder / self.config_name: index}
        for path in folder.glob("*/config.json"):
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
        return hub.publish(self, repo_id, token=token, private=private, revision=revision)

    @classmethod
    def from_pipe(cls, pipeline: Any, **kwargs: Any) -> Any:
        """A pipeline of the same parts: from one of ours or a stock DDPM, DDIM, LDM or DiT pipeline.

        Raises:
            ValueError: for a pipeline with other parts, such as a text encoder.
        """
        parts = {STOCK_NAMES.get(name, name): part for name, part in pipeline.components.items()}
        unknown = [name for name in parts if name not in COMPONENT_CLASSES]
        if unknown:
            raise ValueError(
                f"`pipeline` is a {type(pipeline).__name__} with a {unknown[0]}; expected one of "
                f"{list(COMPONENT_CLASSES)}."
            )
        if "classifiers" not in cls._optional_components and parts.pop("classifiers", None) is not None:
            raise ValueError(
                f"`pipeline` has classifiers, which a {cls.__name__} does not take; expected one without, whose "
                "denoiser knows the classes."
            )
        settings: dict[str, Any] = {}
        if getattr(pipeline, "_scale_means", cls._scale_means) != cls._scale_means:
            tuned = {
                name: {key: value for key, value in entry.items() if key != "guidance_scale"}
                for name, entry in pipeline.config["sampling_defaults"].items()
            }
            settings = {"sampling_defaults": tuned, "calibrations": {}}
        missing = dict.fromkeys(cls._optional_components)
        return super().from_pipe(pipeline, **{**missing, **settings, **parts, **kwargs})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Any:
        """Load from a folder or the Hub without running any code that lies there.

        Also loads the folders of stock DDPM, DDIM, LDM and DiT pipelines, which sample unguided until they have
        `classifiers`. Arguments are those of `DiffusionPipeline.from_pretrained`. Weights are read from safetensors
        only.

        Raises:
            ValueError: where a file is missing or broken, or `model_index.json` names a class that does not belong.
        """
        path = str(pretrained_model_name_or_path)
        shared = {name: kwargs[name] for name in SHARED_ARGUMENTS if name in kwargs}
        kwargs["use_safetensors"] = True
        try:
            hub = {name: shared[name] for name in shared if name in HUB_ARGUMENTS}
            index = DiffusionPipeline.load_config(path, **hub)
            _check_class(index, cls.__name__)
            for subfolder, entry in _components(index).items():
                name = STOCK_NAMES.get(subfolder, subfolder)
                if name in kwargs or name == "scheduler":
                    continue
                model_class = NoisyClassifierSet if name == "classifiers" else getattr(diffusers, entry)
                kwargs[name], info = model_class.from_pretrained(
                    path, subfolder=subfolder, use_safetensors=True, output_loading_info=True, **shared
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
        # installed. This class is, and `from_pretrained` passes it all models.
        index = super()._dict_from_json_file(json_file, *args)
        _components(index)
        settings = {name: index[name] for name in cls._settings if name in index}
        models = {name: [None, None] for name in cls._optional_components}
        return {**settings, **models, "scheduler": index["scheduler"], "_class_name": cls.__name__}

    def _need_scale(self, guidance_scale: float | None, name: str) -> float:
        """The scale, or a sentence where none was given and none tuned for the scheduler of that name, or "edit"."""
        if guidance_scale is None:
            tuned = {key: entry.get("guidance_scale") for key, entry in self.config["sampling_defaults"].items()}
            raise ValueError(
                f"`guidance_scale` is missing, and none was tuned for '{name}'; expected a number, since how strongly "
                f"a scale guides depends on the scheduler (tuned here: {tuned})."
            )
        return guidance_scale

    def _find_calibrations(self, target: Any, call: dict[str, Any], choice: str | None) -> dict[str, Any]:
        """Of the attributes with a number for a target; see `guidance.find_calibrations`."""
        aims = target if isinstance(target, Mapping) else dict.fromkeys(self.attributes)
        numbers = [name for name in aims if not isinstance(aims[name], Mapping)]
        return find_calibrations(self.config["calibrations"], numbers, call, choice, self.networks)

    def _class_labels(self, class_labels: Any, batch_size: int) -> torch.Tensor | None:
        config = self.denoiser.config
        if class_labels is None:
            if config.get("num_class_embeds"):  # which of its labels stands for none, if any, it does not say
                raise ValueError(
                    f"`class_labels` is None; expected a label from 0 to {config['num_class_embeds'] - 1} for each "
                    "image, as this `unet` is told one."
                )
            return None
        num_classes = config.get("num_embeds_ada_norm") or config.get("num_class_embeds") or 0
        if not num_classes:
            raise ValueError(f"`class_labels` is {class_labels!r}; expected None, as the denoiser knows no classes.")
        labels = np.asarray(class_labels)
        whole = np.issubdtype(labels.dtype, np.integer) and labels.shape == (batch_size,)
        if not (whole and (labels >= 0).all() and (labels < num_classes).all()):
            raise ValueError(
                f"`class_labels` is {class_labels!r}; expected {batch_size} whole numbers from 0 to {num_classes - 1}."
            )
        return torch.from_numpy(labels).to(self._execution_device)


def _check_parts(
    unet: Any, transformer: Any, vae: Any, scheduler: Any, patch_size: int, classifiers: Any = None
) -> None:
    """Raise `ValueError` for parts that no pipeline can be made of."""
    if (unet is None) == (transformer is None):
        number = "neither" if unet is None else "both"
        raise ValueError(f"`unet` and `transformer`: {number} given; expected exactly one denoiser.")
    scheduler_name(scheduler)
    denoiser = (transformer if unet is None else unet).config  # not `or`: a compiled network has no truth value
    size, channels = _height_and_width(denoiser.sample_size), denoiser.in_channels
    for config in [] if classifiers is None else classifiers.config["member_configs"]:
        if (_height_and_width(config["sample_size"]), config["in_channels"]) != (size, channels):
            raise ValueError(
                f"`classifiers` are for {config['sample_size']} pixels and {config['in_channels']} channels; "
                f"expected those of the denoiser, {denoiser.sample_size} and {channels}."
            )
    if not isinstance(patch_size, int) or patch_size < 1:
        raise ValueError(f"`patch_size` is {patch_size!r}; expected a whole number of at least 1.")
    if channels % patch_size**2 or (patch_size > 1 and vae is not None):
        raise ValueError(
            f"`patch_size` is {patch_size}; expected 1 with a `vae`, or else a denoiser whose {channels} channels are "
            "that many of every pixel."
        )
    if vae is not None and vae.config.latent_channels != channels:
        raise ValueError(
            f"`vae` has latents of {vae.config.latent_channels} channels; expected those of the denoiser, {channels}."
        )


def _networks(part: Any) -> list[torch.nn.Module]:
    """The part itself, or the members of a set of classifiers."""
    return [] if part is None else list(getattr(part, "members", [part]))


def _height_and_width(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _components(index: Any) -> dict[str, str]:
    """Class names by subfolder, of what a `model_index.json` says there is.

    Raises:
        ValueError: where it is that of an older version, of another pipeline, or names what does not belong.
    """
    if not isinstance(index, dict):
        raise OSError("model_index.json is no JSON object")
    class_name = index.get("_class_name")
    ours = isinstance(class_name, list) or str(class_name).startswith("MultiGuidance")
    if "default_guidance_scale" in index:
        raise ValueError(
            "`pretrained_model_name_or_path` was written by diffusers-multiguidance 0.1; expected a folder of 0.2: "
            "train it again, or load it with `pip install diffusers-multiguidance==0.1.0`."
        )
    if not (ours or class_name in STOCK_PIPELINES):
        raise ValueError(
            f"`pretrained_model_name_or_path` is a {class_name}; expected a MultiGuidance pipeline or one of "
            f"{list(STOCK_PIPELINES)}."
        )
    found: dict[str, str] = {}
    for name, entry in {**index, "scheduler": index.get("scheduler")}.items():
        # A component is a pair of library and class, perhaps of None; settings are dictionaries.
        if name.startswith("_") or isinstance(entry, dict) or (entry == [None, None] and name != "scheduler"):
            continue
        known = COMPONENT_CLASSES.get(STOCK_NAMES.get(name, name))
        if known is None and not isinstance(entry, list):
            continue
        if known is None:
            raise ValueError(
                f"`model_index.json` has a component '{name}'; expected some of {list(COMPONENT_CLASSES)}."
            )
        library = ("noisy_classifier", "diffusers_multiguidance") if name == "classifiers" else ("diffusers",)
        if isinstance(entry, list):
            entry = [STOCK_NAMES.get(word, word) for word in map(str, entry)]
        if not isinstance(entry, list) or len(entry) != 2 or entry[0] not in library or entry[1] not in known:
            raise ValueError(f"`model_index.json` names {entry} as '{name}'; expected one of {sorted(known)}.")
        found[name] = entry[1]
    return found


def _check_class(index: Any, class_name: str) -> None:
    """Raise `ValueError` where the folder's denoiser is to be guided in another way."""
    there = index.get("_class_name") if isinstance(index, dict) else None
    there = there[-1] if isinstance(there, list) and there else str(there)
    if there.startswith("MultiGuidance") and (there == CLASSIFIER_FREE) != (class_name == CLASSIFIER_FREE):
        raise ValueError(
            f"`pretrained_model_name_or_path` is a {there}, not a {class_name}; expected to load it by that class."
        )


def _check_generator(generator: Any, batch_size: int) -> None:
    for stream in generator if isinstance(generator, list) else [generator]:
        if not isinstance(stream, torch.Generator | None):
            raise ValueError(f"`generator` is {generator!r}; expected a torch.Generator or a list of them.")
    if isinstance(generator, list) and len(generator) != batch_size:
        raise ValueError(f"`generator` has {len(generator)} generators; expected one per image, {batch_size}.")


def _check_guided(argument: str, value: Any, given: Mapping[str, Any]) -> None:
    """Raise `ValueError` for an argument that says nothing without one of those that are `given`."""
    if value is not None and all(other is None for other in given.values()):
        needed = " or ".join(f"`{name}`" for name in given)
        raise ValueError(f"`{argument}` is {value!r} without {needed}; expected it with that only.")


def _sample_after(changed: Any, sample: torch.Tensor) -> torch.Tensor:
    """The sample of a step after its callback, which may have put another in its place."""
    if changed is None or (isinstance(changed, dict) and not changed):
        return sample
    wanted = changed["sample"] if isinstance(changed, dict) and list(changed) == ["sample"] else None
    if not isinstance(wanted, torch.Tensor) or wanted.shape != sample.shape:
        found = [*changed] if isinstance(changed, dict) else type(changed).__name__
        raise ValueError(
            f"`callback_on_step_end` returned {found}; expected None, or {{'sample': x}} with x of shape "
            f"{tuple(sample.shape)}."
        )
    return wanted.to(sample)


def _check_output(output_type: Any, callback_on_step_end: Any) -> None:
    if output_type not in ("pil", "np", "pt"):
        raise ValueError(f"`output_type` is {output_type!r}; expected 'pil', 'np' or 'pt'.")
    if callback_on_step_end is not None and not callable(callback_on_step_end):
        raise ValueError(f"`callback_on_step_end` is {callback_on_step_end!r}; expected a function.")
