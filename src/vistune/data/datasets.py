"""DATASETS: the instruction data that recipes name, where each lies under a data root, and under which licence. No torch here.

A dataset that is in no table is simply a file: `data.dataset=my_rows.json data.images=my_pictures`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vistune.errors import DataError, UnknownName
from vistune.formats import confined_name
from vistune.types import Box, ImageAnnotations


@dataclass(frozen=True)
class DatasetSpec:
    """A published dataset: its file and image folder relative to the data root, rows as published, where it is, and its licence."""

    file: str
    images: str
    rows: int | None
    address: str
    licence: str


_DRAWN = "vistune data scenes"
_SPRITES = "that of each sprite, in assets/sprites/LICENCES.md"
_HUB = "https://huggingface.co/datasets/liuhaotian"

DATASETS: dict[str, DatasetSpec] = {
    "llava_cc3m_595k": DatasetSpec("chat.json", "images", 595_375, f"{_HUB}/LLaVA-CC3M-Pretrain-595K", "CC3M's terms"),
    "llava_pretrain_558k": DatasetSpec(
        "blip_laion_cc_sbu_558k.json", "images", 558_128, f"{_HUB}/LLaVA-Pretrain", "terms of LAION, CC3M and SBU; BLIP captions"
    ),
    "llava_instruct_80k": DatasetSpec(
        "llava_instruct_80k.json", "coco/train2017", 80_000, f"{_HUB}/LLaVA-Instruct-150K", "CC BY 4.0, OpenAI's terms"
    ),
    "llava_instruct_158k": DatasetSpec(
        "llava_instruct_150k.json", "coco/train2017", 157_712, f"{_HUB}/LLaVA-Instruct-150K", "CC BY 4.0, OpenAI's terms"
    ),
    "llava_v1_5_mix665k": DatasetSpec(
        "llava_v1_5_mix665k.json", ".", 665_298, f"{_HUB}/LLaVA-Instruct-150K", "CC BY 4.0, OpenAI's terms, and those of each image set"
    ),
    "llava_next_779k": DatasetSpec(
        "llava_next_raw_format_processed.json",
        ".",
        779_289,
        "https://huggingface.co/datasets/lmms-lab/LLaVA-NeXT-Data",
        "OpenAI's terms, and those of each image set",
    ),
    "scienceqa_qcm_lea": DatasetSpec(
        "scienceqa/llava_train_QCM-LEA.json", "scienceqa/images/train", 12_726, "https://github.com/lupantech/ScienceQA", "CC BY-NC-SA 4.0"
    ),
    "scenes_align": DatasetSpec("scenes/align.jsonl", "scenes", None, _DRAWN, _SPRITES),
    "scenes_captions": DatasetSpec("scenes/captions.json", "scenes", None, _DRAWN, _SPRITES),
    "scenes_instruct": DatasetSpec("scenes/instruct.json", "scenes", None, _DRAWN, _SPRITES),
}


@dataclass(frozen=True)
class DataFiles:
    """A dataset found on this machine."""

    rows: Path
    images: Path
    """A folder of pictures, a folder of tars, or one tar (see `data/shards.py`)."""


def locate(dataset: str, *, root: Path, images: str = "") -> DataFiles:
    """Finds a dataset's files: a key of DATASETS, or a data file, both under `root` (an absolute path stands for itself).

    Raises UnknownName when it is neither, and DataError when a known dataset's file or the images are not there.
    """
    spec = DATASETS.get(dataset)
    rows = root / (spec.file if spec else dataset)
    if not rows.is_file():
        if spec is None:
            raise UnknownName("dataset or data file", str(rows), DATASETS)
        raise DataError(f"Dataset {dataset!r} should lie at {rows}. Fetch it from {spec.address}, or set data.root to the folder it is in.")
    folder = root / images if images else root / spec.images if spec else rows.parent
    if not folder.is_dir() and not (folder.suffix == ".tar" and folder.is_file()):
        raise DataError(
            f"There is no image folder {folder} for {rows}. Set data.images to the folder that the rows' picture names start from, or to a "
            ".tar of it."
        )
    return DataFiles(rows, folder)


def annotations_from(row: Any, *, where: str) -> ImageAnnotations:
    """An annotated image from its JSON: `{"image", "width", "height", "captions": [...], "boxes": [{"label", "xyxy"}], "source"}`.

    Raises DataError that says `where`.
    """
    try:
        return ImageAnnotations(
            image=confined_name(row["image"]),
            width=int(row["width"]),
            height=int(row["height"]),
            captions=tuple(str(caption) for caption in row.get("captions", ())),
            boxes=tuple(_box(box) for box in row.get("boxes", ())),
            source=str(row.get("source", "")),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{where} is not an annotated image ({type(error).__name__}: {error}).") from error


def _box(box: Any) -> Box:
    left, top, right, bottom = (float(edge) for edge in box["xyxy"])
    if not (0 <= left <= right <= 1 and 0 <= top <= bottom <= 1):
        raise ValueError(f"box {box['xyxy']} is not (left, top, right, bottom) in fractions of the picture")
    return Box(str(box["label"]), (left, top, right, bottom))
