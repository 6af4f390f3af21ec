"""Official files are read as they are published, or refused with the place and the reason."""

from __future__ import annotations

import base64
import csv
import os
from pathlib import Path

import pytest
from tests.image_files import encode, photo

from vistune.errors import DataError, ImageError
from vistune.eval.official_files import (
    EmbeddedPictures,
    Pictures,
    Row,
    json_rows,
    jsonl_rows,
    keyed_rows,
    parquet_rows,
    require_count,
    tsv_rows,
    unique,
)


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_every_line_of_a_json_lines_file_is_a_row_that_knows_its_place(tmp_path: Path):
    path = write(tmp_path / "q.jsonl", '\ufeff{"a": "x\u2028y"}\n\n{"a": "z"}\r\n')
    assert [row.text("a") for row in jsonl_rows(path)] == ["x\u2028y", "z"]
    assert jsonl_rows(path)[1].where == f"{path}, line 3"


def test_arrays_and_objects_give_rows_also_under_a_name(tmp_path: Path):
    path = write(tmp_path / "q.json", '{"data": [{"a": 1}, {"a": 2}], "byid": {"7": {"a": 3}}}')
    assert [row.integer("a") for row in json_rows(path, "data")] == [1, 2]
    assert keyed_rows(path, "byid")["7"].where == f"{path}, 'byid', '7'"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"\xff\xfe{}", "not UTF-8"),
        ('{"a": 1}\n{"a": 1,}', "line 2 is not JSON"),
        ('{"a": NaN}', "NaN, which is not JSON"),
        ('{"a": 1, "a": 2}', "'a' is there twice"),
        ("[1]", "must be an object, not a list"),
        ("[" * 100_000, "not readable|not JSON"),
        ("9" * 5000, "not readable|must be an object"),
    ],
)
def test_what_is_no_json_object_is_refused_with_its_place(tmp_path: Path, text: str | bytes, complaint: str):
    with pytest.raises(DataError, match=complaint):
        jsonl_rows(write(tmp_path / "q.jsonl", text))


def test_a_missing_file_and_a_folder_in_its_place_are_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"none\.json is missing"):
        json_rows(tmp_path / "none.json")
    with pytest.raises(DataError, match="cannot be read"):
        json_rows(tmp_path)


def test_a_row_gives_values_of_the_right_kind_only():
    row = Row({"t": "x", "i": 3, "b": True, "l": ["a", 1], "n": 1.5}, "f.json, item 1")
    assert (row.text("t"), row.integer("i"), row.number("n"), row.name("i"), row.choice("t", ["x"])) == ("x", 3, 1.5, "3", "x")
    for wrong in (
        lambda: row.text("i"),
        lambda: row.integer("b"),
        lambda: row.integer("n"),
        lambda: row.texts("l"),
        lambda: row.choice("t", ["y", "z"]),
        lambda: row.index("i", 3),
        lambda: row.name("b"),
        lambda: row.get("absent"),
    ):
        with pytest.raises(DataError, match=r"f\.json, item 1: "):
            wrong()


def test_a_table_is_read_as_pandas_reads_it(tmp_path: Path):
    path = write(tmp_path / "t.tsv", 'index\tA\thint\n1\t"a ""b""\nc"\tN/A\r\n2\td\u2028e\tNone\n')
    rows = tsv_rows(path, ["index", "A"])
    assert [row.values for row in rows] == [{"index": "1", "A": 'a "b"\nc', "hint": None}, {"index": "2", "A": "d\u2028e", "hint": None}]


def test_a_cell_may_be_as_long_as_a_picture_and_the_limit_of_others_stays(tmp_path: Path):
    before = csv.field_size_limit()
    (row,) = tsv_rows(write(tmp_path / "t.tsv", "image\n" + "x" * 200_000 + "\n"), ["image"])
    assert len(row.text("image")) == 200_000
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("text", "complaint"), [("a\tb\n1\n", "1 cells"), ("a\n1\n", "no column 'b'"), ("", "no column"), ('a\tb\n"1\t2\n', "no table")]
)
def test_a_broken_table_is_refused(tmp_path: Path, text: str, complaint: str):
    with pytest.raises(DataError, match=complaint):
        tsv_rows(write(tmp_path / "t.tsv", text), ["a", "b"])


def shard(folder: Path, name: str, **columns: list) -> Path:
    import pyarrow
    from pyarrow import parquet

    folder.mkdir(exist_ok=True)
    parquet.write_table(pyarrow.table(columns), folder / name)
    return folder / name


def test_parquet_shards_are_read_in_order(tmp_path: Path):
    shard(tmp_path, "test-00001-of-00002.parquet", a=[3], b=["z"])
    shard(tmp_path, "test-00000-of-00002.parquet", a=[1, 2], b=["x", "y"])
    rows = list(parquet_rows(tmp_path, "test", ["a"]))
    assert [row.values for row in rows] == [{"a": 1}, {"a": 2}, {"a": 3}]
    assert rows[1].where.endswith("test-00000-of-00002.parquet, row 2")


def test_a_missing_shard_column_or_broken_shard_is_named(tmp_path: Path):
    shard(tmp_path, "test-00001-of-00002.parquet", a=[3])
    with pytest.raises(DataError, match=r"every shard test-00000-of-00002"):
        list(parquet_rows(tmp_path, "test", ["a"]))
    with pytest.raises(DataError, match="found none"):
        list(parquet_rows(tmp_path, "validation", ["a"]))
    shard(tmp_path, "dev-00000-of-00001.parquet", a=[3])
    with pytest.raises(DataError, match="no column 'b'"):
        list(parquet_rows(tmp_path, "dev", ["b"]))
    write(tmp_path / "val-00000-of-00001.parquet", b"PAR1 but not really")
    with pytest.raises(DataError, match="not a readable parquet"):
        list(parquet_rows(tmp_path, "val", ["a"]))


ROW = Row({}, "q.json, item 1")


def test_a_picture_is_found_in_its_folder_which_may_be_a_link(tmp_path: Path):
    write(tmp_path / "store" / "a" / "1.png", b"x")
    (tmp_path / "images").symlink_to(tmp_path / "store")
    pictures = Pictures(tmp_path / "images")
    assert pictures.part("a/1.png", ROW).source == tmp_path / "store" / "a" / "1.png"
    assert "a/1.png" in pictures
    assert "a" not in pictures


def test_a_missing_picture_is_named_with_the_row_that_names_it(tmp_path: Path):
    with pytest.raises(ImageError, match=r"q\.json, item 1: there is no picture 'b\.png'") as caught:
        Pictures(tmp_path).part("b.png", ROW)
    assert caught.value.reason == "missing"
    with pytest.raises(DataError, match="nowhere is missing"):
        Pictures(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname", "link.png", "a\0b", "\ud800.png", "x" * 5000])
def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str):
    write(tmp_path / "secret.png", b"x")
    (tmp_path / "images").mkdir()
    os.symlink(tmp_path / "secret.png", tmp_path / "images" / "link.png")
    with pytest.raises(ImageError) as caught:
        Pictures(tmp_path / "images").part(name, ROW)
    assert caught.value.reason in ("outside_root", "bad_path")


def test_pictures_in_rows_are_decoded_and_kept_once():
    picture = encode(photo(8, 8), "PNG")
    rows = [Row({"image": base64.b64encode(picture).decode(), "p": {"bytes": picture, "path": None}}, "t.tsv, line 2") for _ in range(2)]
    pictures = EmbeddedPictures()
    first, second = pictures.from_base64(rows[0], "image"), pictures.from_parquet(rows[1], "p")
    assert first.source == picture
    assert first is second


@pytest.mark.parametrize("image", ["not base64!", base64.b64encode(b"no picture").decode(), ""])
def test_what_is_no_picture_in_base64_is_refused(image: str):
    with pytest.raises(ImageError, match=r"t\.tsv, line 2"):
        EmbeddedPictures().from_base64(Row({"image": image}, "t.tsv, line 2"), "image")


def test_a_parquet_row_without_a_picture_is_refused():
    with pytest.raises(DataError, match="must hold a picture"):
        EmbeddedPictures().from_parquet(Row({"image": None}, "row 1"), "image")


def test_names_come_once_and_counts_are_those_of_the_benchmark():
    rows = [Row({"id": 1}, "f, line 1"), Row({"id": "1"}, "f, line 2")]
    with pytest.raises(DataError, match=r"f, line 2: '1' was there before, in f, line 1"):
        unique(rows, lambda row: row.name("id"))
    assert list(unique(rows[:1], lambda row: row.name("id"))) == ["1"]
    require_count(2, 2, "f: questions")
    with pytest.raises(DataError, match=r"f: questions: 2, but the benchmark has 3"):
        require_count(2, 3, "f: questions")
