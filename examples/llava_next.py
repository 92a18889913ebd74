"""LLaVA-NeXT: a picture of any shape in tiles; prune, answer, look at what stayed.

    python examples/llava_next.py
    python examples/llava_next.py llava-hf/llava-v1.6-mistral-7b-hf --image photo.jpg \
        --question "What is this?"
"""

from common import arguments, load, show


def main() -> None:
    options = arguments("LLaVA-NeXT, pruned", "llava_next")
    model, processor = load(options.model)
    prompt = "<image> {}" if options.small else "[INST] <image>\n{} [/INST]"
    inputs = processor(
        text=prompt.format(options.question), images=options.image, return_tensors="pt"
    )
    show(model, processor, inputs, options)


if __name__ == "__main__":
    main()
