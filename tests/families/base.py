"""What every family shares: building its model, drawing prompts, joining them to a batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from .fields import BOS, END, EOS, IMAGE, PAD, SPECIAL, START, VIDEO, VOCABULARY, make, text_fields
from .grids import Places, grid, in_one
from .padding import Arguments, collate, to_length

_PER_TOKEN = (
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "mm_token_type_ids",
    "moe_mm_token_type_ids",
)


@dataclass(frozen=True)
class Wanted:
    """An image or a video to draw for a model's configuration; `count` are in its prompt."""

    config: Any
    generator: torch.Generator
    count: int
    video: bool

    def integer(self, low: int, high: int) -> int:
        """From `low` to `high`, both among the answers."""
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def squares(self, *counts: int) -> Tensor:
        """So many pictures of the size that the tower reads."""
        size = self.config.vision_config.image_size
        size = size if isinstance(size, int) else size[0]
        return self.randn(*counts, 3, size, size)


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

    A subclass says what its tower, its decoder, one picture's arguments and the order of a
    picture's tokens are, where they differ from what stands here: a LLaMA that reads images of
    `side` × `side` tokens.
    """

    name: str
    model: str
    videos = False
    # Where the processor samples the same number of frames from every video: how many.
    sampled_frames = 3
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
    side = 4
    # Whether a start token stands before a picture's and an end token after them.
    edged = False

    def own(self, part: str = "", **fields: Any) -> Any:
        """A configuration of the family's own: `own("Vision")` is an `InternVLVisionConfig`."""
        return make(self.model.rpartition("For")[0] + part + "Config", **fields)

    def config(self) -> Any:
        return self.own(vision_config=self.tower(), text_config=self.text(), **self.fields())

    def tower(self) -> Any:
        raise NotImplementedError

    def text(self) -> Any:
        return make("LlamaConfig", **text_fields())

    def fields(self) -> dict[str, Any]:
        """What the configuration has beside its tower's and its decoder's."""
        return {"image_token_id": IMAGE}

    def picture(self, wanted: Wanted) -> Arguments:
        """The arguments of one picture."""
        if wanted.video:
            return {"pixel_values_videos": wanted.squares(1, self.sampled_frames)}
        return {"pixel_values": wanted.squares(1)}

    def places(self, config: Any, arguments: Arguments) -> list[Places]:
        """The placeholders' places in order, as many lists as the arguments hold pictures."""
        return [grid(self.side, self.side) for _ in arguments.get("pixel_values", ())]

    def span(self, places: Places, video: bool) -> list[int]:
        """The token ids of one picture, with what the family writes around it."""
        ids = [VIDEO if video else IMAGE] * len(places)
        return [START, *ids, END] if self.edged else ids

    def finish(self, model: PreTrainedModel, sample: Arguments) -> None:
        """Add what depends on the whole prompt."""

    @property
    def model_class(self) -> Any:
        """The class named `model`, None where this transformers has not got it."""
        return getattr(transformers, self.model, None)

    def available(self) -> bool:
        if self.model_class is None or release() < self.since:
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
            model = self.model_class(config)
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
        wanted = Wanted(model.config, generator, images, video)

        def words(least: int) -> list[int]:
            count = wanted.integer(least, least + 3)
            return torch.randint(EOS + 1, SPECIAL, (count,), generator=generator).tolist()

        ids = [BOS, *words(2)]
        pictures = []
        for _ in range(images):
            picture = self.picture(wanted)
            pictures.append(picture)
            places = in_one(self.places(model.config, picture))
            ids += [*self.span(places, video), *words(2)]
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
                batch[name] = torch.cat([to_length(row, length, padding_side) for row in rows])
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


def release() -> int:
    """The major release of transformers."""
    return int(transformers.__version__.split(".")[0])


FAMILIES: dict[str, Family] = {}
_F = TypeVar("_F", bound=Family)


def family(name: str, model: str) -> Callable[[type[_F]], type[_F]]:
    """Register a family under its name, with the class of its model in transformers."""

    def register(cls: type[_F]) -> type[_F]:
        cls.name, cls.model = name, model
        if release() < 5:
            cls.limits = {**cls.limits, **cls.limits_of_4}
        FAMILIES[name] = cls()
        return cls

    return register
