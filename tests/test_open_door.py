"""A third party's method: given as it is, or registered with a configuration."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tokenprune as tp
from tokenprune.config import ModelFacts
from tokenprune.fields import checked, layer_number
from tokenprune.methods import METHODS, NEEDS, STATE_NEEDS

from .support.tiny_llava import IMAGE, VISUAL_TOKENS, Batch, make_batch, tiny_llava

BATCH: Batch = make_batch([(4, IMAGE, 3), (2, IMAGE, 5)])


pytestmark = pytest.mark.usefixtures("registrations")


@dataclass(frozen=True)
class FirstConfig(tp.SingleLayerConfig):
    keep: int = 8
    layer: int = checked(0, layer_number())


class First(tp.Method):
    """Keep the first tokens of each image, and learn nothing from a weight."""

    def __init__(self, config: FirstConfig, visual_tokens: int = 0) -> None:
        super().__init__(config)
        self.visual_tokens = visual_tokens
        self.weight = nn.Parameter(torch.zeros(2))

    @classmethod
    def from_config(cls, config: Any, facts: ModelFacts) -> First:
        return cls(config, facts.visual_tokens)

    def select(self, context: tp.Context) -> tp.Selection:
        visual = context.layout.mask
        return tp.Selection(keep=visual & (visual.cumsum(dim=1) <= self.config.keep))


class Columns(tp.RankingMethod):
    """Keep the tokens of the rightmost columns."""

    def score(self, context: tp.Context) -> Tensor:
        return context.layout.col.float()


class Rows(tp.RankingMethod):
    """Say nothing of each token."""

    def score(self, context: tp.Context) -> Tensor:
        return context.layout.row.float().sum(dim=1)


def kept(model: Any) -> list[int]:
    with torch.no_grad():
        assert model(**BATCH).logits.isfinite().all()
    return tp.stats(model).kept[:, 0].tolist()


def test_a_method_as_it_is() -> None:
    model = tiny_llava(layers=4)
    method = First(FirstConfig())
    assert tp.wrap(model, method) is model
    assert model.tokenprune.method is method
    assert kept(model) == [VISUAL_TOKENS, 8, 8, 8]
    assert tp.is_wrapped(model)
    assert not tp.is_wrapped(tp.unwrap(model))


def test_its_heads_have_no_file(tmp_path: Path) -> None:
    """Nothing says how to build the method again."""
    model = tp.wrap(tiny_llava(layers=4), First(FirstConfig()))
    with pytest.raises(ValueError, match=r"First as it is.*register_method"):
        tp.save_heads(model, tmp_path / "heads")
    assert not (tmp_path / "heads").exists()
    with pytest.raises(ValueError, match=r"First as it is.*register_method"):
        tp.load_heads(model, tmp_path)


def test_a_registered_method(tmp_path: Path) -> None:
    """Wrapped by its configuration, named, saved, and loaded into another model."""
    tp.register_method("first", FirstConfig)(First)
    assert "first" in tp.supported()["methods"]
    plain = tiny_llava(layers=4)
    model = tp.wrap(copy.deepcopy(plain), FirstConfig(keep=5, layer=1))
    method: Any = model.tokenprune.method  # type: ignore[union-attr]
    assert (type(method), method.visual_tokens) == (First, VISUAL_TOKENS)
    assert kept(model) == [VISUAL_TOKENS, VISUAL_TOKENS, 5, 5]
    with torch.no_grad():
        method.weight.copy_(torch.tensor([1.5, -2.0]))
    tp.save_heads(model, tmp_path / "heads")
    other: Any = tp.wrap(plain, tmp_path / "heads")
    assert kept(other) == kept(model)
    assert other.tokenprune.method.weight.tolist() == [1.5, -2.0]
    words = model.generate(**BATCH, max_new_tokens=3)  # type: ignore[operator]
    assert torch.equal(other.generate(**BATCH, max_new_tokens=3), words)


def test_a_ranking_method_is_one_function(tmp_path: Path) -> None:
    """It has a configuration of its own, which is saved, loaded, copied and pickled."""
    tp.register_method("columns")(Columns)
    assert Columns.Config.method == "columns"
    assert Columns.Config().to_dict() == {
        "method": "columns",
        "positions": "kept",
        "layer": 1,
        "keep": 0.25,
    }
    config = Columns.Config(layer=2, keep=0.5)
    assert repr(config) == "Columns.Config(positions='kept', layer=2, keep=0.5)"
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config
    model = tp.wrap(tiny_llava(layers=4), config)
    assert kept(model) == [VISUAL_TOKENS, VISUAL_TOKENS, VISUAL_TOKENS, 18]
    alive = tp.stats(model).alive[3, 0][tp.stats(model).alive[0, 0]]
    assert alive[4 : 4 + VISUAL_TOKENS].reshape(6, 6).tolist() == [[False] * 3 + [True] * 3] * 6
    tp.save_heads(model, tmp_path / "heads")
    other = tp.wrap(tiny_llava(layers=4), tmp_path / "heads")
    assert kept(other) == kept(model)
    with pytest.raises(ValueError, match=r"keep=64\.5: expected a number of tokens"):
        Columns.Config(keep=64.5)


def test_a_method_with_its_configuration_as_it_is() -> None:
    """Not registered: by default as `RankingConfig` is, or by another configuration."""
    for method, wanted in ((Columns(), [36, 36, 9, 9]), (Columns(tp.RankingConfig(0, 4)), [36, 4])):
        found = kept(tp.wrap(tiny_llava(layers=4), method))
        assert found[: len(wanted)] == wanted


def test_no_two_methods_share_a_configuration() -> None:
    tp.register_method("columns")(Columns)
    tp.register_method("other_columns")(type("OtherColumns", (Columns,), {}))
    first, second = METHODS["columns"][0], METHODS["other_columns"][0]
    assert first is not second
    assert (first.method, second.method) == ("columns", "other_columns")
    assert "method" not in vars(tp.RankingConfig)


def test_scores_of_another_shape_are_named() -> None:
    model = tp.wrap(tiny_llava(layers=4), Rows())
    with pytest.raises(ValueError, match=r"Rows.score returned the shape \(2,\): expected \(batch"):
        kept(model)


def test_the_states_that_a_method_may_need() -> None:
    """Not with revival, which the states of dropped tokens would take to be computed again."""
    assert {"queries", "keys", "values"} == STATE_NEEDS
    assert not (STATE_NEEDS - {f.name for f in dataclasses.fields(tp.Context)})
    model = tiny_llava(layers=4)
    for need in sorted(STATE_NEEDS):
        tp.unwrap(tp.wrap(model, method_with(needs=frozenset({need, "last"}))))
        said = rf"First.revives is True and its needs name \['{need}'\]"
        with pytest.raises(ValueError, match=said):
            tp.wrap(model, method_with(needs=frozenset({need, "last"}), revives=True))
    assert not tp.is_wrapped(model)


@dataclass(frozen=True)
class OtherConfig(tp.MethodConfig):
    method = "fastv"  # type: ignore[misc]


class NotAMethod:
    pass


class Bare(tp.Method):
    pass


REFUSED: dict[str, tuple[Any, str]] = {
    "a name that is taken": (
        lambda: tp.register_method("fastv", FirstConfig),
        "name='fastv' is taken by FastV: choose another",
    ),
    "a name that is none": (
        lambda: tp.register_method("key norm", FirstConfig),
        "name='key norm': expected an identifier",
    ),
    "no configuration": (
        lambda: tp.register_method("first", dict),  # type: ignore[arg-type]
        "config=<class 'dict'>: expected a class derived from MethodConfig",
    ),
    "another name in the configuration": (
        lambda: tp.register_method("other", OtherConfig),
        "OtherConfig says that its method is 'fastv', not 'other'",
    ),
    "a base for all": (
        lambda: tp.register_method("first", tp.RankingConfig),
        "expected a class derived from MethodConfig.*of this method's own",
    ),
    "no configuration at all": (
        lambda: tp.register_method("bare")(Bare),
        "Bare has no configuration: give register_method one, or derive the method from Ranking",
    ),
    "no method": (
        lambda: tp.register_method("first", FirstConfig)(NotAMethod),  # type: ignore[type-var]
        "expected a class derived from tokenprune.Method",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_registered(what: str) -> None:
    before = dict(METHODS)
    call, said = REFUSED[what]
    with pytest.raises(ValueError, match=said):
        call()
    assert before == METHODS


def method_with(**attributes: Any) -> First:
    method = First(FirstConfig())
    for name, value in attributes.items():
        setattr(method, name, value)
    return method


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "needs": (
        {"needs": frozenset({"last", "logits"})},
        rf"First.needs names \['logits'\]: expected some of {re.escape(str(sorted(NEEDS)))}",
    ),
    "no layers": ({"layers": ()}, r"layers=\(\): expected rising whole numbers from -1"),
    "layers past the end": ({"layers": (1, 3)}, r"layers=\(1, 3\): this decoder has 4 layers"),
    "layers out of order": ({"layers": (2, 1)}, r"layers=\(2, 1\): expected rising"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_method_that_asks_for_what_there_is_not(what: str) -> None:
    model = tiny_llava(layers=4)
    attributes, said = BAD[what]
    with pytest.raises(ValueError, match=said):
        tp.wrap(model, method_with(**attributes))
    assert not tp.is_wrapped(model)


def test_a_method_without_layers() -> None:
    class Nowhere(tp.Method):
        pass

    with pytest.raises(ValueError, match="layers=None: expected rising whole numbers"):
        tp.wrap(tiny_llava(layers=4), Nowhere())


@pytest.mark.parametrize("thing", [First, 3, nn.Linear(1, 1), {"keep": 3}])
def test_what_is_no_method(thing: Any) -> None:
    with pytest.raises(ValueError, match="expected a configuration such as ATPConfig"):
        tp.wrap(tiny_llava(layers=4), thing)
