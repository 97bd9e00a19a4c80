"""The Space in a browser, as its visitors use it."""

import io
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import tiny_pipeline
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from diffusers_multiguidance.calibration import weights_fingerprint

ROOT = Path(__file__).parents[1]
SPACE = ROOT / "spaces" / "interpolation"
sys.path.insert(0, str(SPACE))
from pictures import open_upload, point_in_square, square  # noqa: E402

COMMITTED = sorted(path.parent for path in (ROOT / "pipelines").glob("*/model_index.json"))
QUICK = "steps=4"  # of sampling: enough to see that something happens
# A fast machine shows the bar for a moment only, too short to be asked for.
SEE_PROGRESS = """() => {
    window.sawProgress = false;
    const see = () => { window.sawProgress ||= document.querySelector(".status .bar") !== null; };
    new MutationObserver(see).observe(document.body, {childList: true, subtree: true});
}"""
SECONDS = 60_000  # of patience, in milliseconds: the machine may be busy


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("space")
    with serve(folder, free_port(), *COMMITTED) as address:
        yield address
        log = (folder / "log").read_text()
        assert "app.py" not in log  # in no traceback; Gradio's own, of visitors who left, do not count


@contextmanager
def serve(folder: Path, port: int, *pipelines: Path) -> Iterator[str]:
    """The address of the Space with those pipelines and a tiny one of two attributes; `folder` holds its log."""
    tiny = tiny_pipeline({"Hair": ["dark", "light"], "Smiling": ["no", "yes"]})
    calibration = {
        "sampler": "ddim",
        "num_inference_steps": 6,
        "guidance_scale": 45.0,
        "guidance_interval": [0.0, 1.0],
    }
    calibration |= {"strengths": [0.1, 0.9], "set_points": [0.4, 0.6]}
    calibration |= {"fingerprint": weights_fingerprint([tiny.unet, *tiny.classifiers.members])}
    tiny.register_to_config(calibrations={"Hair": [calibration], "Smiling": [calibration]})
    tiny.save_pretrained(folder / "tiny")
    environment = {
        **os.environ,
        "MULTIGUIDANCE_PIPELINE": ",".join(str(path) for path in [*pipelines, folder / "tiny"]),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(folder / "files"),
        "HF_HUB_OFFLINE": "1",
    }
    address = f"http://127.0.0.1:{port}/"
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "app.py"], cwd=SPACE, env=environment, stdout=output, stderr=output
        )
    try:
        for _ in range(240):
            assert process.poll() is None, log.read_text()
            try:
                urllib.request.urlopen(address, timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        else:
            pytest.fail(f"the Space did not start: {log.read_text()}")
        yield address
    finally:
        process.terminate()
        process.wait(30)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def visit(server, browser) -> Iterator[Callable[..., Page]]:
    """Open the Space as one more visitor; nothing may be asked of other servers, and nothing may break."""
    contexts, strangers, errors = [], [], []

    def visit(query: str, width: int = 1200, height: int = 900, **options) -> Page:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)

        def only_here(route):
            if not route.request.url.startswith(server):
                strangers.append(route.request.url)
                route.abort()
            else:
                route.continue_()

        context.route(re.compile("^https?:"), only_here)
        page = context.new_page()
        page.set_default_timeout(SECONDS)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(server + query)
        expect(page.locator("#first")).to_contain_text(" – ", timeout=SECONDS)  # the pipeline's own label
        return page

    yield visit
    for context in contexts:
        context.close()
    assert strangers == []
    assert errors == []


@pytest.fixture
def screenshot(tmp_path) -> Callable[[Page, str], None]:
    folder = Path(os.environ.get("SPACE_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return lambda page, name: page.screenshot(path=folder / f"{name}.png", full_page=True)


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def open_tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def generate(page: Page, button: str = "Generate") -> list[bytes]:
    """Press the button and wait for what comes: the files of the images in the gallery."""
    page.evaluate(SEE_PROGRESS)
    press(page, button)
    page.wait_for_function("window.sawProgress", timeout=SECONDS)
    expect(page.locator(".status", has_text="images in").first).to_be_visible(timeout=SECONDS)
    return files(page, "#gallery img")


def files(page: Page, selector: str) -> list[bytes]:
    addresses = [image.get_attribute("src") for image in page.locator(selector).all()]
    return [page.request.get(address).body() for address in addresses]


def picture_file(picture: Image.Image, path: Path, **options) -> Path:
    picture.save(path, **options)
    return path


def send(page: Page, path: Path) -> None:
    with page.expect_file_chooser() as chooser:
        press(page, "Upload")
    chooser.value.set_files(path)


def expect_message(page: Page, words: str) -> None:
    toast = page.locator(".toast-body").first
    expect(toast).to_contain_text(words, timeout=SECONDS)
    assert "Traceback" not in page.content()


def test_generate(visit, screenshot):
    page = visit(f"?pipeline=circles&{QUICK}")
    images = generate(page)
    assert len(set(images)) == 4
    assert [Image.open(io.BytesIO(image)).size for image in images] == [(32, 32)] * 4
    expect(page.locator("#histograms figure")).to_have_attribute(
        "aria-label", re.compile(r"requested 0\.50; 4 images")
    )

    assert generate(page) == images  # the same settings and seed
    expect(page.locator("#histograms figure")).to_have_attribute("aria-label", re.compile("; 4 images"))
    assert not set(generate(page, "Next seed")) & set(images)
    expect(page.locator("#histograms figure")).to_have_attribute("aria-label", re.compile("; 8 images"))

    # By keyboard alone: the slider to its end, then the button.
    page.locator("#first input[type=range]").focus()
    page.keyboard.press("End")
    page.get_by_role("button", name="Generate", exact=True).focus()
    page.keyboard.press("Enter")
    figure = page.locator("#histograms figure")
    expect(figure).to_have_attribute("aria-label", re.compile(r"requested 1\.00; 4 images"), timeout=SECONDS)
    assert not set(files(page, "#gallery img")) & set(images)
    screenshot(page, "generate")

    expect(page).to_have_url(re.compile("position=1&.*seed=1$"))  # what the address says, another visitor sees
    other = visit("?" + page.url.partition("?")[2])
    assert generate(other) == files(page, "#gallery img")

    press(page, "Empty the histogram")
    expect(figure).to_have_attribute("aria-label", re.compile("; 0 images"))


def test_spread_evenly_another_pipeline_and_examples(visit, screenshot):
    page = visit(f"?pipeline=circles&{QUICK}")
    page.get_by_role("radio", name="digits", exact=True).check()
    expect(page.locator("#first")).to_contain_text("thickness: thin – thick")
    page.get_by_role("checkbox", name="Spread evenly").check()
    expect(page.locator("#first input[type=range]")).to_be_disabled()
    assert len(generate(page)) == 4
    expect(page.locator("#histograms figure")).to_have_attribute("aria-label", re.compile("spread evenly; 4 images"))
    screenshot(page, "evenly")
    times = []
    for visitor in (
        page,
        visit("?pipeline=digits&seed=1"),
    ):  # the second one's out of the cache, with the first one's time
        visitor.get_by_text("four from the middle").locator("visible=true").click()
        figure = visitor.locator("#histograms figure")
        expect(figure).to_have_attribute("aria-label", re.compile(r"requested 0\.50; 4 images"), timeout=SECONDS)
        times.append(visitor.locator(".status").first.inner_text())
        expect(visitor.locator("#first input[type=range]")).to_be_enabled()
        expect(visitor).to_have_url(re.compile("pipeline=digits&thickness=0.5&even=0&.*&seed=0$"))
    assert times[0] == times[1]


def test_every_committed_pipeline(visit, server):
    page, client = visit("?pipeline=tiny"), Client(server, verbose=False)
    for name in (path.name for path in COMMITTED):
        page.get_by_role("radio", name=name, exact=True).check()
        expect(page).to_have_url(re.compile(f"pipeline={name}&.*&sampler=.*&seed=0$"))
        pictures, words, histograms, *_ = client.predict(name=name, steps=2, images=2, api_name="/generate")
        assert len({Path(one["image"]).read_bytes() for one in pictures}) == 2
        assert "2 images in" in words
        assert histograms.count("<figure") == page.locator("#histograms figure").count() > 0


def test_sweep(visit, screenshot):
    page = visit(f"?pipeline=digits&{QUICK}&seed=3")
    open_tab(page, "Sweep")
    press(page, "Sweep")
    expect(page.locator("#gif img")).to_be_visible(timeout=SECONDS)
    expect(page.locator(".frames b")).to_have_count(9)
    downloads = []
    for name in ("Download GIF", "Download strip"):
        with page.expect_download() as download:
            press(page, name)
        downloads.append(Path(download.value.path()).read_bytes())
        assert download.value.suggested_filename.startswith("digits-thickness-3.")
    gif, strip = (Image.open(io.BytesIO(content)) for content in downloads)
    assert (gif.format, gif.n_frames, gif.size) == ("GIF", 16, (256, 256))  # nine there, seven back
    assert (strip.format, strip.size) == ("PNG", (9 * 128 + 8 * 4, 128))
    page.locator("#first input[type=range]").focus()
    page.keyboard.press("Home")
    expect(page).to_have_url(re.compile("pipeline=digits&thickness=0&.*steps=4&.*seed=3$"))  # here, too
    screenshot(page, "sweep")


def test_edit_what_was_drawn(visit, screenshot):
    page = visit(f"?pipeline=circles&{QUICK}")
    open_tab(page, "Edit")
    canvas = page.locator("#canvas canvas").first
    expect(canvas).to_be_visible(timeout=SECONDS)
    page.wait_for_timeout(1500)  # until the black background is on it
    box = canvas.bounding_box()
    x, y = box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"]
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 60, y, steps=5)
    page.mouse.up()
    press(page, "Edit")
    expect(page.locator("#edited").get_by_text("after:")).to_have_count(3, timeout=SECONDS)
    before, *after = files(page, "#edited img")
    pixels = np.asarray(Image.open(io.BytesIO(before)))
    assert pixels.shape == (32, 32)
    assert pixels.max() > 200  # the stroke
    assert pixels[:8].max() < 50  # and no white page around it
    assert len(set(after)) == 3
    screenshot(page, "edit")


def test_edit_what_was_uploaded(visit, tmp_path):
    page = visit(f"?pipeline=digits&{QUICK}")
    open_tab(page, "Edit")
    expect(page.locator("#canvas canvas").first).to_be_visible(timeout=SECONDS)
    text = tmp_path / "notes.txt"
    text.write_text("no picture")
    send(page, text)
    expect_message(page, "Invalid file type")
    disguised = tmp_path / "notes.png"
    disguised.write_text("no picture")
    send(page, disguised)
    expect_message(page, "The file can't be read as a picture; expected PNG")
    send(page, picture_file(Image.new("1", (6000, 6000)), tmp_path / "vast.png"))
    expect_message(page, "The picture is too large; expected at most 16 megapixels.")
    noise = Image.effect_noise((2600, 2600), 100)
    send(page, picture_file(noise, tmp_path / "heavy.bmp"))
    expect_message(page, "exceed the maximum allowed size")

    half = Image.new("RGB", (200, 100))
    half.paste("white", (0, 0, 100, 100))
    send(page, picture_file(half, tmp_path / "half.jpg"))
    page.wait_for_timeout(2500)
    press(page, "Edit")
    expect(page.locator("#edited").get_by_text("after:")).to_have_count(3, timeout=SECONDS)
    pixels = np.asarray(Image.open(io.BytesIO(files(page, "#edited img")[0])))
    assert pixels[:, :14].min() > 200
    assert pixels[:, 18:].max() < 50


def test_two_attributes(visit, screenshot):
    page = visit(f"?pipeline=tiny&{QUICK}")
    open_tab(page, "Two attributes")
    box = page.locator("#plane img").bounding_box()
    page.locator("#plane img").click(position={"x": box["width"] / 2, "y": 2})
    status = page.locator(".status", has_text="asked for 0.50, 1.00")
    expect(status).to_be_visible(timeout=SECONDS)
    first = files(page, "#point img")
    for slider, value in (("#first", "0.5"), ("#second", "1")):
        expect(page.locator(f"{slider} input[type=range]")).to_have_value(value)
    page.locator("#second input[type=range]").focus()
    page.keyboard.press("Home")
    press(page, "Draw")
    expect(page.locator(".status", has_text="asked for 0.50, 0.00")).to_be_visible(timeout=SECONDS)
    assert files(page, "#point img") != first
    screenshot(page, "two")
    expect(page).to_have_url(re.compile("Hair=0.5&Smiling=0&"))
    page.get_by_role("radio", name="circles", exact=True).check()
    expect(page.get_by_role("tab", name="Two attributes")).not_to_be_visible()


def test_a_position_runs_across_and_a_height_upwards(visit):
    page = visit("?pipeline=circles-xy&steps=10")
    open_tab(page, "Two attributes")
    box = page.locator("#plane img").bounding_box()
    page.locator("#plane img").click(position={"x": 0.15 * box["width"], "y": 0.15 * box["height"]})
    expect(page.locator(".status", has_text="came out as")).to_be_visible(timeout=SECONDS)
    pixels = np.asarray(Image.open(io.BytesIO(files(page, "#point img")[0])))
    rows, columns = np.nonzero(pixels > 128)
    assert columns.mean() < 16
    assert rows.mean() < 16


def test_attributes_that_are_left_free(visit):
    page = visit("?pipeline=faces&steps=2&images=1")
    page.locator("#guide_first input").uncheck()  # of Hair
    expect(page.locator("#first input[type=range]")).to_be_disabled()
    assert "20 steps at a guidance scale of 20, each attribute guided alone" in page.content()
    images = generate(page)
    hair, smile = page.locator("#histograms figure").all()
    expect(hair).to_have_attribute("aria-label", re.compile("left free; 1 image"))
    expect(smile).to_have_attribute("aria-label", re.compile(r"requested 0\.50; 1 image"))
    expect(page).to_have_url(re.compile("Hair=free&Smiling=0.5&"))
    page.locator("#guide_first input").check()
    expect(page.locator("#first input[type=range]")).to_be_enabled()
    expect(page).to_have_url(re.compile("Hair=0.5&Smiling=0.5&"))
    both = visit("?" + page.url.partition("?")[2])
    expect(both.locator("#guide_first input")).to_be_checked()
    assert generate(both) != images
    for box in ("#guide_first", "#guide_second"):
        page.locator(f"{box} input").set_checked(False)
    press(page, "Generate")
    expect(smile).to_have_attribute("aria-label", re.compile("left free; 1 image"), timeout=SECONDS)
    open_tab(page, "Edit")
    press(page, "Edit")
    expect_message(page, "No attribute is guided; tick one.")


def test_an_emptied_field(visit):
    page = visit(f"?pipeline=circles&{QUICK}")
    generate(page)
    url = page.url
    page.get_by_text("Sampling", exact=True).click()
    field = page.get_by_label("Guidance scale: how strongly")
    field.fill("")
    press(page, "Generate")
    expect_message(page, "scale is empty; expected a number from 0 to 10000.")
    expect(page.locator(".status .bar")).to_have_count(0)
    assert page.url == url
    field.fill("123.456789")
    page.locator(".toast-close").first.click()
    generate(page)
    expect(page).to_have_url(re.compile("scale=123.456789&"))


def test_calls_of_the_api(server):
    client = Client(server, verbose=False)
    usual = {"name": "tiny", "scale": 10, "steps": 2, "sampler": "ddim", "images": 1, "seed": 0}
    pictures, words, page = client.predict(**usual, api_name="/generate")[:3]
    assert len(pictures) == 1
    assert "1 images in" in words
    assert page.count("<figure") == 2
    for wrong, sentence in (
        ({"name": None}, "pipeline is empty; expected one of circles, "),
        ({"name": "squares"}, "'squares' .* is not in the list of choices"),
        ({"scale": None}, "scale is empty; expected a number from 0 to 10000."),
        ({"seed": None}, "seed is empty; expected a whole number from 0 to"),
        ({"sampler": None}, "sampler is empty; expected one of ddpm, "),
        ({"steps": 1000}, "1000 is greater than maximum value 100"),
    ):
        with pytest.raises(AppError, match=sentence) as error:
            client.predict(**{**usual, **wrong}, api_name="/generate")
        assert "\n" not in str(error.value)
    with pytest.raises(AppError, match="pipeline is empty; expected one of"):
        client.predict(name=None, first=0.5, second=0.5, scale=1, steps=2, sampler="ddim", seed=0, api_name="/point")
    with pytest.raises(ValueError, match="Cannot find a function with `api_name`: /edit"):
        client.predict(api_name="/edit")


def test_page_that_outlives_its_server(browser, tmp_path):
    """The page of a server that was started anew works, or says in words that it does not."""
    port = free_port()
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(SECONDS)
    with serve(tmp_path / "one", port) as address:
        page.goto(f"{address}?pipeline=tiny&{QUICK}")
        expect(page.locator("#first")).to_contain_text(" – ", timeout=SECONDS)
        generate(page)
    with serve(tmp_path / "two", port):
        press(page, "Next seed")
        expect(page.locator(".status").first).to_have_text(re.compile("4 images in .* seed 1"), timeout=SECONDS)
        assert "Traceback" not in page.content()
    context.close()
    assert "Traceback" not in (tmp_path / "two" / "log").read_text()


def test_a_calibrated_pipeline_asks_for_measured_strengths(visit):
    page = visit("?pipeline=tiny")
    generate(page)
    expect(page).to_have_url(re.compile("scale=45&steps=6&sampler=ddim"))  # as it was calibrated
    calibrated = page.get_by_text("Calibrated: the sliders ask for measured strengths.")
    expect(calibrated).to_be_visible()
    page.get_by_text("Sampling", exact=True).click()
    page.get_by_role("radio", name="ddpm", exact=True).check()
    expect(page.get_by_text("Not calibrated with this sampler")).to_be_visible()
    expect(calibrated).not_to_be_visible()


def test_nonsense_in_the_address(visit):
    for query, sentences in (
        (
            "?position=nan&steps=1000000&images=inf&sampler=<b>euler</b>&scale=strong",
            [
                "In the address, position is 'nan'; expected a number from 0 to 1. The default is used.",
                "steps is '1000000'; expected a whole number from 1 to 100.",
                "images is 'inf'; expected a whole number from 1 to 16.",
                "sampler is '<b>euler</b>'; expected one of ddpm, ddim, dpmsolver++, sde-dpmsolver++.",
                "scale is 'strong'; expected a number from 0 to 10000.",
            ],
        ),
        (
            "?pipeline=../../etc&seed=1.5",
            [
                "pipeline is '../../etc'; expected one of circles, circles-64, ",
                "seed is '1.5'; expected a whole number from 0 to 4294967295.",
            ],
        ),
    ):
        page = visit(query)
        for sentence in sentences:
            expect(page.locator(".status").first).to_contain_text(sentence)
        expect(page.locator("#first")).to_contain_text("position: left – right")
        expect(page.locator("#first input[type=range]")).to_have_value("0.5")


def test_two_visitors_at_once(visit):
    ada, bob = visit(f"?pipeline=digits&{QUICK}&seed=1"), visit(f"?pipeline=circles&{QUICK}&seed=2&images=3")
    for page in (ada, bob):
        press(page, "Generate")
    for page, words in ((ada, r"4 images .* seed 1"), (bob, r"3 images .* seed 2")):
        expect(page.locator(".status").first).to_have_text(re.compile(words), timeout=SECONDS)
    drawn = [files(page, "#gallery img") for page in (ada, bob)]
    assert [len(images) for images in drawn] == [4, 3]
    for page, images in zip((ada, bob), drawn, strict=True):
        assert generate(page) == images  # what each of them gets alone
    expect(bob.locator("#histograms figure")).to_have_attribute("aria-label", re.compile("position, .* 3 images"))


def test_narrow_screen(visit, screenshot):
    page = visit(f"?pipeline=tiny&{QUICK}", width=390, height=844, is_mobile=True, has_touch=True)
    generate(page)
    for tab in ("Generate", "Sweep", "Edit", "Two attributes"):
        open_tab(page, tab)
        page.wait_for_timeout(700)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, tab
        screenshot(page, f"narrow-{tab.lower().replace(' ', '-')}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_of_the_theme(visit, screenshot, scheme):
    page = visit(f"?pipeline=circles&{QUICK}", color_scheme=scheme)
    generate(page)

    def brightness(selector: str, colour: str) -> float:
        style = page.locator(selector).first.evaluate(f"element => getComputedStyle(element).{colour}")
        return float(np.mean([float(number) for number in re.findall(r"[\d.]+", style)[:3]]))

    page_colour = brightness("body", "backgroundColor")
    assert (page_colour > 200) == (scheme == "light")
    for selector in ("#title h1", "#title p", ".status", ".histogram figcaption span", ".histogram .axis"):
        assert abs(brightness(selector, "color") - page_colour) > 90, selector
    screenshot(page, scheme)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_uploads_are_looked_at_before_they_are_decoded(tmp_path):
    whole = picture_file(Image.new("RGB", (64, 64), "red"), tmp_path / "whole.png")
    assert open_upload(whole).size == (64, 64)
    half = tmp_path / "half.png"
    half.write_bytes(whole.read_bytes()[:100])
    with pytest.raises(ValueError, match="can't be read as a picture"):
        open_upload(half)
    transparent = picture_file(Image.new("RGBA", (8, 8), (255, 255, 255, 0)), tmp_path / "transparent.png")
    assert open_upload(transparent).getpixel((0, 0)) == (0, 0, 0)
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


def test_the_corners_of_the_square():
    picture = square({"Hair": ["dark", "light"], "Smiling": ["no", "yes"]}, (0.25, 0.75))
    red, _, _, opaque = np.moveaxis(np.asarray(picture), -1, 0)
    rows, columns = np.nonzero((red > 180) & (opaque > 180))  # the cross
    assert point_in_square(columns.mean(), rows.mean()) == pytest.approx((0.25, 0.75), abs=0.01)
    assert point_in_square(0, 0) == (0, 1)
    assert point_in_square(*picture.size) == (1, 0)


SAMPLING = """
import sys, types
spaces = types.ModuleType("spaces")
lent = []
spaces.GPU = lambda function: lent.append(function.__name__) or function
sys.modules["spaces"] = spaces
import sampling
print(*lent)
"""


def test_a_lent_gpu_is_for_sampling_only_and_a_wrong_pipeline_is_named(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path / "tiny")
    for name, code in ((str(tmp_path / "tiny"), 0), ("nobody/nothing", 1)):
        environment = {**os.environ, "MULTIGUIDANCE_PIPELINE": name, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
        result = subprocess.run(
            [sys.executable, "-c", SAMPLING], cwd=SPACE, env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == code, result.stderr
        if code == 0:
            assert result.stdout.split() == ["sample", "edit"]
        else:
            assert result.stderr.splitlines()[-1].startswith("MULTIGUIDANCE_PIPELINE has 'nobody/nothing'; expected")
            assert "Traceback" not in result.stderr


def test_card_and_requirements_fit_each_other():
    _, head, _ = (SPACE / "README.md").read_text().split("---\n", 2)
    card = yaml.safe_load(head)
    assert card["sdk"] == "gradio"
    assert (SPACE / card["app_file"]).is_file()
    assert len(card["short_description"]) <= 60
    lines = (SPACE / "requirements.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert pinned["gradio"] == card["sdk_version"]
