"""What an image file says about itself, read without decoding a pixel.

`read_header` walks the parts of a JPEG, PNG, WebP or GIF file once and returns its size, orientation, colour profile and the *drawing*: the
same file with nothing but the parts that draw its first picture. Only the drawing ever reaches Pillow, so text chunks, thumbnails, further
frames, trailing archives and metadata bombs are never parsed by anyone. Limits on size and the origin of the bytes are the business of
`media.py`, the only caller.

Sources: PNG (W3C, third edition), JPEG (ITU T.81 annex B), GIF89a, the WebP container specification (RFC 9649), Exif 2.32 section 4.6.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass
from typing import Literal

from vistune.errors import ImageError

Format = Literal["JPEG", "PNG", "WEBP", "GIF"]
Area = tuple[int, int, int, int]

MAX_PARTS = 65_536
"""Chunks, segments or sub-blocks in one file. A 10 MiB GIF of full sub-blocks has 41,000; a walk of this many takes 50 ms."""
MAX_SCANS = 64
"""Scans of one JPEG. Encoders write 1 to 14; each is a pass over the whole picture, so thousands of empty ones are a bomb of time."""
MAX_ICC_BYTES = 4 * 2**20
"""A larger colour profile is ignored; press profiles for CMYK have 0.5 to 3 MB."""


@dataclass(frozen=True)
class ImageHeader:
    """An image file before decoding. Sizes are as stored, before the orientation is applied."""

    format: Format
    width: int
    height: int
    drawing: bytes
    """An image file of the same format that holds the first picture and nothing else."""
    area: Area
    """(left, top, right, bottom) of the canvas that the first frame covers; the rest is transparent. A WebP drawing is only this area."""
    orientation: int = 1
    """EXIF orientation 1 to 8; anything invalid is 1."""
    icc: bytes | None = None
    transparent: tuple[int, ...] | None = None
    """PNG without palette: the one sample value (grey) or triple (RGB) that is fully transparent, at `bit_depth`."""
    bit_depth: int = 8

    @property
    def upright_size(self) -> tuple[int, int]:
        """(width, height) as a person sees the picture."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


def read_header(data: bytes) -> ImageHeader:
    """Reads what the file says about itself; the format is decided by its first bytes, never by a name.

    Raises:
        ImageError: `format`, `truncated`, `broken` or `parts`.
    """
    for magic, read in _READERS:
        if re.match(magic, data, re.DOTALL):
            try:
                return read(data)
            except (struct.error, IndexError) as error:
                raise _truncated("in a header") from error
    raise ImageError("format", f"not a JPEG, PNG, WebP or GIF file (it begins with {data[:8].hex(' ')}); convert it to one of these")


MAGIC_BYTES = 12
"""Bytes of a file that tell its format."""


def is_known(beginning: bytes | bytearray) -> bool:
    """Whether a file that begins so may be one that `read_header` reads."""
    return any(re.match(magic, beginning, re.DOTALL) for magic, _ in _READERS)


def _truncated(where: str) -> ImageError:
    return ImageError("truncated", f"the file ends {where}; get a complete copy of it")


def _broken(found: str) -> ImageError:
    return ImageError("broken", f"{found}; save it again with an image editor")


def _too_many(what: str, limit: int) -> ImageError:
    return ImageError("parts", f"the file has over {limit:,} {what}, more than any picture needs; save it again with an image editor")


# PNG ------------------------------------------------------------------------------------------------------------------------------------

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_SINGLE = frozenset({b"IHDR", b"PLTE", b"tRNS", b"iCCP", b"eXIf"})


def _read_png(data: bytes) -> ImageHeader:
    chunks: dict[bytes, bytes] = {}
    pixels: list[bytes] = []
    position = len(_PNG_SIGNATURE)
    for _ in range(MAX_PARTS):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        if end + 4 > len(data):
            raise _truncated(f"inside a PNG chunk of {length:,} bytes")
        if position == 8 and (kind, length) != (b"IHDR", 13):
            raise _broken("the first PNG chunk is not IHDR")
        if kind == b"IEND":
            return _png_header(chunks, pixels)
        if kind == b"IDAT" or (kind in _PNG_SINGLE and kind not in chunks):
            body = data[position + 8 : end]
            if zlib.crc32(body, zlib.crc32(kind)) != int.from_bytes(data[end : end + 4], "big"):
                raise _broken(f"the checksum of a PNG chunk ({kind.decode('ascii')}) is wrong")
            if kind == b"IDAT":
                pixels.append(body)
            else:
                chunks[kind] = body
        position = end + 4
    raise _too_many("PNG chunks", MAX_PARTS)


def _png_header(chunks: dict[bytes, bytes], pixels: list[bytes]) -> ImageHeader:
    width, height, bit_depth, colour_type = struct.unpack_from(">IIBB", chunks[b"IHDR"])
    kept, transparent = [(b"IHDR", chunks[b"IHDR"])], None
    if colour_type == 3:
        kept += [(kind, chunks[kind]) for kind in (b"PLTE", b"tRNS") if kind in chunks]
    elif colour_type in (0, 2) and b"tRNS" in chunks:
        # Pillow compares this value with samples it has already scaled, so `media.py` does it; the decoder must not see the chunk.
        transparent = struct.unpack_from(">H" if colour_type == 0 else ">HHH", chunks[b"tRNS"])
    kept += [(b"IDAT", b"".join(pixels)), (b"IEND", b"")]
    return ImageHeader(
        format="PNG",
        width=width,
        height=height,
        drawing=_PNG_SIGNATURE + b"".join(_png_chunk(kind, body) for kind, body in kept),
        area=(0, 0, width, height),
        orientation=_orientation(chunks.get(b"eXIf", b"")),
        icc=_inflate_icc(chunks.get(b"iCCP", b"")),
        transparent=transparent,
        bit_depth=bit_depth,
    )


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", len(body), kind) + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))


def _inflate_icc(chunk: bytes) -> bytes | None:
    """The profile in an iCCP chunk (name, NUL, method 0, zlib stream), or None if it is broken or too large."""
    _, _, rest = chunk.partition(b"\0")
    try:
        profile = zlib.decompressobj().decompress(rest[1:], MAX_ICC_BYTES + 1)
    except zlib.error:
        return None
    return profile if 0 < len(profile) <= MAX_ICC_BYTES else None


# JPEG -----------------------------------------------------------------------------------------------------------------------------------

_JPEG_SIZE_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15; the three others are tables
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""Where the next segment begins. FF00 is a stuffed byte and FFD0 to FFD7 are restarts: both belong to a scan.

Any number of FF may stand before a marker. They are no part of the pattern: one that begins with a single byte is found by `memchr`, and a
long run of FF cannot be tried from each of its bytes.
"""


def _read_jpeg(data: bytes) -> ImageHeader:
    size: tuple[int, int] | None = None
    exif, icc_parts, scans = b"", {}, 0
    kept = [b"\xff\xd8"]
    position = 2
    for _ in range(MAX_PARTS):
        found = _JPEG_MARKER.search(data, position)  # searched for, as decoders do: some cameras leave stray bytes between segments
        if found is None:
            raise _truncated("before its end marker")
        position = found.end()
        marker = data[position - 1]
        if marker == 0xD9:
            if size is None or not scans:
                raise _broken("the JPEG ends without a picture")
            icc = b"".join(icc_parts[number] for number in sorted(icc_parts))
            drawing = b"".join([*kept, b"\xff\xd9"])
            icc_or_none = icc if 0 < len(icc) <= MAX_ICC_BYTES else None
            return ImageHeader("JPEG", *size, drawing, (0, 0, *size), orientation=_orientation(exif), icc=icc_or_none)
        length = int.from_bytes(data[position : position + 2], "big")
        end = position + length
        if length < 2 or end > len(data):
            raise _truncated("inside a JPEG segment")
        body = data[position + 2 : end]
        if marker == 0xE1 and body.startswith(b"Exif\0\0") and not exif:
            exif = body[6:]
        elif marker == 0xE2 and body.startswith(b"ICC_PROFILE\0"):
            icc_parts.setdefault(body[12], body[14:])
        elif marker in _JPEG_SIZE_MARKERS:
            if size is not None:
                raise _broken("the JPEG has two frames")
            height, width = struct.unpack_from(">HH", body, 1)
            size = (width, height)
        elif marker == 0xDA:
            scans += 1
            if scans > MAX_SCANS:
                raise _too_many("JPEG scans", MAX_SCANS)
            following = _JPEG_MARKER.search(data, end)
            if following is None:
                raise _truncated("inside a JPEG scan")
            end += len(data[end : following.start()].rstrip(b"\xff"))  # what fills up to the marker is not the scan's
        if _draws(marker, body):
            kept.append(b"\xff" + data[position - 1 : end])
        position = end
    raise _too_many("JPEG segments", MAX_PARTS)


def _draws(marker: int, body: bytes) -> bool:
    """Whether the decoder needs a segment: all but comments and application data, of which JFIF and Adobe tell the colour space."""
    if marker == 0xE0:
        return body.startswith(b"JFIF\0")
    if marker == 0xEE:
        return body.startswith(b"Adobe")
    return not (0xE0 <= marker <= 0xEF or marker == 0xFE)


# WebP -----------------------------------------------------------------------------------------------------------------------------------


def _read_webp(data: bytes) -> ImageHeader:
    riff_end = 8 + int.from_bytes(data[4:8], "little")
    if riff_end > len(data):
        raise _truncated(f"before the {riff_end:,} bytes its WebP header announces")
    parts = _riff_parts(data, 12, riff_end)
    canvas = _uint24_pair(parts[b"VP8X"], 4) if b"VP8X" in parts else None
    picture, offset = parts, (0, 0)
    if b"ANMF" in parts:
        frame = parts[b"ANMF"]
        left, top = (2 * (value - 1) for value in _uint24_pair(frame, 0))  # stored halved
        picture, offset = _riff_parts(frame, 16, len(frame)), (left, top)
    kind = next((kind for kind in (b"VP8 ", b"VP8L") if kind in picture), None)
    if kind is None:
        raise _broken("the WebP holds no picture")
    width, height = _webp_picture_size(kind, picture[kind])
    kept = [(kind, picture[kind])]
    if kind == b"VP8 " and b"ALPH" in picture:
        extended = struct.pack("<I", 0x10) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        kept = [(b"VP8X", extended), (b"ALPH", picture[b"ALPH"]), *kept]
    body = b"WEBP" + b"".join(kind + struct.pack("<I", len(part)) + part + b"\0" * (len(part) % 2) for kind, part in kept)
    area = (*offset, offset[0] + width, offset[1] + height)
    canvas = canvas or (width, height)
    if area[2] > canvas[0] or area[3] > canvas[1] or (b"ANMF" not in parts and canvas != (width, height)):
        raise _broken(f"the WebP announces {canvas[0]}×{canvas[1]} pixels and holds a picture of {width}×{height}")
    return ImageHeader(
        format="WEBP",
        width=canvas[0],
        height=canvas[1],
        drawing=b"RIFF" + struct.pack("<I", len(body)) + body,
        area=area,
        orientation=_orientation(parts.get(b"EXIF", b"").removeprefix(b"Exif\0\0")),
        icc=parts.get(b"ICCP") if len(parts.get(b"ICCP", b"")) <= MAX_ICC_BYTES else None,
    )


def _riff_parts(data: bytes, position: int, end: int) -> dict[bytes, bytes]:
    """The first chunk of each kind between two positions; of an animation, that is its first frame."""
    parts: dict[bytes, bytes] = {}
    for _ in range(MAX_PARTS):
        if position + 8 > end:
            return parts
        kind, length = struct.unpack_from("<4sI", data, position)
        if position + 8 + length > end:
            raise _truncated(f"inside a WebP chunk of {length:,} bytes")
        if kind not in parts:
            parts[kind] = data[position + 8 : position + 8 + length]
        position += 8 + length + length % 2
    raise _too_many("WebP chunks", MAX_PARTS)


def _uint24_pair(data: bytes, position: int) -> tuple[int, int]:
    """Two 24-bit numbers stored less one."""
    low, middle, high, low2, middle2, high2 = struct.unpack_from("6B", data, position)
    return 1 + low + (middle << 8) + (high << 16), 1 + low2 + (middle2 << 8) + (high2 << 16)


def _webp_picture_size(kind: bytes, picture: bytes) -> tuple[int, int]:
    if kind == b"VP8 ":
        start_code, width, height = struct.unpack_from("<3sHH", picture, 3)
        if start_code != b"\x9d\x01\x2a":
            raise _broken("the WebP picture has no start code")
        if not (width & 0x3FFF and height & 0x3FFF):
            raise _broken("the WebP picture has no pixels")
        return width & 0x3FFF, height & 0x3FFF
    signature, bits = struct.unpack_from("<BI", picture)
    if signature != 0x2F:
        raise _broken("the lossless WebP picture has no signature")
    return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)


# GIF ------------------------------------------------------------------------------------------------------------------------------------


def _read_gif(data: bytes) -> ImageHeader:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    position = 13 + _gif_palette_bytes(flags)
    screen, graphic_control = data[:position], b""
    for _ in range(MAX_PARTS):
        introducer = data[position]
        if introducer == 0x21:  # an extension; the last graphic control before the picture holds its transparent colour
            end = _gif_blocks_end(data, position + 2)
            if data[position + 1] == 0xF9:
                graphic_control = data[position:end]
            position = end
        elif introducer == 0x2C:
            left, top, frame_width, frame_height, flags = struct.unpack_from("<HHHHB", data, position + 1)
            end = _gif_blocks_end(data, position + 11 + _gif_palette_bytes(flags))  # 10 of descriptor, 1 of code size
            area = (left, top, left + frame_width, top + frame_height)
            # As browsers and Pillow do, a frame larger than the screen enlarges the canvas.
            size = max(width, area[2]), max(height, area[3])
            return ImageHeader("GIF", *size, screen + graphic_control + data[position:end] + b";", area)
        elif introducer == 0x3B:
            raise _broken("the GIF ends without a picture")
        else:
            raise _broken("bytes between two GIF blocks")
    raise _too_many("GIF blocks", MAX_PARTS)


def _gif_palette_bytes(flags: int) -> int:
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


def _gif_blocks_end(data: bytes, position: int) -> int:
    """Where a run of length-prefixed sub-blocks ends, its terminator included."""
    for _ in range(MAX_PARTS):
        length = data[position]
        position += 1 + length
        if length == 0:
            return position
    raise _too_many("GIF sub-blocks", MAX_PARTS)


# EXIF -----------------------------------------------------------------------------------------------------------------------------------


def _orientation(exif: bytes) -> int:
    """The orientation in the first directory of a TIFF block, 1 if there is none or it is not one SHORT between 1 and 8.

    Of two orientation tags the first counts, as in browsers. Nothing else is followed, so loops of directories do no harm.
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None or len(exif) < 8:
        return 1
    (directory,) = struct.unpack_from(order + "I", exif, 4)
    if directory + 2 > len(exif):
        return 1
    (entries,) = struct.unpack_from(order + "H", exif, directory)
    for entry in range(directory + 2, min(directory + 2 + 12 * entries, len(exif) - 11), 12):
        tag, kind, count, value = struct.unpack_from(order + "HHIH", exif, entry)
        if tag == 0x0112:
            return value if (kind, count) == (3, 1) and 1 <= value <= 8 else 1
    return 1


_READERS = (
    (rb"\xff\xd8\xff", _read_jpeg),
    (re.escape(_PNG_SIGNATURE), _read_png),
    (rb"RIFF....WEBP", _read_webp),
    (rb"GIF8[79]a", _read_gif),
)
