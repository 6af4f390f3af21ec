"""JSON and lines, read piece by piece."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vistune.datagen import json_stream
from vistune.datagen.json_stream import json_items, text_lines
from vistune.errors import DataError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    page=st.lists(VALUES, max_size=4) | st.dictionaries(st.text(), VALUES, max_size=4),
    piece=st.integers(1, 40),
    spaces=st.sampled_from([None, 1]),
    ascii_only=st.booleans(),
)
def test_items_are_what_the_whole_file_holds_wherever_it_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: Any, piece: int, spaces: int | None, ascii_only: bool
):
    monkeypatch.setattr(json_stream, "_PIECE", piece)
    path = tmp_path / "page.json"
    path.write_bytes(json.dumps(page, indent=spaces, ensure_ascii=ascii_only).encode())
    expected: list[tuple[str, Any]] = []
    for key, value in page.items() if isinstance(page, dict) else [("", page)]:
        expected += [(key, element) for element in value] if isinstance(value, list) else [(key, value)]
    assert list(json_items(path)) == expected


def test_what_was_complete_comes_before_the_fault(tmp_path: Path):
    path = tmp_path / "cut.json"
    path.write_text('{"annotations": [{"id": 1}, {"id": 2}, {"id": 3')
    items = json_items(path)
    assert [next(items), next(items)] == [("annotations", {"id": 1}), ("annotations", {"id": 2})]
    with pytest.raises(DataError, match="near character 39, an item is malformed or ends in the middle"):
        next(items)


def test_an_item_that_never_ends_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(json_stream, "MAX_ITEM", 1000)
    monkeypatch.setattr(json_stream, "_PIECE", 100)
    path = tmp_path / "long.json"
    path.write_text('["' + "x" * 10_000 + '"]')
    with pytest.raises(DataError, match="longer than 1,000 characters"):
        list(json_items(path))


def test_lines_of_a_part_of_a_file_are_those_that_begin_in_it(tmp_path: Path):
    path = tmp_path / "lines.txt"
    path.write_bytes(b"one\r\ntwo\n\nfour")
    assert list(text_lines(path)) == [b"one", b"two", b"", b"four"]
    assert list(text_lines(path, 0, 5)) == [b"one"]
    assert list(text_lines(path, 5, 10)) == [b"two", b""]
    assert list(text_lines(path, 10)) == [b"four"]


def test_a_line_without_end_takes_no_memory_and_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(json_stream, "MAX_LINE", 10)
    monkeypatch.setattr(json_stream, "_PIECE", 7)
    path = tmp_path / "lines.txt"
    path.write_bytes(b"short\n" + b"x" * 100 + b"\nnext\n" + b"y" * 100)
    assert list(text_lines(path)) == [b"short", None, b"next", None]
