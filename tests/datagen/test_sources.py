"""The table of sources, people's own files, CC3M and drawn scenes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.datagen.annotation_files import write_json, write_lines, write_picture

from vistune.datagen.json_stream import MAX_LINE
from vistune.datagen.sources import REASONS, SOURCES, RejectedRow, read_annotations
from vistune.errors import DataError, UnknownName, UsageError
from vistune.scenes.write import write_scenes
from vistune.types import Box, ImageAnnotations

OWN = {"image": "a/1.jpg", "captions": ["A dog on a lawn."], "width": 64, "height": 48}


def read(source: str, file: Path, *, images: Path | None = None, check: bool = False) -> tuple[list[ImageAnnotations], list[str]]:
    rows = list(read_annotations(source, [file], images, check_images=check))
    return (
        [row for row in rows if isinstance(row, ImageAnnotations)],
        [row.reason for row in rows if isinstance(row, RejectedRow)],
    )


def test_a_wrong_name_says_the_right_ones():
    with pytest.raises(UnknownName, match="visual_genome"):
        read_annotations("visualgenome", [Path("x")], None)
    with pytest.raises(UsageError, match="at least one"):
        read_annotations("coco", [], None)


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_says_in_one_paragraph_that_its_file_is_missing(source: str, tmp_path: Path):
    with pytest.raises(DataError) as raised:
        list(read_annotations(source, [tmp_path / "missing"], tmp_path))
    assert "missing does not exist" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("box", "units"),
    [
        ({"xyxy": [16, 12, 48, 36]}, "pixels"),
        ({"xywh": [16, 12, 32, 24]}, "pixels"),
        ({"xyxy": [0.25, 0.25, 0.75, 0.75]}, "fractions"),
        ({"xywh": [0.25, 0.25, 0.5, 0.5]}, "fractions"),
    ],
)
def test_own_boxes_are_in_the_units_that_the_row_says(tmp_path: Path, box: dict[str, Any], units: str):
    file = write_lines(tmp_path / "own.jsonl", [OWN | {"boxes": [{"label": " dog ", **box}], "units": units}])
    good, rejected = read("jsonl", file)
    assert good == [ImageAnnotations("a/1.jpg", 64, 48, ("A dog on a lawn.",), (Box("dog", (0.25, 0.25, 0.75, 0.75)),), "jsonl")]
    assert not rejected


def with_box(**changes: Any) -> dict[str, Any]:
    return OWN | {"boxes": [{"label": "dog", "xyxy": [16, 12, 48, 36]}], "units": "pixels"} | changes


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{", "not_json"),
        ("[1]", "bad_row"),
        ("[" * 100_000, "not_json"),
        ('{"image": ' + "9" * 5000 + "}", "not_json"),
        ('{"image": "' + "x" * MAX_LINE + '"}', "too_long"),
        (OWN | {"image": None}, "no_picture"),
        (OWN | {"image": "https://example.org/1.jpg"}, "no_picture"),
        (OWN | {"image": "../1.jpg"}, "bad_path"),
        (OWN | {"image": "/1.jpg"}, "bad_path"),
        (OWN | {"captions": []}, "no_annotations"),
        (OWN | {"captions": "A dog."}, "bad_row"),
        (OWN | {"captions": ["A dog.", "..."]}, "empty_caption"),
        (OWN | {"caption": "A second way to say it"}, "bad_row"),
        (OWN | {"width": -1}, "bad_size"),
        (OWN | {"width": None, "height": None}, "bad_size"),
        (with_box(units=None), "bad_row"),
        (with_box(units="percent"), "bad_row"),
        (with_box(units="fractions"), "box_outside"),
        (with_box(boxes=[{"label": "dog"}]), "bad_row"),
        (with_box(boxes=[{"label": "", "xyxy": [0, 0, 1, 1]}]), "empty_caption"),
        (with_box(boxes=[{"label": "dog", "xyxy": [9, 9, 1, 1]}]), "bad_box"),
        (with_box(boxes=[{"label": "dog", "xyxy": [True, 0, 1, 1]}]), "bad_box"),
        (OWN | {"image": "a/0.jpg"}, "duplicate_id"),
    ],
)
def test_a_broken_row_is_refused_by_a_fixed_reason_and_hides_nothing(tmp_path: Path, row: Any, reason: str):
    file = write_lines(tmp_path / "own.jsonl", [OWN | {"image": "a/0.jpg"}, row, "", OWN | {"image": "a/2.jpg"}])
    good, rejected = read("jsonl", file)
    assert [known.image for known in good] == ["a/0.jpg", "a/2.jpg"]
    assert rejected == [reason]
    assert reason in REASONS


def test_a_line_of_other_bytes_is_refused_and_a_byte_order_mark_is_not(tmp_path: Path):
    file = write_lines(tmp_path / "own.jsonl", [OWN])
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n") + b'{"image": "\xff"}\n')
    good, rejected = read("jsonl", file)
    assert len(good) == 1
    assert rejected == ["not_json"]


def test_the_size_of_a_picture_is_read_from_it(tmp_path: Path):
    write_picture(tmp_path / "a" / "1.jpg", 64, 48)
    (tmp_path / "a" / "folder").mkdir()
    rows = [
        {"image": "a/1.jpg", "caption": "A dog", "boxes": [{"label": "dog", "xyxy": [16, 12, 48, 36]}], "units": "pixels"},
        {"image": "a/2.jpg", "caption": "A dog"},
        {"image": "a/folder", "caption": "A dog"},
        OWN | {"width": 48},
    ]
    good, rejected = read("jsonl", write_lines(tmp_path / "own.jsonl", rows), check=True)
    assert [(row.width, row.height, row.boxes[0].xyxy) for row in good] == [(64, 48, (0.25, 0.25, 0.75, 0.75))]
    assert rejected == ["image_missing", "image_not_a_file", "size_mismatch"]


def test_a_file_without_rows_is_an_error(tmp_path: Path):
    with pytest.raises(DataError, match="no rows"):
        read("jsonl", write_lines(tmp_path / "own.jsonl", ["", ""]))


def test_cc3m_is_read_from_tsv_and_json_and_addresses_are_not_fetched(tmp_path: Path):
    for name in ("1", "2", "3"):
        write_picture(tmp_path / f"{name}.jpg")
    tsv = write_lines(
        tmp_path / "c.tsv", ["a dog\t1.jpg", "a cat\thttp://example.org/x.jpg\t2.jpg", "a cow\thttp://example.org/3.jpg", "a"]
    )
    good, rejected = read("cc3m", tsv, check=True)
    assert [(row.image, row.captions) for row in good] == [("1.jpg", ("a dog",)), ("2.jpg", ("a cat",))]
    assert rejected == ["no_picture", "no_picture"]

    rows = [{"id": "GCC_1", "image": "3.jpg", "caption": "a cow", "blip_caption": "cow"}, {"image": "1.jpg"}, 7]
    for file in (write_json(tmp_path / "c.json", rows), write_lines(tmp_path / "c.jsonl", [*rows[:2], "7"])):
        good, rejected = read("cc3m", file, check=True)
        assert [(row.image, row.captions) for row in good] == [("3.jpg", ("a cow",))]
        assert rejected == ["bad_row", "bad_row"]


def test_drawn_scenes_are_read_as_they_were_written(tmp_path: Path):
    folder = write_scenes(tmp_path / "scenes", 3)
    good, rejected = read("scenes", folder / "annotations.jsonl", check=True)
    assert not rejected
    assert [row.image for row in good] == [f"images/{number:06}.jpg" for number in range(3)]
    assert all(row.source == "scenes" and row.captions and row.boxes for row in good)
