"""A row is found again by its place, in a file of any kind, and only as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vistune.errors import DataError
from vistune.formats import Place, RowFile, placed_rows, read_rows

TEXT = st.text(max_size=8).filter(lambda text: text.isprintable())
ROWS = st.lists(st.one_of(TEXT, st.integers(), st.dictionaries(TEXT, st.lists(TEXT, max_size=3), max_size=3)), min_size=1, max_size=12)
SPACE = st.text(" \t\r\n", max_size=3)


@given(ROWS, SPACE, st.booleans(), st.booleans(), st.integers(1, 40))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_row_is_found_again_at_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[Any], space: str, mark: bool, lines: bool, chunk: int
):
    monkeypatch.setattr("vistune.formats.files._CHUNK_BYTES", chunk)  # so that rows straddle the window, too
    path = tmp_path / ("rows.jsonl" if lines else "rows.json")
    texts = [json.dumps(row, ensure_ascii=False) for row in rows]
    between = "\n" + space + "\n" if lines else f"{space},{space}"
    text = between.join(texts) if lines else f"{space}[{space}{between.join(texts)}{space}]{space}"
    path.write_bytes(("\ufeff" * mark + text).encode())
    places = [place for _, place in placed_rows(path)]
    file = RowFile(path)
    assert [file.row(place) for place in reversed(places)] == list(read_rows(path))[::-1] == rows[::-1]


def parquet(path: Path, rows: int) -> None:
    arrow, files = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"id": [f"{number}" for number in range(rows)], "image": [b"x" * 1000] * rows})
    files.write_table(table, path, row_group_size=4)


def test_parquet_rows_are_read_by_their_group_and_few_groups_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    parquet(tmp_path / "rows.parquet", 11)
    monkeypatch.setattr("vistune.formats.parquet.GROUPS_BYTES", 6000)
    places = [place for _, place in placed_rows(tmp_path / "rows.parquet")]
    assert {place.start for place in places} == {0, 1, 2}
    file = RowFile(tmp_path / "rows.parquet")
    assert [file.row(places[number])["id"] for number in (10, 0, 5, 7, 3)] == ["10", "0", "5", "7", "3"]
    assert file._groups is not None
    assert len(file._groups._groups) == 1
    for lying in (Place(3, 0, 0), Place(2, 3, 0)):
        with pytest.raises(DataError, match="was the file changed"):
            file.row(lying)


@pytest.mark.parametrize("harm", ["changed", "cut short", "moved"])
def test_a_row_that_is_not_as_it_was_is_an_error(tmp_path: Path, harm: str):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n')
    place = list(placed_rows(path))[1][1]
    path.write_text({"changed": '{"a": 1}\n{"a": 3}\n', "cut short": '{"a": 1}\n{"a"', "moved": '\n{"a": 1}\n{"a": 2}\n'}[harm])
    with pytest.raises(DataError, match="holds other bytes at 9"):
        RowFile(path).row(place)


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"none\.jsonl cannot be opened"):
        RowFile(tmp_path / "none.jsonl")
