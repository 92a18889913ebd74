"""Tiny models of many families, so that one test can run over all of them."""

from tests.families import gemma, llava, others, qwen, tiles
from tests.families.base import Family, register

__all__ = ["FAMILIES", "IMPOSSIBLE", "Family"]

FAMILIES: dict[str, Family] = register(
    [*llava.FAMILIES, *qwen.FAMILIES, *tiles.FAMILIES, *gemma.FAMILIES, *others.FAMILIES]
)
_CROSS = "Decoder layers read the image by cross attention; no image token is in the sequence."
_ENCODER = "An encoder reads the image, and a separate decoder generates from it."
_RECURRENT = (
    "Most decoder layers are recurrent (gated delta rule): their cache is a state, not keys."
)
_CONVOLUTION = (
    "Most decoder layers are short convolutions over neighbouring positions with a state."
)
_PREFIX = (
    "Image features are put before the text embeddings; input_ids hold no placeholder for them."
)

# By model type, read from the modelling code.
IMPOSSIBLE: dict[str, str] = {
    "blip": "The text decoder reads the image by cross attention.",
    "diffusion_gemma": "Blocks of text are denoised rather than decoded token by token.",
    "evolla": "Reads a protein's structure through cross-attention adapters; there is no image.",
    "florence2": _ENCODER,
    "git": _PREFIX,
    "glm5_next": _RECURRENT,
    "idefics": _CROSS,
    "inkling2": "Keys and values pass a short convolution over neighbours whose state is cached.",
    "lfm2_vl": _CONVOLUTION,
    "lfm3_vl": _CONVOLUTION,
    "minicpm_ocr": _RECURRENT,
    "minicpmv4_6": _RECURRENT,
    "minicpmv4_7": _RECURRENT,
    "mllama": _CROSS,
    "nemotron_h_omni": "Most decoder layers are Mamba blocks: their cache is a state, not keys.",
    "pi0": "Outputs robot actions by flow matching, not tokens.",
    "pix2struct": _ENCODER,
    "pp_formulanet": _ENCODER,
    "qwen3_5": _RECURRENT,
    "qwen3_5_moe": _RECURRENT,
    "qwen4_exp": _RECURRENT,
    "t5gemma2": _ENCODER,
    "udop": _ENCODER,
    "vision-encoder-decoder": _ENCODER,
}
