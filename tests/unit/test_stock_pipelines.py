"""Stock pipelines of diffusers, saved by diffusers itself, load and sample as they did, and can be guided."""

import json

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    LDMPipeline,
    VQModel,
)
from helpers.tiny import tiny_classifier, tiny_stock_unet, with_parts

from diffusers_multiguidance import MultiGuidanceDDPMPipeline, MultiGuidanceEditPipeline, NoisyClassifierSet

LEVELS = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
}


def tiny_dit(num_classes: int) -> DiTTransformer2DModel:
    torch.manual_seed(0)
    return DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        num_embeds_ada_norm=num_classes,
        norm_num_groups=4,
    ).eval()


def stock_pipeline(kind: str) -> DiffusionPipeline:
    torch.manual_seed(0)
    if kind == "ddpm":
        pipeline = DDPMPipeline(tiny_stock_unet(), DDPMScheduler(num_train_timesteps=100))
    elif kind == "ddim":
        pipeline = DDIMPipeline(tiny_stock_unet(), DDIMScheduler(num_train_timesteps=100, clip_sample=False))
    elif kind == "ldm":
        vqvae = VQModel(latent_channels=3, num_vq_embeddings=16, **LEVELS).eval()
        scheduler = DDIMScheduler(num_train_timesteps=100, clip_sample=False)
        pipeline = LDMPipeline(vqvae, tiny_stock_unet(3), scheduler)
    else:
        vae = AutoencoderKL(latent_channels=4, **LEVELS).eval()
        scheduler = DDIMScheduler(num_train_timesteps=100, clip_sample=False)
        pipeline = DiTPipeline(tiny_dit(10), vae, scheduler, id2label={0: "cat", 1: "dog"})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample(pipeline: DiffusionPipeline, **call) -> np.ndarray:
    call = {"num_inference_steps": 20, "output_type": "np", **call}
    return pipeline(generator=torch.Generator().manual_seed(0), **call).images


def guides(channels: int) -> NoisyClassifierSet:
    return NoisyClassifierSet.from_members([tiny_classifier(1, in_channels=channels)])


@pytest.mark.parametrize("kind", ["ddpm", "ddim", "ldm", "dit"])
def test_loads_samples_the_same_and_is_guided(kind, tmp_path, caplog):
    stock = stock_pipeline(kind)
    stock.save_pretrained(tmp_path / kind)
    if kind == "dit":
        expected = sample(stock, class_labels=[1, 7], guidance_scale=1.0)
        call = {"batch_size": 2, "class_labels": [1, 7]}
    else:
        expected, call = sample(stock, batch_size=2), {"batch_size": 2}
    classifiers = guides({"ldm": 3, "dit": 4}.get(kind, 1))
    loaded = MultiGuidanceDDPMPipeline.from_pretrained(tmp_path / kind)
    for pipeline in (loaded, MultiGuidanceDDPMPipeline.from_pipe(stock)):
        pipeline.set_progress_bar_config(disable=True)
        assert pipeline.classifiers is None
        assert pipeline.attributes == {}
        np.testing.assert_allclose(sample(pipeline, **call), expected, atol=1e-4)
        assert pipeline.image_size == expected.shape[1:3]
        with pytest.raises(ValueError, match=r"`target` is .*; expected a pipeline with `classifiers`"):
            pipeline(1, target={"Smiling": 0.5}, guidance_scale=10.0)
    assert not [record for record in caplog.records if "ignored" in record.getMessage()]

    sliders = [
        MultiGuidanceDDPMPipeline.from_pretrained(tmp_path / kind, classifiers=classifiers),
        MultiGuidanceDDPMPipeline.from_pipe(stock, classifiers=classifiers),
    ]
    images = []
    for pipeline in sliders:
        pipeline.set_progress_bar_config(disable=True)
        images.append(sample(pipeline, target={"Smiling": 0.9}, guidance_scale=300.0, **call))
        with pytest.raises(ValueError, match="`guidance_scale` is missing, and none was tuned for 'dd"):
            pipeline(1, target={"Smiling": 0.5})
    np.testing.assert_allclose(images[0], images[1], atol=1e-5)
    assert np.abs(images[0] - expected).max() > 1e-3

    sliders[0].save_pretrained(tmp_path / "ours")
    again = MultiGuidanceDDPMPipeline.from_pretrained(tmp_path / "ours")
    again.set_progress_bar_config(disable=True)
    np.testing.assert_allclose(
        sample(again, target={"Smiling": 0.9}, guidance_scale=300.0, **call), images[0], atol=1e-5
    )


def test_a_dit_of_old_loads_by_its_class_of_now(tmp_path):
    """As facebook/DiT-XL-2-256 has it."""
    stock = stock_pipeline("dit")
    stock.save_pretrained(tmp_path)
    for path, key, old in (
        (tmp_path / "model_index.json", "transformer", ["diffusers", "Transformer2DModel"]),
        (tmp_path / "transformer" / "config.json", "_class_name", "Transformer2DModel"),
    ):
        path.write_text(json.dumps({**json.loads(path.read_text()), key: old}))
    pipeline = MultiGuidanceDDPMPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    expected = sample(stock, class_labels=[1, 7], guidance_scale=1.0)
    np.testing.assert_allclose(sample(pipeline, batch_size=2, class_labels=[1, 7]), expected, atol=1e-4)


def test_a_transformer_of_one_class_wants_no_label():
    pipeline = with_parts(transformer=tiny_dit(1), scheduler=DDIMScheduler(num_train_timesteps=100, clip_sample=False))
    assert pipeline.denoiser is pipeline.transformer
    *_, plain = pipeline.denoise(2, generator=torch.Generator().manual_seed(0), num_inference_steps=3)
    labelled = {"class_labels": [0, 0], "num_inference_steps": 3}
    *_, same = pipeline.denoise(2, generator=torch.Generator().manual_seed(0), **labelled)
    assert torch.equal(plain.sample, same.sample)
    for wrong in ([0], [0, 1], [0.0, 0.0], "cat"):
        with pytest.raises(ValueError, match=r"`class_labels` is .*; expected 2 whole numbers from 0 to 0"):
            pipeline.denoise(2, class_labels=wrong)


@pytest.mark.parametrize("kind", ["kl", "vq", "tiny"])
def test_images_go_through_the_vae_and_back(kind):
    torch.manual_seed(0)
    vae = {
        "kl": lambda: AutoencoderKL(latent_channels=4, **LEVELS),
        "vq": lambda: VQModel(latent_channels=4, num_vq_embeddings=16, **LEVELS),
        "tiny": lambda: AutoencoderTiny(
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
            latent_channels=4,
        ),
    }[kind]()
    scheduler = DDIMScheduler(num_train_timesteps=100, clip_sample=False)
    pipeline = with_parts(transformer=tiny_dit(1), vae=vae.eval(), classifiers=guides(4), scheduler=scheduler)
    assert (pipeline.image_size, pipeline.channels) == ((16, 16), 3)
    images = torch.rand(6, 3, 16, 16) * 2 - 1
    latents = pipeline.encode(images)
    assert latents.shape == (6, 4, 8, 8)
    assert pipeline.decode(latents).shape == images.shape
    encoded = vae.encode(images[:1])
    first = encoded.latent_dist.mode() if kind == "kl" else encoded.latents
    torch.testing.assert_close(latents[:1] / vae.config.scaling_factor, first, atol=1e-5, rtol=1e-4)

    edit = MultiGuidanceEditPipeline.from_pipe(pipeline)
    edit.set_progress_bar_config(disable=True)
    out = edit(
        pipeline(1, num_inference_steps=2).images, target={"Smiling": 0.5}, guidance_scale=1.0, output_type="np"
    )
    assert out.images.shape == (1, 16, 16, 3)


def test_parts_that_do_not_fit_are_refused():
    scheduler = DDIMScheduler(num_train_timesteps=100)
    with pytest.raises(ValueError, match="`vae` has latents of 3 channels; expected those of the denoiser, 4"):
        with_parts(transformer=tiny_dit(1), vae=VQModel(latent_channels=3, **LEVELS), scheduler=scheduler)
    with pytest.raises(ValueError, match="`classifiers` are for 8 pixels and 1 channels; expected those of the den"):
        with_parts(transformer=tiny_dit(1), classifiers=guides(1), scheduler=scheduler)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (
            {"_class_name": "StableDiffusionPipeline", "text_encoder": ["transformers", "CLIPTextModel"]},
            r"is a StableDiffusionPipeline; expected a MultiGuidance pipeline or one of \['DDPMPipeline'",
        ),
        (
            {"_class_name": "DDPMPipeline", "text_encoder": ["transformers", "CLIPTextModel"]},
            "`model_index.json` has a component 'text_encoder'; expected some of",
        ),
        ({"_class_name": "DDPMPipeline"}, "`model_index.json` names None as 'scheduler'; expected one of"),
        (
            {"_class_name": "DDPMPipeline", "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]},
            "`model_index.json` names .* as 'scheduler'; expected one of",
        ),
        (
            {"_class_name": "DDPMPipeline", "scheduler": ["diffusers", "DDPMScheduler"]},
            "`unet` and `transformer`: neither given; expected exactly one denoiser",
        ),
    ],
)
def test_other_folders_are_refused(index, message, tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    (tmp_path / "scheduler").mkdir()
    DDPMScheduler().save_pretrained(tmp_path / "scheduler")
    with pytest.raises(ValueError, match=message) as error:
        MultiGuidanceDDPMPipeline.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


def test_a_pipeline_that_reads_text_is_refused():
    class WithText(DDPMPipeline):
        def __init__(self, unet, scheduler, text_encoder):
            super().__init__(unet, scheduler)
            self.register_modules(text_encoder=text_encoder)

    stock = WithText(tiny_stock_unet(), DDPMScheduler(num_train_timesteps=100), torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="`pipeline` is a WithText with a text_encoder; expected"):
        MultiGuidanceDDPMPipeline.from_pipe(stock)
