"""BenchLMM: the judge's replies, which items are scored at all, and the means of the results table."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vistune.errors import ScoringError, UnknownName
from vistune.eval.benchmarks import benchlmm


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("0.5", 0.5),
        ("Score: 1.", 1.0),
        ("1.0\n", 1.0),
        ("-0.3", 0.3),  # a sign is not part of the number
        (".5", None),  # read as 5
        ("0", 0.0),
        ("1.1", None),
        ("11", None),
        ("0.5 to 0.6", None),
        ("0.5.1", None),
        ("1/10", None),
        ("full marks", None),
        ("nan", None),
        ("", None),
        (None, None),
        ("٠.٥", 0.5),
        ("1e0", None),
        ("1,0", None),
    ],
)
def test_a_judgement_is_exactly_one_unsigned_number_from_zero_to_one(reply: str | None, score: float | None):
    assert benchlmm.parse_judge(reply) == score


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("evidence\naction score: 1", 1.0),
        ("\n\nevidence\n\naction score:0\nmore: 1", 0.0),
        ("a\nb: c: 1 ", 1.0),
        ("a\n1", 1.0),
        ("a\n \naction score: 1", None),  # a line of blanks is a line
        ("action score: 1", None),
        ("a\naction score: one", None),
        ("a\naction score: 1.", 1.0),
        ("a\naction score: 0.5", 0.5),
        ("", None),
        (None, None),
    ],
)
def test_an_action_score_stands_behind_the_last_colon_of_the_second_line(reply: str | None, score: float | None):
    assert benchlmm.parse_action(reply) == score


def test_an_unreadable_action_score_raises_where_the_official_code_does():
    with pytest.raises(ScoringError):
        benchlmm.parse_action("a\nb", strict_official=True)


@given(st.text())
def test_judges_may_say_anything(reply: str):
    value = benchlmm.parse_judge(reply)
    assert value is None or 0 <= value <= 1
    assert benchlmm.parse_action(reply) is None or isinstance(benchlmm.parse_action(reply), float)


@pytest.mark.parametrize("junk", ["1" * 1_000_000, "1." * 500_000, "a: " * 300_000, "\n" * 1_000_000])
def test_a_megabyte_of_junk_is_read_at_once(junk: str):
    started = time.perf_counter()
    benchlmm.parse_judge(junk)
    benchlmm.parse_action(junk)
    assert time.perf_counter() - started < 1


REFERENCE = {"question_id": 1, "image": "a.jpg", "text": "How many?", "answer": "two"}


def test_a_judged_answer_becomes_a_row():
    rows = benchlmm.run([{"question_id": 1, "model_output": "2"}], [REFERENCE], lambda prompt: "0.8")
    assert rows == [{"question_id": 1, "image": "a.jpg", "model_response": 0.8}]


def asked(mode: benchlmm.Mode, prediction: object = "2", **changes: object) -> list[str]:
    prompts: list[str] = []

    def judge(prompt: str) -> str:
        prompts.append(prompt)
        return "1"

    benchlmm.run([{"question_id": 1, "model_output": prediction}], [REFERENCE | changes], judge, mode=mode)
    return prompts


def test_the_official_judge_sees_none_for_the_question_and_the_fixed_one_sees_it():
    (official,), (fixed,) = asked("official"), asked("fixed")
    assert "Question: None\nGround Truth: two\nPrediction: 2\nScore:" in official
    assert "Question: How many?\nGround Truth: two" in fixed


def test_empty_texts_are_not_asked_about_but_zero_and_null_are():
    assert not asked("fixed", "")
    assert not asked("fixed", answer="")
    assert "Prediction: 0\n" in asked("fixed", 0)[0]
    assert "Prediction: None\n" in asked("fixed", None)[0]
    assert "Ground Truth: 7\n" in asked("fixed", answer=7)[0]
    assert not benchlmm.run([{"question_id": 1}, {"question_id": "1", "model_output": "x"}], [REFERENCE], lambda prompt: "1")


@pytest.mark.parametrize(("replies", "score"), [(["?", "2", "0.4"], 0.4), ([OSError(), "x", "1"], 1.0), (["?", OSError(), "?", "1"], None)])
def test_three_attempts_are_made_and_an_api_error_is_one(replies: list[str | Exception], score: float | None):
    remaining = iter(replies)

    def judge(prompt: str) -> str:
        reply = next(remaining)
        if isinstance(reply, Exception):
            raise reply
        return reply

    rows = benchlmm.run([{"question_id": 1, "model_output": "2"}], [REFERENCE], judge)
    assert [row["model_response"] for row in rows] == ([] if score is None else [score])
    assert len(list(remaining)) == (1 if score is None else 0)


def test_what_is_no_api_error_ends_the_run():
    def judge(prompt: str) -> str:
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        benchlmm.run([{"question_id": 1, "model_output": "2"}], [REFERENCE], judge, api_errors=(OSError,))


def test_every_sub_style_has_a_prompt_and_others_have_none():
    styles = [name for names in benchlmm.GROUPS.values() for name in names]
    prompts = {name: benchlmm.prompt("q", "r", "p", file=name) for name in styles}
    assert len(styles) == 15
    assert len(set(prompts.values())) == 5
    assert prompts["CT"] == benchlmm.prompt("q", "r", "p")
    with pytest.raises(UnknownName):
        benchlmm.prompt("q", "r", "p", file="Common")
    with pytest.raises(UnknownName):
        benchlmm.run([], [], lambda prompt: "1", mode="both")  # type: ignore[arg-type]


def test_the_mean_leaves_out_what_is_no_number_and_of_nothing_there_is_none():
    rows = [{"model_response": 1.0}, {"model_response": "0.5"}, {"model_response": "x"}, {"model_response": None}, {}]
    assert benchlmm.mean(rows) == 0.75
    assert benchlmm.mean([]) is None


def test_actions_are_lettered_and_the_right_one_is_in_the_prompt():
    meta = {"actions": ["go left", "wait"], "answer_index": 1}
    assert benchlmm.action_choices(meta["actions"]) == "(A) go left (B) wait"
    assert "[Agent Answer]\nI wait\n\n[Correct Action]\n(B) wait\n" in benchlmm.action_prompt(meta, "I wait")
    with pytest.raises(ScoringError):
        benchlmm.action_prompt({"actions": ["x"], "answer_index": 1}, "x")


def test_the_published_rows_follow_from_their_printed_group_means():
    groups = {"artistic": 53.0, "sensor": 45.3, "application": 42.2}
    assert round(benchlmm.headline(groups), 2) == 46.83
    assert round(benchlmm.headline({"artistic": 48.8, "sensor": 41.4, "application": 40.3}), 1) == 43.5


def test_the_printed_sub_styles_give_other_group_means_than_the_printed_ones():
    printed = [51.9, 53.3, 43.4, 62.0, 54.6, 46.5, 53.2, 49.4, 29.6, 46.8, 61.7, 31.3, 44.0, 15.4, 59.6]
    styles = dict(zip([name for names in benchlmm.GROUPS.values() for name in names], printed, strict=True))
    means = benchlmm.group_means(styles)
    assert [round(value, 1) for value in means.values()] == [53.0, 45.1, 42.4]
    assert round(sum(printed) / 15, 2) == 46.85
    del styles["CT"]
    with pytest.raises(ScoringError):
        benchlmm.group_means(styles)
    with pytest.raises(ScoringError):
        benchlmm.headline({"artistic": 1.0})
