"""Every field of every configuration against values that nobody means.

Each is refused by a ValueError that names the field, or is usable: it survives JSON, and a model
that is wrapped with it answers with finite logits, in training too.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

import tokenprune as tp
from tokenprune.methods import METHODS, config_from
from tokenprune.strict_json import parse_object

from .support.tiny_llava import IMAGE, make_batch, tiny_llava, with_labels

NAN, INF = float("nan"), float("inf")


class NoPrintedForm:
    def __repr__(self) -> str:
        raise RuntimeError("no printed form")


def nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


WHOLE = (0, 1, 2, 3, 7, 1024, 2**31 - 1, 2**31, 2**63 - 1, 2**63, 10**30, 10**309, 10**5000)
REAL = (0.0, 5e-324, 1e-320, 1e-30, 1e-6, 0.25, 1 - 2**-53, 1.0, 1.5, 20.0, 1e6, 1e38, 1e39, 1e308)
NUMBERS = (NAN, INF, -INF, *WHOLE, *(-n for n in WHOLE[1:]), *REAL, *(-x for x in REAL))
WORDS = (
    "",
    "x",
    "1",
    "0.5",
    "nan",
    "None",
    "self",
    "soft",
    "minmax",
    "mass",
    "share",
    "visible",
    "learned",
    "distill",
    "none",
    "instance",
    "kept",
    "x" * 10**6,
    b"self",
    "\ud800",
)
OTHERS = (
    *(
        None,
        True,
        False,
        ...,
        object,
        NoPrintedForm(),
        1j,
        Fraction(1, 2),
        Decimal("0.5"),
        range(3),
    ),
    *(np.float64(0.5), np.float64(NAN), np.float32(0.5), np.int64(3), np.bool_(True)),
    *(np.array(3), np.array([1, 2]), torch.tensor(1), torch.tensor([0.5, 0.5]), torch.tensor(NAN)),
    *({}, {"layers": 1}, set(), {1, 2}, frozenset({2}), iter([1, 2])),
)
LISTS = (
    *(
        (),
        [],
        [[]],
        ((1,),),
        [[1], [2]],
        (None,),
        (None, None),
        ("1", "2"),
        (True, False),
        nested(10**5),
    ),
    *(
        (1,),
        (1, 2),
        [1, 2],
        (2, 1),
        (1, 1),
        (1, 2, 3),
        (0,),
        (-1,),
        (-1, 1),
        (1.5,),
        (NAN,),
        (INF, 1),
    ),
    *((9, 4.5), (2, 10**30), (10**30, 10**31), (10**309,), (2, 2**63), (1e308, 1e308), (5e-324,)),
    *((3000, 3000), (10**6, 10**6), (1024, 1024), (1, 1025), tuple(range(2, 10**5)), (2,) * 10**5),
    *(
        ("self",),
        ("self", ["self"]),
        ("self", "self"),
        (b"self",),
        ("redundant",),
        (np.int64(2), 3),
    ),
    *((np.array([1]),), (torch.tensor(1), torch.tensor(2)), (NoPrintedForm(),), (object,), (1j,)),
)
HOSTILE = (*NUMBERS, *WORDS, *OTHERS, *LISTS)

# What a method cannot be built without.
NEEDED: dict[str, dict[str, Any]] = {
    "atp": {"layers": (1,), "target_tokens": 30, "hidden": 8},
    "random": {"keep": (9, 0.5), "layers": (1, 2)},
}
FIELDS = [(name, f.name) for name in METHODS for f in dataclasses.fields(METHODS[name][0])]


def names(error: ValueError, field: str) -> None:
    assert re.match(rf"({field})=[^=]", str(error)), error
    assert len(str(error)) < 1000, error


def accepted(method: str, field: str) -> Iterator[tuple[Any, Any]]:
    """The hostile values that the field takes, and the configuration with each."""
    for value in HOSTILE:
        try:
            yield value, METHODS[method][0](**{**NEEDED.get(method, {}), field: value})
        except ValueError as error:
            names(error, field)


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from numbers(each)


@pytest.mark.parametrize(("method", "field"), FIELDS, ids=[f"{m}-{f}" for m, f in FIELDS])
def test_a_value_is_refused_by_its_fields_name_or_survives_json(method: str, field: str) -> None:
    for value, config in accepted(method, field):
        assert config_from(parse_object(config.to_json())) == config, value
        hash(config)
        for number in numbers(list(config.to_dict().values())):
            assert math.isfinite(number), value
            assert abs(number) <= 2**63, value


@pytest.mark.parametrize(("method", "field"), FIELDS, ids=[f"{m}-{f}" for m, f in FIELDS])
def test_a_dictionary_is_refused_where_the_values_are(method: str, field: str) -> None:
    allowed = {repr(value) for value, _ in accepted(method, field) if value is not None}
    for value in (*NUMBERS, *WORDS[:-1], *LISTS[:30]):
        values = {"method": method, **NEEDED.get(method, {}), field: value}
        try:
            config_from(values)
        except ValueError as error:
            names(error, field)
        else:
            assert repr(value) in allowed


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_llava(layers=4)


BATCH = with_labels(make_batch([(4, IMAGE, 6), (2, 5)]), answer=2)


@pytest.mark.parametrize(("method", "field"), FIELDS, ids=[f"{m}-{f}" for m, f in FIELDS])
def test_a_value_that_is_accepted_can_be_used(model: Any, method: str, field: str) -> None:
    seen = 0
    for value, config in accepted(method, field):
        torch.manual_seed(0)
        try:
            tp.wrap(model, config)
        except ValueError as error:  # not this model's layers, say
            names(error, f"layers?|keep|mean_tokens|{field}" if "layer" in field else field)
            continue
        try:
            with torch.no_grad():
                assert model(**BATCH).logits.isfinite().all(), value
            if method == "atp":
                heads = tp.train_only_heads(model)
                loss = model.train()(**BATCH).loss
                loss.backward()
                assert loss.isfinite(), value
                assert all(p.grad is None or p.grad.isfinite().all() for p in heads), value
            seen += 1
        finally:
            tp.unwrap(model.eval())
    assert seen, "no value of the sweep is one that the method can run with"


def test_special_ids_beyond_the_vocabulary_are_nowhere(model: Any) -> None:
    """In a prompt of embeddings too, where an id is looked up in the vocabulary."""
    ids, rest = BATCH["input_ids"], {k: v for k, v in BATCH.items() if k != "input_ids"}
    options: dict[str, Any] = {"layers": (0, 1), "target_tokens": 20.0, "text_threshold": 0.5}
    found = []
    for special in ((), (63, 64, 2**31 - 1)):
        tp.wrap(model, tp.ATPConfig(**options, special_ids=special))
        try:
            torch.manual_seed(0)
            for parameter in tp.train_only_heads(model):
                torch.nn.init.normal_(parameter, std=0.1)
            with torch.no_grad():
                found.append(model(**BATCH).logits)
                found.append(model(inputs_embeds=model.get_input_embeddings()(ids), **rest).logits)
        finally:
            tp.unwrap(model)
    for each in found[1:]:
        torch.testing.assert_close(each, found[0])
