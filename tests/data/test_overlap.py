"""`data overlap`: pictures are found after what happens to pictures, texts by 13 words, and nothing else is."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageEnhance
from tests.instruction_data import row, write_picture, write_rows

from vistune.data.overlap import EvaluationItem, find_overlap, first_lines, items_of_file, items_of_folder, items_of_questions
from vistune.data.picture_hash import SAME_PICTURE, Fingerprint, LookIndex, fingerprint, look
from vistune.media import open_image
from vistune.types import Conversation, ImagePart, Message, Question, TextPart


def jpeg(picture: Image.Image) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=30)
    return open_image(file.getvalue())


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "compressed": jpeg,
    "half as large": lambda picture: picture.resize((picture.width // 2, picture.height // 2)),
    "brighter": lambda picture: ImageEnhance.Brightness(picture).enhance(1.2),
    "square": lambda picture: picture.resize((64, 64)),
    "grey": lambda picture: picture.convert("L").convert("RGB"),
    "trimmed": lambda picture: picture.crop((4, 3, picture.width - 4, picture.height - 3)),
}


def pictures(tmp_path: Path, count: int) -> list[Image.Image]:
    return [open_image(write_picture(tmp_path / f"{seed}.png", seed, (192, 128))) for seed in range(count)]


@pytest.mark.parametrize("change", CHANGES)
def test_a_picture_is_found_after_a_change_and_no_other_is(tmp_path: Path, change: str):
    known = pictures(tmp_path, 30)
    index = LookIndex([Fingerprint(str(number), look(picture)) for number, picture in enumerate(known)])
    found = [[each for each, _ in index.near(Fingerprint("other", look(CHANGES[change](picture))))] for picture in known]
    assert all(set(numbers) <= {number} for number, numbers in enumerate(found))
    # These pictures are a few large patches, which a trimmed edge shifts far; of drawn scenes 97 in 100 are found.
    assert sum(map(len, found)) >= (22 if change == "trimmed" else len(known))


def test_distances_are_bits_and_equal_pixels_are_none_apart(tmp_path: Path):
    path = write_picture(tmp_path / "a.png")
    seen = fingerprint(path)
    assert seen.look is not None
    first, second = seen.look
    index = LookIndex([Fingerprint("x", (first ^ 0b111, second ^ 1)), seen])
    assert index.near(seen) == [(0, 4), (1, 0)]
    assert index.near(seen, distance=3) == [(1, 0)]
    assert SAME_PICTURE < 32


def test_pictures_of_one_colour_are_told_apart_by_their_pixels_alone():
    red, pink = (Fingerprint(colour, look(Image.new("RGB", (40, 30), colour))) for colour in ("red", "pink"))
    assert red.look is None
    assert LookIndex([red, pink]).near(pink) == [(1, 0)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(4):
        write_picture(tmp_path / "train" / f"{number}.png", number, (192, 128))
    (tmp_path / "eval").mkdir()
    jpeg(open_image(tmp_path / "train" / "1.png")).save(tmp_path / "eval" / "a.jpg")
    write_picture(tmp_path / "eval" / "b.png", 99, (192, 128))
    return tmp_path


LONG = "How many of the small wooden boats that lie in the old harbour behind the church are painted red?"


def test_pictures_questions_and_texts_are_paired_with_their_rows(folder: Path):
    rows = [
        row("<image>\nIs it DAY, or night?", image="1.png", id="same"),
        row("<image>\nWhat else?", image="1.png", id="picture"),
        row("<image>\nWho painted it?", image="0.png", id="asked"),
        row("Tell me.", f"Somebody asked: {LONG.upper()}", image=None, id="text"),
        row(image="gone.png", id="gone"),
        row(answer="", id="bad"),
    ]
    items = [
        EvaluationItem("day", "Is it day or night?", images=(folder / "eval" / "a.jpg",)),
        EvaluationItem("who", "Who painted it?", images=(folder / "eval" / "b.png",)),
        EvaluationItem("boats", LONG, (LONG,)),
        EvaluationItem("lost", images=(folder / "eval" / "lost.png",)),
    ]
    found = find_overlap(write_rows(folder / "rows.json", *rows), folder / "train", items, threads=1)
    assert [(pair.item, pair.id, pair.same_question) for pair in found.picture_pairs] == [("day", "same", True), ("day", "picture", False)]
    assert {(pair.item, pair.id) for pair in found.text_pairs} == {("boats", "text")}
    assert (found.items_with_both, found.items_with_picture, found.items_with_text) == ({"day"}, {"day"}, {"boats"})
    assert found.items_asked == {"day", "who"}
    assert found.unreadable == {"evaluation pictures": 1, "training pictures": 1, "training rows": 1}
    assert first_lines(found, 3)[0].startswith("day: row 0 (same) shows 1.png, ")
    assert "asks the same question" in found.as_text()
    assert found.as_json()["picture_pairs"][0]["same_question"] is True


def test_twelve_shared_words_are_not_enough(folder: Path):
    words = LONG.split()
    file = write_rows(folder / "rows.json", row("Go.", " ".join(words[:12]) + " or what", image=None))
    assert not find_overlap(file, folder, [EvaluationItem("boats", LONG, (LONG,))]).text_pairs
    file = write_rows(folder / "rows.json", row("Go.", " ".join(words[2:15]), image=None))
    assert find_overlap(file, folder, [EvaluationItem("boats", LONG, (LONG,))]).text_pairs


def test_the_formula_of_a_benchmark_is_left_out_and_said(folder: Path):
    formula = "Answer the question with one word or a short phrase and nothing else, please, in English."
    items = [EvaluationItem(str(number), f"What is {number}? {formula}", (f"What is {number}? {formula}",)) for number in range(20)]
    found = find_overlap(write_rows(folder / "rows.json", row(f"Why? {formula}", image=None)), folder, items)
    assert not found.text_pairs
    assert found.formulas >= 4
    assert "left out as formulas" in found.as_text()


def test_a_folder_of_pictures_and_questions_is_a_benchmark(folder: Path):
    write_rows(
        folder / "eval" / "questions.jsonl", {"question_id": 7, "image": "a.jpg", "text": "Is it day?"}, {"id": 8, "question": "Hm?"}
    )
    (folder / "eval" / "settings.json").write_text('{"version": 2}')
    items = {item.id: item for item in items_of_folder(folder / "eval")}
    assert items["questions.jsonl#7"].images == (folder / "eval" / "a.jpg",)
    assert items["questions.jsonl#8"].images == ()
    assert items["b.png"] == EvaluationItem("b.png", images=(folder / "eval" / "b.png",))
    assert len(items) == 3


def test_rows_and_questions_are_items(folder: Path):
    two = row(image="a.jpg")
    two["conversations"] += [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]
    items = list(items_of_file(write_rows(folder / "eval.json", two), folder / "eval"))
    assert [(item.id, item.question.strip()) for item in items] == [("1/0", "What is it?"), ("1/1", "Why?")]
    asked = Conversation((Message("user", (ImagePart(b"png"), TextPart("Why?"))),))
    assert list(items_of_questions([Question("q", asked, ("So.",), ("A", "B"))])) == [
        EvaluationItem("q", "Why?", ("Why?", "So.", "A", "B"), (b"png",))
    ]
