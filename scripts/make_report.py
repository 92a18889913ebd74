"""Write a report of ATP on the bundled small LLaVA, and the pictures of it in docs/.

    python -m scripts.make_report --out out/report

The heads are calibrated, not trained. With ``--docs docs`` a headless Chromium, by playwright,
photographs the page into docs/report.png.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import torch

import tokenprune as tp
from benchmarks.digits_vqa.dataset import Sample, collate, samples
from benchmarks.digits_vqa.recipe import LAYERS, calibration_batches, load


def main() -> None:
    """Calibrate, prune, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/report"))
    parser.add_argument("--docs", type=Path, help="folder for the pictures of the page")
    parser.add_argument("--samples", type=int, default=64)
    options = parser.parse_args()
    torch.manual_seed(0)
    model, processor = load("llava")
    tp.wrap(model, tp.ATPConfig(layers=LAYERS["llava"], target_tokens=36))
    batches = calibration_batches(processor, samples("train", 64, 1))
    tp.calibrate(model, batches, 36)
    page = tp.report(
        tracked(model, processor, samples("held_out", options.samples, 0)),
        options.out / "report.html",
        title="ATP on the small LLaVA, calibrated to 36 of 144 tokens",
    )
    print(page)
    if options.docs:
        print(photograph(page, options.docs / "report.png"))


def tracked(model: Any, processor: Any, asked: list[Sample]) -> Any:
    """Run the samples, and keep their pictures and questions."""
    model.eval()
    with torch.no_grad(), tp.track(model) as run:
        for start in range(0, len(asked), 64):
            part = asked[start : start + 64]
            model(**collate(processor, part, with_answers=False))
            run.keep([s.picture.pixels for s in part], [s.question.text for s in part])
    return run


def photograph(page: Path, path: Path) -> Path:
    """Photograph a report: above, the page; below, the last picture opened."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    parts = [path.with_name(f".{name}.png") for name in ("page", "detail")]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        tab = browser.new_page(viewport={"width": 1180, "height": 860})
        tab.goto(page.resolve().as_uri())
        tab.screenshot(path=str(parts[0]))
        tab.locator(".card").nth(12).click()
        tab.locator("canvas").nth(3).hover(position={"x": 120, "y": 110})
        tab.screenshot(path=str(parts[1]))
        browser.close()
    pictures = [Image.open(part).convert("RGB") for part in parts]
    both = Image.new("RGB", (1180, sum(picture.height for picture in pictures)), "white")
    both.paste(pictures[0], (0, 0))
    both.paste(pictures[1], (0, pictures[0].height))
    both.quantize(128).save(path, optimize=True)
    for part in parts:
        part.unlink()
    return path


if __name__ == "__main__":
    main()
