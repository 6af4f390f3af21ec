"""MMBench, SEED-Bench, AI2D and MMMU from files in their official layouts to every figure, worked out by hand."""

from __future__ import annotations

import base64
import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.eval.official_data import figures, headline, run, uncounted, write_json, write_pictures

from vistune.errors import DataError, RemoteError
from vistune.eval.benchmarks import ai2d, mmbench, mmmu_data, seed_bench
from vistune.eval.benchmarks.choices import LETTER_ANSWER
from vistune.types import ImagePart, Reply

LOST = RemoteError("the line is dead")
THIRD, TWO_THIRDS = round(100 / 3, 9), round(200 / 3, 9)


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (shade, 90, 120)).save(file, "PNG")
    return file.getvalue()


def in_base64(shade: int) -> str:
    return base64.b64encode(png(shade)).decode()


def write_shard(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


# --- MMBench ------------------------------------------------------------------------------------------------------------------------------

COLUMNS = ("index", "question", "hint", "A", "B", "C", "D", "answer", "category", "l2-category", "image", "source", "comment")


def mmbench_rows() -> list[dict[str, Any]]:
    """Questions 1 (three options, a hint), 2 and 3 (two options each), and all their rotations."""
    rows = []
    for index, options, right, hint, category in (
        (1, ["cat", "dog", "cow"], "dog", "It barks.", "animals"),
        (2, ["red", "blue"], "red", "", "colours"),
        (3, ["left", "right"], "right", "nan", "places"),
    ):
        for turn in range(len(options)):
            turned = options[turn:] + options[:turn]
            cells = dict(zip("ABCD", [*turned, "", ""], strict=False))
            number = index + turn * mmbench.ROTATION
            rows.append(
                dict.fromkeys(COLUMNS, "")
                | cells
                | {"index": number, "question": f"What is {index}?", "hint": hint, "answer": "ABC"[turned.index(right)]}
                | {"category": category, "l2-category": "coarse" if index < 3 else "fine", "image": in_base64(index)}
            )
    return sorted(rows, key=lambda row: row["index"])


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(COLUMNS), *("\t".join(str(row[column]) for column in COLUMNS) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def mmbench_data(tmp_path: Path) -> Path:
    for file in mmbench.FILES.values():
        write_table(tmp_path / "mmbench" / file, mmbench_rows())
    return tmp_path


MMBENCH_REPLIES = {
    "1": "B",
    "1000001": "A. dog",
    "2000001": "The answer is C",  # right in all three
    "2": "A",
    "1000002": "Both look alike to me, one cannot tell.",  # unreadable, so wrong
    "3": "right",  # by its text
    "1000003": LOST,
}


def test_mmbench_counts_a_question_that_is_right_in_all_rotations(mmbench_data: Path):
    result, questions, _ = run(mmbench.BENCHMARK, mmbench_data, MMBENCH_REPLIES)
    assert figures(result) == {
        "accuracy": 50.0,  # 1 right, 2 wrong, 3 without a verdict
        "accuracy/animals": 100.0,
        "accuracy/colours": 0.0,
        "accuracy of L2/coarse": 50.0,
        "accuracy of rows": round(500 / 6, 9),
        "unreadable": round(100 / 6, 9),
    }
    assert headline(result) == "accuracy"
    assert [question.id for question in questions] == ["1", "1000001", "2000001", "2", "1000002", "3", "1000003"]
    assert questions[0].conversation.messages[0].text == f"\nIt barks.\nWhat is 1?\nA. cat\nB. dog\nC. cow\n{LETTER_ANSWER}"
    assert questions[5].conversation.messages[0].text == f"\nWhat is 3?\nA. left\nB. right\n{LETTER_ANSWER}"
    assert {question.image_group for question in questions[:3]} == {"1"}


def test_mmbench_in_chinese_asks_so_and_vanilla_asks_once(mmbench_data: Path):
    questions = mmbench.BENCHMARK.questions(mmbench_data, "llava-cn")
    assert questions[0].conversation.messages[0].text.endswith(f"\nC. cow\n{mmbench.LETTER_ANSWER_CN}")
    result, _, _ = run(mmbench.BENCHMARK, mmbench_data, {"1": "A", "2": "A", "3": "B"}, protocol="vanilla")
    assert figures(result)["accuracy"] == TWO_THIRDS
    assert "accuracy of rows" not in figures(result)


def test_a_language_model_matches_what_mmbenchs_rules_cannot_read(mmbench_data: Path):
    (mmbench_data / "mmbench").rename(mmbench_data / "mmbench-matched")
    asked: list[str] = []

    def match(text: str) -> str:
        asked.append(text)
        return {"both": "Z", "horned": "C", "odd": "One cannot tell."}[next(word for word in ("both", "horned", "odd") if word in text)]

    replies = {"1": "They seem both", "1000001": "A", "2000001": "C", "2": "A", "1000002": "B", "3": "That is odd", "1000003": "A"}
    result, _, _ = run(mmbench.MATCHED, mmbench_data, replies | {"2000001": "The horned one"}, judge=match)
    # 1: Z is wrong, and so is the question. 2: by the rules. 3: the language model answers in prose, thrice, so there is no score.
    assert figures(result)["accuracy"] == 50.0
    assert result.n_unscored == 1
    assert len(asked) == 5
    assert "[Question]\nIt barks.\nWhat is 1?\n\n[Options]\nA. cat\nB. dog\nC. cow\n\n[Reply]\nThey seem both" in asked[0]


def test_mmbenchs_table_is_refused_where_it_is_not_the_official_one(mmbench_data: Path):
    path, rows = mmbench_data / "mmbench" / mmbench.FILES["en"], mmbench_rows()
    for changed, complaint in (
        (rows[:3], "has no rotations"),
        (rows[1:], "rotation of question 1, which is not in the table"),
        ([rows[0], *rows], r"line 3: '1' was there before"),
        ([rows[0] | {"answer": "D"}, *rows[1:]], "'answer' must be one of A, B, C"),
        ([rows[0] | {"index": "one"}, *rows[1:]], "whole number"),
        ([rows[0] | {"image": "###"}, *rows[1:]], "'image' is not base64"),
    ):
        write_table(path, changed)
        with pytest.raises(DataError, match=complaint):
            mmbench.BENCHMARK.questions(mmbench_data)
    path.unlink()
    with pytest.raises(DataError, match="is missing"):
        mmbench.BENCHMARK.questions(mmbench_data)


def test_a_rotation_may_name_the_row_that_has_its_picture(mmbench_data: Path):
    rows = [row | ({"image": 1} if row["index"] == 1_000_001 else {}) for row in mmbench_rows()]
    write_table(mmbench_data / "mmbench" / mmbench.FILES["en"], rows)
    questions = mmbench.BENCHMARK.questions(mmbench_data)
    assert questions[1].conversation.images == questions[0].conversation.images


def test_mmbenchs_rotations_follow_their_question_in_turn_whatever_the_order_of_the_table(mmbench_data: Path):
    write_table(mmbench_data / "mmbench" / mmbench.FILES["en"], mmbench_rows()[::-1])
    questions = mmbench.BENCHMARK.questions(mmbench_data)
    assert [question.id for question in questions] == ["1", "1000001", "2000001", "3", "1000003", "2", "1000002"]


# --- SEED-Bench ---------------------------------------------------------------------------------------------------------------------------


def seed_item(number: int, answer: str, type_id: int, kind: str = "image") -> dict[str, Any]:
    choices = {f"choice_{letter}": f"{letter}{number}" for letter in "abcd"}
    data = f"clip_{number}" if kind == "video" else f"{number}_7"
    item = {"question_id": str(number), "question": f"Which is {number}?", "answer": answer}
    return item | choices | {"data_type": kind, "data_id": data, "question_type_id": type_id}


@pytest.fixture
def seed(tmp_path: Path) -> Path:
    root = tmp_path / "seed-bench"
    items = [
        seed_item(1, "A", 1),
        seed_item(2, "B", 1),
        seed_item(3, "C", 2),
        seed_item(4, "D", 10, "video"),
        seed_item(5, "A", 10, "video"),
    ]
    types = {"Scene Understanding": 1, "Instance Identity": 2, "Action Recognition": 10}
    write_json(root / seed_bench.FILE, {"questions": items, "question_type": types})
    write_pictures(root / seed_bench.PICTURES, "1_7", "2_7", "3_7")
    write_pictures(root / seed_bench.FRAMES, "10_4.png", "10_5.png")
    return tmp_path


SEED_REPLIES = {"1": "A", "2": "B. b2", "3": "It is c3", "4": "d", "5": LOST}


def test_seed_bench_wants_the_letter_alone_and_adds_up_by_kind_and_type(seed: Path):
    result, questions, _ = run(seed_bench.BENCHMARK, seed, SEED_REPLIES)
    assert figures(result) == {
        "accuracy": 25.0,
        "accuracy/image": THIRD,
        "accuracy/image/Scene Understanding": 50.0,
        "accuracy/image/Instance Identity": 0.0,
        "accuracy/video": 0.0,
        "accuracy/video/Action Recognition": 0.0,
        "unreadable": 75.0,
    }
    assert questions[0].conversation.messages[0].text == f"\nWhich is 1?\nA. a1\nB. b1\nC. c1\nD. d1\n{LETTER_ANSWER}"
    (frame,) = questions[3].conversation.images
    assert Path(str(frame.source)).name == "10_4.png"


def test_seed_bench_in_lmms_takes_the_first_character(seed: Path):
    result, _, _ = run(seed_bench.BENCHMARK, seed, SEED_REPLIES, protocol="lmms")
    assert figures(result)["accuracy"] == 75.0
    assert figures(result)["accuracy/video"] == 100.0
    result, _, _ = run(seed_bench.BENCHMARK, seed, {"1": "A", "2": "B", "3": "C"}, protocol="official-image")
    assert figures(result)["accuracy"] == 100.0


def test_seed_benchs_files_are_refused_where_they_are_not_the_official_ones(seed: Path):
    path, load = seed / "seed-bench" / seed_bench.FILE, uncounted(seed_bench.BENCHMARK).questions
    with pytest.raises(DataError, match="questions: 5, but the benchmark has 19242"):
        seed_bench.BENCHMARK.questions(seed)
    with pytest.raises(DataError, match="questions: 3, but the benchmark has 14232"):
        seed_bench.BENCHMARK.questions(seed, "lmms-image")
    types = {"Scene Understanding": 1}
    for items, complaint in (
        ([seed_item(1, "A", 1), seed_item(1, "B", 1)], "'1' was there before"),
        ([seed_item(1, "E", 1)], "must be one of A, B, C, D"),
        ([seed_item(1, "A", 2)], "'question_type_id' must be one of 1"),
        ([seed_item(9, "A", 1)], "there is no picture '9_7'"),
    ):
        write_json(path, {"questions": items, "question_type": types})
        with pytest.raises(DataError, match=complaint):
            load(seed)
    write_json(path, {"questions": [], "question_type": {"Scene Understanding": [1]}})
    with pytest.raises(DataError, match="'question_type': 'Scene Understanding' must be a whole number"):
        load(seed)


# --- AI2D ---------------------------------------------------------------------------------------------------------------------------------


def ai2d_row(number: int, answer: str, shade: int) -> dict[str, Any]:
    image = {"bytes": png(shade), "path": None}
    return {"question": f"What is {number}?", "options": ["frog", "fly", "reed", "both"], "answer": answer, "image": image}


@pytest.fixture
def diagrams(tmp_path: Path) -> Path:
    rows = [ai2d_row(0, "1", 5), ai2d_row(1, "0", 5), ai2d_row(2, "3", 9), ai2d_row(3, "2", 9)]
    write_shard(tmp_path / "ai2d/data/test-00000-of-00002.parquet", rows[:1])
    write_shard(tmp_path / "ai2d/data/test-00001-of-00002.parquet", rows[1:])
    return tmp_path


def test_ai2d_is_the_share_of_right_letters(diagrams: Path):
    replies = {"test-0": "B. fly", "test-1": "(a)", "test-2": "It is a reed", "test-3": LOST}
    result, questions, _ = run(ai2d.BENCHMARK, diagrams, replies)
    assert figures(result) == {"accuracy": TWO_THIRDS, "unreadable": THIRD}
    assert headline(result) == "accuracy"
    assert questions[0].conversation.messages[0].text == f"\nWhat is 0?\nA. frog\nB. fly\nC. reed\nD. both\n{LETTER_ANSWER}"
    assert questions[0].image_group == questions[1].image_group != questions[2].image_group


def test_ai2ds_shards_are_refused_where_they_are_not_the_official_ones(diagrams: Path):
    with pytest.raises(DataError, match="test questions: 4, but the benchmark has 3088"):
        ai2d.BENCHMARK.questions(diagrams)
    write_shard(diagrams / "ai2d/data/test-00000-of-00002.parquet", [ai2d_row(0, "4", 5)])
    with pytest.raises(DataError, match=r"row 1: 'answer' must be the index of one of 4"):
        uncounted(ai2d.BENCHMARK).questions(diagrams)
    (diagrams / "ai2d/data/test-00000-of-00002.parquet").unlink()
    with pytest.raises(DataError, match="every shard"):
        uncounted(ai2d.BENCHMARK).questions(diagrams)


# --- MMMU ---------------------------------------------------------------------------------------------------------------------------------


def mmmu_row(subject: str, number: int, question: str, options: list[str], answer: str, *, pictures: int = 1) -> dict[str, Any]:
    images = {f"image_{place}": {"bytes": png(number * 10 + place), "path": None} if place <= pictures else None for place in range(1, 8)}
    kind = "multiple-choice" if options else "open"
    row = {"id": f"validation_{subject}_{number}", "question": question, "options": str(options), "answer": answer}
    return row | {"question_type": kind} | images


@pytest.fixture
def college(tmp_path: Path) -> Path:
    music = [
        mmmu_row("Music", 1, "Which chord is <image 1>?", ["major", "minor", "neither"], "B"),
        mmmu_row("Music", 2, "What do <image 1> and <image 2> share? See <image 1>.", ["key", "metre"], "A", pictures=2),
        mmmu_row("Music", 3, "Which one?", ["<image 1>", "<image 2>"], "A", pictures=2),
    ]
    maths = [
        mmmu_row("Math", 1, "How long is <image 1>?", [], "['24/7', '3.429']"),
        mmmu_row("Math", 2, "What is shown in <image 1>?", [], "cube"),
        mmmu_row("Math", 3, "How many in <image 1>?", [], "2"),
    ]
    write_shard(tmp_path / "mmmu/Music/validation-00000-of-00001.parquet", music)
    write_shard(tmp_path / "mmmu/Math/validation-00000-of-00001.parquet", maths)
    return tmp_path


MMMU_REPLIES = {
    "validation_Music_1": "The answer is (B).",
    "validation_Music_2": "Hard to say.",  # officially a draw
    "validation_Music_3": "A",
    "validation_Math_1": "So the length is 3.429",
    "validation_Math_2": "It is a sphere.",
    "validation_Math_3": LOST,
}


def test_mmmu_adds_up_by_discipline_and_subject_and_draws_what_is_unreadable(college: Path):
    result, questions, _ = run(mmmu_data.BENCHMARK, college, MMMU_REPLIES, protocol="no-guess")
    assert figures(result) == {
        "accuracy": 60.0,
        "accuracy/Art and Design": TWO_THIRDS,
        "accuracy/Art and Design/Music": TWO_THIRDS,
        "accuracy/Science": 50.0,
        "accuracy/Science/Math": 50.0,
        "unreadable": 20.0,
    }
    drawn, _, _ = run(mmmu_data.BENCHMARK, college, MMMU_REPLIES, protocol="official")
    assert figures(drawn)["accuracy"] in (60.0, 80.0)  # one of two letters, always the same one
    assert figures(drawn)["unreadable"] == 20.0
    assert questions[3].answers == ("24/7", "3.429")
    assert questions[4].answers == ("cube",)


def test_mmmus_draws_are_right_as_often_as_chance_and_never_without_drawing(college: Path):
    question = uncounted(mmmu_data.BENCHMARK).questions(college)[1]  # of two options
    asked = [dataclasses.replace(question, id=f"validation_Music_{number}") for number in range(200)]
    drawn = [mmmu_data.score_reply(each, Reply("Hard to say.", "stop"), "official") for each in asked]
    assert 70 <= sum(score.value or 0 for score in drawn) <= 130
    assert drawn == [mmmu_data.score_reply(each, Reply("Hard to say.", "stop"), "official") for each in asked]
    assert not any(mmmu_data.score_reply(each, Reply("Hard to say.", "stop"), "no-guess").value for each in asked)


def shape(question: Any) -> list[str]:
    return ["picture" if isinstance(part, ImagePart) else part.text for part in question.conversation.messages[0].parts]


def test_mmmus_pictures_stand_where_the_question_names_them_or_in_front(college: Path):
    first, second, third, *_ = uncounted(mmmu_data.BENCHMARK).questions(college)
    closing = f"\n\n{LETTER_ANSWER}"
    assert shape(first) == ["Which chord is ", "picture", f"?\nA. major\nB. minor\nC. neither{closing}"]
    assert shape(second) == ["What do ", "picture", " and ", "picture", f" share? See <image 1>.\nA. key\nB. metre{closing}"]
    assert shape(third) == ["Which one?\nA. ", "picture", "\nB. ", "picture", closing]
    first, second, *_ = uncounted(mmmu_data.BENCHMARK).questions(college, "front")
    assert shape(second)[:3] == ["picture", "\n", "picture"]
    assert [image.source for image in second.conversation.images] == [png(21), png(22)]
    assert shape(second)[3].startswith("\nWhat do <image 1> and <image 2> share?")


def test_mmmus_shards_are_refused_where_they_are_not_the_official_ones(college: Path):
    load = uncounted(mmmu_data.BENCHMARK).questions
    with pytest.raises(DataError, match="must hold every shard"):
        mmmu_data.BENCHMARK.questions(college)
    for row, complaint in (
        (mmmu_row("Music", 1, "Q <image 2>", ["a", "b"], "A"), "'image_2' must hold a picture"),
        (mmmu_row("Music", 1, "Q", ["a", "b"], "C"), "'answer' must be one of A, B"),
        (mmmu_row("Music", 1, "Q", ["a", "b"], "A") | {"options": "__import__('os')"}, "a list of texts as Python writes it"),
        (mmmu_row("Music", 1, "Q", ["a", "b"], "A") | {"options": "[" * 5000}, "a list of texts as Python writes it"),
        (mmmu_row("Music", 1, "Q", ["a", "b"], "A") | {"id": "test_Music_1"}, "validation question of Music"),
        (mmmu_row("Art", 1, "Q", ["a", "b"], "A"), "validation question of Music"),
    ):
        write_shard(college / "mmmu/Music/validation-00000-of-00001.parquet", [row])
        with pytest.raises(DataError, match=complaint):
            load(college)


def test_mmmu_has_thirty_subjects():
    assert sum(map(len, mmmu_data.SUBJECTS.values())) == 30
    assert set(mmmu_data.BENCHMARK.sizes.values()) == {900}
