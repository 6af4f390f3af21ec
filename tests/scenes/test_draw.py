"""Scenes: decided and painted from a seed alone, and what is said about them is what is there."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ImageChops

from vistune.scenes import COLOURS, PLACES, Scene, SceneSpec, plan_scene, render_scene, sprite_bank
from vistune.scenes.bank import PAINTED_CATEGORIES
from vistune.scenes.draw import render_background

seeds = st.integers(0, 2**32)


def centre_place(box: tuple[int, int, int, int], size: int) -> str:
    column, row = (3 * (box[0] + box[2]) // (2 * size), 3 * (box[1] + box[3]) // (2 * size))
    return list(PLACES)[3 * row + column]


@given(seeds)
@settings(max_examples=60, deadline=None)
def test_objects_lie_inside_the_scene_in_the_place_they_are_said_to_be(seed: int):
    scene = plan_scene(seed)
    for thing in scene.objects:
        left, top, right, bottom = thing.xyxy
        assert 0 <= left < right <= scene.size
        assert 0 <= top < bottom <= scene.size
        assert centre_place(thing.xyxy, scene.size) == thing.place


@given(seeds)
@settings(max_examples=60, deadline=None)
def test_objects_do_not_overlap_and_places_are_not_shared(seed: int):
    objects = plan_scene(seed).objects
    assert len({thing.place for thing in objects}) == len(objects)
    for number, one in enumerate(objects):
        for other in objects[number + 1 :]:
            apart_across = one.xyxy[2] <= other.xyxy[0] or other.xyxy[2] <= one.xyxy[0]
            assert apart_across or one.xyxy[3] <= other.xyxy[1] or other.xyxy[3] <= one.xyxy[1]


@given(seeds)
@settings(max_examples=30, deadline=None)
def test_every_pixel_that_differs_from_the_background_is_inside_a_box(seed: int):
    scene = plan_scene(seed)
    changed = (
        ImageChops.difference(render_scene(scene), render_background(scene.background, scene.size))
        .convert("L")
        .point(lambda v: 255 * (v > 0))
    )
    for thing in scene.objects:
        assert changed.crop(thing.xyxy).getbbox() is not None, f"{thing.name} cannot be seen"
        changed.paste(0, thing.xyxy)
    assert changed.getbbox() is None


@given(seeds)
@settings(max_examples=60, deadline=None)
def test_a_painted_colour_is_never_the_background_and_masks_are_always_painted(seed: int):
    scene = plan_scene(seed)
    for thing in scene.objects:
        assert thing.colour is None or (thing.colour in COLOURS and thing.colour != scene.background.colour)
        assert thing.colour is not None or thing.thing.category not in PAINTED_CATEGORIES


def test_training_scenes_show_seen_sprites_only():
    scenes = [plan_scene(seed) for seed in range(300)]
    assert {thing.sprite.split for scene in scenes for thing in scene.objects} == {"seen"}


def test_numbers_of_objects_are_even_between_one_and_five():
    counts = [len(plan_scene(seed).objects) for seed in range(500)]
    assert all(60 <= counts.count(number) <= 140 for number in range(1, 6))


def test_the_same_seed_gives_the_same_pixels_as_when_this_test_was_written():
    digest = hashlib.sha256()
    for seed in range(100):
        digest.update(render_scene(plan_scene(f"test/{seed}")).tobytes())
    assert digest.hexdigest() == "3b3474de5fb48a2c4366f065ba101d6002b1aa278debe232dbc3a7a71c0a347b"


def test_annotations_are_fractions_in_reading_order():
    scene = plan_scene("test/annotations", SceneSpec(counts=(4,)))
    known = scene.annotations("a.jpg")
    assert (known.image, known.width, known.source) == ("a.jpg", 224, "scenes")
    assert [box.label for box in known.boxes] == list(scene.names)
    assert all(0 <= edge <= 1 for box in known.boxes for edge in box.xyxy)
    assert list(PLACES).index(scene.objects[0].place) < list(PLACES).index(scene.objects[-1].place)


@pytest.mark.parametrize("size", [64, 336])
def test_other_sizes_show_the_same_things_in_the_same_places(size: int):
    def facts(scene: Scene) -> list[tuple[str, str | None]]:
        return sorted((thing.name, thing.colour) for thing in scene.objects)

    other = plan_scene("test/size", SceneSpec(size=size))
    assert render_scene(other).size == (size, size)
    assert facts(other) == facts(plan_scene("test/size"))


def test_the_bank_has_what_the_suite_promises():
    bank = sprite_bank()
    held_out = [sprite for sprite in bank.sprites if sprite.split != "seen"]
    assert len(bank.names("seen")) >= 500
    assert len(held_out) >= 100
    assert not set(bank.names("seen")) & set(bank.names("new_name"))
    assert set(bank.names("new_picture")) <= set(bank.names("seen"))


def test_every_sprite_can_be_decoded_and_shows_something():
    bank = sprite_bank()
    for sprite in bank.sprites[::7]:
        picture = bank.picture(sprite)
        assert picture.mode == "RGBA"
        assert max(picture.size) == 76
        assert picture.getchannel("A").getextrema()[1] > 128
