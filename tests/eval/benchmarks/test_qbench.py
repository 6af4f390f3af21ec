"""Q-Bench from files in their official layout to every figure, worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.eval.official_data import figures, run, uncounted, write_json, write_pictures

from vistune.errors import DataError, ImageError, RemoteError
from vistune.eval.benchmarks import qbench
from vistune.eval.benchmarks.choices import LETTER_ANSWER

LOST = RemoteError("the line is dead")


def look(number: int, answer: str, kind: int, concern: int, candidates: tuple[str, ...] = ("Blur", "Noise", "None")) -> dict[str, Any]:
    row = {"img_path": f"{number:05d}.jpg", "question": f"What spoils {number}?", "candidates": list(candidates)}
    return row | {"correct_ans": answer, "type": kind, "concern": concern}


@pytest.fixture
def looks(tmp_path: Path) -> Path:
    rows = [
        look(0, "Noise", 2, 0),
        look(1, "Yes", 0, 1, ("Yes", "No")),
        look(2, "Blur", 1, 2),
        look(3, "None", 2, 3),
        look(4, "Blur", 2, 0),
    ]
    write_json(tmp_path / "qbench" / qbench.FILE, rows)
    write_pictures(tmp_path / "qbench/images_llvisionqa", *(f"{number:05d}.jpg" for number in range(5)))
    return tmp_path


def test_q_bench_adds_up_by_form_and_concern(looks: Path):
    replies = {"dev-0": "B.", "dev-1": "yes.", "dev-2": "(B) Noise", "dev-3": "Hard to say", "dev-4": LOST}
    result, questions, _ = run(qbench.BENCHMARK, looks, replies)
    assert figures(result) == {
        "accuracy": 50.0,
        **{"accuracy/Yes/No": 100.0, "accuracy/How": 0.0, "accuracy/What": 50.0},
        **{
            "accuracy/Global Distortion": 100.0,
            "accuracy/Global Others": 100.0,
            "accuracy/Local Distortion": 0.0,
            "accuracy/Local Others": 0.0,
        },
        "unreadable": 25.0,
    }
    text = questions[0].conversation.messages[0].text
    assert text == "\nWhat spoils 0?\nChoose between one of the options as follows:\nA. Blur\nB. Noise\nC. None\n"
    other = uncounted(qbench.BENCHMARK).questions(looks, "lmms")
    assert other[0].conversation.messages[0].text == f"\nWhat spoils 0?\nA. Blur\nB. Noise\nC. None\n{LETTER_ANSWER}"


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("C", "C"),
        ("A. Blur", "A"),
        ("(B), not (C)", "B"),  # the one in front
        ("Not (B) but (C)", "C"),  # the last in brackets
        ("D. All", None),  # there are three
        ("noise", "B"),
        ("Noise.", "B"),
        ("Noise and blur", None),
        ("b", None),  # letters are capitals
        ("It seems to me to be mostly noise", "B"),  # more than five words: texts count
        ("", None),
    ],
)
def test_a_reply_to_q_bench_names_a_candidate_by_letter_or_by_its_text(reply: str, letter: str | None):
    assert qbench.parse(reply, ["Blur", "Noise", "None."]) == letter


def test_a_text_that_two_candidates_of_q_bench_have_names_neither():
    assert qbench.parse("noise", ["Noise", "noise"]) is None


def test_q_benchs_files_are_refused_where_they_are_not_the_official_ones(looks: Path):
    path, load = looks / "qbench" / qbench.FILE, uncounted(qbench.BENCHMARK).questions
    with pytest.raises(DataError, match="questions: 5, but the benchmark has 1495"):
        qbench.BENCHMARK.questions(looks)
    hidden = look(0, "", 0, 0)
    del hidden["correct_ans"]
    for row, complaint in (
        (hidden, "there is no 'correct_ans'"),
        (look(0, "Grain", 0, 0), "one of the candidates Blur, Noise, None"),
        (look(0, "Blur", 3, 0), "'type' must be the index of one of 3"),
    ):
        write_json(path, [row])
        with pytest.raises(DataError, match=complaint):
            load(looks)
    write_json(path, [look(9, "Blur", 0, 0)])
    with pytest.raises(ImageError, match=r"item 1: there is no picture '00009\.jpg'"):
        load(looks)
