"""The scripts of benchmarks/ on a handful of images, and what their figures mean. Speed is not tested."""

import importlib.util
import json
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from helpers.launch import ROOT
from helpers.tiny import tiny_classifier

from diffusers_multiguidance.data.circles import circles
from diffusers_multiguidance.models import NoisyClassifierSet
from diffusers_multiguidance.models.autoencoder import load_vae, to_latents
from diffusers_multiguidance.pipelines import MultiGuidanceDDPMPipeline

CIRCLES = ROOT / "pipelines" / "circles-32"


def script(name: str) -> ModuleType:
    if str(ROOT / "benchmarks") not in sys.path:
        sys.path.append(str(ROOT / "benchmarks"))  # one script imports another, as when it is run
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def test_targets(tmp_path):
    targets = script("targets")
    targets.main(CIRCLES, tmp_path, "position", num_images=1, num_uniform=20, num_inference_steps=10)
    results = json.loads((tmp_path / "targets.json").read_text())["results"]
    assert results["rank_correlation"] > 0.5
    assert results["uniform"]["num_images"] == 20
    assert (tmp_path / "targets.png").stat().st_size > 0


def test_steps(tmp_path):
    rows = ["ddpm:10:120", "sde-dpmsolver++:8:60:0:0.6", "unipc:8:60"]
    for _ in range(2):  # the second time nothing is sampled
        script("ablations").steps(CIRCLES, "position", tmp_path, row=rows, num_images=8)
    with pytest.raises(ValueError, match="`row` is 'ddpm:4'; expected SCHEDULER:STEPS:SCALE or"):
        script("ablations").steps(CIRCLES, "position", tmp_path, row=["ddpm:4"], num_images=8)
    content = json.loads((tmp_path / "steps.json").read_text())
    first, second, third = content["results"]["rows"]
    assert (first["scheduler"], first["guidance_interval"]) == ("ddpm", [0.0, 0.7])
    assert (second["num_inference_steps"], second["guidance_scale"]) == (8, 60)
    assert second["guidance_interval"] == [0.0, 0.6]
    assert third["summary"] != second["summary"]
    assert all(0 < row["seconds_per_image"] < 60 for row in (first, second, third))
    assert content["command"].startswith("python benchmarks/")
    assert {"machine", "date", "versions"} <= set(content)
    for picture in ("steps.png", "histograms.png", "grid.png"):
        assert (tmp_path / picture).stat().st_size > 0


def test_artefacts(tmp_path, monkeypatch):
    artefacts = script("artefacts")
    monkeypatch.setattr(artefacts, "find_evaluator", lambda *names: "circle-height")
    monkeypatch.setattr(artefacts, "load_evaluator", lambda name: lambda images: np.array([0.5, np.nan, 0.5]))
    circles = MultiGuidanceDDPMPipeline.from_pretrained(CIRCLES)
    circles.classifiers = NoisyClassifierSet.from_members(list(circles.classifiers.members)[:2])
    circles.register_to_config(sampling_defaults={"ddpm": {"num_inference_steps": 8, "guidance_scale": 120.0}})
    circles.save_pretrained(tmp_path / "pipeline")
    artefacts.main(tmp_path / "pipeline", tmp_path, "position", num_images=3, few_steps=7)
    results = json.loads((tmp_path / "artefacts.json").read_text())["results"]
    for name in ("unguided", "guided", "few steps"):
        assert (results[name]["num_images"], results[name]["num_malformed"]) == (3, 1)
        assert len(results[name]["signs"]) == 7
        assert all(0 <= sign["area_under_roc"] <= 1 for sign in results[name]["signs"].values())
        assert (tmp_path / f"{name.replace(' ', '-')}.png").stat().st_size > 0


def test_crooked_mouths_are_unlike_rendered_ones():
    mouths = script("artefacts").RenderedMouths(200)
    assert mouths.area_for_crooked(2) > mouths.area_for_crooked(1) > 0.7
    assert mouths.area_for_crooked(0) == pytest.approx(0.5)
    assert np.isnan(mouths(mouths.whole)).mean() == pytest.approx(0.05, abs=0.01)


def test_editing(tmp_path, monkeypatch):
    editing = script("editing")
    monkeypatch.setattr(editing, "STRIPS", 1)
    monkeypatch.setattr(editing, "FRAMES", 2)
    circles = MultiGuidanceDDPMPipeline.from_pretrained(CIRCLES)
    tuned = circles.config["sampling_defaults"]
    circles.register_to_config(sampling_defaults={**tuned, "edit": {**tuned["edit"], "num_inference_steps": 8}})
    circles.save_pretrained(tmp_path / "circles")
    call = {"num_edited": 3, "num_reconstructed": 4, "num_pairs": 2, "num_inference_steps": [4, 12]}
    editing.main(tmp_path, ROOT / "pipelines" / "faces-rendered", tmp_path / "circles", **call)
    results = json.loads((tmp_path / "editing.json").read_text())["results"]
    edits = results["edits"]
    assert edits["mean_before"] < 0.2 < edits["mean_after"]
    assert edits["pixel_change_elsewhere"] < edits["pixel_change_of_mouth"]
    assert 0 < edits["pixel_change_elsewhere_without_guidance"] < edits["pixel_change_elsewhere"]
    assert 0.01 < edits["share_of_pixels_in_mouth"] < 0.15
    assert list(edits["others_moved"]) == ["Hair"]
    few, _, more, _ = results["reconstruction"]
    assert (few["strength"], few["num_inference_steps"], more["num_inference_steps"]) == (0.5, 4, 12)
    for name in ("faces", "circles"):
        for way in ("ddim", "multistep"):
            assert 0 < more[name][way] < few[name][way] < 0.1
    assert [row["method"] for row in results["midpoints"]] == ["slerp", "lerp"] * 3
    for name in ("edits", "interpolation-faces", "interpolation-circles"):
        assert (tmp_path / f"{name}.png").stat().st_size > 0


def test_overhead(tmp_path):
    out = tmp_path / "overhead.json"
    script("overhead").main(CIRCLES, out, batch_size=[2], num_inference_steps=2, repetitions=1)
    assert json.loads(out.read_text())["results"]["2"]["median_ratio"] > 0


def test_response_of_a_trained_classifier_rises_from_end_to_end(tmp_path):
    circles = MultiGuidanceDDPMPipeline.from_pretrained(CIRCLES)
    circles.classifiers = NoisyClassifierSet.from_members(list(circles.classifiers.members)[:1])
    circles.save_pretrained(tmp_path / "pipeline")
    response = script("response")
    response.DRAWS = 1
    response.main([tmp_path / "pipeline"], tmp_path)
    (result,) = json.loads((tmp_path / "response.json").read_text())["results"].values()
    assert len(result["log_odds"]) == 3
    for answers, rises in zip(result["log_odds"], result["share_of_steps_that_rise_in_gap"], strict=True):
        assert answers[0] < -1 < 1 < answers[-1]
        assert rises > 0.5


def test_ways_to_train_classifiers(tmp_path, monkeypatch):
    classifiers = script("classifiers")
    monkeypatch.setattr(classifiers, "WARMUP", 1)
    monkeypatch.setattr(classifiers, "BATCH", 16)
    monkeypatch.setattr(sys.modules["response"], "RADIUS", 10)  # places in the middle only
    monkeypatch.setattr(sys.modules["response"], "DRAWS", 1)
    monkeypatch.setattr(sys.modules["response"], "NOISE_LEVELS", (0.0, 0.5))
    circles = MultiGuidanceDDPMPipeline.from_pretrained(CIRCLES)
    circles.register_to_config(sampling_defaults={"ddpm": {"num_inference_steps": 4, "guidance_scale": 120.0}})
    circles.save_pretrained(tmp_path / "pipeline")
    classifiers.main(tmp_path / "pipeline", tmp_path, num_classifiers=2, steps=3, num_images=2, num_by_target=1)
    results = json.loads((tmp_path / "classifiers.json").read_text())["results"]
    assert len(results) == 10
    assert all(len(row["rises"]) == 2 for row in results.values())
    # After three steps from the same seeds some still draw alike, but not all.
    assert len({json.dumps(row["mean_by_target"]) for row in results.values()}) > 2
    loaded = MultiGuidanceDDPMPipeline.from_pretrained(tmp_path / "distilled")
    assert len(loaded.classifiers.members) == 1
    for name in ("response.png", "heatmap.png"):
        assert (tmp_path / name).stat().st_size > 0


def test_bounded_layers_have_the_norm_they_were_given():
    classifier = tiny_classifier(0)
    script("classifiers").bound_layers(classifier, 2.0)
    for _ in range(30):  # of power iteration
        classifier.train()(torch.zeros(2, 1, 8, 8), 5)
    weight = classifier.eval().conv_in.weight.detach()
    assert torch.linalg.matrix_norm(weight.flatten(1), 2) == pytest.approx(2.0, rel=1e-3)


def test_square_by_two_attributes_and_by_corners(tmp_path):
    square = script("square")
    corners = ["bottom left", "bottom right", "top left", "top right"]
    circles = MultiGuidanceDDPMPipeline.from_pretrained(CIRCLES)
    for attributes, flags in (
        ({"height": ["bottom", "top"], "position": ["left", "right"]}, {}),
        ({"corner": corners}, {"corner": "corner"}),
    ):
        circles.classifiers = NoisyClassifierSet.from_members([tiny_classifier(0, attributes, sample_size=32)])
        circles.save_pretrained(tmp_path / "pipeline")
        out = tmp_path / "out"
        square.main(
            tmp_path / "pipeline",
            out,
            ("height", "position"),
            ("circle-height", "circle-position"),
            num_images=100,
            num_inference_steps=2,
            **flags,
        )
        results = json.loads((out / "square.json").read_text())["results"]
        counts = np.array(results["images_by_cell"])
        assert results["cells_with_an_image"] == (counts > 0).sum()
        assert counts.sum() == round(100 * (1 - results["share_malformed"]))


SMALL = "norm_num_groups: 4, attention_head_dim: 8, layers_per_block: 1, attention_resolutions: [], resolution: 16"
RECIPE = f"""
train_unet: {{train_data_dir: DATA, {SMALL}, block_out_channels: [8, 8], train_batch_size: 4, ddpm_num_steps: 50,
  num_inference_steps: 2}}
train_classifier: {{train_data_dir: DATA, attributes: [position], {SMALL}, block_out_channels: [8, 8],
  train_batch_size: 4, max_train_steps: 2}}
"""


def test_variance_schedule_and_loss(tmp_path):
    circles(24, 16).save_to_disk(tmp_path / "data")
    (tmp_path / "small.yaml").write_text(RECIPE.replace("DATA", str(tmp_path / "data")))
    out = tmp_path / "out"
    script("variance").main(tmp_path / "small.yaml", "position", out, max_train_steps=2, num_images=2)
    results = json.loads((out / "variance.json").read_text())["results"]
    assert len(results["rows"]) == len(list(out.glob("*.png"))) == 8
    assert all(0 <= row["share_malformed"] <= 1 for row in results["rows"].values())
    assert {path.parent.name for path in out.glob("*/classifiers")} == {
        "cosine-fixed-small-L_simple",
        "linear-fixed-small-L_simple",
    }


def test_ablations(tmp_path):
    ablations = script("ablations")
    circles_32 = MultiGuidanceDDPMPipeline.from_pretrained(CIRCLES)
    circles_32.register_to_config(sampling_defaults={"ddpm": {"num_inference_steps": 4, "guidance_scale": 120.0}})
    circles_32.save_pretrained(tmp_path / "pipeline")
    scales = {"weight": [3.5, 30], "evaluator": "circle-position", "num_images": 2}
    ablations.guidance_scale(tmp_path / "pipeline", "position", tmp_path / "scales", **scales)
    results = json.loads((tmp_path / "scales" / "guidance-scale.json").read_text())["results"]
    assert list(results["rows"]) == ["unguided", "3.5", "30"]

    circles(60, 16).save_to_disk(tmp_path / "data")
    (tmp_path / "small.yaml").write_text(RECIPE.replace("DATA", str(tmp_path / "data")))
    sizes = {"evaluator": "circle-position", "size": [6, 20], "max_train_steps": 2, "num_images": 4}
    for _ in range(2):  # the second time nothing is trained or sampled
        ablations.training_size(tmp_path / "small.yaml", "position", tmp_path / "sizes", **sizes)
    with pytest.raises(ValueError, match=r"`out` .* has images of .* expected a new folder"):
        ablations.training_size(tmp_path / "small.yaml", "position", tmp_path / "sizes", **{**sizes, "num_images": 5})
    rows = json.loads((tmp_path / "sizes" / "training-size.json").read_text())["results"]["rows"]
    assert list(rows) == ["20", "6"]
    for row in rows.values():
        assert row["guided"]["memorization"]["median_ratio"] > 0
        assert row["unguided"]["summary"]["num_images"] == 4
    for name in ("scales", "sizes"):
        for picture in ("ablation.png", "histograms.png"):
            assert (tmp_path / name / picture).stat().st_size > 0
    assert (tmp_path / "sizes" / "6-images" / "guided" / "nearest.png").stat().st_size > 0


def test_time_and_memory_of_an_evaluation(tmp_path, monkeypatch, capsys):
    evaluation = script("evaluation")
    evaluation.print_memory("test_resnet", 32, 20)
    held = float(capsys.readouterr().out.splitlines()[-1])
    assert 0.1 < held < 4
    monkeypatch.setattr(
        evaluation, "measure_memory", lambda *arguments: held
    )  # another process takes seconds to start
    evaluation.main(tmp_path / "evaluation.json", "test_resnet", 32, num_images=20, many_images=20)
    assert json.loads((tmp_path / "evaluation.json").read_text())["results"]["ratio"] > 0


def test_extrapolation(tmp_path, monkeypatch):
    extrapolation = script("extrapolation")
    recipe = RECIPE.replace("train_data_dir: DATA, ", "").replace("attributes: [position], ", "")
    for name, resolution in (("circles-16", 16), ("faces-rendered", 32)):
        (tmp_path / f"{name}.yaml").write_text(recipe.replace("resolution: 16", f"resolution: {resolution}"))
    monkeypatch.setattr(extrapolation, "RECIPES", tmp_path)
    monkeypatch.setattr(extrapolation, "FACES", ROOT / "pipelines" / "faces-rendered")
    monkeypatch.chdir(ROOT)
    extrapolation.positions(tmp_path / "outer", [30.0], num_images=2, max_train_steps=2)
    extrapolation.lips(tmp_path / "lips", [30.0], num_images=2, num_rendered=8, max_train_steps=2)
    for name in ("outer", "lips"):
        rows = json.loads((tmp_path / name / "extrapolation.json").read_text())["results"]["rows"]
        assert list(rows) == ["unguided", "scale 30"]
        assert (tmp_path / name / "scale-30.png").stat().st_size > 0


def test_green_lips_are_told_from_red_ones():
    extrapolation = script("extrapolation")
    rendered = extrapolation.with_lips(100, 32, seed=5)
    pixels = np.stack([np.asarray(image) for image in rendered["image"]])
    found, truth = extrapolation.has_green_lips(pixels), np.array(rendered["lips"]) == 1
    assert found[truth].mean() > 0.9
    assert found[~truth].mean() < 0.05


def test_a_small_autoencoder(tmp_path):
    circles(60, 16).save_to_disk(tmp_path / "data")
    script("autoencoder").main(tmp_path / "data", tmp_path / "vae", "16", max_train_steps=3, train_batch_size=4)
    vae = load_vae(str(tmp_path / "vae"))
    images = torch.rand(200, 1, 16, 16) * 2 - 1
    assert to_latents(vae, images).shape == (200, 4, 4, 4)
    assert vae.config.scaling_factor != 1
    assert (tmp_path / "vae" / "reconstructed.png").stat().st_size > 0
