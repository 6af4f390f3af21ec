"""Scenes: a few sprites on a coloured ground, with everything about them known exactly.

`plan_scene` decides (a pure function of seed and spec), `render_scene` paints what was decided. All decisions are integers from one
`random.Random`, and painting uses only Pillow's integer paths, so a seed gives the same pixels on any machine; `tests/scenes` holds the
digests. Nothing is downloaded.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from PIL import Image, ImageDraw, ImageOps

from vistune.scenes.bank import Split, Sprite, SpriteBank, Thing, sprite_bank
from vistune.types import Box, ImageAnnotations

Pattern = Literal["plain", "gradient", "striped", "checkered", "dotted", "speckled"]
PATTERNS: tuple[Pattern, ...] = ("plain", "plain", "plain", "gradient", "gradient", "striped", "checkered", "dotted", "speckled")
UNNAMED_PATTERNS = frozenset({"plain", "gradient"})

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 32, 40),
    "orange": (245, 135, 25),
    "yellow": (248, 214, 40),
    "green": (46, 150, 62),
    "blue": (38, 84, 208),
    "purple": (128, 52, 170),
    "pink": (246, 132, 190),
    "brown": (124, 76, 42),
    "black": (26, 26, 28),
    "white": (244, 244, 244),
    "gray": (136, 136, 140),
}
PLACES: dict[str, str] = {
    "top left": "in the top left",
    "top": "at the top",
    "top right": "in the top right",
    "left": "on the left",
    "center": "in the center",
    "right": "on the right",
    "bottom left": "in the bottom left",
    "bottom": "at the bottom",
    "bottom right": "in the bottom right",
}
"""Cells of a 3 x 3 grid in reading order, and each as it stands in a sentence."""

# Unit: one 1024th of the picture's side, so that any size is the same scene. The longest side of an object, by how many there are.
LARGEST = {1: 700, 2: 470, 3: 400, 4: 350, 5: 330}
SMALLEST = {1: 380, 2: 300, 3: 270, 4: 240, 5: 230}
CELL_CENTRES = (180, 512, 844)
JITTER = 40
CENTRE_CELL = 4
EDGE_LIMIT = 500  # a larger object near the border would have its centre in the middle column or row


@dataclass(frozen=True)
class SceneSpec:
    """What kind of scene. `focus` names are placed first: how a suite makes sure that each of its held-out sprites is asked about."""

    size: int = 224
    counts: tuple[int, ...] = (1, 2, 3, 4, 5)
    splits: tuple[Split, ...] = ("seen",)
    tinted_percent: int = 25
    masks_percent: int = 10
    repeats_percent: int = 20
    focus: tuple[Sprite, ...] = ()


@dataclass(frozen=True)
class SceneObject:
    """One thing in a scene. `colour` is set only where it was painted: it is then true, and not to be guessed from the name."""

    sprite: Sprite
    place: str
    xyxy: tuple[int, int, int, int]
    colour: str | None
    flipped: bool
    angle: int

    @property
    def thing(self) -> Thing:
        return self.sprite.thing

    @property
    def name(self) -> str:
        return self.sprite.thing.name

    @property
    def phrase(self) -> str:
        return self.thing.phrase(self.colour)


@dataclass(frozen=True)
class Background:
    colour: str
    pattern: Pattern
    rgb: tuple[int, int, int]
    seed: int

    @property
    def phrase(self) -> str:
        """As it stands in a sentence: "a blue background", "a striped blue background"."""
        words = self.colour if self.pattern in UNNAMED_PATTERNS else f"{self.pattern} {self.colour}"
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words} background"


@dataclass(frozen=True)
class Scene:
    """Everything about a picture, without its pixels. Objects are in reading order and do not overlap."""

    seed: int | str
    size: int
    objects: tuple[SceneObject, ...]
    background: Background
    captions: tuple[str, ...] = field(default=())

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(thing.name for thing in self.objects)

    def annotations(self, image: str) -> ImageAnnotations:
        """What a teacher that sees only text is told: captions and boxes."""
        boxes = tuple(
            Box(thing.name, (thing.xyxy[0] / self.size, thing.xyxy[1] / self.size, thing.xyxy[2] / self.size, thing.xyxy[3] / self.size))
            for thing in self.objects
        )
        return ImageAnnotations(image, self.size, self.size, self.captions, boxes, source="scenes")


def join_words(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def describe(objects: Sequence[SceneObject], background: Background) -> str:
    """The canonical sentence about a scene: things in reading order, each with its place, then the background."""
    text = join_words([f"{thing.phrase} {PLACES[thing.place]}" for thing in objects])
    comma = "," if len(objects) > 1 else ""
    return f"{text[0].upper()}{text[1:]}{comma} on {background.phrase}."


# --- deciding --------------------------------------------------------------------------------------------------------------------


def plan_scene(seed: int | str, spec: SceneSpec = SceneSpec(), bank: SpriteBank | None = None) -> Scene:
    """Decides a scene. The same seed, spec and bank give the same scene."""
    bank = bank or sprite_bank()
    rng = random.Random(seed)
    count = max(rng.choice(spec.counts), len(spec.focus))
    sprites = [*spec.focus, *_choose_sprites(rng, count - len(spec.focus), spec, bank)]
    ground_colour = rng.choice(
        [colour for colour in COLOURS if colour not in {_as_colour(sprite.colour) for sprite in sprites}] or list(COLOURS)
    )
    background = Background(ground_colour, rng.choice(PATTERNS), _vary(rng, ground_colour), rng.getrandbits(32))
    objects = _arrange(rng, sprites, spec, ground_colour, bank)
    objects.sort(key=lambda thing: list(PLACES).index(thing.place))
    captions = (describe(objects, background), f"There is {join_words([thing.phrase for thing in objects])} on {background.phrase}.")
    return Scene(seed, spec.size, tuple(objects), background, captions)


def _choose_sprites(rng: random.Random, count: int, spec: SceneSpec, bank: SpriteBank) -> list[Sprite]:
    """Different names, except that sometimes one countable name comes several times."""
    chosen: list[Sprite] = []
    taken = {sprite.thing.name for sprite in spec.focus}
    while len(chosen) < count:
        split = rng.choice(spec.splits)
        painted = split == "seen" and rng.randrange(100) < spec.masks_percent
        name = rng.choice(bank.masks if painted else bank.names(split))
        if name in taken or (name in bank.masks) != painted:
            continue
        taken.add(name)
        pictures = bank.pictures_of(name, split)
        repeats = 1
        if count - len(chosen) > 1 and bank.things[name].plural and rng.randrange(100) < spec.repeats_percent:
            repeats = rng.randrange(2, count - len(chosen) + 1)
        chosen += [rng.choice(pictures) for _ in range(repeats)]
    return chosen


def _arrange(rng: random.Random, sprites: list[Sprite], spec: SceneSpec, ground: str, bank: SpriteBank) -> list[SceneObject]:
    """Gives every sprite a cell of its own and a box that touches no other; each failed try makes all of them a little smaller."""
    count = len(sprites)
    looks = [_look(rng, sprite, spec, ground) for sprite in sprites]
    shrink = 100
    while True:
        objects: list[SceneObject] = []
        for sprite, (colour, flipped, angle), cell in zip(sprites, looks, rng.sample(range(9), count), strict=True):
            largest = LARGEST[count] if cell == CENTRE_CELL else min(LARGEST[count], EDGE_LIMIT)
            longest = rng.randrange(SMALLEST[count], largest + 1) * shrink // 100
            box = _box(rng, bank.picture(sprite).size, cell, longest, angle, spec.size)
            if any(_overlap(box, other.xyxy) for other in objects):
                break
            objects.append(SceneObject(sprite, list(PLACES)[cell], box, colour, flipped, angle))
        if len(objects) == count:
            return objects
        shrink = shrink * 97 // 100


def _look(rng: random.Random, sprite: Sprite, spec: SceneSpec, ground: str) -> tuple[str | None, bool, int]:
    """Colour (None: as it is), whether it is flipped, and by how many degrees it is turned."""
    colour = None
    if sprite.is_mask or rng.randrange(100) < spec.tinted_percent:
        colour = rng.choice([colour for colour in COLOURS if colour != ground])
    flipped = not sprite.is_mask and rng.randrange(2) == 1
    readable = sprite.thing.category in ("number", "word")
    return colour, flipped, 0 if readable or rng.randrange(2) else rng.randrange(-18, 19)


def _box(rng: random.Random, picture: tuple[int, int], cell: int, longest: int, angle: int, size: int) -> tuple[int, int, int, int]:
    """Where a picture of this shape lies, in pixels: near the middle of its cell and inside the scene."""
    width, height = (max(longest * side * size // (max(picture) * 1024), 1) for side in picture)
    width, height = _turned_size(width, height, angle)
    row, column = divmod(cell, 3)
    centre_x = (CELL_CENTRES[column] + rng.randrange(-JITTER, JITTER + 1)) * size // 1024
    centre_y = (CELL_CENTRES[row] + rng.randrange(-JITTER, JITTER + 1)) * size // 1024
    left = min(max(centre_x - width // 2, 1), size - width - 1)
    top = min(max(centre_y - height // 2, 1), size - height - 1)
    return left, top, left + width, top + height


def _turned_size(width: int, height: int, angle: int) -> tuple[int, int]:
    """Size of a turned rectangle's box by a table of sines in 1/1000: no floating-point rounding decides a pixel."""
    sine = (0, 17, 35, 52, 70, 87, 105, 122, 139, 156, 174, 191, 208, 225, 242, 259, 276, 292, 309)[abs(angle)]
    cosine = (1000, 1000, 999, 999, 998, 996, 995, 993, 990, 988, 985, 982, 978, 974, 970, 966, 961, 956, 951)[abs(angle)]
    return (width * cosine + height * sine + 999) // 1000, (width * sine + height * cosine + 999) // 1000


def _overlap(one: tuple[int, int, int, int], other: tuple[int, int, int, int], margin: int = 2) -> bool:
    across = one[0] < other[2] + margin and other[0] < one[2] + margin
    return across and one[1] < other[3] + margin and other[1] < one[3] + margin


def _as_colour(word: str) -> str:
    return "gray" if word == "grey" else word


def _vary(rng: random.Random, colour: str, by: int = 10) -> tuple[int, int, int]:
    red, green, blue = (min(max(channel + rng.randrange(-by, by + 1), 0), 255) for channel in COLOURS[colour])
    return red, green, blue


# --- painting --------------------------------------------------------------------------------------------------------------------


def render_scene(scene: Scene, bank: SpriteBank | None = None) -> Image.Image:
    """Paints a scene: RGB, `scene.size` pixels square."""
    bank = bank or sprite_bank()
    canvas = render_background(scene.background, scene.size)
    for thing in scene.objects:
        picture = _painted(bank.picture(thing.sprite), thing)
        canvas.paste(picture, thing.xyxy[:2], picture)
    return canvas


def _painted(picture: Image.Image, thing: SceneObject) -> Image.Image:
    """The sprite at its size, colour, side and angle, filling its box exactly."""
    box = (thing.xyxy[2] - thing.xyxy[0], thing.xyxy[3] - thing.xyxy[1])
    if thing.colour:
        picture = tint(picture, thing.colour)
    if thing.flipped:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    picture = picture.convert("RGBa")  # colours weighted by alpha: no dark rims
    if thing.angle:
        picture = picture.rotate(thing.angle, Image.Resampling.BILINEAR, expand=True)
    return picture.resize(box, Image.Resampling.BILINEAR).convert("RGBA")


def tint(picture: Image.Image, colour: str) -> Image.Image:
    """Repaints a sprite in shades of one colour; its light and dark parts stay lighter and darker."""
    alpha = picture.getchannel("A")
    light = picture.convert("L")
    histogram = light.histogram(alpha.point([0] * 129 + [255] * 127))
    total = sum(histogram) or 1
    midpoint = min(max(sum(level * amount for level, amount in enumerate(histogram)) // total, 60), 190)
    middle = COLOURS[colour]
    dark = tuple(channel * 35 // 100 for channel in middle)
    pale = tuple(channel + (255 - channel) * 65 // 100 for channel in middle)
    if colour == "black":
        dark, pale = (0, 0, 0), (105, 105, 108)
    elif colour == "white":
        dark, pale = (130, 130, 132), (255, 255, 255)
    painted = ImageOps.colorize(light, dark, pale, middle, midpoint=midpoint)  # type: ignore[arg-type]
    painted.putalpha(alpha)
    return painted


def render_background(background: Background, size: int) -> Image.Image:
    """The ground alone. Patterns are two shades of the one colour that the background is called by."""
    rng = random.Random(background.seed)
    base = background.rgb
    lighter = sum(base) < 300
    other: tuple[int, int, int] = tuple(  # type: ignore[assignment]
        channel + (255 - channel) * 22 // 100 if lighter else channel * 80 // 100 for channel in base
    )
    if background.pattern == "plain":
        return Image.new("RGB", (size, size), base)
    if background.pattern == "gradient":
        ramp = Image.linear_gradient("L").rotate(90 * rng.randrange(4)).resize((size, size), Image.Resampling.BILINEAR)
        return ImageOps.colorize(ramp, other, base)  # type: ignore[arg-type]
    if background.pattern == "speckled":
        cells = size // rng.randrange(3, 7)
        noise = Image.frombytes("L", (cells, cells), rng.randbytes(cells * cells)).resize((size, size), Image.Resampling.BILINEAR)
        return ImageOps.colorize(noise, other, base)  # type: ignore[arg-type]
    canvas = Image.new("RGB", (size, size), base)
    draw = ImageDraw.Draw(canvas)
    step = size // rng.randrange(7, 15)
    if background.pattern == "striped":
        upright = rng.randrange(2)
        for start in range(0, size, 2 * step):
            draw.rectangle((start, 0, start + step - 1, size) if upright else (0, start, size, start + step - 1), fill=other)
    elif background.pattern == "checkered":
        for row in range(size // step + 1):
            for column in range(row % 2, size // step + 1, 2):
                draw.rectangle((column * step, row * step, (column + 1) * step - 1, (row + 1) * step - 1), fill=other)
    else:
        for row in range(size // step + 1):
            for column in range(size // step + 1):
                x, y = column * step + (row % 2) * step // 2, row * step
                draw.ellipse((x, y, x + step // 2, y + step // 2), fill=other)
    return canvas
