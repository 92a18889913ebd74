"""What every family shares: tiny sizes, random weights, prompts, and joining prompts to a batch."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import transformers
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

PAD, BOS, EOS = 0, 1, 2
IMAGE, VIDEO, START, END, BREAK = 99, 98, 97, 96, 95
# Ids from here on are no words: placeholders and what families put around them.
SPECIAL, VOCABULARY = 90, 100
LAYERS, HIDDEN, WINDOW = 6, 32, 12

Arguments = dict[str, Tensor]
_PER_TOKEN = (
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "mm_token_type_ids",
    "moe_mm_token_type_ids",
)


class Place(NamedTuple):
    """Where a visual token stands.

    `unit` counts what has a grid of its own inside one image or video: frames, tiles, thumbnails.
    """

    unit: int
    row: int
    col: int
    height: int
    width: int


Places = list[Place]


def nowhere(unit: int, height: int = 0, width: int = 0) -> Place:
    return Place(unit, -1, -1, height, width)


def grid(height: int, width: int, unit: int = 0) -> Places:
    """Row by row."""
    return [Place(unit, r, c, height, width) for r in range(height) for c in range(width)]


def in_one(pictures: Iterable[Places]) -> Places:
    """One list of them all, their units counted on."""
    first, together = 0, []
    for places in pictures:
        together += [place._replace(unit=first + place.unit) for place in places]
        first += 1 + max(place.unit for place in places)
    return together


def text_fields(**changes: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": 64,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        **changes,
    }


def tower_fields(side: int, patch: int = 4, **changes: Any) -> dict[str, Any]:
    """For a vision transformer of `side` × `side` patches."""
    return {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": side * patch,
        "patch_size": patch,
        **changes,
    }


def make(name: str, *args: Any, **fields: Any) -> Any:
    """An object of a transformers class that this version may not have."""
    return getattr(transformers, name)(*args, **fields)


def draw(low: int, high: int, generator: torch.Generator) -> int:
    """From `low` to `high`, both among the answers."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def collate(rows: Sequence[Arguments]) -> Arguments:
    """Along the first dimension, the others padded with zeros to the largest."""
    joined = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        parts = [row[name] for row in rows if name in row]
        sizes = [max(part.shape[n] for part in parts) for n in range(1, parts[0].ndim)]
        joined[name] = torch.cat([_pad(part, sizes) for part in parts])
    return joined


def _pad(values: Tensor, sizes: Sequence[int]) -> Tensor:
    missing = [size - has for size, has in zip(sizes, values.shape[1:], strict=True)]
    return F.pad(values, [n for size in reversed(missing) for n in (0, size)])


def weights(model: PreTrainedModel, seed: int, embedding: float = 1.0) -> None:
    """Redraw every matrix so that attention is far from uniform; scales of norms stay.

    `embedding` is the standard deviation of the words' embeddings.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            experts = "experts" in name and parameter.ndim == 3
            fan_in = parameter.shape[-1] if experts else parameter[0].numel()
            scale = 2.0 if "q_proj" in name or "k_proj" in name else 1.0
            std = embedding if "embed_tokens" in name else scale / fan_in**0.5
            parameter.data.normal_(std=std, generator=generator)


class Family:
    """How to make one family's tiny model and what it reads.

    A subclass says what a configuration, one picture's arguments and the order of a picture's
    tokens are; the rest is common.
    """

    name: str
    model: str
    videos = False
    # The attention implementations it has; the first stands in for one it has not.
    attentions: tuple[str, ...] = ("sdpa", "eager")
    embedding = 1.0
    # What the family itself cannot do, pruned or not, and why. Rows: a row of a batch is the row
    # alone. Beams, video beams, uncached: ways to generate. Places, video places: unknown.
    limits: ClassVar[dict[str, str]] = {}
    # More of these in transformers 4.
    limits_of_4: ClassVar[dict[str, str]] = {}
    # The first major release of transformers in which it works.
    since = 4
    # Why it cannot be pruned, in the words of the error, if it cannot.
    refused = ""
    # Whether a row without any picture may stand in one batch with rows that have some.
    text_beside_images = True
    # The first argument that holds pictures, as current releases name it.
    pixels = "pixel_values"

    def config(self) -> Any:
        raise NotImplementedError

    def picture(
        self, config: Any, generator: torch.Generator, count: int, video: bool
    ) -> Arguments:
        """The arguments of one picture, one of the `count` of its prompt."""
        raise NotImplementedError

    def places(self, config: Any, arguments: Arguments) -> list[Places]:
        """The placeholders' places in order, as many lists as the arguments hold pictures."""
        raise NotImplementedError

    def span(self, config: Any, places: Places, video: bool) -> list[int]:
        """The token ids of one picture, with what the family writes around it."""
        return [VIDEO if video else IMAGE] * len(places)

    def finish(self, model: PreTrainedModel, sample: Arguments) -> None:
        """Add what depends on the whole prompt."""

    def available(self) -> bool:
        if not hasattr(transformers, self.model) or release() < self.since:
            return False
        try:
            self.config()
        except (AttributeError, ImportError, KeyError, TypeError):
            return False
        return True

    def build(self, seed: int = 0, attn: str = "sdpa") -> PreTrainedModel:
        """A model in evaluation mode, single precision, on the CPU."""
        config = self.config()
        # Tied to the embeddings, the head would repeat the last word whatever attention brings.
        config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = make(self.model, config)
        model = model.float().eval()
        weights(model, seed, self.embedding)
        attn = attn if attn in self.attentions else self.attentions[0]
        try:
            model.set_attn_implementation(attn)
        except ValueError:  # A tower that has no such implementation.
            model.set_attn_implementation({"text_config": attn})
        generation = model.generation_config
        generation.eos_token_id = None
        generation.pad_token_id = PAD
        generation.bos_token_id = BOS
        # An image token among the answer would ask for one more picture where nothing is cached.
        generation.suppress_tokens = list(range(SPECIAL, VOCABULARY))
        return model

    def sample(
        self, model: PreTrainedModel, images: int, seed: int, video: bool = False
    ) -> Arguments:
        """One prompt of random words around so many images, or videos."""
        if video and not self.videos:
            raise ValueError(f"{self.name} reads no videos")
        generator = torch.Generator().manual_seed(seed)

        def words(least: int) -> list[int]:
            count = draw(least, least + 3, generator)
            return torch.randint(EOS + 1, SPECIAL, (count,), generator=generator).tolist()

        ids = [BOS, *words(2)]
        pictures = []
        for _ in range(images):
            picture = self.picture(model.config, generator, images, video)
            pictures.append(picture)
            places = in_one(self.places(model.config, picture))
            ids += [*self.span(model.config, places, video), *words(2)]
        ids += words(3)
        sample = {"input_ids": torch.tensor([ids])}
        sample["attention_mask"] = torch.ones_like(sample["input_ids"])
        sample.update(self.together(pictures, images))
        self.finish(model, sample)
        known = inspect.signature(model.forward).parameters
        if self.pixels not in known and self.pixels in sample:
            sample["pixel_values_images"] = sample.pop(self.pixels)
        return {name: values for name, values in sample.items() if name in known}

    def together(self, pictures: Sequence[Arguments], count: int) -> Arguments:
        """The pictures of one prompt as its arguments."""
        return collate(pictures) if pictures else {}

    def join(
        self, model: PreTrainedModel, samples: Sequence[Arguments], padding_side: str
    ) -> Arguments:
        """A batch of prompts, padded on one side."""
        length = max(sample["input_ids"].shape[1] for sample in samples)
        batch = {}
        for name in _PER_TOKEN:
            if any(name in sample for sample in samples):
                rows = [
                    sample.get(name, torch.zeros_like(sample["input_ids"])) for sample in samples
                ]
                batch[name] = torch.cat([_to_length(row, length, padding_side) for row in rows])
        batch.update(self.join_pictures([_pictures(sample) for sample in samples]))
        return batch

    def join_pictures(self, rows: Sequence[Arguments]) -> Arguments:
        return collate(rows)

    def geometry(
        self, model: PreTrainedModel, sample: Arguments
    ) -> list[tuple[int, int, int, int, int, int]]:
        """Position, number of image or frame, row, column, height and width of each placeholder."""
        ids = sample["input_ids"][0]
        positions = self.placeholders(model, ids).nonzero().flatten().tolist()
        places = in_one(self.places(model.config, sample))
        return [(n, *place) for n, place in zip(positions, places, strict=True)]

    def knows_places(self, sample: Arguments) -> bool:
        """Whether a token's place can be read from the arguments."""
        limit = "video places" if "pixel_values_videos" in sample else "places"
        return limit not in self.limits

    def placeholders(self, model: PreTrainedModel, ids: Tensor) -> Tensor:
        """Bool, like `ids`: where a picture's features go."""
        return (ids == IMAGE) | (ids == VIDEO)


def _pictures(sample: Arguments) -> Arguments:
    return {name: values for name, values in sample.items() if name not in _PER_TOKEN}


def _to_length(row: Tensor, length: int, side: str) -> Tensor:
    missing = length - row.shape[1]
    return F.pad(row, (missing, 0) if side == "left" else (0, missing), value=PAD)


def release() -> int:
    """The major release of transformers."""
    return int(transformers.__version__.split(".")[0])


def register(families: Iterable[Family]) -> dict[str, Family]:
    known = {family.name: family for family in families}
    for family in known.values():
        if release() < 5:
            type(family).limits = {**family.limits, **family.limits_of_4}
    return known
