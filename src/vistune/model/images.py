"""Turns a picture into the views that a vision tower reads, and says how many tokens it becomes.

`prepare_image` makes pixels; `image_layout` is the one place that knows how many views and tokens a picture of a given size has and how
their features are put together. The processor counts placeholders with it and the model merges features with it, so the two cannot
disagree (the "575 against 576 features" family of errors). Opening files, orientation and alpha are `media.py`'s work.

Pixels equal those of transformers' CLIP, SigLIP, LLaVA and LLaVA-NeXT image processors (Pillow back end) bit for bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vistune.errors import CheckpointError, ImageError
from vistune.model.backbones import patches_per_side, tokens_per_view
from vistune.model.config import ImageConfig, ImageMode, ModelConfig

MAX_SIDE = 8192
"""Longest side of a square canvas (`pad`); with it, the most pixels that any canvas made here may have."""
MAX_CANVAS_PIXELS = MAX_SIDE * MAX_SIDE

Size = tuple[int, int]  # (width, height), as Pillow has it
Box = tuple[int, int, int, int]  # (left, top, right, bottom)


@dataclass(frozen=True)
class ImageLayout:
    """How the features of one picture become tokens. V views of P tokens each.

    With `tile_grid` (AnyRes and a newline vector, `spatial_unpad`): the first view is the whole picture and keeps its P tokens; the others
    are tiles, row by row, whose features form one map of (grid rows * p) x (grid columns * p); the map is cut to `rows` and `columns`,
    each row gets the newline vector at its end, and all is read row by row. Without: the views' tokens in order (`flat`), and one
    newline vector after them if `newline`.
    """

    views: int
    tokens_per_view: int
    tokens: int
    newline: bool
    tile_grid: tuple[int, int] | None = None  # (rows, columns) of tiles
    rows: tuple[int, int] = (0, 0)  # [start, stop) kept of the map's rows
    columns: tuple[int, int] = (0, 0)  # [start, stop) kept of the map's columns

    @property
    def unpadded(self) -> tuple[int, int]:
        """Rows and columns of the map that are kept."""
        return self.rows[1] - self.rows[0], self.columns[1] - self.columns[0]


def image_layout(size: Size, config: ModelConfig, *, images_in_conversation: int = 1) -> ImageLayout:
    """The layout of a picture of `size` (width, height).

    Raises CheckpointError for settings that contradict each other.
    """
    per_view = tokens_per_view(config)
    if _mode(config.image, images_in_conversation) != "anyres":
        return ImageLayout(views=1, tokens_per_view=per_view, tokens=per_view + config.image_newline, newline=config.image_newline)
    width, height = best_resolution(size, config.image)
    tile_rows, tile_columns = height // config.image.size, width // config.image.size
    views = 1 + tile_rows * tile_columns
    if not config.image_newline:
        return ImageLayout(views=views, tokens_per_view=per_view, tokens=views * per_view, newline=False)
    side = patches_per_side(config)
    if per_view != side * side:
        raise CheckpointError(
            f"AnyRes lays the patches of a view out as a {side}x{side} grid, but this model keeps {per_view} tokens of a view "
            f"(feature_select={config.feature_select!r}); use feature_select='patch'."
        )
    rows, columns = _unpad((tile_columns * side, tile_rows * side), size, config.image)
    kept_rows, kept_columns = rows[1] - rows[0], columns[1] - columns[0]
    return ImageLayout(
        views=views,
        tokens_per_view=per_view,
        tokens=per_view + kept_rows * (kept_columns + 1),
        newline=True,
        tile_grid=(tile_rows, tile_columns),
        rows=rows,
        columns=columns,
    )


def prepare_image(image: Image.Image, config: ModelConfig, *, images_in_conversation: int = 1) -> Tensor:
    """The views of a picture: float32 [V, 3, S, S], normalised; view 0 shows the whole picture.

    Raises ImageError if the canvas it would need is larger than allowed, before allocating it.
    """
    settings = config.image
    image = image if image.mode == "RGB" else image.convert("RGB")
    mode = _mode(settings, images_in_conversation)
    check_canvas(image.size, settings, images_in_conversation=images_in_conversation)
    if mode == "square":
        views = [_stock(image, settings)]
    elif mode == "pad":
        views = [_padded(image, settings)]
    else:
        views = _anyres_views(image, settings)
    pixels = np.empty((len(views), 3, settings.size, settings.size), dtype=np.float32)
    for view, target in zip(views, pixels, strict=True):
        _normalise(view, settings, target)
    return torch.from_numpy(pixels)


def check_canvas(size: Size, settings: ImageConfig, *, images_in_conversation: int = 1) -> None:
    """Refuses a picture whose padded, resized or tiled canvas would be over the limit (ImageError). Allocates nothing."""
    width, height = size
    if width < 1 or height < 1:
        raise ImageError("empty", f"The picture is {width}x{height} pixels; both sides must be at least 1.")
    mode = _mode(settings, images_in_conversation)
    if mode == "pad" and max(size) > MAX_SIDE:
        raise ImageError(
            "canvas", f"The picture is {width}x{height}; padded to a square its side is {max(size)}, allowed is {MAX_SIDE}. Scale it down."
        )
    square = (max(size), max(size))
    canvas = best_resolution(size, settings) if mode == "anyres" else _stock_size(square if mode == "pad" else size, settings)
    if math.prod(canvas) > MAX_CANVAS_PIXELS:
        raise ImageError(
            "canvas",
            f"The picture is {width}x{height}; prepared for the vision tower it needs a canvas of {canvas[0]}x{canvas[1]}, allowed are "
            f"{MAX_CANVAS_PIXELS} pixels. Crop it to a less extreme shape.",
        )


def best_resolution(size: Size, settings: ImageConfig) -> Size:
    """The AnyRes candidate (width, height) that keeps most of the picture's pixels and, among equals, wastes least.

    The first in the folder's list wins remaining ties; its order of (width, height) is `pinpoint_order`.
    """
    pinpoints = _pinpoints(settings)
    best, most_effective, least_wasted = pinpoints[0], 0, math.inf
    for width, height in pinpoints:
        scale = min(width / size[0], height / size[1])
        effective = min(int(size[0] * scale) * int(size[1] * scale), size[0] * size[1])
        wasted = width * height - effective
        if effective > most_effective or (effective == most_effective and wasted < least_wasted):
            best, most_effective, least_wasted = (width, height), effective, wasted
    return best


def _pinpoints(settings: ImageConfig) -> tuple[Size, ...]:
    """AnyRes candidates as (width, height), in the folder's order."""
    sizes = settings.pinpoints if settings.pinpoint_order == "original" else tuple((w, h) for h, w in settings.pinpoints)
    bad = [size for size in sizes if size[0] % settings.size or size[1] % settings.size or min(size) < 1]
    if bad or not sizes:
        found = f"{bad[0][0]}x{bad[0][1]}" if bad else "none"
        raise CheckpointError(f"AnyRes pinpoints must be whole multiples of the tower's {settings.size} pixels; found {found}.")
    return sizes


def _mode(settings: ImageConfig, images_in_conversation: int) -> ImageMode:
    """The sizing of this picture: a NeXT conversation with several pictures pads each, unless the folder says otherwise."""
    if settings.mode == "anyres" and settings.several_images == "pad" and images_in_conversation > 1:
        return "pad"
    return settings.mode


def _unpad(grid: Size, size: Size, settings: ImageConfig) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and columns of a feature map of `grid` (columns, rows) that hold the picture and not its padding.

    An odd remainder keeps one row or column of padding, in the original and here. transformers rounds to 7 decimals before cutting.
    """
    columns, rows = grid
    width, height = size
    precise = settings.pinpoint_order == "original"

    def fitted(side: int, scale: float) -> int:
        return int(side * scale) if precise else int(round(side * scale, 7))

    if width / height > columns / rows:
        padding = (rows - fitted(height, columns / width)) // 2
        return (padding, rows - padding), (0, columns)
    padding = (columns - fitted(width, rows / height)) // 2
    return (0, rows), (padding, columns - padding)


def _anyres_views(image: Image.Image, settings: ImageConfig) -> list[Image.Image]:
    """The whole picture squashed to the tower's square (the original's known oddity), then its tiles row by row."""
    side = settings.size
    canvas = _fit_on_black(image, best_resolution(image.size, settings))
    boxes = [(x, y, x + side, y + side) for y in range(0, canvas.height, side) for x in range(0, canvas.width, side)]
    return [_resized(image, (side, side)), *(canvas.crop(box) for box in boxes)]


def _fit_on_black(image: Image.Image, target: Size) -> Image.Image:
    """Resizes to fill the tighter axis and centres the result on black (not on the mean colour, as `pad` does)."""
    scale_width, scale_height = target[0] / image.width, target[1] / image.height
    if scale_width < scale_height:
        fitted = (target[0], min(math.ceil(image.height * scale_width), target[1]))
    else:
        fitted = (min(math.ceil(image.width * scale_height), target[0]), target[1])
    canvas = Image.new("RGB", target, (0, 0, 0))
    canvas.paste(_resized(image, fitted), ((target[0] - fitted[0]) // 2, (target[1] - fitted[1]) // 2))
    return canvas


def pad_colour(settings: ImageConfig) -> tuple[int, int, int]:
    """The tower's mean colour in whole steps, cut and not rounded: (122, 116, 104) for CLIP."""
    red, green, blue = (int(mean * 255) for mean in settings.mean)
    return red, green, blue


def _padded(image: Image.Image, settings: ImageConfig) -> Image.Image:
    """The square around the picture, resized to the tower's.

    Pillow resizes each row first and then each column, so the bars above and below a wide picture need no resizing: they stay as they are.
    """
    side, (width, height) = settings.size, image.size
    if width > height:
        image, square = image.resize((side, height), resample=Image.Resampling.BICUBIC), (side, width)
    else:
        square = (height, height)
    if image.size != square:
        canvas = Image.new("RGB", square, pad_colour(settings))
        canvas.paste(image, ((square[0] - image.width) // 2, (square[1] - height) // 2))
        image = canvas
    return _resized(image, (side, side))


def _stock(image: Image.Image, settings: ImageConfig) -> Image.Image:
    """The tower's own processor up to normalisation: resize, and cut the centre square if the resize kept the shape."""
    side, resized = settings.size, _stock_size(image.size, settings)
    left, top = (resized[0] - side) // 2, (resized[1] - side) // 2
    box = _source_of((left, top, left + side, top + side), image.size, resized)
    if box is not None:
        return image.resize((side, side), resample=Image.Resampling.BICUBIC, box=box)
    return _resized(image, resized).crop((left, top, left + side, top + side))


def _source_of(box: Box, size: Size, resized: Size) -> Box | None:
    """The pixels that become those in `box` once a picture is resized; None if `box` cuts any, or is all there is.

    Of whole pixels Pillow computes the same weights, so that what is cut off afterwards need not be resized first. A quarter of 640×480.
    """
    edges = [(edge * size[axis % 2], resized[axis % 2]) for axis, edge in enumerate(box)]
    if box == (0, 0, *resized) or any(product % whole for product, whole in edges):
        return None
    left, top, right, bottom = (product // whole for product, whole in edges)
    return left, top, right, bottom


def _stock_size(size: Size, settings: ImageConfig) -> Size:
    side = settings.size
    if settings.resize == "exact":
        return side, side
    long = int(side * max(size) / min(size))
    return (side, long) if size[0] <= size[1] else (long, side)


def _resized(image: Image.Image, size: Size) -> Image.Image:
    return image if image.size == size else image.resize(size, resample=Image.Resampling.BICUBIC)


def _normalise(image: Image.Image, settings: ImageConfig, target: np.ndarray) -> None:
    """Writes a view to `target`, [3, S, S] float32."""
    for band, mean, std, plane in zip(image.split(), settings.mean, settings.std, target, strict=True):
        np.take(_normalised_bytes(mean, std), np.asarray(band), out=plane, mode="clip")


@cache
def _normalised_bytes(mean: float, std: float) -> np.ndarray:
    """What each of the 256 values of a byte becomes, in transformers' order of operations: rescale, then subtract and divide.

    transformers rescales by 1 / 255 in float64 and cuts to float32; the quotient in float32 is the same for all of them.
    """
    rescaled = np.arange(256, dtype=np.float32) / np.float32(255)
    return (rescaled - np.float32(mean)) / np.float32(std)
