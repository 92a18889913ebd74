"""The processor: 96 x 96 pictures and a tokenizer with one token for each word."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

from .pictures import PATCH, SIZE
from .questions import WORDS

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
"""The tokens that are not words, in the order of their ids."""

VOCABULARY: dict[str, int] = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}
"""Id of every token."""

PAD_ID = VOCABULARY["<pad>"]
IMAGE_ID = VOCABULARY["<image>"]


def build_processor() -> LlavaProcessor:
    """Return the processor, built from nothing but :data:`VOCABULARY`."""
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", VOCABULARY["<s>"])]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
    sides = {"height": SIZE, "width": SIZE}
    pictures = CLIPImageProcessor(
        do_resize=True,
        size=sides,
        do_center_crop=False,
        crop_size=sides,
        do_rescale=True,
        do_normalize=True,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=fast,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def save_processor(folder: str | Path) -> None:
    """Write the processor in files that transformers 4.57 and 5 both understand.

    Parameters
    ----------
    folder : str or Path
        Where to write; made if absent.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    build_processor().tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    sides = {"height": SIZE, "width": SIZE}
    # Written by hand because each major version saves names that the other does not know.
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": "<pad>",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "additional_special_tokens": ["<image>"],
            "padding_side": "left",
            "model_max_length": 512,
            "clean_up_tokenization_spaces": False,
            "processor_class": "LlavaProcessor",
        },
    )
    _write(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "CLIPImageProcessor",
            "processor_class": "LlavaProcessor",
            "do_resize": True,
            "size": sides,
            "resample": 3,
            "do_center_crop": False,
            "crop_size": sides,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "do_convert_rgb": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        },
    )
    _write(
        folder / "processor_config.json",
        {
            "processor_class": "LlavaProcessor",
            "image_token": "<image>",
            "patch_size": PATCH,
            "num_additional_image_tokens": 1,
            "vision_feature_select_strategy": "default",
        },
    )


def _write(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
