"""Pixels against transformers' processors, and the arithmetic of AnyRes."""

from __future__ import annotations

from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

from vistune.errors import CheckpointError, ImageError
from vistune.model.backbones import VISION_TOWERS
from vistune.model.config import OFFICIAL_PINPOINTS, ImageConfig, ModelConfig, PinpointOrder
from vistune.model.images import image_layout, pad_colour, prepare_image

S = 28  # side of the tower's square in pixel tests
PINPOINTS = ((S, 2 * S), (2 * S, S), (2 * S, 2 * S), (3 * S, S), (S, 3 * S))
SIZES = [(40, 40), (640, 480), (333, 1000), (1999, 77), (161, 203), (S, S), (501, 500), (S, 40), (40, S)]
SIZES += [(120, 80), (80, 120), (84, 56)]  # the edges of the centre square are whole pixels of these
CLIP = {"size": {"shortest_edge": S}, "crop_size": {"height": S, "width": S}}


def clip(patch: int = 14, **image: object) -> ModelConfig:
    settings = replace(ImageConfig(size=S), **image)  # type: ignore[arg-type]
    vision = {"model_type": "clip_vision_model", "image_size": settings.size, "patch_size": patch}
    newline = settings.mode == "anyres"
    return ModelConfig(
        vision_tower="clip", vision_config=vision, text_config={"model_type": "llama"}, image=settings, image_newline=newline
    )


def official(order: PinpointOrder = "original", **image: object) -> ModelConfig:
    return clip(size=336, mode="anyres", pinpoints=OFFICIAL_PINPOINTS, pinpoint_order=order, **image)


def noise(size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(sum(size)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


@pytest.mark.parametrize("size", SIZES)
def test_pixels_equal_transformers_bit_for_bit(size):
    image = noise(size)
    half = (0.5, 0.5, 0.5)
    cases = {
        "square": (clip(mode="square"), CLIPImageProcessorPil(**CLIP)),
        "pad": (clip(mode="pad"), LlavaImageProcessorPil(**CLIP, do_pad=True)),
        "siglip": (clip(mode="square", resize="exact", mean=half, std=half), SiglipImageProcessorPil(size={"height": S, "width": S})),
    }
    for name, (config, processor) in cases.items():
        assert torch.equal(prepare_image(image, config), processor(image, return_tensors="pt").pixel_values), name
    tiles = LlavaNextImageProcessorPil(**CLIP, image_grid_pinpoints=[list(pair) for pair in PINPOINTS])
    config = clip(mode="anyres", pinpoints=PINPOINTS, pinpoint_order="transformers")
    assert torch.equal(prepare_image(image, config), tiles(image, return_tensors="pt").pixel_values[0])


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (1024, 768), (2016, 1512)])
def test_pictures_of_which_only_the_centre_is_resized_equal_transformers_bit_for_bit(size):
    image = noise(size)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    with mock.patch.object(Image.Image, "crop", side_effect=AssertionError("more was resized")):
        pixels = prepare_image(image, clip(size=336, mode="square"))
    assert torch.equal(pixels, processor(image, return_tensors="pt").pixel_values)


@pytest.mark.parametrize(
    ("size", "grid", "unpadded", "tokens"),
    [
        ((336, 336), (2, 1), (24, 24), 1176),
        ((640, 480), (2, 2), (36, 48), 2340),
        ((480, 640), (2, 2), (48, 36), 2352),
        ((1024, 899), (2, 2), (42, 48), 2634),
        ((1000, 300), (1, 3), (22, 72), 2182),
        ((300, 1000), (3, 1), (72, 22), 2232),
        ((672, 672), (2, 2), (48, 48), 2928),
        ((1920, 1080), (2, 2), (28, 48), 1948),
        ((2000, 500), (1, 3), (18, 72), 1890),
        ((100, 100), (2, 1), (24, 24), 1176),
    ],
)
def test_anyres_tokens_are_those_of_llava_1_6(size, grid, unpadded, tokens):
    layout = image_layout(size, official())
    assert (layout.tile_grid, layout.unpadded, layout.tokens) == (grid, unpadded, tokens)
    assert layout.views == 1 + grid[0] * grid[1]


def test_a_tie_between_pinpoints_falls_by_the_order_of_the_folder():
    assert image_layout((161, 203), official("original")).tokens == 1326
    assert image_layout((161, 203), official("transformers")).tokens == 1080


def test_layout_in_transformers_order_is_what_transformers_merges():
    config = official("transformers")
    pinpoints = [list(pair) for pair in OFFICIAL_PINPOINTS]
    rng = np.random.default_rng(7)
    for width, height in [(int(w), int(h)) for w, h in rng.integers(40, 2000, (300, 2))]:
        layout = image_layout((width, height), config)
        rows, columns = get_anyres_image_grid_shape((height, width), pinpoints, 336)
        kept = unpad_image(torch.zeros(1, rows * 24, columns * 24), (height, width))
        assert (layout.tile_grid, layout.unpadded) == ((rows, columns), tuple(kept.shape[1:]))


def test_layout_in_original_order_cuts_without_rounding():
    config = official("original")
    for width, height in np.random.default_rng(8).integers(40, 2000, (300, 2)).tolist():
        layout = image_layout((width, height), config)
        rows, columns = (24 * count for count in layout.tile_grid)
        if width / height > columns / rows:
            expected = (rows - 2 * ((rows - int(height * (columns / width))) // 2), columns)
        else:
            expected = (rows, columns - 2 * ((columns - int(width * (rows / height))) // 2))
        assert layout.unpadded == expected


def test_a_lone_view_is_its_patches_and_a_newline_if_the_model_has_one():
    assert image_layout((640, 480), clip(size=336)).tokens == 576
    with_newline = replace(clip(size=336), image_newline=True)
    assert image_layout((640, 480), with_newline).tokens == 577


def test_anyres_without_newline_lays_its_views_end_to_end():
    layout = image_layout((640, 480), replace(official(), image_newline=False))
    assert (layout.views, layout.tokens, layout.tile_grid) == (5, 5 * 576, None)


def test_several_pictures_are_padded_or_tiled_as_the_folder_says():
    padded, tiled = official(several_images="pad"), official(several_images="anyres")
    assert image_layout((640, 480), padded, images_in_conversation=2).tokens == 577
    assert image_layout((640, 480), tiled, images_in_conversation=2).tokens == 2340
    assert image_layout((640, 480), padded).tokens == 2340
    image, small = noise((60, 40)), clip(mode="anyres", pinpoints=PINPOINTS)
    assert torch.equal(prepare_image(image, small, images_in_conversation=2), prepare_image(image, clip(mode="pad")))


def test_the_pad_colour_is_the_mean_cut_to_whole_steps():
    assert pad_colour(ImageConfig()) == (122, 116, 104)
    top = prepare_image(noise((40, 20)), clip(mode="pad"))[0, :, 0, 0]
    expected = (torch.tensor([122, 116, 104]) / 255 - torch.tensor(ImageConfig().mean)) / torch.tensor(ImageConfig().std)
    torch.testing.assert_close(top, expected)


def test_efficientnet_sees_bytes_minus_127_over_128():
    settings = VISION_TOWERS["efficientnet_lite0"].image
    config = ModelConfig(vision_tower="efficientnet_lite0", text_config={"model_type": "llama"}, image=replace(settings, mode="pad"))
    image = noise((224, 224))
    expected = (torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) - 127.0) / 128
    torch.testing.assert_close(prepare_image(image, config)[0], expected, atol=1e-6, rtol=0)
    assert image_layout((640, 480), config).tokens == 49


def test_a_canvas_over_the_limit_is_refused_before_it_is_made():
    with pytest.raises(ImageError, match="9000") as padded:
        prepare_image(Image.new("RGB", (9000, 10)), clip(mode="pad"))
    with pytest.raises(ImageError, match="canvas of"):
        prepare_image(Image.new("RGB", (60_000, 1)), clip(mode="square", size=336))
    assert padded.value.reason == "canvas"


def test_a_picture_thinner_than_a_patch_keeps_its_base_view():
    layout = image_layout((4000, 2), official())
    assert (layout.tile_grid, layout.unpadded, layout.tokens) == ((2, 1), (0, 24), 576)
    assert prepare_image(noise((2000, 1)), clip(mode="anyres", pinpoints=PINPOINTS)).shape[1:] == (3, S, S)


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(CheckpointError, match="multiples"):
        image_layout((640, 480), clip(mode="anyres", pinpoints=((30, 60),)))
    with pytest.raises(CheckpointError, match="feature_select='patch'"):
        image_layout((640, 480), replace(official(), feature_select="full"))


@pytest.mark.parametrize("tower", VISION_TOWERS)
def test_each_value_of_a_byte_is_normalised_as_in_double_precision_cut_to_single(tower):
    image = replace(VISION_TOWERS[tower].image, size=16, mode="square")
    every_byte = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")
    rescaled = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32).reshape(16, 16)
    expected = np.stack([(rescaled - np.float32(m)) / np.float32(s) for m, s in zip(image.mean, image.std, strict=True)])
    assert np.array_equal(prepare_image(every_byte, replace(clip(), image=image)).numpy()[0].view(np.int32), expected.view(np.int32))
