"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL: a picture at its own size; prune, answer, look at what stayed.

    python examples/qwen2_vl.py
    python examples/qwen2_vl.py Qwen/Qwen2-VL-7B-Instruct --image photo.jpg \
        --question "What is this?"
"""

from common import arguments, load, show
from qwen_vl_utils import process_vision_info


def main() -> None:
    options = arguments("Qwen2-VL, pruned", "qwen2_vl")
    model, processor = load(options.model)
    content = [
        {"type": "image", "image": options.image},
        {"type": "text", "text": options.question},
    ]
    messages = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    # Sides in whole tokens: 28 pixels for the released models, 8 for the small one.
    side = processor.image_processor.patch_size
    images, videos = process_vision_info(messages, image_patch_size=side)
    inputs = processor(
        text=[text], images=images, videos=videos, do_resize=False, return_tensors="pt"
    )
    show(model, processor, inputs, options)


if __name__ == "__main__":
    main()
