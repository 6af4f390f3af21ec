"""The one way in for images: from a path, bytes or a `data:` address to upright 8-bit RGB.

    source ─read─► bytes ─read_header─► size, orientation, profile, drawing ─limits─► Pillow ─► RGB on white, upright

Every limit is checked on numbers from the header, before anything is allocated: the picture's own size and also the square that `pad` puts
around it later (the size of AnyRes tiles depends on the model, so `model/images.py` checks that one).

A picture is what a person sees in a browser: orientation and colour profile applied, transparency over white, 16 bits scaled to 8, of an
animation the first frame. `Image.convert("RGB")` gets most of these silently wrong.

Nothing here touches Pillow's global settings, so it may run in many threads. Addresses on the network are never fetched.

An `ImageError` carries one of these reasons:

    missing unreadable not_a_file outside_root bad_path      the path
    url data_url                                             the address
    empty bytes format truncated broken parts memory time    the file
    pixels side min_side aspect padded                       the size
"""

from __future__ import annotations

import base64
import binascii
import errno
import hashlib
import io
import os
import re
import stat
import struct
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageChops, ImageCms

from vistune.errors import ImageError, UsageError
from vistune.image_headers import ImageHeader, read_header
from vistune.types import ImageSource

PIXELS_VERSION = 1
"""Raised whenever the same file would become other pixels; part of every image digest, so that no cache outlives a change."""

_STRIP_PIXELS = 2**20
"""Colours are converted in strips of about this many pixels, so that transparency costs no second and third full-size buffer."""


@dataclass(frozen=True)
class ImageLimits:
    """What is accepted. Each may be changed, none can be switched off.

    With the defaults one decoding takes at most 220 MB (PNG, JPEG, GIF) or 360 MB (WebP, whose decoder keeps two canvases of its own).
    """

    file_bytes: int = 10 * 2**20
    pixels: int = 24_000_000
    side: int = 8192
    min_side: int = 2
    aspect: int = 200
    """The longer side is at most this many times the shorter."""
    padded_pixels: int = 8192**2
    """Pixels of the square around the picture, which a 268-byte file of 65,000×1 would make 4.2 billion (the reference allocates it)."""


DEFAULT_LIMITS = ImageLimits()


def decode(header: ImageHeader) -> Image.Image:
    """The picture of a file whose header is in order and within the limits: RGB over white, upright.

    Raises:
        ImageError: `broken`, `truncated` or `memory`.
    """
    try:
        picture, turn = _as_stored(header), _TURNS[header.orientation]
        return picture if turn is None else picture.transpose(turn)
    except ImageError:
        raise
    except MemoryError as error:
        size = f"{header.width}×{header.height}"
        raise ImageError("memory", f"there is not enough memory to decode {size} pixels; scale it down") from error
    except Exception as error:
        # Decoders fail with nearly any type (struct.error, SyntaxError, IndexError, ...), and their messages may hold memory addresses.
        cut = "truncated" if "truncated" in str(error) else "broken"
        raise ImageError(cut, f"the {header.format} cannot be decoded ({type(error).__name__}); get a complete copy of it") from error


def open_image(
    source: ImageSource,
    *,
    limits: ImageLimits = DEFAULT_LIMITS,
    root: Path | None = None,
    decoder: Callable[[ImageHeader], Image.Image] = decode,
) -> Image.Image:
    """Opens an image as a person sees it: mode RGB, upright, 8 bits, first frame.

    Args:
        source: a `Path`, the bytes of an image file, or a `data:` address.
        root: a folder that a path may not leave; relative paths start there. The folder itself may be a symbolic link, nothing in it may.
        decoder: what makes the pixels once all else was checked: `decode`, or a `DecodePool` that has it done in another process.

    Raises:
        ImageError: missing, broken or over a limit; `reason` tells which.
    """
    with _named(source):
        return decoder(_read(source, limits, root))


def image_size(source: ImageSource, *, limits: ImageLimits = DEFAULT_LIMITS, root: Path | None = None) -> tuple[int, int]:
    """(width, height) that `open_image` would give, under the same limits and without decoding a pixel."""
    with _named(source):
        return _read(source, limits, root).upright_size


def image_bytes(source: ImageSource, *, limits: ImageLimits = DEFAULT_LIMITS, root: Path | None = None) -> bytes:
    """The image file as it is, once its header was found to be in order and within the limits: for copies, never for decoding."""
    with _named(source):
        data = _read_bytes(source, limits, root)
        _checked_header(data, limits)
        return data


def image_digest(image: Image.Image) -> str:
    """SHA-256 of an RGB picture: its pixels, its size and `PIXELS_VERSION`, in hexadecimal.

    Size is part of it because a 30×100 and a 100×30 picture may have the same bytes (CVE-2025-46722).
    """
    if image.mode != "RGB":
        raise UsageError(f"A digest is taken of an RGB picture, this one is {image.mode!r}; open it with vistune.media.open_image.")
    digest = hashlib.sha256(b"vistune pixels" + struct.pack("<HII", PIXELS_VERSION, *image.size))
    for strip in _strips((0, 0, *image.size)):
        digest.update(image.crop(strip).tobytes())
    return digest.hexdigest()


@contextmanager
def _named(source: ImageSource) -> Iterator[None]:
    """Puts the name of the source in front of an error's message. `repr` keeps newlines and right-to-left marks in names harmless."""
    try:
        yield
    except ImageError as error:
        named = source if isinstance(source, Path) else getattr(source, "name", "")  # bytes may remember the file they were
        name = repr(str(named)) if named else "The image"
        raise ImageError(error.reason, f"{name}: {error}.") from error.__cause__


def _read(source: ImageSource, limits: ImageLimits, root: Path | None) -> ImageHeader:
    return _checked_header(_read_bytes(source, limits, root), limits)


def _read_bytes(source: ImageSource, limits: ImageLimits, root: Path | None) -> bytes:
    if isinstance(source, Path):
        data = _read_file(source, limits, root)
    elif isinstance(source, str):
        data = _read_address(source, limits)
    else:
        data = source
    if not data:
        raise ImageError("empty", "there are no bytes in it; get a complete copy of it")
    if len(data) > limits.file_bytes:
        raise _too_many_bytes(len(data), limits)
    return data


def _checked_header(data: bytes, limits: ImageLimits) -> ImageHeader:
    header = read_header(data)
    check_size(header.width, header.height, limits)
    return header


def _too_many_bytes(found: int, limits: ImageLimits) -> ImageError:
    return ImageError("bytes", f"{found:,} bytes; at most {limits.file_bytes:,} are allowed, so save it smaller")


def check_size(width: int, height: int, limits: ImageLimits) -> None:
    """Raises ImageError for a picture of this size if it is over a limit."""
    short, long = sorted((width, height))
    for reason, broken, allowed in (
        ("min_side", short < limits.min_side, f"each side must be at least {limits.min_side}"),
        ("side", long > limits.side, f"a side may be at most {limits.side:,}, so scale it down"),
        ("aspect", long > limits.aspect * short, f"the longer side may be at most {limits.aspect} times the shorter, so crop it"),
        ("pixels", width * height > limits.pixels, f"at most {limits.pixels:,} pixels are allowed, so scale it down"),
        (
            "padded",
            long**2 > limits.padded_pixels,
            f"as a square it may have at most {limits.padded_pixels:,}, so scale it down",
        ),
    ):
        if broken:
            raise ImageError(reason, f"{width}×{height} pixels; {allowed}")


# From a source to bytes -----------------------------------------------------------------------------------------------------------------


def _read_file(path: Path, limits: ImageLimits, root: Path | None) -> bytes:
    try:
        descriptor = _open_regular(path) if root is None else _open_beneath(path, root)
        with open(descriptor, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > limits.file_bytes:
                raise _too_many_bytes(size, limits)
            return file.read(limits.file_bytes + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageError("missing", "there is no such file; check the path") from error
    except ValueError as error:  # a NUL byte or a lone surrogate
        raise ImageError("bad_path", "this cannot be the name of a file") from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ImageError("outside_root" if root else "not_a_file", "it is behind a symbolic link that is not followed") from error
        raise ImageError("unreadable", f"it cannot be read ({error.strerror})") from error


def _open_regular(name: str | Path, *, folder: int | None = None) -> int:
    """Opens a regular file for reading; with `folder` (a descriptor) one directly in it, not through a symbolic link.

    It is looked at before it is opened, because opening a device or a pipe can already do something, and again after.
    """
    follow = folder is None
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    mode = os.stat(name, dir_fd=folder, follow_symlinks=follow).st_mode
    if stat.S_ISLNK(mode):
        raise OSError(errno.ELOOP, "symbolic link")
    descriptor = None
    if stat.S_ISREG(mode):
        descriptor = os.open(name, flags, dir_fd=folder)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
    raise ImageError("not_a_file", "it is a folder, pipe or device; a regular file is needed")


def _open_beneath(path: Path, root: Path) -> int:
    """Opens a file under a root, one folder at a time and through no symbolic link, so that no name can lead out of it."""
    resolved = Path(os.path.realpath(root, strict=True))
    if path.is_absolute():
        base = next((base for base in (root.absolute(), resolved) if path.is_relative_to(base)), None)
        if base is None:
            raise ImageError("outside_root", f"only files in {str(root)!r} are opened")
        path = path.relative_to(base)
    *folders, name = path.parts or (".",)
    if ".." in path.parts:
        raise ImageError("outside_root", f"only files in {str(root)!r} are opened, and a path with '..' may lead out of it")
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY | os.O_NOFOLLOW
    descriptor = os.open(resolved, flags)
    try:
        for folder in folders:
            if stat.S_ISLNK(os.stat(folder, dir_fd=descriptor, follow_symlinks=False).st_mode):
                raise OSError(errno.ELOOP, "symbolic link")
            inner = os.open(folder, flags, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        return _open_regular(name, folder=descriptor)
    finally:
        os.close(descriptor)


_DATA_ADDRESS = re.compile(r"data:(?P<type>[^,;]*)(?P<parameters>(?:;[^,;]*)*),", re.IGNORECASE)


def _read_address(address: str, limits: ImageLimits) -> bytes:
    head = address[:256]
    if re.match(r"https?:", head, re.IGNORECASE):
        raise ImageError("url", "addresses on the network are not opened; download the picture and give the file")
    if not head.lower().startswith("data:"):
        raise ImageError("url", f"{head[:40]!r} is not a data: address; a local file is given as a path")
    return _decode_data_address(address, limits)


def _decode_data_address(address: str, limits: ImageLimits) -> bytes:
    """The bytes of a base64 `data:` address.

    Clients send some variants that are accepted, because they can mean only one thing: line breaks, missing padding, the URL-safe alphabet,
    percent-encoding, and a wrong image type (the content decides). A space is refused: it is usually a '+' that a form decoder destroyed.
    """
    match = _DATA_ADDRESS.match(address[:256])
    if match is None or not match["parameters"].lower().endswith(";base64"):
        raise ImageError("data_url", "expected data:image/...;base64, followed by the image file in base64")
    kind = match["type"].strip().lower()
    if kind and not kind.startswith("image/") and kind != "application/octet-stream":
        raise ImageError("data_url", f"a data: address of type {kind[:40]!r}; expected image/png, image/jpeg, image/webp or image/gif")
    if len(address) > 2 * limits.file_bytes + 1024:  # base64 with line breaks needs 1.4 characters a byte
        raise _too_many_bytes(len(address) * 3 // 4, limits)
    text = urllib.parse.unquote(address[match.end() :]).translate(_BASE64_VARIANTS).rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        hint = "; its spaces were probably '+' before a form decoder" if " " in text else ""
        raise ImageError("data_url", f"the data: address is not valid base64{hint}") from error


_BASE64_VARIANTS = str.maketrans({"\r": None, "\n": None, "\t": None, "-": "+", "_": "/"})


# From a header to pixels ----------------------------------------------------------------------------------------------------------------


def _as_stored(header: ImageHeader) -> Image.Image:
    """The picture over white, not yet turned."""
    with Image.open(io.BytesIO(header.drawing), formats=(header.format,)) as image:
        # Two readers of one header must agree, or a limit was checked on the wrong numbers.
        left, top, right, bottom = header.area
        expected = (right - left, bottom - top) if header.format == "WEBP" else (header.width, header.height)
        if image.size != expected:
            raise ImageError("broken", f"the header says {expected} and the decoder {image.size}; save it again with an image editor")
        image.load()
        return _over_white(image, header)


def _over_white(image: Image.Image, header: ImageHeader) -> Image.Image:
    to_srgb: dict[str, ImageCms.ImageCmsTransform | None] = {}
    if _is_opaque_rgb(image, header):
        to_srgb["RGB"] = _profile_transform(header.icc, "RGB")
        if to_srgb["RGB"] is None:  # as nearly all photographs: copying them would cost half as much as decoding
            image.info = {}
            return image
    canvas = Image.new("RGB", (header.width, header.height), "white")
    # Pillow draws a GIF on a canvas filled with its background colour; browsers leave that transparent.
    offset = header.area[:2] if header.format == "WEBP" else (0, 0)
    area = (0, 0, *image.size) if header.format == "WEBP" else header.area
    for strip in _strips(area):
        colour, opacity = _colour_and_opacity(image.crop(strip), header)
        if colour.mode not in to_srgb:
            to_srgb[colour.mode] = _profile_transform(header.icc, colour.mode)
        transform = to_srgb[colour.mode]
        rgb = colour.convert("RGB") if transform is None else transform.apply(colour)
        canvas.paste(rgb, (strip[0] + offset[0], strip[1] + offset[1]), opacity)
    return canvas


def _is_opaque_rgb(image: Image.Image, header: ImageHeader) -> bool:
    """Whether these are the canvas's own pixels. (Pillow's WebP and GIF pictures hold on to their decoder, so they are always copied.)"""
    return image.mode == "RGB" and header.format in ("JPEG", "PNG") and header.transparent is None and "transparency" not in image.info


def _strips(area: tuple[int, int, int, int]) -> Iterator[tuple[int, int, int, int]]:
    left, top, right, bottom = area
    rows = max(1, _STRIP_PIXELS // max(1, right - left))
    for start in range(top, bottom, rows):
        yield (left, start, right, min(start + rows, bottom))


def _colour_and_opacity(image: Image.Image, header: ImageHeader) -> tuple[Image.Image, Image.Image | None]:
    """Splits a piece of a decoded image into 8-bit colour (L, RGB or CMYK) and opacity (L, or None where all is opaque)."""
    if image.mode == "I;16":
        return image.convert("I").point([value >> 8 for value in range(65536)], "L"), _opacity(image.convert("I"), header)
    if image.mode == "1":
        image = image.convert("L")
    if image.mode in ("P", "PA") or "transparency" in image.info:  # a palette, or a GIF whose palette Pillow saw to be grey
        image = image.convert("RGBA")
    if image.mode in ("RGBA", "LA"):
        return image.convert("RGB" if image.mode == "RGBA" else "L"), image.getchannel("A")
    return image, _opacity(image, header)


def _opacity(image: Image.Image, header: ImageHeader) -> Image.Image | None:
    """Zero where a pixel equals the one transparent colour of a PNG without palette.

    Grey samples of 1, 2 or 4 bits were scaled to 8 by the decoder, and RGB of 16 bits cut to the high byte; so is the colour.
    """
    if header.transparent is None:
        return None
    if image.mode == "I":
        return image.point([0 if value == header.transparent[0] else 255 for value in range(65536)], "L")
    if header.bit_depth == 16:
        wanted = [sample >> 8 for sample in header.transparent]
    else:
        wanted = [sample * 255 // (2**header.bit_depth - 1) for sample in header.transparent]
    opacity = None
    for channel, sample in zip(image.split(), wanted, strict=True):
        differs = channel.point([0 if value == sample else 255 for value in range(256)])
        opacity = differs if opacity is None else ImageChops.lighter(opacity, differs)
    return opacity


_PROFILE_SPACES = {"L": b"GRAY", "RGB": b"RGB ", "CMYK": b"CMYK"}


def _profile_transform(icc: bytes | None, mode: str) -> ImageCms.ImageCmsTransform | None:
    """A transform from an embedded colour profile to sRGB, or None if there is none to apply.

    As in browsers, a profile that is broken or of another colour space is ignored. So is one that *is* sRGB, found out by what it does to
    729 colours and not by its name: applying it would cost time and change pixels by one.
    """
    if icc is None or icc[16:20] != _PROFILE_SPACES[mode]:
        return None
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB")
        if mode == "CMYK":
            return transform
        grid = bytes(value for red in range(9) for green in range(9) for blue in range(9) for value in (red * 31, green * 31, blue * 31))
        probe = Image.frombytes("RGB", (27, 27), grid) if mode == "RGB" else Image.frombytes("L", (256, 1), bytes(range(256)))
        change = max(ImageChops.difference(transform.apply(probe), probe.convert("RGB")).tobytes())
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
    return None if change <= 2 else transform


_TURNS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
