"""What a picture looks like, in 128 bits: enough to find it again after scaling, compression, brightening or a trimmed edge.

Two hashes of 64 bits side by side, because they err on different pictures: pHash (Zauner 2010; signs of the lowest 8 × 8 frequencies of a
32 × 32 grey picture against their median) and dHash (Krawetz 2013; whether each of 8 × 9 grey fields is brighter than the one before it).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vistune.media import image_digest, open_image
from vistune.types import ImageSource

SAME_PICTURE = 16
"""Bits of 128 in which two pictures taken for the same may differ. Measured on 300 drawn scenes and 1,498 clip arts: finds 97 to 100 % of
scenes after JPEG 30, halving, +25 % brightness, +30 % contrast, squashing to a square or 2 % trimmed off each edge (a third after 5 %);
no two of the 44,850 pairs of scenes are that near, and among clip arts only series that differ in a detail."""

_FLAT = 2.0  # grey levels of standard deviation; below, the bits of both hashes are noise
_GRID = np.arange(32)
_COSINES = np.cos(np.pi * (2 * _GRID[None, :] + 1) * _GRID[:8, None] / 64)


@dataclass(frozen=True)
class Fingerprint:
    """`pixels` is equal for equal pixels only; `look` is None for a picture of (nearly) one colour, which looks like any other."""

    pixels: str
    look: tuple[int, int] | None


def fingerprint(source: ImageSource, *, root: Path | None = None) -> Fingerprint:
    """Opens a picture (with the limits and errors of `open_image`) and says what it looks like."""
    picture = open_image(source, root=root)
    return Fingerprint(image_digest(picture), look(picture))


def look(picture: Image.Image) -> tuple[int, int] | None:
    """The two hashes of an RGB picture as numbers."""
    grey = picture.convert("L")
    fields = np.asarray(grey.resize((32, 32), Image.Resampling.LANCZOS), dtype=np.float64)
    if fields.std() < _FLAT:
        return None
    frequencies = (_COSINES @ fields @ _COSINES.T).ravel()
    steps = np.asarray(grey.resize((9, 8), Image.Resampling.LANCZOS), dtype=np.int16)
    # The first frequency is the mean brightness, which says nothing about the picture and would shift the median.
    return _bits(frequencies > np.median(frequencies[1:])), _bits((steps[:, 1:] > steps[:, :-1]).ravel())


def _bits(truths: np.ndarray) -> int:
    return int.from_bytes(np.packbits(truths).tobytes(), "big")


class LookIndex:
    """Pictures to be recognised, numbered in the order given."""

    def __init__(self, known: list[Fingerprint]):
        self._numbers = [number for number, each in enumerate(known) if each.look is not None]
        looks = [each.look for each in known if each.look is not None]
        self._looks = np.array(looks, dtype=np.uint64).reshape(-1, 2)
        self._pixels: dict[str, list[int]] = {}
        for number, each in enumerate(known):
            self._pixels.setdefault(each.pixels, []).append(number)

    def near(self, seen: Fingerprint, distance: int = SAME_PICTURE) -> list[tuple[int, int]]:
        """(number, bits that differ) of every known picture that looks the same; 0 bits for equal pixels."""
        found = dict.fromkeys(self._pixels.get(seen.pixels, ()), 0)
        if seen.look is not None and len(self._looks):
            differing = np.bitwise_count(self._looks ^ np.array(seen.look, dtype=np.uint64)).sum(axis=1)
            for place in np.flatnonzero(differing <= distance):
                found.setdefault(self._numbers[place], int(differing[place]))
        return sorted(found.items())
