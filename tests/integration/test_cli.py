"""Real runs of the `multiguidance` command."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.launch import ROOT
from helpers.tiny import tiny_pipeline
from PIL import Image

from diffusers_multiguidance import main
from diffusers_multiguidance.data.circles import render_circle


def multiguidance(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("multiguidance")), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "tiny"
    tiny_pipeline().save_pretrained(path)
    return path


def test_sample_writes_images_grid_and_record(folder, tmp_path):
    out = tmp_path / "samples"
    call = ["--num-images", 5, "--num-inference-steps", 4, "--seed", 7, "--target", "Smiling=0.25", "--out", out]
    result = multiguidance("sample", folder, *call)
    assert result.returncode == 0, result.stderr
    images = np.load(out / "images.npz")["images"]
    assert (images.dtype, images.shape) == (np.uint8, (5, 8, 8, 1))
    assert Image.open(out / "grid.png").size[1] == 18
    record = json.loads((out / "sample.json").read_text())
    assert record["target"] == {"Smiling": 0.25}
    assert (record["num_images"], record["num_inference_steps"], record["seed"]) == (5, 4, 7)
    assert record["guidance_scale"] == 30.0, "the pipeline folder's default"
    assert record["seconds"] > 0
    assert "torch" in record["versions"]

    again = multiguidance("sample", folder, *call[:-1], tmp_path / "again")
    assert again.returncode == 0, again.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "again" / "images.npz")["images"], images)


def test_evaluate_reads_what_sample_wrote(tmp_path):
    images = np.stack([render_circle(x, 9, 32) for x in range(2, 30)])[..., None]
    np.savez(tmp_path / "images.npz", images=images)
    call = ["--attribute", "position", "--evaluator", "circle-position", "--out", tmp_path / "report"]
    result = multiguidance("evaluate", tmp_path, *call)
    assert result.returncode == 0, result.stderr
    assert "57.1 % (39.1 to 73.5)" in result.stdout
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["batches"]["samples"]["summary"]["share_in_gap"] == pytest.approx(16 / 28)
    for name in ("report.html", "histogram.png", "samples.png"):
        assert (tmp_path / "report" / name).exists()


@pytest.fixture
def here(capsys, monkeypatch) -> Callable[..., str]:
    """Runs a command in this process, which need not import everything anew, and returns what it prints."""

    def run(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["multiguidance", *map(str, words)])
        main()
        return capsys.readouterr().out

    return run


def test_a_pipeline_is_evaluated_and_compared(here, tmp_path):
    """Two circles of each kind, and at each target, against rendered ones with and without a gap."""
    for folder, centres in (("rendered", range(2, 30)), ("ends", (2, 3, 4, 27, 28, 29))):
        (tmp_path / folder).mkdir()
        for x in centres:
            Image.fromarray(render_circle(x, 9, 32)).save(tmp_path / folder / f"{x}.png")
    call = ["--attribute", "position", "--reference", tmp_path / "rendered", "--extractor", "pixels"]
    sampling = ["--training", tmp_path / "ends", "--num-images", 2, "--num-inference-steps", 4]
    aim = ["--target", "position=0.6", "--out", tmp_path / "a"]
    said = here("evaluate", ROOT / "pipelines" / "circles-32", *call, *sampling, *aim)
    assert "6 of 28 reference images are training images: left out." in said
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    assert report["batches"].keys() == {"unguided", "guided", "uniform", "sweep"}
    assert report["asked"]["target"] == {"position": 0.6}
    assert report["batches"]["unguided"]["memorization"]["num_held_out"] == 22
    here("evaluate", tmp_path / "ends", *call, "--evaluator", "circle-position", "--out", tmp_path / "b")
    said = here("compare", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "both")
    assert "in the gap" in said
    assert "b, samples" in (tmp_path / "both" / "compare.html").read_text()


def test_demo_shows_the_unseen_middle(tmp_path):
    result = multiguidance("demo", "--pipeline", "circles-32-exact", "--out", tmp_path / "demo")
    assert result.returncode == 0, result.stderr
    figures = json.loads((tmp_path / "demo" / "demo.json").read_text())
    assert figures["unguided"]["share_in_gap"] <= 0.1
    assert figures["multi-guidance"]["rank_correlation"] > 0.95
    assert figures["multi-guidance"]["mean_absolute_error"] < 0.05
    assert Image.open(tmp_path / "demo" / "demo.png").size[0] > 800


def test_evaluate_finds_the_evaluator_of_the_pipeline(here, tmp_path):
    """That it carries, or that it was calibrated by; only their names count, so the images are few."""
    for name, attribute, size, channels in (("faces-rendered", "Smiling", 32, 3), ("circles-32", "position", 32, 1)):
        samples = tmp_path / name
        samples.mkdir()
        np.savez(samples / "images.npz", images=np.zeros((2, size, size, channels), np.uint8))
        (samples / "sample.json").write_text(json.dumps({"pipeline": str(ROOT / "pipelines" / name)}))
        here("evaluate", samples, "--attribute", attribute, "--out", tmp_path / "report")
        assert json.loads((tmp_path / "report" / "report.json").read_text())["attribute"] == attribute


def test_another_scheduler_takes_its_own_scale_or_asks_for_one(tmp_path):
    """5000, tuned for the folder's own scheduler, would leave no circle whole."""
    circles = ROOT / "pipelines" / "circles-32-exact"
    call = [circles, "--scheduler", "ddim", "--num-inference-steps", 20, "--target", "position=0.5", "--out"]
    result = multiguidance("sample", *call, tmp_path / "samples")
    assert result.returncode == 2
    assert "`guidance_scale` is missing, and none was tuned for 'ddim'; expected a number" in result.stderr
    assert not (tmp_path / "samples").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "TINY", "--num-images", 0], "`num_images` is 0; expected"),
        (["sample", "TINY", "--num-inference-steps", 1000], "`num_inference_steps` is 1000; expected"),
        (["sample", "TINY", "--seed", -1], "`seed` is -1; expected"),
        (["sample", "TINY", "--target", "Smiling"], "`--target` is 'Smiling'; expected"),
        (["sample", "TINY", "--target", "Smiling=much"], "`--target` is 'Smiling=much'; expected"),
        (
            ["sample", "TINY", "--target", "Smiling=0.3", "--target", "Smiling=0.7"],
            "`--target` names 'Smiling' twice; expected each attribute once.",
        ),
        (["sample", "TINY", "--target", "Smiling=2"], "`target` for 'Smiling' is 2.0; expected"),
        (["sample", "TINY", "--target", "Age=0.5"], "`target` names attribute 'Age'; expected"),
        (["sample", "TINY", "--guidance-scale", -3, "--target", "Smiling=0.5"], "`guidance_scale` is -3.0; expected"),
        (["sample", "TINY", "--scheduler", "plms"], "`scheduler` is 'plms'; expected"),
        (["sample", "nowhere/at/all"], "is no whole pipeline"),
        (["evaluate", "nowhere", "--attribute", "position"], "`samples` is 'nowhere'; expected"),
        (["evaluate", "TINY", "--attribute", "Age"], "`attribute` is 'Age'; expected one of ['Smiling']"),
        (["evaluate", "IMAGES", "--attribute", "a", "--target", "a=1"], "`target` is {'a': 1.0}, but `samples` are"),
        (["evaluate", "IMAGES", "--attribute", "a", "--gap", 0.8, 0.2], "`gap` is 0.8 to 0.2; expected"),
        (["compare", "IMAGES"], "`reports` are 1; expected at least two"),
        (["compare", "IMAGES", "BROKEN"], "report.json` can't be read"),
        (["evaluate", "IMAGES", "--attribute", "size", "--evaluator", "size"], "`evaluator` is 'size'; expected"),
        (["evaluate", "IMAGES", "--attribute", "position"], "sample.json"),
        (
            ["evaluate", "BROKEN", "--attribute", "position", "--evaluator", "circle-position"],
            "images.npz` can't be read",
        ),
    ],
)
def test_wrong_arguments_end_in_one_sentence(folder, tmp_path, arguments, message, capsys, monkeypatch):
    for name in ("broken", "images"):
        (tmp_path / name).mkdir()
    (tmp_path / "broken" / "images.npz").write_bytes(b"PK, and then nothing")
    np.savez(tmp_path / "images" / "images.npz", images=np.zeros((1, 32, 32, 1), np.uint8))
    places = {"TINY": folder, "BROKEN": tmp_path / "broken", "IMAGES": tmp_path / "images"}
    words = [str(places.get(word, word)) for word in arguments]
    monkeypatch.setattr(sys, "argv", ["multiguidance", *words, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    sentence = capsys.readouterr().err.splitlines()[-1]
    assert sentence.startswith("multiguidance: ")
    assert message in sentence
    assert not (tmp_path / "out").exists()
