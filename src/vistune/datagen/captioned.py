"""Sources that are one row a picture: captions as CC3M has them, people's own JSON Lines, and the scenes that vistune draws.

**jsonl**, for your own pictures. One object a line:

    image      the file, relative to the image folder                                                             required
    captions   a list of sentences; or `caption`, one sentence                                                    these or boxes
    boxes      a list of {"label": "dog", "xyxy": [left, top, right, bottom]}, or with "xywh": [left, top, width, height]
    units      "pixels" or "fractions" (of width and height, 0 to 1): what the numbers of all boxes in the row are   required with boxes
    width, height   of the picture in pixels; compared with the file                                              needed for pixels only
                                                                                                                  if files are not checked
    {"image": "a/1.jpg", "captions": ["A dog on a lawn."], "boxes": [{"label": "dog", "xyxy": [12, 40, 210, 300]}], "units": "pixels"}

Other fields are ignored. All captions of a picture go into its one row.

**cc3m**, a caption and the file that it belongs to: TSV (`caption ⇥ file`, or `caption ⇥ address ⇥ file`), or JSON Lines or a JSON list
with `caption` and `image`, as LLaVA's own copy has it. The published TSV names addresses only, which are never fetched: after downloading,
add the column with the files.

**scenes**, the annotations.jsonl that `vistune data scenes` writes: the fields above, with boxes in fractions.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vistune.datagen.json_stream import json_items, text_lines
from vistune.datagen.source_rows import Pictures, Refusal, Row, clean_text, fraction_box, numbers, size_of
from vistune.errors import DataError
from vistune.types import Box, ImageAnnotations


def read_jsonl(files: Sequence[Path], pictures: Pictures) -> Iterator[Row]:
    """Reads people's own JSON Lines."""
    return _read_rows("jsonl", files, pictures, _full_row)


def read_scenes(files: Sequence[Path], pictures: Pictures) -> Iterator[Row]:
    """Reads the annotations.jsonl of drawn scenes."""
    return _read_rows("scenes", files, pictures, lambda row, pictures: _full_row({"units": "fractions", **row}, pictures))


def read_cc3m(files: Sequence[Path], pictures: Pictures) -> Iterator[Row]:
    """Reads captions with their files."""
    return _read_rows("cc3m", files, pictures, _captioned_row)


def caption_of(line: bytes, layout: str) -> str:
    """The caption in one line of a caption file.

    Args:
        layout: the file's ending: `.tsv` (first column), `.jsonl` (`caption`), anything else (the whole line).

    Raises:
        Refusal: the line holds no caption.
    """
    text = _decoded(line)
    match layout:
        case ".tsv":
            return clean_text(text.partition("\t")[0], "caption")
        case ".jsonl":
            return clean_text(_json_object(text).get("caption"), "caption")
        case _:
            return clean_text(text, "caption")


_Record = Callable[[Mapping[str, Any], Pictures], ImageAnnotations]


def _read_rows(source: str, files: Sequence[Path], pictures: Pictures, record: _Record) -> Iterator[Row]:
    seen: set[bytes] = set()
    for file in files:
        good = bad = 0
        for where, row in _raw_rows(file):
            try:
                if isinstance(row, Refusal):
                    raise row
                annotations = record(row, pictures)
                # Eight bytes of a hash: three million names would be 300 MB, and two of them meet once in four million such files.
                digest = hashlib.blake2b(annotations.image.encode(), digest_size=8).digest()
                if digest in seen:
                    raise Refusal("duplicate_id", f"{annotations.image!r} has a row already; put all captions of a picture into one row")
                seen.add(digest)
            except Refusal as refusal:
                bad += 1
                yield refusal.of(source, where)
                continue
            good += 1
            yield replace(annotations, source=source)
        if not good and not bad:
            raise DataError(f"{file} holds no rows. Expected one row a picture; docs/data.md names the fields.")


def _raw_rows(file: Path) -> Iterator[tuple[str, Mapping[str, Any] | Refusal]]:
    """(where, row) for every row of a file, whichever of the layouts it has."""
    if file.suffix == ".json":
        for number, (_, item) in enumerate(json_items(file)):
            yield f"{file.name}, row {number}", item if isinstance(item, Mapping) else Refusal("bad_row", "a row must be an object")
        return
    for number, line in enumerate(text_lines(file), 1):
        where = f"{file.name}, line {number}"
        if line is None:
            yield where, Refusal("too_long", "the line is longer than 1 MiB")
        elif line.strip():
            try:
                yield where, _tsv_object(_decoded(line)) if file.suffix == ".tsv" else _json_object(_decoded(line))
            except Refusal as refusal:
                yield where, refusal


def _decoded(line: bytes) -> str:
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refusal("not_json", f"not UTF-8 text ({error.reason})") from None


def _json_object(text: str) -> Mapping[str, Any]:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits, and lists in lists without end
        raise Refusal("not_json", f"not JSON ({error})") from None
    if not isinstance(row, Mapping):
        raise Refusal("bad_row", f"a JSON {type(row).__name__}, not an object")
    return row


def _tsv_object(text: str) -> Mapping[str, Any]:
    caption, *rest = text.split("\t")
    return {"caption": caption, "image": rest[-1].strip() if rest else ""}


def _captioned_row(row: Mapping[str, Any], pictures: Pictures) -> ImageAnnotations:
    caption = clean_text(row.get("caption"), "caption")
    name, width, height = _picture(row, pictures)
    return ImageAnnotations(name, width, height, (caption,))


def _full_row(row: Mapping[str, Any], pictures: Pictures) -> ImageAnnotations:
    captions, boxes = row.get("captions", []), row.get("boxes", [])
    if "caption" in row:
        captions = [row["caption"]] if not captions else None
    if not isinstance(captions, list) or not isinstance(boxes, list):
        raise Refusal("bad_row", "'captions' and 'boxes' must be lists, and 'caption' stands alone")
    if not captions and not boxes:
        raise Refusal("no_annotations", "the row has neither captions nor boxes")
    texts = tuple(clean_text(caption, "caption") for caption in captions)
    name, width, height = _picture(row, pictures)
    return ImageAnnotations(name, width, height, texts, tuple(_box(box, row.get("units"), width, height) for box in boxes))


def _picture(row: Mapping[str, Any], pictures: Pictures) -> tuple[str, int, int]:
    name = row.get("image")
    if not isinstance(name, str) or not name:
        raise Refusal("no_picture", "'image' must name a file in the image folder")
    if re.match(r"\w+://", name):
        raise Refusal("no_picture", f"{name[:60]!a} is an address, which is never fetched; download the picture and give the file")
    return pictures.find([name], size_of(row))


def _box(box: Any, units: Any, width: int, height: int) -> Box:
    if units not in ("pixels", "fractions"):
        raise Refusal("bad_row", 'a row with boxes must say "units": "pixels" or "fractions"')
    if not isinstance(box, Mapping) or ("xyxy" in box) == ("xywh" in box):
        raise Refusal("bad_row", "a box needs 'label' and one of 'xyxy' and 'xywh'")
    label = clean_text(box.get("label"), "label")
    left, top, third, fourth = numbers(box.get("xyxy", box.get("xywh")), 4, f"the box of {label!r}")
    right, bottom = (third, fourth) if "xyxy" in box else (left + third, top + fourth)
    across, down = (1, 1) if units == "pixels" else (width, height)
    return fraction_box(label, (left * across, top * down, right * across, bottom * down), width, height)
