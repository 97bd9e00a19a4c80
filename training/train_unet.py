"""Train the denoiser on extremes: a DDPM with learned variance and the hybrid loss (paper, appendix A.3 and C).

    accelerate launch training/train_unet.py --recipe training/recipes/circles.yaml

Writes checkpoints, sample grids and, at the end, an unguided pipeline to `<output_dir>/pipeline`.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from typing import Any

import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_density_for_timestep_sampling

from diffusers_multiguidance.diffusion import GaussianDiffusion
from diffusers_multiguidance.utils.files import replace_folder
from diffusers_multiguidance.hub.card import unmeasured_facts, write_pipeline_card
from diffusers_multiguidance.hub.publish import find_token, publish
from diffusers_multiguidance.utils.images import image_grid
from diffusers_multiguidance.models import create_unet
from diffusers_multiguidance.pipelines import MultiGuidanceDDPMPipeline
from diffusers_multiguidance.training.recipe import run_script
from diffusers_multiguidance.training.trainer import (
    Batch,
    add_training_arguments,
    check_training_arguments,
    create_accelerator,
    image_channels,
    load_training_set,
    random_flip,
    train,
    with_tensors,
    write_record,
)


def create_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_training_arguments(parser)
    parser.add_argument("--random_flip", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--save_images_steps", type=int, default=1000, help="How often to save a grid of samples.")
    parser.add_argument("--push_to_hub", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--hub_model_id", help="Repository to push to; defaults to the output folder's name.")
    parser.add_argument("--ddpm_num_steps", type=int, default=4000, help="T.")
    parser.add_argument("--ddpm_beta_schedule", choices=["squaredcos_cap_v2", "linear"], default="squaredcos_cap_v2")
    parser.add_argument("--ddpm_num_inference_steps", type=int, default=250, help="For samples, and by default later.")
    parser.add_argument("--prediction_type", choices=["epsilon", "v_prediction", "sample"], default="epsilon")
    parser.add_argument(
        "--variance_type", choices=["learned_range", "fixed_small", "fixed_large"], default="learned_range"
    )
    parser.add_argument("--vlb_weight", type=float, help="Weight of the sampled bound; T / 1000 unless given.")
    parser.add_argument("--weighting_scheme", choices=["none", "logit_normal"], default="none", help="Of timesteps.")
    parser.add_argument("--logit_mean", type=float, default=0.0, help="Of logit(t / T), for logit_normal.")
    parser.add_argument("--logit_std", type=float, default=1.0)
    parser.add_argument("--block_out_channels", type=int, nargs="+", default=[128, 256, 384, 512])
    parser.add_argument("--attention_resolutions", type=int, nargs="*", default=[16, 8])
    parser.add_argument("--layers_per_block", type=int, default=3)
    parser.add_argument("--norm_num_groups", type=int, default=32)
    parser.add_argument("--attention_head_dim", type=int, default=64)
    parser.add_argument("--resample_type", choices=["resnet", "conv"], default="resnet")
    return parser


def main(args: argparse.Namespace) -> None:
    check_training_arguments(args)
    if args.push_to_hub:
        find_token()  # hours later would be late
    for name in ("save_images_steps", "ddpm_num_steps", "ddpm_num_inference_steps", "layers_per_block"):
        if getattr(args, name) < 1:
            raise ValueError(f"`--{name}` is {getattr(args, name)}; expected at least 1.")
    if args.ddpm_num_inference_steps > args.ddpm_num_steps:
        raise ValueError(
            f"`--ddpm_num_inference_steps` is {args.ddpm_num_inference_steps}; expected at most {args.ddpm_num_steps}."
        )
    if args.vlb_weight is not None and not 0 <= args.vlb_weight < math.inf:
        raise ValueError(f"`--vlb_weight` is {args.vlb_weight}; expected a number of at least 0.")
    if not (math.isfinite(args.logit_mean) and 0 < args.logit_std < math.inf):
        raise ValueError(
            f"`--logit_mean`, `--logit_std` are {args.logit_mean}, {args.logit_std}; expected (any, above 0)."
        )
    accelerator = create_accelerator(args)
    dataset = load_training_set(args)
    channels = image_channels(dataset)
    # Improved DDPM's linear schedule, rescaled so that any T ends in the same noise.
    scale = 1000 / args.ddpm_num_steps
    scheduler = DDPMScheduler(
        num_train_timesteps=args.ddpm_num_steps,
        beta_schedule=args.ddpm_beta_schedule,
        beta_start=scale * 1e-4,
        beta_end=scale * 0.02,
        prediction_type=args.prediction_type,
        variance_type=args.variance_type,
        timestep_spacing="linspace",
    )
    diffusion = GaussianDiffusion.from_scheduler(scheduler)
    torch.manual_seed(args.seed)
    unet = create_unet(
        args.resolution,
        channels,
        args.block_out_channels,
        args.attention_resolutions,
        args.layers_per_block,
        args.norm_num_groups,
        args.attention_head_dim,
        learned_variance=args.variance_type == "learned_range",
        resample_type=args.resample_type,
    )

    def compute_loss(model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        images = random_flip(batch["image"]) if args.random_flip else batch["image"]
        # Timesteps drawn unevenly, without reweighting the loss: attention goes where the image is decided.
        share = compute_density_for_timestep_sampling(
            args.weighting_scheme, len(images), args.logit_mean, args.logit_std, device="cpu"
        )
        index = (share * len(diffusion)).long().clamp(max=len(diffusion) - 1)
        noise = torch.randn_like(images)
        x_t = diffusion.add_noise(images, noise, index)
        model_output = model(x_t, diffusion.timesteps[index].to(images.device)).sample
        losses = diffusion.hybrid_loss(model_output.float(), images, noise, index, args.vlb_weight)
        return {name: values.mean() for name, values in losses.items()}

    def create_pipeline(model: Any) -> MultiGuidanceDDPMPipeline:
        return MultiGuidanceDDPMPipeline(model, None, scheduler, args.ddpm_num_inference_steps)

    def save_images(model: Any, step: int) -> None:
        pipeline: Any = create_pipeline(model)
        pipeline.set_progress_bar_config(desc="samples", leave=False)
        images = pipeline(64, generator=torch.Generator().manual_seed(args.seed)).images
        folder = args.output_dir / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        image_grid(images).save(folder / f"step-{step:06d}.png")

    unet, record = train(
        accelerator,
        unet,
        with_tensors(dataset, args.resolution, []),
        compute_loss,
        args,
        args.output_dir,
        "unet",
        args.seed,
        save_images,
        args.save_images_steps,
    )
    if accelerator.is_main_process:
        pipeline = create_pipeline(unet.cpu().to(memory_format=torch.contiguous_format))
        with replace_folder(args.output_dir / "pipeline") as folder:
            pipeline.save_pretrained(folder)
            write_record(folder / "unet", record, args)
            command = shlex.join(["accelerate", "launch", "training/train_unet.py", *sys.argv[1:]])
            denoiser = f"Denoiser: {args.max_train_steps} steps of {args.train_batch_size} images for each process"
            facts = unmeasured_facts(args.output_dir.resolve().name, [])
            facts["training"] = [f"{denoiser}, seed {args.seed} (`{command}`)."]
            write_pipeline_card(folder, facts, args.hub_model_id or str(args.output_dir / "pipeline"))
        if args.push_to_hub:
            publish(args.output_dir / "pipeline", args.hub_model_id or args.output_dir.name)
    accelerator.end_training()


if __name__ == "__main__":
    run_script(main, create_parser(), section="train_unet")
