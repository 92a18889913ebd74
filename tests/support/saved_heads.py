"""Models with ATP heads, saved: in one file and in the layout of two."""

import torch

import tokenprune as tp
from tokenprune.engine import engine_of

from .heads_files import (
    read,
    write_older,
)
from .tiny_llava import IMAGE, make_batch, tiny_llava
from .wrapping import wrapped_llava

LAYERS = (1, 3)


def config(**options):
    return tp.ATPConfig(**{"layers": LAYERS, "target_tokens": 18.0, "hidden": 8, **options})


def base(**options):
    torch.manual_seed(0)  # the tower's class token is drawn from it
    return tiny_llava(**options)


def atp_llava(seed=0, layers=6, **options):
    model = wrapped_llava(config(**options), layers=layers)
    torch.manual_seed(seed)
    for parameter in engine_of(model).parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def method(model):
    return engine_of(model).method


def saved_heads(tmp_path):
    """Saved heads with a budget set, and the model they are of."""
    model = atp_llava()
    method(model).load_runtime_state(
        {
            "shifts": [0.25, -0.5],
            "max_kept": 30,
            "budgets": [{"tokens": 18.0, "shifts": [0.25, -0.5], "max_kept": 30}],
        }
    )
    return model, tp.save_heads(model, tmp_path / "deep" / "heads")


@torch.no_grad()
def run(model):
    logits = model(**make_batch(((4, IMAGE, 6), (2, IMAGE, 3)))).logits
    return logits, tp.stats(model)


def as_older(heads, tmp_path):
    """The same heads in the layout of two files, and the model they are of."""
    model, folder = heads
    return model, write_older(tmp_path / "older", *read(folder))
