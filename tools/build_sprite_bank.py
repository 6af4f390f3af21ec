"""Builds the sprite bank that `vistune.scenes` draws from: `src/vistune/assets/sprites/`.

Run once, by hand, when the bank should change (that changes the digests of `scenes-v1`: a new suite, not a new version of the old one).
Nothing here runs when vistune is installed or used. The material comes from packages that anyone can fetch:

    Debian   fonts-noto-color-emoji 2.042 (OFL-1.1), openclipart-png 0.18 (public domain)
    npm      @iconify-json/{fluent-emoji,noto-v1,fxemoji,twemoji,emojione} (MIT, Apache-2.0, Apache-2.0, CC-BY-4.0, CC-BY-4.0)
    PyPI     resvg-py (draws SVG), Pillow (its built-in Aileron font, CC0, for digits and words)

What a picture is called was decided by people, in `tools/sprite_tables/`: `names.tsv` (every name once, with its category, article and
plural), `emoji.tsv` (code point to name), `clipart.tsv` (file to name).
"""

from __future__ import annotations

import argparse
import io
import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFont, ImageStat

TABLES = Path(__file__).parent / "sprite_tables"
SIDE = 76  # longest side of a stored sprite, in pixels; scenes of 224 pixels show them at 50 to 153
MAX_PER_NAME = 12
NEW_PICTURES = 130  # held-out pictures of names that training does see
NEW_NAMES = 40  # names that training never sees at all
SEED = 20240
ICON_SETS = ("fluent-emoji", "twemoji", "noto-v1", "emojione", "fxemoji")
WORDS = ("exit", "free", "go", "hello", "help", "home", "new", "no", "off", "on", "open", "sale", "stop", "up", "wow", "yes")
GREY = (128, 128, 128)  # what masks are stored in; a scene paints them in any colour


@dataclass(frozen=True)
class Name:
    name: str
    category: str
    article: str
    plural: str


@dataclass(frozen=True)
class Candidate:
    name: str
    source: str
    picture: Image.Image


def read_table(path: Path) -> Iterator[list[str]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            yield line.split("\t")


def read_names() -> dict[str, Name]:
    names = {row[0]: Name(*row) for row in read_table(TABLES / "names.tsv")}
    names |= {f"number {digit}": Name(f"number {digit}", "number", "the", "") for digit in range(10)}
    return names | {f"word {word}": Name(f"word {word}", "word", "the", "") for word in WORDS}


# --- sources ---------------------------------------------------------------------------------------------------------------------


def noto_sprites(font_file: Path) -> Iterator[Candidate]:
    font = ImageFont.truetype(str(font_file), size=109)  # the one size that the bitmap font holds
    for code, _, name in read_table(TABLES / "emoji.tsv"):
        canvas = Image.new("RGBA", (160, 160))
        text = "".join(chr(int(point, 16)) for point in code.split("-"))
        ImageDraw.Draw(canvas).text((8, 8), text, font=font, embedded_color=True)
        yield Candidate(name, "noto", canvas)


def icon_sprites(folder: Path, icon_set: str) -> Iterator[Candidate]:
    import resvg_py

    data = json.loads((folder / icon_set / "icons.json").read_text(encoding="utf-8"))
    icons, aliases = data["icons"], data.get("aliases", {})
    for _, label, name in read_table(TABLES / "emoji.tsv"):
        for key in (slug(label), slug(name)):
            key = aliases.get(key, {}).get("parent", key)
            if key in icons:
                icon = icons[key]
                width, height = icon.get("width", data.get("width", 16)), icon.get("height", data.get("height", 16))
                svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
                png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=128, height=128))
                yield Candidate(name, icon_set, Image.open(io.BytesIO(png)).convert("RGBA"))
                break


def slug(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", label.lower().replace("’", "").replace("ñ", "n")).strip("-")


def clipart_sprites(folder: Path) -> Iterator[Candidate]:
    for file, name in read_table(TABLES / "clipart.tsv"):
        with Image.open(folder / file) as opened:
            picture = opened.convert("RGBA")
        picture.thumbnail((512, 512), Image.Resampling.BOX)
        yield Candidate(name, "openclipart", without_paper(picture))


def without_paper(picture: Image.Image) -> Image.Image:
    """Clears a plain white ground that reaches the corners, so that a drawing on paper becomes a cut-out."""
    width, height = picture.size
    corners = [(0, 0), (width - 1, 0), (0, height - 1), (width - 1, height - 1)]
    if all(min(picture.getpixel(corner)) > 245 for corner in corners):  # type: ignore[arg-type]
        for corner in corners:
            ImageDraw.floodfill(picture, corner, (255, 255, 255, 0), thresh=30)
    return picture


def shape_sprites() -> Iterator[Candidate]:
    """Plain shapes in three cuts: solid, broad and outlined."""
    import math

    def regular(corners: int, turn: float) -> list[tuple[float, float]]:
        steps = (2 * math.pi * step / corners + turn for step in range(corners))
        return [(256 + 240 * math.sin(angle), 256 - 240 * math.cos(angle)) for angle in steps]

    outlines: dict[str, list[list[tuple[float, float]]]] = {
        "square": [[(40, 40), (472, 40), (472, 472), (40, 472)]],
        "rectangle": [[(16, 120), (496, 120), (496, 392), (16, 392)], [(140, 16), (372, 16), (372, 496), (140, 496)]],
        "triangle": [[(256, 40), (496, 460), (16, 460)], [(40, 40), (472, 472), (40, 472)]],
        "diamond": [[(256, 10), (440, 256), (256, 502), (72, 256)]],
        "pentagon": [regular(5, 0)],
        "hexagon": [regular(6, 0), regular(6, math.pi / 6)],
        "octagon": [regular(8, math.pi / 8)],
        "trapezoid": [[(140, 120), (372, 120), (496, 400), (16, 400)]],
        "arrow": [[(16, 190), (280, 190), (280, 80), (496, 256), (280, 432), (280, 322), (16, 322)]],
    }
    for name, drawings in outlines.items():
        for points in drawings:
            for outline in (None, 60):
                yield Candidate(name, "drawn", mask_picture(lambda draw, p=points, o=outline: polygon(draw, p, o)))
    ellipses = {"circle": [(16, 16, 496, 496)], "oval": [(16, 110, 496, 402), (110, 16, 402, 496)]}
    for name, boxes in ellipses.items():
        for box in boxes:
            for outline in (None, 60):
                yield Candidate(name, "drawn", mask_picture(lambda draw, b=box, o=outline: ellipse(draw, b, o)))
    for start in (180, 0, 90):
        yield Candidate("semicircle", "drawn", mask_picture(lambda draw, s=start: draw.pieslice((16, 16, 496, 496), s, s + 180, fill=255)))


def mask_picture(paint) -> Image.Image:
    mask = Image.new("L", (512, 512))
    paint(ImageDraw.Draw(mask))
    picture = Image.new("RGBA", mask.size, GREY)
    picture.putalpha(mask)
    return picture


def polygon(draw: ImageDraw.ImageDraw, points: list[tuple[float, float]], outline: int | None) -> None:
    draw.polygon(points, fill=255)
    if outline:
        draw.polygon([(256 + (x - 256) * 0.62, 268 + (y - 268) * 0.62) for x, y in points], fill=0)


def ellipse(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], outline: int | None) -> None:
    draw.ellipse(box, fill=255)
    if outline:
        draw.ellipse((box[0] + outline, box[1] + outline, box[2] - outline, box[3] - outline), fill=0)


def text_sprites() -> Iterator[Candidate]:
    font = ImageFont.load_default(size=200)
    texts = [(f"number {digit}", str(digit)) for digit in range(10)]
    texts += [(f"word {word}", form) for word in WORDS for form in (word, word.upper())]
    for name, text in texts:
        for weight in (0, 8):
            canvas = Image.new("L", (1100, 360))
            ImageDraw.Draw(canvas).text((40, 40), text, font=font, fill=255, stroke_width=weight)
            picture = Image.new("RGBA", canvas.size, GREY)
            picture.putalpha(canvas)
            yield Candidate(name, "drawn", picture)


# --- cutting and measuring -------------------------------------------------------------------------------------------------------


def cut_out(picture: Image.Image) -> Image.Image | None:
    """Trimmed to what can be seen and scaled so that its longest side is SIDE; None if little or nothing would remain."""
    box = picture.getchannel("A").point(lambda alpha: 255 if alpha > 24 else 0).getbbox()
    if box is None:
        return None
    picture = picture.crop(box)
    longest = max(picture.size)
    if longest < 40 or min(picture.size) * 6 < longest:
        return None
    scale = SIDE / longest
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")


def looks_like(one: Image.Image, other: Image.Image) -> bool:
    def small(picture: Image.Image) -> Image.Image:
        ground = Image.new("RGBA", picture.size, (200, 60, 200, 255))
        return Image.alpha_composite(ground, picture).convert("RGB").resize((12, 12), Image.Resampling.BOX)

    return sum(ImageStat.Stat(ImageChops.difference(small(one), small(other))).mean) / 3 < 5


def colour_word(red: int, green: int, blue: int) -> str:
    """The plain colour word for one pixel."""
    high, low = max(red, green, blue), min(red, green, blue)
    if high < 50:
        return "black"
    if high - low < 30:
        return "white" if low > 205 else "grey" if high > 85 else "black"
    span = high - low
    if high == red:
        hue = (60 * (green - blue) / span) % 360
    elif high == green:
        hue = 60 * (blue - red) / span + 120
    else:
        hue = 60 * (red - green) / span + 240
    if (hue < 14 or hue >= 345) and low < 130:
        return "red"
    if hue < 14 or hue >= 300:
        return "pink" if high > 150 else "purple"
    if hue < 42:
        return "brown" if high < 190 else "orange"
    for limit, word in ((66, "yellow"), (170, "green"), (255, "blue"), (300, "purple")):
        if hue < limit:
            return "green" if word == "yellow" and high < 130 else word
    return "pink"


def dominant_colour(picture: Image.Image) -> str:
    """The colour word of at least 60 % of the opaque pixels, or an empty string if none is that common."""
    votes = Counter(colour_word(*pixel[:3]) for pixel in picture.get_flattened_data() if pixel[3] > 128)
    word, count = votes.most_common(1)[0] if votes else ("", 0)
    return word if count >= 0.6 * votes.total() else ""


def encode(picture: Image.Image, colours: int) -> bytes:
    """Lossless WebP of the picture in few colours: smaller than lossy at this size, and every decoder gives the same pixels."""
    file = io.BytesIO()
    picture.quantize(colours, method=Image.Quantize.FASTOCTREE).convert("RGBA").save(file, "WEBP", lossless=True, method=6, quality=70)
    return file.getvalue()


# --- putting the bank together ---------------------------------------------------------------------------------------------------


def collect(arguments: argparse.Namespace, names: dict[str, Name]) -> dict[str, list[Candidate]]:
    sources = [noto_sprites(arguments.noto_font), *(icon_sprites(arguments.icon_sets, icon_set) for icon_set in ICON_SETS)]
    sources += [clipart_sprites(arguments.clipart), shape_sprites(), text_sprites()]
    bank: dict[str, list[Candidate]] = defaultdict(list)
    for source in sources:
        for candidate in source:
            if candidate.name not in names:
                raise SystemExit(f"{candidate.name!r} ({candidate.source}) is not in names.tsv")
            picture = cut_out(candidate.picture)
            kept = bank[candidate.name]
            if picture is None or len(kept) >= MAX_PER_NAME or any(looks_like(picture, other.picture) for other in kept):
                continue
            kept.append(Candidate(candidate.name, candidate.source, picture))
    return {name: bank[name] for name in sorted(bank) if bank[name]}


def choose_held_out(bank: dict[str, list[Candidate]], names: dict[str, Name]) -> tuple[set[str], set[tuple[str, int]]]:
    """Whole names, and single pictures of other names that keep at least two for training."""
    rng = random.Random(SEED)
    things = [name for name in bank if names[name].category not in ("shape", "number", "word")]
    new_names = set(rng.sample([name for name in things if len(bank[name]) >= 3], NEW_NAMES))
    several = [name for name in things if len(bank[name]) >= 3 and name not in new_names]
    return new_names, {(name, rng.randrange(len(bank[name]))) for name in rng.sample(several, NEW_PICTURES)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--noto-font", type=Path, required=True, help="NotoColorEmoji.ttf")
    parser.add_argument("--icon-sets", type=Path, required=True, help="node_modules/@iconify-json")
    parser.add_argument("--clipart", type=Path, required=True, help="/usr/share/openclipart/png")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "src/vistune/assets/sprites")
    parser.add_argument("--colours", type=int, default=34, help="colours in the palette of one sprite")
    arguments = parser.parse_args()
    Image.MAX_IMAGE_PIXELS = 200_000_000  # a few clip art files are posters

    names = read_names()
    bank = collect(arguments, names)
    new_names, new_pictures = choose_held_out(bank, names)
    entries, blobs, offset = [], [], 0
    for name, candidates in bank.items():
        sprites = []
        for number, candidate in enumerate(candidates):
            blob = encode(candidate.picture, arguments.colours)
            split = "new_name" if name in new_names else "new_picture" if (name, number) in new_pictures else "seen"
            colour = "" if candidate.source == "drawn" else dominant_colour(candidate.picture)
            sprites.append([offset, len(blob), candidate.source, colour, split])
            blobs.append(blob)
            offset += len(blob)
        known = names[name]
        entries.append({"name": name, "category": known.category, "article": known.article, "plural": known.plural, "sprites": sprites})
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "sprites.bin").write_bytes(b"".join(blobs))
    lines = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in entries)
    (arguments.out / "index.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    per_source = Counter(sprite[2] for entry in entries for sprite in entry["sprites"])
    print(f"{len(entries)} names, {len(blobs)} sprites, {offset / 1e6:.2f} MB, {dict(per_source)}")
    print(f"names with 2 or more pictures: {sum(len(entry['sprites']) >= 2 for entry in entries)}")


if __name__ == "__main__":
    main()
