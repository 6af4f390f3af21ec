"""ScienceQA from its official files, in every prompt format, alone and with a teacher; every figure worked out by hand."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from tests.eval.official_data import figures, headline, run, uncounted, write_json, write_lines, write_pictures
from tests.test_chat_model import Server

from vistune.calls import Calls
from vistune.chat_model import OpenAIChatModel, ScriptedChatModel
from vistune.errors import DataError, ImageError, RemoteError
from vistune.eval.benchmarks import scienceqa, scienceqa_data, scienceqa_teacher
from vistune.eval.benchmarks.scienceqa_data import INPUTS, OUTPUTS, answer_text, question_text
from vistune.eval.judge import Judge
from vistune.eval.results import evaluate

LOST = RemoteError("the line is dead")
CLOSING = "Answer with the option's letter from the given choices directly."


def problem(number: int, answer: int, subject: str, grade: int, *, hint: str = "", image: str | None = None, n: int = 3) -> dict[str, Any]:
    return {
        "question": f"Which is {number}?",
        "choices": [f"one {number}", f"two {number}", f"three {number}"][:n],
        "answer": answer,
        "hint": hint,
        "image": image,
        "subject": f"{subject} science",
        "grade": f"grade{grade}",
        "lecture": "First.\nSecond.",
        "solution": "So it is.",
        "split": "test",
    }


PROBLEMS = {
    "11": problem(11, 0, "natural", 3, hint="Look.", image="image.png"),  # NAT TXT IMG G1-6
    "12": problem(12, 1, "natural", 9),  # NAT NO G7-12
    "13": problem(13, 2, "social", 6, image="image.png"),  # SOC IMG G1-6
    "14": problem(14, 0, "language", 2, hint="Read."),  # LAN TXT G1-6
    "15": problem(15, 1, "language", 12, n=2),  # LAN NO G7-12
    "16": problem(16, 0, "natural", 1),  # NAT NO G1-6
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in ("scienceqa", "scienceqa-complement", "scienceqa-judge"):
        root = tmp_path / name
        write_json(root / "problems.json", PROBLEMS | {"99": problem(99, 0, "social", 4) | {"split": "train"}})
        write_json(root / "pid_splits.json", {"train": ["99"], "test": list(PROBLEMS)})
        write_pictures(root / "images/test", "11/image.png", "13/image.png")
    return tmp_path


REPLIES = {
    "11": "A",
    "12": "B. two 12",
    "13": "The answer is A.",
    "14": "I think it is the first",  # unreadable
    "15": "C",  # the question has two choices
    "16": LOST,
}


def test_scienceqa_adds_up_by_subject_context_and_grade(data: Path):
    result, questions, model = run(scienceqa_data.BENCHMARK, data, REPLIES)
    found = figures(result)
    assert found == {
        "accuracy": 40.0,
        **{"accuracy/NAT": 100.0, "accuracy/SOC": 0.0, "accuracy/LAN": 0.0},
        **{"accuracy/TXT": 50.0, "accuracy/IMG": 50.0, "accuracy/NO": 50.0, "accuracy/G1-6": round(100 / 3, 9), "accuracy/G7-12": 50.0},
        "unreadable": 20.0,
    }
    assert headline(result) == "accuracy"
    assert (result.n, result.n_unscored) == (6, 1)
    assert model.calls[0][1].max_new_tokens == 1024
    assert [bool(question.conversation.images) for question in questions] == [True, False, True, False, False, False]
    assert questions[0].conversation.messages[0].text == (
        f"\nContext: Look.\nQuestion: Which is 11?\nOptions: (A) one 11 (B) two 11 (C) three 11\n{CLOSING}"
    )


def test_the_table_is_that_of_the_official_one(data: Path):
    replies = {**REPLIES, "16": "A"}
    result, _, _ = run(scienceqa_data.BENCHMARK, data, replies)
    indices = {id: scienceqa.parse(replies[id], len(each["choices"]))[1] for id, each in PROBLEMS.items()}
    table = scienceqa.by_category(PROBLEMS, indices, check_counts=False)
    found = figures(result)
    assert {name: f"{found['accuracy' if name == 'Avg' else f'accuracy/{name}']:.2f}" for name in table} == table


def test_lmms_asks_and_reads_in_its_own_way(data: Path):
    result, questions, _ = run(scienceqa_data.BENCHMARK, data, REPLIES | {"12": "b", "13": "C. it is"}, protocol="lmms")
    assert figures(result)["accuracy"] == 60.0
    assert figures(result)["unreadable"] == 40.0
    assert questions[0].conversation.messages[0].text == f"\nContext: Look.\nWhich is 11?\nA. one 11\nB. two 11\nC. three 11\n{CLOSING}"
    assert questions[1].conversation.messages[0].text == f"Which is 12?\nA. one 12\nB. two 12\nC. three 12\n{CLOSING}"


QUESTION, CONTEXT, OPTIONS = "Which is 11?", "Context: Look.", "Options: (A) one 11 (B) two 11 (C) three 11"
LECTURE, SOLUTION = "First.\\nSecond.", "So it is."


@pytest.mark.parametrize(
    ("form", "lines"),
    [
        ("CQM", [CONTEXT, f"Question: {QUESTION}", OPTIONS]),
        ("QCM", [QUESTION, CONTEXT, OPTIONS]),
        ("QCML", [QUESTION, CONTEXT, OPTIONS, f"BECAUSE: {LECTURE}"]),
        ("QCME", [QUESTION, CONTEXT, OPTIONS, f"BECAUSE: {SOLUTION}"]),
        ("QCMLE", [QUESTION, CONTEXT, OPTIONS, f"BECAUSE: {LECTURE} {SOLUTION}"]),
        ("QCLM", [QUESTION, CONTEXT, f"BECAUSE: {LECTURE}", OPTIONS]),
        ("QCEM", [QUESTION, CONTEXT, f"BECAUSE: {SOLUTION}", OPTIONS]),
        ("QCLEM", [QUESTION, CONTEXT, f"BECAUSE: {LECTURE} {SOLUTION}", OPTIONS]),
    ],
)
def test_every_prompt_format_asks_in_its_order(form: str, lines: list[str]):
    assert question_text(PROBLEMS["11"], f"{form}-A") == "\n".join(lines)


def test_a_reason_that_there_is_not_is_left_out_and_double_blanks_are_squeezed_once():
    bare = PROBLEMS["12"] | {"lecture": "", "solution": "", "question": "A  b   c?"}
    assert question_text(bare, "QCMLE-A") == "A b  c?\nContext: N/A\nOptions: (A) one 12 (B) two 12 (C) three 12"


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("A", "The answer is A."),
        ("AL", f"The answer is A. BECAUSE: {SOLUTION}"),  # L and E change places here, officially
        ("AE", f"The answer is A. BECAUSE: {LECTURE}"),
        ("ALE", f"The answer is A. BECAUSE: {LECTURE} {SOLUTION}"),
        ("AEL", f"The answer is A. BECAUSE: {SOLUTION} {LECTURE}"),
        ("LA", f"{LECTURE} The answer is A."),
        ("EA", f"{SOLUTION} The answer is A."),
        ("LEA", f"{LECTURE} {SOLUTION} The answer is A."),
        ("ELA", f"{SOLUTION} {LECTURE} The answer is A."),
        ("LEPA", f"LECTURE: {LECTURE}\nSOLUTION: {SOLUTION}\n###\nANSWER: A."),
    ],
)
def test_a_right_answer_in_every_order_is_read_as_right(order: str, expected: str):
    assert answer_text(PROBLEMS["11"], f"QCM-{order}") == expected
    assert scienceqa_data.read_letter(expected, 3, f"QCM-{order}") == ("A", 0)


def test_there_is_a_protocol_for_every_input_and_every_order():
    known = {protocol.id for protocol in scienceqa_data.BENCHMARK.protocols}
    assert known == {"llava", "lmms", "text-only"} | {f"{form}-A" for form in INPUTS} | {f"QCM-{order}" for order in OUTPUTS}


def test_a_teacher_is_asked_without_the_picture(data: Path):
    questions = uncounted(scienceqa_data.BENCHMARK).questions(data, "text-only")
    assert not any(question.conversation.images for question in questions)
    assert questions[0].conversation.messages[0].text == f"{QUESTION}\n{CONTEXT}\n{OPTIONS}"


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_scienceqas_files_are_refused_where_they_are_not_the_official_ones(data: Path):
    root, load = data / "scienceqa", uncounted(scienceqa_data.BENCHMARK).questions
    with pytest.raises(DataError, match=r"pid_splits\.json: problems of 'test': 6, but the benchmark has 4241"):
        scienceqa_data.BENCHMARK.questions(data)
    for test, complaint in (
        (["11", "11"], "more than once"),
        (["99"], r"'99': 'split' must be one of test"),
        (["0"], "lacks 1"),
        (3, "list"),
    ):
        edit(root / "pid_splits.json", test=test)
        with pytest.raises(DataError, match=complaint):
            load(data)
    edit(root / "pid_splits.json", test=["11"])
    for change, complaint in (
        ({"answer": 3}, "index of one of 3"),
        ({"choices": ["a"]}, "2 to 5 choices"),
        ({"hint": None}, "'hint' must be text"),
    ):
        edit(root / "problems.json", **{"11": PROBLEMS["11"] | change})
        with pytest.raises(DataError, match=complaint):
            load(data)
    edit(root / "problems.json", **{"11": PROBLEMS["11"] | {"image": "other.png"}})
    with pytest.raises(ImageError, match=r"'11': there is no picture '11/other\.png'"):
        load(data)


# --- with a teacher -----------------------------------------------------------------------------------------------------------------------

TEACHER = {
    "11": "The answer is A.",  # as the model
    "12": "The answer is C. ",  # wrong, the model right
    "13": "The answer is C, surely.",  # right, the model wrong
    "14": "The answer is A.",  # right, the model unreadable
    "15": "I cannot see it.",  # unreadable
    "16": "The answer is B.",
}


def test_the_complement_is_the_teachers_answer_or_else_the_models(data: Path):
    write_json(data / "scienceqa-complement/gpt4_result.json", {"outputs": TEACHER})
    result, questions, _ = run(scienceqa_teacher.COMPLEMENT, data, REPLIES | {"15": "The answer is B. ", "16": "A"})
    # 11 right by both, 12 wrong by the teacher, 13 and 14 right by the teacher, 15 right by the model, 16 wrong by the teacher
    assert figures(result) == {
        "accuracy": round(400 / 6, 9),
        **{"accuracy/NAT": round(100 / 3, 9), "accuracy/SOC": 100.0, "accuracy/LAN": 100.0, "accuracy/TXT": 100.0, "accuracy/IMG": 100.0},
        **{"accuracy/NO": round(100 / 3, 9), "accuracy/G1-6": 75.0, "accuracy/G7-12": 50.0},
        "model alone": round(400 / 6, 9),
        "teacher alone": 50.0,
        "complement": round(400 / 6, 9),
        "better of both": 100.0,
        "teacher unreadable": round(100 / 6, 9),
    }
    assert questions[0].conversation.messages[0].text.startswith(f"\n{QUESTION}\n{CONTEXT}")


def test_in_the_judge_scheme_the_teacher_decides_where_both_differ(data: Path):
    write_lines(data / "scienceqa-judge/teacher.jsonl", [{"id": id, "reply": text, "score": 1.0} for id, text in TEACHER.items()])
    asked = []

    def teacher(text: str) -> Any:
        asked.append(text)
        if "Which is 12?" in text:
            return "The first is right. The answer is B. "
        if "Which is 13?" in text:
            return "Either may be right."  # unreadable however often: the model's own answer counts
        if "Which is 14?" in text:
            return RemoteError("no judge", status=400)
        return "The answer is A. "

    result, _, _ = run(scienceqa_teacher.JUDGE, data, REPLIES | {"15": "The answer is B. ", "16": "A"}, judge=teacher)
    # 11 was not asked; 12 right by the second answer; 13 wrong by the model; 14 has no score; 15 wrong by the second answer, 16 right.
    assert result.metric("accuracy") == 60.0
    assert (result.n, result.n_unscored) == (6, 1)
    assert result.metric("model alone") == 80.0
    assert result.metric("teacher alone") == 40.0
    assert sum("Which is 13?" in text for text in asked) == 3
    assert not any("Which is 11?" in text for text in asked)
    both = "[Assistant 1]\nB. two 12\n[End of Assistant 1]\n[Assistant 2]\nThe answer is C.\n[End of Assistant 2]"
    assert both in next(text for text in asked if "Which is 12?" in text)


def test_the_teacher_may_be_a_server(data: Path):
    write_json(data / "scienceqa-judge/gpt4_result.json", {"outputs": TEACHER})
    replies = {"11": "A", "12": "B", "13": "A", "14": "B", "15": "B", "16": "A"}
    server = Server()
    server.answers("I have thought about it again. The answer is B.")
    try:
        calls = Calls(OpenAIChatModel("teacher", base_url=server.url), name="teacher", log=data / "judge.log")
        with calls:
            model = ScriptedChatModel(list(replies.values()))
            options: dict[str, Any] = {"model_name": "scripted", "data": data, "judges": [Judge("teacher", calls)], "concurrency": 1}
            result, _ = asyncio.run(evaluate(model, uncounted(scienceqa_teacher.JUDGE), data / "out", **options))
    finally:
        server.close()
    # Asked about all but 11, which both have right; right is B in 12 and 15.
    assert result.metric("accuracy") == 50.0
    assert len(server.requests) == 5
    (message,) = server.requests[0]["messages"]
    assert message["role"] == "user"
    assert "Two assistants answered" in str(message["content"])
    assert result.judge


def test_a_teachers_file_of_other_questions_or_none_is_refused(data: Path):
    load = uncounted(scienceqa_teacher.JUDGE).questions
    with pytest.raises(DataError, match=r"gpt4_result\.json is missing"):
        load(data)
    write_json(data / "scienceqa-judge/gpt4_result.json", {"outputs": {"11": "A"}})
    with pytest.raises(DataError, match=r"the teacher's file does not belong to the questions"):
        load(data)
    write_json(data / "scienceqa-judge/gpt4_result.json", ["A"])
    with pytest.raises(DataError, match="there is no 'outputs'"):
        load(data)
