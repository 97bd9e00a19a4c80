"""A classifier of noisy images: the encoder half of a UNet with attention pooling, and sets of such classifiers.

This file is published beside the weights of a pipeline, so it imports nothing of the package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2D, get_down_block
from diffusers.utils import BaseOutput
from torch import nn


@dataclass
class NoisyClassifierOutput(BaseOutput):
    """Logits by attribute, (B, number of classes) each."""

    logits: dict[str, torch.Tensor]


def check_network(
    sample_size: int | Sequence[int],
    block_out_channels: Sequence[int],
    attention_resolutions: Sequence[int],
    layers_per_block: int,
    norm_num_groups: int,
    attention_head_dim: int,
    resample_type: str,
    resnet_time_scale_shift: str,
) -> tuple[int, int]:
    """Height and width of `sample_size`, where a network can be made of these arguments; the last level attends.

    Raises:
        ValueError: for the first one that it can't be made of.
    """
    counts = {
        "layers_per_block": layers_per_block,
        "norm_num_groups": norm_num_groups,
        "attention_head_dim": attention_head_dim,
    }
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"`{name}` is {count}; expected at least 1.")
    if resample_type not in ("resnet", "conv"):
        raise ValueError(f"`resample_type` is {resample_type!r}; expected 'resnet' or 'conv'.")
    if resnet_time_scale_shift not in ("scale_shift", "default"):
        raise ValueError(
            f"`resnet_time_scale_shift` is {resnet_time_scale_shift!r}; expected 'scale_shift' or 'default'."
        )
    if not block_out_channels:
        raise ValueError("`block_out_channels` is empty; expected the width of at least one resolution.")
    height, width = (sample_size, sample_size) if isinstance(sample_size, int) else sample_size
    factor = 2 ** (len(block_out_channels) - 1)
    if height < 1 or width < 1 or height % factor or width % factor:
        raise ValueError(
            f"`sample_size` is {sample_size}; expected multiples of {factor}, as the {len(block_out_channels)} "
            "`block_out_channels` halve it that often."
        )
    for level, channels in enumerate(block_out_channels):
        attends = height // 2**level in attention_resolutions or level == len(block_out_channels) - 1
        if channels < 1 or channels % norm_num_groups or (attends and channels % attention_head_dim):
            raise ValueError(
                f"`block_out_channels` has {channels}; expected multiples of `norm_num_groups`, {norm_num_groups}, "
                f"and where there is attention of `attention_head_dim`, {attention_head_dim}."
            )
    return height, width


class AttentionPool(nn.Module):
    """Pool a feature map by letting its mean attend to all of its positions (Radford et al. 2021).

    The learned position embedding is what lets the pooled vector know *where* something is.
    """

    def __init__(self, channels: int, num_positions: int, head_dim: int, out_features: int) -> None:
        super().__init__()
        self.heads = channels // head_dim
        self.positional_embedding = nn.Parameter(torch.randn(num_positions + 1, channels) / channels**0.5)
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
        sample_size: in pixels, a square's or height and width.
        in_channels: image channels.
        block_out_channels: width per resolution, from full resolution down.
        attention_resolutions: the heights, in pixels, of the feature maps with self-attention.
        layers_per_block: residual blocks per resolution.
        norm_num_groups: groups of the group norms; must divide every width.
        attention_head_dim: channels per attention head; must divide the widths that attend, the last among them.
        dropout: dropout within the residual blocks.
        resample_type: halve the resolution by a residual block ("resnet") or one convolution ("conv").
        resnet_time_scale_shift: the timestep scales and shifts ("scale_shift"), or is added ("default").
    """

    @register_to_config
    def __init__(
        self,
        attributes: dict[str, list[str]],
        sample_size: int | tuple[int, int] = 64,
        in_channels: int = 3,
        block_out_channels: tuple[int, ...] = (128, 256, 384, 512),
        attention_resolutions: tuple[int, ...] = (32, 16, 8),
        layers_per_block: int = 2,
        norm_num_groups: int = 32,
        attention_head_dim: int = 64,
        dropout: float = 0.0,
        resample_type: str = "resnet",
        resnet_time_scale_shift: str = "scale_shift",
    ) -> None:
        super().__init__()
        size = check_network(
            sample_size,
            block_out_channels,
            attention_resolutions,
            layers_per_block,
            norm_num_groups,
            attention_head_dim,
            resample_type,
            resnet_time_scale_shift,
        )
        time_embed_dim = 4 * block_out_channels[0]
        self.conv_in = nn.Conv2d(in_channels, block_out_channels[0], kernel_size=3, padding=1)
        self.time_proj = Timesteps(block_out_channels[0], flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(block_out_channels[0], time_embed_dim)
        plain_block = "ResnetDownsampleBlock2D" if resample_type == "resnet" else "DownBlock2D"
        self.down_blocks = nn.ModuleList()
        height, width = size[0], block_out_channels[0]
        for level, next_width in enumerate(block_out_channels):
            is_last = level == len(block_out_channels) - 1
            block = get_down_block(
                "AttnDownBlock2D" if height in attention_resolutions else plain_block,
                num_layers=layers_per_block,
                in_channels=width,
                out_channels=next_width,
                temb_channels=time_embed_dim,
                add_downsample=not is_last,
                downsample_padding=1,
                downsample_type=resample_type,
                resnet_eps=1e-5,
                resnet_act_fn="silu",
                resnet_groups=norm_num_groups,
                resnet_time_scale_shift=resnet_time_scale_shift,
                attention_head_dim=attention_head_dim,
                dropout=dropout,
            )
            self.down_blocks.append(block)
            width = next_width
            height = height if is_last else height // 2
        self.mid_block = UNetMidBlock2D(
            in_channels=width,
            temb_channels=time_embed_dim,
            resnet_eps=1e-5,
            resnet_act_fn="silu",
            resnet_groups=norm_num_groups,
            attn_groups=norm_num_groups,
            resnet_time_scale_shift=resnet_time_scale_shift,
            attention_head_dim=attention_head_dim,
            dropout=dropout,
        )
        self.norm_out = nn.GroupNorm(norm_num_groups, width, eps=1e-5)
        num_logits = sum(len(classes) for classes in attributes.values())
        num_positions = size[0] * size[1] // 4 ** (len(block_out_channels) - 1)
        self.pool = AttentionPool(width, num_positions, attention_head_dim, num_logits)

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
