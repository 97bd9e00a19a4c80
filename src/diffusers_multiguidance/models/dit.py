"""DiTTransformer2DModel as its paper builds it (Peebles & Xie 2023)."""

from __future__ import annotations

from diffusers import DiTTransformer2DModel
from torch import nn


def create_dit(
    sample_size: int | tuple[int, int],
    channels: int,
    patch_size: int = 2,
    num_layers: int = 12,
    num_attention_heads: int = 6,
    attention_head_dim: int = 64,
    num_classes: int = 1,
    learned_variance: bool = True,
) -> DiTTransformer2DModel:
    """A randomly initialised `DiTTransformer2DModel` that trains from the identity and drops no labels by itself.

    Every block of the stock network drops labels at random while it trains, each for itself. Here none does: the
    training loop drops them, for the whole network at once.

    Args:
        sample_size: of a square, in pixels or latents; height and width that differ are refused.
        channels: of the images.
        patch_size: every square of this many pixels a side is a token.
        num_layers: transformer blocks.
        num_attention_heads, attention_head_dim: the width is their product.
        num_classes: that it is told, beside one more label, `num_classes`, for none of them; 1 is a network that is
            told nothing, always label 0.
        learned_variance: predict the variance in a second half of the output channels (eq. 8).

    Raises:
        ValueError: for arguments that no network can be made of.
    """
    height, width = (sample_size, sample_size) if isinstance(sample_size, int) else sample_size
    sizes = {"patch_size": patch_size, "num_layers": num_layers, "num_attention_heads": num_attention_heads}
    for name, value in {**sizes, "attention_head_dim": attention_head_dim, "num_classes": num_classes}.items():
        if value < 1:
            raise ValueError(f"`{name}` is {value}; expected at least 1.")
    if height != width or height < 1 or height % patch_size:
        raise ValueError(
            f"`sample_size` is {sample_size}; expected a square whose side is a multiple of `patch_size`, "
            f"{patch_size}, as a transformer of diffusers makes no other."
        )
    if attention_head_dim * num_attention_heads % 4:
        raise ValueError(
            f"`attention_head_dim` is {attention_head_dim}; expected a multiple of 4, with {num_attention_heads} "
            "heads, as the embedding of the position asks for it."
        )
    transformer = DiTTransformer2DModel(
        num_attention_heads=num_attention_heads,
        attention_head_dim=attention_head_dim,
        in_channels=channels,
        out_channels=2 * channels if learned_variance else channels,
        num_layers=num_layers,
        sample_size=height,
        patch_size=patch_size,
        num_embeds_ada_norm=num_classes,
    )
    last_layers = [transformer.proj_out_1, transformer.proj_out_2]
    for block in transformer.transformer_blocks:
        last_layers.append(block.norm1.linear)  # of the modulation, which also scales both residual branches
        block.norm1.emb.class_embedder.dropout_prob = 0
    for layer in last_layers:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return transformer
