"""UNet2DModel as improved DDPM builds its network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from .noisy_classifier import check_network


def create_unet(
    sample_size: int | tuple[int, int],
    channels: int,
    block_out_channels: Sequence[int],
    attention_resolutions: Sequence[int] = (16, 8),
    layers_per_block: int = 3,
    norm_num_groups: int = 32,
    attention_head_dim: int = 64,
    learned_variance: bool = True,
    resample_type: str = "resnet",
    resnet_time_scale_shift: str = "scale_shift",
    num_class_embeds: int | None = None,
) -> UNet2DModel:
    """A randomly initialised `UNet2DModel` with the reference's choices that diffusers does not default to.

    These are: scale-shift conditioning on the timestep, residual up- and downsampling, a group norm before the
    middle attention (scale-shift silently removes it), and zeros in every layer that ends a residual branch.

    Args:
        sample_size: in pixels, a square's or height and width; they must halve once less than there are widths.
        channels: image channels.
        block_out_channels: width per resolution, from full resolution down; each must be a multiple of
            `norm_num_groups` and, where there is attention, of `attention_head_dim`.
        attention_resolutions: the heights, in pixels, of the feature maps with self-attention.
        learned_variance: predict the variance in a second half of the output channels (eq. 8).
        resample_type: change the resolution by a residual block ("resnet") or one convolution ("conv", the cheaper).
        resnet_time_scale_shift: the timestep scales and shifts ("scale_shift"), or is added ("default").
        num_class_embeds: classes that it knows; None for a network without.

    Raises:
        ValueError: for arguments that no network can be made of.
    """
    height, _ = check_network(
        sample_size,
        block_out_channels,
        attention_resolutions,
        layers_per_block,
        norm_num_groups,
        attention_head_dim,
        resample_type,
        resnet_time_scale_shift,
    )
    plain_down, plain_up = {
        "resnet": ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"),
        "conv": ("DownBlock2D", "UpBlock2D"),
    }[resample_type]
    with_attention = [height // 2**level in attention_resolutions for level in range(len(block_out_channels))]
    unet = UNet2DModel(
        sample_size=sample_size,
        in_channels=channels,
        out_channels=2 * channels if learned_variance else channels,
        block_out_channels=tuple(block_out_channels),
        down_block_types=tuple("AttnDownBlock2D" if attend else plain_down for attend in with_attention),
        up_block_types=tuple("AttnUpBlock2D" if attend else plain_up for attend in reversed(with_attention)),
        layers_per_block=layers_per_block,
        downsample_type=resample_type,
        upsample_type=resample_type,
        resnet_time_scale_shift=resnet_time_scale_shift,
        norm_num_groups=norm_num_groups,
        attn_norm_num_groups=norm_num_groups,
        attention_head_dim=attention_head_dim,
        num_class_embeds=num_class_embeds,
    )
    zero_initialize(unet)
    return unet


def zero_initialize(unet: Any) -> None:
    """Zero the output layer and the last layer of every residual branch, so that training starts from the identity."""
    last_layers: list[Any] = [unet.conv_out]
    for module in unet.modules():
        if isinstance(module, ResnetBlock2D):
            last_layers.append(module.conv2)
        elif isinstance(module, Attention):
            last_layers.append(module.to_out[0])
    for layer in last_layers:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
