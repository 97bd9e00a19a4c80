"""Autoencoders whose latents the denoiser and the classifiers live in, instead of pixels."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

VAE_CLASSES = ("AutoencoderKL", "AutoencoderTiny", "VQModel")


def load_vae(name: str) -> Any:
    """An autoencoder from its own folder or Hub id, or out of a pipeline's, whose subfolder `vae` it is.

    Raises:
        ValueError: where there is none, or one of another class than `VAE_CLASSES`.
    """
    reasons = []
    for subfolder in (None, "vae"):
        try:
            config = diffusers.AutoencoderKL.load_config(name, subfolder=subfolder)
            if config.get("_class_name") not in VAE_CLASSES:
                reasons.append(f"it is a {config.get('_class_name')}")
                continue
            vae_class = getattr(diffusers, config["_class_name"])
            vae = vae_class.from_pretrained(name, subfolder=subfolder, use_safetensors=True)
            return vae.eval().requires_grad_(False)
        except (OSError, ValueError, RuntimeError, LookupError, TypeError) as error:
            reasons.append(" ".join(str(error).split())[:200])
    raise ValueError(f"`vae` is {name!r}, which can't be loaded ({reasons[0]}); expected one of {list(VAE_CLASSES)}.")


def downsampling(vae: Any) -> int:
    """Pixels a side for each of its latents."""
    widths = vae.config.get("block_out_channels") or vae.config.encoder_block_out_channels
    return 2 ** (len(widths) - 1)


@torch.no_grad()
def to_latents(vae: Any, images: torch.Tensor) -> torch.Tensor:
    """Images (B, C, H, W) in [-1, 1] as float32 latents, scaled as the diffusion's; in slices, which need memory."""
    latents = []
    for part in images.to(vae.dtype).split(4):
        encoded = vae.encode(part)
        latents.append(encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents)
    return (torch.cat(latents).float() - _shift(vae)) * vae.config.scaling_factor


@torch.no_grad()
def to_images(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """The reverse of `to_latents`, in slices as well."""
    latents = (latents / vae.config.scaling_factor + _shift(vae)).to(vae.dtype)
    return torch.cat([vae.decode(part).sample.float() for part in latents.split(4)])


def _shift(vae: Any) -> float:
    return vae.config.get("shift_factor") or 0.0
