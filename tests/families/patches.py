"""Families that read patches of an image of any size, each with line ends of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from .base import Family, Wanted, family
from .fields import BREAK, HIDDEN, IMAGE, encoder_fields, make, special_ids, text_fields
from .glm import routed_fields
from .grids import Places, grid, nowhere, with_newlines
from .padding import Arguments, along_second
from .qwen import MERGE, PATCH, PaddleOcrVL, m_rope


@family("fuyu", "FuyuForCausalLM")
class Fuyu(Family):
    """Patches go into the decoder without a tower; a newline token ends each row of them."""

    since = 5
    patch = 4
    limits: ClassVar[dict[str, str]] = {
        "beams": "pictures are not repeated for the beams",
        "places": "lines of patches are apart, and their grid is not told",
    }

    def config(self) -> Any:
        text = text_fields()
        text.pop("num_key_value_heads")
        return self.own(
            text_config=make("PersimmonConfig", **text),
            patch_size=self.patch,
            image_token_id=IMAGE,
        )

    def picture(self, wanted: Wanted) -> Arguments:
        height, width = (wanted.integer(2, 6) for _ in range(2))
        pixels = wanted.randn(1, height * width, 3 * self.patch**2)
        return {"pixel_values": pixels, "grid": torch.tensor([[height, width]])}

    def places(self, config: Any, arguments: Arguments) -> list[Places]:
        if "grid" in arguments:
            return [grid(*size) for size in arguments["grid"].tolist()]
        # A picture is rows of one width with a newline after each.
        ids = "".join(
            {IMAGE: "i", BREAK: "n"}.get(n, " ") for n in arguments["input_ids"][0].tolist()
        )
        pictures = [word.split("n")[:-1] for word in ids.split()]
        return [grid(len(rows), len(rows[0])) for rows in pictures]

    def span(self, places: Places, video: bool) -> list[int]:
        return ([IMAGE] * places[0].width + [BREAK]) * places[0].height

    def together(self, pictures: Sequence[Arguments], count: int) -> Arguments:
        pixels = [picture["pixel_values"] for picture in pictures if picture]
        return {"pixel_values": along_second(pixels)} if pixels else {}

    def join_pictures(self, rows: Sequence[Arguments]) -> Arguments:
        return self.together(rows, len(rows))


@family("kimi_k25", "Kimi_K25ForConditionalGeneration")
class KimiK25(PaddleOcrVL):
    """Keys and values of the decoder are kept as one latent vector each."""

    def tower(self) -> Any:
        fields = encoder_fields(patch_size=PATCH, pos_emb_height=8, pos_emb_width=8)
        return self.own("Vision", **fields)

    def text(self) -> Any:
        fields = text_fields(
            num_key_value_heads=4,
            **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
            **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
            **routed_fields(),
        )
        return make("DeepseekV3Config", **fields)

    def fields(self) -> dict[str, Any]:
        return {"projection_hidden_size": 16, **super().fields()}


@family("hunyuan_vl", "HunYuanVLForConditionalGeneration")
class HunYuanVL(PaddleOcrVL):
    """A token before an image, one after each row of it, and one after it are placeholders too."""

    limits: ClassVar[dict[str, str]] = {
        "rows": "images are numbered through the whole batch, and the number is a position",
        "places": "grids have line ends that its inputs do not tell",
    }

    def tower(self) -> Any:
        fields = encoder_fields(
            patch_size=PATCH, out_hidden_size=HIDDEN, text_hidden_size=HIDDEN, max_image_size=64
        )
        return self.own("Vision", **fields)

    def text(self) -> Any:
        rope = m_rope(1, 1, 1, 1, rope_theta=1e4)
        return self.own("Text", **text_fields(head_dim=HIDDEN // 4, rope_parameters=rope))

    def fields(self) -> dict[str, Any]:
        ids = special_ids("image_token_id", "im_start_id", "im_end_id")
        return {**ids, "im_newline_id": BREAK}

    def patch(self) -> tuple[int, ...]:
        return (3 * PATCH**2,)

    def places(self, config: Any, arguments: Arguments) -> list[Places]:
        sizes = [
            (int(h) // MERGE, int(w) // MERGE) for _, h, w in arguments.get("image_grid_thw", ())
        ]
        return [[nowhere(0, h, w), *with_newlines(h, w, 0), nowhere(0, h, w)] for h, w in sizes]
