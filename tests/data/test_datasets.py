"""Where data lies, and annotated pictures from JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vistune.data.datasets import DATASETS, annotations_from, locate
from vistune.errors import DataError, UnknownName
from vistune.types import Box, ImageAnnotations


def test_a_known_dataset_is_found_under_the_root(tmp_path: Path):
    (tmp_path / "images").mkdir()
    (tmp_path / "blip_laion_cc_sbu_558k.json").write_text("[]")
    files = locate("llava_pretrain_558k", root=tmp_path)
    assert (files.rows, files.images) == (tmp_path / "blip_laion_cc_sbu_558k.json", tmp_path / "images")


def test_a_file_of_ones_own_has_its_pictures_beside_it_or_where_one_says(tmp_path: Path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "mine.json").write_text("[]")
    assert locate("mine.json", root=tmp_path).images == tmp_path
    assert locate(str(tmp_path / "mine.json"), root=Path("/elsewhere")).rows == tmp_path / "mine.json"
    assert locate("mine.json", root=tmp_path, images="pictures").images == tmp_path / "pictures"


def test_what_is_neither_a_file_nor_known_lists_the_known(tmp_path: Path):
    with pytest.raises(UnknownName, match="llava_v1_5_mix665k"):
        locate("llava_v1_5_mix", root=tmp_path)


def test_a_known_dataset_that_is_not_there_says_where_to_get_it(tmp_path: Path):
    with pytest.raises(DataError, match=r"https://huggingface\.co"):
        locate("llava_v1_5_mix665k", root=tmp_path)


def test_a_missing_picture_folder_is_named(tmp_path: Path):
    (tmp_path / "mine.json").write_text("[]")
    with pytest.raises(DataError, match=r"data\.images"):
        locate("mine.json", root=tmp_path, images="nowhere")


def test_every_dataset_says_its_licence_and_origin():
    assert all(spec.licence and spec.address for spec in DATASETS.values())


ROW = {"image": "a.png", "width": 4, "height": 3, "captions": ["A cat."], "boxes": [{"label": "cat", "xyxy": [0, 0.5, 1, 1]}]}


def test_annotations_are_read_from_their_json():
    assert annotations_from(ROW, where="row 0") == ImageAnnotations("a.png", 4, 3, ("A cat.",), (Box("cat", (0.0, 0.5, 1.0, 1.0)),))


@pytest.mark.parametrize(
    "change",
    [
        {"image": "../a.png"},
        {"width": "wide"},
        {"boxes": [{"label": "cat"}]},
        {"boxes": [{"label": "cat", "xyxy": [1, 0, 0, 1]}]},
        {"image": 3},
    ],
)
def test_what_is_no_annotated_picture_is_refused_with_its_row(change: dict[str, Any]):
    with pytest.raises(DataError, match="row 7"):
        annotations_from(ROW | change, where="row 7")
