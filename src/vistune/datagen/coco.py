"""COCO's published annotation files: captions_*.json and instances_*.json, any number of them together.

    {"images": [{"id": 37, "file_name": "000000000037.jpg", "width": 640, "height": 480}, ...],
     "annotations": [{"id": 1, "image_id": 37, "caption": "A dog."}, ...]                                        captions
                    [{"id": 1, "image_id": 37, "category_id": 18, "bbox": [left, top, width, height], ...}, ...]  instances
     "categories": [{"id": 18, "name": "dog"}, ...]}

Which file is which is read from its annotations. Regions that hold a crowd (`iscrowd`: 1) are left out: their box is around many things,
and would be counted as one. The files name an image's annotations anywhere, so all that is kept of them must be in memory before the first
picture goes out: about 0.2 KB a caption or box, 300 MB in all for both files of train2017 (benchmarks/data_engine.py).

Source: https://cocodataset.org/#format-data.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vistune.datagen.json_stream import json_items
from vistune.datagen.source_rows import (
    Pictures,
    Refusal,
    RejectedRow,
    Row,
    clean_text,
    fraction_box,
    numbers,
    size_of,
    whole,
)
from vistune.errors import DataError
from vistune.types import Box, ImageAnnotations

_BOX_FIELDS = 6  # id, category, left, top, width, height


@dataclass(slots=True)
class _Image:
    """What the files say about one image. Annotations may come before the image itself."""

    file: str = ""
    folder: str = ""
    """The folder of its published address (train2017), where whoever unpacks several archives beside each other finds it."""
    width: int = 0
    height: int = 0
    refused: bool = False
    captions: list[tuple[int, str]] = field(default_factory=list)
    boxes: array[float] = field(default_factory=lambda: array("d"))


def read_coco(files: Sequence[Path], pictures: Pictures) -> Iterator[Row]:
    """Reads COCO files; images come in the order in which the files list them."""
    images: dict[int, _Image] = {}
    categories: dict[int, str] = {}
    folders: dict[str, str] = {}
    for file in files:
        listed: set[int] = set()
        used = 0
        for key, item in json_items(file):
            if key not in ("images", "annotations", "categories"):
                continue
            row = f"{file.name}, {key} id {item.get('id')!a}" if isinstance(item, Mapping) else f"{file.name}, {key}"
            try:
                match key:
                    case "images":
                        _take_image(item, images, listed, folders)
                    case "categories":
                        categories[_id(item, "id")] = clean_text(item.get("name"), "name of a category")
                    case "annotations":
                        _take_annotation(item, images)
                        used += 1
            except Refusal as refusal:
                yield refusal.of("coco", row)
        if not (listed and used):
            raise DataError(
                f"{file} is not a COCO file of captions or instances: it holds {len(listed):,} usable 'images' and {used:,} usable "
                "'annotations' with a 'caption' or a 'bbox'. Give captions_*.json or instances_*.json as COCO publishes them."
            )
    while images:
        image_id = next(iter(images))
        yield from _finish(image_id, images.pop(image_id), categories, pictures)


def _take_image(item: Any, images: dict[int, _Image], listed: set[int], folders: dict[str, str]) -> None:
    image_id = _id(item, "id")
    if image_id in listed:
        raise Refusal("duplicate_id", "the file lists this image twice")
    listed.add(image_id)
    image = images.setdefault(image_id, _Image())
    image.refused = not image.file  # until its entry turns out to be good
    file, size = item.get("file_name"), size_of(item)
    if not isinstance(file, str) or not file or size is None:
        raise Refusal("bad_row" if size else "bad_size", "an image needs 'file_name', 'width' and 'height'")
    if image.file and (image.file, image.width, image.height) != (file, *size):
        raise Refusal("duplicate_id", f"the id belongs to {image.file!r} of {image.width}×{image.height} pixels in another file")
    address = item.get("coco_url")
    folder = address.rsplit("/", 2)[-2] if isinstance(address, str) and address.count("/") >= 2 else ""
    image.file, image.folder, (image.width, image.height), image.refused = file, folders.setdefault(folder, folder), size, False


def _take_annotation(item: Any, images: dict[int, _Image]) -> None:
    image_id, annotation_id = _id(item, "image_id"), _id(item, "id")
    if "caption" in item:
        caption = clean_text(item["caption"], "caption")
        images.setdefault(image_id, _Image()).captions.append((annotation_id, caption))
    elif "bbox" in item:
        if item.get("iscrowd") == 1:
            return
        box = numbers(item["bbox"], 4, "the bbox")
        images.setdefault(image_id, _Image()).boxes.extend((annotation_id, _id(item, "category_id"), *box))
    else:
        raise Refusal("bad_row", "an annotation needs a 'caption' or a 'bbox'")


def _finish(image_id: int, image: _Image, categories: Mapping[int, str], pictures: Pictures) -> Iterator[Row]:
    """One image with all that belongs to it, after the files that may say something about it."""
    where = f"image {image_id}"
    if image.refused:
        return
    if not image.file:
        for kind, count in (("captions", len(image.captions)), ("boxes", len(image.boxes) // _BOX_FIELDS)):
            for _ in range(count):
                yield RejectedRow("coco", where, "unknown_image", f"{where}: {count} {kind} name it, but no file lists such an image.")
        return
    captions: dict[int, str] = {}
    for annotation_id, caption in image.captions:
        if annotation_id in captions:
            yield _twice(where, "caption", annotation_id)
        captions.setdefault(annotation_id, caption)
    boxes: dict[int, Box] = {}
    for start in range(0, len(image.boxes), _BOX_FIELDS):
        annotation_id, category, left, top, width, height = image.boxes[start : start + _BOX_FIELDS]
        if annotation_id in boxes:
            yield _twice(where, "box", int(annotation_id))
            continue
        try:
            if category not in categories:
                raise Refusal("unknown_category", f"category {category:g} of box {annotation_id:.0f} is in no file")
            corners = (left, top, left + width, top + height)
            boxes[int(annotation_id)] = fraction_box(categories[int(category)], corners, image.width, image.height)
        except Refusal as refusal:
            yield refusal.of("coco", f"{where}, annotation {annotation_id:.0f}")
    try:
        if not captions and not boxes:
            raise Refusal("no_annotations", f"{image.file!r} has neither a caption nor a box")
        names = [image.file, f"{image.folder}/{image.file}"] if image.folder else [image.file]
        name, width, height = pictures.find(names, (image.width, image.height))
    except Refusal as refusal:
        yield refusal.of("coco", where)
        return
    yield ImageAnnotations(name, width, height, tuple(captions.values()), tuple(boxes.values()), "coco")


def _twice(where: str, what: str, annotation_id: int) -> RejectedRow:
    return RejectedRow("coco", where, "duplicate_id", f"{where}: {what} {annotation_id} is there twice; the first is kept.")


def _id(item: Any, name: str) -> int:
    if not isinstance(item, Mapping) or not whole(item.get(name)):
        raise Refusal("bad_row", f"{name!r} must be a whole number")
    return item[name]
