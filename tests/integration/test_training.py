"""Training of denoisers, classifiers and evaluators on tiny networks: called from Python, and launched by commands."""

import json
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from datasets import ClassLabel, load_from_disk
from diffusers import AutoencoderKL, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from helpers.launch import CPU, ROOT, kill_all, launch, launch_command
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

from diffusers_multiguidance.curation.extremes import select_by_factor
from diffusers_multiguidance.data.circles import circles
from diffusers_multiguidance.evaluation.evaluators import load_evaluator
from diffusers_multiguidance.evaluation.fidelity import class_probabilities, share_recognized
from diffusers_multiguidance.pipelines import MultiGuidanceDDPMPipeline
from diffusers_multiguidance.training import denoiser
from diffusers_multiguidance.training.classifier import ClassifierSettings, train_classifiers
from diffusers_multiguidance.training.denoiser import DenoiserSettings, train_denoiser
from diffusers_multiguidance.training.evaluator import EvaluatorSettings, train_evaluator
from diffusers_multiguidance.training.trainer import find_checkpoints

CIRCLES = ROOT / "pipelines" / "circles-32"
COMMON = {"resolution": 16, "train_batch_size": 4, "max_train_steps": 6, "learning_rate": 1e-3}
SMALL = {"norm_num_groups": 4, "attention_head_dim": 8, "layers_per_block": 1, "block_out_channels": [8, 8]}
DENOISER = {
    **COMMON,
    **SMALL,
    "attention_resolutions": [8],
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 2,
    "ddpm_num_steps": 50,
    "num_inference_steps": 2,
    "checkpointing_steps": 2,
    "save_images_steps": 3,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Extremes of 200 circles, with a second attribute, and their position as if an evaluator had told it."""
    folder = tmp_path_factory.mktemp("extremes") / "data"
    source = circles(200, 16)
    dataset = source.select(np.flatnonzero(select_by_factor(source, "position").kept))
    dataset = dataset.add_column("value_position", dataset["factor_position"])
    parity = ClassLabel(names=["even", "odd"])
    dataset.add_column("parity", np.arange(len(dataset)) % 2, feature=parity).save_to_disk(folder)
    return folder


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    """What train_denoiser leaves."""
    folder = tmp_path_factory.mktemp("denoiser")
    assert train_denoiser(DenoiserSettings(output_dir=folder, train_data_dir=data, **DENOISER)) == folder / "pipeline"
    return folder


def classifier_settings(data: Path, pipeline: Path | str, output_dir: Path, **other) -> ClassifierSettings:
    start = {**COMMON, **SMALL, "train_data_dir": data, "pipeline": str(pipeline), "attributes": ["position"]}
    return ClassifierSettings(**{**start, "output_dir": output_dir, **other})


def load(folder: Path) -> MultiGuidanceDDPMPipeline:
    pipeline = MultiGuidanceDDPMPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "diffusion_pytorch_model.safetensors")


def assert_same_weights(found: Path, expected: Path) -> None:
    theirs = weights(expected)
    for name, value in weights(found).items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=1e-7, msg=name)


def test_a_denoiser_leaves_checkpoints_samples_and_a_pipeline(trained):
    assert [path.name for path in find_checkpoints(trained)] == ["checkpoint-4", "checkpoint-6"]
    samples = sorted(path.name for path in (trained / "samples").iterdir())
    assert samples == ["step-000003.png", "step-000006.png"]
    record = json.loads((trained / "pipeline" / "unet" / "training.json").read_text())
    assert record["max_train_steps"] == 6
    assert record["flags"]["learning_rate"] == 1e-3
    assert record["seconds"] > 0
    pipeline = load(trained / "pipeline")
    assert pipeline.config["sampling_defaults"] == {"ddpm": {"num_inference_steps": 2}}
    assert len(pipeline(2).images) == 2


def test_classifiers_complete_the_pipeline(data, trained, tmp_path, capfd):
    settings = classifier_settings(data, trained / "pipeline", tmp_path / "out", num_classifiers=2)
    folder = train_classifiers(settings)
    pipeline = load(folder)
    assert pipeline.attributes == {"position": ["left", "right"]}
    assert len(pipeline.classifiers.members) == 2
    defaults = {"num_inference_steps": 2, "guidance_scale": 60.0, "guidance_interval": [0.0, 1.0]}
    assert pipeline.config["sampling_defaults"] == {"ddpm": defaults}
    assert len(pipeline(3, target={"position": 0.5}).images) == 3
    first, second = (weights(tmp_path / "out" / f"member-{number}") for number in (0, 1))
    assert not torch.equal(first["conv_in.weight"], second["conv_in.weight"])
    card = ModelCard.load(folder / "README.md")
    assert "diffusers-multiguidance" in card.data.tags
    assert "training/train_classifier.py --output_dir" in card.text

    # Members that are done are not trained again.
    with pytest.raises(ValueError, match="holds member-0 of an earlier run; expected another folder"):
        train_classifiers(settings)
    capfd.readouterr()
    train_classifiers(replace(settings, resume_from_checkpoint="latest"))
    assert "classifier 1/2" not in capfd.readouterr().err

    # Classifiers of another attribute join them, and those of the same one are replaced.
    other = classifier_settings(data, folder, tmp_path / "joined", attributes=["parity"])
    joined = load(train_classifiers(other))
    assert [list(member.attributes) for member in joined.classifiers.members] == [["position"]] * 2 + [["parity"]]
    replaced = load(train_classifiers(classifier_settings(data, folder, tmp_path / "replaced")))
    assert [list(member.attributes) for member in replaced.classifiers.members] == [["position"]]


def test_a_classifier_learns_pseudo_labels_for_another_scheduler(data, trained, tmp_path):
    tuned = {"scheduler": "sde-dpmsolver++", "num_inference_steps": 7, "guidance_scale": 5.0}
    settings = classifier_settings(data, trained / "pipeline", tmp_path, pseudo_labels=True, **tuned)
    pipeline = load(train_classifiers(settings))
    record = json.loads((tmp_path / "member-0" / "training.json").read_text())
    assert record["flags"]["pseudo_labels"] is True
    assert pipeline.scheduler.config.algorithm_type == "sde-dpmsolver++"
    assert pipeline.config["sampling_defaults"] == {
        "ddpm": {"num_inference_steps": 2},
        "sde-dpmsolver++": {"num_inference_steps": 7, "guidance_scale": 5.0, "guidance_interval": [0.0, 1.0]},
    }


@pytest.fixture(scope="module")
def shades(tmp_path_factory) -> Path:
    """A folder of dark and light images in colour."""
    folder = tmp_path_factory.mktemp("shades")
    for name, colour in (("dark", (20, 10, 0)), ("light", (230, 240, 250))):
        (folder / name).mkdir()
        for number in range(4):
            Image.new("RGB", (20 + number, 16), colour).save(folder / name / f"{number}.png")
    return folder


def colour_unet(size: int, channels: int) -> UNet2DModel:
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    return UNet2DModel(size, channels, channels, block_out_channels=(8, 8), norm_num_groups=4, **blocks)


def test_a_stock_pipeline_gets_classifiers(shades, tmp_path):
    """Any DDPM on the Hub, with its own spacing and a variance that it did not learn."""
    DDPMPipeline(colour_unet(16, 3), DDPMScheduler(50)).save_pretrained(tmp_path / "stock")
    settings = classifier_settings(shades, tmp_path / "stock", tmp_path / "out", attributes=["label"])
    pipeline = load(train_classifiers(settings))
    assert pipeline.attributes == {"label": ["dark", "light"]}
    assert isinstance(pipeline.scheduler, DDPMScheduler)
    assert len(pipeline(2, target={"label": 0.5}, num_inference_steps=2).images) == 2


def test_classifiers_of_a_latent_pipeline_look_at_latents(shades, tmp_path):
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = AutoencoderKL(block_out_channels=(4, 4), norm_num_groups=4, latent_channels=4, **blocks)
    parts = {"unet": colour_unet(8, 4), "transformer": None, "classifiers": None, "scheduler": DDIMScheduler(50)}
    MultiGuidanceDDPMPipeline(vae=vae, **parts).save_pretrained(tmp_path / "latent")
    settings = classifier_settings(shades, tmp_path / "latent", tmp_path / "out", attributes=["label"])
    pipeline = load(train_classifiers(settings))
    assert (
        pipeline.classifiers.members[0].config.sample_size,
        pipeline.classifiers.members[0].config.in_channels,
    ) == (8, 4)
    images = pipeline(2, target={"label": 0.5}, num_inference_steps=2).images
    assert images[0].size == (16, 16)
    with pytest.raises(
        ValueError, match="`--resolution` is 8 with 3 channels; expected those of the pipeline, 16x16 with 3"
    ):
        train_classifiers(replace(settings, resolution=8, output_dir=tmp_path / "other"))


def test_one_network_learns_what_a_set_says(tmp_path):
    source = circles(200, 32)
    extremes = source.select(np.flatnonzero(select_by_factor(source, "position").kept))
    extremes.save_to_disk(tmp_path / "data")
    teach = {"teacher": str(CIRCLES), "max_train_steps": 60, "train_batch_size": 16, "learning_rate": 3e-3}
    settings = classifier_settings(
        tmp_path / "data",
        CIRCLES,
        tmp_path / "out",
        resolution=32,
        attention_resolutions=[],
        lr_warmup_steps=5,
        **teach,
    )
    pupil, teacher = (load(path).classifiers for path in (train_classifiers(settings), CIRCLES))
    x_0 = torch.from_numpy(np.stack([np.asarray(image) for image in extremes["image"]]))
    x_0 = x_0[:, None].float() / 127.5 - 1
    taught, learnt = (one(x_0, 0).logits["position"].log_softmax(dim=1) for one in (teacher, pupil))
    odds = torch.stack([values[:, 1] - values[:, 0] for values in (taught, learnt)]).detach()
    assert float(torch.corrcoef(odds)[0, 1]) > 0.8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_data_dir": "nowhere"}, "`--train_data_dir` is 'nowhere'; expected"),
        (
            {"attributes": ["size"]},
            r"`--attributes` is 'size'; expected a column of labels, of \['position'",
        ),
        (
            {"attributes": ["parity"], "pseudo_labels": True},
            "`--pseudo_labels` finds no numbers in 'value_parity'; expected",
        ),
        ({"pipeline": "no/where/at/all"}, "`pretrained_model_name_or_path` 'no/where/at/all'"),
        ({"resolution": 32}, "`--resolution` is 32 with 1 channels; expected"),
        ({"teacher": str(ROOT / "pipelines" / "digits")}, "`--teacher` .* knows {'thickness'.*; expected"),
        ({"push_to_hub": True}, "`token` is missing; expected"),
    ],
)
def test_classifiers_that_can_not_be_trained_leave_nothing(changes, message, data, trained, tmp_path, monkeypatch):
    monkeypatch.setattr("diffusers_multiguidance.hub.publish.get_token", lambda: None)
    settings = classifier_settings(data, trained / "pipeline", tmp_path / "out")
    with pytest.raises(ValueError, match=message):
        train_classifiers(replace(settings, **changes))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_data_dir": None}, "`--dataset_name` and `--train_data_dir`: expected exactly one"),
        ({"resume_from_checkpoint": "nowhere"}, "`--resume_from_checkpoint` is 'nowhere'; expected"),
        ({"attention_head_dim": 64}, "`block_out_channels` has 8; expected"),
    ],
)
def test_denoisers_that_can_not_be_trained_leave_nothing(changes, message, data, tmp_path):
    settings = DenoiserSettings(output_dir=tmp_path / "out", train_data_dir=data, **DENOISER)
    with pytest.raises(ValueError, match=message):
        train_denoiser(replace(settings, **changes))
    assert not (tmp_path / "out").exists()


def test_an_evaluator_learns_classes(data, tmp_path):
    start = {**COMMON, "resolution": 32, "train_batch_size": 16, "max_train_steps": 8, "use_ema": False}
    settings = EvaluatorSettings(
        train_data_dir=data, output_dir=tmp_path, attribute="position", model="test_resnet", num_members=2, **start
    )
    folder = train_evaluator(settings)
    record = json.loads((folder / "training.json").read_text())
    assert 0 <= record["held_out_accuracy"] <= 1
    assert record["held_out_disagreement"] > 0
    assert -1 <= record["held_out_disagreement_error_rank_correlation"] <= 1
    images = np.random.default_rng(0).integers(0, 255, (5, 32, 32, 1)).astype(np.uint8)
    probabilities = class_probabilities(folder, images)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert share_recognized(probabilities, 0.0) == 1
    with pytest.raises(ValueError, match="`--attribute` is 'size'; expected"):
        train_evaluator(replace(settings, attribute="size"))


def test_an_evaluator_learns_numbers(data, tmp_path):
    start = {**COMMON, "train_batch_size": 16, "max_train_steps": 60, "learning_rate": 3e-3, "use_ema": False}
    column = {"attribute": "factor_position", "eval_share": 0.3, "model": "test_resnet"}
    folder = train_evaluator(EvaluatorSettings(train_data_dir=data, output_dir=tmp_path, **column, **start))
    record = json.loads((folder / "training.json").read_text())
    dataset = load_from_disk(data)
    assert record["held_out_mean_absolute_error"] < 0.35, "guessing 0.5 is wrong by 0.4"
    evaluator = load_evaluator(folder)
    images = np.stack([np.array(image)[..., None] for image in dataset["image"]])
    assert np.corrcoef(evaluator(images), dataset["factor_position"])[0, 1] > 0.5
    with pytest.raises(ValueError, match=r"`images` have shape .*; expected \(N, 16, 16, 1\)"):
        evaluator(images[:, :8])


def test_resumed_is_as_never_stopped(data, tmp_path, monkeypatch):
    """Under gradient accumulation; the schedule counts optimizer steps."""
    whole = DenoiserSettings(
        output_dir=tmp_path / "whole", train_data_dir=data, gradient_accumulation_steps=2, **DENOISER
    )
    parts = replace(whole, output_dir=tmp_path / "parts")
    train_denoiser(whole)

    def stop(images: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(denoiser, "image_grid", stop)  # which is at step 3
        with pytest.raises(KeyboardInterrupt):
            train_denoiser(parts)
    assert not (parts.output_dir / "pipeline").exists()
    with pytest.raises(ValueError, match="holds checkpoint-2 of an earlier run; expected another folder"):
        train_denoiser(parts)
    train_denoiser(replace(parts, resume_from_checkpoint="latest"))
    # Cosine from 1e-3 over steps 2 to 6: at step 4 half of it is left, however many batches make a step.
    state = torch.load(whole.output_dir / "checkpoint-4" / "custom_checkpoint_1.pkl", weights_only=False)
    assert state["_last_lr"] == [pytest.approx(5e-4)]
    assert_same_weights(parts.output_dir / "pipeline" / "unet", whole.output_dir / "pipeline" / "unet")


def test_two_processes_that_were_killed_go_on(data, tmp_path):
    """As users launch it, from a recipe; in half precision, with a tracker."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"train_unet": {**DENOISER, "train_data_dir": str(data)}}))
    flags = ["--recipe", recipe, "--gradient_accumulation_steps", 2, "--mixed_precision", "bf16", "--output_dir"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    result = launch("train_unet.py", *flags, whole, "--report_to", "tensorboard", processes=2)
    assert result.returncode == 0, result.stderr
    assert "6/6" in result.stderr, "a progress bar runs all along"
    record = json.loads((whole / "pipeline" / "unet" / "training.json").read_text())
    assert record["images_per_step"] == 16
    assert list((whole / "logs").rglob("events.out.tfevents*"))
    state = torch.load(whole / "checkpoint-4" / "custom_checkpoint_1.pkl", weights_only=False)
    assert state["_last_lr"] == [pytest.approx(5e-4)], "the schedule counts steps, not processes"

    command = launch_command("train_unet.py", *flags, parts, processes=2)
    interrupted = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, env=CPU)
    while not (parts / "checkpoint-2").exists():
        assert interrupted.poll() is None
        time.sleep(0.02)
    kill_all(interrupted)
    assert not (parts / "pipeline").exists()
    result = launch("train_unet.py", *flags, parts, "--resume_from_checkpoint", "latest", processes=2)
    assert result.returncode == 0, result.stderr
    assert_same_weights(parts / "pipeline" / "unet", whole / "pipeline" / "unet")
