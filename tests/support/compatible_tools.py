"""Rows of docs/compatibility.md: what trains, saves or changes a model."""

from __future__ import annotations

import copy
import pickle
import tempfile
from typing import Any

import peft
import torch
from PIL import Image
from torch import distributed, nn
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    Trainer,
    TrainingArguments,
    pipeline,
)

import tokenprune as tp
from benchmarks.digits_vqa.dataset import collate, samples
from benchmarks.digits_vqa.models.llava import FOLDER
from tokenprune import serving

from . import hub
from .compatibility import BATCH, check_same_answer, row, wrapped
from .tiny_llava import tiny_llava
from .training import atp_llava, labelled

__all__: list[str] = []


def check_heads_learn(model: Any) -> None:
    """A training step gives every head a gradient, and its loss has the budget's terms."""
    output = model.train()(**labelled())
    assert output.loss is tp.losses(model)["total"]
    output.loss.backward()
    heads = [p for name, p in model.named_parameters() if "tokenprune." in name]
    assert heads
    assert all(p.grad is not None and p.grad.isfinite().all() for p in heads)


def lora(model: Any, **options: Any) -> Any:
    chosen = {"target_modules": ["q_proj"], **options}
    return peft.get_peft_model(model, peft.LoraConfig(r=2, **chosen))


@row("`transformers.Trainer` with `tp.TrainerCallback()`")
def _trainer() -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = atp_llava()
        before = [p.detach().clone() for p in tp.train_only_heads(model)]
        arguments = TrainingArguments(
            folder,
            max_steps=1,
            remove_unused_columns=False,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            save_strategy="no",
        )
        trainer = Trainer(
            model,
            arguments,
            train_dataset=[labelled()],
            data_collator=lambda rows: rows[0],
            callbacks=[tp.TrainerCallback()],
        )
        trainer.train()
        after = tp.train_only_heads(model)
        assert not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@row('PEFT: `get_peft_model(tp.wrap(model), …)`, then `tp.trainable(model, "heads", "lora")`')
def _wrapped_then_lora() -> None:
    model = lora(atp_llava())
    tp.trainable(model, "heads", "lora")
    check_heads_learn(model)


@row("PEFT: `tp.wrap(get_peft_model(model, …))`")
def _lora_then_wrapped() -> None:
    model = tp.wrap(lora(tiny_llava()), atp_llava().tokenprune.config)
    tp.trainable(model, "heads", "lora")
    check_heads_learn(model)


@row('PEFT: `modules_to_save=["tokenprune"]`', refused=True)
def _heads_as_modules_to_save() -> None:
    lora(atp_llava(), modules_to_save=["tokenprune"]).train()(**labelled())


@row("PEFT: `merge_and_unload()`")
def _merged() -> None:
    merged = lora(atp_llava()).merge_and_unload()
    assert tp.is_wrapped(merged)
    with torch.no_grad():
        merged(**BATCH)
    assert tp.stats(merged).final_tokens < tp.stats(merged).visual_tokens


@row("accelerate: `Accelerator().prepare(model)`")
def _accelerate() -> None:
    from accelerate import Accelerator

    check_heads_learn(Accelerator(cpu=True).prepare(atp_llava()))


@row("`tp.wrap` of a model in `DataParallel` or DDP", refused=True)
def _wrap_parallel() -> None:
    tp.wrap(nn.DataParallel(tiny_llava()))


@row("DDP: `DistributedDataParallel(tp.wrap(model))`, in training")
def _ddp() -> None:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        model = atp_llava()
        tp.train_only_heads(model)
        check_heads_learn(nn.parallel.DistributedDataParallel(model))
    finally:
        distributed.destroy_process_group()


@row("gradient checkpointing, in training")
def _checkpointing() -> None:
    model = atp_llava()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    check_heads_learn(model)


@row("gradient checkpointing, `use_reentrant=True`", refused=True)
def _reentrant() -> None:
    model = atp_llava()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    model.train()(**labelled())


@row("`torch.autocast`, in training and at inference")
def _autocast() -> None:
    model = atp_llava()
    with torch.autocast("cpu", torch.bfloat16):
        check_heads_learn(model)
        model.eval()
        with torch.no_grad():
            assert model(**BATCH).logits.isfinite().all()


@row("`model.bfloat16()` after `wrap`: the heads stay in float32")
def _bfloat16() -> None:
    model = atp_llava().bfloat16()
    heads = dict(model.tokenprune.named_parameters())
    assert all(p.dtype == torch.float32 for p in heads.values())
    batch = {**BATCH, "pixel_values": BATCH["pixel_values"].bfloat16()}
    with torch.no_grad():
        assert model(**batch).logits.dtype == torch.bfloat16


@row("`copy.deepcopy(model)`, `pickle`")
def _copies() -> None:
    model = wrapped()
    pickled = pickle.dumps(model)
    with torch.no_grad():
        wanted = model(**BATCH).logits
        for copied in (copy.deepcopy(model), pickle.loads(pickled)):
            assert torch.equal(copied(**BATCH).logits, wanted)
            assert tp.stats(copied).kept.tolist() == tp.stats(model).kept.tolist()


@row("`model.save_pretrained(folder)`; `from_pretrained` (unpruned) and `tp.from_pretrained` of it")
def _saved() -> None:
    model = atp_llava()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        model.save_pretrained(folder)
        assert torch.equal(tp.from_pretrained(folder)(**BATCH).logits, model(**BATCH).logits)
        stock = AutoModelForImageTextToText.from_pretrained(folder)
        assert not tp.is_wrapped(stock)
        with tp.paused(model):
            assert torch.equal(stock(**BATCH).logits, model(**BATCH).logits)


@row("`model.push_to_hub(id)`; `from_pretrained` (unpruned) and `tp.from_pretrained` of it")
def _pushed() -> None:
    with tempfile.TemporaryDirectory() as folder, hub.taken_for_the_hub(folder), torch.no_grad():
        model = atp_llava()
        model.push_to_hub("somebody/model")
        assert torch.equal(
            tp.from_pretrained("somebody/model")(**BATCH).logits, model(**BATCH).logits
        )
        assert not tp.is_wrapped(AutoModelForImageTextToText.from_pretrained("somebody/model"))


@row("bitsandbytes, 8 bits")
def _quantised() -> None:
    with tempfile.TemporaryDirectory() as folder:
        tiny_llava(layers=4, width=128).save_pretrained(folder)
        model = AutoModelForImageTextToText.from_pretrained(
            folder,
            quantization_config=BitsAndBytesConfig(load_in_8bit=True),
            device_map={"": "cpu"},
            dtype=torch.float32,
        )
    check_same_answer(tp.wrap(model, tp.SparseVLMConfig(layers=(0, 2))))


@row('`pipeline("image-text-to-text", model=model, processor=processor)`, a chat with a picture')
def _pipeline() -> None:
    (drawn,) = samples("held_out", 1, 3)
    model = AutoModelForImageTextToText.from_pretrained(FOLDER, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(FOLDER)
    tp.wrap(model, tp.FastVConfig(layer=1, keep=0.25))
    pipe = pipeline("image-text-to-text", model=model, processor=processor, device="cpu")
    picture = {"type": "image", "image": Image.fromarray(drawn.picture.pixels)}
    content = [picture, {"type": "text", "text": drawn.question.text}]
    chat = [{"role": "user", "content": content}]
    (answer,) = pipe(chat, max_new_tokens=1, return_full_text=False)
    kept = tp.stats(model).kept.tolist()
    ids = model.generate(**collate(processor, [drawn], False), max_new_tokens=1, do_sample=False)
    assert answer["generated_text"].strip() == processor.decode(ids[0, -1])
    assert kept == tp.stats(model).kept.tolist()
    assert kept[-1] < kept[0], "nothing was pruned"


@row("`tokenprune serve FOLDER` loads what `transformers serve` loads, pruned")
def _serve() -> None:
    with tempfile.TemporaryDirectory() as folder:
        wrapped().save_pretrained(folder)
        with serving.loading_pruned():
            assert tp.is_wrapped(AutoModelForImageTextToText.from_pretrained(folder))
        assert not tp.is_wrapped(AutoModelForImageTextToText.from_pretrained(folder))
