"""Every program ends at any moment with the code that shells expect, leaves nothing half-written, and goes on."""

import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from datasets import load_from_disk
from helpers.launch import CPU, ROOT
from PIL import Image
from safetensors.torch import load_file

from diffusers_multiguidance.data.circles import circles

MOMENTS = 30
SMALL = (
    "--norm_num_groups 4 --attention_head_dim 8 --layers_per_block 1 --attention_resolutions --block_out_channels 8 8"
)
TRAIN = "--resolution 16 --train_batch_size 4 --learning_rate 1e-3 --checkpointing_steps 1"
PROGRAMS = {
    "train_unet": f"--train_data_dir DATA {TRAIN} {SMALL} --ddpm_num_steps 10 --num_inference_steps 2 "
    "--max_train_steps 6 --save_images_steps 3 --output_dir",
    "train_classifier": f"--train_data_dir DATA --pipeline DENOISER --attributes position {TRAIN} {SMALL} "
    "--num_classifiers 2 --max_train_steps 2 --output_dir",
    "train_evaluator": f"--train_data_dir DATA --attribute position {TRAIN} --model test_resnet --max_train_steps 4 "
    "--output_dir",
    "build_dataset": "--dataset images --train_data_dir PICTURES --label_column label --extremes --resolution 16 "
    "--labeler_resolution 16 --max_train_steps 4 --train_batch_size 8 --learning_rate 1e-2 --lr_warmup_steps 0 "
    "--ensemble_size 2 --tau_1 0.5 --tau_2 0.5 --output_dir",
    "generate": "--pipeline GUIDED --attributes position --evaluators neighbours --extremes DATA --num_images 30 "
    "--num_inference_steps 3 --output_dir",
    "sample": "sample GUIDED --target position=0.5 --num-images 16 --num-inference-steps 3 --out",
}
RESUME = {"train_unet", "train_classifier", "train_evaluator"}

Run = Callable[..., dict[str, float]]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """Run a program by its words, perhaps interrupted."""
    log = tmp_path_factory.mktemp("log") / "log.txt"
    command = [sys.executable, ROOT / "tests" / "helpers" / "interrupt.py"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env={**CPU, "OMP_NUM_THREADS": "1"}, **pipes) as driver:

        def call(argv: list[str], number: int | None = None, after: float = 0.0) -> dict[str, float]:
            job = {"argv": argv, "log": str(log), "signal": number, "after": after}
            driver.stdin.write(json.dumps(job) + "\n")
            driver.stdin.flush()
            answer = json.loads(driver.stdout.readline())
            said = log.read_text()
            assert "Traceback" not in said, said
            assert answer["code"] in (0, 128 + (number or 0)), said
            return answer

        yield call
        driver.stdin.close()


@pytest.fixture(scope="module")
def places(run, tmp_path_factory) -> dict[str, Path]:
    """What the programs start from."""
    folder = tmp_path_factory.mktemp("start")
    names = {"DATA": "data", "PICTURES": "pictures", "DENOISER": "unet/pipeline", "GUIDED": "classifier/pipeline"}
    places = {word: folder / name for word, name in names.items()}
    circles(24, 16).save_to_disk(places["DATA"])
    for number in range(24):  # dark and bright, which is learnt in no time
        path = places["PICTURES"] / ("dark", "bright")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (16, 16), 50 + number + 120 * (number % 2)).save(path)
    for name in ("unet", "classifier"):
        run(command(f"train_{name}", places, folder / name))
    return places


def command(program: str, places: dict[str, Path], out: Path) -> list[str]:
    script = Path(sys.executable).with_name("multiguidance")
    if program != "sample":
        script = ROOT / "training" / f"{program}.py"
    resume = ["--resume_from_checkpoint", "latest"] if program in RESUME else []
    words = [str(places.get(word, word)) for word in PROGRAMS[program].split()]
    return [str(script), *resume, *words, str(out)]


def check_whole(folder: Path) -> None:
    """All that is there can be read, and nothing is there that was only on its way."""
    for path in folder.rglob("*"):
        assert not path.name.startswith((".writing", ".checkpoint")), path
        assert ".tmp" not in path.name, path
        match path.suffix:
            case ".safetensors":
                load_file(path)
            case ".json":
                json.loads(path.read_text())
            case ".png":
                Image.open(path).verify()
            case ".npz" | ".npy":
                np.load(path)
        if path.name in (".written.json", "dataset_info.json", "model_index.json"):
            check_folder(path)


def check_folder(note: Path) -> None:
    """What a folder says that it holds is there."""
    if note.name == ".written.json":
        assert all((note.parent / name).exists() for name in json.loads(note.read_text()))
    elif note.name == "dataset_info.json":
        assert len(load_from_disk(note.parent)) > 0
    else:
        assert (note.parent / "README.md").exists()


@pytest.mark.parametrize("program", PROGRAMS)
def test_interrupted_at_any_moment(program, run, places, tmp_path):
    """At one moment after the other: each run goes on from what those before it left, until one ends by itself."""
    run(command(program, places, tmp_path / "usual"))  # also imports what it has imported only now
    check_whole(tmp_path)
    seconds = run(command(program, places, tmp_path / "warm"))["seconds"]
    draw, ended, out = random.Random(program), [], tmp_path / "out-0"
    for moment in range(MOMENTS):
        number = (signal.SIGINT, signal.SIGTERM)[moment % 2]
        code = run(command(program, places, out), number, draw.uniform(0.03, 0.9 * seconds))["code"]
        check_whole(tmp_path)
        ended.append(code)
        if code == 0:
            out = tmp_path / f"out-{moment}"
    run(command(program, places, out))
    assert len([code for code in ended if code]) > MOMENTS / 3
    written = {path.relative_to(out) for path in out.rglob("*")}
    assert written == {path.relative_to(tmp_path / "usual") for path in (tmp_path / "usual").rglob("*")}
