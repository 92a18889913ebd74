"""Families whose pictures reach the decoder in ways of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel

from tests.families.base import (
    BREAK,
    END,
    HIDDEN,
    IMAGE,
    START,
    VIDEO,
    VOCABULARY,
    WINDOW,
    Arguments,
    Family,
    Places,
    draw,
    grid,
    make,
    nowhere,
    text_fields,
    tower_fields,
)
from tests.families.llava import Llava, with_newlines
from tests.families.qwen import MERGE, PATCH, PaddleOcrVL
from tests.families.tiles import along_second, without_place


class DeepseekVLHybrid(Llava):
    """Two towers see an image at two resolutions; their tokens are added up place by place."""

    name = "deepseek_vl_hybrid"
    model = "DeepseekVLHybridForConditionalGeneration"
    high = 16

    def config(self) -> Any:
        sam = tower_fields(
            self.high, output_channels=16, window_size=4, global_attn_indexes=[1], mlp_dim=32
        )
        return make(
            "DeepseekVLHybridConfig",
            vision_config=make("SiglipVisionConfig", **tower_fields(self.side)),
            high_res_vision_config=make("SamVisionConfig", **sam),
            text_config=make("LlamaConfig", **text_fields()),
            image_token_id=IMAGE,
        )

    def picture(
        self, config: Any, generator: torch.Generator, count: int, video: bool
    ) -> Arguments:
        picture = super().picture(config, generator, count, video)
        size = config.high_res_vision_config.image_size
        picture["high_res_pixel_values"] = torch.randn(1, 3, size, size, generator=generator)
        return picture


class Janus(Llava):
    name = "janus"
    model = "JanusForConditionalGeneration"

    def config(self) -> Any:
        tower = tower_fields(
            self.side,
            projection_dim=HIDDEN,
            num_image_tokens=self.side**2,
            mlp_ratio=2.0,
            hidden_dropout_rate=0.0,
        )
        tower.pop("intermediate_size")
        pictures_out = {
            "embed_dim": 8,
            "num_embeddings": 16,
            "latent_channels": 32,
            "base_channels": 32,
            "channel_multiplier": [1, 1],
            "num_res_blocks": 1,
            "projection_dim": HIDDEN,
            "image_token_embed_dim": HIDDEN,
        }
        return make(
            "JanusConfig",
            vision_config=make("JanusVisionConfig", **tower),
            vq_config=make("JanusVQVAEConfig", **pictures_out),
            text_config=make("LlamaConfig", **text_fields()),
            image_token_id=IMAGE,
        )


class Aria(Llava):
    """A cross-attention turns an image's patches into so many tokens without a place."""

    name = "aria"
    model = "AriaForConditionalGeneration"
    queries = 8

    def config(self) -> Any:
        text = text_fields(moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1)
        return make(
            "AriaConfig",
            vision_config=make("Idefics3VisionConfig", **tower_fields(self.side)),
            text_config=make("AriaTextConfig", **text),
            projector_patch_to_query_dict={self.side**2: self.queries},
            image_token_index=IMAGE,
        )

    def picture(
        self, config: Any, generator: torch.Generator, count: int, video: bool
    ) -> Arguments:
        picture = super().picture(config, generator, count, video)
        picture["pixel_mask"] = torch.ones_like(picture["pixel_values"][:, 0], dtype=torch.bool)
        return picture

    def places(self, config: Any, arguments: Arguments) -> list[Places]:
        return [without_place(self.queries) for _ in arguments.get("pixel_values", ())]


class Emu3(Family):
    """An image is turned into words of the vocabulary; each row of them ends in a newline.

    All images have one size, as the tower's convolutions would see the padding.
    """

    name = "emu3"
    since = 5  # 4.57 does not hand the pictures on
    limits: ClassVar[dict[str, str]] = {"places": "words of an image vocabulary with line ends"}
    model = "Emu3ForConditionalGeneration"
    codes = 32
    height, width = 4, 5

    def config(self) -> Any:
        pictures = {
            "codebook_size": self.codes,
            "embed_dim": 4,
            "latent_channels": 4,
            "base_channels": 32,
            "channel_multiplier": [1, 1],
            "num_res_blocks": 1,
            "attn_resolutions": [],
            "hidden_size": 32,
            "temporal_downsample_factor": 2,
        }
        words = {f"<|visual token {n:06d}|>": 40 + n for n in range(self.codes)}
        return make(
            "Emu3Config",
            vq_config=make("Emu3VQVAEConfig", **pictures),
            text_config=make("Emu3TextConfig", attention_dropout=0.0, **text_fields()),
            vocabulary_map={**words, "<image>": IMAGE, "<|extra_200|>": BREAK},
        )

    def picture(
        self, config: Any, generator: torch.Generator, count: int, video: bool
    ) -> Arguments:
        size = (2 * self.height, 2 * self.width)
        return {
            "pixel_values": torch.randn(1, 3, *size, generator=generator),
            "image_sizes": torch.tensor([size]),
        }

    def places(self, config: Any, arguments: Arguments) -> list[Places]:
        one = with_newlines(self.height, self.width, 0)
        return [one for _ in arguments.get("image_sizes", ())]


class Fuyu(Family):
    """Patches go into the decoder without a tower; a newline token ends each row of them."""

    name = "fuyu"
    limits: ClassVar[dict[str, str]] = {
        "beams": "pictures are not repeated for the beams",
        "places": "lines of patches are apart, and their grid is not told",
    }
    since = 5
    model = "FuyuForCausalLM"
    patch = 4

    def config(self) -> Any:
        text = text_fields()
        text.pop("num_key_value_heads")
        return make(
            "FuyuConfig",
            text_config=make("PersimmonConfig", **text),
            patch_size=self.patch,
            image_token_id=IMAGE,
        )

    def picture(
        self, config: Any, generator: torch.Generator, count: int, video: bool
    ) -> Arguments:
        height, width = (draw(2, 6, generator) for _ in range(2))
        pixels = torch.randn(1, height * width, 3 * self.patch**2, generator=generator)
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

    def span(self, config: Any, places: Places, video: bool) -> list[int]:
        return ([IMAGE] * places[0].width + [BREAK]) * places[0].height

    def together(self, pictures: Sequence[Arguments], count: int) -> Arguments:
        pixels = [picture["pixel_values"] for picture in pictures if picture]
        return {"pixel_values": along_second(pixels)} if pixels else {}

    def join_pictures(self, rows: Sequence[Arguments]) -> Arguments:
        return self.together(rows, len(rows))


class FastVlm(Llava):
    """The tower is convolutional."""

    name = "fast_vlm"
    model = "FastVlmForConditionalGeneration"
    side = 4

    def config(self) -> Any:
        tower = make(
            "TimmWrapperConfig",
            architecture="mobilenetv3_small_050",
            do_pooling=True,
            model_args={},
            num_features=288,
        )
        tower.hidden_size = 288
        return make(
            "FastVlmConfig",
            vision_config=tower,
            text_config=make("Qwen2Config", **text_fields()),
            image_token_index=IMAGE,
            image_seq_length=self.side**2,
        )

    def picture(
        self, config: Any, generator: torch.Generator, count: int, video: bool
    ) -> Arguments:
        size = 32 * self.side
        return {"pixel_values": torch.randn(1, 3, size, size, generator=generator)}


class Gemma3n(FastVlm):
    """Hidden states of the decoder layers have four dimensions; the last layers share keys."""

    name = "gemma3n"
    refused = "per_layer_input"
    model = "Gemma3nForConditionalGeneration"
    embedding = HIDDEN**-0.5

    def config(self) -> Any:
        types = (["sliding_attention"] * 2 + ["full_attention"]) * 2
        text = text_fields(
            head_dim=HIDDEN // 4,
            sliding_window=WINDOW,
            layer_types=types,
            vocab_size_per_layer_input=100,
            hidden_size_per_layer_input=8,
            num_kv_shared_layers=2,
            laurel_rank=8,
            altup_num_inputs=2,
            activation_sparsity_pattern=[0.0] * 6,
        )
        tower = {
            "architecture": "mobilenetv3_small_050",
            "do_pooling": False,
            "hidden_size": 288,
            "vocab_offset": 95,
            "vocab_size": 5,
        }
        sound = {
            "vocab_offset": 100,
            "vocab_size": 4,
            "input_feat_size": 16,
            "hidden_size": 16,
            "conf_num_attention_heads": 2,
            "conf_num_hidden_layers": 1,
            "sscp_conv_channel_size": (8, 8),
        }
        return make(
            "Gemma3nConfig",
            text_config=make("Gemma3nTextConfig", **text),
            vision_config=make("Gemma3nVisionConfig", **tower),
            audio_config=make("Gemma3nAudioConfig", **sound),
            vision_soft_tokens_per_image=self.side**2,
            image_token_id=IMAGE,
            boi_token_id=START,
            eoi_token_id=END,
            audio_token_id=102,
            boa_token_id=101,
            eoa_token_id=103,
        )


class Chameleon(Llava):
    """An image is turned into words of the vocabulary; the configuration has no text part."""

    name = "chameleon"
    model = "ChameleonForConditionalGeneration"
    codes = 16

    def config(self) -> Any:
        pictures = {
            "embed_dim": 8,
            "num_embeddings": self.codes,
            "latent_channels": 32,
            "resolution": 2 * self.side,
            "base_channels": 32,
            "channel_multiplier": [1, 1],
            "num_res_blocks": 1,
        }
        digits = str.maketrans("0123456789", "ABCDEFGHIJ")
        words = {f"IMGIMG{n}Z".translate(digits): 40 + n for n in range(self.codes)}
        return make(
            "ChameleonConfig",
            vq_config=pictures,
            vocabulary_map={**words, "<image>": IMAGE},
            **text_fields(),
        )

    def picture(
        self, config: Any, generator: torch.Generator, count: int, video: bool
    ) -> Arguments:
        size = 2 * self.side
        return {"pixel_values": torch.randn(1, 3, size, size, generator=generator)}


class Blip2(Llava):
    """A Q-former turns an image into so many tokens without a place."""

    name = "blip-2"
    refused = "generate does not call its forward"
    model = "Blip2ForConditionalGeneration"
    text_beside_images = False
    queries = 8

    def config(self) -> Any:
        name = self.model.replace("ForConditionalGeneration", "")
        between = {
            "vocab_size": 100,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "cross_attention_frequency": 1,
            "encoder_hidden_size": 16,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        }
        text = text_fields(ffn_dim=64, word_embed_proj_dim=HIDDEN, dropout=0.0)
        for name_of_other in ("num_key_value_heads", "intermediate_size"):
            text.pop(name_of_other)
        return make(
            f"{name}Config",
            vision_config=make(f"{name}VisionConfig", **tower_fields(self.side)).to_dict(),
            qformer_config=make(f"{name}QFormerConfig", **between).to_dict(),
            text_config=make("OPTConfig", **text).to_dict(),
            num_query_tokens=self.queries,
            image_token_index=IMAGE,
        )

    def places(self, config: Any, arguments: Arguments) -> list[Places]:
        return [without_place(self.queries) for _ in arguments.get("pixel_values", ())]


class InstructBlip(Blip2):
    """The Q-former reads a prompt of its own with each image."""

    name = "instructblip"
    model = "InstructBlipForConditionalGeneration"

    def picture(
        self, config: Any, generator: torch.Generator, count: int, video: bool
    ) -> Arguments:
        ids = torch.randint(3, 90, (1, 4), generator=generator)
        return {
            **super().picture(config, generator, count, video),
            "qformer_input_ids": ids,
            "qformer_attention_mask": torch.ones_like(ids),
        }


class Gemma4(Family):
    """Patches carry their places; tokens of one image see each other in the windowed layers.

    As the larger ones are; `Gemma4E` is the smaller.
    """

    name = "gemma4"
    small: ClassVar[dict[str, int]] = {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0}
    model = "Gemma4ForConditionalGeneration"
    embedding = HIDDEN**-0.5
    most, pool, patch = 16, 2, 4

    def config(self) -> Any:
        text = text_fields(
            head_dim=HIDDEN // 4,
            global_head_dim=HIDDEN // 4,
            sliding_window=WINDOW,
            layer_types=(["sliding_attention"] * 2 + ["full_attention"]) * 2,
            vocab_size_per_layer_input=VOCABULARY,
            **self.small,
            use_bidirectional_attention="vision",
        )
        tower = {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "pooling_kernel_size": self.pool,
            "patch_size": self.patch,
            "position_embedding_size": 64,
        }
        return make(
            "Gemma4Config",
            text_config=make("Gemma4TextConfig", **text),
            vision_config=make("Gemma4VisionConfig", **tower),
            audio_config=None,
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            audio_token_id=94,
            boi_token_id=START,
            eoi_token_id=END,
        )

    def picture(
        self, config: Any, generator: torch.Generator, count: int, video: bool
    ) -> Arguments:
        height = draw(2, 5, generator)
        width = draw(2, self.most // height, generator)
        patches = self.most * self.pool**2
        rows, columns = self.pool * height, self.pool * width
        where = torch.full((1, patches, 2), -1)
        where[0, : rows * columns] = torch.cartesian_prod(
            torch.arange(rows), torch.arange(columns)
        ).flip(1)
        pixels = torch.rand(1, patches, 3 * self.patch**2, generator=generator)
        return {"pixel_values": pixels, "image_position_ids": where}

    def places(self, config: Any, arguments: Arguments) -> list[Places]:
        corners = [where.amax(0) + 1 for where in arguments.get("image_position_ids", ())]
        return [grid(int(y) // self.pool, int(x) // self.pool) for x, y in corners]

    def span(self, config: Any, places: Places, video: bool) -> list[int]:
        return [START, *super().span(config, places, video), END]

    def finish(self, model: PreTrainedModel, sample: Arguments) -> None:
        sample["mm_token_type_ids"] = (sample["input_ids"] == IMAGE).int()


class Gemma4E(Gemma4):
    """Layers have inputs of their own, and the last share keys."""

    name = "gemma4-e"
    small: ClassVar[dict[str, int]] = {"hidden_size_per_layer_input": 8, "num_kv_shared_layers": 2}
    refused = "per_layer_input"


class KimiK25(PaddleOcrVL):
    """Keys and values of the decoder are kept as one latent vector each."""

    name = "kimi_k25"
    model = "Kimi_K25ForConditionalGeneration"

    def config(self) -> Any:
        text = text_fields(
            num_key_value_heads=4,
            q_lora_rank=16,
            kv_lora_rank=16,
            qk_rope_head_dim=8,
            qk_nope_head_dim=8,
            v_head_dim=8,
            n_routed_experts=4,
            n_shared_experts=1,
            n_group=1,
            topk_group=1,
            num_experts_per_tok=2,
            first_k_dense_replace=1,
            moe_intermediate_size=32,
        )
        tower = {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "patch_size": PATCH,
            "pos_emb_height": 8,
            "pos_emb_width": 8,
        }
        return make(
            "Kimi_K25Config",
            vision_config=make("Kimi_K25VisionConfig", **tower),
            text_config=make("DeepseekV3Config", **text),
            projection_hidden_size=16,
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            vision_start_token_id=START,
            vision_end_token_id=END,
        )


class HunYuanVL(PaddleOcrVL):
    """A token before an image, one after each row of it, and one after it are placeholders too."""

    name = "hunyuan_vl"
    limits: ClassVar[dict[str, str]] = {
        "rows": "images are numbered through the whole batch, and the number is a position",
        "places": "grids have line ends that its inputs do not tell",
    }
    model = "HunYuanVLForConditionalGeneration"

    def config(self) -> Any:
        tower = tower_fields(
            8, patch=PATCH, out_hidden_size=HIDDEN, text_hidden_size=HIDDEN, max_image_size=64
        )
        tower.pop("image_size")
        scaling = {"rope_type": "default", "mrope_section": [1, 1, 1, 1]}
        text = text_fields(head_dim=HIDDEN // 4, rope_parameters={**scaling, "rope_theta": 1e4})
        return make(
            "HunYuanVLConfig",
            vision_config=make("HunYuanVLVisionConfig", **tower),
            text_config=make("HunYuanVLTextConfig", **text),
            image_token_id=IMAGE,
            im_start_id=START,
            im_end_id=END,
            im_newline_id=BREAK,
        )

    def patch(self) -> tuple[int, ...]:
        return (3 * PATCH**2,)

    def places(self, config: Any, arguments: Arguments) -> list[Places]:
        sizes = [
            (int(h) // MERGE, int(w) // MERGE) for _, h, w in arguments.get("image_grid_thw", ())
        ]
        return [[nowhere(0, h, w), *with_newlines(h, w, 0), nowhere(0, h, w)] for h, w in sizes]


FAMILIES = [
    Chameleon(),
    Blip2(),
    InstructBlip(),
    Gemma4(),
    Gemma4E(),
    KimiK25(),
    HunYuanVL(),
    DeepseekVLHybrid(),
    Janus(),
    Aria(),
    Emu3(),
    Fuyu(),
    FastVlm(),
    Gemma3n(),
]
