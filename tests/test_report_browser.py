"""A run's report in a headless browser: what it shows is what the library says."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest
from PIL import Image

import tokenprune as tp

from .support.drawing import picture
from .support.reports import ATP, EVIL, PICTURE, tracked
from .support.tiny_llava import IMAGE, make_batch
from .support.wrapping import wrapped_llava


@pytest.fixture(scope="module")
def model():
    return wrapped_llava(ATP)


@pytest.fixture(scope="module")
def browser():
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync.sync_playwright() as playwright:
        own = shutil.which("chromium")
        try:
            found = playwright.chromium.launch(executable_path=own, args=["--no-sandbox"])
        except sync.Error as error:
            pytest.skip(f"no browser could be started: {str(error).splitlines()[0]}")
        yield found
        found.close()


def test_a_browser_shows_the_counts_and_reasons_of_the_library(model, tmp_path, browser):
    batches = [make_batch(((4, IMAGE, 6), (2, IMAGE, 3)), seed=seed) for seed in range(2)]
    dark = Image.fromarray(np.asarray(picture(24, 24)) // 8)
    run, found = tracked(model, batches, [PICTURE, dark], [EVIL, "second"])
    path = tp.report(run, tmp_path / "page.html")
    page = browser.new_page()
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.goto(path.as_uri())
    assert page.title() == "What pruning kept"
    assert page.locator("#samples").inner_text() == "4"
    assert page.locator("#mean").inner_text() == f"{run.summary()['mean_tokens']:.1f}"
    assert page.locator(".card").count() == 4
    for card in range(4):
        # By the keyboard alone: Enter opens, the arrows move, Escape closes.
        button = page.locator(".card").nth(card)
        number = int(button.locator("img").get_attribute("alt").split()[1])
        stats, row = found[number // 2], number % 2
        button.focus()
        page.keyboard.press("Enter")
        page.locator("canvas").nth(2).wait_for()
        title = page.locator("#detail-title").inner_text()
        assert " ".join(title.split()) == (EVIL, "second")[row]
        kept = [
            int(n)
            for n in page.eval_on_selector_all("canvas", "all => all.map(c => c.dataset.kept)")
        ]
        assert kept == [36, *(int(stats.kept[layer + 1, row]) for layer in stats.pruning_layers)]
        explanation = run.samples[number].explanation
        page.locator("canvas").nth(1).focus()
        for _ in range(2):
            page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowDown")
        token = explanation.at(1, 2)
        lines = page.locator("#why").inner_text().split("\n")
        assert lines[0] == f"Token {token.number}, row 1, col 2"
        assert lines[1:] == [repr(step).replace("<=", "≤") for step in token.steps]
        check_pixels(page, stats, row)
        page.keyboard.press("Escape")
        assert not page.locator("#detail").is_visible()
        # Focus is back where it was.
        assert page.evaluate("document.activeElement.dataset.sample") == str(card)
    assert asked == [path.as_uri()]
    assert said == []


def check_pixels(page, stats, row):
    """Kept cells have the picture's colours, others are faded; never brighter on a dark one."""
    middles = """canvas => {
        const w = canvas.width, s = w / 6, all = [];
        const pixels = canvas.getContext('2d').getImageData(0, 0, w, w).data;
        for (let i = 0; i < 6; i++) for (let j = 0; j < 6; j++) {
            const at = 4 * (Math.floor((i + .4) * s) * w + Math.floor((j + .4) * s));
            all.push([...pixels.slice(at, at + 3)]);
        }
        return all; }"""
    unseen = [0, 0, 0] if row == 1 else [255, 255, 255]  # what fades to itself
    page.mouse.move(0, 0)
    views = [page.locator("canvas").nth(n).evaluate(middles) for n in range(3)]
    for n, layer in enumerate(stats.pruning_layers):
        alive = stats.alive[layer + 1, row][stats.visual[row]]
        for cell, (before, after) in enumerate(zip(views[0], views[n + 1], strict=True)):
            assert (before == after) == (alive[cell] or before == unseen)
            if row == 1:
                assert max(after) <= max(before)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_colour_schemes(model, tmp_path, browser, scheme):
    run, _ = tracked(model, [make_batch(((4, IMAGE, 6),))], [PICTURE], ["What?"])
    page = browser.new_page(color_scheme=scheme)
    page.goto(tp.report(run, tmp_path / "page.html").as_uri())
    for selector, behind in (
        ("h1", "body"),
        (".note", "body"),
        (".count", ".card"),
        ("dt", ".figures div"),
    ):
        pair = [
            page.locator(where).first.evaluate(f"e => getComputedStyle(e).{what}")
            for where, what in ((selector, "color"), (behind, "backgroundColor"))
        ]
        low, high = sorted(map(luminance, pair))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (selector, pair)  # WCAG 2, AA
    assert (luminance(pair[1]) > 0.5) == (scheme == "light")


def luminance(colour):
    parts = [int(n) / 255 for n in re.findall(r"\d+", colour)[:3]]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))
