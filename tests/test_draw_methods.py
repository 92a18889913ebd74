"""Methods side by side, and the question above the picture."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

import tokenprune as tp

from .support.drawing import panels, picture, stats_of
from .support.tiny_llava import IMAGE, make_batch
from .support.wrapping import wrapped_llava

BATCH = make_batch(((4, IMAGE, 6), (2, IMAGE, 3)))
CONFIGS = {
    "FastV": tp.FastVConfig(layer=1, keep=9),
    "PyramidDrop": tp.PyramidDropConfig(layers=(1, 3), keep=0.5),
}
QUESTION = "how many of the digits are red, and which is the largest of those that are not? " * 3


@pytest.fixture(scope="module")
def found():
    return {name: stats_of(wrapped_llava(config), BATCH) for name, config in CONFIGS.items()}


@pytest.fixture
def written(monkeypatch):
    """Where on the picture each text is written."""
    lines = []
    text = ImageDraw.ImageDraw.text

    def write(self, xy, caption, **options):
        lines.append((xy, caption))
        text(self, xy, caption, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", write)
    return lines


def test_each_row_is_what_draw_draws(found, tmp_path, written):
    image = picture(24, 24)
    path = tp.draw_methods(image, found, tmp_path / "all.png", sample=1)
    captions = [caption for _, caption in written]
    assert captions[0] == "FastV: image"
    assert "PyramidDrop: image" in captions
    assert "after layer 3: 9 kept" in captions
    together = np.asarray(Image.open(path))
    row = 44 + 12 + 336
    for n, (name, stats) in enumerate(found.items()):
        alone = tp.draw(image, stats, tmp_path / f"{name}.png", sample=1)
        steps = 1 + len(stats.pruning_layers)
        part = Image.fromarray(together[n * row : n * row + row + 12, : 12 + steps * 348])
        part.save(tmp_path / "part.png")
        mine = panels(tmp_path / "part.png", steps, (336, 336))
        for one, other in zip(mine, panels(alone, steps, (336, 336)), strict=True):
            assert (one == other).all()


def test_the_question_stands_above_in_lines_that_fit(found, tmp_path, written):
    image = picture(24, 24)
    plain = Image.open(tp.draw(image, found["FastV"], tmp_path / "plain.png"))
    written.clear()
    for question in (QUESTION, "x" * 300, "one"):
        path = tp.draw(image, found["FastV"], tmp_path / "asked.png", question=question)
        asked = Image.open(path)
        captions = [caption for _, caption in written]
        lines = captions[: captions.index("image")]
        assert "".join(lines).replace(" ", "") == question.replace(" ", "")
        more = asked.height - plain.height
        assert more == 20 * len(lines) + 6
        bottom = asked.crop((0, more + 56, asked.width, asked.height))
        assert np.array_equal(bottom, plain.crop((0, 56, *plain.size)))
        # Nothing is written over the edge.
        for x in (0, asked.width - 1):
            assert (np.asarray(asked)[:more, x] == 255).all()
        written.clear()


def test_what_does_not_belong_together_is_refused(found, tmp_path):
    image, path = picture(24, 24), tmp_path / "x.png"
    other = stats_of(wrapped_llava(CONFIGS["FastV"]), make_batch(((3, IMAGE, 7), (2, IMAGE, 3))))
    with pytest.raises(ValueError, match=r"stats\['other'\] is of another prompt than the first"):
        tp.draw_methods(image, {**found, "other": other}, path)
    for given in ({}, found["FastV"], {7: found["FastV"]}):
        with pytest.raises(ValueError, match="expected a mapping of one or more names"):
            tp.draw_methods(image, given, path)
    with pytest.raises(ValueError, match="stats is a int"):
        tp.draw_methods(image, {"x": 7}, path)
    with pytest.raises(ValueError, match="question=7: expected a str"):
        tp.draw(image, found["FastV"], path, question=7)
    assert not path.exists()
