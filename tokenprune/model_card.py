"""The model card that is pushed to a hub with heads."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

__all__ = ["HUB_ID", "card_of", "merged"]

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

# Between these lines a card is ours: another push renews them, and leaves what stands around them.
_BEGIN, _END = "<!-- tokenprune: begin -->", "<!-- tokenprune: end -->"

_TEXT = """{begin}
# Visual-token pruning for {base}

Heads for the Python library `tokenprune` (`pip install tokenprune`), which drops visual tokens
inside the decoder of a vision-language model. They fit the family `{family}` with {num_layers}
decoder layers of width {hidden_size}. The model itself is not in this repository.

```python
import tokenprune as tp
from transformers import AutoModelForImageTextToText

model = AutoModelForImageTextToText.from_pretrained({model!r})
tp.wrap(model, {repo_id!r})
```

## Budgets

{budgets}

## Configuration

Method `{method}`, saved by tokenprune {version}:

```json
{config}
```
{figures}{end}
"""


def card_of(
    about: dict[str, Any], repo_id: str, figures: dict[str, str], base_model: str | None
) -> str:
    """Return the card for heads whose metadata is `about`."""
    from huggingface_hub import ModelCardData

    known = about["base_model"] or ""
    # A folder's path says nothing to others, and may say more than it should.
    if base_model is None and HUB_ID.fullmatch(known) and not Path(known).exists():
        base_model = known
    method = about["config"]["method"]
    data = ModelCardData(
        base_model=base_model,
        library_name="tokenprune",
        pipeline_tag="image-text-to-text",
        tags=["token-pruning", "vision-language", method, about["family"]],
    )
    text = _TEXT.format(
        begin=_BEGIN,
        end=_END,
        base=f"[{base_model}](https://huggingface.co/{base_model})" if base_model else "a model",
        model=base_model or "the model they were trained for",
        family=about["family"],
        num_layers=about["num_layers"],
        hidden_size=about["hidden_size"],
        repo_id=repo_id,
        budgets=_budgets(about["runtime"].get("budgets", [])),
        method=method,
        version=about["tokenprune_version"],
        config=json.dumps(about["config"], indent=2),
        figures=_figures(figures),
    )
    return f"---\n{data.to_yaml()}\n---\n\n{text}"


def _budgets(found: list[dict[str, Any]]) -> str:
    if not found:
        return "None was calibrated: the configuration says what is kept."
    head = ("mean over all layers", "at most, after any step")
    rows: list[tuple[str, ...]] = [
        (
            f"{b['tokens']:g} tokens per image"
            if "tokens" in b
            else f"{b['share']:.4g} of each sample's tokens",
            str(b["max_kept"] or "no cap"),
        )
        for b in found
    ]
    between = ", or any between two of a kind" if len(found) > 1 else ""
    return (
        "Calibrated for the following; `tp.set_budget(model, budget)` takes one of them"
        f"{between}.\n\n{_table(head, rows)}"
    )


def _figures(given: dict[str, str]) -> str:
    if not given:
        return ""
    table = _table(("figure", "value"), list(given.items()))
    return f"\n## Figures\n\nAs given with the heads.\n\n{table}\n"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    cells = [[cell.replace("|", r"\|").replace("\n", " ") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [list(head), ["---"] * len(head), *cells])


def merged(existing: str | None, card: str) -> str | None:
    """Return the card with what stands around ours in the existing one; None: not to be written."""
    if existing is None:
        return card
    start, end = existing.find(_BEGIN), existing.find(_END)
    if not 0 <= start < end:
        return None
    ours = card[card.find(_BEGIN) : card.find(_END)]
    return existing[:start] + ours + existing[end:]
