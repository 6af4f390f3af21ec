"""`data check` sorts rows, looks at each picture once, and remarks on what is odd but usable."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from tests.instruction_data import row, write_picture, write_rows

from vistune.data import check
from vistune.data.check import check_file, rejects_file
from vistune.errors import ContextLengthError, DataError
from vistune.formats import read_examples, write_examples
from vistune.types import InstructionExample


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_picture(tmp_path / "cat.png")
    return tmp_path


def test_every_fault_has_its_reason_and_the_rows_around_it_are_read(folder: Path):
    (folder / "text.png").write_text("no picture")
    bad = {
        "image_missing": row(image="gone.png"),
        "image_format": row(image="text.png"),
        "image_count": row("<image> <image>"),
        "empty_answer": row(answer=" "),
        "bad_row": row(image="../cat.png"),
    }
    file = write_rows(folder / "rows.json", row(), *bad.values(), row(id="2"), {"id": "3", "conversations": []})
    report = check_file(file, folder)
    assert report.usable == 2
    assert [(rejection.row, rejection.reason) for rejection in report.rejected] == [*enumerate(bad, 1), (7, "bad_row")]
    assert report.reasons["bad_row"] == 2


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_all_formats_and_kinds_of_file_are_checked(folder: Path, name: str):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    source = write_rows(folder / "rows.json", row(), row(id="2", image="gone.png"))
    write_examples(read_examples(source, folder), folder / name, folder, "messages")
    report = check_file(folder / name, folder)
    assert (report.formats, report.usable) == ({"messages": 2}, 1)
    assert report.reasons == {"image_missing": 1}


def test_a_picture_in_many_rows_is_opened_once_and_its_verdict_is_for_all(folder: Path, monkeypatch):
    file = write_rows(folder / "rows.json", *(row(id=str(number)) for number in range(5)), *[row(image="gone.png")] * 3)
    opened = []
    assert check_file(file, folder).reasons == {"image_missing": 3}
    monkeypatch.setattr(check, "open_image", lambda source, root: opened.append(source))
    check_file(file, folder)
    assert opened == [folder / "cat.png", folder / "gone.png"]


@pytest.mark.parametrize("how", ["decode", "header", "none"])
def test_pictures_in_tars_are_checked_like_files(folder: Path, how: check.PictureCheck):
    (folder / "cut.png").write_bytes((folder / "cat.png").read_bytes()[:-30])
    with tarfile.open(folder / "pictures.tar", "w") as tar:
        tar.add(folder / "cat.png", "cat.png")
        tar.add(folder / "cut.png", "cut.png")
    file = write_rows(folder / "rows.json", row(), row(id="2", image="gone.png"), row(id="3", image="cut.png"))
    report = check_file(file, folder / "pictures.tar", pictures=how)
    in_files = check_file(file, folder, pictures=how)
    assert [(each.row, each.reason) for each in report.rejected] == [(each.row, each.reason) for each in in_files.rejected]
    assert report.usable == (3 if how == "none" else 1)
    assert all(name in each.message for name, each in zip(("gone.png", "cut.png"), report.rejected, strict=False))


def test_a_file_cut_short_passes_the_header_and_not_the_decoder(folder: Path):
    data = (folder / "cat.png").read_bytes()
    (folder / "cat.png").write_bytes(data[: data.index(b"IDAT") + 40])
    file = write_rows(folder / "rows.json", row())
    assert check_file(file, folder).usable == 0
    assert check_file(file, folder, pictures="none").usable == 1


def test_rows_that_say_the_same_and_ids_that_come_again_are_remarked(folder: Path):
    same = row(id="2", kind="detail")
    file = write_rows(folder / "rows.json", row(), same, row(answer="A dog."), row("What is <image>?", image=None, id="4"))
    report = check_file(file, folder)
    assert [(remark.row, remark.kind) for remark in report.remarks] == [(1, "duplicate_row"), (2, "duplicate_id"), (3, "spells_mark")]
    assert report.usable == 4


def test_remarks_are_all_counted_but_not_all_kept(folder: Path, monkeypatch):
    monkeypatch.setattr(check, "_SHOWN_PER_REMARK", 2)
    report = check_file(write_rows(folder / "rows.json", *[row()] * 6), folder)
    assert report.remark_counts == {"duplicate_row": 5, "duplicate_id": 5}
    assert len(report.remarks) == 4


def test_a_row_too_long_for_the_model_is_rejected_and_the_others_are_measured(folder: Path):
    def measure(example: InstructionExample) -> int:
        if example.conversation.last_reply == "long":
            raise ContextLengthError("9,000 tokens")
        return 7

    report = check_file(write_rows(folder / "rows.json", row(), row(answer="long")), folder, measure=measure)
    assert (report.tokens.counts, report.reasons) == ({7: 1}, {"too_long": 1})


def test_the_folder_may_be_named_relative_to_where_one_stands(folder: Path, monkeypatch):
    monkeypatch.chdir(folder.parent)
    file = write_rows(folder / "rows.json", row())
    assert check_file(file, Path(folder.name)).usable == 1
    assert check_file(file, Path("..") / folder.parent.name / folder.name).usable == 1


def test_rejected_rows_are_written_with_their_reasons(folder: Path):
    file = write_rows(folder / "rows.json", row(), row(answer=""), 7)
    with rejects_file(folder / "rejects.jsonl") as reject:
        check_file(file, folder, reject=reject)
    lines = [json.loads(line) for line in (folder / "rejects.jsonl").read_text().splitlines()]
    assert [(line["row"], line["reason"]) for line in lines] == [(1, "empty_answer"), (2, "bad_row")]
    assert [line["data"] for line in lines] == [row(answer=""), 7]


def test_a_file_that_breaks_off_is_an_error_of_its_own(folder: Path):
    (folder / "rows.json").write_text(json.dumps([row()])[:-1])
    with pytest.raises(DataError, match="ends in the middle"):
        check_file(folder / "rows.json", folder)
