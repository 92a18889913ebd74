"""A LLaVA with ATP and labelled batches, to train on."""

import torch

import tokenprune as tp

from .tiny_llava import IMAGE, make_batch, with_labels
from .wrapping import wrapped_llava

LAYERS = (1, 3)
PROMPTS = ((4, IMAGE, 6), (2, IMAGE, 9))


def atp_llava(device="cpu", attn="sdpa", dtype=torch.float32, seed=0, **options):
    config = tp.ATPConfig(**{"layers": LAYERS, "target_tokens": 18.0, **options})
    return wrapped_llava(config, seed, attn=attn, dtype=dtype, device=device)


def labelled(prompts=PROMPTS, **options):
    return with_labels(make_batch(prompts, **options), answer=2)
