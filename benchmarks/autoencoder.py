"""A small autoencoder, for denoisers in its latents, where a published one is too large.

    python benchmarks/autoencoder.py runs/digits/all --resolution 32 --out runs/digits-latent/vae

Trains an `AutoencoderKL` whose latents have a quarter of the images' height and width. Writes it with its
`scaling_factor`, and `reconstructed.png`: images that it has not seen, and what it makes of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from diffusers import AutoencoderKL
from rich.progress import track

from diffusers_multiguidance.data.load import load_training_set
from diffusers_multiguidance.data.transforms import image_channels, scale_pixels, to_pixels
from diffusers_multiguidance.models.autoencoder import to_images, to_latents
from diffusers_multiguidance.training.settings import read_size
from diffusers_multiguidance.utils.files import replace_folder
from diffusers_multiguidance.utils.grids import image_grid, to_pil
from record import save_results

HELD_OUT = 32
KL_WEIGHT = 1e-6  # of the bound's second term, as latent diffusion has it: the latents are only kept from growing


def main(
    data: Path,
    out: Annotated[Path, typer.Option()],
    resolution: Annotated[str, typer.Option()] = "32",
    latent_channels: Annotated[int, typer.Option()] = 4,
    max_train_steps: Annotated[int, typer.Option()] = 2000,
    train_batch_size: Annotated[int, typer.Option()] = 64,
    learning_rate: Annotated[float, typer.Option()] = 1e-3,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    size = read_size(resolution, "resolution")
    dataset, _ = load_training_set(None, data, size)
    pixels = to_pixels(dataset.shuffle(seed)["image"][:], size, image_channels(dataset))
    images = scale_pixels(torch.from_numpy(pixels))
    held_out, images = images[:HELD_OUT], images[HELD_OUT:]
    torch.manual_seed(seed)
    widths = (16, 32, 32)
    vae: Any = AutoencoderKL(
        images.shape[1],
        images.shape[1],
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        norm_num_groups=8,
        latent_channels=latent_channels,
        sample_size=size[0],
        mid_block_add_attention=False,
    ).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=learning_rate, weight_decay=0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max_train_steps)
    for _ in track(range(max_train_steps), "autoencoder"):
        batch = images[torch.randint(len(images), (train_batch_size,))]
        posterior = vae.encode(batch).latent_dist
        decoded = vae.decode(posterior.sample()).sample
        loss = F.l1_loss(decoded, batch) + F.mse_loss(decoded, batch) + KL_WEIGHT * posterior.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    vae.eval().to(memory_format=torch.contiguous_format)
    vae.register_to_config(scaling_factor=1.0)
    scale = 1 / float(to_latents(vae, images[:1000]).std())
    vae.register_to_config(scaling_factor=scale)
    back = to_images(vae, to_latents(vae, held_out)).clamp(-1, 1)
    pairs = torch.stack([held_out, back], dim=1).flatten(0, 1).permute(0, 2, 3, 1)
    error = float((back - held_out).abs().mean()) / 2
    print(f"mean absolute error of images that it has not seen: {error:.4f} of the range; scaling factor {scale:.3f}")
    with replace_folder(out) as new:
        vae.save_pretrained(new)
        shown = ((pairs.numpy() + 1) * 127.5).round().astype(np.uint8)
        image_grid(to_pil(shown)).save(new / "reconstructed.png")
        save_results(new / "autoencoder.json", {"mean_absolute_error": error, "scaling_factor": scale})


if __name__ == "__main__":
    typer.run(main)
