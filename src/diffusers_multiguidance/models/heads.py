"""The same number of attention heads at every width, which diffusers' configuration of a `UNet2DModel` can't say."""

from __future__ import annotations

from typing import Any

from diffusers.models.attention_processor import Attention


def set_num_heads(unet: Any, num_heads: int) -> None:
    """Give all attention of a `UNet2DModel` this many heads, and note it in the configuration.

    diffusers keeps the note and does not read it: whoever loads such a network has to call `restore_num_heads`.
    """
    unet.register_to_config(_num_heads=num_heads)
    restore_num_heads(unet)


def restore_num_heads(unet: Any) -> None:
    """Do what the configuration says of heads, if it says anything."""
    for module in unet.modules():
        if isinstance(module, Attention):
            module.heads = unet.config.get("_num_heads", module.heads)
