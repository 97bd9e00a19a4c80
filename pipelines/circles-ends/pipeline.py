"""Sampling with multi-guidance: the middle of an attribute from a diffusion model that saw only its ends."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import math
import numpy as np
import torch
import torch.nn.functional as F
import warnings
from PIL import Image
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from diffusers import ConfigMixin, DDPMScheduler, DPMSolverMultistepScheduler, DiffusionPipeline, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2D, get_down_block
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from numbers import Real
from pathlib import Path
from safetensors import SafetensorError
from torch import nn
from types import MappingProxyType
from typing import Any


# --- single_file ---

def inline_source(path: str | Path) -> str:
    """Source of the module at `path` after that of the modules it imports relatively, all other imports on top.

    A file without relative imports comes back as it is, so a published file publishes itself.
    """
    path = Path(path)
    source = path.read_text()
    if not any(isinstance(node, ast.ImportFrom) and node.level > 0 for node in ast.parse(source).body):
        return source
    plain: set[str] = set()
    named: dict[str, set[str]] = {}
    bodies: dict[Path, str] = {}
    _collect(path, plain, named, bodies)
    imports = [f"import {name}" for name in sorted(plain)]
    imports += [f"from {module} import {', '.join(sorted(names))}" for module, names in sorted(named.items())]
    header = f'"""{ast.get_docstring(ast.parse(source))}"""\n\nfrom __future__ import annotations\n\n'
    return header + "\n".join(imports) + "\n" + "".join(bodies.values())


def _collect(path: Path, plain: set[str], named: dict[str, set[str]], bodies: dict[Path, str]) -> None:
    """Add a module and those it imports relatively; absolute imports go to `plain` and `named`, the rest is text."""
    source = path.read_text()
    lines = source.splitlines()
    for node in reversed(ast.parse(source).body):
        if isinstance(node, ast.Import):
            plain.update(ast.unparse(alias) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level > 0:
            folder = path.parents[node.level - 1]
            module = folder.joinpath(*(node.module or "").split(".")).with_suffix(".py").resolve()
            if module not in bodies:
                _collect(module, plain, named, bodies)
        elif isinstance(node, ast.ImportFrom) and node.module != "__future__":
            named.setdefault(node.module or "", set()).update(ast.unparse(alias) for alias in node.names)
        elif not (isinstance(node, ast.ImportFrom) or (node.lineno == 1 and isinstance(node, ast.Expr))):
            continue
        del lines[node.lineno - 1 : node.end_lineno]
    bodies[path] = f"\n\n# --- {path.stem} ---\n\n" + "\n".join(lines).strip() + "\n"


# --- noisy_classifier ---

@dataclass
class NoisyClassifierOutput(BaseOutput):
    """Logits by attribute, (B, number of classes) each."""

    logits: dict[str, torch.Tensor]


class AttentionPool(nn.Module):
    """Pool a feature map by letting its mean attend to all of its positions (Radford et al. 2021).

    The learned position embedding is what lets the pooled vector know *where* something is.
    """

    def __init__(self, channels: int, size: int, head_dim: int, out_features: int) -> None:
        super().__init__()
        self.heads = channels // head_dim
        self.positional_embedding = nn.Parameter(torch.randn(size**2 + 1, channels) / channels**0.5)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, out_features)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        tokens = hidden_states.flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1) + self.positional_embedding

        def split(states: torch.Tensor) -> torch.Tensor:
            return states.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        pooled = F.scaled_dot_product_attention(
            split(self.query(tokens[:, :1])), split(self.key(tokens)), split(self.value(tokens))
        )
        return self.out(pooled.transpose(1, 2).flatten(1))


class NoisyClassifier(ModelMixin, ConfigMixin):
    """p(y | x_t, t) for any number of attributes: one trunk, one head per attribute (paper, section 2.2).

    Args:
        attributes: class names by attribute, for example `{"Smiling": ["no", "yes"]}`.
        sample_size: height and width in pixels.
        in_channels: image channels.
        block_out_channels: width per resolution, from full resolution down.
        attention_resolutions: the sizes, in pixels, of the feature maps with self-attention.
        layers_per_block: residual blocks per resolution.
        norm_num_groups: groups of the group norms; must divide every width.
        attention_head_dim: channels per attention head; must divide the widths that attend, the last among them.
        dropout: dropout within the residual blocks.
    """

    @register_to_config
    def __init__(
        self,
        attributes: dict[str, list[str]],
        sample_size: int = 64,
        in_channels: int = 3,
        block_out_channels: tuple[int, ...] = (128, 256, 384, 512),
        attention_resolutions: tuple[int, ...] = (32, 16, 8),
        layers_per_block: int = 2,
        norm_num_groups: int = 32,
        attention_head_dim: int = 64,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        time_embed_dim = 4 * block_out_channels[0]
        self.conv_in = nn.Conv2d(in_channels, block_out_channels[0], kernel_size=3, padding=1)
        self.time_proj = Timesteps(block_out_channels[0], flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(block_out_channels[0], time_embed_dim)
        self.down_blocks = nn.ModuleList()
        size, width = sample_size, block_out_channels[0]
        for level, next_width in enumerate(block_out_channels):
            is_last = level == len(block_out_channels) - 1
            attends = size in attention_resolutions
            if next_width % norm_num_groups or ((attends or is_last) and next_width % attention_head_dim):
                raise ValueError(
                    f"`block_out_channels` has {next_width}; expected multiples of `norm_num_groups`, "
                    f"{norm_num_groups}, and where there is attention of `attention_head_dim`, {attention_head_dim}."
                )
            block = get_down_block(
                "AttnDownBlock2D" if attends else "ResnetDownsampleBlock2D",
                num_layers=layers_per_block,
                in_channels=width,
                out_channels=next_width,
                temb_channels=time_embed_dim,
                add_downsample=not is_last,
                downsample_type="resnet",
                resnet_eps=1e-5,
                resnet_act_fn="silu",
                resnet_groups=norm_num_groups,
                resnet_time_scale_shift="scale_shift",
                attention_head_dim=attention_head_dim,
                dropout=dropout,
            )
            self.down_blocks.append(block)
            width = next_width
            size = size if is_last else size // 2
        self.mid_block = UNetMidBlock2D(
            in_channels=width,
            temb_channels=time_embed_dim,
            resnet_eps=1e-5,
            resnet_act_fn="silu",
            resnet_groups=norm_num_groups,
            attn_groups=norm_num_groups,
            resnet_time_scale_shift="scale_shift",
            attention_head_dim=attention_head_dim,
            dropout=dropout,
        )
        self.norm_out = nn.GroupNorm(norm_num_groups, width, eps=1e-5)
        num_logits = sum(len(classes) for classes in attributes.values())
        self.pool = AttentionPool(width, size, attention_head_dim, num_logits)

    @property
    def attributes(self) -> dict[str, list[str]]:
        return self.config["attributes"]

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor | float | int) -> NoisyClassifierOutput:
        """Classify noisy images.

        Args:
            sample: (B, C, H, W) images x_t, scaled like the diffusion's.
            timestep: one training timestep for all, or (B,).
        """
        timesteps = torch.as_tensor(timestep, device=sample.device).expand(sample.shape[0])
        emb = self.time_embedding(self.time_proj(timesteps).to(sample.dtype))
        hidden_states = self.conv_in(sample)
        for block in self.down_blocks:
            hidden_states, _ = block(hidden_states, temb=emb)
        hidden_states = self.mid_block(hidden_states, emb)
        logits = self.pool(F.silu(self.norm_out(hidden_states)))
        # By name: a saved configuration has its attributes sorted, a new one as they were given.
        names = sorted(self.attributes)
        by_name = logits.split([len(self.attributes[name]) for name in names], dim=1)
        return NoisyClassifierOutput(dict(zip(names, by_name, strict=True)))


class NoisyClassifierSet(ModelMixin, ConfigMixin):
    """Any number of noisy classifiers as one component of a pipeline, with one state dict.

    Members that share an attribute have their log-probabilities averaged; the set's logits are these averages,
    so that its softmax is the members' normalised geometric mean.

    Args:
        member_configs: the configuration of each `NoisyClassifier`.
    """

    @register_to_config
    def __init__(self, member_configs: list[dict[str, Any]]) -> None:
        super().__init__()
        self.members = nn.ModuleList(NoisyClassifier(**config) for config in member_configs)
        self._attributes: dict[str, list[str]] = {}
        for config in member_configs:
            for attribute, classes in config["attributes"].items():
                if self._attributes.setdefault(attribute, classes) != classes:
                    raise ValueError(
                        f"`member_configs` disagree about '{attribute}': {classes} and {self._attributes[attribute]}; "
                        "expected the same classes in the same order."
                    )

    @classmethod
    def from_members(cls, members: list[NoisyClassifier]) -> NoisyClassifierSet:
        """Join trained classifiers into one set that holds their modules themselves."""
        configs = [
            {key: value for key, value in member.config.items() if not key.startswith("_")} for member in members
        ]
        classifiers = cls(configs)
        classifiers.members = nn.ModuleList(members)
        return classifiers

    @property
    def attributes(self) -> dict[str, list[str]]:
        return self._attributes

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor | float | int) -> NoisyClassifierOutput:
        """Classify noisy images; shapes as in `NoisyClassifier.forward`."""
        log_probs: dict[str, list[torch.Tensor]] = {attribute: [] for attribute in self.attributes}
        for member in self.members:
            for attribute, logits in member(sample, timestep).logits.items():
                log_probs[attribute].append(logits.log_softmax(dim=1))
        return NoisyClassifierOutput({name: torch.stack(values).mean(0) for name, values in log_probs.items()})


# --- guidance ---

Target = float | str | Mapping[str, float]


def weights_from_target(
    attributes: Mapping[str, list[str]],
    target: Mapping[str, Target] | str,
    guidance_scale: float,
    batch_size: int,
    calibrations: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> dict[str, torch.Tensor]:
    """Weights lambda = guidance_scale * set point, which is the target or what a calibration makes of it.

    Args:
        attributes: class names by attribute, as the classifiers have them.
        target: by attribute: a number in [0, 1], 0 the first class and 1 the second; or a share per class, which add
            up to 1; or "uniform", spread evenly over the batch. "uniform" alone means every attribute.
        guidance_scale: L, the total weight per attribute.
        batch_size: number of images B.
        calibrations: by attribute, measured `strengths` and the `set_points` that lead there, both ascending; and
            perhaps `even_strengths`, where "uniform" has to aim, at evenly spaced shares of the batch, for what comes
            out to be spread evenly.

    Returns:
        (B, number of classes) float32 per attribute in `target`.
    """
    if not is_number(guidance_scale, 0, math.inf):
        raise ValueError(f"`guidance_scale` is {guidance_scale!r}; expected a finite number of at least 0.")
    if target == "uniform":
        target = dict.fromkeys(attributes, "uniform")
    if not isinstance(target, Mapping):
        raise ValueError(f"`target` is {target!r}; expected a dict by attribute or 'uniform'.")
    _check_attributes("target", attributes, target)
    spread = [attribute for attribute, value in target.items() if value == "uniform"]
    if len(spread) > 2:
        raise ValueError(f"`target` is 'uniform' for {len(spread)} attributes; expected at most 2.")
    weights = {}
    for attribute, value in target.items():
        classes = attributes[attribute]
        if isinstance(value, Mapping):
            _check_classes("target", attribute, classes, value)
            shares = torch.tensor([float(value.get(name, 0.0)) for name in classes]).repeat(batch_size, 1)
            if not (bool((shares >= 0).all()) and math.isclose(float(shares[0].sum()), 1, abs_tol=1e-5)):
                raise ValueError(
                    f"`target` for '{attribute}' is {dict(value)}; expected shares of at least 0 that sum to 1."
                )
        else:
            if len(classes) != 2:
                raise ValueError(
                    f"`target` for '{attribute}' is {value!r}; expected a dict of shares for its classes {classes}."
                )
            if value == "uniform":
                # Stratified along the first attribute; the second follows a golden-ratio lattice: a filled square.
                image = torch.arange(batch_size, dtype=torch.float64)
                first = spread.index(attribute) == 0
                position = (image + 0.5) / batch_size if first else (image * (5**0.5 - 1) / 2 + 0.5) % 1
                aims = calibrations.get(attribute, {}).get("even_strengths", (0.0, 1.0))
                position = torch.from_numpy(np.interp(position.numpy(), np.linspace(0, 1, len(aims)), aims))
            elif is_number(value, 0, 1):
                position = torch.full((batch_size,), float(value))
            else:
                raise ValueError(f"`target` for '{attribute}' is {value!r}; expected a number in [0, 1] or 'uniform'.")
            if attribute in calibrations:
                curve = calibrations[attribute]
                position = torch.from_numpy(np.interp(position.numpy(), curve["strengths"], curve["set_points"]))
            shares = torch.stack([1 - position, position], dim=1).float()
        weights[attribute] = guidance_scale * shares
    return weights


def weights_from_classes(
    attributes: Mapping[str, list[str]], guidance_weights: Mapping[str, Mapping[str, float]], batch_size: int
) -> dict[str, torch.Tensor]:
    """Raw weights lambda by attribute and class, classes not named being 0; negative ones extrapolate.

    Returns:
        (B, number of classes) float32 per attribute in `guidance_weights`.
    """
    if not isinstance(guidance_weights, Mapping):
        raise ValueError(f"`guidance_weights` is {guidance_weights!r}; expected a dict by attribute, then class.")
    _check_attributes("guidance_weights", attributes, guidance_weights)
    weights = {}
    for attribute, by_class in guidance_weights.items():
        if not isinstance(by_class, Mapping):
            raise ValueError(f"`guidance_weights` for '{attribute}' is {by_class!r}; expected a dict by class.")
        _check_classes("guidance_weights", attribute, attributes[attribute], by_class)
        row = torch.tensor([float(by_class.get(name, 0.0)) for name in attributes[attribute]])
        weights[attribute] = row.repeat(batch_size, 1)
    return weights


def is_number(value: Any, low: float, high: float) -> bool:
    """Whether `value` is a finite real number from `low` to `high`."""
    return isinstance(value, Real) and math.isfinite(value) and low <= float(value) <= high


def _check_attributes(argument: str, attributes: Mapping[str, list[str]], given: Mapping[str, Any]) -> None:
    if not given:
        raise ValueError(f"`{argument}` is empty; expected at least one of {list(attributes)}.")
    for attribute in given:
        if attribute not in attributes:
            raise ValueError(f"`{argument}` names attribute {attribute!r}; expected one of {list(attributes)}.")


def _check_classes(argument: str, attribute: str, classes: list[str], given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name not in classes:
            raise ValueError(f"`{argument}` names class {name!r} of '{attribute}'; expected one of {classes}.")
        if not is_number(value, -math.inf, math.inf):
            raise ValueError(
                f"`{argument}` for class '{name}' of '{attribute}' is {value!r}; expected a finite number."
            )


@torch.enable_grad()
def guidance_gradient(
    classifiers: Any, x_t: torch.Tensor, timestep: torch.Tensor | int, weights: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """g(x_t, t) = sum over attributes and classes of lambda * grad log p(y | x_t, t), in one forward and backward.

    Evaluated at x_t, as in the paper's experiments, where its text has mu.

    Args:
        classifiers: a `NoisyClassifierSet` or `NoisyClassifier`.
        x_t: (B, C, H, W).
        timestep: the training timestep, one for all or (B,).
        weights: (B, number of classes) per attribute.

    Returns:
        (B, C, H, W).
    """
    x_t = x_t.detach().requires_grad_()
    logits = classifiers(x_t, timestep).logits
    objective = sum((weights[name] * logits[name].log_softmax(dim=1)).sum() for name in weights)
    return torch.autograd.grad(objective, x_t)[0]


def check_guidance_interval(guidance_interval: tuple[float, float]) -> None:
    """Raise `ValueError` unless the interval is two shares of the steps, in order."""
    is_pair = isinstance(guidance_interval, tuple | list) and len(guidance_interval) == 2
    start, end = guidance_interval if is_pair else (math.nan, math.nan)
    if not (is_number(end, 0, 1) and is_number(start, 0, end)):
        raise ValueError(
            f"`guidance_interval` is {guidance_interval}; expected (start, end) with 0 <= start <= end <= 1."
        )


def is_guided(step: int, num_steps: int, guidance_interval: tuple[float, float]) -> bool:
    """Whether step number `step` (0 the noisiest) begins within `guidance_interval`, (0, 1) being all steps."""
    return guidance_interval[0] <= step / num_steps < guidance_interval[1]


# --- diffusion ---

@dataclass
class Moments:
    """Mean and variance of one reverse step p(x_{t-1} | x_t), and the image it aims at; all (B, C, H, W)."""

    mean: torch.Tensor
    variance: torch.Tensor
    log_variance: torch.Tensor
    pred_x0: torch.Tensor


def noise_schedule(config: Any) -> np.ndarray:
    """The (T,) float64 betas that a diffusers scheduler config describes."""
    num_timesteps = config["num_train_timesteps"]
    name = config["beta_schedule"]
    if config.get("trained_betas") is not None:
        return np.asarray(config["trained_betas"], dtype=np.float64)
    if name == "linear":
        return np.linspace(config["beta_start"], config["beta_end"], num_timesteps, dtype=np.float64)
    if name == "scaled_linear":
        return np.linspace(config["beta_start"] ** 0.5, config["beta_end"] ** 0.5, num_timesteps) ** 2
    if name == "squaredcos_cap_v2":
        # Eq. 10 without its misprint: f(t) = cos^2((t/T + s)/(1 + s) * pi/2), f(0) cancels in the ratio.
        grid = np.arange(num_timesteps + 1) / num_timesteps
        f = np.cos((grid + 0.008) / 1.008 * np.pi / 2) ** 2
        return np.minimum(1 - f[1:] / f[:-1], 0.999)
    raise ValueError(
        f"`beta_schedule` is {name!r} in the scheduler; expected 'linear', 'scaled_linear' or 'squaredcos_cap_v2'."
    )


class GaussianDiffusion:
    """The forward process and its reverse steps at S of the T training timesteps.

    Args:
        betas: (T,) float64 noise schedule of the full training process.
        timesteps: (S,) ascending training timesteps to keep; the process is respaced to them.
        prediction_type: what the network predicts: "epsilon", "v_prediction" or "sample".
        variance_type: "fixed_small", "fixed_large" or "learned_range" (eq. 8; a second half of output channels).

    Everywhere below `index` counts the kept timesteps: an int, or a (B,) int64 tensor with values in [0, S).
    `timesteps[index]` is what the network is given.
    """

    def __init__(
        self,
        betas: np.ndarray,
        timesteps: np.ndarray,
        prediction_type: str = "epsilon",
        variance_type: str = "fixed_small",
    ) -> None:
        if prediction_type not in ("epsilon", "v_prediction", "sample"):
            raise ValueError(
                f"`prediction_type` is {prediction_type!r}; expected 'epsilon', 'v_prediction' or 'sample'."
            )
        if variance_type not in ("fixed_small", "fixed_large", "learned_range"):
            raise ValueError(
                f"`variance_type` is {variance_type!r}; expected 'fixed_small', 'fixed_large' or 'learned_range'."
            )
        self.prediction_type = prediction_type
        self.variance_type = variance_type

        kept = np.cumprod(1 - betas)[timesteps]
        kept_prev = np.append(1.0, kept[:-1])
        betas = 1 - kept / kept_prev
        alphas_cumprod = np.cumprod(1 - betas)
        alphas_cumprod_prev = np.append(1.0, alphas_cumprod[:-1])
        posterior_variance = betas * (1 - alphas_cumprod_prev) / (1 - alphas_cumprod)  # eq. 6
        # The variance of the very last step is 0; its logarithm is that of the step before.
        posterior_log_variance_clipped = np.log(np.append(posterior_variance[1:2], posterior_variance[1:]))
        if len(betas) == 1:
            posterior_log_variance_clipped = np.log(betas)

        self.timesteps = torch.from_numpy(np.array(timesteps, dtype=np.int64))
        self.betas = torch.from_numpy(betas)
        self.alphas_cumprod = torch.from_numpy(alphas_cumprod)
        self.alphas_cumprod_prev = torch.from_numpy(alphas_cumprod_prev)
        self.alphas_cumprod_next = torch.from_numpy(np.append(alphas_cumprod[1:], 0.0))
        self.sqrt_alphas_cumprod = self.alphas_cumprod.sqrt()
        self.sqrt_one_minus_alphas_cumprod = (1 - self.alphas_cumprod).sqrt()
        self.posterior_variance = torch.from_numpy(posterior_variance)
        self.posterior_log_variance_clipped = torch.from_numpy(posterior_log_variance_clipped)
        # Posterior mean, eq. 5 without its misprint: coef1 * x0 + coef2 * x_t.
        self.posterior_mean_coef1 = self.betas * self.alphas_cumprod_prev.sqrt() / (1 - self.alphas_cumprod)
        self.posterior_mean_coef2 = (
            (1 - self.alphas_cumprod_prev) * (1 - self.betas).sqrt() / (1 - self.alphas_cumprod)
        )

    @classmethod
    def from_scheduler(
        cls, scheduler: Any, num_inference_steps: int | None = None, timestep_spacing: str = "linspace"
    ) -> GaussianDiffusion:
        """Build the process that a stock `DDPMScheduler` or `DDIMScheduler` was configured for.

        Args:
            scheduler: only its `config` is read. A config without `variance_type` means "fixed_small".
            num_inference_steps: S in [1, T]; None keeps all T.
            timestep_spacing: "linspace", evenly from 0 to T - 1 as in improved DDPM, or "leading", a fixed stride
                from 0 (which never visits T - 1). The config's own spacing is not read, since diffusers' default
                is "leading".

        Raises:
            ValueError: for a step count, spacing, schedule, prediction or variance type it does not know.
        """
        config = scheduler.config
        for setting, honoured in (
            ("rescale_betas_zero_snr", False),
            ("thresholding", False),
            ("clip_sample_range", 1.0),
        ):
            if config.get(setting, honoured) != honoured:
                raise ValueError(f"`{setting}` is {config[setting]} in the scheduler; expected {honoured}.")
        betas = noise_schedule(config)
        num_timesteps = len(betas)
        if num_inference_steps is None:
            num_inference_steps = num_timesteps
        if not (isinstance(num_inference_steps, int) and 1 <= num_inference_steps <= num_timesteps):
            raise ValueError(
                f"`num_inference_steps` is {num_inference_steps!r}; expected a whole number from 1 to the "
                f"{num_timesteps} timesteps of training."
            )
        if timestep_spacing == "linspace":
            timesteps = np.linspace(num_timesteps - 1, 0, num_inference_steps).round()[::-1].astype(np.int64)
        elif timestep_spacing == "leading":
            timesteps = np.arange(num_inference_steps) * (num_timesteps // num_inference_steps)
        else:
            raise ValueError(f"`timestep_spacing` is {timestep_spacing!r}; expected 'linspace' or 'leading'.")
        return cls(betas, timesteps, config["prediction_type"], config.get("variance_type") or "fixed_small")

    def __len__(self) -> int:
        return len(self.timesteps)

    def _at(self, table: torch.Tensor, index: int | torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Look up a float64 table on the CPU (some devices have no float64), shaped to broadcast over `like`."""
        values = table[torch.as_tensor(index).cpu()]
        return values.to(device=like.device, dtype=like.dtype).reshape(-1, *[1] * (like.ndim - 1))

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, index: int | torch.Tensor) -> torch.Tensor:
        """x_t given x_0 (eq. 4); (B, C, H, W)."""
        signal_scale = self._at(self.sqrt_alphas_cumprod, index, x0)
        noise_scale = self._at(self.sqrt_one_minus_alphas_cumprod, index, x0)
        return signal_scale * x0 + noise_scale * noise

    def training_target(self, x0: torch.Tensor, noise: torch.Tensor, index: int | torch.Tensor) -> torch.Tensor:
        """What the network should have said at x_t: the noise, the image, or v (Salimans & Ho 2022)."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return x0
        signal_scale = self._at(self.sqrt_alphas_cumprod, index, x0)
        noise_scale = self._at(self.sqrt_one_minus_alphas_cumprod, index, x0)
        return signal_scale * noise - noise_scale * x0

    def _predict_x0(self, prediction: torch.Tensor, x_t: torch.Tensor, index: int | torch.Tensor) -> torch.Tensor:
        if self.prediction_type == "sample":
            return prediction
        if self.prediction_type == "epsilon":
            return self._x0_from_epsilon(prediction, x_t, index)
        signal_scale = self._at(self.sqrt_alphas_cumprod, index, x_t)
        noise_scale = self._at(self.sqrt_one_minus_alphas_cumprod, index, x_t)
        return signal_scale * x_t - noise_scale * prediction

    def _x0_from_epsilon(self, epsilon: torch.Tensor, x_t: torch.Tensor, index: int | torch.Tensor) -> torch.Tensor:
        inverse_signal_scale = self._at(1 / self.sqrt_alphas_cumprod, index, x_t)
        noise_to_signal = self._at(self.sqrt_one_minus_alphas_cumprod / self.sqrt_alphas_cumprod, index, x_t)
        return inverse_signal_scale * x_t - noise_to_signal * epsilon

    def _epsilon_from_x0(self, x0: torch.Tensor, x_t: torch.Tensor, index: int | torch.Tensor) -> torch.Tensor:
        inverse_signal_scale = self._at(1 / self.sqrt_alphas_cumprod, index, x_t)
        noise_to_signal = self._at(self.sqrt_one_minus_alphas_cumprod / self.sqrt_alphas_cumprod, index, x_t)
        return (inverse_signal_scale * x_t - x0) / noise_to_signal

    def _posterior_mean(self, x0: torch.Tensor, x_t: torch.Tensor, index: int | torch.Tensor) -> torch.Tensor:
        """Mean of q(x_{t-1} | x_t, x_0), eq. 5."""
        coef1 = self._at(self.posterior_mean_coef1, index, x_t)
        coef2 = self._at(self.posterior_mean_coef2, index, x_t)
        return coef1 * x0 + coef2 * x_t

    def _variance(
        self, model_output: torch.Tensor, x_t: torch.Tensor, index: int | torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Variance of the reverse step and its logarithm, which is clipped where the variance is 0."""
        if self.variance_type == "learned_range":
            # Eq. 8, the network's output in [-1, 1] mapped to the share of log beta.
            share = (model_output[:, x_t.shape[1] :] + 1) / 2
            small = self._at(self.posterior_log_variance_clipped, index, x_t)
            large = self._at(self.betas.log(), index, x_t)
            log_variance = share * large + (1 - share) * small
            return log_variance.exp(), log_variance
        if self.variance_type == "fixed_small":
            variance, log_variance = self.posterior_variance, self.posterior_log_variance_clipped
        else:
            # The last step of fixed_large would be far noisier than the image; improved DDPM takes the posterior's.
            log_variance = torch.cat([self.posterior_log_variance_clipped[:1], self.betas[1:].log()])
            variance = log_variance.exp()
        return self._at(variance, index, x_t).expand_as(x_t), self._at(log_variance, index, x_t).expand_as(x_t)

    def p_mean_variance(
        self, model_output: torch.Tensor, x_t: torch.Tensor, index: int | torch.Tensor, clip: bool = True
    ) -> Moments:
        """Moments of the reverse step (eqs. 5 to 8).

        Args:
            model_output: (B, C, H, W), or (B, 2C, H, W) for "learned_range": the prediction, then the variance half.
            x_t: (B, C, H, W).
            clip: clamp the predicted x_0 to [-1, 1].
        """
        channels = x_t.shape[1]
        expected = 2 * channels if self.variance_type == "learned_range" else channels
        if model_output.shape[1] != expected:
            raise ValueError(
                f"`model_output` has {model_output.shape[1]} channels; expected {expected} for images with {channels} "
                f"channels and variance type '{self.variance_type}'."
            )
        pred_x0 = self._predict_x0(model_output[:, :channels], x_t, index)
        if clip:
            pred_x0 = pred_x0.clamp(-1, 1)
        variance, log_variance = self._variance(model_output, x_t, index)
        return Moments(self._posterior_mean(pred_x0, x_t, index), variance, log_variance, pred_x0)

    def guide_mean(self, moments: Moments, grad: torch.Tensor) -> torch.Tensor:
        """Guidance of ancestral steps: mean + variance * grad (paper, section 2.2)."""
        return moments.mean + moments.variance * grad

    def guide_score(
        self, moments: Moments, x_t: torch.Tensor, grad: torch.Tensor, index: int | torch.Tensor
    ) -> Moments:
        """Guidance of the score: epsilon - sqrt(1 - alpha_bar) * grad (Dhariwal & Nichol 2021, algorithm 2)."""
        noise_scale = self._at(self.sqrt_one_minus_alphas_cumprod, index, x_t)
        epsilon = self._epsilon_from_x0(moments.pred_x0, x_t, index) - noise_scale * grad
        pred_x0 = self._x0_from_epsilon(epsilon, x_t, index)
        mean = self._posterior_mean(pred_x0, x_t, index)
        return Moments(mean, moments.variance, moments.log_variance, pred_x0)

    def ddim_step(
        self,
        model_output: torch.Tensor,
        x_t: torch.Tensor,
        index: int | torch.Tensor,
        eta: float = 0.0,
        grad: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        clip: bool = True,
    ) -> torch.Tensor:
        """One DDIM step to the previous kept timestep (Song et al. 2021, eq. 12); guided by the score.

        Args:
            eta: 0 is deterministic, 1 as noisy as an ancestral step.
            grad: (B, C, H, W) guidance gradient, or None.
            noise: (B, C, H, W) standard normal; needed where `eta` is above 0.
        """
        moments = self.p_mean_variance(model_output, x_t, index, clip)
        if grad is not None:
            moments = self.guide_score(moments, x_t, grad, index)
        epsilon = self._epsilon_from_x0(moments.pred_x0, x_t, index)
        # In the images' precision, as the reference does: a clipped x_0 makes epsilon so large near the end that
        # the rounding of these roots shows, and the golden numbers hold it.
        alpha_bar_prev = self._at(self.alphas_cumprod_prev, index, x_t)
        sigma = eta * self._at(self.posterior_variance.sqrt(), index, x_t)
        # With `eta` 1 the difference is 0 at the first step, or by rounding a little less.
        x_prev = (
            alpha_bar_prev.sqrt() * moments.pred_x0 + (1 - alpha_bar_prev - sigma**2).clamp(min=0).sqrt() * epsilon
        )
        if eta == 0:
            return x_prev
        if noise is None:
            raise ValueError(f"`noise` is None; expected a tensor like `x_t`, since `eta` is {eta}.")
        return x_prev + sigma * noise

    def ddim_inverse_step(
        self, model_output: torch.Tensor, x_t: torch.Tensor, index: int | torch.Tensor, clip: bool = True
    ) -> torch.Tensor:
        """One deterministic DDIM step to the next, noisier kept timestep; from the last one to pure noise."""
        pred_x0 = self.p_mean_variance(model_output, x_t, index, clip).pred_x0
        epsilon = self._epsilon_from_x0(pred_x0, x_t, index)
        alpha_bar_next = self._at(self.alphas_cumprod_next, index, x_t)
        return alpha_bar_next.sqrt() * pred_x0 + (1 - alpha_bar_next).sqrt() * epsilon

    def hybrid_loss(
        self,
        model_output: torch.Tensor,
        x0: torch.Tensor,
        noise: torch.Tensor,
        index: torch.Tensor,
        vlb_weight: float | None = None,
    ) -> dict[str, torch.Tensor]:
        """L_simple + weight * vb_t of improved DDPM, per sample; the mean is frozen in the second term.

        Args:
            model_output: the network's output at `add_noise(x0, noise, index)`.
            vlb_weight: weight of one sampled term vb_t. None means S / 1000: L_vlb is S * E_t[vb_t], and the hybrid
                loss takes 0.001 of it. The paper's authors used 1.

        Returns:
            "mse", "vlb" (bits per dimension) and "loss", each (B,). With a fixed variance the bound teaches
            nothing, and "loss" is "mse".
        """
        x_t = self.add_noise(x0, noise, index)
        prediction = model_output[:, : x0.shape[1]]
        mse = (prediction - self.training_target(x0, noise, index)).square().flatten(1).mean(1)
        frozen = torch.cat([prediction.detach(), model_output[:, x0.shape[1] :]], dim=1)
        vlb = self._variational_bound(frozen, x0, x_t, index)
        if self.variance_type != "learned_range":
            return {"mse": mse, "vlb": vlb, "loss": mse}
        weight = len(self) / 1000 if vlb_weight is None else vlb_weight
        return {"mse": mse, "vlb": vlb, "loss": mse + weight * vlb}

    def _variational_bound(
        self, model_output: torch.Tensor, x0: torch.Tensor, x_t: torch.Tensor, index: torch.Tensor
    ) -> torch.Tensor:
        """One term of the variational bound (eq. 9) in bits per dimension: L_0 where index is 0, else L_t; (B,)."""
        moments = self.p_mean_variance(model_output, x_t, index, clip=False)
        true_mean = self._posterior_mean(x0, x_t, index)
        true_log_variance = self._at(self.posterior_log_variance_clipped, index, x_t)
        kl = 0.5 * (
            moments.log_variance
            - true_log_variance
            - 1
            + (true_log_variance - moments.log_variance).exp()
            + (true_mean - moments.mean).square() * (-moments.log_variance).exp()
        )
        nll = -discretized_gaussian_log_likelihood(x0, moments.mean, 0.5 * moments.log_variance)
        is_last = (index == 0).to(x0.device)
        return torch.where(is_last, nll.flatten(1).mean(1), kl.flatten(1).mean(1)) / math.log(2)


def discretized_gaussian_log_likelihood(x: torch.Tensor, mean: torch.Tensor, log_std: torch.Tensor) -> torch.Tensor:
    """Log-probability (nats) of 8-bit pixels, scaled to [-1, 1], under a Gaussian that is integrated over each bin."""

    def cdf(z: torch.Tensor) -> torch.Tensor:
        # The tanh approximation, as in Ho et al. 2020: exact enough, and finite far out in float32.
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

    inverse_std = (-log_std).exp()
    below = cdf(inverse_std * (x - mean - 1 / 255))
    up_to = cdf(inverse_std * (x - mean + 1 / 255))
    inside = torch.where(x < -0.999, up_to, torch.where(x > 0.999, 1 - below, up_to - below))
    return inside.clamp(min=1e-12).log()


# --- calibration ---

CALL = ("sampler", "num_inference_steps", "guidance_scale", "guidance_interval")


def weights_fingerprint(networks: Iterable[torch.nn.Module]) -> list[float]:
    """The first weights of each network, which no other checkpoint shares."""
    return [
        round(float(weight), 6) for network in networks for weight in next(network.parameters()).detach().flatten()[:8]
    ]


def find_calibrations(
    calibrations: Mapping[str, Sequence[Mapping[str, Any]]],
    attributes: Iterable[str],
    call: Mapping[str, Any],
    choice: str | None,
    networks: Iterable[torch.nn.Module],
) -> dict[str, Mapping[str, Any]]:
    """By attribute, what was measured with this call; see `weights_from_target`.

    Args:
        calibrations: of a pipeline, by attribute.
        attributes: those to aim for.
        call: sampler, num_inference_steps, guidance_scale and guidance_interval.
        choice: "same", only what was measured with exactly this call; "nearest", else that of the same sampler with
            the nearest number of steps; None, no calibration at all.
        networks: the denoiser and each classifier of the set.

    Raises:
        ValueError: for a calibration that was measured with other weights.
    """
    found = {}
    for attribute in attributes if choice else ():
        fitting = [c for c in calibrations.get(attribute, ()) if c["sampler"] == call["sampler"]]
        same = [c for c in fitting if all(np.array_equal(c[name], call[name]) for name in call)]
        steps = call["num_inference_steps"]
        nearest = sorted(fitting, key=lambda c: abs(c["num_inference_steps"] - steps)) if choice == "nearest" else []
        if not same + nearest:
            warnings.warn(
                f"'{attribute}' has no calibration for this sampler, number of steps, guidance scale and interval: "
                "its target means the classifiers' probability, not a measured strength.",
                stacklevel=3,
            )
            continue
        chosen = (same + nearest)[0]
        found_weights, measured_weights = weights_fingerprint(networks), chosen["fingerprint"]
        same_number = len(found_weights) == len(measured_weights)
        # With room for half precision.
        if not (same_number and np.allclose(found_weights, measured_weights, rtol=0.02, atol=1e-3)):
            raise ValueError(
                f"`calibration` of '{attribute}' was measured with other weights; expected one of these: run "
                "`multiguidance calibrate` again, or call with calibration=None."
            )
        found[attribute] = chosen
    return found


def add_calibration(folder: Path, attribute: str, calibration: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Add a calibration to a pipeline folder: to its configuration, and with `record` to `calibration.json`.

    One that was measured with the same call before is replaced.
    """
    index = json.loads((folder / "model_index.json").read_text())
    path = folder / "calibration.json"
    records = json.loads(path.read_text()) if path.exists() else {}
    # A dictionary, since diffusers takes every list in a model_index.json for a component.
    known = index.setdefault("calibrations", {})
    for entries, entry in ((known, calibration), (records, {**calibration, **record})):
        others = [old for old in entries.get(attribute, []) if any(old[name] != calibration[name] for name in CALL)]
        entries[attribute] = [*others, entry]
    for name, content in (("calibration.json", records), ("model_index.json", index)):
        temporary = folder / f"{name}.tmp"
        temporary.write_text(json.dumps(content, indent=2) + "\n")
        temporary.replace(folder / name)


# --- multiguidance_ddpm ---

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
