"""Data sets of generated images with pseudo-labels."""

import json
import runpy

import numpy as np
import pytest
from datasets import load_from_disk
from helpers.launch import ROOT
from PIL import Image
from scipy.stats import spearmanr

from diffusers_multiguidance.curation.extremes import select_by_factor
from diffusers_multiguidance.curation.pseudo_labels import GenerateSettings, generate_dataset
from diffusers_multiguidance.data.circles import circles

CIRCLES = str(ROOT / "pipelines" / "circles-32-exact")


@pytest.fixture(scope="module")
def extremes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("extremes") / "data"
    source = circles(200, 32)
    source.select(np.flatnonzero(select_by_factor(source, "position").kept)).save_to_disk(folder)
    return folder


def generated(folder, **settings):
    fixed = {"pipeline": CIRCLES, "attributes": ["position"], "output_dir": folder}
    return load_from_disk(generate_dataset(GenerateSettings(**{**fixed, **settings})))


def columns_of(dataset):
    """Where the bright pixels of each image are, NaN without any."""
    bright = np.stack(dataset["image"]) > 127
    return np.array([np.nonzero(image)[1].mean() if image.any() else np.nan for image in bright])


def test_generated_images_fill_the_range_with_the_values_of_the_pipelines_evaluator(extremes, tmp_path):
    dataset = generated(tmp_path / "data", extremes=extremes, num_images=40)
    values = np.array(dataset["value_position"])
    assert ((values > 0.2) & (values < 0.8)).mean() > 0.3
    assert min(values) < 0.2
    assert max(values) > 0.8
    assert (columns_of(dataset) - 2) / 27 == pytest.approx(values, abs=0.02)
    assert dataset["position"] == [int(value > 0.5) for value in values]
    assert dataset.features["position"].names == ["left", "right"]
    provenance = json.loads((tmp_path / "data" / "provenance.json").read_text())
    assert 0 < provenance["generated"] <= 40
    assert provenance["flags"]["pipeline"] == CIRCLES
    for name in ("grid.png", "histogram_position.png"):
        with Image.open(tmp_path / "data" / name) as picture:
            assert picture.width > 100


def test_all_images_of_two_rounds_are_kept(extremes, tmp_path):
    first = generated(tmp_path / "first", extremes=extremes, num_images=8, keep_all=True)
    second = generated(tmp_path / "second", extremes=tmp_path / "first", num_images=4, keep_all=True, seed=1)
    there, measured = len(load_from_disk(extremes)), 2  # an image without one circle has no value
    assert there + 8 - measured <= len(first) <= there + 8
    assert len(first) + 4 - measured <= len(second) <= len(first) + 4
    values = second["value_position"]
    assert (columns_of(second) - 2) / 27 == pytest.approx(values, abs=0.02)


def test_generated_images_get_values_without_an_evaluator(extremes, tmp_path):
    dataset = generated(tmp_path / "data", extremes=extremes, evaluators=["neighbours"], num_images=60)
    assert spearmanr(dataset["value_position"], columns_of(dataset), nan_policy="omit").statistic > 0.7
    assert dataset["position"] == [int(value > 0.5) for value in dataset["value_position"]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"evaluators": ["size"]}, "`evaluator` is 'size'; expected"),
        ({"scheduler": "leapfrog"}, "'leapfrog'; expected"),
        ({"pipeline": str(ROOT / "tests")}, "tests"),
        ({"extremes": "nowhere"}, "`--extremes` is 'nowhere'; expected"),
    ],
)
def test_what_is_not_there(extremes, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        generated(tmp_path / "data", **{"extremes": extremes, "evaluators": ["circle-position"], **settings})
    assert not (tmp_path / "data").exists()


def test_neighbours_need_labels(extremes, tmp_path):
    load_from_disk(extremes).remove_columns("position").save_to_disk(tmp_path / "bare")
    with pytest.raises(ValueError, match="`--extremes` has no labels of 'position'; expected"):
        generated(tmp_path / "data", extremes=tmp_path / "bare", evaluators=["neighbours"])


def test_the_script_ends_in_one_sentence(extremes, tmp_path, monkeypatch, capsys):
    words = ["--pipeline", CIRCLES, "--attributes", "position", "--extremes", extremes, "--output_dir", tmp_path / "d"]
    monkeypatch.setattr("sys.argv", ["generate.py", *map(str, words), "--num_images", "0"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "training" / "generate.py"), run_name="__main__")
    assert ended.value.code == 2
    assert "`--num_images` is 0; expected" in capsys.readouterr().err
