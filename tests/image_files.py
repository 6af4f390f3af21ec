"""Image files made by hand, for what no ordinary encoder writes: forged headers, odd colour types, profiles, animations, bombs.

Everything is deterministic and small; only `encode` and `photo` use Pillow.
"""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Iterable

from PIL import Image

Chunk = tuple[bytes, bytes]
Colour = tuple[int, int, int]


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth coloured picture that compresses like a photograph."""
    small = (max(2, width // 8), max(2, height // 8))
    return Image.frombytes("RGB", small, random.Random(seed).randbytes(3 * small[0] * small[1])).resize(
        (width, height), Image.Resampling.BICUBIC
    )


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


# PNG ------------------------------------------------------------------------------------------------------------------------------------


def png_chunk(kind: bytes, body: bytes, *, crc: int | None = None) -> bytes:
    return struct.pack(">I4s", len(body), kind) + body + struct.pack(">I", zlib.crc32(kind + body) if crc is None else crc)


def png_from_chunks(chunks: Iterable[Chunk]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, body) for kind, body in chunks)


def ihdr(width: int, height: int, depth: int = 8, colour: int = 2, *, filtering: int = 0) -> Chunk:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, filtering, 0)


def png(rows: list[bytes], width: int, depth: int, colour: int, before: Iterable[Chunk] = (), after: Iterable[Chunk] = ()) -> bytes:
    """A PNG of raw rows. Colour types: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGB and alpha."""
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return png_from_chunks([ihdr(width, len(rows), depth, colour), *before, (b"IDAT", pixels), *after, (b"IEND", b"")])


def black_png(width: int, height: int, depth: int = 1, colour: int = 0) -> bytes:
    """A black PNG of any size, without ever holding its pixels: one deflated block of zeros, repeated."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    size = height * (1 + (width * depth * channels + 7) // 8)
    blocks, rest = divmod(size, 2**20)
    block, tail = (zlib.compressobj(9, wbits=-15) for _ in range(2))
    repeated = block.compress(bytes(2**20)) + block.flush(zlib.Z_FULL_FLUSH) if blocks else b""
    checksum = (size % 65521) << 16 | 1  # Adler-32 of `size` zeros
    stream = b"\x78\xda" + repeated * blocks + tail.compress(bytes(rest)) + tail.flush() + struct.pack(">I", checksum)
    return png_from_chunks([ihdr(width, height, depth, colour), (b"IDAT", stream), (b"IEND", b"")])


def insert_png_chunks(data: bytes, chunks: Iterable[Chunk]) -> bytes:
    """The same PNG with more chunks after its IHDR."""
    return data[:33] + b"".join(png_chunk(kind, body) for kind, body in chunks) + data[33:]


# JPEG -----------------------------------------------------------------------------------------------------------------------------------


def jpeg_segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def insert_jpeg_segments(data: bytes, *segments: bytes) -> bytes:
    """The same JPEG with more segments after its start marker."""
    return data[:2] + b"".join(segments) + data[2:]


def replace_jpeg_size(data: bytes, width: int, height: int) -> bytes:
    position = data.index(b"\xff\xc0") + 5
    return data[:position] + struct.pack(">HH", height, width) + data[position + 4 :]


def icc_segments(profile: bytes) -> list[bytes]:
    parts = [profile[start : start + 65_000] for start in range(0, len(profile), 65_000)]
    return [jpeg_segment(0xE2, b"ICC_PROFILE\0" + bytes([number, len(parts)]) + part) for number, part in enumerate(parts, 1)]


# EXIF -----------------------------------------------------------------------------------------------------------------------------------


def exif(*entries: tuple[int, int, int, int], following: int = 0) -> bytes:
    """A TIFF block with (tag, type, count, value) entries; `following` is the offset of the next directory."""
    body = b"".join(struct.pack("<HHIHH", tag, kind, count, value, 0) for tag, kind, count, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + struct.pack("<I", following)


def orientation(value: int, *, kind: int = 3) -> bytes:
    return exif((0x0112, kind, 1, value))


# GIF ------------------------------------------------------------------------------------------------------------------------------------


def gif(width: int, height: int, frames: Iterable[bytes], palette: tuple[Colour, ...], background: int = 0) -> bytes:
    bits = max(1, (len(palette) - 1).bit_length())
    colours = b"".join(bytes(colour) for colour in palette).ljust(3 * 2**bits, b"\0")
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80 | bits - 1, background, 0) + colours + b"".join(frames) + b";"


def gif_frame(
    width: int, height: int, index: int, *, at: tuple[int, int] = (0, 0), delay: int = 10, disposal: int = 0, transparent: int | None = None
) -> bytes:
    """A frame of one colour. Every pixel is written as a clear code and a literal, so no LZW table is needed."""
    flags = disposal << 2 | (transparent is not None)
    control = b"!\xf9\x04" + struct.pack("<BHB", flags, delay, transparent or 0) + b"\0"
    codes = [code for _ in range(width * height) for code in (4, index)] + [5]  # of 3 bits: 4 clears, 5 ends
    bits = sum(code << 3 * place for place, code in enumerate(codes))
    data = bits.to_bytes((3 * len(codes) + 7) // 8, "little")
    blocks = b"".join(bytes([len(part)]) + part for part in (data[start : start + 255] for start in range(0, len(data), 255)))
    return control + b"," + struct.pack("<HHHHB", *at, width, height, 0) + b"\2" + blocks + b"\0"


def gif_comment(size: int, block: int = 255) -> bytes:
    whole, rest = divmod(size, block)
    tail = bytes([rest]) + b"c" * rest if rest else b""
    return b"!\xfe" + (bytes([block]) + b"c" * block) * whole + tail + b"\0"


# WebP -----------------------------------------------------------------------------------------------------------------------------------


def riff(*chunks: Chunk) -> bytes:
    body = b"WEBP" + b"".join(kind + struct.pack("<I", len(part)) + part + b"\0" * (len(part) % 2) for kind, part in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def webp_picture(data: bytes) -> Chunk:
    """The picture chunk of a simple WebP file."""
    (length,) = struct.unpack_from("<I", data, 16)
    return data[12:16], data[20 : 20 + length]


def vp8x(width: int, height: int, flags: int = 0) -> Chunk:
    return b"VP8X", struct.pack("<I", flags) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")


def anmf(picture: Chunk, width: int, height: int, *, at: tuple[int, int] = (0, 0), delay: int = 100, flags: int = 0) -> Chunk:
    numbers = (at[0] // 2, at[1] // 2, width - 1, height - 1, delay)
    kind, body = picture
    padded = body + b"\0" * (len(body) % 2)
    return b"ANMF", b"".join(number.to_bytes(3, "little") for number in numbers) + bytes([flags]) + kind + struct.pack(
        "<I", len(body)
    ) + padded


# Colour profiles ------------------------------------------------------------------------------------------------------------------------

SRGB_PRIMARIES = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
P3_PRIMARIES = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
"""XYZ of red, green and blue, adapted to D50 as profiles have it."""


def _fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def _profile(space: bytes, connection: bytes, kind: bytes, tags: dict[bytes, bytes]) -> bytes:
    table, body, offset = b"", b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        content += b"\0" * (-len(content) % 4)
        table += name + struct.pack(">II", offset + len(body), len(content))
        body += content
    header = struct.pack(">I4sI4s4s4s", offset + len(body), b"vist", 0x02400000, kind, space, connection) + bytes(12) + b"acsp"
    header = header.ljust(68, b"\0") + _fixed(0.9642, 1.0, 0.8249)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def _curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))


def rgb_profile(primaries: tuple[tuple[float, float, float], ...], gamma: float) -> bytes:
    tags = {name: b"XYZ \0\0\0\0" + _fixed(*xyz) for name, xyz in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _curve(gamma))
    return _profile(b"RGB ", b"XYZ ", b"mntr", tags | {b"wtpt": b"XYZ \0\0\0\0" + _fixed(0.9642, 1.0, 0.8249)})


def grey_profile(gamma: float) -> bytes:
    return _profile(b"GRAY", b"XYZ ", b"mntr", {b"kTRC": _curve(gamma), b"wtpt": b"XYZ \0\0\0\0" + _fixed(0.9642, 1.0, 0.8249)})


def cmyk_profile(lab: tuple[int, int, int]) -> bytes:
    """A press on which every ink mixture has one colour, in 8-bit Lab, fading to black as black ink is added."""
    identity = bytes(range(256))
    table = (
        b"mft1\0\0\0\0"
        + bytes([4, 3, 2, 0])
        + _fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
        + identity * 4
        + (bytes(lab) + b"\0\x80\x80") * 8
        + identity * 3
    )
    return _profile(b"CMYK", b"Lab ", b"prtr", {b"A2B0": table, b"wtpt": b"XYZ \0\0\0\0" + _fixed(0.9642, 1.0, 0.8249)})
