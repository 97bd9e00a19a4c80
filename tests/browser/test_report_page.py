"""A report's page in a browser: whole without a network, in light and dark, wide and narrow."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, sync_playwright

from diffusers_multiguidance.data.circles import circles, render_circle
from diffusers_multiguidance.evaluation.evaluate import evaluate


@pytest.fixture(scope="module")
def page_file(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    circles(40, 16).save_to_disk(folder / "reference")
    circles(40, 16, seed=1).save_to_disk(folder / "training")
    images = np.stack([render_circle(x, 7, 16) for x in range(2, 14)])[..., None]
    np.savez(folder / "images.npz", images=images)
    compared = {"reference": folder / "reference", "training": folder / "training", "extractor": "pixels"}
    evaluate(folder / "images.npz", folder / "report", "position", "circle-position", **compared)
    return folder / "report" / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


@pytest.mark.parametrize("width", [1000, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_whole_by_itself(page_file, browser, scheme, width):
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: errors.append(message.text))
    page.goto(page_file.as_uri())
    assert [url for url in asked if not url.startswith("data:")] == [page_file.as_uri()]
    assert not errors
    sizes = page.eval_on_selector_all("img", "images => images.map(image => image.naturalWidth)")
    assert len(sizes) == 4
    assert min(sizes) > 0
    brightness = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]")
    assert brightness == 255 if scheme == "light" else brightness < 40
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    headings = page.locator("h2").all_inner_texts()
    assert headings == ["What was asked", "What came out", "How good", "How new", "How sure"]
    page.close()
