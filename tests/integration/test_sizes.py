"""Images that are not square, and networks that see patches: from photographs to values of generated images."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny import generators
from PIL import Image

from diffusers_multiguidance import MultiGuidanceDDPMPipeline, MultiGuidanceEditPipeline
from diffusers_multiguidance.evaluation.evaluators import load_evaluator
from diffusers_multiguidance.training.classifier import ClassifierSettings, train_classifiers
from diffusers_multiguidance.training.denoiser import DenoiserSettings, train_denoiser
from diffusers_multiguidance.training.evaluator import EvaluatorSettings, train_evaluator

NETWORK = {"norm_num_groups": 4, "attention_head_dim": 8, "layers_per_block": 1, "block_out_channels": [8, 16]}
TRAIN = {"resolution": "8x16", "train_batch_size": 4, "max_train_steps": 2, "lr_warmup_steps": 0}
WITHOUT_PACKAGE = """
import sys
sys.modules["diffusers_multiguidance"] = None
import numpy as np, torch
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
generators = [torch.Generator().manual_seed(number) for number in range(2)]
np.save(sys.argv[2], pipeline(2, target={"label": 0.3}, generator=generators, output_type="np").images)
"""


@pytest.fixture(scope="module", params=[1, 2], ids=["pixels", "patches"])
def trained(request, tmp_path_factory) -> tuple[Path, Path]:
    """A folder of photographs of 24 x 48 pixels by side, and the pipeline that was trained on it at 8 x 16."""
    root = tmp_path_factory.mktemp("wide")
    for number in range(12):
        side = ("left", "right")[number % 2]
        (root / "photos" / side).mkdir(parents=True, exist_ok=True)
        image = Image.new("L", (48, 24))
        image.paste(255, (0, 0, 24, 24) if side == "left" else (24, 0, 48, 24))
        image.save(root / "photos" / side / f"{number}.png")
    start = {**TRAIN, "train_data_dir": root / "photos"}
    folder = train_denoiser(
        DenoiserSettings(
            output_dir=root / "unet",
            patch_size=request.param,
            attention_resolutions=[4],
            ddpm_num_steps=20,
            num_inference_steps=2,
            save_images_steps=2,
            **NETWORK,
            **start,
        )
    )
    folder = train_classifiers(
        ClassifierSettings(
            output_dir=root / "classifiers",
            pipeline=str(folder),
            attributes=["label"],
            **NETWORK,
            **start,
        )
    )
    return root, folder


def test_a_pipeline_of_its_size(trained):
    root, folder = trained
    with Image.open(root / "unet" / "samples" / "step-000002.png") as grid:
        assert grid.size == (16 * 33 + 1, 4 * 17 + 1)  # 64 images, magnified
    pipeline = MultiGuidanceDDPMPipeline.from_pretrained(folder)
    assert pipeline.image_size == (8, 16)
    assert {image.size for image in pipeline(3, target={"label": 0.5}).images} == {(16, 8)}


def test_patches_and_back(trained):
    pipeline = MultiGuidanceDDPMPipeline.from_pretrained(trained[1])
    images = torch.rand(2, 1, 8, 16) * 2 - 1
    encoded = pipeline.encode(images)
    assert encoded.shape == (2, pipeline.denoiser.config.in_channels, *pipeline.denoiser.config.sample_size)
    torch.testing.assert_close(pipeline.decode(encoded), images)
    size = pipeline.config["patch_size"]
    # A patch is a square of neighbours, not a stripe.
    torch.testing.assert_close(encoded[:, :, 0, 0].sort().values, images[:, 0, :size, :size].flatten(1).sort().values)


def test_the_same_without_the_package(trained, tmp_path):
    _, folder = trained
    command = [sys.executable, "-c", WITHOUT_PACKAGE, str(folder), str(tmp_path / "images.npy")]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    pipeline = MultiGuidanceDDPMPipeline.from_pretrained(folder)
    images = pipeline(2, target={"label": 0.3}, generator=generators(2), output_type="np").images
    np.testing.assert_allclose(np.load(tmp_path / "images.npy"), images, rtol=0, atol=1e-6)


def test_photographs_are_edited_at_its_size(trained):
    root, folder = trained
    pipeline = MultiGuidanceEditPipeline.from_pretrained(folder)
    photo = Image.open(root / "photos" / "left" / "0.png")  # three times as large
    (edited,) = pipeline(photo, target={"label": 0.5}, guidance_scale=10, num_inference_steps=4, strength=0.5).images
    assert (edited.size, edited.mode) == ((16, 8), "L")


def test_an_evaluator_of_its_size(trained, tmp_path):
    root, _ = trained
    start = {**TRAIN, "resolution": "32x64", "train_data_dir": root / "photos", "eval_share": 0.5}
    settings = EvaluatorSettings(output_dir=tmp_path, attribute="label", model="test_resnet", **start)
    evaluator = load_evaluator(train_evaluator(settings))
    assert evaluator(np.zeros((2, 32, 64, 1), np.uint8)).shape == (2,)
    with pytest.raises(ValueError, match=r"expected \(N, 32, 64, 1\)"):
        evaluator(np.zeros((2, 64, 32, 1), np.uint8))
