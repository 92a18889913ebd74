"""What is tried for docs/compatibility.md: a row for each tool, run by a test and by a command.

Rows of training, saving and changing a model are in ``compatible_tools.py``.
``python -m scripts.write_compatibility`` runs every row and writes the page.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, LogitsProcessorList, TextIteratorStreamer

import tokenprune as tp

from .tiny_llava import IMAGE, llama_config, make_batch, tiny_llava
from .tolerance import assert_close

__all__ = ["PAGE", "ROWS", "Row", "page"]

PAGE = "docs/compatibility.md"
_HEAD = """# Compatibility

What works with a wrapped model, and what is refused with which message. Written by
`make compatibility` from `tests/support/compatibility.py` and `compatible_tools.py`: do not edit. A
test tries every row, in one process on a CPU, on a tiny LLaVA with random weights (the pipeline: on
the trained one of `benchmarks/digits_vqa`).

| tool | wrapped by `tp.wrap` |
|---|---|
"""
_TAIL = """
These work too, and have tests of their own:

- TRL's `SFTTrainer` with `tp.TrainerCallback()`: the budget's terms in its loss, logs, resuming
  (`tests/test_trl.py`);
- a Trainer's run that was killed, resumed to the bit; checkpoints of the heads alone
  (`tests/test_resumed_trainer.py`);
- PEFT's adapters saved with the heads and loaded again, in either order
  (`tests/test_peft_saved.py`);
- two processes (gloo): DDP and FSDP2 train the heads of one, calibrate as one, save and load
  (`tests/test_distributed.py`);
- `tokenprune serve FOLDER` over HTTP (`tests/test_serving.py`);
- `torch.compile(model)` (`tests/test_compiled.py`);
- lmms-eval's entry point, from an installed wheel (`tests/test_packaging.py`).

Not tried: FSDP's first version and `DataParallel` on several devices, which need accelerators;
DeepSpeed; GPTQ and AWQ; several machines.
"""


@dataclass(frozen=True)
class Row:
    """A line of the page.

    Attributes
    ----------
    tool : str
    run : callable
        Tries it, and asserts that the results are right; raises what the user gets if it is
        refused.
    refused : bool
        Whether it has to be refused.
    """

    tool: str
    run: Callable[[], None]
    refused: bool

    def outcome(self) -> str:
        """What stands in the page: "works", or the message."""
        if not self.refused:
            self.run()
            return "works"
        try:
            self.run()
        except (ValueError, RuntimeError) as error:
            return f"refused: {error}"
        raise AssertionError(f"{self.tool}: expected to be refused")

    def line(self) -> str:
        outcome = self.outcome().replace("|", "\\|").replace("<", "&lt;")
        return f"| {self.tool} | {outcome} |"


ROWS: list[Row] = []


def row(tool: str, refused: bool = False) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Add a function as a row."""

    def add(run: Callable[[], None]) -> Callable[[], None]:
        ROWS.append(Row(tool, run, refused))
        return run

    return add


def page() -> str:
    """The page, every row tried."""
    return _HEAD + "\n".join(each.line() for each in ROWS) + "\n" + _TAIL


BATCH = make_batch([(4, IMAGE, 6)])
LENGTH = BATCH["input_ids"].shape[1]
GREEDY: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}


def wrapped() -> Any:
    """A model whose pruning reads the prompt's text: SparseVLM."""
    torch.manual_seed(0)
    return tp.wrap(tiny_llava(layers=4), tp.SparseVLMConfig(layers=(0, 2)))


def check_same_answer(model: Any, **options: Any) -> None:
    """Those options change neither the answer nor what is kept of the image."""
    wanted = model.generate(**BATCH, **GREEDY)
    kept = tp.stats(model).kept.tolist()
    assert kept[-1][0] < kept[0][0], "nothing was pruned"
    found = model.generate(**BATCH, **GREEDY, **options)
    assert torch.equal(found, wanted)
    assert tp.stats(model).kept.tolist() == kept


@row('`model.set_attn_implementation("eager")`, `"sdpa"`, `"flex_attention"` after `wrap`')
def _set_attention() -> None:
    model = wrapped()
    with torch.no_grad():
        wanted = model(**BATCH).logits
        for name in ("eager", "flex_attention", "sdpa"):
            model.set_attn_implementation(name)
            assert_close(model(**BATCH).logits, wanted)
            assert model.tokenprune.anatomy.backend.name == name
    tp.unwrap(model)
    assert model.config.text_config._attn_implementation == "sdpa"


@row("an attention implementation that is not known", refused=True)
def _unknown_attention() -> None:
    model = wrapped()
    model.config.text_config._attn_implementation = "flash_attention_3"
    model(**BATCH)


@row("`generate(prompt_lookup_num_tokens=…)`")
def _prompt_lookup() -> None:
    ids = BATCH["input_ids"].clone()
    ids[:, -3:] = ids[:, :3]  # something to look up
    model = wrapped()
    batch = {**BATCH, "input_ids": ids}
    wanted = model.generate(**batch, **GREEDY)
    kept = tp.stats(model).kept.tolist()
    assert torch.equal(model.generate(**batch, **GREEDY, prompt_lookup_num_tokens=3), wanted)
    assert tp.stats(model).kept.tolist() == kept


@row("`generate(assistant_model=…)`, an unwrapped assistant")
def _assisted() -> None:
    torch.manual_seed(0)
    check_same_answer(wrapped(), assistant_model=LlamaForCausalLM(llama_config(1)).eval())
    check_same_answer(wrapped(), assistant_model=tiny_llava(layers=4))


@row("`generate(assistant_model=…)`, the assistant wrapped too, or alone")
def _wrapped_assistant() -> None:
    assistant = tp.wrap(tiny_llava(layers=4), tp.FastVConfig(layer=1, keep=9))
    check_same_answer(wrapped(), assistant_model=assistant)
    plain = tiny_llava(layers=4)
    wanted = plain.generate(**BATCH, **GREEDY)
    assert torch.equal(plain.generate(**BATCH, **GREEDY, assistant_model=assistant), wanted)


@row('`generate(cache_implementation="static")`, with images', refused=True)
def _static_cache() -> None:
    model = wrapped()
    model.model.get_image_features = None  # nothing is computed
    model.generate(**BATCH, **GREEDY, cache_implementation="static")


@row("`generate_batch` (continuous batching) of prompts with images", refused=True)
def _continuous_batching() -> None:
    wrapped().generate_batch([BATCH["input_ids"][0].tolist()], max_new_tokens=2)


@row('`generate(cache_implementation="paged")`, with images', refused=True)
def _paged_cache() -> None:
    wrapped().generate(**BATCH, **GREEDY, cache_implementation="paged")


@row("`torch.export.export(model, …)`", refused=True)
def _export() -> None:
    model = wrapped()
    torch.export.export(model, (), dict(BATCH), strict=False)


@row("`generate` with logits processors")
def _logits_processors() -> None:
    seen: list[int] = []

    def processor(ids: Tensor, scores: Tensor) -> Tensor:
        seen.append(ids.shape[1])
        return scores

    check_same_answer(wrapped(), logits_processor=LogitsProcessorList([processor]))
    assert seen == [LENGTH + n for n in range(len(seen))]


@row("`generate(prefill_chunk_size=…)`, with images", refused=True)
def _chunks() -> None:
    wrapped().generate(**BATCH, **GREEDY, prefill_chunk_size=16)


@row('`generate(cache_implementation="quantized")`, with images', refused=True)
def _quantised_cache() -> None:
    wrapped().generate(**BATCH, **GREEDY, cache_implementation="quantized")


@row("streaming: `generate(streamer=…)` in a thread, `tp.stats(model, streamer)`")
def _streaming() -> None:
    model, streamer = wrapped(), TextIteratorStreamer(_Words(), timeout=60)  # type: ignore[arg-type]
    wanted = model.generate(**BATCH, **GREEDY)
    kept = tp.stats(model).kept.tolist()
    options = {**BATCH, **GREEDY, "streamer": streamer}
    thread = threading.Thread(target=model.generate, kwargs=options)
    thread.start()
    words = "".join(streamer).split()
    thread.join(timeout=60)
    assert words == [str(token) for token in wanted[0].tolist()]
    assert tp.stats(model, streamer).kept.tolist() == kept


class _Words:
    """As much of a tokenizer as a streamer needs."""

    def decode(self, ids: Any, **_: Any) -> str:
        return "".join(f"{int(n)} " for n in ids)


@row("streaming: `tp.stats(model)` in the thread that reads the words", refused=True)
def _stale_statistics() -> None:
    model = wrapped()
    model(**BATCH)
    streamer = TextIteratorStreamer(_Words(), timeout=60)  # type: ignore[arg-type]
    options = {**BATCH, **GREEDY, "streamer": streamer}
    thread = threading.Thread(target=model.generate, kwargs=options)
    thread.start()
    thread.join(timeout=60)
    tp.stats(model)


@row('`wrap(model, "fastv")`: the name of a method')
def _by_name() -> None:
    model: Any = tp.wrap(tiny_llava(layers=4), "fastv")
    assert model.tokenprune.config == tp.FastVConfig()


@row("`wrap(model, name)` with a name that is not known", refused=True)
def _unknown_name() -> None:
    tp.wrap(tiny_llava(layers=4), "fastvv")
