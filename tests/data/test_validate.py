"""Rows are sorted once, with a reason each, and the outcome is a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vistune.data.validate import Manifest, check_rows, explain_rejections, held_out, reason_of
from vistune.errors import ContextLengthError, DataError, EmptyAnswerError, EmptyMaskError, ImageCountError, ImageError

ERRORS: dict[str, Exception] = {
    "image_missing": ImageError("missing", "no such picture"),
    "image_count": ImageCountError("two marks, one file"),
    "empty_answer": EmptyAnswerError("nothing said"),
    "nothing_to_learn": EmptyMaskError("no target"),
    "too_long": ContextLengthError("9,000 tokens"),
    "bad_row": DataError("not a row"),
}


def measure(row: Any) -> int:
    if row in ERRORS:
        raise ERRORS[row]
    return len(row)


def test_every_kind_of_bad_row_has_its_own_code_and_the_good_ones_stay_in_order():
    rows = ["good", *ERRORS, "better"]
    records, manifest = check_rows(rows, lambda number, row: row, measure)
    assert records == ["good", "better"]
    assert (manifest.accepted, manifest.lengths) == ((0, 7), (4, 6))
    assert [rejection.reason for rejection in manifest.rejected] == list(ERRORS)
    assert all(reason_of(error) == reason for reason, error in ERRORS.items())


def test_an_error_of_ours_is_not_taken_for_a_bad_row():
    with pytest.raises(ZeroDivisionError):
        check_rows(["a"], lambda number, row: row, lambda row: 1 // 0)


def test_a_written_manifest_is_read_back_and_spares_the_second_check(tmp_path: Path):
    rows = ["good", "bad_row"]
    _, manifest = check_rows(rows, lambda number, row: row, measure, settings_digest="s")
    manifest.write(tmp_path / "data.json")
    known = Manifest.read(tmp_path / "data.json")
    assert known == manifest

    def again(row: Any) -> int:
        raise AssertionError("measured again")

    assert check_rows(rows, lambda number, row: row, again, settings_digest="s", known=known) == (["good"], manifest)
    for changed_rows, settings in ((["other"], "s"), (rows, "t")):
        assert check_rows(changed_rows, lambda number, row: row, measure, settings_digest=settings, known=known)[1] != manifest


@pytest.mark.parametrize("content", [None, "", "[]", '{"accepted": 3}', '{"rejected": [3]}'])
def test_a_manifest_that_cannot_be_read_is_none(tmp_path: Path, content: str | None):
    if content is not None:
        (tmp_path / "data.json").write_text(content)
    assert Manifest.read(tmp_path / "data.json") is None


def test_the_digest_changes_with_rows_choice_and_lengths():
    plain = check_rows(["a", "b"], lambda number, row: row, measure)[1]
    assert plain.digest == check_rows(["a", "b"], lambda number, row: row, measure)[1].digest
    others = [check_rows(rows, lambda number, row: row, measure)[1].digest for rows in (["b", "a"], ["a"], ["a", "bad_row"])]
    others.append(check_rows(["a", "b"], lambda number, row: row, lambda row: 9)[1].digest)
    assert len({plain.digest, *others}) == 5


@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=30), st.integers(0, 10), st.integers(0, 3))
def test_held_out_rows_share_no_picture_with_the_rest(groups: list[str], rows: int, seed: int):
    chosen = held_out(groups, rows, seed=seed)
    assert len(chosen) >= min(rows, len(groups))
    assert not {groups[place] for place in chosen} & {group for place, group in enumerate(groups) if place not in chosen}
    assert chosen == held_out(groups, rows, seed=seed)


def test_the_explanation_counts_the_reasons_and_quotes_the_first():
    _, manifest = check_rows(["x", "bad_row", "bad_row", "too_long"], lambda number, row: row, measure)
    text = explain_rejections(manifest, Path("rows.json"))
    assert "3 of 4 rows of rows.json" in text
    assert "2 bad_row, 1 too_long" in text
    assert "not a row" in text
