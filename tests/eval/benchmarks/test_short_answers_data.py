"""TextVQA, VQAv2, GQA, VizWiz, ChartQA and DocVQA from files in their official layouts to every figure, worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.eval.official_data import figures, headline, run, uncounted, write_json, write_lines, write_pictures

from vistune.errors import DataError, ImageError, RemoteError
from vistune.eval.benchmarks import chartqa, docvqa, gqa, textvqa, vizwiz, vqa

SHORT = "Answer the question using a single word or phrase."
LOST = RemoteError("the line is dead")


def ten(*answers: str) -> list[dict[str, Any]]:
    """Ten annotators: the answers in turn."""
    return [{"answer": answers[number % len(answers)], "answer_confidence": "yes", "answer_id": number + 1} for number in range(10)]


def edit(path: Path, change: Any) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


# --- VQAv2 --------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def vqav2(tmp_path: Path) -> Path:
    items = [(1, 7, "Is it red?", "yes/no", "is it", ten("yes")), (2, 7, "How many?", "number", "how many", ten("2", "3"))]
    items += [(3, 9, "What is it?", "other", "what is", ten("cat", "dog", "cat", "cat", "a cat"))]
    items += [(4, 9, "Is it big?", "yes/no", "is it", ten("yes", "no")), (5, 9, "Lost?", "other", "none of the above", ten("x"))]
    root = tmp_path / "vqav2"
    questions = [{"question_id": name, "image_id": image, "question": text} for name, image, text, *_ in items]
    annotations = [
        {"question_id": name, "image_id": image, "answer_type": kind, "question_type": opening, "answers": answers}
        for name, image, _, kind, opening, answers in items
    ]
    write_json(root / vqa.QUESTIONS_FILE, {"questions": questions})
    write_json(root / vqa.ANNOTATIONS_FILE, {"annotations": annotations})
    write_pictures(root / "val2014", "COCO_val2014_000000000007.jpg", "COCO_val2014_000000000009.jpg")
    return tmp_path


def test_vqav2_adds_up_by_answer_type_and_question_type(vqav2: Path):
    # 1: all wrote "yes", so nothing is normalised and "Yes." is wrong. 2: "two" is "2", which five wrote: 1. 3: six wrote "cat" and two
    # "a cat", which is the same: 1. 4: prose: 0. 5: no reply.
    replies = {"1": "Yes.", "2": "two", "3": "The cat.", "4": "It may be big.", "5": LOST}
    result, questions, model = run(vqa.BENCHMARK, vqav2, replies)
    assert figures(result) == {
        "accuracy": 50.0,
        "accuracy/number": 100.0,
        "accuracy/other": 100.0,
        "accuracy/yes/no": 0.0,
        "accuracy by question/how many": 100.0,
        "accuracy by question/is it": 0.0,
        "accuracy by question/what is": 100.0,
    }
    assert (result.n, result.n_unscored, headline(result), result.bounds) == (5, 1, "accuracy", (40.0, 60.0))
    assert model.calls[0][0].messages[0].text == f"\nIs it red?\n{SHORT}"
    assert [question.image_group for question in questions] == ["COCO_val2014_000000000007.jpg"] * 2 + ["COCO_val2014_000000000009.jpg"] * 3


def test_vqav2_with_m4c_normalises_always(vqav2: Path):
    replies = {"1": "Yes.", "2": "2 or 3", "3": "dog", "4": "no", "5": "x"}
    result, *_ = run(vqa.BENCHMARK, vqav2, replies, protocol="m4c")
    # dog: two of ten, so the eight others give 2/3 and each of the two 1/3
    assert figures(result)["accuracy"] == round(100 * (1 + 0 + (8 * 2 / 3 + 2 * 1 / 3) / 10 + 1 + 1) / 5, 9)


# --- VizWiz -------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def vizwiz_root(tmp_path: Path) -> Path:
    rows = [
        {"image": "a.jpg", "question": "What is this?", "answers": ten("unanswerable"), "answer_type": "unanswerable", "answerable": 0},
        {"image": "b.jpg", "question": "Which colour?", "answers": ten("blue", "navy"), "answer_type": "other", "answerable": 1},
        {"image": "c.jpg", "question": "And this?", "answers": ten("soup can"), "answer_type": "other", "answerable": 1},
    ]
    write_json(tmp_path / "vizwiz/val.json", rows)
    write_pictures(tmp_path / "vizwiz/val", "a.jpg", "b.jpg", "c.jpg")
    return tmp_path


def test_vizwiz_asks_for_unanswerable_and_takes_it(vizwiz_root: Path):
    result, _, model = run(vizwiz.BENCHMARK, vizwiz_root, {"a.jpg": "Unanswerable.", "b.jpg": "Blue", "c.jpg": "a tin of something"})
    assert figures(result) == {"accuracy": round(200 / 3, 9), "accuracy/other": 50.0, "accuracy/unanswerable": 100.0}
    assert model.calls[0][0].messages[0].text == (
        f"\nWhat is this?\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n{SHORT}"
    )


# --- TextVQA ------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def textvqa_root(tmp_path: Path) -> Path:
    root = tmp_path / "textvqa"
    annotations = [
        {"question_id": 34602, "image_id": "p1", "question": "What Brand is it?", "answers": ["nokia"] * 8 + ["n", "dakota"]},
        {"question_id": 34603, "image_id": "p2", "question": "which year?", "answers": ["1,984"] * 10},
        {"question_id": 34604, "image_id": "p2", "question": "who?", "answers": ["orwell", "eric"] * 5},
    ]
    prompts = [
        {
            "question_id": row["image_id"],
            "image": f"{row['image_id']}.jpg",
            "text": f"{row['question']}\nReference OCR token: NO, KIA\n{SHORT}",
        }
        for row in annotations
    ]
    write_json(root / textvqa.ANNOTATIONS_FILE, {"dataset_type": "val", "data": annotations})
    write_lines(root / textvqa.PROMPTS_FILE, prompts)
    write_pictures(root / "train_images", "p1.jpg", "p2.jpg")
    return tmp_path


def test_textvqa_asks_llavas_prompts_and_joins_them_to_the_annotations(textvqa_root: Path):
    # "n": one annotator of ten: nine others see 1/3. "1984": all ten. The last is not there.
    result, _, model = run(textvqa.BENCHMARK, textvqa_root, {"p1-0": "n", "p2-1": "1984", "p2-2": LOST})
    assert figures(result) == {"accuracy": round(100 * (0.3 + 1) / 2, 9)}
    assert (result.n, result.n_unscored) == (3, 1)
    assert model.calls[0][0].messages[0].text == f"\nWhat Brand is it?\nReference OCR token: NO, KIA\n{SHORT}"


def test_textvqa_as_lmms_asks_without_ocr_tokens(textvqa_root: Path):
    result, _, model = run(textvqa.BENCHMARK, textvqa_root, {"34602": "Nokia.", "34603": "", "34604": "eric"}, protocol="lmms")
    assert figures(result) == {"accuracy": round(200 / 3, 9)}
    assert model.calls[0][0].messages[0].text == f"\nWhat brand is it?\n{SHORT}"


def test_a_textvqa_prompt_that_asks_something_else_is_an_error(textvqa_root: Path):
    lines = (textvqa_root / "textvqa" / textvqa.PROMPTS_FILE).read_text()
    (textvqa_root / "textvqa" / textvqa.PROMPTS_FILE).write_text(lines.replace("which year", "which month"))
    with pytest.raises(DataError, match=r"llava_textvqa_val_v051_ocr\.jsonl, line 2.*which month"):
        uncounted(textvqa.BENCHMARK).questions(textvqa_root)
    (textvqa_root / "textvqa" / textvqa.PROMPTS_FILE).write_text(lines.replace("\\nReference OCR token: NO, KIA", "").replace("\\n", " "))
    with pytest.raises(DataError, match="line 1: No TextVQA question"):
        uncounted(textvqa.BENCHMARK).questions(textvqa_root)


# --- GQA ----------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def gqa_root(tmp_path: Path) -> Path:
    def question(text: str, answer: str, image: str, structural: str, semantic: str, group: str | None, balanced: bool = True) -> Any:
        types = {"structural": structural, "semantic": semantic, "detailed": "x"}
        return {
            "question": text, "answer": answer, "imageId": image, "isBalanced": balanced, "types": types,
            "groups": {"global": group, "local": None},
        }  # fmt: skip

    rows = {
        "201": question("Is it red?", "yes", "n1", "verify", "attr", None),
        "202": question("What is it?", "cat", "n1", "query", "obj", "animal"),
        "203": question("Who is it?", "dog", "n2", "query", "obj", "animal"),
        "204": question("Red or blue?", "blue", "n2", "choose", "attr", "colour"),
        "205": question("Not asked?", "no", "n2", "verify", "attr", None, balanced=False),
        "206": question("Is it lost?", "no", "n2", "verify", "attr", None),
    }
    write_json(tmp_path / "gqa" / gqa.FILE, rows)
    write_pictures(tmp_path / "gqa/images", "n1.jpg", "n2.jpg")
    return tmp_path


def test_gqa_adds_up_as_eval_py_without_what_has_no_reply(gqa_root: Path):
    result, *_ = run(gqa.BENCHMARK, gqa_root, {"201": "Yes.", "202": "cat", "203": "cat", "204": "the blue one", "206": LOST})
    # distribution: animal (2 items): cat (2-1)²/1 + dog (0-1)²/1 = 2; colour (1 item): blue (0-1)²/1 = 1; (2·2 + 1·1) / 3 / 100
    assert figures(result) == {
        "accuracy": 50.0,
        "binary": 50.0,
        "open": 50.0,
        "distribution": round(5 / 300, 9),
        "structural/choose": 0.0,
        "structural/query": 50.0,
        "structural/verify": 100.0,
        "semantic/attr": 50.0,
        "semantic/obj": 50.0,
    }
    assert (result.n, result.n_unscored, result.bounds) == (5, 1, (40.0, 60.0))


def test_gqa_as_lmms_forgives_case_and_punctuation(gqa_root: Path):
    replies = {"201": "Yes!", "202": "Cat", "203": "a dog", "204": "(blue)", "206": "No."}
    assert figures(run(gqa.BENCHMARK, gqa_root, replies, protocol="lmms")[0])["accuracy"] == 80.0
    assert figures(run(gqa.BENCHMARK, gqa_root, replies)[0])["accuracy"] == 40.0  # Cat and No. only


# --- ChartQA ------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def chartqa_root(tmp_path: Path) -> Path:
    human = [{"imgname": "1.png", "query": "How much?", "label": "100"}, {"imgname": "1.png", "query": "Which?", "label": "Peru"}]
    augmented = [{"imgname": "2.png", "query": "What share?", "label": "0.31"}, {"imgname": "2.png", "query": "When?", "label": "2001"}]
    write_json(tmp_path / "chartqa/test/test_human.json", human)
    write_json(tmp_path / "chartqa/test/test_augmented.json", augmented)
    write_pictures(tmp_path / "chartqa/test/png", "1.png", "2.png")
    return tmp_path


def test_chartqa_forgives_a_twentieth_and_no_more(chartqa_root: Path):
    replies = {"human-0": "105", "human-1": "It is Peru", "augmented-0": "31%", "augmented-1": "about 2001"}
    result, _, model = run(chartqa.BENCHMARK, chartqa_root, replies)
    assert figures(result) == {"relaxed accuracy": 50.0, "relaxed accuracy/augmented": 50.0, "relaxed accuracy/human": 50.0}
    assert model.calls[0][0].messages[0].text == "\nHow much?\nAnswer the question with a single word."


# --- DocVQA -------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def docvqa_root(tmp_path: Path) -> Path:
    def row(name: int, text: str, answers: list[str], kinds: list[str]) -> Any:
        image = f"documents/page_{name % 2}.png"
        return {"questionId": name, "question": text, "answers": answers, "question_types": kinds, "image": image, "data_split": "val"}

    rows = [row(1, "Who signs?", ["John Smith"], ["handwritten", "form"]), row(2, "When?", ["1972", "in 1972"], ["form"])]
    rows += [row(3, "Where?", ["Rome"], ["layout"])]
    write_json(tmp_path / "docvqa" / docvqa.FILE, {"dataset_split": "val", "data": rows})
    write_pictures(tmp_path / "docvqa" / docvqa.IMAGES, "page_0.png", "page_1.png")
    return tmp_path


def test_docvqa_gives_part_of_the_score_for_a_near_answer(docvqa_root: Path):
    result, *_ = run(docvqa.BENCHMARK, docvqa_root, {"1": "Jon Smith", "2": "IN 1972", "3": "the city of Milan"})
    near = 100 * (1 - 1 / 10)  # one letter of ten is missing
    assert figures(result) == {
        "ANLS": round((near + 100) / 3, 9),
        "ANLS/form": round((near + 100) / 2, 9),
        "ANLS/handwritten": near,
        "ANLS/layout": 0.0,
    }


# --- wrong data, all of them --------------------------------------------------------------------------------------------------------------

ALL = {
    "vqav2": (vqa.BENCHMARK, "vqav2", vqa.ANNOTATIONS_FILE, "val2014/COCO_val2014_000000000009.jpg"),
    "vizwiz": (vizwiz.BENCHMARK, "vizwiz_root", "val.json", "val/b.jpg"),
    "textvqa": (textvqa.BENCHMARK, "textvqa_root", textvqa.PROMPTS_FILE, "train_images/p2.jpg"),
    "gqa": (gqa.BENCHMARK, "gqa_root", gqa.FILE, "images/n2.jpg"),
    "chartqa": (chartqa.BENCHMARK, "chartqa_root", "test/test_human.json", "test/png/2.png"),
    "docvqa": (docvqa.BENCHMARK, "docvqa_root", docvqa.FILE, "spdocvqa_images/page_1.png"),
}


@pytest.mark.parametrize("name", ALL)
def test_a_missing_file_a_missing_picture_and_a_wrong_number_of_questions_are_named(name: str, request: pytest.FixtureRequest):
    benchmark, fixture, file, picture = ALL[name]
    root: Path = request.getfixturevalue(fixture)
    with pytest.raises(DataError, match=r"but the benchmark has \d+"):
        benchmark.questions(root)
    (root / name / picture).rename(root / "away.png")
    with pytest.raises(ImageError, match=Path(picture).name):
        uncounted(benchmark).questions(root)
    (root / "away.png").rename(root / name / picture)
    (root / name / file).unlink()
    with pytest.raises(DataError, match=f"{Path(file).name} is missing"):
        uncounted(benchmark).questions(root)


def repeat_first(rows: list[Any]) -> None:
    rows.append(rows[0])


@pytest.mark.parametrize(
    ("name", "file", "change", "says"),
    [
        ("vqav2", vqa.QUESTIONS_FILE, lambda found: repeat_first(found["questions"]), "was there before"),
        ("vqav2", vqa.ANNOTATIONS_FILE, lambda found: found["annotations"].pop(), "1 of 5 are not in it.*same split"),
        ("vqav2", vqa.ANNOTATIONS_FILE, lambda found: found["annotations"][0]["answers"].pop(), "10 answers"),
        ("vizwiz", "val.json", repeat_first, "was there before"),
        ("vizwiz", "val.json", lambda found: found[1].update(answers=[]), "not public"),
        ("textvqa", textvqa.ANNOTATIONS_FILE, lambda found: repeat_first(found["data"]), "was there before"),
        ("textvqa", textvqa.ANNOTATIONS_FILE, lambda found: found["data"].pop(), "3, but the benchmark has 2"),
        ("gqa", gqa.FILE, lambda found: found["201"].update(types={}), "structural"),
        ("chartqa", "test/test_human.json", lambda found: found[0].pop("label"), "no 'label'"),
        ("docvqa", docvqa.FILE, lambda found: repeat_first(found["data"]), "was there before"),
        ("docvqa", docvqa.FILE, lambda found: found["data"][1].update(data_split="test"), "one of val"),
    ],
)
def test_wrong_records_are_named_with_their_place(name: str, file: str, change: Any, says: str, request: pytest.FixtureRequest):
    benchmark, fixture, *_ = ALL[name]
    root: Path = request.getfixturevalue(fixture)
    edit(root / name / file, change)
    with pytest.raises(DataError, match=says):
        uncounted(benchmark).questions(root)
