"""Write a report of a run: the page's figures, and the page."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files
from pathlib import Path

from ...atomic import replace_file
from ...checks import is_whole, require
from ...engine.describe import steps_in_words
from ..kept import KeptSample
from ..track import Tracker
from .charts import by_layer, histogram
from .data import sample_data

__all__ = ["report"]


def report(
    run: Tracker,
    path: str | Path,
    *,
    title: str = "What pruning kept",
    pictures: int = 24,
) -> Path:
    """Write one HTML file about a run: kept tokens by layer and sample, and pictures to look into.

    The file needs no network and loads nothing. A click on a picture shows the tokens that stayed
    after each step, and for each of them why: what `explain` says. Pictures are those that
    ``run.keep(pictures, questions)`` was given; without any, the page has the figures alone.

    Parameters
    ----------
    run : Tracker
        Of ``with tokenprune.track(model) as run:``.
    path : path
        Where to write, ending in ``.html``; the folder is created if it does not exist. A reader
        finds the old file or the new one, never a part.
    title : str
        The page's heading.
    pictures : int
        At most so many are shown: half those that kept the smallest share of their tokens, half
        those that kept the largest.

    Returns
    -------
    Path
        Of the file.

    Raises
    ------
    ValueError
        If an argument is of another kind. Nothing is then written.
    RuntimeError
        If the run has no sample.

    Examples
    --------
    >>> from PIL import Image
    >>> model = tp.wrap(model, tp.FastVConfig(layer=1, keep=9))
    >>> with tp.track(model) as run:
    ...     output = model(**batch)
    ...     run.keep([Image.new("RGB", (24, 24), "navy")], ["What is to be seen?"])
    >>> tp.report(run, folder / "report.html").name
    'report.html'
    """
    require(isinstance(run, Tracker), "run", run, "what tokenprune.track(model) yields")
    require(isinstance(path, str | Path), "path", path, "a path, as a str or pathlib.Path")
    path = Path(path)
    known = path.suffix.lower() in (".html", ".htm")
    require(known, "path", str(path), "a name that ends in .html")
    require(isinstance(title, str), "title", title, "a str")
    require(is_whole(pictures) and pictures >= 0, "pictures", pictures, "a whole number from 0")
    page = _page(run, title, pictures).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, page)
    return path


def _page(run: Tracker, title: str, pictures: int) -> str:
    """Return the whole page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    summary, kept = run.summary(), run.kept()
    style, script = _part("report.css"), _part("report.js")
    groups = _groups(run, pictures)
    shown = [sample for _, samples in groups for sample in samples]
    environment = Environment(
        loader=PackageLoader(__name__.rpartition(".")[0], "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    saved = {
        name: 1 - summary[name] / summary[f"{name}_unpruned"]
        for name in ("kv_bytes", "prefill_flops")
    }
    return environment.get_template("report.html.jinja").render(
        title=title,
        method=run.method,
        summary=summary,
        saved=saved,
        when=steps_in_words(tuple(summary["pruning_layers"])),
        layers=by_layer(summary["per_layer"], summary["visual_tokens"]),
        thresholds=[
            (layer, number, spread)
            for layer, spreads in zip(summary["pruning_layers"], summary["thresholds"], strict=True)
            for number, spread in enumerate(spreads)
            if spread is not None
        ],
        spread=histogram(kept.mean(axis=0)),
        groups=[(name, [shown.index(sample) for sample in samples]) for name, samples in groups],
        samples=[sample_data(sample, kept[:, sample.number]) for sample in shown],
        pictured=len(run.samples),
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
    )


def _groups(run: Tracker, most: int) -> list[tuple[str, list[KeptSample]]]:
    """Return the samples to show, in named groups, those that kept the smallest share first."""
    kept, total = run.kept(), run.column("visual_tokens")
    pictured = [sample for sample in run.samples if sample.panels]
    share = {s.number: kept[:, s.number].mean() / total[s.number] for s in pictured}
    ranked = sorted(pictured, key=lambda sample: (share[sample.number], sample.number))
    if len(ranked) <= 3 or most <= 1 or len(set(share.values())) == 1:
        return [("Pictures", ranked[:most])] if ranked[:most] else []
    half = min(most, len(ranked)) // 2
    return [
        ("Easiest: the smallest share of tokens kept", ranked[:half]),
        ("Hardest: the largest share of tokens kept", ranked[-half:][::-1]),
    ]


@cache
def _part(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Return what the page's content security policy knows a part by: nothing else may run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
