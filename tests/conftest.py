"""Tiny networks and pipelines that the tests share."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a core for each: torch's threads get into each other's way

import pytest
import torch
from diffusers import DDPMScheduler

from diffusers_multiguidance.models import NoisyClassifier, NoisyClassifierSet, create_unet
from diffusers_multiguidance.pipelines import MultiGuidanceDDPMPipeline


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
        timestep_spacing="linspace",
        **scheduler_config,
    )
    classifiers = NoisyClassifierSet.from_members([tiny_classifier(seed, attributes) for seed in (1, 2)])
    pipeline = MultiGuidanceDDPMPipeline(unet.eval(), classifiers.eval(), scheduler, 10, 30.0)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def pipeline() -> MultiGuidanceDDPMPipeline:
    return tiny_pipeline()
