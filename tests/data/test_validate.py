"""Rows are sorted once, with a reason each, and the outcome is a page and a table."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vistune.data.validate import Manifest, Measured, check_file_once, check_rows, explain_rejections, held_out, reason_of
from vistune.errors import ContextLengthError, DataError, EmptyAnswerError, EmptyMaskError, ImageCountError, ImageError
from vistune.formats import Place, RowFile, placed_rows

ERRORS: dict[str, Exception] = {
    "image_missing": ImageError("missing", "no such picture"),
    "image_count": ImageCountError("two marks, one file"),
    "empty_answer": EmptyAnswerError("nothing said"),
    "nothing_to_learn": EmptyMaskError("no target"),
    "too_long": ContextLengthError("9,000 tokens"),
    "bad_row": DataError("not a row"),
}


def measure(row: Any) -> Measured:
    if row in ERRORS:
        raise ERRORS[row]
    return Measured(len(row), images=2, words=1)


def checked(rows: Sequence[Any]) -> Manifest:
    placed = [(row, Place(10 * number, 10, number)) for number, row in enumerate(rows)]
    table, rejected = check_rows(placed, lambda number, row: row, measure)
    return Manifest(json.dumps(rows), table, rejected)


def test_every_kind_of_bad_row_has_its_own_code_and_the_good_ones_stay_in_order():
    manifest = checked(["good", *ERRORS, "better"])
    assert (manifest.accepted, manifest.lengths) == ((0, 7), (4, 6))
    assert [rejection.reason for rejection in manifest.rejected] == list(ERRORS)
    assert all(reason_of(error) == reason for reason, error in ERRORS.items())


def test_the_table_says_where_each_accepted_row_lies_and_what_it_costs():
    assert checked(["bad_row", "good"]).table.tolist() == [(1, 10, 10, 1, 4, 2, 1)]


def test_an_error_of_ours_is_not_taken_for_a_bad_row():
    with pytest.raises(ZeroDivisionError):
        check_rows([("a", Place(0, 1, 0))], lambda number, row: row, lambda row: Measured(1 // 0))


def check_again(path: Path, known: Manifest | None, rows: Iterable[Any] | None = None, settings: str = "s") -> Manifest:
    found = placed_rows(path) if rows is None else rows
    return check_file_once(path, found, lambda number, row: row, measure, settings_digest=settings, known=known)


def test_a_written_manifest_is_read_back_and_spares_the_second_check(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text('"good"\n\n"bad_row"\n"better"\n')
    manifest = check_again(path, None)
    manifest.held_out["first"] = [1]
    manifest.write(tmp_path / "data.json")
    known = Manifest.read(tmp_path / "data.json")
    assert known is not None
    assert (known.digest, known.rejected, known.held_out) == (manifest.digest, manifest.rejected, {"first": [1]})
    assert np.array_equal(known.table, manifest.table)
    assert isinstance(known.table, np.memmap)  # not in memory
    file = RowFile(path)
    assert [file.row(Place(*entry)) for entry in known.table[["start", "extent", "crc"]].tolist()] == ["good", "better"]

    nobody_reads = (pytest.fail("read again") for _ in range(1))
    assert check_again(path, known, nobody_reads) is known
    os.utime(path, (1, 1))  # copied, say: its digest tells that it is the same
    assert check_again(path, known, nobody_reads) is known
    assert check_again(path, known, settings="t") is not known
    path.write_text('"other"\n')
    assert check_again(path, known).accepted == (0,)


def test_a_file_that_changes_while_it_is_checked_is_an_error(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text('"good"\n')

    def rows() -> Iterable[Any]:
        yield from placed_rows(path)
        path.write_text('"better"\n')

    with pytest.raises(DataError, match="changed while its rows were checked"):
        check_again(path, None, rows())


@pytest.mark.parametrize("content", [None, "", "[]", '{"accepted": 3}', '{"rejected": [3]}'])
def test_a_manifest_that_cannot_be_read_is_none(tmp_path: Path, content: str | None):
    checked(["good"]).write(tmp_path / "data.json")
    (tmp_path / "data.json").unlink()
    if content is not None:
        (tmp_path / "data.json").write_text(content)
    assert Manifest.read(tmp_path / "data.json") is None


@pytest.mark.parametrize("harm", ["missing", "cut", "flipped", "another's", "pickled"])
def test_a_table_that_is_not_the_pages_own_makes_no_manifest(tmp_path: Path, harm: str):
    checked(["good", "better"]).write(tmp_path / "data.json")
    table = tmp_path / "data.npy"
    assert Manifest.read(tmp_path / "data.json")
    match harm:
        case "missing":
            table.unlink()
        case "cut":
            table.write_bytes(table.read_bytes()[:-3])
        case "flipped":
            table.write_bytes(table.read_bytes()[:-1] + b"\x01")
        case "another's":
            checked(["good", "other"]).write(tmp_path / "other.json")
            table.write_bytes((tmp_path / "other.npy").read_bytes())
        case _:
            np.save(table, np.array([{"a": 1}], object), allow_pickle=True)
    assert Manifest.read(tmp_path / "data.json") is None


def test_the_digest_changes_with_rows_choice_and_lengths():
    plain = checked(["a", "b"])
    assert plain.digest == checked(["a", "b"]).digest
    others = [checked(rows).digest for rows in (["b", "a"], ["a"], ["a", "bad_row"])]
    longer = plain.table.copy()
    longer["tokens"][0] = 9
    others.append(Manifest(plain.rows_digest, longer, ()).digest)
    assert len({plain.digest, *others}) == 5


@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=30), st.integers(0, 10), st.integers(0, 3))
def test_held_out_rows_share_no_picture_with_the_rest(groups: list[str], rows: int, seed: int):
    chosen = held_out(groups, rows, seed=seed)
    assert len(chosen) >= min(rows, len(groups))
    assert not {groups[place] for place in chosen} & {group for place, group in enumerate(groups) if place not in chosen}
    assert chosen == held_out(iter(groups), rows, seed=seed)


def test_held_out_rows_are_no_more_than_needed_and_never_change_between_versions():
    groups = [f"{place % 7}.png" for place in range(21)]
    assert sorted(held_out(groups, 4, seed=3)) == [3, 6, 10, 13, 17, 20]


def test_the_explanation_counts_the_reasons_and_quotes_the_first():
    text = explain_rejections(checked(["x", "bad_row", "bad_row", "too_long"]), Path("rows.json"))
    assert "3 of 4 rows of rows.json" in text
    assert "2 bad_row, 1 too_long" in text
    assert "not a row" in text
