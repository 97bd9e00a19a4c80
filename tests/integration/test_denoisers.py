"""Training of transformers, of denoisers that are told classes, and in the latents of an autoencoder."""

from pathlib import Path

import pytest
import torch
from datasets import config, load_from_disk
from diffusers import AutoencoderKL, AutoencoderTiny
from helpers.launch import launch
from huggingface_hub import constants

from diffusers_multiguidance import load_pipeline
from diffusers_multiguidance.data.circles import circles
from diffusers_multiguidance.data.transforms import to_tensors
from diffusers_multiguidance.diffusion import GaussianDiffusion
from diffusers_multiguidance.models.autoencoder import to_latents
from diffusers_multiguidance.training import inputs
from diffusers_multiguidance.training.classifier import ClassifierSettings, train_classifiers
from diffusers_multiguidance.training.denoiser import DenoiserSettings, train_denoiser
from diffusers_multiguidance.training.trainer import create_accelerator

COMMON = {"resolution": "16", "train_batch_size": 4, "max_train_steps": 2, "attention_head_dim": 8}
UNET = {"block_out_channels": [8, 8], "attention_resolutions": [], "layers_per_block": 1, "norm_num_groups": 4}
DIT = {"architecture": "dit", "num_layers": 2, "num_attention_heads": 2, "patch_size": 4}
LEVELS = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("circles") / "data"
    circles(24, 16).select_columns(["image", "position"]).save_to_disk(folder)
    return folder


@pytest.fixture(scope="module")
def vae(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("vae") / "vae"
    torch.manual_seed(0)
    AutoencoderKL(1, 1, latent_channels=3, scaling_factor=0.5, **LEVELS).save_pretrained(folder)
    return folder


def settings(data: Path, output_dir: Path, **other) -> DenoiserSettings:
    start = {"train_data_dir": data, "output_dir": output_dir, "ddpm_num_steps": 20, "num_inference_steps": 2}
    return DenoiserSettings(**{**start, **COMMON, **other})


def guide(data: Path, pipeline: Path, output_dir: Path) -> Path:
    start = {"train_data_dir": data, "pipeline": str(pipeline), "attributes": ["position"], "output_dir": output_dir}
    return train_classifiers(ClassifierSettings(**start, **COMMON, **UNET))


@pytest.mark.parametrize("latent", [False, True])
def test_a_transformer_is_trained_and_guided(data, vae, latent, tmp_path):
    other = {"vae": str(vae)} if latent else {}
    folder = train_denoiser(settings(data, tmp_path / "dit", **DIT, **other))
    pipeline = load_pipeline(guide(data, folder, tmp_path / "classifiers"))
    assert pipeline.unet is None
    assert (pipeline.vae is None) is not latent
    assert pipeline.scheduler.config.clip_sample is not latent  # latents have no range
    assert pipeline.image_size == (16, 16)
    images = pipeline(3, target={"position": 0.5}, calibration=None).images
    assert {image.size for image in images} == {(16, 16)}


def test_a_network_that_is_told_classes_becomes_a_slider_by_itself(data, tmp_path):
    flags = f"--train_data_dir {data} --output_dir {tmp_path / 'out'} --architecture dit --class_conditional"
    size = "--resolution 16 --num_layers 1 --num_attention_heads 2 --attention_head_dim 8 --patch_size 4"
    rest = "--max_train_steps 2 --train_batch_size 4 --ddpm_num_steps 20 --num_inference_steps 2"
    dropped = "--label_dropout 0.2 --guidance_scale 0.3"
    run = launch("train_unet.py", *f"{flags} {size} {rest} {dropped}".split())
    assert run.returncode == 0, run.stderr
    pipeline = load_pipeline(tmp_path / "out" / "pipeline")
    assert type(pipeline).__name__ == "MultiGuidanceCFGPipeline"
    assert pipeline.attributes == {"position": ["left", "right"]}
    assert pipeline.resolve_call()["guidance_scale"] == 0.3
    assert len(pipeline(2, target="uniform", calibration=None).images) == 2
    assert "MultiGuidanceCFGPipeline" in (tmp_path / "out" / "pipeline" / "README.md").read_text()
    # And with classifiers as any other: without a class it knows the whole range.
    guided = load_pipeline(guide(data, tmp_path / "out" / "pipeline", tmp_path / "classifiers"))
    assert type(guided).__name__ == "MultiGuidanceDDPMPipeline"
    assert guided.resolve_call()["num_inference_steps"] == 2
    assert len(guided(2, target="uniform", calibration=None).images) == 2


def test_labels_are_dropped_by_the_loop(data, tmp_path, monkeypatch):
    """Each image for the whole network at once, about as often as was said; and the network sees no other label."""
    seen = []
    original = torch.where

    def where(mask, label, labels):
        if isinstance(label, int):
            seen.append((mask, labels))
        return original(mask, label, labels)

    monkeypatch.setattr(torch, "where", where)
    other = {"class_conditional": True, "label_dropout": 0.5, "train_batch_size": 50, "max_train_steps": 4}
    train_denoiser(settings(data, tmp_path, **{**UNET, **other}))
    dropped = torch.cat([mask for mask, _ in seen])
    assert 0.35 < dropped.float().mean() < 0.65
    assert set(torch.cat([labels for _, labels in seen]).tolist()) == {0, 1}


def test_latents_are_encoded_once_and_kept(data, vae, tmp_path, monkeypatch):
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    calls = []
    monkeypatch.setattr(inputs, "to_latents", lambda *given: calls.append(1) or to_latents(*given))
    given = {"vae": str(vae), "random_flip": True, **UNET}
    folder = train_denoiser(settings(data, tmp_path / "first", **given))
    assert len(calls) == 2  # 24 images, and mirrored
    train_denoiser(settings(data, tmp_path / "second", **given))
    assert len(calls) == 2
    train_denoiser(settings(data, tmp_path / "told", **given, class_conditional=True))
    torch.manual_seed(0)
    classifiers = {"random_flip": True, "train_data_dir": data, "pipeline": str(folder), **COMMON, **UNET}
    train_classifiers(ClassifierSettings(**classifiers, attributes=["position"], output_dir=tmp_path / "classifiers"))
    assert len(calls) == 2, "for other labels, and by the pipeline's own path to the vae"
    train_denoiser(settings(data, tmp_path / "third", **{**given, "random_flip": False}))
    assert len(calls) == 3

    pipeline = load_pipeline(folder)
    accelerator = create_accelerator(settings(data, tmp_path / "third"))
    source = load_from_disk(data)
    kept = inputs.with_inputs(accelerator, source, pipeline.vae, settings(data, tmp_path, **given), ["position"])
    images = to_tensors(source["image"][:], (16, 16), 1)
    torch.testing.assert_close(kept[:]["image"][:, 0], pipeline.encode(images), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(kept[:]["image"][:, 1], pipeline.encode(images.flip(-1)), atol=1e-5, rtol=1e-4)
    assert kept[:]["position"].tolist() == source["position"][:]
    batch = {"image": kept[:]["image"]}
    torch.manual_seed(0)
    taken = inputs.take_inputs(batch, pipeline.vae, settings(data, tmp_path, **given))
    ways = (taken[:, None] == batch["image"]).flatten(2).all(dim=2)
    assert ways.any(dim=1).all()
    assert ways.sum(dim=0).min() > 3


def test_the_bound_alone_teaches_the_mean():
    """`hybrid_loss` freezes it there."""
    pipeline = load_pipeline(Path(__file__).parents[2] / "pipelines" / "circles-32")
    diffusion = GaussianDiffusion.from_scheduler(pipeline.scheduler)
    torch.manual_seed(0)
    x_0, noise, index = torch.rand(3, 1, 4, 4), torch.randn(3, 1, 4, 4), torch.tensor([0, 5, 900])
    output = torch.randn(3, 2, 4, 4, requires_grad=True)
    bound, hybrid = diffusion.bound_loss(output, x_0, noise, index), diffusion.hybrid_loss(output, x_0, noise, index)
    torch.testing.assert_close(bound["loss"], len(diffusion) * hybrid["vlb"])
    torch.testing.assert_close(bound["mse"], hybrid["mse"])
    assert torch.autograd.grad(bound["vlb"].sum(), output, retain_graph=True)[0][:, :1].any()
    assert not torch.autograd.grad(hybrid["vlb"].sum(), output)[0][:, :1].any()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {**DIT, "layers_per_block": 2},
            "`--layers_per_block` is 2, which says nothing without `--architecture unet`",
        ),
        ({"num_layers": 3}, "`--num_layers` is 3, which says nothing without `--architecture dit`; expected both"),
        ({**DIT, "resolution": "16x32"}, "`--resolution` is 16x32; expected a square, as a dit takes no other"),
        ({**DIT, "resolution": "18"}, "`--resolution` is 18x18, which this network can't halve often enough"),
        ({**UNET, "vae": "nowhere"}, "`vae` is 'nowhere', which can't be loaded"),
        ({**UNET, "vae": "VAE", "patch_size": 2}, "`--patch_size` is 2 with a `--vae`; expected 1"),
        ({**UNET, "vae": "COLOUR"}, "`--resolution` is 16 with 1 channels; expected multiples of 2 with 3"),
        (
            {**UNET, "vae": "VAE", "resolution": "15"},
            "`--resolution` is 15x15, which .*; expected multiples of 4, such as",
        ),
        (
            {**DIT, "vae": "VAE", "patch_size": 3},
            "`--resolution` is 16x16, which .*; expected multiples of 6, such as",
        ),
        ({**DIT, "vae": "VAE", "resolution": "16x32"}, "`--resolution` is 16x32; expected a square, as a dit takes"),
        ({**UNET, "attribute": "position"}, "`--attribute` is 'position', which says nothing without `--class_cond"),
        (
            {**UNET, "class_conditional": True, "attribute": "hair"},
            "`--attribute` is 'hair'; expected a column of lab",
        ),
        ({**UNET, "class_conditional": True, "label_dropout": 1.0}, "`--label_dropout` is 1.0; expected a number"),
        (
            {**UNET, "ddpm_beta_schedule": "linear"},
            "`--ddpm_num_steps` is 20; expected more than 20, for betas below 1",
        ),
        ({**UNET, "loss_type": "vlb", "variance_type": "fixed_small"}, "`--loss_type` is 'vlb' with a fixed variance"),
    ],
)
def test_what_no_denoiser_can_be_trained_of(data, vae, other, message, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    torch.manual_seed(0)
    AutoencoderTiny(3, 3, (8, 8), (8, 8), num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1)).save_pretrained(
        tmp_path / "vae"
    )
    places = {"VAE": str(vae), "COLOUR": str(tmp_path)}  # the second, a folder with a subfolder `vae`
    other = {name: places.get(value, value) if isinstance(value, str) else value for name, value in other.items()}
    with pytest.raises(ValueError, match=message):
        train_denoiser(settings(data, tmp_path / "out", **other))
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("checkpoint-*"))


def test_the_label_is_named_where_there_are_several(tmp_path):
    circles(24, 16).save_to_disk(tmp_path / "data")
    wanted = r"`--attribute` is missing; expected a column of labels, of \['position', 'height', 'corner'\]"
    with pytest.raises(ValueError, match=wanted):
        train_denoiser(settings(tmp_path / "data", tmp_path / "out", **UNET, class_conditional=True))
    circles(4, 16).select_columns("image").save_to_disk(tmp_path / "bare")
    with pytest.raises(ValueError, match=r"`--attribute` is missing; expected a column of labels, of \['image'\]"):
        train_denoiser(settings(tmp_path / "bare", tmp_path / "out", **UNET, class_conditional=True))
