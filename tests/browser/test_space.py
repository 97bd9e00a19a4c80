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
from pathlib import Path

import numpy as np
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from helpers.launch import ROOT
from helpers.tiny import tiny_pipeline
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from diffusers_multiguidance.guidance import weights_fingerprint

SPACE = ROOT / "spaces" / "interpolation"
COMMITTED = sorted(path.parent for path in (ROOT / "pipelines").glob("*/model_index.json"))
NAMES = [*(path.name for path in COMMITTED), "tiny", "three"]
QUICK = "steps=4"  # of sampling: enough to see that something happens
# A fast machine shows the bar for a moment only, too short to be asked for.
SEE_PROGRESS = """() => {
    window.sawProgress = false;
    const see = () => { window.sawProgress ||= document.querySelector(".status .bar") !== null; };
    new MutationObserver(see).observe(document.body, {childList: true, subtree: true});
}"""
SECONDS = 60_000  # of patience, in milliseconds: the machine may be busy
expect.set_options(timeout=SECONDS)


class Server:
    """The Space with the committed pipelines, a tiny calibrated one of two attributes and one of three."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address, self.log = f"http://127.0.0.1:{port}/", folder / "log"
        tiny = tiny_pipeline({"Hair": ["dark", "light"], "Smiling": ["no", "yes"]})
        call = {"scheduler": "ddim", "num_inference_steps": 6, "guidance_scale": 45.0, "guidance_interval": [0.0, 1.0]}
        map_ = {"values": [0.1, 0.9], "target_probabilities": [0.4, 0.6], "evaluator": "none"}
        calibration = {**call, **map_, "fingerprint": weights_fingerprint([tiny.unet, *tiny.classifiers.members])}
        tiny.register_to_config(calibrations={"Hair": [calibration], "Smiling": [calibration]})
        tuned = {**tiny.config["sampling_defaults"], "ddim": {name: call[name] for name in list(call)[1:]}}
        tiny.register_to_config(sampling_defaults=tuned)
        tiny.save_pretrained(folder / "tiny")
        tiny_pipeline({"Age": ["young", "old"], "Hair": ["dark", "light"], "Smiling": ["no", "yes"]}).save_pretrained(
            folder / "three"
        )
        pipelines = [*COMMITTED, folder / "tiny", folder / "three"]
        self.environment = {
            **os.environ,
            "MULTIGUIDANCE_PIPELINE": ",".join(str(path) for path in pipelines),
            "GRADIO_ANALYTICS_ENABLED": "False",
            "GRADIO_SERVER_PORT": str(port),
            "GRADIO_TEMP_DIR": str(folder / "files"),
            "HF_HUB_OFFLINE": "1",
        }
        self.start()

    def start(self) -> None:
        with self.log.open("a") as log:
            command = [sys.executable, "app.py"]
            self.process = subprocess.Popen(command, cwd=SPACE, env=self.environment, stdout=log, stderr=log)
        end = time.monotonic() + 120
        while True:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, f"the Space did not start: {self.log.read_text()}"
            try:
                urllib.request.urlopen(self.address, timeout=5).close()
                return
            except OSError:
                time.sleep(0.2)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("space"))
    try:
        yield server
    finally:
        server.stop()
    assert "app.py" not in server.log.read_text()  # in no traceback; Gradio's own, of visitors who left, do not count


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
            if not route.request.url.startswith(server.address):
                strangers.append(route.request.url)
                route.abort()
            else:
                route.continue_()

        context.route(re.compile("^https?:"), only_here)
        page = context.new_page()
        page.set_default_timeout(SECONDS)
        page.on("pageerror", lambda error: errors.append(str(error)))

        def listen(line):
            if line.type == "error" and "net::ERR_" not in line.text:  # those of a server that went
                errors.append(line.text)

        page.on("console", listen)
        page.goto(server.address + query)
        expect(page.locator("#target_0")).to_contain_text(" – ")  # the pipeline's own label
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
    """A tab that finds no room on a narrow screen, as Gradio measures it, is in a menu behind the others."""
    tab = page.get_by_role("tab", name=name, exact=True)
    in_menu = page.locator(".overflow-dropdown button", has_text=name)
    wait_for(lambda: tab.is_visible() or in_menu.count() > 0)
    if tab.is_visible():
        tab.click()
    else:
        page.locator(".overflow-menu > button").click()
        in_menu.click()


def generate(page: Page, button: str = "Generate") -> list[bytes]:
    """Press the button and wait for what comes: the files of the images in the gallery."""
    page.evaluate(SEE_PROGRESS)
    press(page, button)
    page.wait_for_function("window.sawProgress", timeout=SECONDS)
    expect(page.locator(".status", has_text=re.compile("images? in")).first).to_be_visible(timeout=SECONDS)
    return files(page, "#gallery img")


def files(page: Page, selector: str) -> list[bytes]:
    addresses = [image.get_attribute("src") for image in page.locator(selector).all()]
    return [page.request.get(address).body() for address in addresses]


def click_square(page: Page, x: float, y: float) -> None:
    """Click at these shares of its width and height."""
    page.wait_for_function("document.querySelector('#plane img')?.naturalWidth > 0")
    box = page.locator("#plane img").bounding_box()
    page.locator("#plane img").click(position={"x": x * box["width"], "y": y * box["height"]})


def compared(page: Page) -> list[np.ndarray]:
    """What lies on both sides of the image slider, (256, 256) grey."""
    return [np.asarray(Image.open(io.BytesIO(one)).convert("L")) for one in files(page, "#comparison img")]


def picture_file(picture: Image.Image, path: Path, **options) -> Path:
    picture.save(path, **options)
    return path


def send(page: Page, path: Path) -> None:
    with page.expect_file_chooser() as chooser:
        press(page, "Upload")
    chooser.value.set_files(path)


def expect_message(page: Page, words: str) -> None:
    toast = page.locator(".toast-body").first
    expect(toast).to_contain_text(words)
    assert "Traceback" not in page.content()


def choose(page: Page, name: str) -> None:
    page.locator("#pipelines label").nth(NAMES.index(name)).click()


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS / 1000
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def canvas_shows(page: Page, x: float, bright: bool) -> None:
    """Wait until the canvas is bright, or dark, halfway down at a share of its width."""

    def look() -> bool:
        picture = Image.open(io.BytesIO(page.locator("#canvas canvas").first.screenshot())).convert("L")
        return (picture.getpixel((int(x * picture.width), picture.height // 2)) > 128) == bright

    wait_for(look)


def test_something_to_see_before_the_first_click(visit, screenshot):
    page = visit("?pipeline=digits-exact")
    captions = page.locator("#gallery .caption-label")
    expect(captions).to_have_count(9)
    expect(captions.first).to_have_text(re.compile(r"0\.06 → \d\.\d\d"))
    assert len(set(files(page, "#gallery img"))) == 9
    pictures = page.locator("#pipelines label").evaluate_all(
        "all => all.map(one => getComputedStyle(one, '::before').backgroundImage)"
    )
    assert len({one for one in pictures if one.startswith('url("data:image/png')}) == len(COMMITTED)
    screenshot(page, "opening")
    open_tab(page, "Sweep")
    expect(page.locator(".sweep .frame.on")).to_have_text(re.compile(r"requested 0\.50, came out as \d"))
    choose(page, "tiny")  # of which nothing was generated beforehand
    expect(page.locator(".sweep")).to_have_count(0)


def test_generate(visit, screenshot):
    page = visit(f"?pipeline=circles-32&{QUICK}")
    images = generate(page)
    assert len(set(images)) == 4
    assert [Image.open(io.BytesIO(image)).size for image in images] == [(32, 32)] * 4
    figure = page.locator("#histograms figure")
    expect(figure).to_have_attribute("aria-label", re.compile(r"requested 0\.50; 4 images"))

    assert generate(page) == images  # the same settings and seed
    expect(figure).to_have_attribute("aria-label", re.compile("; 4 images"))
    assert not set(generate(page, "Next seed")) & set(images)
    expect(figure).to_have_attribute("aria-label", re.compile("; 8 images"))

    # By keyboard alone: the slider to its end, then the button.
    page.locator("#target_0 input[type=range]").focus()
    page.keyboard.press("End")
    page.get_by_role("button", name="Generate", exact=True).focus()
    page.keyboard.press("Enter")
    expect(figure).to_have_attribute("aria-label", re.compile(r"requested 1\.00; 4 images"))
    assert not set(files(page, "#gallery img")) & set(images)
    screenshot(page, "generate")

    expect(page).to_have_url(re.compile("position=1&.*seed=1$"))  # what the address says, another visitor sees
    other = visit("?" + page.url.partition("?")[2])
    assert generate(other) == files(page, "#gallery img")

    press(page, "Empty the histogram")
    expect(figure).to_have_attribute("aria-label", re.compile("; 0 images"))


def test_spread_evenly_and_every_committed_pipeline(visit, server):
    page, client = visit(f"?pipeline=tiny&{QUICK}"), Client(server.address, verbose=False)
    page.get_by_role("checkbox", name="Spread evenly").check()
    expect(page.locator("#target_0 input[type=range]")).to_be_disabled()
    assert len(generate(page)) == 4
    figure = page.locator("#histograms figure").first
    expect(figure).to_have_attribute("aria-label", re.compile("spread evenly; 4 images"))
    for name in (path.name for path in COMMITTED):
        choose(page, name)
        expect(page).to_have_url(re.compile(f"pipeline={name}&.*&even=0&.*&scheduler=.*&seed=0$"))
        pictures, words, histograms = client.predict({"pipeline": name, "steps": 2, "images": 2}, api_name="/generate")
        assert len({Path(one["image"]).read_bytes() for one in pictures}) == 2
        assert "2 images in" in words
        assert histograms.count("<figure") > 0
        expect(page.locator("#histograms figure")).to_have_count(histograms.count("<figure"))


def test_sweep(visit, screenshot):
    page = visit(f"?pipeline=digits&{QUICK}&seed=3", has_touch=True)
    open_tab(page, "Sweep")
    press(page, "Sweep")
    expect(page.locator(".status", has_text="9 images in").first).to_be_visible(timeout=SECONDS)
    shown, slider = page.locator(".sweep .frame.on"), page.locator(".sweep input")
    expect(shown).to_have_text(re.compile(r"requested 0\.50, came out as"))
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    seen = {shown.locator("img").get_attribute("src")}
    slider.focus()
    for key, words in (("Home", "0.06"), ("ArrowRight", "0.17"), ("End", "0.94")):
        page.keyboard.press(key)
        expect(shown).to_contain_text(f"requested {words}")
        expect(slider).to_have_attribute("aria-valuetext", re.compile(f"requested {words}"))
        seen.add(shown.locator("img").get_attribute("src"))
    assert len(seen) == 4
    page.locator(".sweep li").nth(2).tap()
    expect(shown).to_contain_text("requested 0.28")
    box = slider.bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    expect(shown).to_contain_text("requested 0.50")
    assert asked == []  # all of that in the browser
    screenshot(page, "sweep")

    downloads = []
    for name in ("Download GIF", "Download strip"):
        with page.expect_download() as download:
            press(page, name)
        downloads.append(Path(download.value.path()).read_bytes())
        assert download.value.suggested_filename.startswith("digits-thickness-3.")
    gif, strip = (Image.open(io.BytesIO(content)) for content in downloads)
    assert (gif.format, gif.n_frames, gif.size) == ("GIF", 16, (256, 256))  # nine there, seven back
    assert (strip.format, strip.size) == ("PNG", (9 * 129 + 1, 130))
    page.locator("#target_0 input[type=range]").focus()
    page.keyboard.press("Home")
    expect(page).to_have_url(re.compile("pipeline=digits&thickness=0&.*steps=4&.*seed=3$"))  # here, too


def test_edit(visit, screenshot, tmp_path):
    page = visit("?pipeline=circles-32")
    open_tab(page, "Edit")
    page.get_by_label("number input for Steps of editing").fill("4")
    canvas = page.locator("#canvas canvas").first
    expect(canvas).to_be_visible(timeout=SECONDS)
    canvas_shows(page, 0.5, bright=False)
    box = canvas.bounding_box()
    x, y = box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"]
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 60, y, steps=5)
    page.mouse.up()
    canvas_shows(page, 0.5, bright=True)
    press(page, "Edit")
    done = page.locator(".status", has_text="after")
    expect(done).to_contain_text("position measured: before")
    before, after = compared(page)
    pixels = before[4::8, 4::8]
    assert pixels.max() > 200  # the stroke
    assert pixels[:8].max() < 50  # and no white page around it
    screenshot(page, "edit")
    variants = page.locator("#edited button.thumbnail-item")
    expect(variants).to_have_count(3)
    variants.nth(1).click()
    wait_for(lambda: (compared(page)[1] != after).any())
    assert (compared(page)[0] == before).all()

    text = tmp_path / "notes.txt"
    text.write_text("no picture")
    send(page, text)
    expect_message(page, "Invalid file type")
    disguised = tmp_path / "notes.png"
    disguised.write_text("no picture")
    send(page, disguised)
    expect_message(page, "The file can't be read as a picture; expected PNG")
    noise = Image.effect_noise((2600, 2600), 100)
    send(page, picture_file(noise, tmp_path / "heavy.bmp"))
    expect_message(page, "exceed the maximum allowed size")
    half = Image.new("RGB", (200, 100))
    half.paste("white", (0, 0, 100, 100))
    send(page, picture_file(half, tmp_path / "half.jpg"))
    canvas_shows(page, 0.25, bright=True)
    canvas_shows(page, 0.75, bright=False)
    press(page, "Edit")
    wait_for(lambda: (compared(page)[0] != before).any())
    pixels, _ = compared(page)
    assert pixels[:, :110].min() > 200
    assert pixels[:, 146:].max() < 50


def test_two_attributes(visit, screenshot):
    page = visit(f"?pipeline=tiny&Hair=free&{QUICK}")
    open_tab(page, "Two attributes")
    press(page, "Generate there")
    expect_message(page, "One of the two attributes is left free; tick both.")
    click_square(page, 0.5, 0.01)
    status = page.locator(".status", has_text="requested 0.50, 1.00")
    expect(status).to_be_visible(timeout=SECONDS)
    expect(page.locator("#guided_0 input")).to_be_checked()
    first = files(page, "#point img")
    for slider, value in (("#target_0", "0.5"), ("#target_1", "1")):
        expect(page.locator(f"{slider} input[type=range]")).to_have_value(value)
    page.locator("#target_1 input[type=range]").focus()
    page.keyboard.press("Home")
    press(page, "Generate there")
    expect(page.locator(".status", has_text="requested 0.50, 0.00")).to_be_visible(timeout=SECONDS)
    assert files(page, "#point img") != first
    screenshot(page, "two")
    expect(page).to_have_url(re.compile("Hair=0.5&Smiling=0&"))
    choose(page, "circles-32")
    expect(page.get_by_role("tab", name="Two attributes")).not_to_be_visible()


def test_a_position_runs_across_and_a_height_upwards(visit):
    page = visit("?pipeline=circles-32-two-attributes&steps=10")
    open_tab(page, "Two attributes")
    click_square(page, 0.15, 0.15)
    expect(page.locator(".status", has_text="came out as")).to_be_visible(timeout=SECONDS)
    pixels = np.asarray(Image.open(io.BytesIO(files(page, "#point img")[0])))
    rows, columns = np.nonzero(pixels > 128)
    assert columns.mean() < 16
    assert rows.mean() < 16


def test_a_slider_for_each_of_three_attributes_and_some_left_free(visit):
    page = visit("?pipeline=three&steps=2&images=1&scale=500")
    for place, words in enumerate(("Age: young – old", "Hair: dark – light", "Smiling: no – yes")):
        expect(page.locator(f"#target_{place}")).to_contain_text(words)
    page.locator("#guided_1 input").uncheck()  # of Hair
    expect(page.locator("#target_1 input[type=range]")).to_be_disabled()
    images = generate(page)
    age, hair, _ = page.locator("#histograms figure").all()
    expect(hair).to_have_attribute("aria-label", re.compile("left free; 1 image"))
    expect(age).to_have_attribute("aria-label", re.compile(r"requested 0\.50; 1 image"))
    expect(page).to_have_url(re.compile("Age=0.5&Hair=free&Smiling=0.5&"))
    page.locator("#guided_1 input").check()
    expect(page.locator("#target_1 input[type=range]")).to_be_enabled()
    expect(page).to_have_url(re.compile("Hair=0.5&Smiling=0.5&"))
    assert generate(page) != images
    for place in range(3):
        page.locator(f"#guided_{place} input").set_checked(False)
    press(page, "Generate")
    expect(age).to_have_attribute("aria-label", re.compile("left free; 1 image"))
    open_tab(page, "Edit")
    press(page, "Edit")
    expect_message(page, "No attribute is guided; tick one.")


def test_an_emptied_field(visit):
    page = visit(f"?pipeline=tiny&{QUICK}")
    page.get_by_text("Sampling", exact=True).click()
    field = page.get_by_label("Guidance scale: how strongly")
    field.fill("")
    press(page, "Generate")
    expect_message(page, "scale is empty; expected a number from 0 to 10000.")
    expect(page.locator(".status .bar")).to_have_count(0)
    field.fill("123.456789")
    page.locator(".toast-close").first.click()
    generate(page)
    expect(page).to_have_url(re.compile("scale=123.456789&"))


def test_schedulers(visit):
    page = visit("?pipeline=tiny")
    expect(page).to_have_url(re.compile("scale=45&steps=6&scheduler=ddim"))  # as it was calibrated
    calibrated = page.get_by_text("Calibrated: the sliders ask for measured values.")
    expect(calibrated).to_be_visible()
    assert "6 steps at a guidance scale of 45, each attribute guided alone" in page.content()
    images = generate(page)
    page.get_by_text("Sampling", exact=True).click()
    choice = page.get_by_label("Scheduler")
    choice.click()
    page.get_by_role("option", name="ddpm", exact=True).click()
    expect(page).to_have_url(re.compile("scale=30&steps=10&scheduler=ddpm"))
    expect(page.get_by_text("Not calibrated with this scheduler")).to_be_visible()
    expect(calibrated).not_to_be_visible()
    assert generate(page) != images
    choice.click()
    page.get_by_role("option", name="unipc, not tuned: needs a scale", exact=True).click()
    expect(page.get_by_label("Guidance scale: how strongly")).to_have_value("")
    press(page, "Generate")
    expect_message(page, "`guidance_scale` is missing, and none was tuned for 'unipc'")
    page.get_by_label("Guidance scale: how strongly").fill("20")
    page.locator(".toast-close").first.click()
    generate(page)


def test_calls_of_the_api(server):
    client = Client(server.address, verbose=False)
    usual = {"pipeline": "tiny", "scale": 10, "steps": 2, "scheduler": "ddim", "images": 1, "seed": 0}
    pictures, words, page = client.predict(usual, api_name="/generate")
    assert len(pictures) == 1
    assert "1 image in" in words
    assert page.count("<figure") == 2
    figure, strip, _, words = client.predict(usual, "Smiling", 3, api_name="/sweep")
    assert figure.count('<div class="frame') == 3
    with Image.open(strip["value"]) as picture:
        assert picture.size[0] > 3 * picture.size[1] - 5
    with pytest.raises(AppError, match="scale is empty; expected a number from 0 to 10000") as error:
        client.predict({**usual, "scale": None}, api_name="/generate")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="Cannot find a function with `api_name`: /edit"):
        client.predict(api_name="/edit")


def test_nonsense_in_the_address(visit):
    page = visit("?position=nan&scheduler=<b>best</b>")
    words = page.locator(".status").first
    expect(words).to_contain_text(
        "In the address, position is 'nan'; expected a number from 0 to 1. The default is used."
    )
    expect(words).to_contain_text("scheduler is '<b>best</b>'; expected one of ddpm, ddim, ")
    expect(page.locator("#target_0")).to_contain_text("position: left – right")
    expect(page.locator("#target_0 input[type=range]")).to_have_value("0.5")


def test_two_visitors_at_once(visit):
    ada, bob = visit(f"?pipeline=digits&{QUICK}&seed=1"), visit(f"?pipeline=circles-32&{QUICK}&seed=2&images=3")
    for page in (ada, bob):
        press(page, "Generate")
    for page, words in ((ada, r"4 images .* seed 1"), (bob, r"3 images .* seed 2")):
        expect(page.locator(".status").first).to_have_text(re.compile(words))
    generated = [files(page, "#gallery img") for page in (ada, bob)]
    assert [len(images) for images in generated] == [4, 3]
    for page, images in zip((ada, bob), generated, strict=True):
        assert generate(page) == images  # what each of them gets alone
    expect(bob.locator("#histograms figure")).to_have_attribute("aria-label", re.compile("position, .* 3 images"))


def test_narrow_screen(visit, screenshot):
    page = visit("?pipeline=faces-rendered", width=390, height=844, is_mobile=True, has_touch=True)
    for tab in ("Generate", "Sweep", "Edit", "Two attributes"):
        open_tab(page, tab)
        expect(page.get_by_role("tabpanel").locator("visible=true").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, tab
        screenshot(page, f"narrow-{tab.lower().replace(' ', '-')}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_of_the_theme(visit, screenshot, scheme):
    page = visit(f"?pipeline=tiny&{QUICK}", color_scheme=scheme)
    generate(page)

    def brightness(selector: str, colour: str) -> float:
        style = page.locator(selector).first.evaluate(f"element => getComputedStyle(element).{colour}")
        return float(np.mean([float(number) for number in re.findall(r"[\d.]+", style)[:3]]))

    page_colour = brightness("body", "backgroundColor")
    assert (page_colour > 200) == (scheme == "light")
    for selector in ("#title h1", "#title p", ".status", ".histogram figcaption span", ".histogram .axis"):
        assert abs(brightness(selector, "color") - page_colour) > 90, selector
    screenshot(page, scheme)


def test_page_that_outlives_its_server(server, visit):
    """The page of a server that was started anew works, or says in words that it does not."""
    page = visit(f"?pipeline=tiny&{QUICK}")
    server.stop()
    server.start()
    press(page, "Next seed")
    expect(page.locator(".status").first).to_have_text(re.compile("4 images in .* seed 1"))
    assert "Traceback" not in page.content()
