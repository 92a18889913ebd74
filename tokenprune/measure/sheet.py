"""Lay panels with captions out on one picture, and write it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

__all__ = ["CAPTION", "FORMATS", "MARGIN", "Panel", "save"]

Panel = tuple[Image.Image, str, str]
"""A picture, its title, and a line below the title."""

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}

MARGIN = 12
CAPTION = 44
_LINE = 20
_INK = (30, 30, 30)


def save(rows: list[list[Panel]], question: str | None, path: Path) -> Path:
    """Lay rows of panels under the question, and write them."""
    width, height = rows[0][0][0].size
    canvas_width = (width + MARGIN) * max(map(len, rows)) + MARGIN
    font = ImageFont.load_default(size=15)
    lines = _wrapped(question, font, canvas_width - 2 * MARGIN) if question else []
    top = len(lines) * _LINE + (MARGIN // 2 if lines else 0)
    row_height = height + CAPTION + MARGIN
    canvas = Image.new("RGB", (canvas_width, top + row_height * len(rows) + MARGIN), "white")
    pen = ImageDraw.Draw(canvas)
    for number, line in enumerate(lines):
        pen.text((MARGIN, MARGIN // 2 + number * _LINE), line, fill=_INK, font=font)
    for number, panels in enumerate(rows):
        above = top + number * row_height
        for column, (panel, title, below) in enumerate(panels):
            left = MARGIN + column * (width + MARGIN)
            pen.text((left, above + MARGIN // 2), title, fill=_INK, font=font)
            pen.text((left, above + MARGIN // 2 + 20), below, fill=(110, 110, 110), font=font)
            canvas.paste(panel, (left, above + CAPTION + MARGIN))
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path, format=FORMATS[path.suffix.lower()], quality=95)
    return path


def _wrapped(text: str, font: Any, width: int) -> list[str]:
    """Break a text into lines that fit a width; a word that is wider is broken too."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        lines.append("")
        for letter in word:
            if font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return [line for line in lines if line]
