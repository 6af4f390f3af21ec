"""POPE and MME from files in their official layouts to every figure, worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.eval.official_data import figures, headline, run, uncounted, write_lines, write_pictures

from vistune.errors import DataError, ImageError, RemoteError
from vistune.eval.benchmarks import mme, pope
from vistune.types import Graded, Reply, Score

SHORT = "Answer the question using a single word or phrase."
LOST = RemoteError("the line is dead")


# --- POPE ---------------------------------------------------------------------------------------------------------------------------------

POPE_LABELS = {"random": ("yes", "no", "yes", "no"), "popular": ("yes", "no"), "adversarial": ("no", "no")}


@pytest.fixture
def pope_data(tmp_path: Path) -> Path:
    root = tmp_path / "pope"
    for split, labels in POPE_LABELS.items():
        rows = [
            {"question_id": number, "image": f"{split}.jpg", "text": f"Is there {split} {number} in the image?", "label": label}
            for number, label in enumerate(labels, 1)
        ]
        write_lines(root / f"coco/coco_pope_{split}.json", rows)
    write_pictures(root / "val2014", "random.jpg", "popular.jpg", "adversarial.jpg")
    return tmp_path


POPE_REPLIES = {
    "random-1": "Yes",  # true positive
    "random-2": "No, there is none.",  # true negative
    "random-3": "no",  # false negative
    "random-4": "Hard to say",  # no negation, so yes: a false positive
    "popular-1": "yes.",  # true positive
    "popular-2": "No",  # true negative
    "adversarial-1": "yes",  # false positive
    "adversarial-2": LOST,
}


def test_pope_is_the_mean_f1_of_its_splits(pope_data: Path):
    result, questions, model = run(pope.BENCHMARK, pope_data, POPE_REPLIES)
    assert figures(result) == {
        "f1": 50.0,  # 50, 100 and 0
        **{"f1/random": 50.0, "accuracy/random": 50.0, "precision/random": 50.0, "recall/random": 50.0, "yes ratio/random": 50.0},
        **{"f1/popular": 100.0, "accuracy/popular": 100.0, "precision/popular": 100.0, "recall/popular": 100.0, "yes ratio/popular": 50.0},
        **{f"{name}/adversarial": 0.0 for name in ("f1", "accuracy", "precision", "recall")},
        "yes ratio/adversarial": 100.0,
    }
    assert headline(result) == "f1"
    assert (result.n, result.n_unscored) == (8, 1)
    assert questions[0].conversation.messages[0].text == f"\nIs there random 1 in the image?\n{SHORT}"
    assert questions[0].image_group == "random.jpg"
    assert model.calls[0][1].max_new_tokens == 128


def test_popes_lmms_table_is_of_all_questions_and_what_is_neither_is_in_no_cell(pope_data: Path):
    # Scored: 7. Exact: random-1, popular-2 right; random-3 "no" a miss; adversarial-1 a false alarm; the other three are neither.
    result, _, _ = run(pope.BENCHMARK, pope_data, POPE_REPLIES, protocol="lmms")
    assert figures(result) == {
        "f1": 50.0,
        "accuracy": round(100 * 2 / 7, 9),
        "precision": 50.0,
        "recall": 50.0,
        "yes ratio": round(100 * 3 / 7, 9),  # of the labels
    }
    assert headline(result) == "f1"


def test_each_answer_of_pope_is_right_or_wrong_by_what_it_was_read_as(pope_data: Path):
    positive, negative = uncounted(pope.BENCHMARK).questions(pope_data)[:2]

    def values(text: str) -> list[float | None]:
        return [pope.score_reply(question, Reply(text, "stop"), "official").value for question in (positive, negative)]

    assert (values("Yes"), values("No")) == ([1.0, 0.0], [0.0, 1.0])
    assert pope.score_reply(positive, Reply("Yes", "cancelled"), "official").value is None


def test_popes_worst_and_best_bound_what_an_unscored_answer_could_have_been(pope_data: Path):
    questions = uncounted(pope.BENCHMARK).questions(pope_data)[:2]
    worst, best = zip(*(pope.extremes(question) for question in questions), strict=True)
    assert [score.extracted for score in worst] == ["no", "yes"]

    def f1(scores: tuple) -> float:
        graded = [Graded(question, Reply("", "stop"), score) for question, score in zip(questions, scores, strict=True)]
        return pope.summarise(graded, "official")[0].value

    assert (f1(worst), f1(best)) == (0.0, 100.0)


def test_popes_files_are_refused_where_they_are_not_the_official_ones(pope_data: Path):
    with pytest.raises(DataError, match=r"coco_pope_random\.json: questions: 4, but the benchmark has 3000"):
        pope.BENCHMARK.questions(pope_data)
    twice = pope_data / "pope/coco/coco_pope_popular.json"
    twice.write_text(twice.read_text().replace('"question_id": 2', '"question_id": 1'))
    with pytest.raises(DataError, match=r"popular\.json, line 2: '1' was there before"):
        uncounted(pope.BENCHMARK).questions(pope_data)
    twice.write_text(twice.read_text().replace('"label": "no"', '"label": "none"').replace('"question_id": 1', '"question_id": 3', 1))
    with pytest.raises(DataError, match="must be one of yes, no"):
        uncounted(pope.BENCHMARK).questions(pope_data)
    (pope_data / "pope/val2014/random.jpg").unlink()
    with pytest.raises(ImageError, match=r"random\.json, line 1: there is no picture 'random\.jpg'"):
        uncounted(pope.BENCHMARK).questions(pope_data)
    (pope_data / "pope/coco/coco_pope_random.json").unlink()
    with pytest.raises(DataError, match=r"coco_pope_random\.json is missing"):
        uncounted(pope.BENCHMARK).questions(pope_data)


# --- MME ----------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def mme_data(tmp_path: Path) -> Path:
    base = tmp_path / "mme" / "MME_Benchmark_release_version"
    for task, stems, texts, images in (
        ("existence", ("000001", "000002"), base / "existence", base / "existence"),
        ("celebrity", ("tt01", "tt02"), base / "celebrity/questions_answers_YN", base / "celebrity/images"),
        ("code_reasoning", ("0001",), base / "code_reasoning", base / "code_reasoning"),
    ):
        texts.mkdir(parents=True)
        for stem in stems:
            lines = (f"Is {task} {stem} this? Please answer yes or no.\tYes", f"Is {task} {stem} that?  Please answer yes or no.\tNo")
            (texts / f"{stem}.txt").write_text("\n".join(lines) + "\n")
        write_pictures(images, *(f"{stem}{'.png' if task == 'code_reasoning' else '.jpg'}" for stem in stems))
    return tmp_path


MME_REPLIES = {
    "existence/000001/1": "Yes",
    "existence/000001/2": "No.",  # both right
    "existence/000002/1": "It is not clear",  # "it i" is neither
    "existence/000002/2": "no",
    "celebrity/tt01/1": "yes",
    "celebrity/tt01/2": "Yes, it is",  # wrong
    "celebrity/tt02/1": "No",  # wrong, so the picture is wrong though the other reply is lost
    "celebrity/tt02/2": LOST,
    "code_reasoning/0001/1": "y",  # neither, officially; yes in lmms-eval
    "code_reasoning/0001/2": "no",
}


def test_mme_adds_up_points_of_questions_and_of_pictures(mme_data: Path):
    result, questions, _ = run(mme.BENCHMARK, mme_data, MME_REPLIES)
    third = round(100 / 3, 9)
    assert figures(result) == {
        "perception": round(125 + 100 / 3, 9),
        "perception/existence": 125.0,  # 3 of 4 questions, 1 of 2 pictures
        "perception/celebrity": third,  # 1 of 3 questions, no picture
        "cognition": 50.0,
        "cognition/code_reasoning": 50.0,
        "accuracy/existence": 75.0,
        "accuracy/celebrity": third,
        "accuracy/code_reasoning": 50.0,
        "accuracy plus/existence": 50.0,
        "accuracy plus/celebrity": 0.0,
        "accuracy plus/code_reasoning": 0.0,
        "unreadable": round(100 * 2 / 9, 9),
    }
    assert headline(result) == "perception"
    assert questions[0].conversation.messages[0].text == f"\nIs existence 000001 this?\n{SHORT}"
    assert questions[1].conversation.messages[0].text == f"\nIs existence 000001 that?\n{SHORT}"
    assert (questions[0].image_group, questions[0].image_group) == (questions[1].image_group, "existence/000001")


def test_a_picture_of_mme_with_a_wrong_answer_is_wrong_whatever_became_of_the_other(mme_data: Path):
    questions = uncounted(mme.BENCHMARK).questions(mme_data)[:4]

    def plus(*values: float | None) -> float:
        graded = [Graded(each, Reply("", "stop"), Score(value, "yes")) for each, value in zip(questions, values, strict=True)]
        return {metric.name: metric.value for metric in mme.summarise(graded, "llava")}["accuracy plus/existence"]

    assert (plus(1, 1, 0, None), plus(1, 1, 1, None), plus(1, 1, 1, 0)) == (50.0, 100.0, 50.0)


def test_mme_in_lmms_takes_a_lone_letter_and_officially_asks_as_the_files_do(mme_data: Path):
    result, _, _ = run(mme.BENCHMARK, mme_data, MME_REPLIES, protocol="lmms")
    assert figures(result)["cognition"] == 200.0
    _, questions, _ = run(mme.BENCHMARK, mme_data, MME_REPLIES, protocol="official")
    assert questions[0].conversation.messages[0].text == "\nIs existence 000001 this? Please answer yes or no."


def test_mmes_points_are_those_of_the_scorer_of_whole_files(mme_data: Path):
    replies = MME_REPLIES | {"celebrity/tt02/2": "no"}
    result, questions, _ = run(mme.BENCHMARK, mme_data, replies)
    rows = [
        {"category": each.category, "answer": each.answers[0], "prediction": replies[each.id], "image": each.image_group}
        for each in questions
    ]
    expected = mme.score(rows)
    assert figures(result)["perception"] == pytest.approx(expected.perception)
    assert figures(result)["cognition"] == pytest.approx(expected.cognition)


def test_mmes_files_are_refused_where_they_are_not_the_official_ones(mme_data: Path):
    base = mme_data / "mme/MME_Benchmark_release_version"
    with pytest.raises(DataError, match=r"existence: questions: 4, but the benchmark has 60"):
        mme.BENCHMARK.questions(mme_data)
    (base / "code_reasoning/0001.png").unlink()
    with pytest.raises(ImageError, match=r"0001\.txt, line 1: there is no picture"):
        uncounted(mme.BENCHMARK).questions(mme_data)
    (base / "celebrity/questions_answers_YN/tt02.txt").write_text("Is it?\tperhaps\nIs it not?\tno\n")
    with pytest.raises(DataError, match=r"tt02\.txt, line 1: 'answer' must be one of yes, no"):
        uncounted(mme.BENCHMARK).questions(mme_data)
    (base / "existence/000001.txt").write_text("Is it?\tYes\n")
    with pytest.raises(DataError, match=r"000001\.txt has 1 questions"):
        uncounted(mme.BENCHMARK).questions(mme_data)


def test_mme_has_as_many_questions_as_were_published():
    assert sum(mme.QUESTIONS.values()) == 2374
    assert tuple(mme.QUESTIONS) == mme.PERCEPTION + mme.COGNITION
