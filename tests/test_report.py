"""A run's report: what it keeps, what it refuses, what stands in the file."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

import tokenprune as tp
from tokenprune.measure.report.charts import by_layer, histogram

from .families import FAMILIES
from .support.drawing import picture
from .support.reports import ATP, EVIL, PICTURE, tracked
from .support.tiny_llava import IMAGE, make_batch, tiny_llava
from .support.wrapping import wrapped_llava


@pytest.fixture(scope="module")
def model():
    return wrapped_llava(ATP)


def one(seed=0):
    return make_batch(((4, IMAGE, 6),), seed=seed)


# -- what a run keeps ------------------------------------------------------------------------------


def test_nothing_is_kept_unless_it_is_given(model):
    with tp.track(model) as run, torch.no_grad():
        model(**one())
        assert run.samples == []
        run.keep([PICTURE], ["What?"])
        assert [(s.number, s.question, len(s.panels)) for s in run.samples] == [(0, "What?", 1)]
        with pytest.raises(RuntimeError, match="since the last one that was kept"):
            run.keep([PICTURE])
        model(**make_batch(((9,),)))  # a prompt without an image is no sample
        with pytest.raises(RuntimeError, match=r"call run\.keep\(pictures, questions\) once"):
            run.keep([PICTURE])
        model(**one())
        run.keep([np.asarray(PICTURE)])
    assert [(s.number, s.question) for s in run.samples] == [(0, "What?"), (1, "")]


@pytest.mark.parametrize(
    ("pictures", "questions", "said"),
    [
        ([PICTURE] * 2, None, "pictures: 2 of them, for a batch of 1 row"),
        (PICTURE, None, "pictures: a Image, for a batch of 1 row"),
        ([PICTURE], "what", "questions: a str, for a batch of 1 row"),
        ([PICTURE], ["a", "b"], "questions: 2 of them"),
        ([PICTURE], [7], "questions=7: expected a str"),
        ([[PICTURE] * 2], None, "pictures: 2 for image of sample 0, whose tokens lie in 1 frame"),
        ([picture(48, 24)], None, "whose tokens lie on a grid of 6 x 6"),
        ([7], None, "image is a int"),
        ([None], None, "image is a NoneType"),
    ],
)
def test_pictures_that_are_not_those_of_the_batch_are_refused(model, pictures, questions, said):
    with tp.track(model) as run, torch.no_grad():
        model(**one())
        with pytest.raises(ValueError, match=re.escape(said)):
            run.keep(pictures, questions)
        assert run.samples == []
        run.keep([PICTURE])  # nothing was lost


def test_rows_with_several_images_and_with_none(model):
    batch = make_batch(((4, IMAGE, 6, IMAGE, 2), (5,)))
    other = picture(24, 24, 1)
    run, _ = tracked(model, [batch], [[PICTURE, other], None])
    both, none = run.samples
    assert [panel.name for panel in both.panels] == ["image 0", "image 1"]
    assert both.panels[0].source != both.panels[1].source
    assert [panel.cells.min() for panel in both.panels] == [0, 36]
    assert none.panels == ()
    with tp.track(model) as run, torch.no_grad():
        model(**batch)
        with pytest.raises(ValueError, match="1 for sample 0, whose prompt has 2 images"):
            run.keep([PICTURE, None])


@pytest.mark.parametrize("name", ["llava_next", "qwen2_vl"])
def test_views_and_frames(name, tmp_path):
    """LLaVA-NeXT's views are two grids over one picture; frames of a video are pictures."""
    family = FAMILIES[name]
    if not family.available():
        pytest.skip(f"this transformers has no {name}")
    model = family.build()
    sample = family.sample(model, images=1, seed=1, video=family.videos)
    tp.wrap(model, tp.PyramidDropConfig(layers=(1,), keep=0.5))
    with tp.track(model) as run, torch.no_grad():
        model(**sample)
        stats = tp.stats(model)
        here = stats.visual[0] & (stats.row[0] >= 0)
        frames = np.unique(stats.frame[0][here])
        grids = [stats.grid[0][here & (stats.frame[0] == n)][0] for n in frames]
        drawn = [picture(16 * int(cols), 16 * int(rows)) for rows, cols in grids]
        if name == "llava_next":
            drawn = drawn[:1] * 2 if (grids[0] == grids[1]).all() else drawn
        run.keep([drawn])
        panels = run.samples[0].panels
    word = "frame" if family.videos else "view"
    assert [panel.name for panel in panels] == [f"image, {word} {n}" for n in frames]
    for panel, (rows, cols) in zip(panels, grids, strict=True):
        assert panel.cells.shape == (rows, cols)
    placed = np.concatenate([panel.cells.ravel() for panel in panels])
    assert sorted(placed[placed >= 0]) == here[stats.visual[0]].nonzero()[0].tolist()
    page = tp.report(run, tmp_path / "views.html").read_text(encoding="utf-8")
    assert f"{word} 1" in page


def test_pictures_are_kept_small(model):
    large = picture(700, 700)
    run, _ = tracked(model, [one()], [large])
    panel = run.samples[0].panels[0]
    assert (panel.width, panel.height) == (448, 448)
    assert panel.source.startswith("data:image/jpeg;base64,")
    assert large.size == (700, 700)


# -- the file --------------------------------------------------------------------------------------


def test_what_cannot_be_reported_is_refused_and_nothing_is_written(model, tmp_path):
    run, _ = tracked(model, [one()], [PICTURE])
    for given, said in (
        ({"path": "x.pdf"}, r"path='x.pdf': expected a name that ends in .html"),
        ({"path": 7}, "path=7: expected a path"),
        ({"title": 7}, "title=7: expected a str"),
        ({"pictures": -1}, "pictures=-1: expected a whole number from 0"),
        ({"run": tp.stats(model)}, "expected what tokenprune.track"),
    ):
        with pytest.raises(ValueError, match=said):
            tp.report(**{"run": run, "path": tmp_path / "x.html", **given})
    with tp.track(model) as empty:
        pass
    with pytest.raises(RuntimeError, match="Nothing was tracked"):
        tp.report(empty, tmp_path / "x.html")
    assert not list(tmp_path.iterdir())


def test_it_loads_nothing_and_holds_no_markup_of_a_question(model, tmp_path):
    run, _ = tracked(model, [one()], [PICTURE], [EVIL])
    path = tp.report(run, tmp_path / "new" / "page.html", title=EVIL)
    page = path.read_text(encoding="utf-8")
    assert path == tmp_path / "new" / "page.html"
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]
    assert page.count("<script") == page.count("</script>") == 2
    assert "onerror" not in re.sub(r"&lt;img.*?&gt;|\\u003cimg.*?\\u003e", "", page)
    sources = re.findall(r"(?<!-)(?:src|href|url)\s*=?\s*[\"'(]([^\"')]{0,30})", page)
    assert {source[:5] for source in sources} == {"data:"}
    assert "default-src 'none'" in page


def test_easiest_and_hardest_come_first_and_a_run_without_pictures_has_its_figures(model, tmp_path):
    batches = [make_batch(((4, IMAGE, 6), (2, IMAGE, 3)), seed=seed) for seed in range(4)]
    run, found = tracked(model, batches, [PICTURE, PICTURE], ["first", "second"])
    tokens = np.concatenate([stats.tokens for stats in found])
    page = tp.report(run, tmp_path / "page.html", pictures=4).read_text(encoding="utf-8")
    shown = [int(n) for n in re.findall(r'alt="Sample (\d+)"', page)]
    order = np.argsort(tokens, kind="stable")
    assert shown[:2] == order[:2].tolist()
    assert sorted(tokens[shown[2:]]) == sorted(tokens[order[-2:]])
    assert "4 of the run's 8 pictures" in page
    none = tp.report(run, tmp_path / "none.html", pictures=0).read_text(encoding="utf-8")
    assert "No pictures" in none
    for n, layer in enumerate(run.summary()["per_layer"]):
        assert f'<th scope="row">{n}</th><td>{layer["mean"]:.1f}</td>' in page
    for layer, step in zip((1, 3), run.summary()["thresholds"], strict=True):
        for n, spread in enumerate(step):
            cells = f"<td>{n}</td><td>{spread['mean']:.4f}</td><td>{spread['std']:.4f}</td>"
            assert f'<th scope="row">{layer}</th>{cells}' in page
    fixed = tp.wrap(tiny_llava(), tp.FastVConfig(layer=1, keep=9))
    run, _ = tracked(fixed, [one()], [PICTURE])
    assert run.summary()["thresholds"] == [[]]
    page = tp.report(run, tmp_path / "fixed.html").read_text(encoding="utf-8")
    assert "threshold-spreads" not in page


def test_charts_lie_where_the_figures_are():
    spreads = [{"mean": m, "p5": m, "p95": m, "max": m} for m in (36.0, 36.0, 9.0)]
    chart = by_layer(spreads, 36.0)
    heights = [float(point.split(",")[1]) for point in chart["mean"].split()]
    assert heights[:4] == [10, 10, 10, 10]
    bottom = 220 - 26
    assert heights[4] == heights[5] == pytest.approx(bottom - (bottom - 10) / 4, abs=0.01)
    values = np.array([4.0, 5.5, 5.6, 12.0])
    bars = histogram(values)["bars"]
    assert sum(bar["count"] for bar in bars) == 4
    for bar in bars:
        inside = (values >= bar["low"]) & (values < bar["high"] + (bar is bars[-1]))
        assert bar["count"] == inside.sum()
    assert [bar["count"] for bar in histogram(np.array([9.0] * 3))["bars"]] == [3]
    assert by_layer([{"mean": 0.0, "p5": 0.0, "p95": 0.0, "max": 0.0}], 0.5)["y"]
