"""The work that the training benchmark compares: models of published shapes with random weights, and data of published lengths.

Everything is made here from seeds; nothing is downloaded. Weights are random, since speed does not depend on them; the tokenizer is a small
BPE trained on this repository's own text, its embedding table filled up to the vocabulary of the shape; pictures are drawn noise in JPEG.
Lengths follow the mixture of LLaVA-1.5's stage 2: twelve sub-sets, their means from the sizes of the published files.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from PIL import Image, ImageFilter

REPOSITORY = Path(__file__).resolve().parents[2]
IMAGE_TOKEN = "<image>"
PICTURE_SIZE, PICTURE_QUALITY = (640, 480), 85
SEED = 5
Stage = Literal["stage1", "stage2", "lora"]
Item = TypeVar("Item")

# --- the models ---

_SMOL = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49_152,
    "max_position_embeddings": 8192,
    "rope_theta": 100_000.0,
    "tie_word_embeddings": True,
}
_VICUNA_7B = _SMOL | {"hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32, "num_attention_heads": 32}
_VICUNA_7B |= {"num_key_value_heads": 32, "vocab_size": 32_000, "rope_theta": 10_000.0, "tie_word_embeddings": False}
_SMALL = _SMOL | {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3, "vocab_size": 1536}
_SMALL |= {"num_key_value_heads": 1}


def _tower(kind: str, pixels: int, patch: int, width: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": f"{kind}_vision_model",
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "image_size": pixels,
        "patch_size": patch,
    }


SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "smol224": (_SMOL, _tower("siglip", 224, 16, 768, 12, 12)),  # SmolLM2-135M, SigLIP-B/16-224: 196 tokens a picture
    "smol336": (_SMOL, _tower("clip", 336, 14, 1024, 24, 16)),  # SmolLM2-135M, CLIP-L/14-336: 576 tokens, LLaVA-1.5's topology
    "large336": (_VICUNA_7B, _tower("clip", 336, 14, 1024, 24, 16)),  # LLaVA-1.5-7B
    "small224": (_SMALL, _tower("siglip", 64, 16, 32, 3, 2)),
    "small336": (_SMALL, _tower("clip", 56, 14, 32, 4, 2)),
}
"""(language model, vision tower). The small ones are for the equality gate and for a smoke test."""


def model_config(shape: str) -> Any:
    """vistune's ModelConfig of a shape. Pictures are cropped to the square: what every peer's stock processor does."""
    from vistune.model.backbones import vision_tower_spec
    from vistune.model.config import ModelConfig

    text, tower = SHAPES[shape]
    kind = tower["model_type"].split("_")[0]
    spec = vision_tower_spec(kind)
    return ModelConfig(
        vision_tower=kind,
        vision_config=tower,
        text_config=text,
        feature_select="patch" if spec.has_cls else "full",
        image=replace(spec.image, size=tower["image_size"], mode="square"),
        image_token=IMAGE_TOKEN,
        image_token_id=3,
    )


def model_folder(shape: str, root: Path) -> Path:
    """A Hugging Face LLaVA folder of this shape, written once: vistune and the peers load the very same file. In fp32; 7B in bf16."""
    folder = root / shape / "model"
    if folder.is_dir():
        return folder
    import torch

    from vistune.checkpoint.folder import save_model
    from vistune.model.llava import Llava
    from vistune.model.processor import Processor

    config = model_config(shape)
    folder.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    model = Llava(config)
    if shape.startswith("large"):
        model.to(torch.bfloat16)
    save_model(model, Processor(_tokenizer(min(8192, config.text_config["vocab_size"])), config), folder)
    return folder


def _tokenizer(vocabulary: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>", IMAGE_TOKEN, "<pad>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(_repository_text(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>")


@cache
def _repository_text() -> tuple[str, ...]:
    files = sorted([*(REPOSITORY / "src").rglob("*.py"), *(REPOSITORY / "docs").rglob("*.md")])
    return tuple(file.read_text(encoding="utf-8") for file in files)


# --- the lengths ---


@dataclass(frozen=True)
class Subset:
    """A part of llava_v1_5_mix665k: thousands of rows, tokens of text (mean and sigma of a lognormal), and whether a picture is shown."""

    name: str
    thousands: int
    mean: float
    sigma: float
    picture: bool = True


MIXTURE = (
    Subset("conversation", 58, 380, 0.35),
    Subset("detail", 23, 190, 0.25),
    Subset("complex reasoning", 77, 220, 0.25),
    Subset("ShareGPT", 40, 1300, 0.70, picture=False),
    Subset("VQAv2", 83, 150, 0.25),
    Subset("GQA", 72, 330, 0.45),
    Subset("OCR-VQA", 80, 170, 0.20),
    Subset("A-OKVQA", 66, 110, 0.20),
    Subset("TextCaps", 22, 140, 0.30),
    Subset("RefCOCO", 48, 290, 0.50),
    Subset("Visual Genome", 86, 390, 0.30),
    Subset("OK-VQA", 9, 65, 0.15),
)
LONGEST = 2048
CAPTION_MEDIAN, CAPTION_SIGMA = 16, 0.3


@dataclass(frozen=True)
class Length:
    """One row to be: tokens of text, the system prompt's included, and whether it shows a picture."""

    text: int
    picture: bool

    def total(self, per_picture: int) -> int:
        return self.text + self.picture * per_picture


def drawn_lengths(stage: Stage, count: int, per_picture: int, seed: int, scale: float = 1.0) -> list[Length]:
    """`count` rows of stage 2's mixture, or of stage 1's captions. `scale` shortens the text, for small models."""
    rng = random.Random(f"{stage}/{seed}")
    if stage == "stage1":
        return [Length(max(4, round(CAPTION_MEDIAN * math.exp(CAPTION_SIGMA * rng.gauss(0, 1)))), True) for _ in range(count)]
    rows = []
    for subset in rng.choices(MIXTURE, [each.thousands for each in MIXTURE], k=count):
        drawn = subset.mean * math.exp(subset.sigma * rng.gauss(0, 1) - subset.sigma**2 / 2)
        rows.append(Length(min(round(scale * drawn), LONGEST - subset.picture * per_picture), subset.picture))
    return rows


def batches_of(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def padding(totals: Sequence[int], batch: int) -> float:
    """Tokens of batches padded to their longest, over real tokens."""
    return sum(max(part) * len(part) for part in batches_of(totals, batch)) / sum(totals)


def typical_rows(stage: Stage, per_picture: int, *, batch: int, warm: int, timed: int, scale: float = 1.0) -> list[Length]:
    """Rows whose timed part has the mixture's own mean length and padding, as nearly as 400 draws find them.

    A few batches drawn blindly would say more about the luck of the draw than about a trainer: one row in twenty is three times as long.
    Draws with a row over twice the mean are left out: padded to it, a batch of eight in fp32 would not fit into 24 GB at some peers.
    """
    expected = [each.total(per_picture) for each in drawn_lengths(stage, 20_000, per_picture, 0, scale)]
    mean, padded = sum(expected) / len(expected), padding(expected, batch)

    def distance(rows: Sequence[Length]) -> float:
        totals = [each.total(per_picture) for each in rows[warm * batch :]]
        return abs(sum(totals) / len(totals) / mean - 1) + abs(padding(totals, batch) / padded - 1)

    draws = (drawn_lengths(stage, (warm + timed) * batch, per_picture, seed, scale) for seed in range(1, 2001))
    fitting = (rows for rows in draws if max(each.total(per_picture) for each in rows) <= 2 * mean)
    return min(fitting, key=distance)


def grouped_rows(per_picture: int, *, batch: int, warm: int, timed: int, scale: float = 1.0) -> list[Length]:
    """Batches as transformers' LengthGroupedSampler makes them of 50 batches' rows; of these, the ones most like all of them together."""
    from transformers.trainer_pt_utils import get_length_grouped_indices

    rows = drawn_lengths("stage2", 50 * batch, per_picture, 1, scale)
    totals = [each.total(per_picture) for each in rows]
    import torch

    order = get_length_grouped_indices(totals, batch, generator=torch.Generator().manual_seed(SEED))
    batches = [[rows[place] for place in part] for part in batches_of(order, batch)]
    mean, padded = sum(totals) / len(totals), padding([totals[place] for place in order], batch)

    def distance(chosen: Sequence[Sequence[Length]]) -> float:
        found = [each.total(per_picture) for part in chosen for each in part]
        return abs(sum(found) / len(found) / mean - 1) + abs(padding(found, batch) / padded - 1)

    step = max(1, len(batches) // 25)  # all pairs of fifty are 1,225, all triples of 25 are 2,300
    best = min(itertools.combinations(batches[::step] if timed > 2 else batches, timed), key=distance)
    warming = [batches[len(batches) // 2 + each] for each in range(warm)]
    return [row for part in (*warming, *best) for row in part]


# --- the rows ---


def write_rows(stage: Stage, lengths: Sequence[Length], tokenizer: Any, folder: Path, places: Sequence[int]) -> Path:
    """`rows.json` in LLaVA's format and its pictures; row k of `lengths` goes to place `places[k]` of the file.

    The trainer shuffles; with the places of its own order, its first steps see the rows in the order of `lengths`.
    """
    words = _words(tokenizer)
    rows: list[dict[str, Any]] = [{} for _ in lengths]
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for number, (length, place) in enumerate(zip(lengths, places, strict=True)):
        row: dict[str, Any] = {"id": f"row-{number}"}
        if length.picture:
            row["image"] = f"{number}.jpg"
            draw_picture(number).save(folder / "pictures" / row["image"], quality=PICTURE_QUALITY)
        row["conversations"] = _turns(stage, length, words)
        rows[place] = row
    file = folder / "rows.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    return file


def _words(tokenizer: Any) -> Iterator[tuple[str, int]]:
    """Words of the repository, over and over, with the tokens each takes after a blank."""
    words = [word for word in " ".join(_repository_text()).split() if word.isalpha() and word.isascii()]
    counts = {word: len(tokenizer(f" {word}", add_special_tokens=False).input_ids) for word in set(words)}
    return ((word, counts[word]) for word in itertools.cycle(words))


def _turns(stage: Stage, length: Length, words: Iterator[tuple[str, int]]) -> list[dict[str, str]]:
    """Questions and answers of about `length.text` tokens, of which some 55 % are answers; one caption in stage 1."""
    if stage == "stage1":
        return [{"from": "human", "value": f"Describe.\n{IMAGE_TOKEN}"}, {"from": "gpt", "value": _said(length.text - 1, words)}]
    system, around = 40, 5  # the words of the template, once and for each turn
    pairs = max(1, min(8, length.text // 90))
    each = max(8.0, (length.text - system) / pairs - around)
    turns = []
    for number in range(pairs):
        marker = f"{IMAGE_TOKEN}\n" if length.picture and number == 0 else ""
        turns.append({"from": "human", "value": marker + _said(round(0.36 * each), words)})
        turns.append({"from": "gpt", "value": _said(round(0.64 * each), words)})
    return turns


def _said(tokens: int, words: Iterator[tuple[str, int]]) -> str:
    said, count = [], 0
    while count < max(2, tokens):
        word, size = next(words)
        said.append(word)
        count += size
    return " ".join(said)


def draw_picture(number: int) -> Image.Image:
    """A picture with the detail of a photograph: noise at several scales. About 100 kB as JPEG."""
    rng = np.random.default_rng(number)
    width, height = PICTURE_SIZE
    layers = []
    for cell, weight in ((64, 0.5), (16, 0.3), (4, 0.15), (1, 0.05)):
        noise = rng.integers(0, 256, (height // cell, width // cell, 3), dtype=np.uint8)
        layers.append(weight * np.asarray(Image.fromarray(noise).resize(PICTURE_SIZE, Image.Resampling.BICUBIC), dtype=np.float32))
    return Image.fromarray(sum(layers).clip(0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.5))  # type: ignore[union-attr]
