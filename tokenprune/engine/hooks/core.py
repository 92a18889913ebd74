"""Around the multimodal core: where the visual tokens of a call are, and what its pass did."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...layout import VisualLayout
from ...releases import verified_releases
from .. import caches, calls
from ..arguments import bind, cache_in
from ..attention import observe_changed
from ..passes import CoreCall
from ..passes.stage import Stage, first_stage
from .base import Hooks

__all__ = ["CoreHooks"]


class CoreHooks(Hooks):
    """The hooks of the module that sees ``input_ids`` and the image inputs."""

    @torch.compiler.disable
    def before(self, core: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Locate the visual tokens, and note what the pass to come must know of the call."""
        engine = self.engine
        inputs = bind(engine.anatomy.core_signature, args, kwargs)
        inputs = {name: value for name, value in inputs.items() if value is not None}
        call = self._call()
        mask = inputs.get("attention_mask")
        first = patches = None
        candidates = 0
        has_images = engine.adapter.has_images(inputs)
        if has_images:
            # If this call fails, or is paused, what an earlier one did must not pass for its own.
            engine.latest.record = None
        calls.check_images_arrive(call, has_images)
        prunes, cache = has_images and not calls.is_paused(engine), cache_in(inputs.values())
        observe_changed(engine, required=prunes or caches.is_pruned(cache))
        anatomy = engine.anatomy
        if prunes:
            once, copies = self._before_repetition(inputs)
            layout = self._locate(core, once).repeat_rows(copies)
            past = 0 if cache is None else int(cache.get_seq_length())
            length = layout.mask.shape[1]
            prompt_length = calls.prompt_length(engine, length, past)
            candidates = 0 if prompt_length is None else length - prompt_length
            first = self._first_stage(core, inputs, layout, call.labels, prompt_length)
            if anatomy.tower_layer is not None:
                patches = engine.adapter.patches(core, once)
        call.core = CoreCall(
            first=first,
            soft=engine.training and torch.is_grad_enabled() and engine.method.trainable,
            causal=anatomy.causal and (mask is None or getattr(mask, "ndim", 0) == 2),
            patches=patches,
            cache=cache,
            candidates=candidates,
        )

    def _call(self) -> calls.Call:
        """Return the call around the core, which is a new one if the core is called on its own."""
        engine = self.engine
        call = calls.newest(engine)
        if call is not None and call.core_alone:  # an interrupt left it
            calls.pop(engine)
            call = calls.newest(engine)
        if call is None or call.core is not None:
            call = calls.Call(engine, engine.anatomy.tower_layer, core_alone=True)
            calls.push(call)
        return call

    def _locate(self, core: nn.Module, inputs: dict[str, Any]) -> VisualLayout:
        try:
            return self.engine.adapter.locate(core, inputs)
        except KeyError as error:
            raise ValueError(
                f"{type(core).__name__} was called with images and without {error}, which says "
                "how large they are: give it to the model or to generate, as its processor does. "
                f"{verified_releases()}."
            ) from error

    def _before_repetition(self, inputs: dict[str, Any]) -> tuple[dict[str, Any], int]:
        """Return the core's inputs with the images' sizes, and how often each row is repeated.

        Beams and several answers repeat rows, but the sizes that ``generate`` was given are for the
        rows before that: of the inputs, each row stands once.
        """
        engine = self.engine
        given = calls.generate_arguments(engine)
        sizes = {n: given[n] for n in engine.adapter.sizes if given.get(n) is not None}
        if not sizes:
            return inputs, 1
        names = ("input_ids", "inputs_embeds", "attention_mask")
        rows = calls.given_rows(given)
        tokens = {n: inputs[n] for n in names if inputs.get(n) is not None}
        copies = len(next(iter(tokens.values()))) // rows
        return {**inputs, **{n: value[::copies] for n, value in tokens.items()}, **sizes}, copies

    def _first_stage(
        self,
        core: nn.Module,
        inputs: dict[str, Any],
        layout: VisualLayout,
        labels: Tensor | None,
        prompt_length: int | None,
    ) -> Stage:
        engine, special = self.engine, None
        if engine.method.spared_ids is not None:
            spared = sorted({*engine.anatomy.special_ids, *engine.method.spared_ids})
            special = engine.adapter.any_of(core, inputs, spared)
        return first_stage(layout, inputs.get("attention_mask"), labels, prompt_length, special)

    @torch.compiler.disable
    def after(self, core: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """End the pass, and publish its record."""
        engine = self.engine
        call = calls.newest(engine)
        if call is None:
            return None
        if call.core_alone:
            calls.pop(engine)
        # What runs from now on, runs again for a backward pass.
        ended, call.running = call.running, None
        call.finished = ended
        if ended is None or output is None:
            return None
        ended.check_output(output)
        if call.core is not None and call.core.candidates:
            caches.allow_cropping(call.core.cache, call.core.candidates)
        record = ended.record()
        if record is not None:
            streamer = calls.generate_arguments(engine).get("streamer")
            engine.publish(record, streamer)
        hidden_states = getattr(output, "hidden_states", None)
        if hidden_states is not None:
            output["hidden_states"] = ended.full_length(hidden_states)
        return output
