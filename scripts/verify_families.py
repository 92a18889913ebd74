"""Run the family tests and write ``docs/families.md`` and ``adapters/verified.json``.

    python -m scripts.verify_families

`tokenprune.supported` reads the second. Further arguments go to pytest.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
import transformers
from tokenprune.adapters import GenericAdapter, adapter_for
from transformers.models.auto import modeling_auto
from transformers.utils import logging

import tokenprune as tp
from tests.families import FAMILIES, Family

ROOT = Path(__file__).parents[1]
# Test → its column.
COLUMNS = {
    "test_everything_kept_is_the_model_itself": "all kept = unwrapped",
    "test_equals_the_masked_model": "dropping = masking",
    "test_a_row_of_a_batch_is_the_row_alone": "row = row alone",
    "test_generate": "cached = uncached",
    "test_beams": "beams",
    "test_every_token_knows_its_place": "places",
    "test_training_teaches_the_heads_and_nothing_else": "training",
    "test_the_gone_are_scored_as_if_there": "revival",
    "test_every_method": "other methods",
}
_HEAD = """# Families

Written by `python -m scripts.verify_families`: do not edit.

transformers {transformers}, torch {torch}, CPU.

A family stands for a modelling file of transformers; each is built small from its own configuration
class, with random weights, and run through `tests/test_families.py` on inputs of its own kind. No
released weights were at hand.

- **all kept = unwrapped**: logits and `generate` bit for bit those of the unwrapped model
- **dropping = masking**: logits equal the full-length model's whose later layers hide what went
- **row = row alone**: in a batch with padding, other images and other counts
- **cached = uncached**: `generate`, also against each row alone; **beams**: two, two answers
- **places**: row and column of each visual token against a construction of its own
- **training**: a finite, non-zero gradient at every head's parameter and nowhere else
- **revival**: tokens that are gone are scored as they would be if they were there
- **other methods**: those that ask nothing of the vision tower, and ATP with its extensions, decide
  for a row as for the row alone, and generate with a cache as without

✓ holds, ✗ does not, n/a the family itself cannot (below). *Adapter*: the file in `adapters/`, or
*generic* where structure says all.

## Verified

"""


class Outcomes:
    """A pytest plugin that collects test → family → outcome."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, str]] = {test: {} for test in COLUMNS}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the outcome of a test that has a column."""
        match = re.search(r"::(\w+)\[(.+)\]$", report.nodeid)
        if match is None or match[1] not in COLUMNS:
            return
        if report.when == "call" or report.skipped or report.failed:
            self.found[match[1]][match[2]] = report.outcome


def row(name: str, family: Family, found: dict[str, dict[str, str]]) -> str:
    """Return a family's row of the table."""
    signs = {"passed": "✓", "failed": "✗", "skipped": "n/a"}
    model = family.build()
    adapter = adapter_for(model)
    file = "generic" if type(adapter) is GenericAdapter else type(adapter).__module__.split(".")[-1]
    kinds = "images, videos" if family.videos else "images"
    cells = [signs[found[test][name]] for test in COLUMNS]
    if "places" in family.limits:
        cells[list(COLUMNS).index("test_every_token_knows_its_place")] = "n/a"
    return " | ".join([f"| `{name}`", f"`{family.model}`", file, kinds, *cells]) + " |\n"


def others() -> tuple[list[str], list[str]]:
    """Return the other model types: those that wrap untested, and those refused with the reason."""
    known = {family.model for family in FAMILIES.values()}
    wraps, refused = [], []
    for kind, name in modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.items():
        if name in known or not isinstance(name, str):
            continue
        try:
            cls = getattr(transformers, name)
            with torch.device("meta"):
                model = cls(cls.config_class())
        except Exception:
            wraps.append(f"`{kind}` (no model from its defaults)")
            continue
        try:
            tp.wrap(model)
        except ValueError as error:
            reason = str(error).partition("cannot be pruned: ")[2] or str(error)
            refused.append(f"- `{kind}`: {reason}")
        else:
            wraps.append(f"`{kind}`")
    return wraps, refused


def main() -> None:
    """Write both files."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    outcomes = Outcomes()
    pytest.main([str(ROOT / "tests/test_families.py"), "-q", *sys.argv[1:]], plugins=[outcomes])
    tried = {
        name: family
        for name, family in sorted(FAMILIES.items())
        if family.available() and not family.refused
    }
    text = _HEAD.format(transformers=transformers.__version__, torch=torch.__version__)
    text += "| family | class | adapter | reads | " + " | ".join(COLUMNS.values()) + " |\n"
    text += "|---" * (4 + len(COLUMNS)) + "|\n"
    text += "".join(row(name, family, outcomes.found) for name, family in tried.items())
    text += "\nWhat a family itself cannot do, pruned or not:\n\n"
    for name, family in tried.items():
        text += "".join(f"- `{name}`, {what}: {why}\n" for what, why in family.limits.items())
    wraps, refused = others()
    text += "\n## Refused\n\n`wrap` says why; the model stays as it was.\n\n"
    for _, family in sorted(FAMILIES.items()):
        if family.refused and family.available():
            try:
                tp.wrap(family.build())
            except ValueError as error:
                reason = str(error).partition("cannot be pruned: ")[2]
                text += f"- `{family.name}`: {reason}\n"
    text += "\n".join(refused) + "\n\n## Not tried\n\nThe generic adapter takes them by their "
    text += "structure; nothing was checked: " + ", ".join(wraps) + ".\n"
    (ROOT / "docs/families.md").write_text(text, encoding="utf-8")
    green = {
        family.config().model_type
        for name, family in tried.items()
        if all(outcomes.found[test].get(name) != "failed" for test in COLUMNS)
    }
    facts = {"transformers": transformers.__version__, "families": sorted(green)}
    (ROOT / "adapters/verified.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(f"{len(tried)} tiny models, {len(green)} model types verified")


if __name__ == "__main__":
    main()
