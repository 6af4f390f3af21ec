"""What the readers of all sources share: how a row is refused, and how captions, boxes and pictures are checked.

A reader yields good records and refused rows as they come, and one bad row never hides the next. Only a *file* that cannot be read at all
is an error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from vistune.errors import DataError, ImageError
from vistune.formats import confined_name
from vistune.media import image_size
from vistune.types import Box, ImageAnnotations

REASONS: Mapping[str, str] = {
    "not_json": "the line is not JSON, or not UTF-8 text",
    "bad_row": "a field is missing or of the wrong type",
    "too_long": "a line over 1 MiB, or a caption or label over 2,000 characters",
    "bad_text": "a caption or label with half of a surrogate pair, which no file can hold",
    "empty_caption": "a caption without a letter or digit",
    "bad_box": "a box that is no rectangle: not four finite numbers, or without area",
    "box_outside": "a box that leaves its picture by more than a pixel",
    "unknown_category": "a category that the file does not list",
    "unknown_image": "a picture that the files do not list",
    "duplicate_id": "an id, or a picture, for the second time",
    "no_annotations": "a picture with neither a caption nor a box left",
    "no_picture": "a row that does not name a file; addresses are never fetched",
    "bad_path": "a picture outside the image folder",
    "bad_size": "width and height are missing or not whole numbers from 1",
    "size_mismatch": "the picture has another size than its annotations say, so that its boxes would be wrong",
}
"""Why a row is refused. A picture that `media.py` refuses gives `image_` and its reason: image_missing, image_truncated, image_side, ..."""

MAX_TEXT = 2000
"""Longest caption or label, in characters."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_LETTER_OR_DIGIT = re.compile(r"[^\W_]")


@dataclass(frozen=True)
class RejectedRow:
    """A row of an annotation file that cannot be used."""

    source: str
    row: str
    """Where it is: file, and line or id."""
    reason: str
    """One of `REASONS`, or `image_` and a reason of `media.py`; fit for counting."""
    message: str


Row = ImageAnnotations | RejectedRow
Reader = Callable[[Sequence[Path], "Pictures"], Iterator[Row]]


class Refusal(Exception):
    """Raised by the checks below and turned into a `RejectedRow` by the reader, which knows where the row is; never leaves this room."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason

    def of(self, source: str, row: str) -> RejectedRow:
        return RejectedRow(source, row, self.reason, f"{row}: {self}.")


def clean_text(text: Any, what: str) -> str:
    """A caption or label without space around it. Newlines inside stay: whoever writes a prompt neutralises them."""
    if not isinstance(text, str):
        raise Refusal("bad_row", f"the {what} is {_shown(text)}, not text")
    text = text.strip()
    if len(text) > MAX_TEXT:
        raise Refusal("too_long", f"the {what} has {len(text):,} characters, at most {MAX_TEXT:,} are allowed")
    if not text.isascii() and _SURROGATE.search(text):
        raise Refusal("bad_text", f"the {what} {text[:40]!a} holds half of a surrogate pair")
    if not _LETTER_OR_DIGIT.search(text):
        raise Refusal("empty_caption", f"the {what} {text[:40]!r} says nothing")
    return text


def fraction_box(label: str, pixels: Sequence[float], width: int, height: int) -> Box:
    """A box given in pixels (left, top, right, bottom) as fractions of the picture.

    Published boxes leave the picture by rounding; up to one pixel is cut off. More means a wrong box, or the wrong picture.
    """
    left, top, right, bottom = pixels
    if not all(math.isfinite(edge) for edge in pixels) or right <= left or bottom <= top:
        raise Refusal("bad_box", f"the box of {label!r} is {_edges(pixels)}, which has no area")
    if left < -1 or top < -1 or right > width + 1 or bottom > height + 1:
        raise Refusal("box_outside", f"the box of {label!r} is {_edges(pixels)}, but the picture has {width}×{height} pixels")
    inside = (max(left, 0) / width, max(top, 0) / height, min(right, width) / width, min(bottom, height) / height)
    if inside[2] <= inside[0] or inside[3] <= inside[1]:
        raise Refusal("bad_box", f"the box of {label!r} is {_edges(pixels)}: nothing of it is inside the picture")
    return Box(label, inside)


def numbers(value: Any, count: int, what: str) -> tuple[float, ...]:
    """A list of so many numbers. True and "3" are none, and 10**400 is too large for one."""
    if isinstance(value, Sequence) and len(value) == count and all(type(each) in (int, float) for each in value):
        try:
            return tuple(float(each) for each in value)
        except OverflowError:
            pass  # told as what it is not, below
    raise Refusal("bad_box", f"{what} is {_shown(value)}, not {count} numbers")


def whole(value: Any) -> TypeGuard[int]:
    """Whether a value is a whole number that a file may use as an id."""
    return type(value) is int and abs(value) < 2**53


def size_of(row: Mapping[str, Any]) -> tuple[int, int] | None:
    """The `width` and `height` that a row states, or None if it states neither."""
    width, height = row.get("width"), row.get("height")
    if width is None and height is None:
        return None
    if not (whole(width) and whole(height) and width > 0 and height > 0):
        raise Refusal("bad_size", f"width {_shown(width)} and height {_shown(height)} are not whole numbers from 1")
    return width, height


@dataclass(frozen=True)
class Pictures:
    """The folder that a source's pictures lie in. Nothing outside it is opened, and nothing is fetched."""

    root: Path
    check: bool = True
    """Whether to look at every picture; without that a row's own words about its size are believed."""

    def __post_init__(self) -> None:
        if self.check and not self.root.is_dir():
            raise DataError(f"The image folder {self.root} does not exist. Give the folder that the pictures' names begin in.")

    def find(self, names: Sequence[str], stated: tuple[int, int] | None) -> tuple[str, int, int]:
        """The first of some possible names that is there, with its width and height.

        Raises:
            Refusal: no such picture, a broken one, or one of another size than stated.
        """
        if not self.check:
            if stated is None:
                raise Refusal("bad_size", "the row does not state width and height, which are needed where pictures are not looked at")
            return _confined(names[0]), *stated
        for place, name in enumerate(names):
            try:
                found = image_size(Path(_confined(name)), root=self.root)
            except ImageError as error:
                if error.reason == "missing" and place + 1 < len(names):
                    continue
                raise Refusal("bad_path" if error.reason == "outside_root" else f"image_{error.reason}", str(error).rstrip(".")) from None
            if stated is not None and found != stated:
                raise Refusal("size_mismatch", f"{name!r} has {found[0]}×{found[1]} pixels, its annotations say {stated[0]}×{stated[1]}")
            return name, *found
        raise Refusal("no_picture", "the row does not name a file")


def _confined(name: str) -> str:
    try:
        return confined_name(name)
    except ValueError as error:
        raise Refusal("bad_path", str(error).rstrip(".")) from None


def _edges(pixels: Sequence[float]) -> str:
    return "[" + ", ".join(f"{edge:g}" for edge in pixels) + "]"


def _shown(value: Any) -> str:
    """A value of someone's file in a message: short, and without control characters."""
    return ascii(value if not isinstance(value, list | dict) else type(value).__name__)[:60]
