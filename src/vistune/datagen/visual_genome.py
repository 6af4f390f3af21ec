"""Visual Genome as published: region_descriptions.json, objects.json and image_data.json, the last two optional.

    region_descriptions.json  [{"id": 1, "regions": [{"region_id": 1382, "phrase": "a clock on the pole", "x": .., ...}, ...]}, ...]
    objects.json              [{"image_id": 1, "objects": [{"object_id": 1058498, "names": ["clock"], "x": 421, "y": 91, "w": 79, "h": 339},
                              ...]}, ...]
    image_data.json           [{"image_id": 1, "url": "https://.../VG_100K_2/1.jpg", "width": 800, "height": 600}, ...]

Region phrases become captions, objects become boxes. Which file is which is read from its first row. Both large files are in the order of
the image ids, so they are read side by side; an image waits in memory only until the other file has reached it too.

Source: https://homes.cs.washington.edu/~ranjay/visualgenome/api.html.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vistune.datagen.json_stream import json_items
from vistune.datagen.source_rows import Pictures, Refusal, RejectedRow, Row, clean_text, fraction_box, numbers, size_of, whole
from vistune.errors import DataError
from vistune.types import Box, ImageAnnotations

_ARCHIVES = ("VG_100K", "VG_100K_2")
"""The folders in the two published archives of pictures."""


@dataclass(frozen=True)
class _Known:
    """An image as image_data.json lists it."""

    address: str
    size: tuple[int, int] | None


def read_visual_genome(files: Sequence[Path], pictures: Pictures) -> Iterator[Row]:
    """Reads Visual Genome's files; images come in the order of the files."""
    kinds: dict[str, Path] = {}
    for file in files:
        kind = _kind_of(file)
        if kind in kinds:
            raise DataError(f"{kinds[kind]} and {file} both hold {kind}; give one of them.")
        kinds[kind] = file
    if kinds.keys() <= {"images"}:
        raise DataError("Visual Genome needs region_descriptions.json or objects.json; image_data.json alone says nothing about a picture.")
    images: dict[int, _Known] | None = None
    if "images" in kinds:
        images = {}
        yield from _read_images(kinds["images"], images)
    for found in _side_by_side(kinds.get("regions"), kinds.get("objects")):
        if isinstance(found, RejectedRow):
            yield found
        else:
            yield from _finish(found, images, pictures)


def _kind_of(file: Path) -> str:
    first = next(json_items(file), ("", None))[1]
    if isinstance(first, Mapping):
        for kind, field in (("regions", "regions"), ("objects", "objects"), ("images", "url")):
            if field in first:
                return kind
    raise DataError(
        f"{file} is not one of Visual Genome's files: its first row has neither 'regions', 'objects' nor 'url'. Give "
        "region_descriptions.json, objects.json or image_data.json."
    )


def _read_images(file: Path, images: dict[int, _Known]) -> Iterator[RejectedRow]:
    for number, (_, item) in enumerate(json_items(file)):
        try:
            image_id = _image_id(item)
            if image_id in images:
                raise Refusal("duplicate_id", "the file lists this image twice")
            address = item.get("url")
            images[image_id] = _Known(address if isinstance(address, str) else "", size_of(item))
        except Refusal as refusal:
            yield refusal.of("visual_genome", f"{file.name}, row {number}")


@dataclass
class _Joined:
    """An image's rows in the two large files; None where a file has none."""

    image_id: int
    rows: list[list[Any] | None]
    """Regions, objects."""


def _side_by_side(regions: Path | None, objects: Path | None) -> Iterator[_Joined | RejectedRow]:
    """Joins the two files by image id, reading one row of each in turn."""
    waiting: dict[int, _Joined] = {}
    streams = {place: _rows(file, field) for place, (file, field) in enumerate(((regions, "regions"), (objects, "objects"))) if file}
    seen: dict[int, set[int]] = {place: set() for place in streams}
    while streams:
        for place in tuple(streams):
            found = next(streams[place], None)
            if found is None:
                del streams[place]
                continue
            if isinstance(found, RejectedRow):
                yield found
                continue
            where, image_id, rows = found
            if image_id in seen[place]:
                yield RejectedRow("visual_genome", where, "duplicate_id", f"{where}: image {image_id} is there twice; the first is kept.")
                continue
            seen[place].add(image_id)
            joined = waiting.setdefault(image_id, _Joined(image_id, [None, None]))
            joined.rows[place] = rows
            # Nothing more can come from a file that has told of this image, or that has ended.
            if all(image_id in seen[other] for other in streams):
                yield waiting.pop(image_id)
    yield from waiting.values()


def _rows(file: Path, field: str) -> Iterator[tuple[str, int, list[Any]] | RejectedRow]:
    for number, (_, item) in enumerate(json_items(file)):
        where = f"{file.name}, row {number}"
        try:
            image_id, rows = _image_id(item), item.get(field)
            if not isinstance(rows, list):
                raise Refusal("bad_row", f"{field!r} must be a list")
        except Refusal as refusal:
            yield refusal.of("visual_genome", where)
            continue
        yield where, image_id, rows


def _finish(joined: _Joined, images: Mapping[int, _Known] | None, pictures: Pictures) -> Iterator[Row]:
    image_id, (regions, objects) = joined.image_id, joined.rows
    where = f"image {image_id}"
    try:
        if images is not None and image_id not in images:
            raise Refusal("unknown_image", "image_data.json does not list it")
        known = images[image_id] if images else _Known("", None)
        published = known.address.rsplit("/", 2)[-2:] if known.address.count("/") >= 2 else []
        names = ["/".join(published)] if published else []
        names += [f"{image_id}.jpg", *(f"{folder}/{image_id}.jpg" for folder in _ARCHIVES)]
        name, width, height = pictures.find(list(dict.fromkeys(names)), known.size)
    except Refusal as refusal:
        yield refusal.of("visual_genome", where)
        return
    captions: list[str] = []
    boxes: list[Box] = []
    for region in regions or ():
        try:
            captions.append(clean_text(_mapping(region).get("phrase"), "phrase"))
        except Refusal as refusal:
            yield refusal.of("visual_genome", f"{where}, region {_mapping_id(region, 'region_id')}")
    for thing in objects or ():
        try:
            boxes.append(_box(_mapping(thing), width, height))
        except Refusal as refusal:
            yield refusal.of("visual_genome", f"{where}, object {_mapping_id(thing, 'object_id')}")
    if captions or boxes:
        yield ImageAnnotations(name, width, height, tuple(captions), tuple(boxes), "visual_genome")
    else:
        yield RejectedRow("visual_genome", where, "no_annotations", f"{where}: {name!r} has neither a phrase nor an object.")


def _box(thing: Mapping[str, Any], width: int, height: int) -> Box:
    names = thing.get("names")
    label = clean_text(names[0] if isinstance(names, list) and names else None, "name of an object")
    left, top, box_width, box_height = numbers([thing.get(edge) for edge in "xywh"], 4, f"the box of {label!r}")
    return fraction_box(label, (left, top, left + box_width, top + box_height), width, height)


def _image_id(item: Any) -> int:
    found = _mapping(item).get("image_id", item.get("id"))
    if not whole(found):
        raise Refusal("bad_row", "'image_id' must be a whole number")
    return found


def _mapping(item: Any) -> Mapping[str, Any]:
    if not isinstance(item, Mapping):
        raise Refusal("bad_row", f"a JSON {type(item).__name__}, not an object")
    return item


def _mapping_id(item: Any, name: str) -> str:
    return ascii(item.get(name))[:20] if isinstance(item, Mapping) else "?"
