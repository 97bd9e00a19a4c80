"""Runs that are interrupted, resumed, or go wrong: what was there stays, and nothing is half-written."""

import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
import torch
from helpers.launch import ROOT
from helpers.planted import NAMES, plant
from helpers.tiny import tiny_pipeline
from hypothesis import Phase, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import TensorDataset

from diffusers_multiguidance import main
from diffusers_multiguidance.calibration import calibrate
from diffusers_multiguidance.curation.build import DatasetSettings, build_dataset
from diffusers_multiguidance.curation.pseudo_labels import GenerateSettings, generate_dataset
from diffusers_multiguidance.data.circles import circles
from diffusers_multiguidance.hub.card import unmeasured_facts, write_pipeline_card
from diffusers_multiguidance.training.classifier import ClassifierSettings, train_classifiers
from diffusers_multiguidance.training.denoiser import DenoiserSettings, train_denoiser
from diffusers_multiguidance.training.evaluator import EvaluatorSettings, train_evaluator
from diffusers_multiguidance.training.recipe import run_script
from diffusers_multiguidance.training.settings import Settings, TrainingSettings, flag
from diffusers_multiguidance.training.trainer import create_accelerator, find_checkpoints, train
from diffusers_multiguidance.utils.files import replace_folder


def run(folder: Path, change_loss=lambda call, loss, model: loss, max_train_steps=8, **settings) -> None:
    """Train a linear network; a checkpoint every two steps, of which the last two stay."""
    start = {"train_batch_size": 4, "checkpointing_steps": 2, "use_ema": False}
    settings = TrainingSettings(output_dir=folder, max_train_steps=max_train_steps, **{**start, **settings})
    calls = count(1)

    def compute_loss(model, batch):
        return {"loss": change_loss(next(calls), model(batch[0]).square().mean(), model)}

    images = TensorDataset(torch.linspace(-1, 1, 12 * 64).reshape(12, 64))
    torch.manual_seed(0)
    train(create_accelerator(settings), torch.nn.Linear(64, 64), images, compute_loss, settings, "line")


def checkpoints(folder: Path) -> list[str]:
    return [path.name for path in find_checkpoints(folder)]


def stop_at_second(call, loss, model):
    if call == 2:
        raise KeyboardInterrupt
    return loss


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("line")
    run(folder)
    assert checkpoints(folder) == ["checkpoint-6", "checkpoint-8"]
    return folder


@pytest.fixture
def out(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path / "out")


@pytest.mark.parametrize("limit", [1, 2])
def test_the_newest_checkpoint_is_the_one_written_last(out, limit):
    """Not that with the highest number, which is of a run that was given up."""
    other = {"checkpointing_steps": 1, "checkpoints_total_limit": limit}
    with pytest.raises(KeyboardInterrupt):
        run(out, stop_at_second, resume_from_checkpoint="checkpoint-6", **other)
    assert checkpoints(out) == ["checkpoint-8", "checkpoint-7"][-limit:]
    run(out, resume_from_checkpoint="latest", **other)
    assert checkpoints(out) == ["checkpoint-7", "checkpoint-8"][-limit:]
    with pytest.raises(ValueError, match="holds checkpoint-8 of an earlier run"):
        run(out)


def test_steps_that_are_past_already_are_refused(out):
    with pytest.raises(ValueError, match=r"`--max_train_steps` is 7; expected at least 8, the step of .*checkpoint-8"):
        run(out, max_train_steps=7, resume_from_checkpoint="latest")
    assert checkpoints(out) == ["checkpoint-6", "checkpoint-8"]


def test_training_removes_nothing_but_its_own_checkpoints(out):
    shutil.copytree(out / "checkpoint-6", out / "checkpoint-6-best")
    (out / "checkpoint-8.tmp").mkdir()
    (out / "pipeline.old").write_text("mine")
    (out / "checkpoint-6" / "notes.txt").write_text("mine")
    (out / "checkpoint-12").mkdir()
    (out / "checkpoint-12" / "notes.txt").write_text("mine")
    run(out, max_train_steps=12, resume_from_checkpoint="latest")
    assert checkpoints(out) == ["checkpoint-10", "checkpoint-12"]
    assert [path.name for path in (out / "checkpoint-6").iterdir()] == ["notes.txt"]
    assert (out / "checkpoint-12" / "notes.txt").exists()
    assert {path.name for path in out.iterdir()} == {
        *("checkpoint-6", "checkpoint-6-best", "checkpoint-8.tmp", "checkpoint-10", "checkpoint-12", "pipeline.old")
    }


def test_a_strangers_checkpoint_in_the_way_is_refused_at_the_start(out):
    for note in ("order.txt", ".written.json"):
        (out / "checkpoint-8" / note).unlink()
    with pytest.raises(ValueError, match="holds checkpoint-8, which no training here wrote; expected"):
        run(out, resume_from_checkpoint="checkpoint-6")
    run(out, max_train_steps=10, resume_from_checkpoint="checkpoint-8")
    assert checkpoints(out)[-1] == "checkpoint-10"
    assert (out / "checkpoint-8").exists()


def bad_loss(call, loss, model):
    return loss * float("nan") if call == 5 else loss


def bad_gradient(call, loss, model):
    return loss + (0 * model.weight).abs().sum().sqrt() if call == 6 else loss


@pytest.mark.parametrize("change_loss", [bad_loss, bad_gradient])
def test_what_is_not_finite_ends_the_run_and_is_not_saved(change_loss, tmp_path):
    message = r"The loss is not finite at step 6; expected numbers \(last good checkpoint: .*/checkpoint-4\)"
    with pytest.raises(ValueError, match=message):
        run(tmp_path, change_loss)
    assert checkpoints(tmp_path) == ["checkpoint-2", "checkpoint-4"]
    run(tmp_path, resume_from_checkpoint="latest")
    assert checkpoints(tmp_path) == ["checkpoint-6", "checkpoint-8"]


def test_a_full_disk_ends_in_one_sentence_and_leaves_the_checkpoints(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(call, loss, model):
        if call == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        return loss

    try:
        with pytest.raises(ValueError, match=r"`--output_dir` has no room for .*/checkpoint-4 \(.*\); expected some"):
            run(tmp_path, fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]
    run(tmp_path, resume_from_checkpoint="latest")


def test_a_build_touches_nothing_beside_it(tmp_path):
    settings = DatasetSettings(
        output_dir=tmp_path / "keep",
        dataset="circles",
        num_images=20,
        resolution=16,
        extremes=True,
        attribute=["position"],
    )
    names = [f"keep.{ending}/file" for ending in ("old", "tmp", "work")]
    for name in names:
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("mine")
    build_dataset(settings)
    (tmp_path / "keep" / "notes.txt").write_text("mine")
    build_dataset(settings)
    assert all((tmp_path / name).read_text() == "mine" for name in [*names, "keep/notes.txt"])
    assert {path.name for path in tmp_path.iterdir()} == {"keep", "keep.old", "keep.tmp", "keep.work"}

    (tmp_path / ".keep.work").mkdir()
    (tmp_path / ".keep.work" / "file").touch()
    with pytest.raises(ValueError, match=r"needs .*\.keep\.work, which no build wrote; expected"):
        build_dataset(settings)
    assert (tmp_path / ".keep.work" / "file").exists()


TRAIN = {
    "resolution": 16,
    "train_batch_size": 4,
    "checkpointing_steps": 2,
    "checkpoints_total_limit": 1,
    "resume_from_checkpoint": "latest",
}
NETWORK = {"block_out_channels": [8, 8], "attention_resolutions": [], "layers_per_block": 1}
NETWORK |= {"norm_num_groups": 4, "attention_head_dim": 8}
FILTER = {"labeler_resolution": 16, "train_batch_size": 8, "learning_rate": 1e-2, "lr_warmup_steps": 0}
FILTER |= {"max_train_steps": 4, "ensemble_size": 2, "tau_1": 0.5, "tau_2": 0.5}


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """What the programs below start from."""
    folder = tmp_path_factory.mktemp("start")
    circles(24, 16).save_to_disk(folder / "data")
    for number in range(24):  # dark and bright, which is learnt in no time
        path = folder / "pictures" / ("dark", "bright")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (16, 16), 50 + number + 120 * (number % 2)).save(path)
    run_denoiser(folder, folder / "unet", 1)
    run_classifiers(folder, folder / "guided", 1)
    return folder


def run_denoiser(start: Path, out: Path, number: int) -> None:
    steps = {"max_train_steps": 2 * number, "save_images_steps": 2, "num_inference_steps": 1, "ddpm_num_steps": 10}
    train_denoiser(
        DenoiserSettings(output_dir=out, train_data_dir=start / "data", patch_size=2, **TRAIN, **NETWORK, **steps)
    )


def run_classifiers(start: Path, out: Path, number: int) -> None:
    for member in list(out.glob("member-0/config.json")) if number == 2 else []:
        member.unlink()  # so that it is trained again
    given = {"pipeline": str(start / "unet" / "pipeline"), "attributes": ["position"], "max_train_steps": 2}
    train_classifiers(ClassifierSettings(output_dir=out, train_data_dir=start / "data", **TRAIN, **NETWORK, **given))


def run_evaluator(start: Path, out: Path, number: int) -> None:
    given = {"train_data_dir": start / "data", "attribute": "position", "model": "test_resnet"}
    train_evaluator(EvaluatorSettings(output_dir=out, max_train_steps=2 * number, **TRAIN, **given))


def run_build(start: Path, out: Path, number: int) -> None:
    given = {"dataset": "images", "train_data_dir": start / "pictures", "label_column": "label", "resolution": 16}
    build_dataset(DatasetSettings(output_dir=out, extremes=True, **given, **FILTER))


def run_generate(start: Path, out: Path, number: int) -> None:
    given = {"pipeline": str(start / "guided" / "pipeline"), "attributes": ["position"], "evaluators": ["neighbours"]}
    generate_dataset(
        GenerateSettings(output_dir=out, extremes=start / "data", num_images=30, num_inference_steps=2, **given)
    )


def run_commands(start: Path, out: Path, number: int) -> None:
    """`sample`, and `evaluate` of other samples, into one folder."""
    other = out.with_name("other")
    samples = ["sample", start / "guided" / "pipeline", "--num-images", 4, "--num-inference-steps", 2, "--out"]
    report = ["evaluate", other, "--attribute", "position", "--evaluator", "circle-position", "--out"]
    for words in ([*samples, out], [*samples, other], [*report, out]):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["multiguidance", *map(str, words)])
            main()


def run_calibrate(start: Path, out: Path, number: int) -> None:
    """And a card, into the folder of a pipeline."""
    if number == 1:
        shutil.copytree(ROOT / "pipelines" / "circles-32-exact", out, dirs_exist_ok=True)
    call = {"scheduler": "unipc", "num_inference_steps": 6, "guidance_scale": 500.0}
    calibrate(out, "position", num_target_probabilities=3, num_images=2, **call)
    write_pipeline_card(out, unmeasured_facts("circles", ["position"]), "here")


@pytest.mark.parametrize(
    "program",
    [run_denoiser, run_classifiers, run_evaluator, run_build, run_generate, run_commands, run_calibrate],
)
@examples(max_examples=2, deadline=None, derandomize=True, phases=[Phase.generate])
@given(names=st.sets(NAMES, min_size=20, max_size=30))
def test_no_file_of_a_user_is_lost(program, start, names):
    """Beside the output, and in the second run also in every folder of it."""
    with tempfile.TemporaryDirectory() as home:
        out = Path(home) / "keep"
        planted = plant(out.parent, names)
        for number in (1, 2):
            program(start, out, number)
            for path, content in planted.items():
                assert path.read_bytes() == content
            if number == 1:
                for folder in [out, *(path for path in out.rglob("*") if path.is_dir())]:
                    planted |= plant(folder, names)


def test_a_users_folder_by_the_name_of_ours_is_refused_at_the_start(out):
    """The one name that all processes of a training have to know."""
    planted = plant(out, {".checkpoint/a/file"})
    with pytest.raises(ValueError, match=r"`--output_dir` has .*/\.checkpoint, which no training wrote; expected"):
        run(out, max_train_steps=10, resume_from_checkpoint="latest")
    assert all(path.read_bytes() == content for path, content in planted.items())
    (out / ".checkpoint" / "order.txt").write_text("3")  # now it is what a killed run left
    run(out, max_train_steps=10, resume_from_checkpoint="latest")
    assert not (out / ".checkpoint").exists()


@dataclass(kw_only=True)
class OutSettings(Settings):
    output_dir: Path = flag(help="Written.")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_interrupted_script_writes_nothing(number, code, tmp_path, monkeypatch, capsys):
    def script(settings):
        with replace_folder(settings.output_dir) as folder:
            (folder / "half").touch()
            signal.raise_signal(number)

    monkeypatch.setattr("sys.argv", ["script.py", "--output_dir", str(tmp_path / "out")])
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        run_script(script, OutSettings, "script")
    assert ended.value.code == code
    assert signal.getsignal(signal.SIGTERM) == before
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_interrupted_command_writes_nothing(number, code, tmp_path):
    tiny_pipeline().save_pretrained(tmp_path / "tiny")
    (tmp_path / "mount").mkdir()
    command = [Path(sys.executable).with_name("multiguidance"), "sample", tmp_path / "tiny", "--num-images", "100000"]
    process = subprocess.Popen([*command, "--out", tmp_path / "mount"], stderr=subprocess.PIPE, text=True)
    while not any((tmp_path / "mount").iterdir()):
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in errors
    assert not list((tmp_path / "mount").iterdir())
