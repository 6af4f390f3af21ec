"""The 500 hostile images: families of broken, lying, oversized and odd image files, each with the verdict it must get.

`FAMILIES` maps a family to how many it has and to the function that makes them, in a folder of its own (only paths need it). Run as a
program it judges one family in this process and prints a JSON line per image:

    python hostile_images.py FAMILY FOLDER
"""

from __future__ import annotations

import base64
import json
import os
import random
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from PIL import Image

from image_files import (
    P3_PRIMARIES,
    SRGB_PRIMARIES,
    Colour,
    anmf,
    black_png,
    cmyk_profile,
    encode,
    exif,
    gif,
    gif_comment,
    gif_frame,
    grey_profile,
    icc_segments,
    ihdr,
    insert_jpeg_segments,
    insert_png_chunks,
    jpeg_segment,
    orientation,
    photo,
    png,
    png_chunk,
    png_from_chunks,
    replace_jpeg_size,
    rgb_profile,
    riff,
    vp8x,
    webp_picture,
)
from vistune.errors import ImageError
from vistune.media import image_digest, image_size, open_image

Expected = Literal["accepted", "refused", "either"]


@dataclass(frozen=True)
class Case:
    """One hostile image. `pixels` are golden: ((x, y), RGB) of the opened picture, each channel within `tolerance`."""

    name: str
    source: Path | bytes | str
    expected: Expected
    root: Path | None = None
    size: tuple[int, int] | None = None
    pixels: tuple[tuple[tuple[int, int], Colour], ...] = ()
    tolerance: int = 0
    twin: str = ""
    """Two cases with one `twin` form a pair; their digests are equal if it ends in `=`, else different."""


@dataclass(frozen=True)
class Verdict:
    name: str
    outcome: Literal["accepted", "refused", "crashed"]
    detail: str  # the reason, the digest or the exception
    wrong: str  # what contradicts the case, empty if nothing does
    seconds: float = 0.0
    megabytes: float = 0.0  # peak resident memory above idle


def judge(case: Case, opener: Callable[..., Image.Image] = open_image) -> Verdict:
    """Opens one image and compares what happens with what must."""
    try:
        picture = opener(case.source, root=case.root)
        size = image_size(case.source, root=case.root)
    except ImageError as error:
        wrong = "refused: " + str(error) if case.expected == "accepted" else "" if " at 0x" not in str(error) else "leaks an address"
        return Verdict(case.name, "refused", error.reason, wrong)
    except BaseException as error:
        return Verdict(case.name, "crashed", f"{type(error).__name__}: {error}", "crashed")
    wrong = "accepted" if case.expected == "refused" else ""
    if size != picture.size or picture.size != (case.size or picture.size) or picture.mode != "RGB":
        wrong = f"{picture.mode} {picture.size}, image_size {size}, expected {case.size}"
    for place, colour in case.pixels:
        found = picture.getpixel(place)
        if max(abs(a - b) for a, b in zip(found, colour, strict=True)) > case.tolerance:
            wrong = f"pixel {place} is {found}, expected {colour}"
    return Verdict(case.name, "accepted", image_digest(picture), wrong)


# By size --------------------------------------------------------------------------------------------------------------------------------


def area_bombs(_: Path) -> Iterator[Case]:
    for side in (4900, 6000, 8193, 12_000, 20_000, 30_000):
        for depth, colour in ((1, 0), (4, 0), (8, 0), (16, 0)):
            yield Case(f"{side}², {depth} bit", black_png(side, side, depth, colour), "refused")


def pad_bombs(_: Path) -> Iterator[Case]:
    for length in (5000, 8192, 12_000, 20_000, 30_000, 40_000, 50_000, 60_000, 65_000, 10_000_000):
        yield Case(f"{length}×1", black_png(length, 1), "refused")
        yield Case(f"1×{length}", black_png(1, length), "refused")


def tiny(_: Path) -> Iterator[Case]:
    for width, height in ((1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (2, 2), (2, 3), (3, 3), (2, 65), (65, 2)):
        for kind in ("PNG", "JPEG"):
            small = Image.new("RGB", (width, height), (9, 9, 9))
            expected = "refused" if min(width, height) < 2 else "accepted"
            yield Case(f"{kind} {width}×{height}", encode(small, kind), expected, size=(width, height), pixels=(((0, 0), (9, 9, 9)),))


def forged_headers(_: Path) -> Iterator[Case]:
    def forged_png(header: tuple[bytes, bytes], **crc: int) -> bytes:
        pixels = png_chunk(b"IDAT", zlib.compress(bytes(400)))
        return b"\x89PNG\r\n\x1a\n" + png_chunk(*header, **crc) + pixels + png_chunk(b"IEND", b"")

    jpeg, still = encode(photo(64, 48), "JPEG"), webp_picture(encode(photo(64, 48), "WEBP"))
    frame_marker = jpeg.index(b"\xff\xc0")
    frame = jpeg[frame_marker : frame_marker + 19]
    files = {
        "PNG 9400² with empty IDAT": png_from_chunks([ihdr(9400, 9400, 8, 6), (b"IDAT", b""), (b"IEND", b"")]),
        "PNG 4000² with empty IDAT": png_from_chunks([ihdr(4000, 4000, 8, 6), (b"IDAT", b""), (b"IEND", b"")]),
        "PNG of 2^32-1 pixels": forged_png(ihdr(0xFFFFFFFF, 1)),
        "PNG of (2^31-1)²": forged_png(ihdr(0x7FFFFFFF, 0x7FFFFFFF)),
        "PNG of width 0": forged_png(ihdr(0, 10)),
        "PNG of height 0": forged_png(ihdr(10, 0)),
        "PNG with a wrong CRC": forged_png(ihdr(10, 10), crc=1),
        "PNG of depth 3": forged_png(ihdr(10, 10, 3)),
        "PNG of colour type 5": forged_png(ihdr(10, 10, 8, 5)),
        "PNG of filter method 1": forged_png(ihdr(10, 10, filtering=1)),
        "PNG without IHDR": png_from_chunks([(b"IDAT", zlib.compress(bytes(400))), (b"IEND", b"")]),
        "JPEG of 65535²": replace_jpeg_size(jpeg, 65_535, 65_535),
        "JPEG of height 0": replace_jpeg_size(jpeg, 64, 0),
        "JPEG with two frames": jpeg[:frame_marker] + frame + jpeg[frame_marker:],
        "GIF screen of 65535²": gif(65_535, 65_535, [gif_frame(2, 2, 1)], ((0, 0, 0), (9, 9, 9))),
        "GIF frame beyond its screen": gif(2, 2, [gif_frame(2, 2, 1, at=(65_000, 65_000))], ((0, 0, 0), (9, 9, 9))),
        "WebP canvas of 2^24": riff(vp8x(2**24, 2**24), still),
        "WebP canvas larger than its picture": riff(vp8x(640, 480), still),
        "BMP of negative height": b"BM" + struct.pack("<IIIIiiHHIIIIII", 100, 0, 54, 40, 10, -(2**31), 1, 24, 0, 0, 0, 0, 0, 0),
        "TIFF with absurd tiles": exif((256, 4, 1, 60_000), (257, 4, 1, 60_000), (322, 4, 1, 1), (323, 4, 1, 1)),
    }
    for name, data in files.items():
        yield Case(name, data, "refused")


# By structure ---------------------------------------------------------------------------------------------------------------------------


def metadata_bombs(_: Path) -> Iterator[Case]:
    picture = photo(64, 48)
    png_file, jpeg, webp = encode(picture, "PNG"), encode(picture, "JPEG"), webp_picture(encode(picture, "WEBP"))
    scan = jpeg[jpeg.index(b"\xff\xda") : -2]
    bomb = zlib.compress(bytes(64 * 2**20), 9)
    palette, dot = ((0, 0, 0), (9, 9, 9)), gif_frame(64, 48, 1)

    def app1(body: bytes) -> bytes:
        return insert_jpeg_segments(jpeg, jpeg_segment(0xE1, b"Exif\0\0" + body))

    loop = exif((0x8769, 4, 1, 8), (0x0112, 3, 1, 1), following=8)
    files: dict[str, tuple[bytes, Expected]] = {
        "zTXt of 64 MB": (insert_png_chunks(png_file, [(b"zTXt", b"a\0\0" + bomb)]), "accepted"),
        "iTXt of 64 MB": (insert_png_chunks(png_file, [(b"iTXt", b"a\0\1\0\0\0" + bomb)]), "accepted"),
        "iCCP of 64 MB": (insert_png_chunks(png_file, [(b"iCCP", b"a\0\0" + bomb)]), "accepted"),
        "iCCP that is no stream": (insert_png_chunks(png_file, [(b"iCCP", b"a\0\0junk")]), "accepted"),
        "50,000 tEXt chunks": (insert_png_chunks(png_file, [(b"tEXt", b"a\0b")] * 50_000), "accepted"),
        "100,000 tEXt chunks": (insert_png_chunks(png_file, [(b"tEXt", b"a\0b")] * 100_000), "refused"),
        "eXIf loop": (insert_png_chunks(png_file, [(b"eXIf", loop)]), "accepted"),
        "EXIF loop": (app1(loop), "accepted"),
        "EXIF directory far outside": (app1(b"II*\0\xf0\xff\xff\xff"), "accepted"),
        "EXIF of 65,535 entries": (app1(b"II*\0\x08\0\0\0\xff\xff" + bytes(60_000)), "accepted"),
        "EXIF cut": (app1(b"II*\0\x08\0"), "accepted"),
        "XMP of 8 MB": (
            insert_jpeg_segments(jpeg, *[jpeg_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + b" " * 65_000)] * 128),
            "accepted",
        ),
        "XMP of 16 MB": (
            insert_jpeg_segments(jpeg, *[jpeg_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + b" " * 65_000)] * 256),
            "refused",
        ),
        "1,000 APP segments": (insert_jpeg_segments(jpeg, *[jpeg_segment(0xED, b"Photoshop 3.0\x008BIM" + bytes(999))] * 1000), "accepted"),
        "70,000 APP segments": (insert_jpeg_segments(jpeg, *[jpeg_segment(0xE5, b"")] * 70_000), "refused"),
        "ICC of 5 MB": (insert_jpeg_segments(jpeg, *icc_segments(bytes(5 * 2**20))), "accepted"),
        "ICC of random bytes": (insert_jpeg_segments(jpeg, *icc_segments(random.Random(1).randbytes(9999))), "accepted"),
        "ICC cut": (insert_jpeg_segments(jpeg, *icc_segments(rgb_profile(P3_PRIMARIES, 2.2)[:200])), "accepted"),
        "JPEG of 5,000 scans": (jpeg[:-2] + scan[:14] * 5000 + b"\xff\xd9", "refused"),
        "GIF comment of 5 MB": (gif(64, 48, [gif_comment(5 * 2**20), dot], palette), "accepted"),
        "GIF comment in single bytes": (gif(64, 48, [gif_comment(2**20, block=1), dot], palette), "refused"),
        "80,000 GIF comments": (gif(64, 48, [gif_comment(5)] * 80_000 + [dot], palette), "refused"),
        "WebP XMP of 5 MB and EXIF loop": (riff(vp8x(64, 48, 12), webp, (b"EXIF", loop), (b"XMP ", bytes(5 * 2**20))), "accepted"),
        "100,000 unknown WebP chunks": (riff(vp8x(64, 48), *[(b"junk", b"")] * 100_000, webp), "refused"),
    }
    for name, (data, expected) in files.items():
        yield Case(name, data, expected, size=(64, 48))


def truncations(_: Path) -> Iterator[Case]:
    picture = photo(200, 150)
    for kind, options in (("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {}), ("GIF", {})):
        data = encode(picture, kind, **options)
        for twelfth in range(12):
            # The last cut takes a byte of the picture or an end marker; a GIF that lacks only its last byte still has its picture.
            cut = len(data) * twelfth // 12 if twelfth else len(data) - 3
            yield Case(f"{kind} {options or ''} cut at {cut} of {len(data)}", data[:cut], "refused")


def good_files() -> dict[str, bytes]:
    """Twenty ordinary files of all formats and modes."""
    picture = photo(120, 90, seed=2)
    alpha = picture.copy()
    alpha.putalpha(Image.linear_gradient("L").resize(picture.size))
    files = {
        f"JPEG {mode} {options}": encode(picture.convert(mode), "JPEG", **options)
        for mode in ("RGB", "L", "CMYK")
        for options in ({}, {"progressive": True})
    }
    files |= {f"PNG {mode}": encode(alpha.convert(mode), "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA")}
    files |= {
        f"WebP {mode} {lossless}": encode(alpha.convert(mode), "WEBP", lossless=lossless) for mode in ("RGB", "RGBA") for lossless in (0, 1)
    }
    files |= {f"GIF {mode}": encode(picture.convert(mode), "GIF") for mode in ("L", "P")}
    files["PNG I;16"] = png([random.Random(row).randbytes(240) for row in range(90)], 120, 16, 0)
    files["JPEG with EXIF and ICC"] = encode(picture, "JPEG", exif=b"Exif\0\0" + orientation(6), icc_profile=rgb_profile(P3_PRIMARIES, 2.2))
    return files


def bit_flips(_: Path) -> Iterator[Case]:
    for name, data in good_files().items():
        for seed in range(5):
            flipped = bytearray(data)
            bit = random.Random(f"{name} {seed}").randrange(8 * len(data))
            flipped[bit // 8] ^= 1 << bit % 8
            yield Case(f"{name}, bit {bit}", bytes(flipped), "either")


def mutated(generator: random.Random, files: list[bytes]) -> bytes:
    """A good file with some bytes changed, mostly near its beginning, and sometimes a piece of another file put in or one taken out."""
    data = bytearray(generator.choice(files))
    for _ in range(generator.choice((1, 2, 5, 30))):
        place = int(generator.expovariate(1 / 60)) if generator.random() < 0.7 else generator.randrange(len(data))
        data[min(place, len(data) - 1)] = generator.choice((0, 1, 127, 128, 255, generator.randrange(256)))
    cut = generator.randrange(len(data))
    change = generator.random()
    if change < 0.2:
        data[cut:cut] = generator.choice(files)[: generator.randrange(200)]
    elif change < 0.3:
        del data[cut : cut + generator.randrange(50)]
    return bytes(data)


def animations(_: Path) -> Iterator[Case]:
    red, blue = (255, 0, 0), (0, 0, 255)
    palette = (red, blue, (0, 255, 0))
    pictures = [webp_picture(encode(Image.new("RGB", (4, 4), colour), "WEBP", lossless=True)) for colour in (red, blue)]
    clear = webp_picture(encode(Image.new("RGBA", (4, 4), (*blue, 0)), "WEBP", lossless=True, exact=True))

    def webp(*frames: tuple[bytes, bytes], canvas: int = 4) -> bytes:
        return riff(vp8x(canvas, canvas, 0x12), (b"ANIM", bytes(6)), *frames)

    def apng(*parts: tuple[bytes, bytes]) -> bytes:
        return png([bytes(red) * 4] * 4, 4, 8, 2, before=[(b"acTL", struct.pack(">II", 2, 0)), control], after=parts)

    def frame_data(number: int) -> tuple[bytes, bytes]:
        return b"fdAT", struct.pack(">I", number) + zlib.compress((b"\0" + bytes(blue) * 4) * 4)

    control = (b"fcTL", struct.pack(">IIIIIHHBB", 0, 4, 4, 0, 0, 1, 10, 0, 0))
    first, second, still = gif_frame(4, 4, 0), gif_frame(4, 4, 1), anmf(pictures[0], 4, 4)
    moving = anmf(pictures[1], 4, 4)
    files: dict[str, tuple[bytes, Expected, Colour, Colour]] = {  # colours at the top left and in the middle
        "GIF of 2 frames": (gif(4, 4, [first, second], palette), "accepted", red, red),
        "GIF of 500": (gif(4, 4, [first] + [second] * 499, palette), "accepted", red, red),
        "GIF of 100,000": (gif(4, 4, [first] + [second] * 99_999, palette), "accepted", red, red),
        "GIF without delay": (gif(4, 4, [gif_frame(4, 4, 0, delay=0), second], palette), "accepted", red, red),
        "GIF with a broken second frame": (gif(4, 4, [first, second[:12]], palette), "accepted", red, red),
        "GIF restored to background": (gif(4, 4, [gif_frame(4, 4, 0, disposal=2), second], palette, 1), "accepted", red, red),
        "GIF restored to previous": (gif(4, 4, [gif_frame(4, 4, 0, disposal=3), second], palette, 1), "accepted", red, red),
        "GIF whose first frame is a part": (gif(4, 4, [gif_frame(2, 2, 0, at=(1, 1)), second], palette, 1), "accepted", (255,) * 3, red),
        "GIF whose first frame is clear": (
            gif(4, 4, [gif_frame(4, 4, 1, transparent=1), second], palette),
            "accepted",
            (255,) * 3,
            (255,) * 3,
        ),
        "GIF without frames": (gif(4, 4, [], palette), "refused", red, red),
        "WebP of 2 frames": (webp(still, moving), "accepted", red, red),
        "WebP of 500": (webp(still, *[moving] * 499), "accepted", red, red),
        "WebP of 100,000": (webp(still, *[moving] * 99_999), "refused", red, red),
        "WebP without delay": (webp(anmf(pictures[0], 4, 4, delay=0), moving), "accepted", red, red),
        "WebP with a broken second frame": (webp(still, anmf((b"VP8L", b"junk"), 4, 4)), "accepted", red, red),
        "WebP disposed": (webp(anmf(pictures[0], 4, 4, flags=1), moving), "accepted", red, red),
        "WebP not blended": (webp(anmf(pictures[0], 4, 4, flags=2), moving), "accepted", red, red),
        "WebP whose first frame is a part": (webp(anmf(pictures[0], 4, 4, at=(2, 2)), moving, canvas=6), "accepted", (255,) * 3, red),
        "WebP whose first frame is clear": (webp(anmf(clear, 4, 4), moving), "accepted", (255,) * 3, (255,) * 3),
        "WebP without frames": (webp(), "refused", red, red),
        "APNG of 2 frames": (apng(control, frame_data(1)), "accepted", red, red),
        "APNG of 500": (apng(*[control, frame_data(1)] * 499), "accepted", red, red),
        "APNG of 100,000": (apng(*[control] * 99_999), "refused", red, red),
        "APNG with a broken second frame": (apng(control, (b"fdAT", b"junk")), "accepted", red, red),
        "APNG with an empty second frame": (apng(control, (b"fdAT", b"")), "accepted", red, red),
        "APNG without data of a second frame": (apng(control), "accepted", red, red),
        "APNG that counts wrong": (apng(*[control, frame_data(9)] * 3), "accepted", red, red),
        "APNG data before its control": (apng(frame_data(1), control), "accepted", red, red),
        "APNG frame beyond its canvas": (
            apng((b"fcTL", struct.pack(">IIIIIHHBB", 1, 2**31, 2**31, 0, 0, 1, 10, 0, 0)), frame_data(2)),
            "accepted",
            red,
            red,
        ),
        "APNG counting 2^32-1 frames": (
            png([bytes(red) * 4] * 4, 4, 8, 2, before=[(b"acTL", struct.pack(">II", 2**32 - 1, 0)), control]),
            "accepted",
            red,
            red,
        ),
    }
    for name, (data, expected, corner, middle) in files.items():
        yield Case(name, data, expected, pixels=(((0, 0), corner), ((2, 2), middle)))


# By content -----------------------------------------------------------------------------------------------------------------------------


def srgb_of(colour: Colour, primaries: tuple[tuple[float, float, float], ...], gamma: float) -> Colour:
    """The sRGB colour that a profile's colour stands for, clipped: the textbook's matrices, independent of any library."""
    linear = [(value / 255) ** gamma for value in colour]
    xyz = [sum(linear[column] * primaries[column][row] for column in range(3)) for row in range(3)]
    from_xyz = ((3.13386, -1.61687, -0.49062), (-0.97877, 1.91614, 0.03345), (0.07195, -0.22899, 1.40524))  # D50 to linear sRGB
    values = [min(1.0, max(0.0, sum(weight * value for weight, value in zip(row, xyz, strict=True)))) for row in from_xyz]
    encoded = [12.92 * value if value <= 0.0031308 else 1.055 * value ** (1 / 2.4) - 0.055 for value in values]
    return tuple(round(255 * value) for value in encoded)  # type: ignore[return-value]


def colour_modes(_: Path) -> Iterator[Case]:
    yield from png_modes()
    yield from jpeg_and_profile_modes()


def png_modes() -> Iterator[Case]:
    """Two rows of one pattern in each colour type; golden are the first two pixels."""

    def case(
        name: str, row: bytes, width: int, depth: int, colour: int, first: Colour, second: Colour, *before: tuple[bytes, bytes]
    ) -> Case:
        data = png([row] * 2, width, depth, colour, before=before)
        return Case(f"PNG {name}", data, "accepted", size=(width, 2), pixels=(((0, 0), first), ((1, 1), second)), tolerance=1)

    def grey(value: int) -> Colour:
        return (value, value, value)

    def over_white(colour: Colour, alpha: int) -> Colour:
        return tuple(round((value * alpha + 255 * (255 - alpha)) / 255) for value in colour)  # type: ignore[return-value]

    def transparent(*samples: int) -> tuple[bytes, bytes]:
        return b"tRNS", struct.pack(f">{len(samples)}H", *samples)

    white, orange, teal = grey(255), (200, 100, 50), (10, 120, 130)
    palette = (b"PLTE", bytes((*orange, *teal, 1, 2, 3, 4, 5, 6)))
    yield case("grey 1", b"\x40", 2, 1, 0, grey(0), grey(255))
    yield case("grey 2", b"\x60", 2, 2, 0, grey(85), grey(170))
    yield case("grey 4", b"\x3c", 2, 4, 0, grey(51), grey(204))
    yield case("grey 8", b"\x07\xf0", 2, 8, 0, grey(7), grey(240))
    yield case("grey 16", b"\x80\x01\x00\xff", 2, 16, 0, grey(128), grey(0))
    yield case("grey 1 tRNS", b"\x40", 2, 1, 0, white, grey(255), transparent(0))
    yield case("grey 2 tRNS", b"\x60", 2, 2, 0, white, grey(170), transparent(1))
    yield case("grey 4 tRNS", b"\x3c", 2, 4, 0, grey(51), white, transparent(12))
    yield case("grey 8 tRNS", b"\x07\xf0", 2, 8, 0, white, grey(240), transparent(7))
    yield case("grey 16 tRNS", b"\x40\x01\x40\x02", 2, 16, 0, white, grey(64), transparent(0x4001))
    yield case("RGB 8", bytes((*orange, *teal)), 2, 8, 2, orange, teal)
    yield case("RGB 8 tRNS", bytes((*orange, *teal)), 2, 8, 2, white, teal, transparent(*orange))
    yield case("RGB 8 tRNS alike", bytes((*orange, *teal)), 2, 8, 2, orange, teal, transparent(200, 100, 51))
    yield case("RGB 16", struct.pack(">6H", 0x80FF, 0, 0xFF00, 1, 2, 255), 2, 16, 2, (128, 0, 255), (0, 0, 0))
    yield case(
        "RGB 16 tRNS", struct.pack(">6H", 0x8001, 0, 0xFF00, 1, 2, 0x4000), 2, 16, 2, white, (0, 0, 64), transparent(0x8001, 0, 0xFF00)
    )
    yield case("palette 1", b"\x40", 2, 1, 3, orange, teal, palette)
    yield case("palette 2", b"\x10", 2, 2, 3, orange, teal, palette)
    yield case("palette 8", b"\x00\x01", 2, 8, 3, orange, teal, palette)
    yield case("palette tRNS", b"\x00\x01", 2, 8, 3, white, over_white(teal, 128), palette, (b"tRNS", b"\x00\x80"))
    yield case("palette with a short tRNS", b"\x00\x01", 2, 8, 3, white, teal, palette, (b"tRNS", b"\x00"))
    yield case("grey and alpha", b"\x07\x00\x07\xff", 2, 8, 4, white, grey(7))
    yield case("grey and alpha 16", struct.pack(">4H", 0x4000, 0, 0x4000, 0xFFFF), 2, 16, 4, white, grey(64))
    yield case("RGBA", bytes((*orange, 0, *teal, 128)), 2, 8, 6, white, over_white(teal, 128))
    yield case("RGBA 16", struct.pack(">8H", 256, 0, 0, 0, 0x80FF, 0, 0xFFFF, 0xFFFF), 2, 16, 6, white, (128, 0, 255))


def jpeg_and_profile_modes() -> Iterator[Case]:
    def case(name: str, data: bytes, golden: Colour, tolerance: int = 2, expected: Expected = "accepted") -> Case:
        return Case(name, data, expected, size=(16, 16), pixels=(((8, 8), golden),), tolerance=tolerance)

    orange, inks = (200, 100, 50), (10, 200, 30, 40)
    solid, grey, cmyk = Image.new("RGB", (16, 16), orange), Image.new("L", (16, 16), 55), Image.new("CMYK", (16, 16), inks)
    printed: Colour = tuple(round((255 - ink) * (255 - inks[3]) / 255) for ink in inks[:3])  # type: ignore[assignment]
    adobe = encode(cmyk, "JPEG", quality=100)
    marker = adobe.index(b"Adobe") - 4
    # Adobe's transform 2: the samples, stored inverted, mean Y, Cb, Cr and K.
    luma, blue, red, key = (255 - ink for ink in inks)
    ycc = (luma + 1.402 * (red - 128), luma - 0.344 * (blue - 128) - 0.714 * (red - 128), luma + 1.772 * (blue - 128))
    ycck: Colour = tuple(round((255 - min(255, max(0, value))) * key / 255) for value in ycc)  # type: ignore[assignment]
    linear, wide = rgb_profile(SRGB_PRIMARIES, 1.0), rgb_profile(P3_PRIMARIES, 2.2)
    wide_golden = srgb_of(orange, P3_PRIMARIES, 2.2)
    yield case("JPEG grey", encode(grey, "JPEG"), (55, 55, 55))
    yield case("JPEG YCbCr", encode(solid, "JPEG", quality=100), orange)
    yield case("JPEG RGB", encode(solid, "JPEG", quality=100, keep_rgb=True), orange)
    yield case("JPEG CMYK, Adobe-inverted", adobe, printed)
    yield case("JPEG CMYK without Adobe marker", adobe[:marker] + adobe[marker + 16 :], printed)
    yield case("JPEG YCCK", adobe[: marker + 15] + b"\2" + adobe[marker + 16 :], ycck, 3)
    press = encode(Image.new("CMYK", (16, 16), (10, 200, 30, 0)), "JPEG", icc_profile=cmyk_profile((128, 128, 128)))
    yield case("JPEG CMYK with a profile", press, (119, 119, 119), 3)
    yield case("JPEG grey with a linear profile", encode(grey, "JPEG", icc_profile=grey_profile(1.0)), (128, 128, 128))
    yield case("JPEG P3", encode(solid, "JPEG", quality=100, icc_profile=wide), wide_golden, 3)
    yield case("PNG P3", encode(solid, "PNG", icc_profile=wide), wide_golden)
    yield case("PNG linear", encode(solid, "PNG", icc_profile=linear), srgb_of(orange, SRGB_PRIMARIES, 1.0))
    yield case("WebP P3", encode(solid, "WEBP", lossless=True, icc_profile=wide), wide_golden)
    yield case("PNG with a grey profile on RGB", encode(solid, "PNG", icc_profile=grey_profile(1.0)), orange, 0)
    yield case("TIFF F", encode(Image.new("F", (16, 16)), "TIFF"), orange, expected="refused")
    yield case("TIFF LAB", encode(Image.new("LAB", (16, 16)), "TIFF"), orange, expected="refused")
    yield case("TIFF I;16B", encode(Image.new("I;16B", (16, 16)), "TIFF"), orange, expected="refused")


def exif_orientations(_: Path) -> Iterator[Case]:
    corners = {"A": (255, 0, 0), "B": (0, 255, 0), "C": (0, 0, 255), "D": (0, 0, 0)}  # as stored, clockwise from the top left
    stored = Image.new("RGB", (32, 16))
    for letter, place in zip("ABCD", ((0, 0), (16, 0), (16, 8), (0, 8)), strict=True):
        stored.paste(corners[letter], (*place, place[0] + 16, place[1] + 8))
    shown = {1: "ABCD", 2: "BADC", 3: "CDAB", 4: "DCBA", 5: "ADCB", 6: "DABC", 7: "CBAD", 8: "BCDA"}

    def case(name: str, data: bytes, value: int) -> Case:
        width, height = (16, 32) if value >= 5 else (32, 16)
        places = ((1, 1), (width - 2, 1), (width - 2, height - 2), (1, height - 2))
        golden = tuple((place, corners[letter]) for place, letter in zip(places, shown[value], strict=True))
        return Case(name, data, "accepted", size=(width, height), pixels=golden, tolerance=12)

    def jpeg(block: bytes) -> bytes:
        return encode(stored, "JPEG", quality=95, subsampling=0, exif=b"Exif\0\0" + block)

    for value in (*range(1, 9), 0, 9, 99, 65535):
        yield case(f"orientation {value}", jpeg(orientation(value)), value if value in shown else 1)
    yield case("orientation of type LONG", jpeg(orientation(6, kind=4)), 1)
    yield case("two orientations", jpeg(exif((0x0112, 3, 1, 8), (0x0112, 3, 1, 3))), 8)
    yield case("PNG eXIf after the pixels", insert_before_end(encode(stored, "PNG"), png_chunk(b"eXIf", orientation(6))), 6)
    picture = webp_picture(encode(stored, "WEBP", lossless=True))
    yield case("WebP EXIF", riff(vp8x(32, 16, 8), picture, (b"EXIF", orientation(5))), 5)


def insert_before_end(data: bytes, chunk: bytes) -> bytes:
    return data[:-12] + chunk + data[-12:]


# By type and source ---------------------------------------------------------------------------------------------------------------------


def wrong_types(_: Path) -> Iterator[Case]:
    picture = photo(64, 64)
    for kind in ("EPS", "PDF", "PCX", "SGI", "TGA", "ICNS", "ICO", "JPEG2000", "AVIF", "TIFF", "DDS", "BMP", "PPM", "IM", "SPIDER"):
        source = picture.convert("F") if kind == "SPIDER" else picture
        yield Case(kind, encode(source, kind), "refused")
    for kind in ("XBM", "MSP"):
        yield Case(kind, encode(picture.convert("1"), kind), "refused")
    beginnings = {
        "PostScript": b"%!PS-Adobe-3.0\n/run (ls) def",
        "SVG with a script": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
        "HTML": b"<!doctype html><img src=x onerror=alert(1)>",
        "PSD": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 30_000, 30_000, 8, 3),
        "FLI": struct.pack("<IHHHH", 128, 0xAF11, 10, 64, 64) + bytes(200),
        "BLP": b"BLP2" + bytes(200),
        "HEIC": b"\0\0\0\x18ftypheic" + bytes(200),
        "TrueType font": b"\0\1\0\0\0\x0c" + bytes(200),
        "ZIP": b"PK\3\4" + bytes(200),
        "gzip": b"\x1f\x8b\x08" + bytes(200),
        "RIFF that is a WAV": riff((b"fmt ", bytes(16))).replace(b"WEBP", b"WAVE"),
        "JPEG XL": b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(200),
    }
    for name, data in beginnings.items():
        yield Case(name, data, "refused")
    # Not a foreign type: phones write a JPEG with a second picture (gain map, depth) behind the first and call it MPO.
    several = encode(picture, "MPO", save_all=True, append_images=[photo(32, 32)])
    yield Case("MPO", several, "accepted", size=(64, 64))


def polyglots(_: Path) -> Iterator[Case]:
    picture = photo(64, 48)
    tails = {
        "ZIP": b"PK\3\4" + bytes(26) + b"PK\5\6" + bytes(18),
        "PHP": b"<?php system($_GET['c']); ?>",
        "HTML": b"<html><script>alert(1)</script>",
        "JS": b"*/=1;alert(1)//",
        "8 MB": bytes(8 * 2**20),
    }
    for kind in ("JPEG", "PNG", "WEBP", "GIF"):
        data = encode(picture, kind)
        for name, tail in tails.items():
            # The golden pixel comes from the file without its tail.
            yield Case(f"{kind} + {name}", data + tail, "accepted", size=(64, 48), pixels=(((9, 9), open_image(data).getpixel((9, 9))),))  # type: ignore[arg-type]


def data_urls(_: Path) -> Iterator[Case]:
    # Bytes whose base64 holds '+', '/' and padding, so that each variant below is one.
    data = next(item for seed in range(999) if {*"+/="} <= {*base64.b64encode(item := encode(photo(20, 20, seed), "JPEG")).decode()})
    text = base64.b64encode(data).decode()
    head = "data:image/jpeg;base64,"
    lines = "\r\n".join(text[start : start + 76] for start in range(0, len(text), 76))
    accepted = {
        "plain": head + text,
        "no padding": head + text.rstrip("="),
        "URL-safe": head + text.replace("+", "-").replace("/", "_"),
        "line breaks": head + lines,
        "percent-encoded": head + text.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D"),
        "PNG said, JPEG sent": head.replace("jpeg", "png") + text,
        "image/jpg": head.replace("jpeg", "jpg") + text,
        "no type": "data:;base64," + text,
        "octet-stream": "data:application/octet-stream;base64," + text,
        "a parameter more": "data:image/jpeg;name=a.jpg;base64," + text,
        "capitals": "DATA:IMAGE/JPEG;BASE64," + text,
        "trailing line break": head + text + "\n",
        "too much padding": head + text + "==",
    }
    refused = {
        "spaces for plus signs": head + text.replace("+", " "),
        "not base64": head + "!" + text,
        "a letter too many": head + base64.b64encode(data[: len(data) // 3 * 3]).decode() + "A",
        "cut": head + text[: len(text) // 2],
        "no bytes": head,
        "data:,": "data:,",
        "data: alone": "data:",
        "no ;base64": "data:image/jpeg," + text,
        "base64 elsewhere": "data:image/jpeg;base64;charset=x," + text,
        "no comma": "data:image/jpeg;base64" + text,
        "HTML": "data:text/html;base64," + text,
        "nested": head + base64.b64encode((head + text).encode()).decode(),
        "30 MB": head + "A" * (30 * 2**20),
        "NUL": head + "\0" + text,
        "letters that are not ASCII": head + "\u0410" + text,
        "https": "https://example.org/cat.jpg",
        "file": "file:///etc/passwd",
    }
    for cases, expected in ((accepted, "accepted"), (refused, "refused")):
        for name, address in cases.items():
            yield Case(name, address, expected, size=(20, 20))  # type: ignore[arg-type]


def paths(folder: Path) -> Iterator[Case]:
    """A root behind a symbolic link, in which some names lead out, hang or are no files."""
    real, outside = folder / "real", folder / "outside"
    (real / "inner").mkdir(parents=True)
    outside.mkdir()
    picture = encode(photo(20, 20), "PNG")
    odd = "line\nbreak \u202egnp.png"
    for path in (outside / "secret.png", real / "good.png", real / "inner" / "good.png", real / odd, real / ("n" * 251 + ".png")):
        path.write_bytes(picture)
    root = folder / "root"
    root.symlink_to(real)
    (real / "link.png").symlink_to(outside / "secret.png")
    (real / "linked").symlink_to(outside)
    (real / "loop.png").symlink_to("loop.png")
    os.mkfifo(real / "pipe.png")
    names: dict[str, Expected] = {
        "good.png": "accepted",
        "inner/good.png": "accepted",
        odd: "accepted",
        "n" * 251 + ".png": "accepted",
        "../outside/secret.png": "refused",
        "inner/../../outside/secret.png": "refused",
        str(outside / "secret.png"): "refused",
        "link.png": "refused",
        "linked/secret.png": "refused",
        "loop.png": "refused",
        "pipe.png": "refused",
        "inner": "refused",
        "/dev/zero": "refused",
        "nul\0.png": "refused",
        "n" * 300: "refused",
        "missing.png": "refused",
    }
    for name, expected in names.items():
        yield Case(repr(name[:40]), Path(name), expected, root=root)


def twins(_: Path) -> Iterator[Case]:
    """Pairs that a careless key takes for one picture, or for two."""

    def pair(name: str, one: bytes, other: bytes, *, same: bool = False) -> Iterator[Case]:
        for number, data in enumerate((one, other)):
            yield Case(f"{name} {number}", data, "accepted", twin=name + ("=" if same else ""))

    noise = random.Random(3).randbytes(3 * 3000)
    for width, height in ((30, 100), (60, 50), (25, 120), (15, 200)):
        images = [Image.frombytes("RGB", size, noise) for size in ((width, height), (height, width))]
        yield from pair(f"same bytes, {width}×{height}", *(encode(image, "PNG") for image in images))
    palettes = [(b"PLTE", bytes(colours)) for colours in ((1, 2, 3, 4, 5, 6), (4, 5, 6, 1, 2, 3))]
    yield from pair("palettes", *(png([b"\0\1"] * 2, 2, 8, 3, before=[palette]) for palette in palettes))
    yield from pair("GIF palettes", *(gif(4, 4, [gif_frame(4, 4, 1)], ((0, 0, 0), colour)) for colour in ((1, 2, 3), (3, 2, 1))))
    solid = Image.new("RGB", (16, 16), (200, 100, 50))
    yield from pair("profiles", encode(solid, "PNG"), encode(solid, "PNG", icc_profile=rgb_profile(P3_PRIMARIES, 2.2)))
    jpeg, other = encode(photo(40, 40, 1), "JPEG"), encode(photo(40, 40, 2), "JPEG")
    yield from pair("orientations", *(encode(photo(40, 30), "JPEG", exif=b"Exif\0\0" + orientation(value)) for value in (1, 3)))
    thumbnails = [jpeg_segment(0xE1, b"Exif\0\0" + exif(following=26) + bytes(16) + thumbnail) for thumbnail in (jpeg, other)]
    yield from pair("same thumbnail", *(insert_jpeg_segments(data, thumbnails[0]) for data in (jpeg, other)))
    yield from pair("other thumbnail", *(insert_jpeg_segments(jpeg, thumbnail) for thumbnail in thumbnails), same=True)
    yield from pair("alpha", *(png([bytes((9, 9, 9, alpha)) * 4] * 4, 4, 8, 6) for alpha in (10, 200)))
    yield from pair("colour under alpha 0", *(png([bytes((value, 9, 9, 0)) * 4] * 4, 4, 8, 6) for value in (10, 200)), same=True)
    # gAMA is ignored, as nearly all programs do for pictures that people see: what the model sees is the same.
    plain = encode(photo(40, 40), "PNG")
    yield from pair("gAMA", plain, insert_png_chunks(plain, [(b"gAMA", struct.pack(">I", 100_000))]), same=True)
    yield from pair("comments", plain, insert_png_chunks(plain, [(b"tEXt", b"a\0b")]), same=True)
    yield from pair("one pixel", *(png([bytes((value, 9, 9)) + bytes(9)] * 4, 4, 8, 2) for value in (0, 1)))


def random_bytes(_: Path) -> Iterator[Case]:
    generator = random.Random(4)
    for number in range(5):
        yield Case(f"64 KB of noise {number}", generator.randbytes(65_536), "refused")
    for size in (0, 1, 65_536):
        yield Case(f"{size} zeros", bytes(size), "refused")
    magics = {"JPEG": b"\xff\xd8\xff\xe0", "PNG": b"\x89PNG\r\n\x1a\n", "WebP": b"RIFF\xff\xff\0\0WEBP", "GIF": b"GIF89a"}
    for name, magic in magics.items():
        for number in range(3):
            yield Case(f"{name} magic and noise {number}", magic + generator.randbytes(65_536), "refused")


FAMILIES: dict[str, tuple[int, Callable[[Path], Iterator[Case]]]] = {
    "area bombs": (24, area_bombs),
    "pad bombs": (20, pad_bombs),
    "forged headers": (20, forged_headers),
    "metadata bombs": (24, metadata_bombs),
    "truncations": (60, truncations),
    "bit flips": (100, bit_flips),
    "colour modes": (40, colour_modes),
    "EXIF orientation": (16, exif_orientations),
    "animation": (30, animations),
    "tiny": (20, tiny),
    "wrong type": (30, wrong_types),
    "polyglots": (20, polyglots),
    "data URLs": (30, data_urls),
    "names and paths": (16, paths),
    "same bytes, other picture": (30, twins),
    "random": (20, random_bytes),
}


def largest_allowed(_: Path) -> Iterator[Case]:
    """Not hostile and not of the 500: pictures of 24 MP, the most that is accepted, for the figures of memory and time."""
    size = (6000, 4000)
    flat = Image.new("RGB", size, (200, 100, 50))
    yield Case("PNG RGBA", black_png(*size, 8, 6), "accepted", size=size)
    yield Case("PNG RGBA 16", black_png(*size, 16, 6), "accepted", size=size)
    yield Case("PNG grey 16", black_png(*size, 16, 0), "accepted", size=size)
    yield Case("PNG P3", encode(flat, "PNG", compress_level=1, icc_profile=rgb_profile(P3_PRIMARIES, 2.2)), "accepted", size=size)
    yield Case("JPEG turned", encode(flat, "JPEG", exif=b"Exif\0\0" + orientation(6)), "accepted", size=size[::-1])
    yield Case("JPEG progressive 4:4:4", encode(flat, "JPEG", progressive=True, subsampling=0), "accepted", size=size)
    yield Case(
        "JPEG CMYK with a profile", encode(flat.convert("CMYK"), "JPEG", icc_profile=cmyk_profile((128, 128, 128))), "accepted", size=size
    )
    yield Case("WebP", encode(flat, "WEBP", method=0), "accepted", size=size)
    yield Case("WebP RGBA lossless", encode(flat.convert("RGBA"), "WEBP", lossless=True, method=0, quality=0), "accepted", size=size)
    yield Case("GIF", encode(flat.convert("P"), "GIF"), "accepted", size=size)


def make(family: str, folder: Path) -> list[Case]:
    """The cases of one family, or of "largest allowed"."""
    return list(largest_allowed(folder) if family == "largest allowed" else FAMILIES[family][1](folder))


# Judging one family in this process -----------------------------------------------------------------------------------------------------


def _status_bytes(field: str) -> int:
    return int(Path("/proc/self/status").read_text().split(field + ":")[1].split()[0]) * 1024


def judge_measured(case: Case, idle: int) -> Verdict:
    """Judges with the time and the peak of resident memory above `idle` bytes (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is resident now
    start = time.perf_counter()
    verdict = judge(case)
    seconds = time.perf_counter() - start
    return replace(verdict, seconds=seconds, megabytes=(_status_bytes("VmHWM") - idle) / 2**20)


def main(family: str, folder: str) -> None:
    import resource

    cases = make(family, Path(folder))
    judge(Case("warm-up", encode(photo(64, 48), "PNG"), "accepted"))
    address_space = 512 * 2**20 + _status_bytes("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))
    idle = _status_bytes("VmRSS")
    for case in cases:
        sys.stdout.write(json.dumps(asdict(judge_measured(case, idle))) + "\n")
        sys.stdout.flush()


def judge_in_child(family: str, folder: Path) -> list[Verdict]:
    """Judges one family in a process of its own with 512 MB of memory. Raises CalledProcessError if it dies."""
    command = [sys.executable, __file__, family, str(folder)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout.splitlines()
    return [Verdict(**json.loads(line)) for line in lines]


if __name__ == "__main__":
    main(*sys.argv[1:])
