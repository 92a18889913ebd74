"""Families that turn an image into codes of a codebook, or can draw one from them."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from .base import Family, Wanted, family
from .fields import BREAK, HIDDEN, IMAGE, codebook_fields, text_fields, tower_fields
from .grids import Places, with_newlines
from .llava import Llava
from .padding import Arguments


@family("janus", "JanusForConditionalGeneration")
class Janus(Llava):
    def tower(self) -> Any:
        fields = tower_fields(
            self.side,
            projection_dim=HIDDEN,
            num_image_tokens=self.side**2,
            mlp_ratio=2.0,
            hidden_dropout_rate=0.0,
        )
        fields.pop("intermediate_size")
        return self.own("Vision", **fields)

    def fields(self) -> dict[str, Any]:
        codebook = codebook_fields(
            embed_dim=8,
            num_embeddings=16,
            latent_channels=32,
            projection_dim=HIDDEN,
            image_token_embed_dim=HIDDEN,
        )
        return {"vq_config": self.own("VQVAE", **codebook), "image_token_id": IMAGE}


@family("emu3", "Emu3ForConditionalGeneration")
class Emu3(Family):
    """An image is turned into words of the vocabulary; each row of them ends in a newline.

    All images have one size, as the tower's convolutions would see the padding.
    """

    since = 5  # 4.57 does not hand the pictures on
    limits: ClassVar[dict[str, str]] = {"places": "words of an image vocabulary with line ends"}
    codes = 32
    height, width = 4, 5

    def config(self) -> Any:
        codebook = codebook_fields(
            codebook_size=self.codes,
            embed_dim=4,
            latent_channels=4,
            attn_resolutions=[],
            hidden_size=32,
            temporal_downsample_factor=2,
        )
        words = {f"<|visual token {n:06d}|>": 40 + n for n in range(self.codes)}
        return self.own(
            vq_config=self.own("VQVAE", **codebook),
            text_config=self.own("Text", attention_dropout=0.0, **text_fields()),
            vocabulary_map={**words, "<image>": IMAGE, "<|extra_200|>": BREAK},
        )

    def picture(self, wanted: Wanted) -> Arguments:
        size = (2 * self.height, 2 * self.width)
        return {"pixel_values": wanted.randn(1, 3, *size), "image_sizes": torch.tensor([size])}

    def places(self, config: Any, arguments: Arguments) -> list[Places]:
        one = with_newlines(self.height, self.width, 0)
        return [one for _ in arguments.get("image_sizes", ())]


@family("chameleon", "ChameleonForConditionalGeneration")
class Chameleon(Llava):
    """An image is turned into words of the vocabulary; the configuration has no text part."""

    codes = 16

    def config(self) -> Any:
        codebook = codebook_fields(
            embed_dim=8, num_embeddings=self.codes, latent_channels=32, resolution=2 * self.side
        )
        digits = str.maketrans("0123456789", "ABCDEFGHIJ")
        words = {f"IMGIMG{n}Z".translate(digits): 40 + n for n in range(self.codes)}
        return self.own(
            vq_config=codebook, vocabulary_map={**words, "<image>": IMAGE}, **text_fields()
        )

    def picture(self, wanted: Wanted) -> Arguments:
        size = 2 * self.side
        return {"pixel_values": wanted.randn(1, 3, size, size)}
