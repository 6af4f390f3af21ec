"""Visual Genome's region descriptions, objects and image data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.datagen.annotation_files import write_json, write_picture

from vistune.datagen.sources import RejectedRow, read_annotations
from vistune.errors import DataError
from vistune.types import Box, ImageAnnotations


def regions_of(image: int, *phrases: Any) -> dict[str, Any]:
    return {"id": image, "regions": [{"region_id": n, "image_id": image, "phrase": phrase, "x": 1} for n, phrase in enumerate(phrases)]}


def objects_of(image: int, *boxes: Any) -> dict[str, Any]:
    objects = [{"object_id": n, "names": ["clock"], "x": x, "y": y, "w": w, "h": h} for n, (x, y, w, h) in enumerate(boxes)]
    return {"image_id": image, "objects": objects, "image_url": f"https://vg.example/VG_100K/{image}.jpg"}


def data_of(image: int, **changes: Any) -> dict[str, Any]:
    return {"image_id": image, "url": f"https://vg.example/VG_100K_2/{image}.jpg", "width": 64, "height": 48} | changes


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [
        write_json(tmp_path / "region_descriptions.json", [regions_of(1, "a clock", "the pole"), regions_of(2, "a dog")]),
        write_json(tmp_path / "objects.json", [objects_of(1, (16, 12, 32, 24)), objects_of(2)]),
        write_json(tmp_path / "image_data.json", [data_of(1), data_of(2)]),
    ]


def read(files: list[Path], *, check: bool = False) -> tuple[list[ImageAnnotations], list[tuple[str, str]]]:
    rows = list(read_annotations("visual_genome", files, None, check_images=check))
    good = [row for row in rows if isinstance(row, ImageAnnotations)]
    return good, [(row.row, row.reason) for row in rows if isinstance(row, RejectedRow)]


def test_phrases_become_captions_and_objects_boxes(files: list[Path]):
    for order in (files, files[::-1]):
        good, rejected = read(order)
        assert not rejected
        box = Box("clock", (0.25, 0.25, 0.75, 0.75))
        assert good[0] == ImageAnnotations("VG_100K_2/1.jpg", 64, 48, ("a clock", "the pole"), (box,), "visual_genome")
        assert good[1].captions == ("a dog",)


@pytest.mark.parametrize(("place", "captions"), [(0, [2, 1]), (1, [0])])
def test_either_large_file_does_alone(files: list[Path], place: int, captions: list[int]):
    good, _ = read([files[place], files[2]])
    assert [len(row.captions) for row in good] == captions


def test_images_in_another_order_or_in_one_file_only_are_joined_all_the_same(files: list[Path]):
    write_json(files[0], [regions_of(3, "a cat"), regions_of(2, "a dog"), regions_of(1, "a clock")])
    write_json(files[1], [objects_of(1, (0, 0, 9, 9)), objects_of(4, (0, 0, 9, 9)), objects_of(2, (0, 0, 9, 9))])
    write_json(files[2], [data_of(number) for number in range(1, 5)])
    good, rejected = read(files)
    assert not rejected
    assert {row.image[-5]: (len(row.captions), len(row.boxes)) for row in good} == {"1": (1, 1), "2": (1, 1), "3": (1, 0), "4": (0, 1)}


def test_pictures_are_found_without_image_data_in_either_archive(files: list[Path], tmp_path: Path):
    write_picture(tmp_path / "VG_100K" / "1.jpg")
    write_picture(tmp_path / "2.jpg")
    good, rejected = read(files[:2], check=True)
    assert [row.image for row in good] == ["VG_100K/1.jpg", "2.jpg"]
    assert not rejected
    (tmp_path / "2.jpg").unlink()
    assert read(files[:2], check=True)[1] == [("image 2", "image_missing")]


def test_every_broken_row_is_refused_by_itself(files: list[Path]):
    write_json(files[0], [regions_of(1, "a clock", "", None), "what", {"id": 2}, regions_of(1, "again"), regions_of(9, "a cat")])
    write_json(files[1], [objects_of(1, (16, 12, 32, 24), (60, 0, 9, 9), (0, 0, 0, 9), (None, 0, 1, 1)), {"image_id": True, "objects": []}])
    good, rejected = read(files)
    assert [(row.captions, len(row.boxes)) for row in good] == [(("a clock",), 1)]
    assert sorted(reason for _, reason in rejected) == [
        *["bad_box"] * 2,
        *["bad_row"] * 4,
        "box_outside",
        "duplicate_id",
        "empty_caption",
        "unknown_image",
    ]


def test_a_file_that_is_none_of_visual_genomes_is_an_error(files: list[Path]):
    with pytest.raises(DataError, match="alone says nothing"):
        read(files[2:])
    with pytest.raises(DataError, match="both hold regions"):
        read([files[0], files[0]])
    write_json(files[0], {"images": []})
    with pytest.raises(DataError, match="not one of Visual Genome's files"):
        read(files)
