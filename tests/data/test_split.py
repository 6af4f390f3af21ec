"""`data split`: no picture on two sides, shares kept, the same split whatever the order of the file."""

from __future__ import annotations

import shutil
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.instruction_data import row, write_picture, write_rows

from vistune.data.split import Identity, deal, parse_shares, split
from vistune.errors import DataError, SaveError, UsageError
from vistune.formats import read_rows

HALVES = {"a": Fraction(1, 2), "b": Fraction(1, 2)}


def sides(folder: Path, names: tuple[str, ...] = ("a", "b"), suffix: str = ".json") -> list[list[dict]]:
    return [list(read_rows(folder / f"{name}{suffix}")) for name in names]


@given(st.lists(st.integers(0, 12), min_size=2, max_size=60), st.integers(0, 3))
def test_every_row_goes_somewhere_and_a_group_stays_together(numbers: list[int], seed: int):
    groups = [bytes([number]) for number in numbers]
    if len(set(groups)) == 1:
        with pytest.raises(DataError, match="too few"):
            deal(groups, HALVES, seed=seed)
        return
    parts = deal(groups, HALVES, seed=seed)
    assert {(group, part) for group, part in zip(groups, parts, strict=True)} == set(dict(zip(groups, parts, strict=True)).items())
    assert set(parts) == {"a", "b"}
    largest = max(groups.count(group) for group in groups)
    assert abs(parts.count("a") - len(groups) / 2) <= largest
    backwards = deal(groups[::-1], HALVES, seed=seed)
    assert backwards[::-1] == parts


def test_small_groups_fill_the_shares_to_the_row():
    parts = deal([number.to_bytes(2, "big") for number in range(1000)], {"train": Fraction("0.9"), "test": Fraction("0.1")}, seed=0)
    assert (parts.count("train"), parts.count("test")) == (900, 100)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(6):
        write_picture(tmp_path / f"{number}.png", number)
    return tmp_path


def test_rows_that_are_tied_by_pictures_stay_on_one_side(folder: Path):
    chain = [row("<image><image>", image=[f"{number}.png", f"{number + 1}.png"], id=str(number)) for number in range(3)]
    others = [row(image="5.png", id="x"), row(image="5.png", id="y"), row("Hi", image=None, id="z")]
    counts = split(write_rows(folder / "rows.json", *others, *chain), folder / "out", HALVES, images=folder)
    assert counts == {"a": 3, "b": 3}
    first, second = ({each["id"] for each in side} for side in sides(folder / "out"))
    assert {frozenset(first), frozenset(second)} == {frozenset("012"), frozenset("xyz")}


@pytest.mark.parametrize(("identity", "together"), [("name", False), ("bytes", True), ("pixels", True)])
def test_a_copy_under_another_name_is_the_same_picture_unless_names_decide(folder: Path, identity: Identity, together: bool):
    shutil.copy(folder / "0.png", folder / "copy.png")
    rows = [row(image="0.png", id="0"), row(image="copy.png", id="copy"), *(row(image=f"{n}.png", id=str(n)) for n in range(1, 6))]
    found = set()
    for seed in range(12):
        out = folder / f"out{seed}"
        split(write_rows(folder / "rows.json", *rows), out, HALVES, images=folder, identity=identity, seed=seed)
        found |= {{"0", "copy"} <= {each["id"] for each in side} for side in sides(out) if {"0", "copy"} & {each["id"] for each in side}}
    assert found == ({True} if together else {True, False})


def test_the_same_pixels_in_another_format_are_seen_by_pixels_alone(folder: Path):
    from PIL import Image

    Image.open(folder / "0.png").save(folder / "same.webp", lossless=True)
    file = write_rows(folder / "rows.json", row(image="0.png"), row(image="same.webp", id="2"))
    split(file, folder / "out", HALVES, images=folder, identity="bytes")
    with pytest.raises(DataError, match="1 group"):
        split(file, folder / "pixels", HALVES, images=folder, identity="pixels")


@pytest.mark.parametrize(("format", "suffix"), [("llava", ".jsonl"), ("sharegpt", ".json"), ("messages", ".parquet")])
def test_the_parts_are_in_the_format_of_the_file(folder: Path, format: str, suffix: str):
    from vistune.data.convert import convert

    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    rows = [row(image=f"{number}.png", id=str(number), kind="detail", model="x") for number in range(6)]
    source = folder / f"rows{suffix}"
    convert(write_rows(folder / "plain.json", *rows), source, images=folder, format=format)
    split(source, folder / "out", HALVES, images=folder)
    parts = [each for side in sides(folder / "out", suffix=suffix) for each in side]
    assert sorted(parts, key=lambda each: each["id"]) == list(read_rows(source))


def test_nothing_is_overwritten_and_a_bad_row_leaves_nothing(folder: Path):
    file = write_rows(folder / "rows.json", row(image="0.png"), row(image="1.png", id="2"))
    split(file, folder / "out", HALVES, images=folder)
    with pytest.raises(SaveError):
        split(file, folder / "out", HALVES, images=folder)
    with pytest.raises(DataError, match="gone"):
        split(write_rows(folder / "bad.json", row(image="gone.png"), row(image="0.png")), folder / "bad", HALVES, images=folder)
    assert not (folder / "bad").exists()


def test_shares_are_read_exactly():
    assert parse_shares("train=0.7, validation=0.2,test=1/10") == {
        "train": Fraction(7, 10), "validation": Fraction(1, 5), "test": Fraction(1, 10)
    }  # fmt: skip


@pytest.mark.parametrize("text", ["", "a=1", "a=0.5", "a=0.5,b=0.6", "a=0.5,a=0.5", "a=x,b=0.5", "../a=0.5,b=0.5", "a=0,b=1", "a=-1,b=2"])
def test_what_are_no_shares_is_refused(text: str):
    with pytest.raises(UsageError):
        parse_shares(text)
