"""LLaVA-1.5: prune, answer, look at what stayed.

python examples/llava.py
python examples/llava.py llava-hf/llava-1.5-7b-hf --image photo.jpg --question "What is this?"
"""

from common import arguments, load, show


def main() -> None:
    options = arguments("LLaVA-1.5, pruned", "llava")
    model, processor = load(options.model)
    prompt = "<image> {}" if options.small else "USER: <image>\n{} ASSISTANT:"
    inputs = processor(
        text=prompt.format(options.question), images=options.image, return_tensors="pt"
    )
    show(model, processor, inputs, options)


if __name__ == "__main__":
    main()
