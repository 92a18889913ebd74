"""The hooks: what happens around the model, its core and its decoder layers.

Hooks are not compiled when a user compiles the model: torch compiles what lies between them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..config import MethodConfig
from ..layout import VisualLayout
from ..methods.base import Method
from ..releases import verified_releases
from . import frames, recompute
from .arguments import bind, bind_layer, cache_in, check_placed, hidden_of, with_hidden
from .attention import backend_of, function_of, has_windows, register, wrapped_name
from .frames import Frame
from .interrupts import guard, unguard
from .latest import Latest
from .record import Record
from .run import Run
from .signatures import check_signatures
from .stage import first_stage
from .tower import leave_tower, look_at_tower

if TYPE_CHECKING:
    from tokenprune.adapters.base import Adapter

__all__ = ["ATTRIBUTE", "Engine", "engine_of"]

# The submodule's name on a wrapped model, so the prefix of its parameters in a state dict.
ATTRIBUTE = "tokenprune"


def engine_of(model: object) -> Engine:
    """The engine of a wrapped model.

    Raises
    ------
    ValueError
        If it is no model, or not wrapped.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"model is a {type(model).__name__}: expected a model that tokenprune.wrap returned."
        )
    engine = getattr(model, ATTRIBUTE, None)
    if not isinstance(engine, Engine):
        raise ValueError(
            f"This {type(model).__name__} is not wrapped: call tokenprune.wrap(model) first."
        )
    return engine


class Engine(nn.Module):
    """A method at work in a model. A submodule of the model, so its parameters move with it.

    Parameters
    ----------
    method : Method
    adapter : Adapter
    config : MethodConfig, optional
        What the method was built from, defaults filled in. None: it was given as it is.
    """

    def __init__(
        self, method: Method, adapter: Adapter, config: MethodConfig | None = None
    ) -> None:
        super().__init__()
        self.method = method
        self.adapter = adapter
        self.config = config
        self.num_layers = 0
        self.attention = ""
        self.latest = Latest()
        self.trackers: list[Callable[[Record], None]] = []
        self.required_grad: dict[str, bool] | None = None
        # In a tuple, where it does not become a part of this module.
        self.tower_layer: tuple[nn.Module, ...] = ()
        self._handles: list[RemovableHandle] = []
        self._instance_generate: Callable[..., Any] | None = None
        self._signatures: dict[str, inspect.Signature] = {}

    # -- on and off ----------------------------------------------------------------------------

    def attach(self, model: Any) -> None:
        """Put the hooks on, and the attention backend into the text configuration."""
        core = self.adapter.core(model)
        layers = self.adapter.decoder_layers(model)
        text_config = self.adapter.text_config(model)
        self.num_layers = len(layers)
        backend = backend_of(text_config._attn_implementation or "eager")
        self.attention = register(backend)
        function = function_of(backend, layers[0])
        check_signatures(model, self.adapter, function, bool(self.method.needs))
        self._special_ids = self.adapter.special_ids(model)
        self._causal = self.adapter.causal and not has_windows(text_config)
        if self.attention == wrapped_name("flash_attention_2") and not self._causal:
            raise ValueError(
                "flash_attention_2 counts windows and image blocks by the tokens that are left, "
                'not by their positions: call model.set_attn_implementation("sdpa") first.'
            )
        self._signatures = {
            "top": inspect.signature(model.forward),
            "core": inspect.signature(core.forward),
            "layer": inspect.signature(layers[0].forward),
        }
        if self.method.tower_layer is not None:
            config, modules = self.adapter.tower(model)
            self.tower_layer = (modules[max(self.method.tower_layer, -len(modules))],)
            look_at_tower(config)
        text_config._attn_implementation = self.attention
        model.add_module(ATTRIBUTE, self)

        def before(module: nn.Module, hook: Callable[..., Any]) -> None:
            self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

        def after(module: nn.Module, hook: Callable[..., Any], always: bool = False) -> None:
            # Ours first: whoever collects hidden states sees what the next layer gets.
            self._handles.append(
                module.register_forward_hook(
                    hook, prepend=True, with_kwargs=True, always_call=always
                )
            )

        before(model, self._before_model)
        after(model, self._after_model, always=True)
        before(core, self._before_core)
        after(core, self._after_core, always=True)
        for n, layer in enumerate(layers):
            before(layer, partial(self._before_layer, n))
        for module, n in enumerate(self.method.layers):
            if n < 0:
                after(layers[0], self._after_first_layer)
            else:
                after(layers[n], partial(self._after_layer, module, n))
        after(layers[-1], self._after_last_layer)
        guard(model, self, alone=False)
        guard(core, self, alone=True)
        if hasattr(model, "generate"):
            # On the instance, where it covers the class's own until it is deleted.
            self._instance_generate = vars(model).get("generate")
            model.generate = partial(self._generate, model.generate)

    def detach(self, model: nn.Module) -> None:
        """Take everything back that `attach` did.

        Raises
        ------
        RuntimeError
            If a call of the model runs in this thread. Nothing is then changed.
        """
        if frames.is_running(self):
            raise RuntimeError(
                f"tokenprune.unwrap was called inside a forward or generate of this "
                f"{type(model).__name__}, whose tokens may be dropped already: call it when that "
                "has returned."
            )
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        unguard(self.adapter.core(model))
        unguard(model)
        if self.tower_layer:
            leave_tower(self.adapter.tower(model)[0])
        vars(model).pop("generate", None)
        if self._instance_generate is not None:
            vars(model)["generate"] = self._instance_generate
        self.adapter.text_config(model)._attn_implementation = backend_of(self.attention)
        delattr(model, ATTRIBUTE)
        if self.required_grad is not None:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(self.required_grad.get(name, parameter.requires_grad))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """No pruning inside, in this thread."""
        ours = frames.pause(self)
        try:
            yield
        finally:
            frames.resume(ours)

    def _generate(self, generate: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # Not kept with the others: it cannot be pickled.
        arguments = bind(inspect.signature(generate), args, kwargs)
        images = not frames.is_paused(self) and self.adapter.has_images(arguments)
        if images:
            _check_not_chunked(generate, arguments)
        with frames.generating(self, arguments, images):
            return generate(*args, **kwargs)

    # -- around the model ----------------------------------------------------------------------

    def _arguments(self, which: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict:
        return bind(self._signatures[which], args, kwargs)

    @torch.compiler.disable
    def _before_model(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        frames.pop(self)  # an interrupt may have left one
        given = self._arguments("top", args, kwargs)
        images = self.adapter.has_images(given)
        frames.push(Frame(self, labels=given.get("labels"), images=images))

    @torch.compiler.disable
    def _after_model(self, _: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        frame = frames.top(self)
        frames.pop(self)
        run = None if frame is None else frame.run
        if output is None or frame is None or run is None or not run.soft:
            return None
        if frames.is_paused(self):
            return None
        terms = self.method.losses(run.trace()) if run.counts else {}
        extra = sum((value * weight for value, weight in terms.values()), torch.zeros(()))
        if not terms:
            # A batch without images teaches the heads nothing, but its loss must have a gradient.
            extra = sum((0 * p.sum() for p in self.parameters()), extra)
        losses = {name: value for name, (value, _) in terms.items()}
        has_loss = frame.labels is not None
        if has_loss:
            lm = output[0]
            total = lm + extra.to(lm.device, lm.dtype)
            losses = {"lm": lm, **losses, "total": total}
            if isinstance(output, tuple):
                output = (total, *output[1:])
            else:
                output["loss"] = total
        self.latest.losses = losses
        return output if has_loss else None

    @torch.compiler.disable
    def _before_core(self, core: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = self._arguments("core", args, kwargs)
        inputs = {name: value for name, value in inputs.items() if value is not None}
        frame = frames.top(self)
        if frame is not None and frame.alone:  # an interrupt left it
            frames.pop(self)
            frame = frames.top(self)
        if frame is None or frame.run is not None:  # the core is called on its own
            frame = Frame(self, alone=True)
            frames.push(frame)
        mask = inputs.get("attention_mask")
        first = patches = None
        has_images = self.adapter.has_images(inputs)
        frames.check_images_arrive(frame, has_images)
        if not frames.is_paused(self) and has_images:
            once, copies = self._once(inputs)
            layout = self._locate(core, once).repeat_rows(copies)
            prompt_length = frames.prompt_length(self, layout.mask.shape[1])
            special = self._special(core, inputs)
            first = first_stage(layout, mask, frame.labels, prompt_length, special)
            patches = self.adapter.patches(core, once) if self.tower_layer else None
        frame.run = Run(
            method=self.method,
            num_layers=self.num_layers,
            attention=self.attention,
            first=first,
            soft=self.training and torch.is_grad_enabled() and self.method.trainable,
            plain=self._causal and (mask is None or mask.ndim == 2),
            patches=patches,
            given_cache=cache_in(inputs.values()),
        )

    def _locate(self, core: nn.Module, inputs: dict[str, Any]) -> VisualLayout:
        try:
            return self.adapter.locate(core, inputs)
        except KeyError as error:
            raise ValueError(
                f"{type(core).__name__} was called with images and without {error}, which says "
                "how large they are: give it to the model or to generate, as its processor does. "
                f"{verified_releases()}."
            ) from error

    def _once(self, inputs: dict[str, Any]) -> tuple[dict[str, Any], int]:
        """The core's inputs with the sizes that ``generate`` was given, if it runs.

        Beams and several answers repeat rows, but the sizes were given for the rows before that:
        each row once, and how often it stands there.
        """
        given = frames.generate_arguments(self)
        sizes = {n: given[n] for n in self.adapter.sizes if given.get(n) is not None}
        if not sizes:
            return inputs, 1
        names = ("input_ids", "inputs_embeds", "attention_mask")
        rows = frames.given_rows(given)
        tokens = {n: inputs[n] for n in names if inputs.get(n) is not None}
        copies = len(next(iter(tokens.values()))) // rows
        return {**inputs, **{n: value[::copies] for n, value in tokens.items()}, **sizes}, copies

    def _special(self, core: nn.Module, inputs: dict[str, Any]) -> Tensor | None:
        """Text that always stays: bool, (batch, length). None: all of it."""
        if self.method.spared_ids is None:
            return None
        spared = sorted({*self._special_ids, *self.method.spared_ids})
        return self.adapter.any_of(core, inputs, spared)

    @torch.compiler.disable
    def _after_core(self, core: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        frame = frames.top(self)
        run = None if frame is None else frame.run
        if frame is not None and frame.alone:
            frames.pop(self)
        if frame is None or run is None:
            return None
        run.close()
        run.check_cache_was_seen(output)
        if output is None:
            frame.run = None
            return None
        record = run.record()
        if record is not None:
            self.latest.record = record
            for tracker in list(self.trackers):
                tracker(record)
        hidden_states = getattr(output, "hidden_states", None)
        if hidden_states is not None and run.drops:
            output["hidden_states"] = run.full_length(hidden_states)
        return output

    # -- around the layers ---------------------------------------------------------------------

    def _run(self) -> Run | None:
        frame = frames.top(self)
        run = None if frame is None else frame.run
        return None if run is None or run.closed else run

    @torch.compiler.disable
    def _before_layer(
        self, layer: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        run = self._run()
        if run is None:
            return recompute.mask_again(layer, args, kwargs)
        if layer > 0 and run.leaves_alone:
            return None
        hidden, kwargs = bind_layer(self._signatures["layer"], args, kwargs)
        if layer == 0:
            if not run.leaves_alone:
                check_placed("A decoder layer", kwargs, hidden.shape[1])
            run.enter_first_layer(hidden, cache_in(kwargs.values()))
            if run.soft:
                recompute.check(module)
                recompute.remember(run.replay, kwargs)
            elif run.first is not None:
                recompute.check_dropping(module)
            tower = None
            if self.tower_layer:
                tower = frames.tower_pass(self, hidden.shape[0])
            hidden = run.begin(hidden, tower)
        with recompute.kept_tensors():
            kwargs = run.enter_layer(layer, module, kwargs)
        return (hidden,), kwargs

    @torch.compiler.disable
    def _after_first_layer(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        run = self._run()
        if run is not None:
            run.after_first_layer()

    @torch.compiler.disable
    def _after_layer(
        self, index: int, layer: int, module: nn.Module, args: Any, kwargs: Any, output: Any
    ) -> Any:
        run = self._run()
        if run is None or run.stage is None:
            return None
        hidden = hidden_of(output)
        with recompute.kept_tensors():
            changed = run.decide(index, layer, hidden)
        return None if changed is hidden else with_hidden(output, changed)

    @torch.compiler.disable
    def _after_last_layer(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        run = self._run()
        if run is None:
            return None
        hidden = hidden_of(output)
        full = run.leave_last_layer(hidden)
        return None if full is hidden else with_hidden(output, full)


def _check_not_chunked(generate: Callable[..., Any], arguments: dict[str, Any]) -> None:
    """Refuse ``prefill_chunk_size``: a chunk's forward cannot know what later text asks of it."""
    own = getattr(getattr(generate, "__self__", None), "generation_config", None)
    given = (arguments.get("generation_config"), own)
    sizes = (getattr(config, "prefill_chunk_size", None) for config in given)
    size = arguments.get("prefill_chunk_size") or next((n for n in sizes if n), None)
    if size:
        raise ValueError(
            f"prefill_chunk_size={size}: which visual tokens stay is decided by the whole prompt, "
            "and a chunk of it is run without knowing the rest. Leave prefill_chunk_size out, or "
            "generate inside tokenprune.paused(model)."
        )
