"""ScienceQA is scored as LLaVA's script and the benchmark's own table score it."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vistune.errors import ScoringError, UnknownName
from vistune.eval.benchmarks import scienceqa


def problem(answer: int = 0, n: int = 4, **more) -> dict:
    fields = {"hint": "", "image": None, "subject": "natural science", "grade": "grade3", "split": "test"}
    return {"choices": ["x"] * n, "answer": answer} | fields | more


def row(question_id: str, text: str, prompt: str = "q") -> dict:
    return {"question_id": question_id, "text": text, "prompt": prompt}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("B", ("B", 1)),  # step 1: the whole text is a letter
        ("E", ("E", -1)),  # a letter, but the question has four choices
        ("B. because", ("B", 1)),  # step 2: letter, full stop, blank
        ("B. ", ("B", 1)),
        ("A. The answer is B.", ("A", 0)),  # step 2 goes before step 3
        ("E. The answer is B.", ("E", -1)),
        ("B.because The answer is C.", ("C", 2)),  # no blank after the full stop: step 3
        ("So. The answer is C.", ("C", 2)),
        ("The answer is C, I think", ("C", 2)),  # the dot is a wildcard
        ("The answer is C", ("FAILED", -1)),  # ... which needs a character
        ("The answer is C\n", ("FAILED", -1)),  # ... other than a newline
        ("The answer is Dogs", ("D", 3)),
        ("The answer is Z.", ("Z", -1)),
        ("the answer is C.", ("FAILED", -1)),  # case-sensitive
        ("The answer is c.", ("FAILED", -1)),
        ("The answer is A. The answer is A.", ("FAILED", -1)),  # exactly one match
        ("b", ("FAILED", -1)),
        (" B", ("FAILED", -1)),  # trimming is the runner's work
        ("B.", ("FAILED", -1)),
        ("F. no", ("FAILED", -1)),
        ("AB", ("FAILED", -1)),
        ("(B)", ("FAILED", -1)),
        ("FAILED", ("FAILED", -1)),
        ("", ("FAILED", -1)),
    ],
)
def test_a_reply_is_read_in_the_order_letter_prefix_sentence(text: str, expected: tuple[str, int]):
    assert scienceqa.parse(text, 4) == expected


def test_the_fifth_letter_is_an_index_where_there_are_five_choices():
    assert scienceqa.parse("E", 5) == ("E", 4)
    assert scienceqa.parse("C", 2) == ("C", -1)


@pytest.mark.parametrize("text", [None, float("nan"), 1, b"A"])
def test_what_is_no_text_is_refused(text):
    with pytest.raises(ScoringError):
        scienceqa.parse(text, 4)


@given(st.text() | st.lists(st.sampled_from(["The answer is ", "A", "Z", ".", "\n", " "])).map("".join), st.integers(0, 6))
@settings(max_examples=60, deadline=None)
def test_any_text_gives_a_letter_and_an_index_of_a_choice_or_none(text: str, n_choices: int):
    label, index = scienceqa.parse(text, n_choices)
    assert label == "FAILED" or len(label) == 1
    assert index == -1 or (index < n_choices and scienceqa.OPTIONS[index] == label)


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        (" b \n", True),
        ("B", True),
        ("B. x", True),
        ("B.", True),
        ("b. x", False),
        ("Bx", False),
        ("C. B", False),
        ("", False),
        ("The answer is B.", False),
    ],
)
def test_lmms_takes_the_bare_letter_or_a_capital_with_a_full_stop(reply: str, right: bool):
    assert scienceqa.match_lmms(reply, "B") is right


def test_predictions_are_joined_by_id_and_the_last_duplicate_wins():
    problems = {"1": problem(0), "2": problem(1), "3": problem(2), "4": problem(3)}
    rows = [row("1", "B"), row("2", "B", "<image>\nq"), row("1", "A"), row("3", "C", "q <image>"), row("9", "A")]
    found = scienceqa.score(problems, [*rows, row("3", "A", "<image>")])
    assert (found.correct, found.count, found.accuracy) == (2, 4, 0.5)
    assert (found.image_correct, found.image_count, found.image_accuracy) == (1, 2, 0.5)
    assert found.results == {"1": 0, "2": 1, "3": 0, "4": -1}
    assert found.outputs == {"1": "A", "2": "B", "3": "A", "4": "FAILED"}
    assert (found.missing, found.foreign) == (1, 1)
    assert found.record() == {"acc": 50.0, "correct": 2, "count": 4, "results": found.results, "outputs": found.outputs}


def test_the_stored_prompt_and_not_the_problem_says_what_was_asked_with_an_image():
    found = scienceqa.score({"1": problem(0, image="image.png")}, [row("1", "A")])
    assert found.image_count == 0


def test_no_questions_with_an_image_is_zero_or_officially_a_failure():
    problems, rows = {"1": problem(0)}, [row("1", "A")]
    assert scienceqa.score(problems, rows).image_accuracy == 0
    assert scienceqa.score({}, []).accuracy == 0
    for chosen in (problems, {}):
        with pytest.raises(ScoringError):
            scienceqa.score(chosen, rows, strict_official=True)


def test_a_row_without_its_prompt_was_asked_without_an_image_or_officially_fails():
    problems, rows = {"1": problem(0), "2": problem(0)}, [row("1", "A", "<image>"), {"question_id": "2", "text": "A"}]
    assert scienceqa.score(problems, rows).image_count == 1
    with pytest.raises(ScoringError):
        scienceqa.score(problems, rows, strict_official=True)


@pytest.mark.parametrize("bad", [{"choices": ["x"]}, {"answer": 0}, problem(5), problem(-1), problem(0, n=0), problem(0) | {"answer": "A"}])
def test_a_problem_that_no_answer_can_be_right_for_is_refused(bad: dict):
    with pytest.raises(ScoringError):
        scienceqa.score({"1": bad}, [row("1", "A")])


@pytest.mark.parametrize("bad", [{"text": "A"}, {"question_id": "1"}, {"question_id": "1", "text": None}])
def test_a_row_without_id_or_text_is_refused(bad: dict):
    with pytest.raises(ScoringError):
        scienceqa.score({"1": problem(0)}, [bad])


def test_categories_follow_subject_hint_image_and_grade():
    problems = {
        "1": problem(0, hint=" ", grade="grade1"),  # a single blank is a hint
        "2": problem(0, subject="social science", image="image.png", grade="grade6"),
        "3": problem(0, subject="language science", grade="grade7"),
        "4": problem(0, subject="language science", hint="h", image="image.png", grade="grade12"),
        "5": problem(0, subject="language science", grade="grade12"),
    }
    table = scienceqa.by_category(problems, {"1": 0, "2": 0.9, "3": "0", "4": 1, "5": -1}, check_counts=False)
    assert table == {
        "NAT": "100.00",
        "SOC": "100.00",
        "LAN": "33.33",
        "TXT": "50.00",
        "IMG": "50.00",
        "NO": "50.00",
        "G1-6": "100.00",
        "G7-12": "33.33",
        "Avg": "60.00",
    }
    assert tuple(table) == scienceqa.CATEGORIES


def test_the_average_divides_by_results_and_other_splits_are_passed_over():
    problems = {"1": problem(0), "2": problem(0, split="train")}
    assert scienceqa.by_category(problems, {"1": 0, "2": 0}, check_counts=False)["Avg"] == "50.00"
    assert scienceqa.by_category(problems, {"2": 0}, split="train", check_counts=False)["Avg"] == "100.00"


def test_an_empty_class_is_minus_one():
    table = scienceqa.by_category({"1": problem(0)}, {"1": 0}, check_counts=False)
    assert table["SOC"] == table["IMG"] == table["G7-12"] == "-1.00"
    assert scienceqa.by_category({}, {}, check_counts=False)["Avg"] == "-1.00"
    with pytest.raises(ScoringError):
        scienceqa.by_category({}, {}, check_counts=False, strict_official=True)


def test_the_table_wants_all_results_of_the_split():
    problems = {str(number): problem(0) for number in range(4241)}
    results = dict.fromkeys(problems, 0)
    assert scienceqa.by_category(problems, results)["Avg"] == "100.00"
    results.pop("7")
    with pytest.raises(ScoringError, match="4241"):
        scienceqa.by_category(problems, results)
    with pytest.raises(ScoringError, match="7"):
        scienceqa.by_category(problems, results, check_counts=False)


@pytest.mark.parametrize("value", ["A", None, float("nan"), float("inf"), "9" * 5000])
def test_a_result_that_is_no_number_is_refused(value):
    with pytest.raises(ScoringError):
        scienceqa.by_category({"1": problem(0)}, {"1": value}, check_counts=False)


def says(letter: str) -> str:
    return f"Because. The answer is {letter}."


PROBLEMS = {name: problem(1) for name in ("agree", "fails", "differ", "out")}
OURS = {"agree": says("B"), "fails": says("B"), "differ": says("B"), "out": says("B")}
TEACHER = {"agree": says("B"), "fails": "I cannot see it.", "differ": says("A"), "out": says("Z")}


def test_the_complement_takes_the_model_where_the_teacher_gives_no_answer():
    found = scienceqa.complement(PROBLEMS, OURS, TEACHER)
    assert found.results == {"agree": 1, "fails": 1, "differ": 0, "out": -1}
    assert (found.correct, found.ours, found.teacher, found.upper_bound, found.teacher_failed) == (2, 4, 1, 4, 1)
    assert (found.accuracy, found.complement, found.total, found.skipped) == (0.5, 2, 4, 0)


def test_the_complement_skips_what_one_of_the_two_did_not_answer():
    found = scienceqa.complement(PROBLEMS, {"agree": says("B"), "out": "B"}, {"agree": says("B"), "fails": "B"})
    assert (found.total, found.correct, found.skipped) == (1, 1, 3)
    assert scienceqa.complement(PROBLEMS, {}, {}).accuracy == 0
    with pytest.raises(ScoringError):
        scienceqa.complement(PROBLEMS, {}, {}, strict_official=True)


def test_the_teacher_is_asked_again_where_the_two_differ():
    assert scienceqa.disagreements(PROBLEMS, OURS, TEACHER) == ("fails", "differ", "out")
    assert scienceqa.disagreements(PROBLEMS, {"agree": "B"}, TEACHER) == ()


def test_the_judge_has_the_last_word_if_it_can_be_read():
    found = scienceqa.judge(PROBLEMS, OURS, TEACHER, {"fails": says("A"), "differ": says("B"), "out": "Hm."})
    assert found.results == {"agree": 1, "fails": 0, "differ": 1, "out": 1}
    assert (found.correct, found.ours, found.teacher, found.complement, found.upper_bound) == (3, 4, 1, 2, 4)
    assert found.total == 4


def test_the_judge_scheme_needs_both_replies_to_every_problem():
    with pytest.raises(ScoringError, match="fails"):
        scienceqa.judge(PROBLEMS, OURS, {"agree": says("B")}, {})


def test_the_official_ensembles_read_the_sentence_only_and_guess_what_they_cannot_read():
    problems = {str(number): problem(0, n=2) for number in range(40)}
    replies = dict.fromkeys(problems, "A")
    assert scienceqa.complement(problems, replies, replies).correct == 40
    draw = random.Random(3)
    guesses = [(draw.choice(range(2)), draw.choice(range(2))) for _ in problems]  # the model first, then the teacher
    found = scienceqa.complement(problems, replies, replies, mode="official", draw=random.Random(3))
    assert list(found.results.values()) == [ours for ours, _ in guesses]
    assert found.teacher_failed == 40
    assert found.upper_bound == found.correct == sum(ours == 0 for ours, _ in guesses)
    assert found == scienceqa.complement(problems, replies, replies, mode="official", draw=random.Random(3))


def test_the_official_judge_counts_lucky_guesses_of_the_teacher():
    problems = {str(number): problem(0, n=2) for number in range(40)}
    draw = random.Random(3)
    guesses = [tuple(draw.choice(range(2)) for _ in range(3)) for _ in problems]  # model, teacher, second answer
    replies = dict.fromkeys(problems, "A")
    found = scienceqa.judge(problems, replies, replies, {}, mode="official", draw=random.Random(3))
    assert found.teacher == sum(teacher == 0 for _, teacher, _ in guesses)
    assert found.upper_bound == sum(0 in (ours, teacher) for ours, teacher, _ in guesses)
    assert list(found.results.values()) == [ours for ours, _, _ in guesses]


def test_official_guesses_without_a_source_of_chance_are_repeatable():
    problems = {str(number): problem(0) for number in range(9)}
    replies = dict.fromkeys(problems, "")
    one, other = (scienceqa.complement(problems, replies, replies, mode="official") for _ in range(2))
    assert one == other
    assert set(one.results.values()) <= {0, 1, 2, 3}


def test_an_ensemble_mode_that_does_not_exist_is_named():
    with pytest.raises(UnknownName, match="no_guess"):
        scienceqa.complement(PROBLEMS, OURS, TEACHER, mode="guess")  # pyright: ignore[reportArgumentType]
