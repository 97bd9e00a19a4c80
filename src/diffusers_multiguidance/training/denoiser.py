"""Training of the denoiser on extremes: a DDPM with learned variance and the hybrid loss (paper, appendix A.3)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from datasets import ClassLabel, Dataset
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_density_for_timestep_sampling

from ..data.labels import with_labels
from ..data.transforms import image_channels
from ..diffusion import GaussianDiffusion
from ..generate import image_generators
from ..hub.publish import check_publishable
from ..models import create_dit, create_unet
from ..models.autoencoder import downsampling, load_vae
from ..pipelines import MultiGuidanceCFGPipeline, MultiGuidanceDDPMPipeline
from ..utils.files import add_to_folder
from ..utils.grids import image_grid
from ..utils.seeds import stream_seed
from .finish import finish_pipeline
from .inputs import take_inputs, with_inputs
from .settings import PipelineSettings, check_numbers, check_size, default_of, flag
from .trainer import Batch, create_accelerator, read_training_set, train


@dataclass(kw_only=True)
class DenoiserSettings(PipelineSettings):
    """Settings of train_unet.py."""

    save_images_steps: int = flag(1000, "How often to save a grid of samples, in optimizer steps.")
    architecture: Literal["unet", "dit"] = flag("unet", "UNet2DModel or DiTTransformer2DModel.")
    vae: str | None = flag(None, "Autoencoder in whose latents to train: a folder or Hub id, also of a pipeline.")
    class_conditional: bool = flag(False, "Tell the network a label, for classifier-free guidance.")
    attribute: str | None = flag(None, "Column of that label; the only one of the training set unless given.")
    label_dropout: float = flag(0.1, "Share of images without their label, where the network is told one.")
    guidance_scale: float = flag(0.1, "Default of a finished class-conditional pipeline with its scheduler.")
    ddpm_num_steps: int = flag(4000, "T.")
    ddpm_beta_schedule: Literal["squaredcos_cap_v2", "linear"] = flag("squaredcos_cap_v2", "Noise by timestep.")
    num_inference_steps: int = flag(250, "For samples, and by default later.")
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = flag("epsilon", "What the network predicts.")
    variance_type: Literal["learned_range", "fixed_small", "fixed_large"] = flag("learned_range", "Of reverse steps.")
    loss_type: Literal["hybrid", "vlb"] = flag("hybrid", "L_simple with a share of the bound, or the bound alone.")
    vlb_weight: float | None = flag(None, "Weight of the sampled bound; T / 1000 unless given.")
    weighting_scheme: Literal["none", "logit_normal"] = flag("none", "How timesteps are drawn: evenly, or not.")
    logit_mean: float = flag(0.0, "Of logit(t / T), for logit_normal.")
    logit_std: float = flag(1.0, "Of logit(t / T), for logit_normal.")
    patch_size: int = flag(1, "The network sees squares of this many pixels a side as one, with more channels.")
    num_layers: int = flag(12, "Blocks of a dit.")
    num_attention_heads: int = flag(6, "Of a dit, whose width is that many times --attention_head_dim.")
    resample_type: Literal["resnet", "conv"] = flag("resnet", "Change the resolution by a block, or one convolution.")

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = ("save_images_steps", "ddpm_num_steps", "patch_size", "num_layers", "num_attention_heads")
        check_numbers(self, *counts, at_least=1)
        self._check_size()
        check_numbers(self, "num_inference_steps", at_least=1, below=self.ddpm_num_steps + 1)
        if self.ddpm_beta_schedule == "linear" and self.ddpm_num_steps <= 20:
            raise ValueError(f"`--ddpm_num_steps` is {self.ddpm_num_steps}; expected more than 20, for betas below 1.")
        check_numbers(self, "vlb_weight", at_least=0)
        check_numbers(self, "logit_mean")
        check_numbers(self, "logit_std", above=0)
        check_numbers(self, "label_dropout", at_least=0, below=1)
        check_numbers(self, "guidance_scale", at_least=0)
        if self.loss_type == "vlb" and self.variance_type != "learned_range":
            raise ValueError("`--loss_type` is 'vlb' with a fixed variance; expected learned_range.")
        self._check_unused()

    def _check_unused(self) -> None:
        """Raise `ValueError` for a setting that another one leaves without a meaning."""
        unused: dict[str, tuple[str, ...]] = {}
        if self.architecture == "dit":
            of_unet = ("block_out_channels", "attention_resolutions", "layers_per_block", "norm_num_groups")
            unused["--architecture unet"] = (*of_unet, "resample_type")
        else:
            unused["--architecture dit"] = ("num_layers", "num_attention_heads")
        if not self.class_conditional:
            unused["--class_conditional"] = ("attribute", "label_dropout", "guidance_scale")
        if self.loss_type == "vlb":
            unused["--loss_type hybrid"] = ("vlb_weight",)
        if self.weighting_scheme == "none":
            unused["--weighting_scheme logit_normal"] = ("logit_mean", "logit_std")
        for needed, names in unused.items():
            for name in names:
                if getattr(self, name) != default_of(self, name):
                    raise ValueError(
                        f"`--{name}` is {getattr(self, name)!r}, which says nothing without `{needed}`; expected both."
                    )

    @property
    def divisor(self) -> int:
        """Of the height and width that the network sees, which it halves or cuts into patches."""
        halvings = 0 if self.architecture == "dit" else len(self.block_out_channels) - 1
        return self.patch_size * 2**halvings

    def _check_size(self) -> None:
        """Raise `ValueError` for images of a size that the network can't take."""
        if self.architecture == "dit" and self.size[0] != self.size[1]:
            raise ValueError(f"`--resolution` is {self.resolution}; expected a square, as a dit takes no other.")
        if self.vae is None:
            check_size(self.size, self.divisor, "resolution")
        elif self.architecture == "unet" and self.patch_size > 1:
            raise ValueError(f"`--patch_size` is {self.patch_size} with a `--vae`; expected 1.")


def train_denoiser(settings: DenoiserSettings) -> Path:
    """Train a denoiser, and write checkpoints, sample grids and at the end a pipeline.

    It is unguided, or with `class_conditional` a `MultiGuidanceCFGPipeline`, guided without classifiers.

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
        clip_sample=settings.vae is None,  # latents have no range
    )
    diffusion = GaussianDiffusion.from_scheduler(scheduler)
    vae = None if settings.vae is None else load_vae(settings.vae)
    if vae is not None:  # before anything is encoded
        check_size(settings.size, downsampling(vae) * settings.divisor, "resolution")
    attribute, classes = None, []
    if settings.class_conditional:
        attribute = find_attribute(dataset, settings)
        dataset = with_labels(dataset, attribute, "attribute", accelerator.print)
        classes = dataset.features[attribute].names
    inputs = with_inputs(accelerator, dataset, vae, settings, [attribute] if attribute else [])
    torch.manual_seed(stream_seed(settings.seed, "weights", 0))
    denoiser = create_denoiser(settings, vae, image_channels(dataset), len(classes))
    patch_size = settings.patch_size if settings.architecture == "unet" else 1  # a dit does it by itself

    def compute_loss(model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        images = F.pixel_unshuffle(take_inputs(batch, vae, settings), patch_size)
        # Timesteps drawn unevenly, without reweighting the loss: attention goes where the image is decided.
        share = compute_density_for_timestep_sampling(
            settings.weighting_scheme, len(images), settings.logit_mean, settings.logit_std, device="cpu"
        )
        index = (share * len(diffusion)).long().clamp(max=len(diffusion) - 1)
        noise = torch.randn_like(images)
        x_t = diffusion.add_noise(images, noise, index)
        labels = {}
        if attribute:
            without = (torch.rand(len(images)) < settings.label_dropout).to(images.device)
            labels = {"class_labels": torch.where(without, len(classes), batch[attribute])}
        elif settings.architecture == "dit":
            labels = {"class_labels": torch.zeros(len(images), dtype=torch.long, device=images.device)}
        model_output = model(x_t, diffusion.timesteps[index].to(images.device), **labels).sample.float()
        if settings.loss_type == "vlb":
            losses = diffusion.bound_loss(model_output, images, noise, index)
        else:
            losses = diffusion.hybrid_loss(model_output, images, noise, index, settings.vlb_weight)
        return {name: values.mean() for name, values in losses.items()}

    def create_pipeline(model: Any) -> MultiGuidanceDDPMPipeline:
        defaults: dict[str, Any] = {"num_inference_steps": settings.num_inference_steps}
        parts = {
            "unet": model if settings.architecture == "unet" else None,
            "transformer": model if settings.architecture == "dit" else None,
            "vae": vae,
            "scheduler": scheduler,
            "patch_size": patch_size,
        }
        if attribute is None:
            return MultiGuidanceDDPMPipeline(**parts, classifiers=None, sampling_defaults={"ddpm": defaults})
        defaults |= {"guidance_scale": settings.guidance_scale, "guidance_interval": [0.0, 1.0]}
        labels = {attribute: {name: label for label, name in enumerate(classes)}}
        return MultiGuidanceCFGPipeline(**parts, attributes=labels, sampling_defaults={"ddpm": defaults})

    def save_images(model: Any, step: int) -> None:
        pipeline: Any = create_pipeline(model)
        pipeline.set_progress_bar_config(desc="samples", leave=False)
        images = pipeline(64, generator=image_generators(settings.seed, 0, 64)).images
        with add_to_folder(settings.output_dir / "samples") as folder:
            image_grid(images).save(folder / f"step-{step:06d}.png")

    denoiser, record = train(
        accelerator,
        denoiser,
        inputs,
        compute_loss,
        settings,
        settings.architecture,
        save_images,
        settings.save_images_steps,
    )
    if accelerator.is_main_process:
        pipeline = create_pipeline(denoiser.cpu().to(memory_format=torch.contiguous_format))
        steps = f"{settings.max_train_steps} steps of {settings.train_batch_size} images for each process"
        training = [f"Denoiser: {steps}, seed {settings.seed}"]
        component = "unet" if settings.architecture == "unet" else "transformer"
        finish_pipeline(pipeline, settings, "train_unet", training, {component: record})
    accelerator.end_training()
    return settings.output_dir / "pipeline"


def find_attribute(dataset: Dataset, settings: DenoiserSettings) -> str:
    """The column of the label that the network is told.

    Raises:
        ValueError: where the settings name none, and the training set has none or several.
    """
    if settings.attribute is not None:
        return settings.attribute
    labels = [name for name, feature in dataset.features.items() if isinstance(feature, ClassLabel)]
    if len(labels) != 1:
        raise ValueError(
            f"`--attribute` is missing; expected a column of labels, of {labels or dataset.column_names}."
        )
    return labels[0]


def create_denoiser(settings: DenoiserSettings, vae: Any, channels: int, num_classes: int) -> Any:
    """A randomly initialised denoiser of these settings, of images with `channels` or of the latents of a `vae`."""
    height, width = settings.size
    if vae is not None:
        factor, channels = downsampling(vae), vae.config.latent_channels
        height, width = height // factor, width // factor
    learned_variance = settings.variance_type == "learned_range"
    if settings.architecture == "dit":
        return create_dit(
            (height, width),
            channels,
            settings.patch_size,
            settings.num_layers,
            settings.num_attention_heads,
            settings.attention_head_dim,
            max(1, num_classes),
            learned_variance,
        )
    return create_unet(
        (height // settings.patch_size, width // settings.patch_size),
        channels * settings.patch_size**2,
        **settings.network,
        learned_variance=learned_variance,
        resample_type=settings.resample_type,
        num_class_embeds=num_classes + 1 if num_classes else None,  # the last one for none of them
    )
