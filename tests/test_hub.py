"""Heads and whole models on a model hub: a stand-in for its server, and the true client."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
import yaml

import tokenprune as tp
from tokenprune.saved import HEADS

from .support.hub import TOKEN, Hub, serving, taken_for_the_hub
from .support.saved_heads import atp_llava, base, method, run, saved_heads

ROOT = Path(__file__).parents[1]
REPOSITORY = "somebody/heads"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with taken_for_the_hub(str(tmp_path)) as served:
        yield served


@pytest.fixture
def model(tmp_path: Path) -> Any:
    return saved_heads(tmp_path)[0]


def card_of(hub: Hub, repo_id: str = REPOSITORY) -> tuple[dict[str, Any], str]:
    """The metadata of a repository's card, and its text."""
    _, metadata, text = hub.files(repo_id)["README.md"].decode().split("---\n", 2)
    return yaml.safe_load(metadata), text


def test_heads_come_back_bit_for_bit(hub: Hub, model: Any) -> None:
    pushed = tp.push_heads(model, REPOSITORY)
    assert pushed.commit_url.startswith(f"{hub.url}/{REPOSITORY}/commit/")
    assert hub.files(REPOSITORY).keys() == {HEADS, "README.md"}
    assert len(hub.repositories[REPOSITORY]) == 2  # one commit after the empty one
    other = tp.wrap(base(), REPOSITORY)
    for (logits, stats), (again, kept) in [(run(model), run(other))]:
        assert torch.equal(logits, again)
        assert (stats.kept == kept.kept).all()
    assert method(other).runtime_state() == method(model).runtime_state()
    third = atp_llava(seed=1)
    tp.load_heads(third, REPOSITORY)
    assert torch.equal(run(third)[0], run(model)[0])


def test_the_card_says_what_the_heads_are(hub: Hub, model: Any) -> None:
    model.config._name_or_path = "someone/llava"
    tp.push_heads(model, "heads", figures={"POPE": 85.91234567, "note": "a|b"}, private=True)
    assert hub.private == {REPOSITORY: True}  # the owner is the one that is logged in
    metadata, text = card_of(hub)
    assert metadata == {
        "base_model": "someone/llava",
        "library_name": "tokenprune",
        "pipeline_tag": "image-text-to-text",
        "tags": ["token-pruning", "vision-language", "atp", "llava"],
    }
    assert "tp.wrap(model, 'somebody/heads')" in text
    assert "from_pretrained('someone/llava')" in text
    assert "| 18 tokens per image | 30 |" in text
    assert "| POPE | 85.9123 |" in text
    assert r"| note | a\|b |" in text
    block = re.search(r"```json\n(.*?)```", text, re.DOTALL)
    assert block
    assert tp.ATPConfig.from_json(block[1]).target_tokens == 18


def test_a_folder_is_not_named_to_others(hub: Hub, model: Any, tmp_path: Path) -> None:
    model.config._name_or_path = str(tmp_path)
    tp.push_heads(model, REPOSITORY)
    metadata, text = card_of(hub)
    assert "base_model" not in metadata
    assert str(tmp_path) not in text
    tp.push_heads(model, "heads-2", base_model="someone/llava")
    assert card_of(hub, "somebody/heads-2")[0]["base_model"] == "someone/llava"


def test_a_method_without_budgets_is_described(hub: Hub) -> None:
    model = tp.wrap(base(), tp.FastVConfig(layer=1, keep=9))
    tp.push_heads(model, REPOSITORY)
    metadata, text = card_of(hub)
    assert "fastv" in metadata["tags"]
    assert "None was calibrated" in text
    assert "## Figures" not in text
    assert run(tp.wrap(base(), REPOSITORY))[1].final_tokens.tolist() == [9, 9]


def test_what_a_user_wrote_around_the_card_stays(hub: Hub, model: Any) -> None:
    tp.push_heads(model, REPOSITORY, figures={"before": 1})
    first = hub.files(REPOSITORY)["README.md"]
    hub.files(REPOSITORY)["README.md"] = b"Mine.\n" + first + b"Mine too.\n"
    tp.push_heads(model, REPOSITORY, figures={"after": 2})
    second = hub.files(REPOSITORY)["README.md"]
    assert (
        second == b"Mine.\n" + first.replace(b"| before | 1 |", b"| after | 2 |") + b"Mine too.\n"
    )


def test_a_users_card_is_left_alone(hub: Hub, model: Any) -> None:
    hub.repositories[REPOSITORY] = [{"README.md": b"Mine."}]
    with pytest.warns(UserWarning, match=r"The README\.md of somebody/heads .* is left as it is"):
        tp.push_heads(model, REPOSITORY)
    assert hub.files(REPOSITORY)["README.md"] == b"Mine."
    assert HEADS in hub.files(REPOSITORY)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"repo_id": "a b"}, "repo_id='a b': expected"),
        ({"repo_id": 3}, "repo_id=3: expected"),
        ({"base_model": "/models/llava"}, "base_model='/models/llava': expected a hub id"),
        ({"figures": [1]}, r"figures=\[1\]: expected a dict"),
        ({"figures": {"a": [1]}}, r"figures has 'a': \[1\]: expected a name, and a number"),
    ],
)
def test_bad_arguments_send_nothing(
    hub: Hub, model: Any, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        tp.push_heads(model, **{"repo_id": REPOSITORY, **given})
    assert not hub.asked


def test_heads_that_would_not_load_again_send_nothing(hub: Hub, model: Any) -> None:
    next(method(model).parameters()).data.fill_(torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        tp.push_heads(model, REPOSITORY)
    with pytest.raises(ValueError, match="not wrapped"):
        tp.push_heads(base(), REPOSITORY)
    assert not hub.asked


@pytest.mark.parametrize("token", ["", "hf_" + "b" * 34])
def test_without_a_token_that_is_right_nothing_is_pushed(
    hub: Hub, model: Any, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(PermissionError, match=r"not pushed to somebody/heads: .*hf auth login"):
        tp.push_heads(model, REPOSITORY)
    assert not hub.repositories


def test_anothers_repository_is_refused(hub: Hub, model: Any) -> None:
    with pytest.raises(PermissionError, match="this token may not write there"):
        tp.push_heads(model, "another/new")
    hub.repositories["another/heads"] = [{}]
    with pytest.raises(PermissionError, match="this token may not write there"):
        tp.push_heads(model, "another/heads")
    assert hub.files("another/heads") == {}


def test_without_a_network_nothing_is_pushed(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match=r"http://127.0.0.1:9 cannot be reached .*save_heads"):
        tp.push_heads(model, REPOSITORY, token=TOKEN)


def test_a_card_that_cannot_be_asked_for_is_not_overwritten(hub: Hub, model: Any) -> None:
    hub.repositories[REPOSITORY] = [{"README.md": b"Mine."}]
    hub.broken.add(f"/{REPOSITORY}/resolve/main/README.md")
    with pytest.raises(OSError, match="not pushed to somebody/heads"):
        tp.push_heads(model, REPOSITORY)
    assert hub.repositories[REPOSITORY] == [{"README.md": b"Mine."}]


WHOLE = """
import copy, sys
from pathlib import Path
import torch
from transformers import AutoModelForImageTextToText
import tokenprune as tp
from tests.support.saved_heads import run, saved_heads

model, _ = saved_heads(Path(sys.argv[1]))
plain = tp.unwrap(copy.deepcopy(model))
model.push_to_hub("somebody/whole")
model.save_pretrained(sys.argv[1] + "/saved", push_to_hub=True, repo_id="somebody/saved")
tp.push_heads(model, "somebody/heads")
wanted, kept = run(model)
logits, found = run(tp.from_pretrained("somebody/whole"))
assert torch.equal(logits, wanted) and (found.kept == kept.kept).all()
stock = AutoModelForImageTextToText.from_pretrained("somebody/saved")
assert stock.state_dict().keys() == plain.state_dict().keys()
assert torch.equal(run(tp.wrap(stock, "somebody/saved"))[0], wanted)
assert torch.equal(run(tp.wrap(plain, "somebody/heads"))[0], wanted)
"""


def test_whole_models_come_back_bit_for_bit(tmp_path: Path) -> None:
    """By the environment alone, as a user would set it."""
    with serving() as hub:
        settings = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home")}
        subprocess.run(
            [sys.executable, "-c", WHOLE, str(tmp_path)],
            env={**os.environ, **settings, "PYTHONPATH": str(ROOT)},
            check=True,
            timeout=120,
        )
        for name in ("somebody/whole", "somebody/saved"):
            assert {HEADS, "config.json", "model.safetensors"} <= hub.files(name).keys()
        assert hub.files("somebody/heads").keys() == {HEADS, "README.md"}
