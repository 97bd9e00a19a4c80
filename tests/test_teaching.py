"""Classifiers that learn more than a label: measured strengths of drawn images, or what a set of others says."""

import json
import runpy

import numpy as np
import pytest
import torch
from datasets import load_from_disk
from launch import ROOT, launch
from PIL import Image
from scipy.stats import spearmanr

from diffusers_multiguidance.cli import load_pipeline
from diffusers_multiguidance.data.circles import circles, draw_circle, position
from diffusers_multiguidance.curation.extremes import evenly_spread, select_by_factor
from diffusers_multiguidance.curation.pseudo_labels import geodesic_strengths

CIRCLES = ROOT / "pipelines" / "circles"


@pytest.fixture(scope="module")
def extremes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("extremes") / "data"
    source = circles(200, 32)
    source.select(np.flatnonzero(select_by_factor(source, "position").kept)).save_to_disk(folder)
    return folder


@pytest.fixture(scope="module")
def drawn(extremes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn") / "data"
    flags = ["--pipeline", CIRCLES, "--attributes", "position", "--extremes", extremes, "--num_images", 40]
    result = launch("generate.py", *flags, "--output_dir", folder)
    assert result.returncode == 0, result.stderr
    return folder


def test_evenly_spread_fills_every_cell_alike():
    strengths = np.concatenate([np.full(90, 0.01), np.linspace(0.06, 0.99, 30)])[None]
    rows = evenly_spread(strengths, 200, seed=0)
    counts = np.histogram(strengths[0, rows], bins=20, range=(0, 1))[0]
    assert (counts == 10).all()
    assert len(set(rows[:10])) == 10, "images are not repeated where there are enough"
    square = np.random.default_rng(0).random((2, 5000))
    rows = evenly_spread(square, 640, seed=0)
    assert (np.histogram2d(*square[:, rows], bins=8, range=[(0, 1)] * 2)[0] == 10).all()


def test_drawn_images_fill_the_range_with_what_was_measured(drawn):
    dataset = load_from_disk(drawn)
    strengths = np.array(dataset["factor_position"])
    assert ((strengths > 0.2) & (strengths < 0.8)).mean() > 0.3
    assert min(strengths) < 0.2
    assert max(strengths) > 0.8
    for row in dataset.select(range(0, len(dataset), 9)):
        columns = np.nonzero(np.array(row["image"]) > 127)[1]
        assert (columns.mean() - 2) / 27 == pytest.approx(row["factor_position"], abs=0.02)
        assert row["position"] == (row["factor_position"] > 0.5)
    provenance = json.loads((drawn / "provenance.json").read_text())
    assert 0 < provenance["drawn"] <= 40
    for name in ("grid.png", "histogram_position.png"):
        with Image.open(drawn / name) as picture:
            assert picture.width > 100


def test_neighbours_tell_where_a_circle_lies():
    centres = [(x, y) for x in range(2, 30) for y in range(2, 30)]
    images = np.stack([draw_circle(x, y, 32) for x, y in centres])[..., None]
    z = position(np.array(centres)[:, 0], 32)
    labels = np.where(z <= 0.2, 0, np.where(z >= 0.8, 1, -1))
    strengths = geodesic_strengths(images, labels)
    assert strengths.min() == 0
    assert strengths.max() == 1
    assert spearmanr(strengths, z).statistic > 0.99
    assert strengths[np.abs(z - 0.5) < 0.02] == pytest.approx(0.5, abs=0.05)


def test_images_far_from_both_ends_are_unknown_and_an_end_without_images_is_refused():
    squares = np.zeros((25, 16, 16, 1), np.uint8)
    squares[:, 4:12, 4:12] = np.arange(25)[:, None, None, None] * 10
    far = np.full((22, 16, 16, 1), 255, np.uint8)
    far[:, 0, 0, 0] = np.arange(22)
    labels = np.r_[0, [-1] * 23, 1, [-1] * 22]
    strengths = geodesic_strengths(np.concatenate([squares, far]), labels)
    assert (np.diff(strengths[:25]) > 0).all()
    assert np.isnan(strengths[25:]).all()
    with pytest.raises(ValueError, match="`labels` has the values"):
        geodesic_strengths(squares, np.zeros(25, int))
    with pytest.raises(ValueError, match="`images` has 20 images"):
        geodesic_strengths(squares[:20], np.r_[0, [-1] * 18, 1])


def test_drawn_images_get_strengths_without_a_measure(extremes, tmp_path):
    folder = tmp_path / "data"
    flags = ["--pipeline", CIRCLES, "--attributes", "position", "--measures", "geodesic", "--extremes", extremes]
    result = launch("generate.py", *flags, "--num_images", 60, "--output_dir", folder)
    assert result.returncode == 0, result.stderr
    dataset = load_from_disk(folder)
    columns = [np.nonzero(np.array(image) > 127)[1].mean() for image in dataset["image"]]
    assert spearmanr(dataset["factor_position"], columns).statistic > 0.7
    assert dataset["position"] == [int(strength > 0.5) for strength in dataset["factor_position"]]


SMALL = ["--resolution", 32, "--train_batch_size", 4, "--max_train_steps", 2, "--block_out_channels", 8, 8]
SMALL += ["--norm_num_groups", 4, "--attention_head_dim", 8, "--layers_per_block", 1, "--attention_resolutions"]
SMALL += ["--pipeline", CIRCLES, "--attributes", "position"]


def test_a_classifier_learns_soft_labels(drawn, tmp_path):
    defaults = ["--sampler", "sde-dpmsolver++", "--ddpm_num_inference_steps", 7]
    flags = [*SMALL, "--soft_labels", "--train_data_dir", drawn, *defaults]
    result = launch("train_classifier.py", *flags, "--output_dir", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "out" / "member-0" / "training.json").read_text())
    assert record["flags"]["soft_labels"] is True
    trained = load_pipeline(tmp_path / "out" / "pipeline")
    assert trained.config["default_sampler"] == "sde-dpmsolver++"
    assert trained.config["default_num_inference_steps"] == 7


def test_soft_labels_need_a_strength(drawn, tmp_path):
    load_from_disk(drawn).remove_columns("factor_position").save_to_disk(tmp_path / "bare")
    result = launch(
        "train_classifier.py",
        *(*SMALL, "--soft_labels", "--train_data_dir", tmp_path / "bare", "--output_dir", tmp_path / "out"),
    )
    assert result.returncode != 0
    assert "`--soft_labels` finds no strength of 'position'" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_images", 0], "`--num_images` is 0; expected"),
        (["--measures", "position", "thickness"], "`--measures` are ['position', 'thickness']; expected one"),
        (["--measures", "size"], "`measure` is 'size'; expected"),
        (["--sampler", "euler"], "`sampler` is 'euler'; expected"),
        (["--pipeline", "nowhere"], "is no whole pipeline"),
    ],
)
def test_wrong_flags_end_in_one_sentence(extremes, tmp_path, monkeypatch, capsys, flags, message):
    right = ["--pipeline", CIRCLES, "--attributes", "position", "--extremes", extremes, "--output_dir", tmp_path / "d"]
    monkeypatch.setattr("sys.argv", ["generate.py", *map(str, [*right, *flags])])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "training" / "generate.py"), run_name="__main__")
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "d").exists()


def test_one_network_learns_what_a_set_says(extremes, tmp_path):
    flags = [*SMALL, "--teacher", CIRCLES, "--train_data_dir", extremes, "--output_dir", tmp_path / "out"]
    flags += ["--max_train_steps", 60, "--train_batch_size", 16, "--learning_rate", 3e-3, "--lr_warmup_steps", 5]
    result = launch("train_classifier.py", *flags)
    assert result.returncode == 0, result.stderr
    pupil, teacher = (load_pipeline(path).classifiers for path in (tmp_path / "out" / "pipeline", CIRCLES))
    x_0 = torch.from_numpy(np.stack([np.asarray(image) for image in load_from_disk(extremes)["image"]]))
    x_0 = x_0[:, None].float() / 127.5 - 1
    taught, learnt = (one(x_0, 0).logits["position"].log_softmax(dim=1) for one in (teacher, pupil))
    odds = torch.stack([values[:, 1] - values[:, 0] for values in (taught, learnt)]).detach()
    assert float(torch.corrcoef(odds)[0, 1]) > 0.8


@pytest.mark.parametrize(
    "flags, message",
    [(["--soft_labels"], "expected one way to teach"), (["--teacher", ROOT / "pipelines" / "digits"], "knows")],
)
def test_a_teacher_must_fit(flags, message, extremes, tmp_path):
    start = [*SMALL, "--teacher", CIRCLES, "--train_data_dir", extremes, "--output_dir", tmp_path / "out"]
    result = launch("train_classifier.py", *start, *flags)
    assert result.returncode != 0
    assert message in result.stderr
