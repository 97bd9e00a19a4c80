"""The Space without a browser: addresses, settings, what a pipeline says of itself, sampling, uploads."""

import importlib
import json
import re
import sys
import threading
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import DDPMPipeline, DDPMScheduler
from helpers.launch import ROOT
from helpers.tiny import cfg_pipeline, generators, tiny_classifier, tiny_pipeline, tiny_stock_unet, with_parts
from PIL import Image

from diffusers_multiguidance import NoisyClassifierSet, create_unet

SPACE = ROOT / "spaces" / "interpolation"
MODULES = ("sampling", "settings", "pictures", "app", "opening")
CARD = """---
multiguidance:
  name: Tiny
  note: Nothing to see.
  gap: {Hair: [0.2, 0.8]}
---
"""


@pytest.fixture(scope="module")
def space(tmp_path_factory) -> Iterator[types.SimpleNamespace]:
    """The modules of the Space, serving a tiny pipeline with a card and a stock one without classifiers."""
    folder = tmp_path_factory.mktemp("space")
    tiny_pipeline({"Hair": ["dark", "light"], "Smiling": ["no", "yes"]}).save_pretrained(folder / "tiny")
    (folder / "tiny" / "README.md").write_text(CARD)
    DDPMPipeline(tiny_stock_unet(), DDPMScheduler(num_train_timesteps=100)).save_pretrained(folder / "stock")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SPACE)
        patch.setenv("MULTIGUIDANCE_PIPELINE", f"{folder / 'tiny'}, {folder / 'stock'}")
        patch.setenv("HF_HUB_OFFLINE", "1")
        # As where a GPU is lent per call.
        lent: list[str] = []
        spaces = types.ModuleType("spaces")
        spaces.GPU = lambda function: lent.append(function.__name__) or function
        patch.setitem(sys.modules, "spaces", spaces)
        yield types.SimpleNamespace(lent=lent, **{name: importlib.import_module(name) for name in MODULES})
    for name in MODULES:
        del sys.modules[name]


def test_a_sample_to_edit_and_a_sweep_where_all_is_free(space):
    model = next(iter(space.sampling.MODELS.values()))
    chosen = replace(space.settings.defaults(model), steps=2, scale=12.0)
    *_, picture = space.app.use_a_sample(chosen)
    assert picture.size == (space.app.CANVAS, space.app.CANVAS)
    free = replace(chosen, targets=dict.fromkeys(chosen.targets))
    assert free.call()["guidance_scale"] is None
    call, _ = free.sweep("Hair", 2)
    assert (call["target"], call["guidance_scale"]) == ({"Hair": "uniform"}, 12.0)


def test_a_lent_gpu_is_for_sampling_only(space):
    assert space.lent == ["sample", "edit"]


def test_what_a_pipeline_says_of_itself(space):
    tiny, stock = space.sampling.MODELS.values()
    assert tiny.card == {"name": "Tiny", "note": "Nothing to see.", "gap": {"Hair": [0.2, 0.8]}}
    assert stock.card == {"name": "stock", "note": "", "gap": {}}
    histograms = space.app.histograms(space.settings.defaults(tiny), [])
    assert histograms.count("not in training") == 1
    page = space.app.show(space.settings.defaults(tiny))
    assert [page[one] for one in (space.app.edit_strength, space.app.edit_scale, space.app.edit_steps)] == [
        0.5,
        30,
        10,
    ]
    page = space.app.show(space.settings.defaults(stock))
    assert not any(page[one]["visible"] for one in (*space.app.targets, space.app.sweep_tab, space.app.edit_tab))
    *_, (images, words, _, _) = space.app.generate(space.settings.from_query({"pipeline": "stock", "steps": 2})[0])
    assert len(images) == 4
    assert "4 images in" in words


def test_a_pipeline_without_classifiers_has_sliders_and_no_editing(space, tmp_path, monkeypatch):
    cfg_pipeline().save_pretrained(tmp_path / "cfg")
    model = space.sampling.load_model(str(tmp_path / "cfg"))
    monkeypatch.setitem(space.sampling.MODELS, "cfg", model)
    page = space.app.show(space.settings.defaults(model))
    assert page[space.app.targets[0]]["visible"]
    assert not page[space.app.edit_tab]["visible"]
    *_, last = space.sampling.sample("cfg", "ddpm", [0, 1], target={"Smiling": 0.5}, num_inference_steps=2)
    assert last.images.shape == (2, 8, 8, 1)
    assert np.isnan(last.values["Smiling"]).all()  # nobody to tell
    with pytest.raises(ValueError, match="This pipeline has no classifiers; expected one that has"):
        next(space.sampling.edit("cfg", Image.new("L", (8, 8)), [0], target={"Smiling": 0.5}))


def test_a_wrong_pipeline_is_named(space):
    with pytest.raises(SystemExit, match="MULTIGUIDANCE_PIPELINE has 'nobody/nothing'; expected"):
        space.sampling.load_model("nobody/nothing")


def test_an_address_holds_all_settings(space):
    query = {"pipeline": "tiny", "Hair": "free", "Smiling": "0.25", "even": "1", "scale": "12.5", "steps": "7"}
    query |= {"scheduler": "ddim", "images": "3", "seed": "9"}
    settings, problems = space.settings.from_query(query)
    assert problems == []
    assert (settings.steps, settings.images, settings.seed) == (7, 3, 9)
    call = settings.call()
    assert (call["target"], call["guidance_scale"], call["scheduler"]) == ({"Smiling": "uniform"}, 12.5, "ddim")


def test_nonsense_in_an_address(space):
    settings, problems = space.settings.from_query(
        {"Hair": "nan", "steps": "1000000", "images": "inf", "scheduler": "best", "scale": "strong", "seed": "1.5"}
    )
    assert problems == [
        f"scheduler is 'best'; expected one of {', '.join(space.settings.SCHEDULERS)}.",
        "Hair is 'nan'; expected a number from 0 to 1.",
        "scale is 'strong'; expected a number from 0 to 10000.",
        "steps is '1000000'; expected a whole number from 1 to 100.",
        "images is 'inf'; expected a whole number from 1 to 16.",
        "seed is '1.5'; expected a whole number from 0 to 4294967295.",
    ]
    assert settings == space.settings.from_query({})[0]
    _, problems = space.settings.from_query({"pipeline": "../../etc"})
    assert problems == ["pipeline is '../../etc'; expected one of tiny, stock."]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (None, "settings is no object; expected one such as {'seed': 3}."),
        ({"sed": 3}, "settings has 'sed'; expected some of ['pipeline', "),
        ({"pipeline": None}, "pipeline is empty; expected one of tiny, "),
        ({"scheduler": None}, "scheduler is empty; expected one of ddpm, "),
        ({"seed": None}, "seed is empty; expected a whole number from 0 to"),
        ({"Smiling": [1]}, "Smiling is [1]; expected a number from 0 to 1."),
        ({"steps": 1000}, "steps is 1000; expected a whole number from 1 to 100."),
    ],
)
def test_wrong_settings_through_the_api(space, wrong, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        space.app.served(wrong)


def test_a_scheduler_that_was_not_tuned_needs_a_scale(space):
    tuned = space.settings.from_query({"scheduler": "sde-dpmsolver++"})[0]
    assert (tuned.scale, tuned.steps) == (30.0, 10)
    untuned, problems = space.settings.from_query({"scheduler": "unipc"})
    assert (untuned.scale, problems) == (None, [])
    with pytest.raises(ValueError, match="`guidance_scale` is missing, and none was tuned for 'unipc'"):
        list(space.app.generate(untuned))


def test_visitors_share_nothing_and_may_leave(space):
    """Two schedulers in turns draw what each draws alone; whoever leaves leaves no thread behind."""
    calls = [
        space.settings.from_query({"scheduler": name, "scale": 20, "steps": 6})[0] for name in ("ddpm", "dpmsolver++")
    ]
    alone = [list(space.sampling.sample(seeds=[1, 2], **one.call())) for one in calls]
    for steps in zip(*(space.sampling.sample(seeds=[1, 2], **one.call()) for one in calls), strict=True):
        for step, expected in zip(steps, (one.pop(0) for one in alone), strict=True):
            assert (step.images == expected.images).all()
    threads = threading.active_count()
    leaving = space.sampling.sample(seeds=[1], **calls[0].call())
    assert next(leaving).values is None
    assert threading.active_count() == threads
    leaving.close()


def test_a_sweep_asks_for_even_steps_of_one_seed(space):
    settings = space.settings.from_query({"Smiling": "free", "steps": 3, "seed": 5})[0]
    call, requested = settings.sweep("Hair", 4)
    assert requested == [0.125, 0.375, 0.625, 0.875]
    assert call["target"] == {"Hair": "uniform"}
    assert len(set(call["seeds"])) == 1
    *_, (figure, strip, gif, _) = space.app.sweep(settings, "Hair", 4)
    assert figure.count("came out as") == 4
    assert "grid-column:2 / 4" in figure  # those in the gap
    assert strip["value"].endswith("tiny-Hair-5.png")
    assert gif["value"].endswith("tiny-Hair-5.gif")
    with pytest.raises(ValueError, match="frames is 2; expected a whole number from 3 to 15"):
        list(space.app.sweep(settings, "Hair", 2))


def test_the_opening_is_written_by_one_command(space, tmp_path, monkeypatch):
    for module in (space.opening, space.sampling):
        monkeypatch.setattr(module, "OPENING", tmp_path / "opening")
    space.opening.main()
    opening = space.sampling.load_opening("tiny")
    assert opening.along == "Hair"
    assert opening.images.shape == (9, 8, 8, 1)
    assert len(opening.values) == len(opening.requested) == 9
    assert space.sampling.load_opening("stock") is None


def test_every_committed_pipeline_has_an_opening():
    values = json.loads((SPACE / "opening" / "values.json").read_text())
    pictures = {path.stem: path for path in (SPACE / "opening").glob("*.png")}
    assert set(values) == set(pictures) == {path.parent.name for path in ROOT.glob("pipelines/*/model_index.json")}
    assert sum(path.stat().st_size for path in pictures.values()) < 120_000
    for name, entry in values.items():
        folder = ROOT / "pipelines" / name
        denoiser = next(folder / part for part in ("unet", "transformer") if (folder / part).exists())
        sides = json.loads((denoiser / "config.json").read_text())["sample_size"]
        height, width = (sides, sides) if isinstance(sides, int) else sides
        with Image.open(pictures[name]) as strip:
            assert strip.width * height == 9 * strip.height * width
        assert len(entry["values"]) == len(entry["requested"]) == 9


def picture_file(picture: Image.Image, path: Path) -> Path:
    picture.save(path)
    return path


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_uploads_are_looked_at_before_they_are_decoded(space, tmp_path):
    open_upload = space.pictures.open_upload
    whole = picture_file(Image.new("RGB", (64, 64), "red"), tmp_path / "whole.png")
    assert open_upload(whole).size == (64, 64)
    half = tmp_path / "half.png"
    half.write_bytes(whole.read_bytes()[:100])
    with pytest.raises(ValueError, match="can't be read as a picture"):
        open_upload(half)
    transparent = picture_file(Image.new("RGBA", (8, 8), (255, 255, 255, 0)), tmp_path / "transparent.png")
    assert space.pictures.fit(open_upload(transparent), (8, 8), 3).min() == 255  # white, as for everyone
    animated = tmp_path / "animated.gif"
    Image.new("L", (8, 8)).save(animated, save_all=True, append_images=[Image.new("L", (8, 8), 255)])
    with pytest.raises(ValueError, match=r"can't be read as a picture \(animated image\); expected PNG"):
        open_upload(animated)
    with pytest.raises(ValueError, match="at most 16 megapixels"):
        open_upload(picture_file(Image.new("1", (4001, 4000)), tmp_path / "vast.png"))
    heavy = tmp_path / "heavy.png"
    heavy.write_bytes(whole.read_bytes() + bytes(5_000_000))
    with pytest.raises(ValueError, match="expected at most 5 MB"):
        open_upload(heavy)
    vector = tmp_path / "vector.png"
    vector.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")  # Pillow would call an interpreter
    with pytest.raises(ValueError, match="can't be read as a picture"):
        open_upload(vector)


def test_pictures_that_are_not_square_in_patches(space, tmp_path, monkeypatch):
    """The network sees 4 x 8 patches of images of 8 x 16 pixels, in colour."""
    parts = tiny_pipeline({"Hair": ["dark", "light"]}).components
    torch.manual_seed(0)
    unet = create_unet((4, 8), 12, (8, 16), (4,), 1, 4, 8, learned_variance=True)
    torch.nn.init.normal_(unet.conv_out.weight, std=0.1)
    member = tiny_classifier(1, {"Hair": ["dark", "light"]}, sample_size=(4, 8), in_channels=12)
    parts |= {"unet": unet, "classifiers": NoisyClassifierSet.from_members([member])}
    with_parts(**parts, patch_size=2).save_pretrained(tmp_path / "wide")
    model = space.sampling.load_model(str(tmp_path / "wide"))
    monkeypatch.setitem(space.sampling.MODELS, "wide", model)
    assert model.pipe.image_size == model.edit.image_size == (8, 16)
    settings = space.settings.from_query({"pipeline": "wide", "steps": "3", "images": "2"})[0]

    steps = list(space.sampling.sample(seeds=[1, 2], **settings.call()))
    assert {step.images.shape for step in steps} == {(2, 8, 16, 3)}
    alone = model.pipe(2, generator=generators(2, start=1), output_type="np", **{
        name: value for name, value in settings.call().items() if name not in ("name", "scheduler", "straight")
    }).images  # fmt: skip
    np.testing.assert_allclose(steps[-1].images, np.rint(255 * alone), atol=1)
    *_, (shown, _, _, _) = space.app.sweep(settings, "Hair", 3)
    assert shown.count('<div class="frame') == 3

    page = space.app.show(settings)
    canvas = page[space.app.canvas]
    assert (space.app.as_model_sees(model, canvas["composite"]) == 0).all()  # all of the black, nothing beside it
    half = Image.new("RGB", (100, 100), "red")
    half.paste("blue", (0, 0, 50, 100))
    half.save(tmp_path / "half.png")
    (uploaded,) = space.app.upload(settings, str(tmp_path / "half.png"))
    assert uploaded.size == (256, 128)
    assert (uploaded.getpixel((0, 64)), uploaded.getpixel((255, 64))) == ((0, 0, 255), (255, 0, 0))
    *_, (pair, variants, _) = space.app.edit_picture(settings, {"composite": uploaded}, 0.5, 20.0, 4)
    assert {one.size for one in (*pair, *(variant for variant, _ in variants))} == {(256, 128)}
    space.pictures.save_gif(steps[-1].images, tmp_path / "wide.gif")
    with Image.open(tmp_path / "wide.gif") as gif:
        assert gif.size == (256, 128)


def test_the_corners_of_the_square(space):
    point_in_square = space.pictures.point_in_square
    picture = space.pictures.square({"Hair": ["dark", "light"], "Smiling": ["no", "yes"]}, (0.25, 0.75))
    red, _, _, opaque = np.moveaxis(np.asarray(picture), -1, 0)
    rows, columns = np.nonzero((red > 180) & (opaque > 180))  # the cross
    assert point_in_square(columns.mean(), rows.mean()) == pytest.approx((0.25, 0.75), abs=0.01)
    assert point_in_square(0, 0) == (0, 1)
    assert point_in_square(*picture.size) == (1, 0)


def test_card_and_requirements_fit_each_other():
    _, head, _ = (SPACE / "README.md").read_text().split("---\n", 2)
    card = yaml.safe_load(head)
    assert card["sdk"] == "gradio"
    assert (SPACE / card["app_file"]).is_file()
    assert len(card["short_description"]) <= 60
    lines = (SPACE / "requirements.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert pinned["gradio"] == card["sdk_version"]
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert pinned["diffusers-multiguidance[eval]"] == version
