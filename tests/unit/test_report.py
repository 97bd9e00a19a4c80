"""`evaluate`, its page, and the comparison, on small images and a small evaluator."""

import json
import re

import numpy as np
import pytest
import torch
from helpers.tiny import tiny_pipeline
from PIL import Image

from diffusers_multiguidance.evaluation import report as report_module
from diffusers_multiguidance.evaluation.compare import compare
from diffusers_multiguidance.evaluation.control import TARGETS
from diffusers_multiguidance.evaluation.evaluate import evaluate
from diffusers_multiguidance.evaluation.figures import Figure, cell
from diffusers_multiguidance.models.evaluator import ImageClassifier
from diffusers_multiguidance.utils.files import replace_folder


def noise(count: int, seed: int, size: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 1)).astype(np.uint8)


def save_images(images: np.ndarray, folder):
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        Image.fromarray(image[..., 0]).save(folder / f"{number:03}.png")
    return folder


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Training images, samples of which five are among them, real images of which seven are, and an evaluator."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("report")
    network = ImageClassifier("test_resnet", "Smiling", ["no", "yes"], 1, 16, 2)
    network.save_pretrained(root / "evaluator")
    (root / "evaluator" / "training.json").write_text(json.dumps({"held_out_images": 9, "held_out_accuracy": 0.75}))
    training = noise(20, 1)
    save_images(training, root / "training")
    save_images(np.concatenate([noise(60, 2), training[:7]]), root / "reference")
    save_images(np.concatenate([training[:5], noise(15, 3)]), root / "samples")
    return root


def test_a_folder_of_images_against_reference_and_training(places, tmp_path):
    out = tmp_path / "report"
    call = {"gap": (0.01, 0.99), "reference": places / "reference", "training": places / "training"}
    written = evaluate(places / "samples", out, "Smiling", places / "evaluator", **call)
    report = json.loads((out / "report.json").read_text())
    assert report["batches"].keys() == {"samples"}
    figures = report["batches"]["samples"]
    assert figures == json.loads(json.dumps(written["batches"]["samples"]))
    assert figures["summary"]["num_images"] == len(report["values"]["samples"]) == 20
    assert report["asked"]["extractor"] == "2 test_resnet that learnt 'Smiling'"
    assert report["num_reference"] == 60
    assert "7 of 67 reference images are training images: left out." in report["remarks"]
    assert figures["memorization"]["share_nearer_than_held_out"] >= 0.25, "of five copies in twenty"
    assert report["num_middle"] == figures["quality"]["middle"]["num_real"] > 0
    assert figures["quality"]["all"]["fid"] is None
    assert "expected at least" in figures["quality"]["all"]["why_no_fid"]
    assert figures["mean_disagreement"] > 0
    low, high = figures["intervals"]["share_in_gap"]
    assert low <= figures["summary"]["share_in_gap"] <= high
    pictures = {"histogram.png", "samples.png", "middle.png", "nearest_samples.png"}
    assert {path.name for path in out.iterdir()} - {".written.json"} == {"report.json", "report.html", *pictures}
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(pictures)
    assert not re.search(r"""(src|href)=["'](?!data:)|https?://|@import|<script""", page), "it needs a network"
    headings = ["What was asked", "What came out", "How good", "How new", "How sure"]
    assert re.findall("<h2>(.*?)</h2>", page) == headings
    assert "accuracy 0.750" in page


def test_without_a_reference_quality_is_left_out_and_the_page_says_so(places, tmp_path):
    np.savez(tmp_path / "some.npz", noise(5, 1))
    report = evaluate(tmp_path / "some.npz", tmp_path / "report", "Smiling", places / "evaluator")
    assert "quality" not in report["batches"]["samples"]
    page = (tmp_path / "report" / "report.html").read_text()
    assert "<code>--reference</code>" in page
    assert "<code>--training</code>" in page


def test_another_report_takes_the_place_of_the_first(places, tmp_path):
    out = tmp_path / "report"
    evaluate(places / "samples", out, "Smiling", places / "evaluator", training=places / "training")
    assert (out / "nearest_samples.png").exists()
    (out / "notes.txt").write_text("mine")
    evaluate(places / "samples", out, "Smiling", places / "evaluator")
    assert not (out / "nearest_samples.png").exists()
    assert (out / "notes.txt").read_text() == "mine"


def test_a_report_is_whole_or_absent(places, tmp_path, monkeypatch):
    monkeypatch.setattr(report_module, "render", lambda *arguments, **content: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate(places / "samples", tmp_path / "report", "Smiling", places / "evaluator")
    assert list(tmp_path.iterdir()) == []


def test_a_pipeline_is_sampled_in_every_way(places, tmp_path):
    tiny_pipeline().save_pretrained(tmp_path / "pipeline")
    torch.manual_seed(0)
    ImageClassifier("test_resnet", "Smiling", ["no", "yes"], 1, 8).save_pretrained(tmp_path / "evaluator")
    ImageClassifier("test_resnet", "digit", ["0", "1", "2"], 1, 8).save_pretrained(tmp_path / "recognizer")
    save_images(noise(60, 1, 8), tmp_path / "reference")
    call = {"num_images": 8, "num_inference_steps": 2, "guidance_scale": 5.0, "seed": 3}
    report = evaluate(
        tmp_path / "pipeline",
        tmp_path / "report",
        "Smiling",
        tmp_path / "evaluator",
        reference=tmp_path / "reference",
        recognizer=tmp_path / "recognizer",
        target={"Smiling": 0.3},
        **call,
    )
    assert list(report["batches"]) == ["unguided", "guided", "uniform", "sweep"]
    assert (report["asked"]["target"], report["asked"]["num_inference_steps"]) == ({"Smiling": 0.3}, 2)
    control = report["batches"]["sweep"]["control"]
    assert len(control["mean_by_target"]) == len(TARGETS)
    assert len(report["values"]["sweep"]) == 2 * len(TARGETS)
    assert control["smoothness"]["pixels"] >= 1
    assert report["batches"]["guided"]["quality"]["sliding_kid"]["mean"] is None, "of so few images"
    assert 0 <= report["batches"]["guided"]["recognized"]["share"] <= 1
    pictures = {path.stem for path in (tmp_path / "report").glob("*.png")}
    assert pictures >= {"unguided", "guided", "uniform", "sweep", "control", "histogram"}
    assert Image.open(tmp_path / "report" / "sweep.png").size == (9 * 17 + 1, 2 * 17 + 1)
    assert "its target means a target probability" in report["remarks"][0]
    page = (tmp_path / "report" / "report.html").read_text()
    assert "of the unguided ones" in page
    assert "signs" not in report["batches"]["guided"], "of two steps"
    assert "What may have gone wrong" not in page


def test_the_square_of_two_attributes(tmp_path):
    pipeline = tiny_pipeline(attributes={"position": ["left", "right"], "height": ["bottom", "top"]})
    pipeline.save_pretrained(tmp_path / "pipeline")
    torch.manual_seed(0)
    for name in ("position", "height"):
        ImageClassifier("test_resnet", name, ["no", "yes"], 1, 8).save_pretrained(tmp_path / name)
    call = {"num_images": 9, "num_inference_steps": 4, "guidance_scale": 5.0, "training": tmp_path / "training"}
    save_images(noise(12, 1, 8), tmp_path / "training")
    places = {"second_attribute": "height", "second_evaluator": tmp_path / "height"}
    report = evaluate(tmp_path / "pipeline", tmp_path / "report", "position", tmp_path / "position", **places, **call)
    assert list(report["batches"]) == ["unguided", "guided", "uniform", "square", "sweep"]
    square = report["batches"]["square"]["square"]
    assert sum(sum(row) for row in square["images_by_cell"]) == len(report["second_values"]["square"]) == 9
    assert 1 <= square["cells_with_an_image"] <= 9
    assert report["batches"]["guided"]["signs"]["highest_variance"] > 0
    for name in ("position", "height"):
        assert any(f"'{name}' has no calibration" in remark for remark in report["remarks"])
    assert square["cells_by_chance"] == pytest.approx(100 * (1 - 0.99**9))
    page = (tmp_path / "report" / "report.html").read_text()
    assert "What may have gone wrong" in page
    assert "cells with an image" in page
    shown = {path.stem for path in (tmp_path / "report").glob("*.png")}
    assert shown >= {"heat_map", "cells", "square", "signs_guided"}
    assert Image.open(tmp_path / "report" / "cells.png").size == (10 * 17 + 1, 10 * 17 + 1)


def test_a_report_of_nothing_but_malformed_images(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path / "pipeline")
    call = {"num_images": 2, "num_inference_steps": 2}
    report = evaluate(tmp_path / "pipeline", tmp_path / "report", "Smiling", "circle-position", **call)
    assert report["batches"]["guided"]["summary"]["share_malformed"] == 1
    assert report["values"]["sweep"] == [None] * 18
    assert report["batches"]["sweep"]["control"]["share_malformed"] == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"samples": "EMPTY"}, "`samples` can't be read: "),
        ({"samples": "MIXED"}, "`samples` holds 000.png of 16x16 pixels and 1.png of 12x10; expected images of one"),
        ({"samples": "nowhere"}, "`samples` is 'nowhere'; expected a folder of images, an .npz file, or "),
        ({"reference": "EMPTY"}, "`reference` can't be read: "),
        ({"reference": "SMALL"}, "`reference` holds 000.png of 8x8 pixels; expected at least 16x16, as "),
        ({"reference": "training", "training": "training"}, "`reference` holds 20 images, and all of them are trai"),
        ({"evaluator": None}, "`evaluator` is missing, and no sample.json lies beside "),
        ({"extractor": "timm:nothing"}, "`extractor` 'timm:nothing' can't be loaded or downloaded"),
        ({"extractor": "OTHER"}, "`images` have shape (2, 16, 16, 1); expected (N, 8, 8, 3) for this evaluator."),
        ({"recognizer": "NUMBER"}, "`probabilities` have shape (1, 1); expected (N, K) with "),
        ({"num_images": 5}, "`num_images` is 5, but `samples` are images; expected it with a pipeline."),
        ({"samples": "runs/typo.npz"}, "`samples` is 'runs/typo.npz'; expected a folder of images, an .npz file, or "),
        ({"reference": "OTHER.npz"}, "`reference` holds images of shape (8, 8, 1); expected (16, 16, 1), as the "),
        (
            {"second_evaluator": "circle-height"},
            "`second_evaluator` is 'circle-height'; expected a `second_attribute`",
        ),
        (
            {"second_attribute": "Hair", "second_evaluator": "nonsense"},
            "`second_evaluator` is 'nonsense'; expected one of",
        ),
        ({"second_attribute": "Hair"}, "`second_evaluator` is missing, and no sample.json lies beside "),
        ({"samples": "sampls", "evaluator": None}, "`samples` is 'sampls'; expected a folder of images, an .npz"),
        (
            {"samples": "THREE", "attribute": "corner"},
            "`attribute` 'corner' has the classes ['a', 'b', 'c']; expected",
        ),
        ({"samples": "PIPELINE", "evaluator": None}, "`attribute` is 'Smiling', for which "),
        ({"second_attribute": "Smiling"}, "`second_attribute` is 'Smiling', as is `attribute`; expected another"),
        ({"samples": "PIPELINE", "second_attribute": "Hair"}, "`second_attribute` is 'Hair'; expected one of ['Smi"),
        ({"gap": (0.8, 0.2)}, "`gap` is 0.8 to 0.2; expected "),
        ({"target": {"Smiling": 0.5}}, "`target` is {'Smiling': 0.5}, but `samples` are images; expected it with "),
        ({"samples": "PIPELINE", "attribute": "Age"}, "`attribute` is 'Age'; expected one of ['Smiling']."),
        ({"samples": "PIPELINE", "evaluator": "evaluator"}, "`images` have shape (1, 8, 8, 1); expected (N, 16, 16,"),
        ({"samples": "PIPELINE", "target": {"Smiling": 2}}, "`target` for 'Smiling' is 2; expected"),
    ],
)
def test_bad_input_ends_in_one_sentence_and_leaves_nothing(places, tmp_path, call, message):
    (tmp_path / "EMPTY").mkdir()
    save_images(noise(1, 1), tmp_path / "MIXED")
    Image.new("L", (12, 10)).save(tmp_path / "MIXED" / "1.png")
    save_images(noise(1, 1, 8), tmp_path / "SMALL")
    tiny_pipeline().save_pretrained(tmp_path / "PIPELINE")
    tiny_pipeline(attributes={"corner": ["a", "b", "c"]}).save_pretrained(tmp_path / "THREE")
    ImageClassifier("test_resnet", "Smiling", ["no", "yes"], 3, 8).save_pretrained(tmp_path / "OTHER")
    ImageClassifier("test_resnet", "Smiling", None, 1, 16).save_pretrained(tmp_path / "NUMBER")
    np.savez(tmp_path / "OTHER.npz", noise(4, 1, 8))

    def place(word):
        here = [root / word for root in (tmp_path, places) if isinstance(word, str) and (root / word).exists()]
        return here[0] if here else word

    given = {"samples": "samples", "attribute": "Smiling", "evaluator": "evaluator", **call}
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        evaluate(out=tmp_path / "report", **{name: place(value) for name, value in given.items()})
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "report").exists()


def test_a_report_lies_apart_from_what_is_read(places, tmp_path):
    """Its pictures would take the place of a card's, or count as images."""
    for samples in (save_images(noise(3, 1), tmp_path / "images"), tmp_path / "pipeline"):
        tiny_pipeline().save_pretrained(tmp_path / "pipeline")
        with pytest.raises(ValueError, match=r"`out` is .* which is or lies in `samples`; expected a folder apart"):
            evaluate(samples, samples, "Smiling", places / "evaluator")
    for argument in ("reference", "training"):
        with pytest.raises(
            ValueError, match=rf"`out` is .* which is or lies in `{argument}`; expected a folder apart"
        ):
            evaluate(
                places / "samples",
                tmp_path / "images" / "report",
                "Smiling",
                places / "evaluator",
                **{argument: tmp_path / "images"},
            )
    with replace_folder(tmp_path / "trained") as folder:
        (folder / "weights").write_text("mine")
    with pytest.raises(ValueError, match=r"`out` is .* which another command wrote; expected a folder for the report"):
        evaluate(places / "samples", tmp_path / "trained", "Smiling", places / "evaluator")
    assert (tmp_path / "trained" / "weights").read_text() == "mine"


def test_what_sample_wrote_may_be_the_reference(places, tmp_path):
    """Its grid.png is no image of it."""
    (tmp_path / "samples").mkdir()
    np.savez(tmp_path / "samples" / "images.npz", images=noise(6, 1))
    Image.new("L", (64, 64)).save(tmp_path / "samples" / "grid.png")
    record = {"pipeline": "somewhere", "seed": 3}
    (tmp_path / "samples" / "sample.json").write_text(json.dumps(record))
    call = {"evaluator": places / "evaluator", "reference": tmp_path / "samples"}
    report = evaluate(tmp_path / "samples" / "images.npz", tmp_path / "report", "Smiling", **call)
    assert (report["num_reference"], report["remarks"]) == (6, [])
    assert report["asked"]["seed"] == 3


def test_larger_reference_images_are_cut_to_shape(places, tmp_path):
    save_images(noise(4, 1, 32), tmp_path / "large")
    report = evaluate(
        places / "samples", tmp_path / "report", "Smiling", places / "evaluator", reference=tmp_path / "large"
    )
    assert report["remarks"] == ["4 images of `reference` were cut and resized to 16x16 pixels."]


def test_grey_files_are_looked_at_by_an_evaluator_of_colour(places, tmp_path):
    ImageClassifier("test_resnet", "Smiling", ["no", "yes"], 3, 16).save_pretrained(tmp_path / "evaluator")
    np.savez(tmp_path / "grey.npz", noise(20, 1))
    for samples in (places / "samples", tmp_path / "grey.npz"):
        report = evaluate(samples, tmp_path / "report", "Smiling", tmp_path / "evaluator")
        assert report["batches"]["samples"]["summary"]["num_images"] == 20
    second = {"second_attribute": "Hair", "second_evaluator": tmp_path / "evaluator"}
    report = evaluate(places / "samples", tmp_path / "report", "position", "circle-position", **second)
    assert len(report["second_values"]["samples"]) == 20


def test_two_reports_side_by_side(places, tmp_path):
    for name, extractor in (("a", None), ("b", "pixels")):
        gap = (0.3, 0.7) if extractor else (0.2, 0.8)
        call = {"reference": places / "reference", "extractor": extractor, "gap": gap}
        evaluate(places / "samples", tmp_path / name, "Smiling", places / "evaluator", **call)
    columns, rows = compare([tmp_path / "a", tmp_path / "b"], tmp_path / "both")
    assert list(columns) == ["a, samples", "b, samples"]
    labels = {figure.label: cells for figure, cells in rows}
    assert labels["mean"]["a, samples"] == labels["mean"]["b, samples"]
    assert labels["KID to all"]["b, samples"].text == "0.000", "of pixels"
    page = (tmp_path / "both" / "compare.html").read_text()
    assert "Not with the same extractor" in page
    assert "Not with the same gap ([0.2, 0.8], [0.3, 0.7]): " in page
    assert page.count("data:image/png") == 2
    compare([tmp_path / "a", tmp_path / "b"], tmp_path / "a")
    assert {"compare.html", "report.json", "report.html"} <= {path.name for path in (tmp_path / "a").iterdir()}
    with pytest.raises(ValueError, match=r"`reports` name '.*a/../a' twice; expected each once"):
        compare([tmp_path / "a", tmp_path / "a" / ".." / "a"])
    with pytest.raises(ValueError, match="`reports` are 1; expected at least two"):
        compare([tmp_path / "a"])
    with pytest.raises(ValueError, match=r"report.json` can't be read \(.*\); expected what `multiguidance evaluate`"):
        compare([tmp_path / "a", tmp_path / "both"])


def test_cells_say_the_interval_the_error_and_the_floor():
    figures = {"a": {"share": 0.5, "kld": 1.25, "floor": 0.1, "error": 0.02, "none": None}, "ends": [0.4, 0.6]}
    assert str(cell(Figure("out", "", "a.share", "share", error="ends"), figures)) == "50.0 % (40.0 to 60.0)"
    shown = cell(Figure("out", "", "a.kld", error="a.error", floor="a.floor"), figures)
    assert str(shown) == "1.250 (± 0.020; floor 0.100)"
    windows = {"s": {"mean": 0.1, "by_value": {"0.1": 0.1, "0.2": 0.1}, "left_out": {"0.3": "few"}}}
    assert str(cell(Figure("good", "", "s.mean", windows="s"), windows)) == "0.100 (2 of 3 values)"
    assert str(cell(Figure("out", "", "a.none"), figures)) == str(cell(Figure("out", "", "b.c"), figures)) == ""
