"""MME is scored as the benchmark's own tool does, or as lmms-eval does."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vistune.errors import ScoringError, UnknownName
from vistune.eval.benchmarks import mme


@pytest.mark.parametrize(
    ("text", "official", "lmms"),
    [
        ("Yes\n", "yes", "yes"),
        ("NO", "no", "no"),
        ("y", "other", "yes"),  # one letter: lmms only
        (" N.", "other", "no"),
        ("x", "other", "other"),
        (".yes", "yes", "yes"),
        ("..yes", "other", "yes"),  # the first four characters are "..ye"
        ("  no", "no", "no"),
        ("   no", "other", "no"),  # leading blanks count, officially
        ("noyes", "no", "no"),
        ("yesno", "yes", "yes"),
        ("no, yes", "no", "no"),
        ("nyes", "yes", "yes"),  # anywhere among the four
        ("Not sure", "no", "no"),
        ("I know", "other", "other"),
        ("Answer: yes", "other", "other"),
        ("n.o", "other", "no"),  # lmms deletes full stops
        ("", "other", "other"),
    ],
)
def test_an_answer_must_stand_in_the_first_four_characters(text: str, official: str, lmms: str):
    assert mme.parse(text) == official
    assert mme.parse(text, "lmms") == lmms


@given(st.text(), st.sampled_from(mme.MODES))
@settings(max_examples=60, deadline=None)
def test_any_text_is_yes_no_or_other(text: str, mode: mme.Mode):
    assert mme.parse(text, mode) in ("yes", "no", "other")


@pytest.mark.parametrize("text", [None, float("nan"), 0])
def test_what_is_no_text_is_refused(text):
    with pytest.raises(ScoringError):
        mme.parse(text)


def test_a_mode_that_does_not_exist_is_named():
    with pytest.raises(UnknownName, match="official"):
        mme.parse("yes", "vlmevalkit")  # pyright: ignore[reportArgumentType]


def pair(category: str, image: str, *predictions: str) -> list[dict]:
    """The two questions about one image: the first is answered yes, the second no."""
    return [
        {"category": category, "image": image, "question_id": image, "answer": answer, "prediction": prediction}
        for answer, prediction in zip(("Yes", "No"), predictions, strict=False)
    ]


ITEMS = [
    *pair("OCR", "1", "yes", "no"),
    *pair("OCR", "2", "yes", "yes"),
    *pair("OCR", "3", "hm", "no"),
    *pair("code_reasoning", "4", "Yes", "NO"),
]


@pytest.mark.parametrize("mode", mme.MODES)
def test_a_task_scores_its_accuracy_and_its_share_of_images_with_both_right(mode: mme.Mode):
    found = mme.score(ITEMS, mode=mode)
    task = found.tasks["OCR"]
    assert (task.accuracy, task.accuracy_plus) == (4 / 6, 1 / 3)
    assert task.score == pytest.approx(100.0)
    assert (task.n, task.n_images, task.n_other) == (6, 3, 1)
    assert (found.perception, found.cognition) == (pytest.approx(100.0), 200.0)


def test_perfect_answers_reach_2000_and_800():
    found = mme.score([row for task in mme.PERCEPTION + mme.COGNITION for row in pair(task, "1", "Yes", "No")], strict_official=True)
    assert (found.perception, found.cognition, found.missing) == (2000.0, 800.0, ())


def test_officially_neighbours_are_a_pair_and_in_lmms_a_common_id():
    one, other = pair("OCR", "1", "yes", "no"), pair("OCR", "2", "no", "yes")
    crossed = [one[0], other[0], one[1], other[1]]
    assert mme.score(crossed, mode="lmms").tasks["OCR"].accuracy_plus == 0.5
    assert mme.score(crossed, check_counts=False).tasks["OCR"].accuracy_plus == 0.0
    with pytest.raises(ScoringError, match="stand together"):
        mme.score(crossed)


@pytest.mark.parametrize("mode", mme.MODES)
def test_an_image_with_one_question_is_refused(mode: mme.Mode):
    with pytest.raises(ScoringError, match="two questions"):
        mme.score(ITEMS[:3], mode=mode)


def test_gold_answers_are_cleaned_in_lmms_only():
    items = [{**row, "answer": f" {row['answer']}."} for row in ITEMS]
    assert mme.score(items, mode="lmms").cognition == 200
    with pytest.raises(ScoringError):
        mme.score(items)


def test_a_task_without_rows_is_named_or_officially_a_failure():
    assert mme.score(ITEMS).missing == tuple(task for task in (*mme.PERCEPTION, *mme.COGNITION) if task not in ("OCR", "code_reasoning"))
    assert mme.score([]).perception == 0
    with pytest.raises(ScoringError, match="celebrity"):
        mme.score(ITEMS, strict_official=True)


def test_a_task_that_mme_has_not_is_refused():
    with pytest.raises(ScoringError, match="ocr"):
        mme.score(pair("ocr", "1", "yes", "no"))


@pytest.mark.parametrize("key", ["category", "answer", "prediction"])
def test_a_missing_field_is_named(key: str):
    with pytest.raises(ScoringError, match=key):
        mme.score([{name: value for name, value in row.items() if name != key} for row in ITEMS])
