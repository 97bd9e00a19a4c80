"""Real runs of the training scripts through `accelerate launch`, on tiny networks."""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from datasets import ClassLabel, load_from_disk
from hub_server import metadata_errors
from huggingface_hub import ModelCard
from launch import CPU, ROOT, kill_all, launch, launch_command
from PIL import Image
from safetensors.torch import load_file

from diffusers_multiguidance.evaluation.fidelity import class_probabilities, evaluator_logits, share_recognized
from diffusers_multiguidance.models.evaluator import ImageClassifier
from diffusers_multiguidance.pipelines import MultiGuidanceDDPMPipeline
from diffusers_multiguidance.training.recipe import parse_arguments
from diffusers_multiguidance.utils.seeds import stream_seed
from diffusers_multiguidance.training.trainer import (
    RunSampler,
    find_checkpoints,
    image_channels,
    load_training_set,
    random_flip,
    with_tensors,
)

SMALL = {"norm_num_groups": 4, "attention_head_dim": 8, "layers_per_block": 1, "block_out_channels": [8, 8]}
COMMON = {"resolution": 16, "train_batch_size": 4, "max_train_steps": 6, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """A recipe whose data set is built and whose outputs go to one temporary folder."""
    folder = tmp_path_factory.mktemp("run")
    sections = {
        "build_dataset": {
            "dataset": "circles",
            "num_images": 200,
            "resolution": 16,
            "attribute": ["position"],
            "extremes": True,
            "output_dir": str(folder / "data"),
        },
        "train_unet": {
            **COMMON,
            **SMALL,
            "train_data_dir": str(folder / "data"),
            "output_dir": str(folder / "unet"),
            "attention_resolutions": [8],
            "lr_scheduler": "cosine",
            "lr_warmup_steps": 2,
            "ddpm_num_steps": 50,
            "ddpm_num_inference_steps": 2,
            "checkpointing_steps": 2,
            "save_images_steps": 3,
        },
        "train_classifier": {
            **COMMON,
            **SMALL,
            "train_data_dir": str(folder / "data"),
            "pipeline": str(folder / "unet" / "pipeline"),
            "output_dir": str(folder / "classifiers"),
            "attributes": ["position"],
            "num_classifiers": 2,
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(sections))
    command = [sys.executable, str(ROOT / "training" / "build_dataset.py"), "--recipe", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    return path


def test_random_flip_mirrors_half_of_the_images():
    images = torch.randn(200, 1, 2, 3)
    flipped = random_flip(images)
    mirrored = (flipped == images.flip(-1)).all(dim=(1, 2, 3))
    assert torch.equal(flipped[~mirrored], images[~mirrored])
    assert 50 < mirrored.sum() < 150


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "diffusion_pytorch_model.safetensors")


def test_from_data_set_to_guided_pipeline(recipe):
    folder = recipe.parent
    dataset = load_from_disk(folder / "data")
    assert {"image", "position", "factor_position", "source_index"} <= set(dataset.column_names)
    assert json.loads((folder / "data" / "provenance.json").read_text())["source"]["num_images"] == 200

    result = launch("train_unet.py", "--recipe", recipe)
    assert result.returncode == 0, result.stderr
    assert "6/6" in result.stderr, "a progress bar runs all along"
    assert [path.name for path in find_checkpoints(folder / "unet")] == ["checkpoint-4", "checkpoint-6"]
    assert sorted(path.name for path in (folder / "unet" / "samples").iterdir()) == [
        "step-000003.png",
        "step-000006.png",
    ]
    record = json.loads((folder / "unet" / "pipeline" / "unet" / "training.json").read_text())
    assert record["max_train_steps"] == 6
    assert record["flags"]["learning_rate"] == 1e-3
    assert record["seconds"] > 0

    result = launch("train_classifier.py", "--recipe", recipe)
    assert result.returncode == 0, result.stderr
    pipeline = MultiGuidanceDDPMPipeline.from_pretrained(folder / "classifiers" / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.attributes == {"position": ["left", "right"]}
    assert len(pipeline.classifiers.members) == 2
    assert len(pipeline(3, target={"position": 0.5}).images) == 3
    first, second = (weights(folder / "classifiers" / f"member-{number}") for number in (0, 1))
    assert not torch.equal(first["conv_in.weight"], second["conv_in.weight"])
    card = ModelCard.load(folder / "classifiers" / "pipeline" / "README.md")
    assert metadata_errors(card.content) == []
    assert f"training/train_classifier.py --recipe {recipe}" in card.text

    # Members that are done are not trained again.
    result = launch("train_classifier.py", "--recipe", recipe, "--resume_from_checkpoint", "latest")
    assert result.returncode == 0, result.stderr
    assert "classifier 1/2" not in result.stderr

    # Classifiers of another attribute join them, and those of the same one are replaced.
    dataset = load_from_disk(folder / "data")
    labels = np.arange(len(dataset)) % 2
    dataset.add_column("parity", labels, feature=ClassLabel(names=["even", "odd"])).save_to_disk(folder / "parity")
    more = ["--recipe", recipe, "--pipeline", folder / "classifiers" / "pipeline", "--num_classifiers", 1]
    more += ["--train_data_dir", folder / "parity", "--output_dir", folder / "more", "--attributes"]
    assert launch("train_classifier.py", *more, "parity").returncode == 0
    joined = MultiGuidanceDDPMPipeline.from_pretrained(folder / "more" / "pipeline")
    assert [list(member.attributes) for member in joined.classifiers.members] == [["position"]] * 2 + [["parity"]]
    shutil.rmtree(folder / "more")
    assert launch("train_classifier.py", *more, "position").returncode == 0
    replaced = MultiGuidanceDDPMPipeline.from_pretrained(folder / "more" / "pipeline")
    assert [list(member.attributes) for member in replaced.classifiers.members] == [["position"]]


@pytest.mark.parametrize("processes", [1, 2])
def test_interrupted_and_resumed_is_as_never_stopped(recipe, processes, tmp_path):
    """Also under gradient accumulation and with two processes; the schedule counts optimizer steps."""
    flags = ["--recipe", recipe, "--gradient_accumulation_steps", 2, "--output_dir"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert launch("train_unet.py", *flags, whole, processes=processes).returncode == 0

    interrupted = subprocess.Popen(
        launch_command("train_unet.py", *flags, parts, processes=processes),
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
        env=CPU,
    )
    while not (parts / "checkpoint-2").exists():
        assert interrupted.poll() is None
        time.sleep(0.02)
    kill_all(interrupted)
    assert not (parts / "pipeline").exists()

    result = launch("train_unet.py", *flags, parts, processes=processes)
    assert result.returncode != 0
    assert "holds checkpoint" in result.stderr
    result = launch("train_unet.py", *flags, parts, "--resume_from_checkpoint", "latest", processes=processes)
    assert result.returncode == 0, result.stderr
    # Cosine from 1e-3 over steps 2 to 6: at step 4 half of it is left, however many batches and processes make a step.
    state = torch.load(whole / "checkpoint-4" / "custom_checkpoint_1.pkl", weights_only=False)
    assert state["_last_lr"] == [pytest.approx(5e-4)]
    expected, resumed = weights(whole / "pipeline" / "unet"), weights(parts / "pipeline" / "unet")
    for name, value in expected.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=1e-7, msg=name)


def test_two_processes_in_half_precision_with_a_tracker(recipe, tmp_path):
    flags = ["--mixed_precision", "bf16", "--report_to", "tensorboard", "--output_dir", tmp_path / "two"]
    result = launch("train_unet.py", "--recipe", recipe, *flags, processes=2)
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "two" / "pipeline" / "unet" / "training.json").read_text())
    assert record["images_per_step"] == 8
    assert list((tmp_path / "two" / "logs").rglob("events.out.tfevents*"))


def test_a_folder_of_images_is_a_training_set(tmp_path):
    for number, size in enumerate([(20, 30), (40, 16)]):
        Image.new("RGB", size, (255, 0, 0)).save(tmp_path / f"{number}.png")
    args = argparse.Namespace(dataset_name=None, train_data_dir=tmp_path)
    dataset = load_training_set(args)
    image = with_tensors(dataset, 16, [])[0]["image"]
    assert image.shape == (image_channels(dataset), 16, 16)
    assert image[0].min() == 1
    assert image[1].max() == -1


@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        ("train_unet.py", ["--learning_rate", -1], "`--learning_rate` is -1.0; expected"),
        ("train_unet.py", ["--train_batch_size", 0], "`--train_batch_size` is 0; expected"),
        ("train_unet.py", ["--train_data_dir", "nowhere"], "`--train_data_dir` is 'nowhere'; expected"),
        (
            "train_unet.py",
            ["--resume_from_checkpoint", "nowhere"],
            "`--resume_from_checkpoint` is 'nowhere'; expected",
        ),
        ("train_classifier.py", ["--attributes", "size"], "`--attributes` names 'size'; expected"),
        (
            "train_classifier.py",
            ["--pipeline", "no/where/at/all"],
            "`pretrained_model_name_or_path` 'no/where/at/all'",
        ),
        ("build_dataset.py", ["--delta", 0.9], "`delta` is 0.9; expected"),
        ("build_dataset.py", ["--dataset", "squares"], "invalid choice: 'squares'"),
        ("train_unet.py", ["--ddpm_num_inference_steps", 51], "`--ddpm_num_inference_steps` is 51; expected"),
        ("train_unet.py", ["--vlb_weight", "nan"], "`--vlb_weight` is nan; expected"),
        ("train_unet.py", ["--attention_head_dim", 64], "`block_out_channels` has 8; expected"),
        ("train_unet.py", ["--lr_scheduler", "fast"], "invalid choice: 'fast'"),
        ("train_classifier.py", ["--resolution", 32], "`--resolution` is 32 with 1 channels; expected"),
    ],
)
def test_wrong_flags_end_in_one_sentence(recipe, script, flags, message, tmp_path):
    command = [sys.executable, str(ROOT / "training" / script), "--recipe", str(recipe)]
    command += ["--output_dir", str(tmp_path / "out"), *map(str, flags)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def parse(recipe_text: str, tmp_path: Path, *argv: str):
    parser = argparse.ArgumentParser()
    parser.add_argument("--learning_rate", type=float, default=1.0)
    parser.add_argument("--widths", type=int, nargs="+", default=[1])
    parser.add_argument("--mode", choices=["one", "other"])
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_text)
    return parse_arguments(parser, "train", ["--recipe", str(path), *argv])


def test_recipe_sets_flags_and_flags_override(tmp_path):
    args = parse("train: {learning_rate: 1e-4, widths: [8, 16]}", tmp_path)
    assert (args.learning_rate, args.widths) == (1e-4, [8, 16])
    assert parse("train: {widths: [8, 16]}", tmp_path, "--widths", "4").widths == [4]
    assert parse("train: {learning_rate: 1e-4}", tmp_path, "--learning_rate", "0.5").learning_rate == 0.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("other: {}", "has no section 'train'; expected"),
        ("{", "expected valid YAML"),
    ],
)
def test_wrong_recipes(text, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        parse(text, tmp_path)


@pytest.mark.parametrize("text", ["train: {speed: 3}", "train: {learning_rate: fast}", "train: {mode: odd}"])
def test_recipes_are_checked_as_the_command_line_is(text, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse(text, tmp_path)
    assert "error: " in capsys.readouterr().err


def test_committed_recipes_set_only_known_flags():
    sys.path.insert(0, str(ROOT / "training"))
    recipes = sorted((ROOT / "training" / "recipes").glob("*.yaml"))
    assert {path.stem for path in recipes} >= {"circles", "digits", "paper_circles", "paper_celeba_smile"}
    for path in recipes:
        for section in yaml.safe_load(path.read_text()):
            parser = __import__(section).create_parser()
            parse_arguments(parser, section, ["--recipe", str(path)])


def test_sampler_goes_on_where_it_stopped_and_visits_every_image_once_an_epoch():
    whole = list(RunSampler(10, seed=1, start=0, stop=30))
    assert [sorted(whole[start : start + 10]) for start in (0, 10, 20)] == [list(range(10))] * 3
    assert whole[:10] != whole[10:20]
    assert list(RunSampler(10, seed=1, start=17, stop=30)) == whole[17:]


def test_seeds_give_different_streams():
    """torch's CPU generator takes 32 bits of a seed; the rest would be lost without a word."""

    def stream(seed: int, number: int) -> list[float]:
        return torch.rand(3, generator=torch.Generator().manual_seed(stream_seed(seed, number))).tolist()

    streams = [stream(seed, number) for seed in (0, 1, 2, 2**31) for number in (0, 1, 1000)]
    assert len({tuple(values) for values in streams}) == len(streams)


def test_building_over_other_files_is_refused(recipe, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    command = [sys.executable, str(ROOT / "training" / "build_dataset.py"), "--recipe", str(recipe)]
    result = subprocess.run([*command, "--output_dir", str(tmp_path)], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "`--output_dir`" in result.stderr
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_evaluator_learns_and_judges(recipe, tmp_path):
    flags = ["--train_data_dir", recipe.parent / "data", "--output_dir", tmp_path, "--attribute", "position"]
    flags += [
        "--resolution",
        32,
        "--train_batch_size",
        16,
        "--max_train_steps",
        8,
        "--no-use_ema",
        "--model",
        "test_resnet",
    ]
    result = launch("train_evaluator.py", *flags, "--model", "test_resnet")
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "evaluator" / "training.json").read_text())
    assert 0 <= record["held_out_accuracy"] <= 1
    images = np.random.default_rng(0).integers(0, 255, (5, 32, 32, 1)).astype(np.uint8)
    probabilities = class_probabilities(tmp_path / "evaluator", images)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert share_recognized(probabilities, 0.0) == 1


def test_evaluator_regresses_a_factor(recipe, tmp_path):
    flags = ["--train_data_dir", recipe.parent / "data", "--output_dir", tmp_path, "--attribute", "factor_position"]
    flags += ["--resolution", 16, "--train_batch_size", 16, "--max_train_steps", 60, "--learning_rate", 3e-3]
    result = launch("train_evaluator.py", *flags, "--no-use_ema", "--model", "test_resnet", "--eval_share", 0.3)
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "evaluator" / "training.json").read_text())
    dataset = load_from_disk(recipe.parent / "data")
    assert record["held_out_mean_absolute_error"] < 0.35, "guessing 0.5 is wrong by 0.4"
    evaluator = ImageClassifier.from_pretrained(tmp_path / "evaluator")
    images = np.stack([np.array(image)[..., None] for image in dataset["image"]])
    predicted = evaluator_logits(evaluator, images).sigmoid().squeeze(1).numpy()
    assert np.corrcoef(predicted, dataset["factor_position"])[0, 1] > 0.5
    with pytest.raises(ValueError, match=r"`images` have shape .*; expected \(N, 16, 16, 1\)"):
        evaluator_logits(evaluator, images[:, :8])
