"""The invariants, over every family: tiny models with random weights, the family's own inputs."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenprune.adapters import adapter_for
from torch import Tensor

import tokenprune as tp
from tokenprune import adapters
from tokenprune.fields import BEFORE_DECODER
from tokenprune.methods.base import Method
from tokenprune.methods.context import Context, Selection

from .families import FAMILIES, Family
from .families.base import release
from .support.config_strategies import has_tower_needs, layered_configs
from .support.tolerance import assert_close
from .support.wrapping import hooks_of, wrapped

# Wider than any grid here, and one more for tokens without a place.
_MOST = 64


class Patterned(Method):
    """Keeps what stands at some rows and columns, in every image alike.

    Parameters
    ----------
    layers : tuple of int
    share : float
        Of all places, how many each module keeps.
    seed : int
    revives : bool
        Whether tokens come back.
    needs : sequence of str
        Asked for, and not used.
    """

    def __init__(
        self,
        layers: tuple[int, ...],
        share: float,
        seed: int,
        revives: bool = False,
        needs: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.layers = layers
        self.revives = revives
        self.needs = frozenset(needs)
        self.contexts: list[Context] = []
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.rand(len(layers), _MOST, _MOST, generator=generator) < share

    def select(self, context: Context) -> Selection:
        layout = context.layout
        self.contexts.append(context)
        return Selection(keep=self.table[context.step, layout.row + 1, layout.col + 1])

    def alive(self, family: Family, model: Any, sample: Any, num_layers: int) -> Tensor:
        """What each layer must compute on: bool, (num_layers, length)."""
        length = sample["input_ids"].shape[1]
        alive = torch.ones(num_layers, length, dtype=torch.bool)
        for position, _, row, col, _, _ in family.geometry(model, sample):
            if not family.knows_places(sample):
                row, col = -1, -1
            stays = True
            for layer, table in zip(self.layers, self.table, strict=True):
                stays = (stays or self.revives) and bool(table[row + 1, col + 1])
                alive[layer + 1 :, position] = stays
        return alive


@dataclass(frozen=True)
class Case:
    """Prompts, and what goes."""

    images: tuple[int, ...]
    video: bool
    padding: str
    first: int
    gap: int
    share: float
    seed: int
    revives: bool

    def samples(self, family: Family, model: Any) -> list[Any]:
        return [
            family.sample(model, images, self.seed + n, video=self.video)
            for n, images in enumerate(self.images)
        ]

    def method(self, model: Any) -> Patterned:
        adapter = adapter_for(model)
        earliest = adapter.first_layer(model)
        # Before the first layer too, where no layer adds image features.
        first = max(earliest + self.first, earliest or -1)
        second = min(first + self.gap, len(adapter.decoder_layers(model)) - 2)
        return Patterned((first, second), self.share, self.seed, self.revives)


def cases(family: Family) -> st.SearchStrategy[Case]:
    # Families that want pictures in every row, or none, get them in every row.
    counts = st.integers(0 if family.text_beside_images else 1, 2)
    return st.builds(
        Case,
        images=st.lists(counts, min_size=1, max_size=3).map(tuple).filter(any),
        video=st.booleans() if family.videos else st.just(False),
        padding=st.sampled_from(["left", "right"]),
        first=st.integers(-1, 1),
        gap=st.integers(1, 2),
        share=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
        seed=st.integers(0, 2**16),
        revives=st.booleans(),
    )


@cache
def built(name: str, attn: str = "sdpa") -> Any:
    return FAMILIES[name].build(attn=attn)


def present(batch: Any, row: int) -> Tensor:
    return batch["attention_mask"][row].bool()


@torch.no_grad()
def logits(model: Any, batch: Any) -> Tensor:
    return model(**batch).logits


def skipped(family: Family, limit: str = "") -> Any:
    """A family as a parameter, skipped where this release has it not or it cannot do so itself."""
    reason = f"{family.name}: {family.limits.get(limit)}"
    if not family.available():
        reason = f"this transformers has no {family.model} that works"
    skip = limit in family.limits or not family.available()
    return pytest.param(family.name, marks=[pytest.mark.skip(reason=reason)] if skip else [])


def over(examples: int, limit: str = "") -> Callable[[Callable[..., Any]], Any]:
    """Run a test on drawn cases of every family that can be pruned."""

    def decorate(test: Callable[..., Any]) -> Any:
        def run(name: str) -> None:
            family = FAMILIES[name]

            @settings(max_examples=examples, deadline=None)
            @given(case=cases(family))
            def drawn(case: Case) -> None:
                test(name, family, case)

            drawn()

        run.__name__ = test.__name__
        run.__doc__ = test.__doc__
        run.swept = True  # type: ignore[attr-defined]
        names = [skipped(family, limit) for family in FAMILIES.values() if not family.refused]
        return pytest.mark.parametrize("name", names)(run)

    return decorate


@over(4)
def test_everything_kept_is_the_model_itself(name: str, family: Family, case: Case) -> None:
    """Invariant 1, bit for bit, `generate` included; and nothing is left after `unwrap`."""
    model = built(name)
    batch = family.join(model, case.samples(family, model), "left")
    asked = {"max_new_tokens": 3, "do_sample": False}
    before, words = logits(model, batch), model.generate(**copy.copy(batch), **asked)
    keys, config, hooks = list(model.state_dict()), model.config.to_json_string(), hooks_of(model)
    method = Patterned(case.method(model).layers, 2.0, case.seed)
    with wrapped(model, method):
        assert torch.equal(logits(model, batch), before)
        assert torch.equal(model.generate(**copy.copy(batch), **asked), words)
    assert list(model.state_dict()) == keys
    assert model.config.to_json_string() == config
    assert hooks_of(model) == hooks


@over(6)
def test_equals_the_masked_model(name: str, family: Family, case: Case) -> None:
    """Invariants 2, 4: dropping is masking the dropped keys of all later layers."""
    model = built(name, "eager")
    samples = case.samples(family, model)
    batch = family.join(model, samples, case.padding)
    method = case.method(model)
    layers = adapter_for(model).decoder_layers(model)
    alive = torch.ones(len(layers), *batch["input_ids"].shape, dtype=torch.bool)
    for row, sample in enumerate(samples):
        alive[:, row, present(batch, row)] = method.alive(family, model, sample, len(layers))
    expected = masked(model, layers, batch, alive)
    with wrapped(model, method):
        actual = logits(model, batch)
        stats = tp.stats(model) if any(case.images) else None
    for row in range(len(samples)):
        seen = present(batch, row) & alive[-1, row]
        assert_close(actual[row, seen], expected[row, seen], f"row {row}")
        if stats is not None:
            assert stats.alive[:, row].tolist() == (alive[:, row] & present(batch, row)).tolist()


def masked(model: Any, layers: Any, batch: Any, alive: Tensor) -> Tensor:
    """The model at full length; each layer's mask hides what is gone, but not from itself.

    The state of what is gone stays as it is.
    """

    def hide(n: int) -> Callable[..., Any]:
        def hook(_: Any, args: Any, kwargs: Any) -> Any:
            mask = kwargs["attention_mask"]
            itself = torch.eye(mask.shape[-1], dtype=torch.bool)
            gone = ~alive[n][:, None, None, :] & ~itself
            shown = mask.expand(len(alive[n]), -1, -1, -1)
            return args, {
                **kwargs,
                "attention_mask": shown.masked_fill(gone, torch.finfo(mask.dtype).min),
            }

        return hook

    def freeze(n: int) -> Callable[..., Any]:
        def hook(_: Any, args: Any, kwargs: Any, output: Any) -> Any:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            after = torch.where(alive[n][..., None], after, before)
            return (after, *output[1:]) if isinstance(output, tuple) else after

        return hook

    handles = [
        layer.register_forward_pre_hook(hide(n), with_kwargs=True) for n, layer in enumerate(layers)
    ] + [layer.register_forward_hook(freeze(n), with_kwargs=True) for n, layer in enumerate(layers)]
    try:
        return logits(model, batch)
    finally:
        for handle in handles:
            handle.remove()


@over(2)
def test_the_gone_are_scored_as_if_there(name: str, family: Family, case: Case) -> None:
    """One layer after they went they are what they would be: so is the attention they receive."""
    model = built(name)
    batch = family.join(model, case.samples(family, model), case.padding)
    first = max(0, case.method(model).layers[0])
    found = {}
    for share in (2.0, case.share):
        needs = ("prompt",)
        method = Patterned((first, first + 1), share, case.seed, revives=True, needs=needs)
        with wrapped(model, method):
            logits(model, batch)
        layout = method.contexts[-1].layout
        found[share] = method.contexts[-1].received["prompt"]
    for part in ("total", "seen_by"):
        kept, gone = (getattr(found[share], part)[layout.mask] for share in (2.0, case.share))
        assert_close(gone, kept, part)


@over(4, limit="rows")
def test_a_row_of_a_batch_is_the_row_alone(name: str, family: Family, case: Case) -> None:
    """Invariant 3, with ATP: its scores and thresholds too."""
    model = built(name)
    samples = case.samples(family, model)
    batch = family.join(model, samples, case.padding)
    method = case.method(model)
    with wrapped(model, method):
        together = logits(model, batch)
        for row, sample in enumerate(samples):
            alone = logits(model, sample)[0]
            seen = torch.ones(len(alone), dtype=torch.bool)
            if case.images[row]:
                seen = torch.from_numpy(tp.stats(model).alive[-1, 0])
            assert_close(together[row, present(batch, row)][seen], alone[seen], f"row {row}")


@over(3)
def test_generate(name: str, family: Family, case: Case) -> None:
    """Invariant 5: cached is uncached, and a row is the row alone, images of all sizes."""
    generates(family, case)


@over(2, limit="beams")
def test_beams(name: str, family: Family, case: Case) -> None:
    """The same with beams and several answers a prompt."""
    if case.video and "video beams" in family.limits:
        case = replace(case, video=False)
    generates(family, case, num_beams=2, num_return_sequences=2)


def generates(family: Family, case: Case, **asked: int) -> None:
    model = built(family.name)
    samples = case.samples(family, model)
    batch = family.join(model, samples, "left")
    asked = {"max_new_tokens": 3, "do_sample": False, **asked}

    def words(use_cache: bool) -> Tensor:
        return model.generate(**copy.copy(batch), **asked, use_cache=use_cache)

    # Some models' beams are others without a cache, unpruned too: several images to a row.
    consistent = "uncached" not in family.limits
    if consistent and "num_beams" in asked:
        consistent = torch.equal(words(True), words(False))
    with wrapped(model, case.method(model)):
        cached = words(True)
        if consistent:
            assert torch.equal(cached, words(False))
        if "rows" in family.limits:
            return
        copies = len(cached) // len(samples)
        for row, sample in enumerate(samples):
            alone = model.generate(**copy.copy(sample), **asked)
            mine = cached[row * copies : (row + 1) * copies]
            assert torch.equal(mine[:, -3:], alone[:, -3:])


@over(4)
def test_every_token_knows_its_place(name: str, family: Family, case: Case) -> None:
    """The layout against a construction that reads the family's own code."""
    model = built(name)
    samples = [s for s, n in zip(case.samples(family, model), case.images, strict=True) if n]
    for sample in samples:
        with wrapped(model, case.method(model)):
            logits(model, sample)
            stats = tp.stats(model)
        if not family.knows_places(sample):
            assert (stats.row == -1).all()
            continue
        found = {
            position: (
                int(stats.row[0, position]),
                int(stats.col[0, position]),
                *map(int, stats.grid[0, position]),
            )
            for position in stats.visual[0].nonzero()[0].tolist()
        }
        expected = {p: (r, c, h, w) for p, _, r, c, h, w in family.geometry(model, sample)}
        assert found.keys() == expected.keys()
        for position, place in expected.items():
            if place[:2] == (-1, -1):
                assert found[position][:2] == (-1, -1)
            else:
                assert found[position] == place


@over(2)
def test_training_teaches_the_heads_and_nothing_else(name: str, family: Family, case: Case) -> None:
    """Invariants 6 and 7."""
    model = FAMILIES[name].build()
    batch = family.join(model, case.samples(family, model), "right")
    labels = torch.full_like(batch["input_ids"], -100)
    for row in range(len(labels)):
        # Any word: some families give none to the words of a picture.
        labels[row, present(batch, row).nonzero().flatten()[-2:]] = 3
    rows, cols = adapter_for(model).grid(model)
    first = adapter_for(model).first_layer(model)
    target = 0.9 * rows * cols
    tp.wrap(model, tp.ATPConfig(layers=(first + 1,), target_tokens=target, start_spatial=0.0))
    heads = tp.train_only_heads(model)
    model.train()
    out = model(**batch, labels=labels)
    assert out.logits.shape[:2] == labels.shape
    assert out.loss.isfinite()
    out.loss.backward()
    for parameter in heads:
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().sum() > 0
    assert sum(p.grad is not None for p in model.parameters()) == len(heads)


@over(1)
def test_every_method(name: str, family: Family, case: Case) -> None:
    """Each decides for a row as for the row alone, and generates with a cache as without."""
    model = built(name)
    samples = [s for s, n in zip(case.samples(family, model), case.images, strict=True) if n]
    batch = family.join(model, samples, "left")
    first = adapter_for(model).first_layer(model)
    asked = {"max_new_tokens": 2, "do_sample": False}
    rows, cols = adapter_for(model).grid(model)
    for config in layered_configs(first, 0.9 * rows * cols):
        refused = None
        if has_tower_needs(config) and not has_tower(model):
            refused = r"patches are not the visual tokens|adds image features"
        elif first and BEFORE_DECODER in config.pruning_layers():
            refused = "this decoder adds image features"
        if refused:
            with pytest.raises(ValueError, match=refused):
                tp.wrap(model, config)
            continue
        tp.wrap(model, config)
        try:
            together = logits(model, batch)
            stats = tp.stats(model)
            assert (stats.final_tokens <= stats.visual_tokens).all()
            cached = model.generate(**copy.copy(batch), **asked)
            if "uncached" not in family.limits:
                bare = model.generate(**copy.copy(batch), **asked, use_cache=False)
                assert torch.equal(cached, bare), config
            for row, sample in enumerate(() if "rows" in family.limits else samples):
                alone = logits(model, sample)[0, -1]
                last = present(batch, row).nonzero()[-1, 0]
                assert_close(together[row, last], alone, f"{config.method}, row {row}")
        finally:
            tp.unwrap(model)


def has_tower(model: Any) -> bool:
    try:
        adapter_for(model).tower(model)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("name", ["llava", "llava_next", "llava_next-mistral", "vipllava"])
def test_the_towers_patches_are_the_tokens(name: str) -> None:
    """What the class token says of a patch is said of the token that the patch became."""
    family, model = FAMILIES[name], built(name)
    assert has_tower(model)

    @settings(max_examples=8, deadline=None)
    @given(case=cases(family))
    def drawn(case: Case) -> None:
        samples = case.samples(family, model)
        batch = family.join(model, samples, case.padding)
        method = Patterned((-1,), 2.0, case.seed)
        method.tower_layer = -1
        features = []
        handle = model.model.multi_modal_projector.register_forward_hook(
            lambda module, given, output: features.append(output.flatten(0, -2))
        )
        with wrapped(model, method):
            logits(model, batch)
        handle.remove()
        context = method.contexts[0]
        assert context.tower is not None
        patches = adapter_for(model).patches(model.model, batch)
        if patches is None:
            patches = torch.arange(len(features[0]))
        tokens = context.hidden_states[context.layout.mask]
        there = patches >= 0
        assert len(patches) == len(tokens)
        assert_close(tokens[there], features[0][patches[there]], "features")
        # A newline is no patch, and has no place in the grid either.
        assert torch.equal(there, context.layout.row[context.layout.mask] >= 0)
        spoken = context.tower.attention[context.layout.mask]
        assert torch.equal(spoken > 0, there)

    drawn()


def test_which_families_have_a_tower() -> None:
    names = {n for n, f in FAMILIES.items() if f.available() and not f.refused}
    found = {name for name in names if has_tower(built(name))}
    assert found == {"llava", "llava_next", "llava_next-mistral", "vipllava"} & names


@pytest.mark.parametrize("name", [skipped(f) for f in FAMILIES.values() if f.refused])
def test_what_cannot_be_pruned_is_refused(name: str) -> None:
    """With the reason, and the model as it was."""
    model = built(name)
    hooks = hooks_of(model)
    with pytest.raises(ValueError, match=FAMILIES[name].refused):
        tp.wrap(model)
    assert hooks_of(model) == hooks
    assert not hasattr(model, "tokenprune")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("MllamaForConditionalGeneration", "reads the image by cross-attention"),
        ("Florence2ForConditionalGeneration", "encoder-decoder"),
        ("Qwen3_5ForConditionalGeneration", "recurrent layers"),
        ("GitForCausalLM", "no image_token_id"),
        ("LlamaForCausalLM", "not take both input_ids and pixel_values"),
    ],
)
def test_designs_without_visual_tokens_to_drop_are_refused(name: str, reason: str) -> None:
    cls = getattr(transformers, name, None)
    if cls is None:
        pytest.skip(f"this transformers has no {name}")
    config = cls.config_class()
    if release() < 5 and name.startswith("Mllama"):
        config.text_config.rope_scaling = {"rope_type": "default"}  # its own default is none
    with torch.device("meta"):
        model = cls(config)
    with pytest.raises(ValueError, match=rf"{name} .* cannot be pruned: .*{reason}"):
        tp.wrap(model)


def test_supported_names_what_was_verified_here() -> None:
    """The list is written by `python -m scripts.verify_families`, under the release it names."""
    written = json.loads((Path(adapters.__file__).parent / "verified.json").read_text())
    if written["transformers"] != transformers.__version__:
        pytest.skip(f"written under transformers {written['transformers']}")
    tried = {f.config().model_type for f in FAMILIES.values() if f.available() and not f.refused}
    assert set(tp.supported()["families"]) == tried
