"""Qwen2-VL with its real processor: messages, ``process_vision_info``, images and a video."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, Qwen2VLForConditionalGeneration

import tokenprune as tp
from benchmarks.digits_vqa.models.qwen2_vl import FOLDER

qwen_vl_utils = pytest.importorskip("qwen_vl_utils")


def picture(width: int, height: int, seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def small() -> tuple[Qwen2VLForConditionalGeneration, AutoProcessor]:
    model = Qwen2VLForConditionalGeneration.from_pretrained(FOLDER, dtype=torch.float32)
    return model.eval(), AutoProcessor.from_pretrained(FOLDER)


def inputs_of(processor: AutoProcessor, *content: dict) -> dict[str, torch.Tensor]:
    asked = {"type": "text", "text": "what color is leftmost"}
    messages = [{"role": "user", "content": [*content, asked]}]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    images, videos = qwen_vl_utils.process_vision_info(messages, image_patch_size=4)
    made = processor(
        text=[text],
        images=images,
        videos=videos,
        do_resize=False,
        do_sample_frames=False,
        return_tensors="pt",
    )
    return dict(made)


def test_images_and_a_video_in_one_prompt(small) -> None:
    """Every token's place, frame by frame, and the same answer with and without a cache."""
    model, processor = small
    frames = [picture(64, 80, seed) for seed in range(4)]
    inputs = inputs_of(
        processor,
        {"type": "image", "image": picture(96, 64, 10)},
        {"type": "video", "video": frames, "resized_height": 80, "resized_width": 64},
        {"type": "image", "image": picture(72, 96, 11)},
    )
    # Tokens of 8 x 8 pixels; a video token stands for two frames.
    expected = [
        *((0, 0, r, c) for r in range(8) for c in range(12)),
        *((1, t, r, c) for t in range(2) for r in range(10) for c in range(8)),
        *((2, 0, r, c) for r in range(12) for c in range(9)),
    ]
    tp.wrap(model, tp.RandomConfig(layers=(1, 3), keep=(100, 40)))
    try:
        with torch.no_grad():
            model(**inputs)
        stats = tp.stats(model)
        tp.unwrap(model)
        tp.wrap(model, tp.ATPConfig(layers=(1, 3)))
        asked = {"max_new_tokens": 3, "do_sample": False}
        cached = model.generate(**inputs, **asked)
        assert torch.equal(cached, model.generate(**inputs, **asked, use_cache=False))
    finally:
        tp.unwrap(model)
    here = stats.visual[0]
    table = (stats.image, stats.frame, stats.row, stats.col)
    found = list(zip(*(part[0][here].tolist() for part in table), strict=True))
    assert found == expected
    assert stats.kept[:, 0].tolist() == [364] * 2 + [100] * 2 + [40] * (len(stats.kept) - 4)


def test_a_batch_of_sizes_is_each_row_alone(small) -> None:
    model, processor = small
    sizes = [(96, 96), (64, 128), (144, 72)]
    image = [{"type": "image", "image": picture(*size, n)} for n, size in enumerate(sizes)]
    rows = [inputs_of(processor, part) for part in image]
    text = [processor.batch_decode(row["input_ids"])[0] for row in rows]
    asked = [t.replace("<|image_pad|>", "", t.count("<|image_pad|>") - 1) for t in text]
    batch = processor(
        text=asked,
        images=[part["image"] for part in image],
        padding=True,
        padding_side="left",
        do_resize=False,
        return_tensors="pt",
    )
    tp.wrap(model, tp.ATPConfig(layers=(1, 3)))
    try:
        with torch.no_grad():
            together = model(**batch).logits[:, -1]
            alone = torch.cat([model(**row).logits[:, -1] for row in rows])
    finally:
        tp.unwrap(model)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
