"""Tiny networks and pipelines, and random streams, that the tests share."""

import torch
from diffusers import DDPMScheduler, UNet2DModel

from diffusers_multiguidance import (
    MultiGuidanceCFGPipeline,
    MultiGuidanceDDPMPipeline,
    NoisyClassifier,
    NoisyClassifierSet,
    create_dit,
    create_unet,
)

SAMPLING = {"num_inference_steps": 10, "guidance_scale": 30.0, "guidance_interval": [0.0, 1.0]}
SAMPLING_DEFAULTS = {
    "ddpm": SAMPLING,
    "ddim": SAMPLING,
    "sde-dpmsolver++": SAMPLING,
    "edit": {**SAMPLING, "strength": 0.5},
}


def tiny_classifier(seed: int = 0, attributes: dict[str, list[str]] | None = None, **config) -> NoisyClassifier:
    torch.manual_seed(seed)
    small = {
        "sample_size": 8,
        "in_channels": 1,
        "block_out_channels": (8, 16),
        "attention_resolutions": (4,),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 8,
    }
    return NoisyClassifier(attributes or {"Smiling": ["no", "yes"]}, **{**small, **config}).eval()


def tiny_pipeline(attributes: dict[str, list[str]] | None = None, **scheduler_config) -> MultiGuidanceDDPMPipeline:
    torch.manual_seed(0)
    variance_type = scheduler_config.pop("variance_type", "learned_range")
    unet = create_unet(8, 1, (8, 16), (4,), 1, 4, 8, learned_variance=variance_type == "learned_range")
    torch.nn.init.normal_(unet.conv_out.weight, std=0.1)  # zeros would hide the network from the tests
    scheduler = DDPMScheduler(
        num_train_timesteps=100,
        beta_schedule="squaredcos_cap_v2",
        variance_type=variance_type,
        **{"timestep_spacing": "linspace", **scheduler_config},
    )
    classifiers = NoisyClassifierSet.from_members([tiny_classifier(seed, attributes) for seed in (1, 2)])
    return with_parts(unet=unet.eval(), classifiers=classifiers.eval(), scheduler=scheduler)


def with_parts(**parts) -> MultiGuidanceDDPMPipeline:
    """A pipeline of these parts and no others, tuned for three schedulers and editing."""
    none = dict.fromkeys(("unet", "transformer", "vae", "classifiers"))
    pipeline = MultiGuidanceDDPMPipeline(**{**none, "sampling_defaults": SAMPLING_DEFAULTS, **parts})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tiny_stock_unet(channels: int = 1) -> UNet2DModel:
    """As diffusers' own pipelines have it, without any choice of ours."""
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
    ).eval()


def generators(count: int, start: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(start + number) for number in range(count)]


LABELS = {"Smiling": {"no": 0, "yes": 1}}


def cfg_pipeline(kind: str = "unet", **changes) -> MultiGuidanceCFGPipeline:
    """One that is told classes, and no classifiers."""
    torch.manual_seed(0)
    if kind == "unet":
        network = create_unet(8, 1, (8, 16), (4,), 1, 4, 8, num_class_embeds=3)
    else:
        network = create_dit(8, 1, 2, 2, 2, 8, num_classes=2)
    for parameter in network.parameters():  # zeros would hide the labels from the tests
        torch.nn.init.normal_(parameter, std=0.1)
    scheduler = DDPMScheduler(
        100, beta_schedule="squaredcos_cap_v2", variance_type="learned_range", timestep_spacing="linspace"
    )
    parts = {"unet": None, "transformer": None, "vae": None, "scheduler": scheduler, "attributes": LABELS}
    defaults = {"ddpm": {**SAMPLING, "guidance_scale": 0.1}}
    name = "unet" if kind == "unet" else "transformer"
    pipeline = MultiGuidanceCFGPipeline(**{**parts, name: network.eval(), "sampling_defaults": defaults, **changes})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
