"""Compare methods on questions: what ``tokenprune evaluate`` measures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

import torch

from ..api import track, unwrap, wrap
from ..data import PromptCollator
from ..methods import DownsampleConfig, RandomConfig
from .app import CommandError
from .loading import Batches, progress
from .method import MethodOption, wrap_by
from .options import Budget
from .scores import exact_match, token_f1

__all__ = ["Comparison", "answers_of"]


def answers_of(rows: Any) -> list[str]:
    """Return the first answer of each conversation; every picture is read once.

    Raises
    ------
    CommandError
        If there is none in one of them.
    """
    found = []
    for n in range(len(rows)):
        said = [turn for turn in rows[n]["turns"] if turn["role"] == "assistant"]
        if not said:
            raise CommandError(
                f"Question {n} of the data, counted from 0, has no answer to compare with."
            )
        found.append(" ".join(part["text"] for part in said[0]["content"] if "text" in part))
    return found


class Comparison:
    """One model's answers to the same questions under several methods.

    Parameters
    ----------
    model : PreTrainedModel
        Not wrapped; it is again at the end of each measurement.
    processor : ProcessorMixin
        The model's own.
    rows : sequence or Dataset of dict
        Questions, as `tokenprune.data` reads them.
    expected : sequence of str
        Their answers.
    batch : int
        Questions at a time.
    new_tokens : int
        Longest answer.
    methods : sequence of MethodOption
        Those that will be measured.

    Raises
    ------
    CommandError, ValueError
        If a method does not fit the model; see `wrap_by`.

    Attributes
    ----------
    table : list of dict
        A row for each measurement; the first is the unpruned model's.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        rows: Any,
        expected: Sequence[str],
        batch: int,
        new_tokens: int,
        methods: Sequence[MethodOption],
    ) -> None:
        for method in methods:  # what does not fit the model is refused before anything is run
            wrap_by(model, method, tokens=1)
            unwrap(model)
        self.model, self.processor, self.new_tokens = model, processor, new_tokens
        self.expected = expected
        self.batches = Batches(rows, PromptCollator(processor), batch, model.device)
        # Keeps every token, so that the answers are the unwrapped model's, and they are counted.
        wrap(model, RandomConfig(keep=1.0))
        try:
            self.unpruned, counts = self._answers("unpruned")
        finally:
            unwrap(model)
        self.tokens: float = counts["visual_tokens"]
        self.table = [self._row("unpruned", None, None, self.unpruned, counts)]
        self._beside: set[Any] = set()

    def measure(self, method: MethodOption, budget: Budget | None, beside: bool) -> list[str]:
        """Measure a method, and beside it random and down-sampled tokens, as many.

        Parameters
        ----------
        method : MethodOption
        budget : Budget, optional
            None: as it is saved or configured.
        beside : bool
            Whether to measure the two.

        Returns
        -------
        list of str
            What could not be measured, and why.
        """
        wrap_by(self.model, method, self.tokens, budget.of(self.tokens) if budget else None)
        try:
            counts = self._measured(str(method), budget, None)
        finally:
            unwrap(self.model)
        return self._measure_beside(method, budget, counts) if beside else []

    def _measure_beside(
        self, method: MethodOption, budget: Budget | None, counts: dict[str, Any]
    ) -> list[str]:
        layers = tuple(counts["pruning_layers"])
        kept = tuple(counts["per_layer"][layer + 1]["mean"] for layer in layers)
        configs: dict[str, Any] = {
            "random": RandomConfig(layers=layers, mean_tokens=kept),
            "down-sampled": DownsampleConfig(keep=max(1, round(counts["mean_tokens"]))),
        }
        left_out = []
        for name, config in configs.items():
            if config in self._beside:
                continue  # another method kept as many
            self._beside.add(config)
            try:
                wrap(self.model, config)
            except ValueError as error:  # some decoders do not let tokens go before the first layer
                left_out.append(f"{name}: {error}")
                continue
            try:
                self._measured(name, budget, str(method))
            finally:
                unwrap(self.model)
        return left_out

    def _measured(self, name: str, budget: Budget | None, beside: str | None) -> dict[str, Any]:
        answers, counts = self._answers(name)
        self.table.append(self._row(name, budget, beside, answers, counts))
        return counts

    def _answers(self, what: str) -> tuple[list[str], dict[str, Any]]:
        """Answer the questions; the model is wrapped."""
        texts: list[str] = []
        with track(self.model) as run:
            for batch in progress(self.batches, what):
                texts += self._generated(batch)
        return texts, run.summary()

    @torch.no_grad()
    def _generated(self, batch: dict[str, torch.Tensor]) -> Iterable[str]:
        ids = self.model.generate(**batch, max_new_tokens=self.new_tokens, do_sample=False)
        new = ids[:, batch["input_ids"].shape[1] :]
        return [text.strip() for text in self.processor.batch_decode(new, skip_special_tokens=True)]

    def _row(
        self,
        name: str,
        budget: Budget | None,
        beside: str | None,
        answers: list[str],
        counts: dict[str, Any],
    ) -> dict[str, Any]:
        pairs = list(zip(answers, self.expected, strict=True))
        same = zip(answers, self.unpruned, strict=True)
        return {
            "method": name,
            "beside": beside,
            "budget": None if budget is None else str(budget),
            "exact_match": fmean(exact_match(*pair) for pair in pairs),
            "token_f1": fmean(token_f1(*pair) for pair in pairs),
            "agreement": fmean(exact_match(*pair) for pair in same),
            "mean_tokens": counts["mean_tokens"],
            "final_tokens": counts["final_tokens"],
            "kv_bytes": counts["kv_bytes"],
            "prefill_flops": counts["prefill_flops"],
        }
