"""Check that an explanation's figures give the tokens that were kept."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import numpy as np
import torch

import tokenprune as tp

from .tiny_llava import Batch

__all__ = ["check", "check_row", "check_rule", "read_positions"]


def check(model: Any, stats: tp.PruneStats) -> None:
    """The explanations of a model's last prefill against its statistics."""
    for sample in range(stats.visual.shape[0]):
        explanation = tp.explain(model, sample)
        told = explanation.to_dict()
        assert told == json.loads(json.dumps(told, allow_nan=False))
        visual = stats.visual[sample]
        assert told["visual_tokens"] == visual.sum() == len(told["tokens"])
        for name in ("image", "frame", "row", "col"):
            assert [t[name] for t in told["tokens"]] == getattr(stats, name)[sample][
                visual
            ].tolist()
        assert [t["position"] for t in told["tokens"]] == visual.nonzero()[0].tolist()
        assert [step["layer"] for step in told["steps"]] == list(stats.pruning_layers)
        for number, layer in enumerate(stats.pruning_layers):
            alive = stats.alive[layer + 1, sample][visual]
            assert (explanation.steps[number].kept == alive).all()
            assert told["steps"][number]["kept"] == alive.sum() == stats.kept[layer + 1, sample]
            check_rule(told["tokens"], layer, alive)
        for token, alive in zip(told["tokens"], stats.alive[:, sample][:, visual].T, strict=True):
            # Gone after the last layer that computes on it.
            gone = len(alive) - 1 - alive[::-1].argmax() if alive.any() else -1
            assert token["left"] == (None if alive[-1] else gone)
            assert "Token" in repr(explanation.token(token["number"]))
        assert len(repr(explanation).splitlines()) == 1 + len(stats.pruning_layers)


def check_rule(
    tokens: list[dict], layer: int, alive: np.ndarray, always: Collection[int] = ()
) -> None:
    """What a reader would make of the figures alone, in plain Python."""
    asked = [
        (token, step, bool(kept))
        for token, kept in zip(tokens, alive, strict=True)
        for step in token["steps"]
        if step["layer"] == layer
    ]
    assert all(kept == step["kept"] for _, step, kept in asked)
    assert not [t for t, kept in zip(tokens, alive, strict=True) if kept and not t["steps"]]
    above = {}
    for token, step, kept in asked:
        met = []
        for n, criterion in enumerate(step["criteria"]):
            if criterion["threshold"] is not None:
                met.append(criterion["score"] > criterion["threshold"])
            elif criterion["limit"] is not None:
                # Of equal scores the earlier token's rank is the higher.
                better = sum(
                    other["criteria"][n]["score"] > criterion["score"]
                    or (
                        other["criteria"][n]["score"] == criterion["score"]
                        and before["position"] < token["position"]
                    )
                    for before, other, _ in asked
                )
                assert criterion["rank"] == better + 1
                assert step["among"] == len(asked)
                met.append(better < criterion["limit"])
            else:
                met.append(criterion["met"])
            assert criterion["met"] == met[-1]
        wanted = any(met)
        if wanted and step["max_kept"] is not None:
            above[token["number"]] = step["place"]
            wanted = step["place"] <= step["max_kept"]
        stays = wanted or token["position"] in always
        assert kept == stays, (layer, token["number"])
        assert step["kept_by"] == [
            c["name"] for c, ok in zip(step["criteria"], met, strict=True) if ok and kept
        ]
    assert sorted(above.values()) == list(range(1, len(above) + 1))


def read_positions(batch: Batch) -> list[int]:
    """Where the next token is read: these stay, whatever they are."""
    mask = batch["attention_mask"]
    return (torch.arange(mask.shape[1]) * mask).argmax(dim=1).tolist()


def check_row(model: Any, stats: tp.PruneStats, row: int, read: int) -> None:
    told = tp.explain(model, row).to_dict()
    visual = stats.visual[row]
    for layer in stats.pruning_layers:
        alive = stats.alive[layer + 1, row][visual]
        check_rule(told["tokens"], layer, alive, {read})
