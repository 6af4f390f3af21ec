"""COCO's captions and instances."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.datagen.annotation_files import DOG, coco_box, coco_caption, coco_file, coco_image, write_json, write_picture

from vistune.datagen.sources import RejectedRow, read_annotations
from vistune.errors import DataError
from vistune.types import Box, ImageAnnotations


def read(*files: Path, images: Path | None = None, check: bool = False) -> tuple[list[ImageAnnotations], list[RejectedRow]]:
    rows = list(read_annotations("coco", files, images, check_images=check))
    good = [row for row in rows if isinstance(row, ImageAnnotations)]
    return good, [row for row in rows if isinstance(row, RejectedRow)]


def reasons(rejected: list[RejectedRow]) -> list[str]:
    assert all(row.source == "coco" and row.row in row.message for row in rejected)
    return [row.reason for row in rejected]


def test_captions_and_boxes_of_an_image_come_together(tmp_path: Path):
    images = [coco_image(9), coco_image(37)]
    captions = coco_file(
        tmp_path / "c.json", images, [coco_caption(1, 37, " A dog. "), coco_caption(2, 9), coco_caption(3, 37, "Its lawn")]
    )
    boxes = coco_file(tmp_path / "i.json", images, [coco_box(1, 37), coco_box(2, 37, [0, 0, 64, 48])], [DOG])
    for files in ((captions, boxes), (boxes, captions)):
        good, rejected = read(*files)
        assert not rejected
        assert [row.image for row in good] == ["000000000009.jpg", "000000000037.jpg"]
        expected = (Box("dog", (0.25, 0.25, 0.75, 0.75)), Box("dog", (0.0, 0.0, 1.0, 1.0)))
        assert good[1] == ImageAnnotations("000000000037.jpg", 64, 48, ("A dog.", "Its lawn"), expected, "coco")


def test_the_parts_of_a_file_may_come_in_any_order(tmp_path: Path):
    page = {"categories": [DOG], "annotations": [coco_box(1, 37)], "images": [coco_image(37)], "info": None, "licenses": []}
    good, rejected = read(write_json(tmp_path / "i.json", page))
    assert len(good) == 1
    assert len(good[0].boxes) == 1
    assert not rejected


def test_a_crowd_is_left_out(tmp_path: Path):
    file = coco_file(tmp_path / "i.json", [coco_image(1)], [coco_box(1, 1), coco_box(2, 1, iscrowd=1)], [DOG])
    good, rejected = read(file)
    assert len(good[0].boxes) == 1
    assert not rejected


def test_a_box_may_leave_the_picture_by_a_rounded_pixel_which_is_cut_off(tmp_path: Path):
    file = coco_file(tmp_path / "i.json", [coco_image(1)], [coco_box(1, 1, [-0.5, 0, 65.2, 48.9])], [DOG])
    (good,), rejected = read(file)
    assert good.boxes == (Box("dog", (0.0, 0.0, 1.0, 1.0)),)
    assert not rejected


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        (coco_box(2, 1, [10, 10, 80, 20]), "box_outside"),
        (coco_box(2, 1, [10, 10, 0, 20]), "bad_box"),
        (coco_box(2, 1, [10, 10, 5]), "bad_box"),
        (coco_box(2, 1, [10, 10, 5, "5"]), "bad_box"),
        (coco_box(2, 1, [10, 10, 5, float("nan")]), "bad_box"),
        (coco_box(2, 1, [10, 10, 5, 10**400]), "bad_box"),
        (coco_box(2, 1, None), "bad_box"),
        (coco_box(2, 1, category=77), "unknown_category"),
        (coco_box(2, 99), "unknown_image"),
        (coco_caption(2, 99), "unknown_image"),
        (coco_caption(2, 1, " .. "), "empty_caption"),
        (coco_caption(2, 1, None), "bad_row"),
        (coco_caption(2, 1, "x" * 5000), "too_long"),
        (coco_caption(2, 1, "a \ud800 dog"), "bad_text"),
        (coco_box(1, 1), "duplicate_id"),
        ({"id": 2, "image_id": 1}, "bad_row"),
        ({"id": "2", "image_id": 1, "caption": "A dog"}, "bad_row"),
        ("what", "bad_row"),
    ],
)
def test_a_broken_annotation_is_refused_and_hides_nothing(tmp_path: Path, annotation: object, reason: str):
    file = coco_file(tmp_path / "i.json", [coco_image(1)], [coco_box(1, 1), annotation, coco_caption(3, 1)], [DOG])
    good, rejected = read(file)
    assert reasons(rejected) == [reason]
    assert [(row.image, len(row.boxes), len(row.captions)) for row in good] == [("000000000001.jpg", 1, 1)]


@pytest.mark.parametrize(
    ("image", "refused"),
    [
        (coco_image(2, width=0), ["bad_size"]),
        (coco_image(2, width=None), ["bad_size"]),
        (coco_image(2, file_name=None), ["bad_row"]),
        (coco_image(1), ["duplicate_id", "unknown_image"]),
        (coco_image(2, file_name="../2.jpg"), ["bad_path"]),
        (coco_image(2, file_name="/etc/passwd"), ["bad_path"]),
        (coco_image(3), ["no_annotations", "unknown_image"]),
    ],
)
def test_a_broken_image_is_refused_once_with_all_that_belongs_to_it(tmp_path: Path, image: object, refused: list[str]):
    file = coco_file(tmp_path / "c.json", [coco_image(1), image], [coco_caption(1, 1), coco_caption(2, 2)])
    good, rejected = read(file)
    assert [row.image for row in good] == ["000000000001.jpg"]
    assert sorted(reasons(rejected)) == refused


def test_a_picture_is_found_by_its_name_or_in_the_folder_of_its_split(tmp_path: Path):
    write_picture(tmp_path / "000000000001.jpg")
    write_picture(tmp_path / "val2017" / "000000000002.jpg")
    file = coco_file(tmp_path / "c.json", [coco_image(1), coco_image(2)], [coco_caption(1, 1), coco_caption(2, 2)])
    good, rejected = read(file, images=tmp_path, check=True)
    assert [row.image for row in good] == ["000000000001.jpg", "val2017/000000000002.jpg"]
    assert not rejected


def test_pictures_that_are_missing_broken_or_of_another_size_are_refused(tmp_path: Path):
    write_picture(tmp_path / "000000000001.jpg")
    write_picture(tmp_path / "000000000002.jpg", 32, 48)
    (tmp_path / "000000000003.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    (tmp_path / "000000000004.jpg").symlink_to("/etc/passwd")
    numbers = range(1, 6)
    file = coco_file(tmp_path / "c.json", [coco_image(n) for n in numbers], [coco_caption(n, n) for n in numbers])
    good, rejected = read(file, images=tmp_path, check=True)
    assert [row.image for row in good] == ["000000000001.jpg"]
    assert reasons(rejected) == ["size_mismatch", "image_truncated", "bad_path", "image_missing"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"<html>Not found</html>", "begins with '<'"),
        (b"\x1f\x8b\x08\x00", "not UTF-8"),
        (b'{"images": [{"id": 1', "ends in the middle"),
        (b'{"images": [{"id": 1}], "annotations": [{"id": 1}', "ends in the middle"),
        (b'{"images": [] "annotations": []}', "a comma or '}' was expected"),
        (b'{"images": [], "annotations": []} {}', "after its end"),
        (b'{"images": [], "annotations": []}', "not a COCO file"),
        (b'[{"image_id": 1, "regions": []}]', "not a COCO file"),
        (b'{"annotations": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"images": [{"id": ' + b"9" * 5000 + b"}]}", "too long"),
    ],
)
def test_a_file_that_cannot_be_used_is_an_error_that_says_why(tmp_path: Path, content: bytes, said: str):
    (tmp_path / "c.json").write_bytes(content)
    with pytest.raises(DataError, match=said) as raised:
        read(tmp_path / "c.json")
    assert "c.json" in str(raised.value)


def test_a_file_that_is_not_there_or_an_image_folder_is_an_error(tmp_path: Path):
    with pytest.raises(DataError, match="does not exist"):
        read(tmp_path / "c.json")
    with pytest.raises(DataError, match="is a folder"):
        read(tmp_path)
    with pytest.raises(DataError, match="image folder"):
        read(tmp_path / "c.json", images=tmp_path / "none", check=True)
