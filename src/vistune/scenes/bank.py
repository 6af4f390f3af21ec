"""The sprite bank: about a thousand names with several small cut-outs each, shipped inside the package.

`assets/sprites/index.json` lists names with their pictures, `sprites.bin` holds the pictures end to end as lossless WebP, and
`tools/build_sprite_bank.py` made both. Sources and licences are in `assets/sprites/LICENCES.md`. A picture belongs to one split for good:
`seen` may be trained on, `new_picture` is a held-out picture of a name with seen ones, `new_name` a picture of a name never trained on.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from vistune.errors import DataError, UnknownName

Split = Literal["seen", "new_picture", "new_name"]
SPLITS: tuple[Split, ...] = ("seen", "new_picture", "new_name")
BANK_FOLDER = Path(__file__).parent.parent / "assets" / "sprites"
PAINTED_CATEGORIES = frozenset({"shape", "number", "word"})
"""Stored as grey masks: a scene gives them a colour."""


@dataclass(frozen=True)
class Thing:
    """A name that pictures can have. `article` is empty for plural and mass nouns, `plural` where counting would be odd."""

    name: str
    category: str
    article: str
    plural: str

    def phrase(self, colour: str | None = None) -> str:
        """The thing as it stands in a sentence: "an apple", "a red apple", "grapes", "the number 7"."""
        words = f"{colour} {self.name}" if colour else self.name
        article = self.article
        if article in ("a", "an") and colour:
            article = "an" if colour.startswith(("a", "e", "i", "o", "u")) else "a"
        return f"{article} {words}" if article else words


@dataclass(frozen=True)
class Sprite:
    """One picture in the bank. `colour` is the word for most of its pixels, empty when mixed; `number` counts within its name."""

    thing: Thing
    number: int
    source: str
    colour: str
    split: Split
    offset: int
    length: int

    @property
    def is_mask(self) -> bool:
        return self.thing.category in PAINTED_CATEGORIES


class SpriteBank:
    """All sprites, read once. Pictures are decoded when asked for, and the most recent ones kept."""

    def __init__(self, folder: Path = BANK_FOLDER):
        index, pixels = folder / "index.json", folder / "sprites.bin"
        if not index.is_file() or not pixels.is_file():
            raise DataError(f"The sprite bank in {folder} is incomplete; reinstall vistune or run tools/build_sprite_bank.py.")
        self._pixels = pixels.read_bytes()
        self.digest = hashlib.sha256(index.read_bytes() + self._pixels).hexdigest()
        self.sprites: tuple[Sprite, ...] = tuple(
            Sprite(
                Thing(entry["name"], entry["category"], entry["article"], entry["plural"]), number, source, colour, split, offset, length
            )
            for entry in json.loads(index.read_text(encoding="utf-8"))
            for number, (offset, length, source, colour, split) in enumerate(entry["sprites"])
        )
        self.things: dict[str, Thing] = {sprite.thing.name: sprite.thing for sprite in self.sprites}
        self._by_name: dict[Split, dict[str, tuple[Sprite, ...]]] = {split: {} for split in SPLITS}
        for sprite in self.sprites:
            group = self._by_name[sprite.split]
            group[sprite.thing.name] = (*group.get(sprite.thing.name, ()), sprite)
        self._names = {split: tuple(group) for split, group in self._by_name.items()}
        self.masks = tuple(name for name, thing in self.things.items() if thing.category in PAINTED_CATEGORIES)
        self.picture = functools.lru_cache(maxsize=2048)(self._decode)

    def names(self, split: Split = "seen") -> tuple[str, ...]:
        """Names with at least one picture in the split, in alphabetical order."""
        return self._names[split]

    def pictures_of(self, name: str, split: Split = "seen") -> tuple[Sprite, ...]:
        try:
            return self._by_name[split][name]
        except KeyError:
            raise UnknownName(f"name with {split} pictures in the sprite bank", name, known=self._names[split][:12]) from None

    def _decode(self, sprite: Sprite) -> Image.Image:
        """The picture as RGBA, trimmed to what can be seen. Do not draw on it: it is shared."""
        with Image.open(io.BytesIO(self._pixels[sprite.offset : sprite.offset + sprite.length])) as picture:
            return picture.convert("RGBA")


@functools.cache
def sprite_bank() -> SpriteBank:
    """The bank that ships with vistune, read on first use."""
    return SpriteBank()
