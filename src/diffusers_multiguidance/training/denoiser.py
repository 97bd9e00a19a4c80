"""Training of the denoiser on extremes: a DDPM with learned variance and the hybrid loss (paper, appendix A.3)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_density_for_timestep_sampling

from ..data.transforms import image_channels, random_flips, with_tensors
from ..diffusion import GaussianDiffusion
from ..generate import image_generators
from ..hub.publish import check_publishable
from ..models import create_unet
from ..pipelines import MultiGuidanceDDPMPipeline
from ..utils.files import add_to_folder
from ..utils.grids import image_grid
from ..utils.seeds import stream_seed
from .finish import finish_pipeline
from .settings import PipelineSettings, check_numbers, check_size, flag
from .trainer import Batch, create_accelerator, read_training_set, train


@dataclass(kw_only=True)
class DenoiserSettings(PipelineSettings):
    """Settings of train_unet.py."""

    save_images_steps: int = flag(1000, "How often to save a grid of samples, in optimizer steps.")
    ddpm_num_steps: int = flag(4000, "T.")
    ddpm_beta_schedule: Literal["squaredcos_cap_v2", "linear"] = flag("squaredcos_cap_v2", "Noise by timestep.")
    num_inference_steps: int = flag(250, "For samples, and by default later.")
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = flag("epsilon", "What the network predicts.")
    variance_type: Literal["learned_range", "fixed_small", "fixed_large"] = flag("learned_range", "Of reverse steps.")
    vlb_weight: float | None = flag(None, "Weight of the sampled bound; T / 1000 unless given.")
    weighting_scheme: Literal["none", "logit_normal"] = flag("none", "How timesteps are drawn: evenly, or not.")
    logit_mean: float = flag(0.0, "Of logit(t / T), for logit_normal.")
    logit_std: float = flag(1.0, "Of logit(t / T), for logit_normal.")
    patch_size: int = flag(1, "The network sees squares of this many pixels a side as one, with more channels.")
    resample_type: Literal["resnet", "conv"] = flag("resnet", "Change the resolution by a block, or one convolution.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "save_images_steps", "ddpm_num_steps", "patch_size", at_least=1)
        check_size(self.size, self.patch_size * 2 ** (len(self.block_out_channels) - 1), "resolution")
        check_numbers(self, "num_inference_steps", at_least=1, below=self.ddpm_num_steps + 1)
        check_numbers(self, "vlb_weight", at_least=0)
        check_numbers(self, "logit_mean")
        check_numbers(self, "logit_std", above=0)


def train_denoiser(settings: DenoiserSettings) -> Path:
    """Train a `UNet2DModel`, and write checkpoints, sample grids and at the end an unguided pipeline.

    Returns:
        The pipeline's folder, `<output_dir>/pipeline`.

    Raises:
        ValueError: for a training set or settings that no run can be made of, before anything is written.
    """
    if settings.push_to_hub:
        check_publishable(settings.repo_id)  # hours later would be late
    accelerator = create_accelerator(settings)
    dataset = read_training_set(accelerator, settings)
    # Improved DDPM's linear schedule, rescaled so that any T ends in the same noise.
    scale = 1000 / settings.ddpm_num_steps
    scheduler = DDPMScheduler(
        num_train_timesteps=settings.ddpm_num_steps,
        beta_schedule=settings.ddpm_beta_schedule,
        beta_start=scale * 1e-4,
        beta_end=scale * 0.02,
        prediction_type=settings.prediction_type,
        variance_type=settings.variance_type,
        timestep_spacing="linspace",
    )
    diffusion = GaussianDiffusion.from_scheduler(scheduler)
    torch.manual_seed(stream_seed(settings.seed, "weights", 0))
    height, width = settings.size
    unet = create_unet(
        (height // settings.patch_size, width // settings.patch_size),
        image_channels(dataset) * settings.patch_size**2,
        **settings.network,
        learned_variance=settings.variance_type == "learned_range",
        resample_type=settings.resample_type,
    )

    def compute_loss(model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        images = random_flips(batch["image"], settings.random_flip, settings.random_vertical_flip)
        images = F.pixel_unshuffle(images, settings.patch_size)
        # Timesteps drawn unevenly, without reweighting the loss: attention goes where the image is decided.
        share = compute_density_for_timestep_sampling(
            settings.weighting_scheme, len(images), settings.logit_mean, settings.logit_std, device="cpu"
        )
        index = (share * len(diffusion)).long().clamp(max=len(diffusion) - 1)
        noise = torch.randn_like(images)
        x_t = diffusion.add_noise(images, noise, index)
        model_output = model(x_t, diffusion.timesteps[index].to(images.device)).sample
        losses = diffusion.hybrid_loss(model_output.float(), images, noise, index, settings.vlb_weight)
        return {name: values.mean() for name, values in losses.items()}

    def create_pipeline(model: Any) -> MultiGuidanceDDPMPipeline:
        defaults = {"ddpm": {"num_inference_steps": settings.num_inference_steps}}
        return MultiGuidanceDDPMPipeline(
            unet=model,
            transformer=None,
            vae=None,
            classifiers=None,
            scheduler=scheduler,
            patch_size=settings.patch_size,
            sampling_defaults=defaults,
        )

    def save_images(model: Any, step: int) -> None:
        pipeline: Any = create_pipeline(model)
        pipeline.set_progress_bar_config(desc="samples", leave=False)
        images = pipeline(64, generator=image_generators(settings.seed, 0, 64)).images
        with add_to_folder(settings.output_dir / "samples") as folder:
            image_grid(images).save(folder / f"step-{step:06d}.png")

    unet, record = train(
        accelerator,
        unet,
        with_tensors(dataset, settings.size, []),
        compute_loss,
        settings,
        "unet",
        save_images,
        settings.save_images_steps,
    )
    if accelerator.is_main_process:
        pipeline = create_pipeline(unet.cpu().to(memory_format=torch.contiguous_format))
        steps = f"{settings.max_train_steps} steps of {settings.train_batch_size} images for each process"
        training = [f"Denoiser: {steps}, seed {settings.seed}"]
        finish_pipeline(pipeline, settings, "train_unet", training, {"unet": record})
    accelerator.end_training()
    return settings.output_dir / "pipeline"
