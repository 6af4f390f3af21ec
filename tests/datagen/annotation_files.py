"""Annotation files in the published layouts, small and made up, with the pictures that they name."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.image_files import encode, photo


def write_picture(path: Path, width: int = 64, height: int = 48) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(photo(width, height), "JPEG"))


def write_json(path: Path, page: Any) -> Path:
    path.write_text(json.dumps(page), encoding="utf-8")
    return path


def write_lines(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return path


def coco_image(number: int, width: int = 64, height: int = 48, **changes: Any) -> dict[str, Any]:
    name = f"{number:012}.jpg"
    address = f"http://images.cocodataset.org/val2017/{name}"
    return {"id": number, "file_name": name, "width": width, "height": height, "coco_url": address, "license": 4} | changes


def coco_caption(number: int, image: int, caption: Any = "A dog on a lawn.") -> dict[str, Any]:
    return {"id": number, "image_id": image, "caption": caption}


def coco_box(number: int, image: int, bbox: Any = (16, 12, 32, 24), category: int = 18, **changes: Any) -> dict[str, Any]:
    polygon = [[510.66, 423.01, 511.72, 420.03]]
    row = {"segmentation": polygon, "area": 702.1, "iscrowd": 0, "id": number, "image_id": image, "bbox": bbox, "category_id": category}
    return row | changes


DOG = {"supercategory": "animal", "id": 18, "name": "dog"}


def coco_file(path: Path, images: list[Any], annotations: list[Any], categories: list[Any] | None = None) -> Path:
    """A file in COCO's own order of parts; a captions file has no categories."""
    page: dict[str, Any] = {"info": {"year": 2017}, "licenses": [{"id": 4}], "images": images, "annotations": annotations}
    return write_json(path, page if categories is None else page | {"categories": categories})
