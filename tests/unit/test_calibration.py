"""Calibration: targets that mean a measured value."""

import copy
import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from helpers.launch import ROOT
from helpers.tiny import tiny_pipeline
from PIL import Image

from diffusers_multiguidance.calibration import add_calibration, calibrate, calibrate_edits, fit_calibration
from diffusers_multiguidance.curation.extremes import select_by_factor
from diffusers_multiguidance.data.circles import circles
from diffusers_multiguidance.evaluation.uniformity import kld_to_uniform
from diffusers_multiguidance.guidance import weights_fingerprint, weights_from_target
from diffusers_multiguidance.models import NoisyClassifierSet
from diffusers_multiguidance.pipelines import MultiGuidanceDDPMPipeline, MultiGuidanceEditPipeline
from diffusers_multiguidance.schedulers import create_scheduler

CALL = {"scheduler": "ddim", "num_inference_steps": 4, "guidance_scale": 30.0, "guidance_interval": [0.0, 1.0]}


def calibrated_pipeline(**changes) -> MultiGuidanceDDPMPipeline:
    pipeline = tiny_pipeline()
    pipeline.scheduler = create_scheduler("ddim", pipeline.scheduler)
    fingerprint = weights_fingerprint([pipeline.unet, *pipeline.classifiers.members])
    curve = {"target_probabilities": [0.4, 0.5, 0.9], "values": [0.1, 0.5, 0.7], "fingerprint": fingerprint}
    pipeline.register_to_config(calibrations={"Smiling": [{**CALL, **curve, **changes}]})
    return pipeline


def draw(pipeline, target, **call) -> np.ndarray:
    streams = [torch.Generator().manual_seed(number) for number in range(2)]
    call = {"num_inference_steps": 4, **call}
    return pipeline(2, target=target, output_type="np", generator=streams, **call).images


def test_fit_is_monotone_and_follows_the_means():
    target_probabilities = np.linspace(0, 1, 11)
    rng = np.random.default_rng(0)
    values = np.clip(target_probabilities[:, None] ** 2 + rng.normal(0, 0.03, (11, 50)), 0, 1)
    values[3, :5] = np.nan
    fit = fit_calibration(target_probabilities, values)
    assert (np.diff(fit["values"]) > 0).all()
    assert (np.diff(fit["target_probabilities"]) > 0).all()
    at_half = np.interp(0.25, fit["values"], fit["target_probabilities"])
    assert at_half == pytest.approx(0.5, abs=0.03)
    assert fit["measured"]["malformed"][3] == pytest.approx(0.1)


def test_a_plateau_is_entered_in_its_middle():
    fit = fit_calibration(np.linspace(0, 1, 5), np.array([[0.0], [0.5], [0.5], [0.5], [1.0]]))
    assert fit["target_probabilities"] == [0.0, 0.5, 1.0]
    assert fit["values"] == [0.0, 0.5, 1.0]


def test_images_that_follow_their_target_need_no_other_spread():
    target_probabilities = np.linspace(0, 1, 21)
    values = target_probabilities[:, None] + np.random.default_rng(0).normal(0, 0.02, (21, 24))
    even = fit_calibration(target_probabilities, np.clip(values, 0, 1))["even_values"]
    np.testing.assert_allclose(even, target_probabilities, atol=0.03)


def test_images_that_stray_to_the_ends_come_out_more_even():
    target_probabilities, rng = np.linspace(0, 1, 21), np.random.default_rng(0)

    def draw_values(aims: np.ndarray, count: int) -> np.ndarray:
        """Two thirds follow their aim, the others end at one end or the other."""
        shape = (len(aims), count)
        at_end = np.abs((rng.uniform(size=shape) < aims[:, None]) - rng.uniform(0, 0.2, shape))
        return np.where(rng.uniform(size=shape) < 0.67, aims[:, None], at_end)

    fit = fit_calibration(target_probabilities, draw_values(target_probabilities, 24))
    attributes = {"Smiling": ["no", "yes"]}
    spread = {}
    for name, calibration in (("flat", {**fit, "even_values": (0, 1)}), ("even", fit)):
        weights = weights_from_target(attributes, "uniform", 1.0, 1000, {"Smiling": calibration})["Smiling"]
        spread[name] = kld_to_uniform(draw_values(weights[:, 1].numpy(), 1).flatten(), 20)
    assert fit["even_values"] == sorted(fit["even_values"])
    assert spread["even"] < 0.6 * spread["flat"]


def test_what_does_not_rise_or_cannot_be_measured_is_refused():
    target_probabilities = np.linspace(0, 1, 5)
    with pytest.raises(ValueError, match="`attribute` does not follow its target probability"):
        fit_calibration(target_probabilities, np.array([[0.1], [0.9], [0.2], [0.8], [0.3]]))
    with pytest.raises(ValueError, match="`evaluator` fails on 75 % of the images"):
        fit_calibration(target_probabilities[:4], np.array([[0.1], [np.nan], [np.nan], [np.nan]]))


def test_target_is_a_measured_value():
    pipeline = calibrated_pipeline()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = draw(pipeline, {"Smiling": 0.6})
        np.testing.assert_allclose(images, draw(pipeline, {"Smiling": 0.7}, calibration=None), atol=1e-3)
        beyond = draw(pipeline, {"Smiling": 1.0})
        np.testing.assert_allclose(beyond, draw(pipeline, {"Smiling": 0.9}, calibration=None), atol=1e-3)
        spread = draw(pipeline, "uniform")  # values 0.25 and 0.75
        np.testing.assert_allclose(spread[1], beyond[1], atol=1e-3)
        # A share per class is a target probability, whatever was measured.
        shares = {"Smiling": {"no": 0.3, "yes": 0.7}}
        np.testing.assert_allclose(draw(pipeline, shares), images, atol=1e-3)


@pytest.mark.parametrize("changed", [{"num_inference_steps": 5}, {"guidance_scale": 20.0}])
def test_another_call_is_uncalibrated_and_says_so(changed):
    pipeline = calibrated_pipeline()
    with pytest.warns(UserWarning, match="'Smiling' has no calibration"):
        images = draw(pipeline, {"Smiling": 0.6}, **changed)
    np.testing.assert_array_equal(images, draw(pipeline, {"Smiling": 0.6}, calibration=None, **changed))


def test_another_scheduler_is_uncalibrated_and_says_so():
    pipeline = calibrated_pipeline()
    pipeline.scheduler = create_scheduler("unipc", pipeline.scheduler)
    with pytest.warns(UserWarning, match="'Smiling' has no calibration"):
        draw(pipeline, {"Smiling": 0.6}, guidance_scale=30.0, calibration="nearest")


def test_nearest_calibration_on_request():
    pipeline = calibrated_pipeline()
    images = draw(pipeline, {"Smiling": 0.6}, num_inference_steps=5, calibration="nearest")
    uncalibrated = draw(pipeline, {"Smiling": 0.7}, num_inference_steps=5, calibration=None)
    np.testing.assert_allclose(images, uncalibrated, atol=1e-3)


def change_a_weight(pipeline):
    """The last, by one part in a hundred."""
    weight = list(pipeline.unet.parameters())[-1]
    weight.data.flatten()[-1] += 0.01


def drop_a_classifier(pipeline):
    pipeline.classifiers = NoisyClassifierSet.from_members(list(pipeline.classifiers.members)[:1])


def exchange_a_classifier(pipeline):
    """For one that starts with the same weights."""
    first, second = pipeline.classifiers.members
    other = copy.deepcopy(second)
    other.pool.positional_embedding.data *= 1.01
    pipeline.classifiers = NoisyClassifierSet.from_members([first, other])


@pytest.mark.parametrize("change", [change_a_weight, drop_a_classifier, exchange_a_classifier])
def test_calibration_of_other_weights_is_refused(change, tmp_path):
    pipeline = calibrated_pipeline()
    change(pipeline)
    pipeline.save_pretrained(tmp_path)
    loaded = MultiGuidanceDDPMPipeline.from_pretrained(tmp_path)
    for changed in [loaded] if change is change_a_weight else [loaded, pipeline]:
        with pytest.raises(ValueError, match="`calibration` of 'Smiling' was measured with other weights"):
            draw(changed, {"Smiling": 0.6})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_calibration_holds_in_any_precision_and_order(dtype, tmp_path):
    """Loaded in that, and saved in that."""
    pipeline = calibrated_pipeline()
    pipeline.classifiers = NoisyClassifierSet.from_members(list(pipeline.classifiers.members)[::-1])
    pipeline.save_pretrained(tmp_path / "full")
    half = MultiGuidanceDDPMPipeline.from_pretrained(tmp_path / "full", torch_dtype=dtype)
    half.save_pretrained(tmp_path / "half", variant="half")
    for loaded in (half, MultiGuidanceDDPMPipeline.from_pretrained(tmp_path / "half", variant="half")):
        loaded.set_progress_bar_config(disable=True)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            draw(loaded, {"Smiling": 0.6})


def test_a_calibration_is_saved_replaced_and_loaded(tmp_path):
    pipeline = tiny_pipeline()
    pipeline.scheduler = create_scheduler("ddim", pipeline.scheduler)
    pipeline.save_pretrained(tmp_path)
    fingerprint = weights_fingerprint([pipeline.unet, *pipeline.classifiers.members])
    for values in ([0.2, 0.4], [0.1, 0.7]):
        curve = {"target_probabilities": [0.4, 0.9], "values": values, "fingerprint": fingerprint}
        add_calibration(tmp_path, "Smiling", {**CALL, **curve, "date": "today"})
    (kept,) = json.loads((tmp_path / "model_index.json").read_text())["calibrations"]["Smiling"]
    assert (kept["values"], kept["date"]) == ([0.1, 0.7], "today")
    loaded = MultiGuidanceDDPMPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = draw(loaded, {"Smiling": 0.1})
    np.testing.assert_allclose(images, draw(pipeline, {"Smiling": 0.4}, calibration=None), atol=1e-3)


def test_a_committed_pipeline_is_calibrated_by_what_it_was_before(tmp_path):
    """Its evaluator need not be named; another scheduler gets a calibration of its own."""
    folder = tmp_path / "circles"
    shutil.copytree(ROOT / "pipelines" / "circles-32-exact", folder)
    call = {"scheduler": "unipc", "num_inference_steps": 8, "guidance_scale": 500.0}
    calibration = calibrate(folder, "position", num_target_probabilities=3, num_images=6, **call)
    before, added = json.loads((folder / "model_index.json").read_text())["calibrations"]["position"]
    assert before["scheduler"] == "sde-dpmsolver++"
    assert added == json.loads(json.dumps(calibration))
    assert (added["evaluator"], added["num_images"]) == ("circle-position", 6)
    assert added["values"] == sorted(added["values"])
    assert not (folder / "calibration.json").exists()
    with Image.open(folder / "calibration_position.png") as picture:
        assert picture.width > 300


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attribute": "size"}, "`attribute` is 'size', for which .* has no evaluator; expected"),
        ({"attribute": "size", "evaluator": "circle-position"}, "`target` names attribute 'size'; expected"),
        ({"attribute": "a/b", "evaluator": "circle-position"}, "`--attribute` is 'a/b'; expected a name that a file"),
        ({"num_target_probabilities": 2}, "`num_target_probabilities` is 2; expected at least 3"),
        ({"num_inference_steps": 0}, "`num_inference_steps` is 0; expected"),
        ({"guidance_scale": -1}, "`guidance_scale` is -1; expected"),
        ({"guidance_interval": (0.5, 0.2)}, r"`guidance_interval` is \(0.5, 0.2\); expected"),
        ({"num_images": 0}, "`num_images` is 0; expected"),
        ({"seed": -1}, "`seed` is -1; expected"),
        ({"evaluator": ROOT / "pipelines" / "faces-rendered" / "evaluators" / "Smiling"}, "`images` have shape"),
        ({"scheduler": "plms"}, "`scheduler` is 'plms'; expected"),
    ],
)
def test_what_can_be_known_is_refused_before_anything_is_sampled(arguments, message, tmp_path, monkeypatch):
    monkeypatch.setattr(MultiGuidanceDDPMPipeline, "finish", lambda *_: pytest.fail("sampled"))
    folder = shutil.copytree(ROOT / "pipelines" / "circles-32", tmp_path / "circles")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=message):
        calibrate(folder, **{"attribute": "position", **arguments})
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_plot_in_the_way_leaves_the_configuration_as_it_was(tmp_path):
    folder = shutil.copytree(ROOT / "pipelines" / "circles-32-exact", tmp_path / "circles")
    (folder / "calibration_position.png").unlink()
    (folder / "calibration_position.png").mkdir()
    before = (folder / "model_index.json").read_bytes()
    call = {"scheduler": "unipc", "num_inference_steps": 8, "guidance_scale": 500.0}
    with pytest.raises(IsADirectoryError):
        calibrate(folder, "position", num_target_probabilities=3, num_images=2, **call)
    assert (folder / "model_index.json").read_bytes() == before
    assert not list(folder.glob(".writing-*"))


def calibrated_edits(**changes) -> MultiGuidanceEditPipeline:
    pipeline = tiny_pipeline()
    maps = {
        "from_low": {"target_probabilities": [0.2, 0.6], "values": [0.0, 1.0]},
        "from_high": {"target_probabilities": [0.4, 1.0], "values": [0.0, 1.0]},
    }
    call = {"scheduler": "edit", "num_inference_steps": 4, "guidance_scale": 30.0, "strength": 0.5}
    fingerprint = weights_fingerprint([pipeline.unet, *pipeline.classifiers.members])
    calibrations = {"Smiling": [{**CALL, "fingerprint": []}, {**call, **maps, "fingerprint": fingerprint, **changes}]}
    edit = MultiGuidanceEditPipeline(**pipeline.components, calibrations=calibrations)
    edit.set_progress_bar_config(disable=True)
    return edit


def test_an_edit_goes_to_the_value_from_where_it_starts():
    edit = calibrated_edits()
    images = [Image.fromarray(np.full((8, 8), level, np.uint8)) for level in (0, 255)]
    call = {"num_inference_steps": 4, "guidance_scale": 30.0, "eta": 0.0, "output_type": "np"}
    levels = torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1).expand(2, 1, 8, 8)
    starts = edit.classifiers(levels, 0).logits["Smiling"].softmax(dim=1)[:, 1].tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        edited = edit(images, {"Smiling": 0.5}, **call).images
    for image, start, there in zip(images, starts, edited, strict=True):
        probability = (1 - start) * 0.4 + start * 0.7
        expected = edit(image, {"Smiling": probability}, calibration=None, **call).images[0]
        np.testing.assert_allclose(there, expected, atol=1e-3)
    with pytest.warns(UserWarning, match="no calibration for scheduler edit, .*strength 0.75"):
        edit(images, {"Smiling": 0.5}, strength=0.75, **call)
    with pytest.raises(ValueError, match="`calibration` is 'nearest'; expected 'same' or None"):
        edit(images, {"Smiling": 0.5}, calibration="nearest", **call)
    with pytest.raises(ValueError, match="measured with other weights"):
        calibrated_edits(fingerprint=["another"])(images, {"Smiling": 0.5}, **call)


@pytest.fixture
def ends(tmp_path):
    """Circles at both ends, two of which were trained on."""
    source = circles(200, 32)
    ends = source.select(np.flatnonzero(select_by_factor(source, "position").kept))
    ends.save_to_disk(tmp_path / "ends")
    ends.select([0, 1]).remove_columns("source_index").add_column("source_index", [0, 1]).save_to_disk(
        tmp_path / "two"
    )
    return tmp_path


def test_editing_is_calibrated_beside_sampling(ends):
    folder = ends / "circles"
    shutil.copytree(ROOT / "pipelines" / "circles-32-exact", folder)
    call = {"training": ends / "two", "num_target_probabilities": 3, "num_images": 4}
    calibration = calibrate_edits(folder, "position", ends / "ends", **call)
    sampling, editing = json.loads((folder / "model_index.json").read_text())["calibrations"]["position"]
    assert sampling["scheduler"] == "sde-dpmsolver++"
    assert editing == json.loads(json.dumps(calibration))
    assert editing["evaluator"] == "circle-position"
    low, high = (editing[end]["measured"]["mean"] for end in ("from_low", "from_high"))
    assert low[0] < low[-1]
    assert high[0] < high[-1]
    assert low[0] < high[-1]
    with Image.open(folder / "calibration_edit_position.png") as plot:
        assert plot.width > 100
    with pytest.raises(ValueError, match=r"`images` has \d+ images of one end; expected at least 500"):
        calibrate_edits(folder, "position", ends / "ends", num_images=500)
