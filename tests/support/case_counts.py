"""How many cases a run tried, for docs/reliability.md.

Where the environment variable ``TOKENPRUNE_COUNTS`` names a file, `count` appends a line of JSON to
it; otherwise it does nothing. Appending is safe from several processes at once.
"""

from __future__ import annotations

import json
import os

__all__ = ["VARIABLE", "count"]

VARIABLE = "TOKENPRUNE_COUNTS"


def count(what: str, number: int = 1) -> None:
    """Add to how many of something were tried, for instance ``count("kills")``."""
    path = os.environ.get(VARIABLE)
    if path:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"what": what, "number": number}) + "\n")
