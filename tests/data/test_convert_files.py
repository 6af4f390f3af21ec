"""`data convert`: whole files between the formats, pictures inside or outside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.instruction_data import row, write_picture, write_rows

from vistune.data.convert import convert
from vistune.data.pictures import PictureFolder
from vistune.errors import DataError, ImageError, UsageError
from vistune.formats import ImageBytes, read_examples, read_rows
from vistune.types import Conversation, ImagePart, InstructionExample, Message, TextPart


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_picture(tmp_path / "cats" / "1.png", 1)
    write_picture(tmp_path / "2.jpg", 2)
    rows = [
        row(image="cats/1.png", id="a", model="gpt-4", provenance={"licence": "CC0"}),
        row("Is <image> like <image>?", image=["2.jpg", "cats/1.png"], id="b", kind="detail"),
        row("What is <image>?", image=None, id="c"),
    ]
    write_rows(tmp_path / "rows.json", *rows)
    return tmp_path


def test_around_all_formats_and_back_is_the_same_file(folder: Path):
    pytest.importorskip("pyarrow")
    steps = [("sharegpt", "s.jsonl"), ("messages", "m.parquet"), ("llava", "back.json")]
    current = folder / "rows.json"
    for name, file in steps:
        assert convert(current, folder / file, images=folder, format=name).rows == 3
        current = folder / file
    assert list(read_rows(current)) == list(read_rows(folder / "rows.json"))
    assert not (folder / "embedded").exists()  # each picture was found again under its own name


def test_pictures_come_out_of_a_parquet_file_under_the_names_they_had(folder: Path, tmp_path: Path):
    pytest.importorskip("pyarrow")
    convert(folder / "rows.json", folder / "m.parquet", images=folder)
    elsewhere = tmp_path / "elsewhere"
    done = convert(folder / "m.parquet", tmp_path / "back.json", images=elsewhere)
    assert done.pictures_saved == 2
    for name in ("cats/1.png", "2.jpg"):
        assert (elsewhere / name).read_bytes() == (folder / name).read_bytes()
    assert list(read_rows(tmp_path / "back.json")) == list(read_rows(folder / "rows.json"))


def test_a_parquet_file_of_names_holds_no_pictures(folder: Path):
    pytest.importorskip("pyarrow")
    convert(folder / "rows.json", folder / "m.parquet", images=folder, pictures="paths")
    assert list(read_examples(folder / "m.parquet", folder)) == list(read_examples(folder / "rows.json", folder))


def saved_as(folder: Path, name: str, data: bytes) -> str:
    parts = (ImagePart(ImageBytes(data, name)), TextPart("?"))
    example = InstructionExample("r", Conversation((Message("user", parts), Message("assistant", (TextPart("Yes."),)))))
    (image,) = PictureFolder(folder).place(example).conversation.images
    assert isinstance(image.source, Path)
    assert image.source.read_bytes() == data
    return image.source.relative_to(folder).as_posix()


def test_no_name_in_a_file_of_strangers_leads_out_of_the_folder_or_over_another_file(folder: Path):
    data = (folder / "2.jpg").read_bytes()
    (folder / "away").symlink_to(folder.parent)
    for name in ("../x.jpg", "/etc/x.jpg", "run.py", ".bashrc", "away/x.jpg", "cats/1.png", "x\0.jpg", "n" * 300 + ".jpg", ""):
        assert saved_as(folder, name, data).startswith("embedded/")
    assert saved_as(folder, "2.jpg", data) == "2.jpg"
    assert saved_as(folder, "new/3.jpg", data) == "new/3.jpg"
    with pytest.raises(ImageError):
        saved_as(folder, "4.jpg", b"#!/bin/sh")


def test_a_bad_row_stops_or_is_set_aside(folder: Path):
    rows = [*read_rows(folder / "rows.json"), row(answer=""), row("<image> is not <image>", image=None, id="d")]
    write_rows(folder / "bad.json", *rows)
    with pytest.raises(DataError, match="row 3"):
        convert(folder / "bad.json", folder / "out.json", images=folder)
    assert not (folder / "out.json").exists()
    set_aside = []
    done = convert(
        folder / "bad.json",
        folder / "out.json",
        images=folder,
        format="sharegpt",
        bad_rows="skip",
        reject=lambda *each: set_aside.append(each),
    )
    assert (done.rows, done.spelled_marks, [rejection.row for rejection in done.rejected]) == (4, 2, [3])
    assert set_aside == [(done.rejected[0], rows[3])]


def test_what_would_be_lost_is_refused_unless_allowed(folder: Path):
    turns = [{"from": "gpt", "value": "Welcome."}, *row(image=None)["conversations"]]
    write_rows(folder / "talk.json", {"id": "1", "conversations": turns})
    with pytest.raises(DataError, match="would be lost"):
        convert(folder / "talk.json", folder / "out.json", images=folder)
    assert convert(folder / "talk.json", folder / "out.json", images=folder, losses="allow").rows == 1


def test_a_sharegpt_file_is_entered_for_llama_factory_beside_other_entries(folder: Path):
    info = folder / "dataset_info.json"
    info.write_text('{"mine": {"file_name": "mine.json"}}')
    convert(folder / "rows.json", folder / "s.json", images=folder, format="sharegpt")
    page = json.loads(info.read_text())
    assert page["mine"] == {"file_name": "mine.json"}
    assert page["s"] == {"file_name": "s.json", "formatting": "sharegpt", "columns": {"messages": "conversations", "images": "images"}}
    info.write_text("{")
    with pytest.raises(DataError, match=r"dataset_info\.json is not JSON"):
        convert(folder / "rows.json", folder / "t.json", images=folder, format="sharegpt")


def test_pictures_elsewhere_are_refused_by_name(folder: Path):
    with pytest.raises(DataError, match="must be files under"):
        convert(folder / "rows.json", folder / "out.json", images=folder, out_images=folder / "cats")
    with pytest.raises(UsageError, match="no place for pictures"):
        convert(folder / "rows.json", folder / "out.json", images=folder, pictures="embed")
    with pytest.raises(UsageError, match="the file to convert"):
        convert(folder / "rows.json", folder / "rows.json", images=folder)


def test_names_may_start_from_a_folder_further_up(folder: Path):
    convert(folder / "rows.json", folder / "out.json", images=folder, out_images=folder.parent)
    assert next(read_rows(folder / "out.json"))["image"] == f"{folder.name}/cats/1.png"
