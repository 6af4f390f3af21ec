"""What lies in each cell, and the words for it."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch

from vistune.model.llava import Llava
from vistune.model.processor import Processor
from vistune.train.objectives import CellNames, annotation_names, cell_places, cell_words
from vistune.types import Box, ImageAnnotations

Mode = Literal["crop", "pad", "squash"]


def labels(*boxes: tuple[str, float, float, float, float], side: int = 4, mode: Mode = "pad", size: tuple[int, int] = (100, 100)) -> str:
    """The cells as rows of first letters: `.` for the background, `-` outside the picture."""
    annotations = ImageAnnotations("a.png", *size, boxes=tuple(Box(name, tuple(edges)) for name, *edges in boxes))  # type: ignore[arg-type]
    cells = ["".join(word[0] for word in words) or "-" for words in cell_words(annotations, side, mode=mode, background=".")]
    return "/".join("".join(cells[row * side : (row + 1) * side]) for row in range(side))


def test_a_cell_is_named_by_the_box_over_its_centre():
    assert labels(("a", 0, 0, 0.5, 0.5), ("b", 0.5, 0.75, 1, 1)) == "aa../aa../..../..bb"


def test_a_thing_stands_before_the_ground_it_stands_on_in_any_order():
    ground, thing = ("g", 0, 0, 1, 1), ("t", 0.25, 0.25, 0.75, 0.75)
    assert labels(ground, thing) == labels(thing, ground) == "gggg/gttg/gttg/gggg"


def test_boxes_at_the_same_place_share_its_cells():
    assert labels(("g", 0, 0, 1, 1), ("s", 0, 0, 0.5, 1), ("r", 0, 0, 0.5, 1), side=2) == "srg/srg"


def test_a_thing_smaller_than_a_cell_gets_the_cell_of_its_middle():
    assert labels(("s", 0.26, 0.01, 0.35, 0.09)) == ".s../..../..../...."


@pytest.mark.parametrize(
    ("mode", "size", "expected"),
    [
        ("pad", (200, 100), "----/aabb/aabb/----"),
        ("pad", (100, 200), "-ab-/-ab-/-ab-/-ab-"),
        ("crop", (200, 100), "aabb/aabb/aabb/aabb"),
        ("squash", (200, 100), "aabb/aabb/aabb/aabb"),
    ],
)
def test_cells_follow_the_geometry_of_the_image_mode(mode: Mode, size: tuple[int, int], expected: str):
    assert labels(("a", 0, 0, 0.5, 1), ("b", 0.5, 0, 1, 1), mode=mode, size=size) == expected


def test_cropping_shows_the_middle_of_a_wide_picture():
    assert labels(("l", 0, 0, 0.25, 1), ("m", 0.25, 0, 0.75, 1), ("r", 0.75, 0, 1, 1), mode="crop", size=(200, 100)) == "/".join(
        ["mmmm"] * 4
    )


def test_names_are_sorted_and_hold_the_background_once():
    picture: Any = ImageAnnotations(
        "a.png", 1, 1, boxes=(Box("cat", (0, 0, 1, 1)), Box("ant", (0, 0, 1, 1)), Box("background", (0, 0, 1, 1)))
    )
    assert annotation_names([picture, picture], "background") == ["ant", "background", "cat"]


def test_a_name_is_its_tokens_embeddings_the_first_counting_most_at_unit_length(tiny: tuple[Llava, Processor]):
    model, processor = tiny
    names = CellNames.of(["red", "red blue"], model, processor)
    embeddings = model.causal_lm.get_input_embeddings().weight.detach()
    ids = processor.tokenizer.encode(" red blue", add_special_tokens=False)
    mixed = sum(embeddings[token] / 2**place for place, token in enumerate(ids))
    torch.testing.assert_close(names.directions[1], mixed / mixed.norm())
    torch.testing.assert_close(names.directions.norm(dim=-1), torch.ones(2))


def test_cells_are_called_by_the_third_of_the_picture_that_they_lie_in():
    assert cell_places(3) == ["top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right"]
    seven = cell_places(7)
    assert [seven[7 * row + column] for row, column in ((0, 6), (1, 3), (2, 1), (3, 3), (4, 4), (6, 0))] == [
        "top right", "top", "left", "center", "center", "bottom left",
    ]  # fmt: skip
