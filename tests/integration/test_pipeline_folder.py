"""A pipeline folder: written as it stands on the Hub, loaded with the package and without it, refused when broken."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, UNet2DModel
from helpers.tiny import cfg_pipeline, tiny_classifier, tiny_pipeline, with_parts
from safetensors.torch import load_file, save_file

from diffusers_multiguidance.generate import load_pipeline
from diffusers_multiguidance.hub.bundle import inline_source
from diffusers_multiguidance.models import NoisyClassifierSet
from diffusers_multiguidance.pipelines import MultiGuidanceDDPMPipeline

COMMITTED = sorted(path.parent for path in (Path(__file__).parents[2] / "pipelines").glob("*/model_index.json"))


class WatchedUNet(UNet2DModel):
    """Somebody's own."""


# Runs in a fresh process where the package can't be imported.
WITHOUT_PACKAGE = """
import sys
sys.modules["diffusers_multiguidance"] = None
import numpy as np, torch
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
pipeline.set_progress_bar_config(disable=True)
attribute = next(iter(pipeline.attributes))
generator = torch.Generator().manual_seed(0)
out = pipeline(2, target={attribute: 0.5}, num_inference_steps=5, generator=generator, output_type="np")
np.save(sys.argv[2], out.images)
pipeline.save_pretrained(sys.argv[3])
"""


def run_without_package(folder: Path, tmp_path: Path) -> tuple[np.ndarray, Path]:
    """Images generated in that process, and the folder that it saved the pipeline to."""
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    saved = tmp_path / "saved-again"
    command = [sys.executable, "-c", WITHOUT_PACKAGE, str(folder), str(tmp_path / "images.npy"), str(saved)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 0, result.stderr
    return np.load(tmp_path / "images.npy"), saved


def sample_with_package(folder: Path) -> np.ndarray:
    pipeline = load_pipeline(folder)
    pipeline.set_progress_bar_config(disable=True)
    attribute = next(iter(pipeline.attributes))
    generator = torch.Generator().manual_seed(0)
    return pipeline(2, target={attribute: 0.5}, num_inference_steps=5, generator=generator, output_type="np").images


@pytest.fixture
def folder(tmp_path) -> Path:
    tiny_pipeline().save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_layout(folder):
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {
        "model_index.json",
        "pipeline.py",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "scheduler/scheduler_config.json",
        "classifiers/noisy_classifier.py",
        "classifiers/config.json",
        "classifiers/diffusion_pytorch_model.safetensors",
    }
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline", "MultiGuidanceDDPMPipeline"]
    assert index["unet"] == ["diffusers", "UNet2DModel"]
    assert index["scheduler"] == ["diffusers", "DDPMScheduler"]
    assert index["classifiers"] == ["noisy_classifier", "NoisyClassifierSet"]
    for config in folder.rglob("*.json"):
        assert "_name_or_path" not in config.read_text()
    for code in folder.rglob("*.py"):
        assert not re.search(r"^\s*from \.", code.read_text(), re.MULTILINE), "a published file must stand alone"
        assert inline_source(code) == code.read_text(), "a published file publishes itself"


def test_loads_and_samples_the_same_both_ways(folder, tmp_path):
    pipeline = tiny_pipeline()
    generator = torch.Generator().manual_seed(0)
    expected = pipeline(
        2, target={"Smiling": 0.5}, num_inference_steps=5, generator=generator, output_type="np"
    ).images
    np.testing.assert_allclose(sample_with_package(folder), expected, rtol=0, atol=1e-6)
    images, saved_again = run_without_package(folder, tmp_path)
    np.testing.assert_allclose(images, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(sample_with_package(saved_again), expected, rtol=0, atol=1e-6)


def test_our_class_needs_no_trust_and_runs_no_code_of_the_folder(folder):
    for code in folder.rglob("*.py"):
        code.write_text("raise SystemExit('code of the folder was run')\n")
    loaded = MultiGuidanceDDPMPipeline.from_pretrained(folder)
    assert loaded.config["sampling_defaults"]["ddpm"]["num_inference_steps"] == 10
    assert loaded.attributes == {"Smiling": ["no", "yes"]}
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(folder)


def test_pipeline_without_classifiers(tmp_path):
    pipeline = tiny_pipeline()
    with_parts(unet=pipeline.unet, scheduler=pipeline.scheduler).save_pretrained(tmp_path / "unguided")
    loaded = MultiGuidanceDDPMPipeline.from_pretrained(tmp_path / "unguided")
    assert loaded.classifiers is None
    assert not (tmp_path / "unguided" / "classifiers").exists()


def test_what_was_put_in_later_is_saved(folder, tmp_path):
    """Classifiers into a stock pipeline, then other ones that are compiled."""
    parts = tiny_pipeline()
    pipeline = with_parts(unet=parts.unet, scheduler=parts.scheduler)
    pipeline.classifiers = parts.classifiers
    pipeline.save_pretrained(tmp_path / "plain")
    pipeline.unet = torch.compile(parts.unet, backend="aot_eager")
    pipeline.classifiers = torch.compile(parts.classifiers, backend="aot_eager")
    pipeline.save_pretrained(tmp_path / "compiled")
    for name in ("plain", "compiled"):
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                assert (tmp_path / name / path.relative_to(folder)).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize(
    ("parts", "options", "message"),
    [
        ({}, {"safe_serialization": False}, "`safe_serialization` is False or `use_flashpack` True; expected neither"),
        (
            {"scheduler": FlowMatchEulerDiscreteScheduler()},
            {},
            "`scheduler` is a FlowMatchEulerDiscreteScheduler that",
        ),
        ({"unet": None}, {}, "`unet` and `transformer`: neither given; expected"),
        ({"vae": AutoencoderKL()}, {}, "`vae` has latents of 4 channels; expected those of the denoiser, 1"),
        (
            {"unet": WatchedUNet(8, 1, 1, block_out_channels=(8, 8, 8, 8), norm_num_groups=4)},
            {},
            r"`unet` is a WatchedUNet; expected one of \['UNet2DModel'\]",
        ),
        (
            {"classifiers": NoisyClassifierSet.from_members([tiny_classifier(sample_size=16)])},
            {},
            "`classifiers` are for 16 pixels and 1 channels; expected",
        ),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(parts, options, message, tmp_path, pipeline):
    for name, part in parts.items():
        setattr(pipeline, name, part)
    with pytest.raises(ValueError, match=message):
        pipeline.save_pretrained(tmp_path / "saved", **options)
    assert not (tmp_path / "saved").exists()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def pickle_instead(path: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, path.with_suffix(".bin"))
    path.unlink()


def drop_a_tensor(path: Path) -> None:
    weights = load_file(path)
    weights.popitem()
    save_file(weights, path)


@pytest.mark.parametrize("component", ["unet", "classifiers"])
@pytest.mark.parametrize("damage", [Path.unlink, truncate, pickle_instead, drop_a_tensor])
def test_damaged_weights_are_refused(folder, component, damage):
    damage(folder / component / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ValueError, match=r"`pretrained_model_name_or_path` .* is no whole pipeline: ") as error:
        MultiGuidanceDDPMPipeline.from_pretrained(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("component", "named"),
    [
        ("unet", ["diffusers", "UNet3DConditionModel"]),
        ("unet", ["os", "system"]),
        ("classifiers", ["evil", "NoisyClassifierSet"]),
        ("scheduler", None),
    ],
)
def test_unknown_classes_are_refused(folder, component, named):
    index = json.loads((folder / "model_index.json").read_text())
    index[component] = named
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=f"`model_index.json` names .* as '{component}'; expected one of"):
        MultiGuidanceDDPMPipeline.from_pretrained(folder)


def test_missing_folder_and_broken_index(tmp_path, folder):
    with pytest.raises(ValueError, match="is no whole pipeline"):
        MultiGuidanceDDPMPipeline.from_pretrained(tmp_path / "nowhere")
    for text in ("{", "[]", "3"):
        (folder / "model_index.json").write_text(text)
        with pytest.raises(ValueError, match="is no whole pipeline"):
            MultiGuidanceDDPMPipeline.from_pretrained(folder)


def test_there_are_committed_pipelines():
    assert COMMITTED


@pytest.mark.parametrize("committed", COMMITTED, ids=lambda path: path.name)
def test_committed_pipelines_hold_no_code_and_sample(committed):
    tracked = subprocess.run(["git", "ls-files", committed], capture_output=True, text=True, check=True, cwd=committed)
    assert not [name for name in tracked.stdout.split() if name.endswith(".py")]
    assert not list(committed.glob("calibration.json"))
    pipeline = load_pipeline(committed)
    assert pipeline.resolve_call()["guidance_scale"] is not None, "tuned for its own scheduler"
    if pipeline.classifiers is not None:  # else it can't edit
        tuned = pipeline.config["sampling_defaults"]["edit"]
        assert {"guidance_scale", "num_inference_steps", "strength"} <= set(tuned)
    assert sample_with_package(committed).shape[:3] == (2, *pipeline.image_size)
    # Rendered faces have three classifiers of the smile and two evaluators; photographs an ensemble of three.
    limit = {"faces-rendered": 16_000_000, "smiles": 12_000_000, "leaves": 12_000_000}.get(committed.name, 10_000_000)
    assert sum(path.stat().st_size for path in committed.rglob("*") if path.is_file()) < limit
    assert (committed / "README.md").exists()


def test_a_committed_pipeline_saved_anew_loads_both_ways(tmp_path):
    """What `publish` uploads; with a scheduler that is not ours, and calibrated."""
    committed = next(path for path in COMMITTED if path.name == "circles-32-exact")
    MultiGuidanceDDPMPipeline.from_pretrained(committed).save_pretrained(tmp_path / "saved")
    images, _ = run_without_package(tmp_path / "saved", tmp_path)
    np.testing.assert_allclose(sample_with_package(committed), images, rtol=0, atol=1e-4)


def test_a_pipeline_without_classifiers_runs_without_package(tmp_path):
    cfg_pipeline("dit").save_pretrained(tmp_path / "cfg")
    images, saved = run_without_package(tmp_path / "cfg", tmp_path)
    for folder in (tmp_path / "cfg", saved):
        np.testing.assert_allclose(sample_with_package(folder), images, rtol=0, atol=1e-4)


def test_a_folder_of_the_former_version_says_so(folder):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "default_guidance_scale": 60.0}))
    with pytest.raises(ValueError, match=r"was written by diffusers-multiguidance 0\.1; expected a folder of 0\.2: "):
        MultiGuidanceDDPMPipeline.from_pretrained(folder)
