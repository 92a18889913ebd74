"""The tokenizer, one token for each word, and the files of a processor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from ..questions import WORDS

__all__ = ["PAD_ID", "VOCABULARY", "save_processor", "tokenizer"]

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
"""The tokens that are not words, in the order of their ids."""

VOCABULARY: dict[str, int] = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}
"""Id of every token of the LLaVAs; the words have the same ids in every model."""

PAD_ID = VOCABULARY["<pad>"]


def tokenizer(vocabulary: dict[str, int] | None = None) -> PreTrainedTokenizerFast:
    """Return the tokenizer, built from nothing but a vocabulary; ``<s>`` begins where it is known.

    Whatever is written ``<…>`` is a special token.
    """
    known = VOCABULARY if vocabulary is None else vocabulary
    special = [word for word in known if word.startswith("<")]
    made = Tokenizer(models.WordLevel(known, unk_token="<unk>" if "<unk>" in known else "<pad>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens([AddedToken(word, special=True) for word in special])
    if "<s>" in known:
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", known["<s>"])]
        )
    return PreTrainedTokenizerFast(tokenizer_object=made, **_settings(known))


def _settings(known: dict[str, int]) -> dict[str, Any]:
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return {
        "pad_token": "<pad>",
        **{name: word for name, word in names.items() if word in known},
        "additional_special_tokens": [word for word in known if word.startswith(("<i", "<|"))],
        "padding_side": "left",
        "model_max_length": 1024,
        "clean_up_tokenization_spaces": False,
    }


def save_processor(
    folder: Path,
    name: str,
    pictures: dict[str, Any],
    processor: dict[str, Any],
    vocabulary: dict[str, int] | None = None,
) -> None:
    """Write a processor in files that transformers 4.57 and 5 both understand.

    By hand, because each major version saves names that the other does not know.

    Parameters
    ----------
    folder : Path
        Where to; made if absent.
    name : str
        The processor's class.
    pictures, processor : dict
        Settings of the image processor and of the processor.
    vocabulary : dict, optional
        Id of every token.
    """
    folder.mkdir(parents=True, exist_ok=True)
    words = tokenizer(vocabulary)
    words.backend_tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **_settings(words.get_vocab() if vocabulary is None else vocabulary),
        "processor_class": name,
    }
    for file, content in (
        ("tokenizer_config.json", settings),
        ("preprocessor_config.json", {**pictures, "processor_class": name}),
        ("processor_config.json", {"processor_class": name, **processor}),
    ):
        (folder / file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
