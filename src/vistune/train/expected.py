"""The model and the rows that a run will meet, as far as they can be known before anything is loaded. No torch here.

Each answer says where it is from: a model's own configuration or the published one; rows that were checked, rows that lie here, or the
published counts and mean lengths of a mixture (its sub-sets as lognormal distributions, each mean within about 20 %).
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

from vistune.data.datasets import DATASETS, locate
from vistune.data.validate import Manifest
from vistune.errors import CheckpointError, DataError, UnknownName, UsageError
from vistune.formats import example_from_row, read_rows
from vistune.model.backbones import VISION_TOWERS, tokens_per_view
from vistune.model.config import ImageConfig, ModelConfig
from vistune.pull import ASSISTANT, BUNDLED, PULLABLE, pulled
from vistune.train.config import ModelChoice, TrainConfig
from vistune.train.limits import SampleSize
from vistune.train.shapes import PUBLISHED_LANGUAGE_MODELS, PUBLISHED_TOWERS
from vistune.types import InstructionExample

ALIGNED_WORDS = 1000
"""Words of a `grid_mlp` projector where no folder says how many it was aligned with."""


# --- the model ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExpectedModel:
    config: ModelConfig
    source: str


def expected_model(choice: ModelChoice) -> ExpectedModel:
    """The model that `choice` will start from: a folder on this machine, else its backbones, here or as published.

    Raises UnknownName for backbones that are neither here nor in the tables of `shapes.py`.
    """
    folder = _folder_of(choice.init_from)
    values = _json_of(folder, "config.json") if folder else None
    if folder and values and "text_config" in values:
        return ExpectedModel(_of_folder(values, _json_of(folder, "vistune.json") or {}, choice), f"the folder {folder}")
    if not (choice.language_model and choice.vision_tower):
        raise UsageError(
            f"A plan needs to know the model, and {choice.init_from or 'no model'} is not on this machine. Name what it is made of: "
            "model.language_model=... model.vision_tower=..."
        )
    text, text_source = _backbone(choice.language_model, PUBLISHED_LANGUAGE_MODELS, "language model")
    (tower, vision), tower_source = _tower(choice.vision_tower)
    config = _config(choice, tower=tower, vision=vision, text=text, words=ALIGNED_WORDS if choice.projector == "grid_mlp" else 0)
    return ExpectedModel(config, f"{choice.language_model} ({text_source}), {choice.vision_tower} ({tower_source})")


def _config(choice: ModelChoice, *, tower: str, vision: Mapping[str, Any], text: Mapping[str, Any], words: int) -> ModelConfig:
    spec = VISION_TOWERS[tower]
    size = int(vision.get("image_size", spec.config_defaults.get("image_size", spec.image.size)))
    return ModelConfig(
        vision_tower=tower,
        vision_config=vision,
        text_config=text,
        projector=choice.projector,
        visual_words=words,
        feature_select="patch" if spec.has_cls else "full",
        image=ImageConfig(size=size, mode=choice.image_mode),
        image_newline=choice.image_mode == "anyres",
        template=choice.template,
        max_length=min(choice.max_length, int(text.get("max_position_embeddings", choice.max_length))),
    )


def _of_folder(values: Mapping[str, Any], settings: Mapping[str, Any], choice: ModelChoice) -> ModelConfig:
    """Of a LLaVA folder, ours or the hub's. What a hub folder leaves out is what transformers assumes: Llama 7B, CLIP."""
    vision, text = dict(values.get("vision_config") or {}), {**_LLAMA_DEFAULTS, **values["text_config"]}
    ours = settings.get("model", {})
    kind = str(vision.get("model_type", ""))
    tower = ours.get("vision_tower") or ("siglip" if kind.startswith("siglip") else "clip" if kind else "efficientnet_lite0")
    config = _config(choice, tower=tower, vision=vision, text=text, words=int(ours.get("visual_words", 0)))
    return replace(
        config,
        projector=ours.get("projector", "mlp2x_gelu"),
        feature_layer=int(ours.get("feature_layer", values.get("vision_feature_layer", -2))),
        image=replace(config.image, size=int(settings.get("image", {}).get("size", config.image.size))),
    )


_LLAMA_DEFAULTS = PUBLISHED_LANGUAGE_MODELS["lmsys/vicuna-7b-v1.5"]


def _backbone(name: str, published: Mapping[str, dict[str, Any]], what: str) -> tuple[dict[str, Any], str]:
    folder = _folder_of(name)
    if folder and (values := _json_of(folder, "config.json")):
        return values, "its own configuration"
    if name in published:
        return published[name], "published shape"
    raise UnknownName(f"{what} on this machine or among the published shapes", name, published)


def _tower(name: str) -> tuple[tuple[str, Mapping[str, Any]], str]:
    folder = _folder_of(name)
    values = _json_of(folder, "config.json") if folder else None
    if values:
        values = {"model_type": f"{values.get('model_type')}_vision_model", **values.get("vision_config", values)}
        return ("siglip" if str(values["model_type"]).startswith("siglip") else "clip", values), "its own configuration"
    if name in PUBLISHED_TOWERS:
        return PUBLISHED_TOWERS[name], "published shape"
    raise UnknownName("vision tower on this machine or among the published shapes", name, PUBLISHED_TOWERS)


def _folder_of(name: str) -> Path | None:
    """Where a name lies on this machine already; nothing is fetched."""
    if name == ASSISTANT:
        return BUNDLED if BUNDLED.is_dir() else None
    if name in PULLABLE:
        return pulled(name)
    folder = Path(name).expanduser()
    return folder if name and folder.is_dir() else None


def _json_of(folder: Path, name: str) -> dict[str, Any] | None:
    path = folder / name
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error}); fetch or write the folder again.") from error
    return values if isinstance(values, dict) else None


# --- the rows -------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExpectedRows:
    """How many rows a run learns from, and a few hundred that stand for all of them, in mixed order."""

    rows: int
    sizes: tuple[SampleSize, ...]
    source: str


TAUGHT = 0.55
"""The share of a conversation's text tokens that is learned."""


@dataclass(frozen=True)
class Subset:
    """A part of a mixture: rows in thousands, and the text tokens of a row (system text counted) as a lognormal distribution."""

    thousands: float
    mean: float
    sigma: float
    pictures: bool = True
    supervised: float = TAUGHT


_CAPTIONS = (Subset(1, 16, 0.3, supervised=0.95),)
_CONVERSATION, _DETAIL, _REASONING = Subset(58, 380, 0.35), Subset(23, 190, 0.25), Subset(77, 220, 0.25)
_MIX665K = (
    _CONVERSATION,
    _DETAIL,
    _REASONING,
    Subset(40, 1300, 0.7, pictures=False),  # ShareGPT
    Subset(83, 150, 0.25),  # VQAv2
    Subset(72, 330, 0.45),  # GQA
    Subset(80, 170, 0.2),  # OCR-VQA
    Subset(66, 110, 0.2),  # A-OKVQA
    Subset(22, 140, 0.3),  # TextCaps
    Subset(48, 290, 0.5),  # RefCOCO
    Subset(86, 390, 0.3),  # Visual Genome
    Subset(9, 65, 0.15),  # OK-VQA
)
MIXTURES: dict[str, tuple[Subset, ...]] = {
    "llava_cc3m_595k": _CAPTIONS,
    "llava_pretrain_558k": _CAPTIONS,
    "llava_instruct_80k": (replace(_CONVERSATION, thousands=40), replace(_REASONING, thousands=40)),
    "llava_instruct_158k": (_CONVERSATION, _DETAIL, _REASONING),
    "llava_v1_5_mix665k": _MIX665K,
    "llava_next_779k": _MIX665K,
    "scienceqa_qcm_lea": (Subset(6.2, 260, 0.45), Subset(6.5, 260, 0.45, pictures=False)),
}

REPRESENTATIVES = 512
CHARACTERS_PER_TOKEN = 4.2
"""Of English, in a vocabulary of 32,000 to 50,000."""
_MARKUP, _SYSTEM = 6, 40
"""Tokens around a message, and of a template's system text."""
_ANYRES_VIEWS, _ANYRES_SHARE = 5, 4.06
"""A photograph of four to three in four tiles beside the whole, its padding cut off: so many views, and so many views' tokens."""


def expected_rows(config: TrainConfig, model: ModelConfig, *, rows: int | None = None) -> ExpectedRows:
    """What `config.data` will bring: rows checked by an earlier call, else the data file, else published numbers.

    Args:
        rows: take so many rows, whatever there is, of the lengths that are found.

    Raises UsageError where nothing is known of the data and `rows` is not given.
    """
    found = _checked(config, model) or _lying_here(config, model) or _published(config, model, rows)
    if config.objective == "align":
        visual = _visual(config, model)
        found = replace(found, sizes=(SampleSize(visual[0], 0, *visual),))
    return found if rows is None else replace(found, rows=rows, source=f"{rows:,} rows asked for, lengths of {found.source}")


def _visual(config: TrainConfig, model: ModelConfig) -> tuple[int, int]:
    """(tokens, views) of a picture."""
    per_view = tokens_per_view(model)
    return (round(_ANYRES_SHARE * per_view), _ANYRES_VIEWS) if config.model.image_mode == "anyres" else (per_view, 1)


def _checked(config: TrainConfig, model: ModelConfig) -> ExpectedRows | None:
    manifest = Manifest.read(Path(config.output) / "data.json")
    if manifest is None or not len(manifest.table):
        return None
    sizes = []
    for row in _some(manifest.table):
        tokens, views = int(row["tokens"]), int(row["images"])
        seen = min(tokens - 2, round(_visual(config, model)[0] * views / _visual(config, model)[1]))
        sizes.append(SampleSize(tokens, max(1, round(TAUGHT * (tokens - seen))), seen, views))
    return ExpectedRows(len(manifest.table) - config.data.validation_rows, tuple(sizes), f"{config.output}/data.json, checked before")


def _lying_here(config: TrainConfig, model: ModelConfig) -> ExpectedRows | None:
    try:
        files = locate(config.data.dataset, root=Path(config.data.root), images=config.data.images)
    except (DataError, UnknownName):
        return None
    rows = list(read_rows(files.rows))
    if not rows:
        return None
    if config.objective == "align":
        return ExpectedRows(len(rows) - config.data.validation_rows, (), str(files.rows))
    sizes: list[SampleSize] = []
    for row in _some(rows):
        try:
            example = example_from_row(row, files.images, image_place=config.data.image_place)
        except DataError:  # the check before training will say which rows and why
            continue
        sizes.append(_measured(example, config, model))
    if not sizes:
        return None
    return ExpectedRows(len(rows) - config.data.validation_rows, tuple(sizes), f"{files.rows}, tokens by its characters")


def _measured(example: InstructionExample, config: TrainConfig, model: ModelConfig) -> SampleSize:
    visual, views = _visual(config, model)
    pictures, messages = len(example.conversation.images), example.conversation.messages
    spoken = sum(len(message.text) for message in messages if message.role == "assistant") / CHARACTERS_PER_TOKEN
    text = sum(len(message.text) for message in messages) / CHARACTERS_PER_TOKEN + _MARKUP * len(messages)
    text += 0 if config.model.template == "plain" else _SYSTEM
    return SampleSize(round(text) + pictures * visual, max(1, round(spoken)), pictures * visual, pictures * views)


def _published(config: TrainConfig, model: ModelConfig, rows: int | None) -> ExpectedRows:
    spec, mixture = DATASETS.get(config.data.dataset), MIXTURES.get(config.data.dataset)
    known = spec.rows if spec else None
    if mixture is None or (known is None and rows is None):
        if rows is None:
            raise UsageError(
                f"{config.data.dataset} is neither under {config.data.root} nor among the published data sets, so nobody knows how many "
                "rows it has. Make or fetch it, set data.root, or say how many: --images N."
            )
        mixture = mixture or (_CAPTIONS if config.model.template == "plain" else _MIX665K)
        return ExpectedRows(rows, _representatives(mixture, config, model), "published mixtures")
    count = known or rows or 0
    return ExpectedRows(count, _representatives(mixture, config, model), f"{config.data.dataset}, published counts and mean lengths")


def _representatives(mixture: Sequence[Subset], config: TrainConfig, model: ModelConfig) -> tuple[SampleSize, ...]:
    """Rows at even quantiles of each sub-set, as many as is its share, mixed."""
    total = sum(subset.thousands for subset in mixture)
    visual, views = _visual(config, model)
    longest = model.max_length
    sizes: list[SampleSize] = []
    for subset in mixture:
        count = max(1, round(REPRESENTATIVES * subset.thousands / total))
        seen, looks = (visual, views) if subset.pictures else (0, 0)
        middle = math.log(subset.mean) - subset.sigma**2 / 2
        for number in range(count):
            text = round(math.exp(NormalDist(middle, subset.sigma).inv_cdf((number + 0.5) / count)))
            text = max(2, min(text, longest - seen))
            sizes.append(SampleSize(text + seen, max(1, round(subset.supervised * text)), seen, looks))
    random.Random(0).shuffle(sizes)
    return tuple(sizes)


def _some(rows: Any) -> list[Any]:
    """At most a few hundred, evenly from all, in mixed order."""
    step = max(1, len(rows) // REPRESENTATIVES)
    chosen = list(rows[::step])
    random.Random(0).shuffle(chosen)
    return chosen
