"""Configurations: JSON both ways, and every value outside what is allowed refused by name."""

import dataclasses
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenprune import ATPConfig, FastVConfig
from tokenprune.config import ModelFacts
from tokenprune.methods import METHODS, config_from

positive = st.floats(0.01, 100)
atp_configs = st.builds(
    ATPConfig,
    layers=st.none() | st.sets(st.integers(0, 40), min_size=1).map(lambda s: tuple(sorted(s))),
    target_tokens=st.none() | positive,
    normalisation=st.sampled_from(("share", "mass", "minmax", "none")),
    averaging=st.sampled_from(("visible", "all")),
    ranking=st.just("learned"),
    need_layer=st.none() | st.integers(0, 100),
    hidden_size=st.none() | st.integers(1, 9000),
    sources=st.sampled_from((("self",), ("cross",), ("self", "cross"), ("cross", "self"))),
    prunings=st.sampled_from((("redundant",), ("spatial",), ("redundant", "spatial"))),
    positions=st.just("kept"),
    revival=st.booleans(),
    text_threshold=st.none() | st.floats(0.01, 0.99),
    special_ids=st.lists(st.integers(0, 10**6), max_size=3).map(tuple),
    strides=st.lists(st.integers(2, 9), min_size=1).map(tuple),
    sample_weight=st.floats(0.1, 3.9),
    hidden=st.integers(1, 300),
    grid=st.none() | st.tuples(st.integers(1, 40), st.integers(1, 40)),
    start_redundant=st.floats(-5, 5),
    start_spatial=st.floats(-5, 5),
    temperature=positive,
    training=st.sampled_from(("soft", "straight_through")),
    loss=st.sampled_from(("labels", "distill")),
    floor=st.floats(1e-6, 0.5),
    atp_weight=st.just(0) | positive,
    target_weight=st.just(0.0) | positive,
    target_unit=st.sampled_from(("share", "tokens")),
    target_over=st.sampled_from(("step", "instance")),
    heads_read=st.sampled_from(("share", "raw")),
    activation=st.sampled_from(("gelu", "none")),
)


@given(config=atp_configs)
def test_atp_survives_json(config):
    values = json.loads(config.to_json())
    assert values == config.to_dict()
    assert values["method"] == "atp"
    for back in (ATPConfig.from_json(config.to_json()), config_from(values)):
        assert back == config
        assert type(back) is ATPConfig


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_survives_json(name):
    config = METHODS[name][0]()
    assert type(config) is METHODS[name][0]
    assert config.method == name
    back = config_from(json.loads(config.to_json()))
    assert back == config
    assert set(config.to_dict()) == {"method", *(f.name for f in dataclasses.fields(config))}


@pytest.mark.parametrize("name", sorted(METHODS))
def test_what_a_newer_release_wrote_is_left_out_with_a_warning(name):
    config = METHODS[name][0]()
    values = {**config.to_dict(), "zoom": 2, "invented_later": 1}
    with pytest.warns(UserWarning, match=r"\['invented_later', 'zoom'\]"):
        assert config_from(values) == config


def test_revival_needs_places():
    with pytest.raises(ValueError, match=r"revival=True: .*not with positions='renumbered'"):
        ATPConfig(revival=True, positions="renumbered")


def test_another_method_is_refused():
    with pytest.raises(ValueError, match=r"method='dream'.*expected one of"):
        config_from({"method": "dream"})
    with pytest.raises(ValueError, match=r"method='dream'.*expected 'atp'"):
        ATPConfig.from_dict({"method": "dream"})
    with pytest.raises(ValueError, match=r"method=None.*expected one of"):
        config_from({})


DEEP = "[" * 100_000 + "]" * 100_000
BAD_JSON = {
    "not json": ("{", "Expecting"),
    "a list": ("[1]", "a list: expected an object"),
    "deep": (f'{{"layers": {DEEP}}}', "nested too deeply"),
    "a key twice": ('{"hidden": 8, "hidden": 9}', "key twice"),
    "NaN": ('{"temperature": NaN}', "NaN"),
    "infinity": ('{"temperature": -Infinity}', "Infinity"),
    "overflow": ('{"temperature": 1e999}', "overflows"),
    "309 digits": (f'{{"temperature": {10**308}}}', "309 digits"),
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_json_that_is_read_one_way_only(name):
    text, message = BAD_JSON[name]
    with pytest.raises(ValueError, match=message):
        ATPConfig.from_json(text)


@pytest.mark.parametrize("name", [[], {}, 1, True, ("atp",), "x" * 10**6], ids=lambda n: str(n)[:9])
def test_a_method_that_is_no_name_is_refused(name):
    with pytest.raises(ValueError, match=r"^method=.+ is not known: expected one of") as error:
        config_from({"method": name})
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("values", [None, [1], "x", 3], ids=repr)
def test_what_is_no_dictionary_is_refused(values):
    with pytest.raises(ValueError, match="expected a dictionary"):
        ATPConfig.from_dict(values)


def test_a_learned_ranking_is_read_by_mass_unless_told_otherwise():
    assert ATPConfig().normalisation == "share"
    assert ATPConfig(ranking="learned").normalisation == "mass"
    assert ATPConfig(ranking="learned", normalisation="share").normalisation == "share"
    assert ATPConfig.paper(ranking="learned").normalisation == "none"


def test_a_configuration_cannot_be_changed():
    config = ATPConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.hidden = 3


NAN, INF = float("nan"), float("inf")
OWN_CHOICES = ("training", "target_unit", "target_over", "heads_read", "activation", "loss")
NUMBERS = ("start_redundant", "start_spatial", "temperature", "floor", "sample_weight")
BAD_LAYERS = ((), (3, 3), (5, 2), (-2, 2), (1.5,), ("3",), (True,), 3, "13")
BAD = [
    *(("layers", bad) for bad in BAD_LAYERS),
    ("layers", (-1, 2)),
    *(("target_tokens", bad) for bad in (0, -1, NAN, INF, "144")),
    *((name, bad) for name in ("normalisation", "averaging") for bad in ("mean", "", 1)),
    ("averaging", None),
    *(("ranking", bad) for bad in ("hidden", "", None, 1)),
    *(("need_layer", bad) for bad in (-1, 2.5, "2", True, (2,), 2**16 + 1)),
    *(("hidden_size", bad) for bad in (0, -1, 2.5, "64", True, 2**16 + 1)),
    *((name, bad) for name in OWN_CHOICES for bad in ("hard", None, ["soft"])),
    *(("sources", bad) for bad in ((), ("self", "self"), ("text",), "self", None, 3)),
    *(("prunings", bad) for bad in ((), ("spatial", "spatial"), ("random",), "spatial", None)),
    *(("strides", bad) for bad in ((), (1, 2), (2.0, 3), (0,), ("2",), 2, None)),
    *(("sample_weight", bad) for bad in (0, -3, 4, 4.5)),
    *((n, bad) for n in ("temporal", "revival") for bad in (1, "yes", None)),
    *(("text_threshold", bad) for bad in (0, 1, 1.5, "0.5", float("nan"))),
    *(("special_ids", bad) for bad in (7, (-1,), (1.5,), ("</s>",), (True,))),
    *(("hidden", bad) for bad in (0, -1, 2.5, "64", None)),
    *(("grid", bad) for bad in ((24,), (24, 24, 1), (0, 24), (24, -1), (2.5, 3), 24, "ab")),
    *(("temperature", bad) for bad in (0, -20)),
    *(("floor", bad) for bad in (0, 1, -0.1, 2)),
    *((n, bad) for n in ("atp_weight", "target_weight") for bad in (-0.1, NAN, INF, "1", None)),
    *((name, bad) for name in NUMBERS for bad in (NAN, INF, -INF, "0.5", None)),
]
BAD_RANDOM = [
    *(("layers", bad) for bad in BAD_LAYERS),
    *(("keep", bad) for bad in ((), (3, -1), (3, 4.5), (NAN,), (INF,), ("3",), -1, 12.3, None)),
    *(("mean_tokens", bad) for bad in ((), (3, -1), (NAN,), (INF,), ("3",), -0.5, "3", True)),
    *(("seed", bad) for bad in (0.5, None, "1")),
]
BAD_KEEP = [("keep", bad) for bad in (0, 0.0, -1, -0.5, 1.5, 64.5, NAN, INF, True, "9", None)]
BAD_LAYER = [("layer", bad) for bad in (-2, 1.5, "3", None, True)]
BAD_SPARSEVLM = [
    *(("layers", bad) for bad in (*BAD_LAYERS, (-1, 2))),
    *((name, bad) for name in ("scale", "clusters") for bad in (0, 1.1, NAN, "1", None)),
    *(("recycle", bad) for bad in (-0.1, 1.1, NAN, "1", None)),
    *(("keep", bad) for bad in ((), 0, 4.5, (0.5, 4.5), "ab")),
]
BAD_PRUMERGE = [
    *(("plus", bad) for bad in (1, None, "yes")),
    *(pair for pair in BAD_KEEP if pair[1] is not None),
    *(("neighbours", bad) for bad in (-1, 2.5, None)),
]
BAD_OF = {
    "atp": BAD,
    "cdpruner": [
        *BAD_KEEP,
        *BAD_LAYER,
        *(("negated", bad) for bad in (1, None, "yes")),
        *(("theta", bad) for bad in (-0.1, 0.96, 1, NAN, "1")),
    ],
    "dart": [
        *BAD_KEEP,
        *BAD_LAYER,
        ("layer", -1),
        *(("image_pivots", bad) for bad in (0, 1.5, None, 1025)),
        *(("text_pivots", bad) for bad in (-1, 1.5, None, 1025)),
        *(("norm", bad) for bad in (0, 3, None, "1", NAN)),
    ],
    "divprune": BAD_KEEP + BAD_LAYER,
    "downsample": BAD_KEEP,
    "fastv": [*BAD_KEEP, *BAD_LAYER, ("layer", -1)],
    "idselection": [
        *BAD_KEEP,
        *BAD_LAYER,
        ("layer", -1),
        *(("gamma", bad) for bad in (0, -1, NAN, None)),
    ],
    "matryoshka": [("stride", bad) for bad in (0, -1, 1.5, "2", None)],
    "prumerge": BAD_PRUMERGE,
    "pyramiddrop": [
        *(("layers", bad) for bad in (*BAD_LAYERS, (-1, 2))),
        *(("keep", bad) for bad in (0, 1.5, (), (0.5, 2.5), NAN, "1", None)),
    ],
    "random": BAD_RANDOM,
    "sparsevlm": BAD_SPARSEVLM,
    "uniform": BAD_KEEP + BAD_LAYER,
    "visionzip": [*BAD_KEEP, *(("contextual", bad) for bad in (-0.1, 1, NAN, None))],
}
BAD_POSITIONS = [("positions", bad) for bad in ("own", "", None, True, 1)]
BAD_OF = {method: [*table, *BAD_POSITIONS] for method, table in BAD_OF.items()}
CASES = [(method, name, bad) for method, table in BAD_OF.items() for name, bad in table]


@pytest.mark.parametrize(
    ("method", "name", "bad"), CASES, ids=[f"{m}-{n}={v!r}" for m, n, v in CASES]
)
def test_a_bad_value_is_named_with_what_was_expected(method, name, bad):
    start = re.escape(f"{name}={bad!r}: expected ")
    with pytest.raises(ValueError, match=rf"^{start}.+\.$"):
        METHODS[method][0](**{name: bad})


def test_every_field_of_every_method_has_a_bad_value_here():
    fields = {name: {f.name for f in dataclasses.fields(METHODS[name][0])} for name in METHODS}
    assert {name: {field for field, _ in table} for name, table in BAD_OF.items()} == fields


WITH_KEEP = [name for name in sorted(METHODS) if "keep" in METHODS[name][0].__dataclass_fields__]


def test_every_method_with_a_budget_calls_it_keep():
    """The others have thresholds, or nested scales."""
    assert set(METHODS) - set(WITH_KEEP) == {"atp", "matryoshka"}


@pytest.mark.parametrize("name", WITH_KEEP)
@pytest.mark.parametrize("keep", [1, 64, 2**31 - 1, 0.25, 1.0, 5e-324], ids=repr)
def test_numbers_and_shares_stay_apart(name, keep):
    """64 tokens and 1.0 of them, through JSON too."""
    config = METHODS[name][0](keep=keep)
    text = config.to_json()
    assert f'"keep": {keep!r}' in text
    for found in (config, config_from(json.loads(text))):
        assert found.keep == keep
        assert type(found.keep) is type(keep)


@pytest.mark.parametrize("name", ["pyramiddrop", "random", "sparsevlm"])
def test_a_budget_for_each_layer(name):
    config = METHODS[name][0](layers=(1, 2), keep=[64, 1.0])
    back = config_from(json.loads(config.to_json()))
    assert back == config
    assert [type(each) for each in back.keep] == [int, float]
    facts = ModelFacts(8, (6, 6), (1, 2, 3))
    assert config.fitted(facts) == config
    with pytest.raises(ValueError, match=r"keep=\(64, 1\.0\): expected one entry for each of the"):
        dataclasses.replace(config, layers=(1, 2, 3)).fitted(facts)


def test_numbers_of_numpy():
    """A float64 is a float; what is no int or float of Python's is refused with a sentence."""
    config = FastVConfig(keep=np.float64(0.5))
    assert type(config.keep) is float
    for bad in (np.int64(9), np.float32(0.5), np.array(9)):
        with pytest.raises(ValueError, match=r"keep=.+: expected a number of tokens \(an int from"):
            FastVConfig(keep=bad)


def test_the_densest_grid_bounds_the_sample_weight():
    assert ATPConfig(strides=(3, 6), sample_weight=8.9).sample_weight == 8.9
    with pytest.raises(ValueError, match=r"sample_weight=9\.0: expected between 0 and 9"):
        ATPConfig(strides=(3, 6), sample_weight=9.0)


def test_what_earlier_releases_wrote_of_positions():
    for before, now in ((True, "kept"), (False, "renumbered")):
        assert ATPConfig.from_dict({"preserve_positions": before}).positions == now
    with pytest.raises(ValueError, match=r"preserve_positions=1: expected true or false"):
        ATPConfig.from_dict({"preserve_positions": 1})
    with pytest.warns(UserWarning, match=r"'preserve_positions'"):
        found = ATPConfig.from_dict({"preserve_positions": False, "positions": "kept"})
    assert found.positions == "kept"
