"""`data mix`: the right rows, the same ones every time, each with an id of its own."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.instruction_data import row, write_rows

from vistune.data.mix import Part, chosen_rows, common_folder, mix, parse_part, read_mixture
from vistune.errors import DataError, UsageError
from vistune.types import InstructionExample


def part(strategy: str) -> Part:
    return Part(Path("a.json"), Path("."), strategy)


def taken(strategy: str, size: int, seed: int = 0) -> list[int]:
    (rows,) = chosen_rows([part(strategy)], [size], seed=seed)
    return sorted(rows.elements())


@pytest.mark.parametrize(
    ("strategy", "rows"),
    [
        ("all", range(10)),
        ("first:3", range(3)),
        ("first:99", range(10)),
        ("end:2", [8, 9]),
        ("first:25%", [0, 1, 2]),  # rounded up, as the original does
        ("end:1%", [9]),
        ("first:0%", []),
        ("random:100%", range(10)),
    ],
)
def test_a_strategy_takes_what_llava_next_takes(strategy: str, rows: list[int]):
    assert taken(strategy, 10) == list(rows)


@given(st.integers(1, 200), st.integers(0, 100), st.integers(0, 3))
def test_a_random_choice_has_no_repeats_and_its_seed_decides(size: int, percent: int, seed: int):
    rows = taken(f"random:{percent}%", size, seed)
    assert len(rows) == len(set(rows)) == -(-size * percent // 100)
    assert rows == taken(f"random:{percent}%", size, seed)
    assert taken("random:50", 1000, 1) != taken("random:50", 1000, 2)


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 9)), min_size=1, max_size=4))
def test_weights_without_a_total_repeat_no_row_and_use_up_a_part(sized: list[tuple[int, int]]):
    sizes = [size for size, _ in sized]
    chosen = chosen_rows([part(f"weight:{weight}") for _, weight in sized], sizes)
    counts = [rows.total() for rows in chosen]
    assert all(max(rows.values(), default=1) == 1 for rows in chosen)
    shares = [weight * sum(counts) / sum(weight for _, weight in sized) for _, weight in sized]
    assert all(abs(count - share) < 1 for count, share in zip(counts, shares, strict=True))
    # One more row of the mixture could need a repeat: the part that limits it is used up but for the rounding.
    assert any(size - count <= 1 for size, count in zip(sizes, counts, strict=True))


def test_a_total_beyond_the_rows_repeats_all_of_them_equally_often():
    small, large = chosen_rows([part("weight:1"), part("weight:1")], [3, 100], total=14)
    assert (small.total(), large.total()) == (7, 7)
    assert sorted(small.values()) == [2, 2, 3]


def test_weighted_and_counted_parts_may_stand_beside_each_other():
    counts = [rows.total() for rows in chosen_rows([part("weight:3"), part("first:5"), part("weight:1")], [90, 50, 10])]
    assert counts == [30, 5, 10]


@pytest.mark.parametrize(
    "strategy", ["", "some", "first", "first:x", "first:1.5", "random:101%", "weight:0", "weight:0.0", "weight:-1", "first:-1"]
)
def test_what_is_no_strategy_is_refused(strategy: str):
    with pytest.raises(UsageError, match="how much"):
        parse_part(f"a.json={strategy}" if strategy else "a=b.json=")


def test_a_total_without_weights_and_a_weight_of_nothing_are_refused():
    with pytest.raises(UsageError, match="--total"):
        chosen_rows([part("all")], [3], total=2)
    with pytest.raises(DataError, match="no rows"):
        chosen_rows([part("weight:1")], [0])


def test_a_file_whose_name_has_an_equals_sign_is_a_file(tmp_path: Path):
    file = write_rows(tmp_path / "a=b.json", row())
    assert parse_part(str(file)) == Part(file, tmp_path)
    assert parse_part(f"{file}=first:1").strategy == "first:1"


def mixed(parts: list[Part], **settings: int) -> list[InstructionExample]:
    written: list[InstructionExample] = []
    mix(parts, written.append, **settings)
    return written


@pytest.fixture
def parts(tmp_path: Path) -> list[Part]:
    for name in "ab":
        (tmp_path / name).mkdir()
    write_rows(tmp_path / "a" / "rows.json", row(), row(id="2", provenance={"licence": "CC0"}))
    write_rows(tmp_path / "b" / "rows.jsonl", row(), row(id="1~2"), row(id="1"))
    return [Part(tmp_path / "a" / "rows.json", tmp_path / "a"), Part(tmp_path / "b" / "rows.jsonl", tmp_path / "b")]


def test_ids_become_unique_and_the_provenance_says_where_a_row_was(parts: list[Part]):
    examples = mixed(parts)
    assert [example.id for example in examples] == ["1", "2", "1~2", "1~2~2", "1~3"]
    assert examples[1].provenance == {"licence": "CC0", "mixed_from": {"file": "rows.json", "row": 1, "id": "2"}}
    assert examples[4].provenance["mixed_from"] == {"file": "rows.jsonl", "row": 2, "id": "1"}


def test_pictures_of_all_parts_lie_under_their_common_folder(parts: list[Part], tmp_path: Path):
    assert common_folder(parts) == tmp_path
    pictures = {str(image.source) for example in mixed(parts) for image in example.conversation.images}
    assert pictures == {f"{tmp_path}/a/cat.png", f"{tmp_path}/b/cat.png"}


def test_the_same_seed_gives_the_same_mixture(parts: list[Part], tmp_path: Path):
    drawn = [Part(each.path, each.images, "random:50%") for each in parts]
    assert mixed(drawn, seed=3) == mixed(drawn, seed=3)
    draws = Counter(tuple(example.provenance["mixed_from"]["row"] for example in mixed(drawn, seed=seed)) for seed in range(20))
    assert len(draws) > 2


def test_a_bad_row_names_its_file_and_only_matters_if_it_is_taken(tmp_path: Path):
    file = write_rows(tmp_path / "rows.json", row(), row(answer=""))
    assert len(mixed([Part(file, tmp_path, "first:1")])) == 1
    with pytest.raises(DataError, match=r"rows\.json: row 1"):
        mixed([Part(file, tmp_path)])


def test_a_yaml_file_of_llava_next_is_read(tmp_path: Path):
    (tmp_path / "mix.yaml").write_text(
        "datasets:\n  - json_path: part{1, 2}.json\n    sampling_strategy: 'first:10%'\n"
        "  - json_path: /data/b.json\n  - {json_path: c.json, images: pictures, sampling_strategy: weight:2}\n"
    )
    assert read_mixture(tmp_path / "mix.yaml") == [
        Part(tmp_path / "part1.json", tmp_path, "first:10%"),
        Part(tmp_path / "part2.json", tmp_path, "first:10%"),
        Part(Path("/data/b.json"), Path("/data")),
        Part(tmp_path / "c.json", tmp_path / "pictures", "weight:2"),
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("datasets: [", "not YAML"),
        ("[]", "datasets"),
        ("datasets: [{path: a}]", "json_path"),
        ("datasets: [{json_path: a, weight: 2}]", "weight means nothing"),
        ("datasets: !!python/object/apply:os.system ['ls']", "not YAML"),
    ],
)
def test_a_yaml_file_that_says_something_else_is_refused(tmp_path: Path, text: str, complaint: str):
    (tmp_path / "mix.yaml").write_text(text)
    with pytest.raises(DataError, match=complaint):
        read_mixture(tmp_path / "mix.yaml")
