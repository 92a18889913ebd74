"""Families that cut an image into tiles of one size, each with a grid of its own."""

from __future__ import annotations

from typing import Any, ClassVar

from .base import Family, Wanted, family
from .fields import (
    BREAK,
    END,
    HIDDEN,
    IMAGE,
    LAYERS,
    START,
    VOCABULARY,
    WINDOW,
    make,
    qwen2,
    qwen3,
    sam_fields,
    siglip,
    special_ids,
    text_fields,
    tower_fields,
)
from .grids import Places
from .padding import Arguments


class Tiled(Family):
    """One tile, or three."""

    limits_of_4: ClassVar[dict[str, str]] = {
        "beams": "with them it answers otherwise where nothing is cached, pruned or not"
    }
    # What stands after each tile's tokens.
    between: tuple[int, ...] = ()

    def tower(self) -> Any:
        return self.own("Vision", **tower_fields(2 * self.side))

    def text(self) -> Any:
        return qwen2()

    def fields(self) -> dict[str, Any]:
        return {"image_token_id": IMAGE, "image_seq_length": self.side**2}

    def picture(self, wanted: Wanted) -> Arguments:
        tiles = 2 if wanted.video else (1, 3)[wanted.integer(0, 1)]
        return {"pixel_values": wanted.squares(tiles)}

    def span(self, places: Places, video: bool) -> list[int]:
        tiles = 1 + max(place.unit for place in places)
        tile = [IMAGE] * (len(places) // tiles)
        if video:
            return [START, *tile, END] * tiles
        return [START, *[*tile, *self.between] * tiles, END]


@family("internvl", "InternVLForConditionalGeneration")
class InternVL(Tiled):
    """Tiles follow each other without anything between; a video is one tile a frame."""

    videos = True


@family("aya_vision", "AyaVisionForConditionalGeneration")
class AyaVision(Tiled):
    between = (BREAK,)
    window = True

    def tower(self) -> Any:
        return siglip(2 * self.side)

    def text(self) -> Any:
        layers = {} if self.window else {"layer_types": ["full_attention"] * LAYERS}
        fields = text_fields(sliding_window=WINDOW, logit_scale=1.0, **layers)
        return make("Cohere2Config", **fields)

    def fields(self) -> dict[str, Any]:
        return {"image_token_index": IMAGE}


@family("cohere2_vision", "Cohere2VisionForConditionalGeneration")
class Cohere2Vision(AyaVision):
    def fields(self) -> dict[str, Any]:
        return {"image_token_id": IMAGE, "alignment_intermediate_size": 64}


@family("cohere2_vision-full", "Cohere2VisionForConditionalGeneration")
class Cohere2VisionFull(Cohere2Vision):
    window = False


@family("got_ocr2", "GotOcr2ForConditionalGeneration")
class GotOcr2(Tiled):
    """The tower's grid is halved twice by convolutions."""

    def tower(self) -> Any:
        return self.own("Vision", **sam_fields(4 * self.side))

    def fields(self) -> dict[str, Any]:
        return {"image_token_index": IMAGE, "image_seq_length": self.side**2}


@family("ovis2", "Ovis2ForConditionalGeneration")
class Ovis2(Tiled):
    """The tokens around an image are features of the tower's table too."""

    indicators = (90, 91, 92, 93, 94)

    def tower(self) -> Any:
        fields = tower_fields(
            2 * self.side, hidden_stride=2, vocab_size=40, num_visual_indicator_tokens=5
        )
        return self.own("Vision", **fields)

    def fields(self) -> dict[str, Any]:
        return {
            "image_token_id": IMAGE,
            "visual_indicator_token_ids": list(self.indicators),
            "vocab_size": VOCABULARY,
            "hidden_size": HIDDEN,
        }

    def span(self, places: Places, video: bool) -> list[int]:
        start, end, column, *_ = self.indicators
        tiles = 1 + max(place.unit for place in places)
        tile = [*[IMAGE] * (len(places) // tiles), column]
        return [start, *(tile * tiles)[:-1], end]


@family("llama4", "Llama4ForConditionalGeneration")
class Llama4(AyaVision):
    """Decoder layers attend within chunks of the text, every fourth everywhere."""

    refused = "scaled by how many tokens stand before"

    def tower(self) -> Any:
        fields = tower_fields(
            2 * self.side,
            vision_output_dim=16,
            projector_input_dim=16,
            projector_output_dim=16,
            intermediate_size=64,
        )
        return self.own("Vision", **fields)

    def text(self) -> Any:
        fields = text_fields(
            head_dim=HIDDEN // 4,
            intermediate_size_mlp=64,
            num_local_experts=2,
            interleave_moe_layer_step=2,
            attention_chunk_size=WINDOW,
        )
        return self.own("Text", **fields)

    def fields(self) -> dict[str, Any]:
        return special_ids("image_token_index", "boi_token_index", "eoi_token_index")


@family("qianfan_ocr", "QianfanOCRForConditionalGeneration")
class QianfanOcr(Tiled):
    """Qwen3 reads the tiles."""

    def text(self) -> Any:
        return qwen3()
