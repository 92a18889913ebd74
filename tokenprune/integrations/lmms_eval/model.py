"""The model that lmms-eval evaluates: any supported checkpoint, pruned."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from lmms_eval.protocol import ChatMessages
from tqdm import tqdm

from ...api import is_wrapped, track
from ...checkpoint import load
from ...data import text_of

__all__ = ["TokenPrune"]

# The arguments of `generate` among those that tasks give; image_aspect_ratio and the like belong to
# other models.
_GENERATION = ("max_new_tokens", "do_sample", "temperature", "top_p", "top_k", "num_beams")


class TokenPrune(lmms):
    """A checkpoint as `tokenprune.checkpoint.load` makes it, for tasks that generate.

    Parameters
    ----------
    pretrained : str
    batch_size : int
        Prompts in one call of ``generate``. Compare results of one size only: some models lose
        accuracy with the batch, unpruned too (lmms-eval#648).
    device : str, optional
        Ignored when several processes run, each of which has its own.
    **given
        As `load`: heads, method and its options, tokens, dtype, attn_implementation, device_map.
    """

    is_simple = False

    def __init__(
        self, pretrained: str, batch_size: int = 1, device: str | None = None, **given: Any
    ) -> None:
        super().__init__()
        self.accelerator = Accelerator()
        self._rank = self.accelerator.process_index
        self._world_size = self.accelerator.num_processes
        given = {name: value for name, value in given.items() if value is not None}
        self.model, self.processor = load(pretrained, **given)
        if "device_map" not in given:
            alone = device is not None and self._world_size == 1
            self.model.to(device if alone else self.accelerator.device)
        self.batch_size_per_gpu = int(batch_size)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Return the answers, in the requests' order."""
        answers = [""] * len(requests)
        self.new_tokens, started = 0, time.perf_counter()
        groups: dict[str, list[int]] = defaultdict(list)
        for n, request in enumerate(requests):
            groups[json.dumps(request.args[2], sort_keys=True, default=str)].append(n)
        bar = tqdm(total=len(requests), disable=self._rank != 0, desc="tokenprune")
        with track(self.model) if is_wrapped(self.model) else nullcontext() as tracked:
            for group in groups.values():
                for start in range(0, len(group), self.batch_size_per_gpu):
                    chunk = group[start : start + self.batch_size_per_gpu]
                    found = self._answer([requests[n] for n in chunk])
                    for n, text in zip(chunk, found, strict=True):
                        answers[n] = text
                    bar.update(len(chunk))
        bar.close()
        seconds = time.perf_counter() - started
        # Into lmms-eval's own results, beside the accuracy.
        log_metrics(
            total_elapsed_time=seconds,
            total_gen_tokens=self.new_tokens,
            avg_speed=self.new_tokens / seconds,
            additional_metrics={"rank": self._rank, **(tracked.summary() if tracked else {})},
        )
        return answers

    @torch.inference_mode()
    def _answer(self, requests: list[Instance]) -> list[str]:
        """Answer one batch, whose requests give ``generate`` the same arguments."""
        texts, images = [], []
        for request in requests:
            _, doc_to_messages, _, doc_id, task, split = request.args
            messages = ChatMessages(messages=doc_to_messages(self.task_dict[task][split][doc_id]))
            pictures, videos, sounds = messages.extract_media()
            if videos or sounds:
                raise ValueError(
                    f"{task}: it has videos or sounds, and this plugin reads pictures."
                )
            images += pictures
            texts.append(text_of(self.processor, messages.to_hf_messages(), for_answer=True))
        inputs = self.processor(
            text=texts, images=images or None, padding=True, return_tensors="pt"
        ).to(self.model.device, self.model.dtype)
        given = dict(requests[0].args[2])
        stops = given.pop("until", [])
        kept = {name: given[name] for name in _GENERATION if given.get(name) is not None}
        kept.setdefault("max_new_tokens", 1024)
        kept["do_sample"] = bool(kept.get("do_sample", kept.get("temperature", 0) > 0))
        if not kept["do_sample"]:
            kept |= {"temperature": None, "top_p": None, "top_k": None}
        tokens = self.model.generate(**inputs, **kept)[:, inputs["input_ids"].shape[1] :]
        self.new_tokens += int((tokens != self.processor.tokenizer.pad_token_id).sum())
        found = self.processor.batch_decode(tokens, skip_special_tokens=True)
        for stop in [stops] if isinstance(stops, str) else stops:
            found = [text.split(stop)[0] for text in found]
        return [text.strip() for text in found]

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Raise NotImplementedError: none of the paper's benchmarks has several rounds."""
        raise NotImplementedError("The tokenprune plugin answers one round: use generate_until.")

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Raise NotImplementedError: the paper's benchmarks generate."""
        raise NotImplementedError(
            "The tokenprune plugin generates: choose the tasks' generate_until form."
        )
