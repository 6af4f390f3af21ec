"""EmbSpatial-Bench, ColonINST and MMR from files in their official layouts to every figure, worked out by hand."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.eval.official_data import figures, headline, run, uncounted, write_json, write_pictures

from vistune.chat_model import ScriptedChatModel
from vistune.errors import DataError, ImageError, RemoteError
from vistune.eval.benchmarks import coloninst, embspatial, mmr
from vistune.eval.results import evaluate
from vistune.types import Conversation, Graded, Question, Reply, Score, TokenLogprob

LOST = RemoteError("the line is dead")
THIRD, TWO_THIRDS = round(100 / 3, 9), round(200 / 3, 9)


def in_base64(shade: int) -> str:
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (shade, 90, 120)).save(file, "JPEG")
    return base64.b64encode(file.getvalue()).decode()


# --- EmbSpatial-Bench ---------------------------------------------------------------------------------------------------------------------


def placed(number: int, answer: int, relation: str, source: str, scene: str = "s1") -> dict[str, Any]:
    options = [f"lamp {number}", f"sofa {number}", f"vase {number}", f"door {number}"]
    item = {"data_source": source, "scene_id": scene, "question_id": f"{source}_{number}", "question": f"Which is {relation} {number}?"}
    return item | {"relation": relation, "image": in_base64(number), "answer_options": options, "answer": answer, "objects": []}


@pytest.fixture
def rooms(tmp_path: Path) -> Path:
    items = [
        placed(1, 1, "close", "mp3d"),
        placed(2, 0, "far", "mp3d"),
        placed(3, 2, "left", "scannet"),
        placed(4, 3, "left", "scannet"),
        placed(5, 0, "under", "ai2thor"),
    ]
    write_json(tmp_path / "embspatial" / embspatial.FILE, items)
    return tmp_path


ROOM_REPLIES = {
    "mp3d_1": "(B) sofa 1",
    "mp3d_2": "lamp 2",  # the option's own text
    "scannet_3": "(a), or rather (C)",  # upper-case marks alone, or all
    "scannet_4": "Door 4",  # nearly the option's text: unreadable
    "ai2thor_5": LOST,
}


def test_embspatial_adds_up_by_relation_and_source(rooms: Path):
    result, questions, _ = run(embspatial.BENCHMARK, rooms, ROOM_REPLIES)
    assert figures(result) == {
        "accuracy": 75.0,
        **{"accuracy/close": 100.0, "accuracy/far": 100.0, "accuracy/left": 50.0},
        **{"accuracy/mp3d": 100.0, "accuracy/scannet": 50.0},
        "unreadable": 25.0,
    }
    assert headline(result) == "accuracy"
    text = questions[0].conversation.messages[0].text
    assert text == "\nWhich is close 1? Options: (A) lamp 1; (B) sofa 1; (C) vase 1; (D) door 1."
    assert questions[0].image_group == questions[1].image_group == "mp3d/s1"


@pytest.mark.parametrize(
    ("protocol", "accuracy", "unreadable", "prompt"),
    [
        ("reform_all", 50.0, 25.0, "\nWhich is close 1? Options: (A) lamp 1; (B) sofa 1; (C) vase 1; (D) door 1."),
        # b, l, a and d: the first letter, whatever it belongs to
        ("lmms", 50.0, 0.0, "\nAnswer with A, B, C or D only.\nWhich is close 1?\nA) lamp 1\nB) sofa 1\nC) vase 1\nD) door 1"),
        # the letter B; the texts lamp 2 and door 4, in any case; and C alone among the capitals
        ("vlmevalkit", 100.0, 0.0, "\nQuestion: Which is close 1?\nOptions:\nA: lamp 1\nB: sofa 1\nC: vase 1\nD: door 1\n"),
    ],
)
def test_embspatials_other_parsers_read_the_same_replies_in_their_ways(
    rooms: Path, protocol: str, accuracy: float, unreadable: float, prompt: str
):
    result, questions, _ = run(embspatial.BENCHMARK, rooms, ROOM_REPLIES, protocol=protocol)
    found = figures(result)
    assert (found["accuracy"], found["unreadable"]) == (accuracy, unreadable)
    assert questions[0].conversation.messages[0].text.startswith(prompt)


class Likely(ScriptedChatModel):
    """Finds the second option most probable, by a text that is longer and so has the lower sum."""

    async def logprobs(self, conversation: Conversation, continuations: Sequence[str]) -> list[list[TokenLogprob]]:
        return [[TokenLogprob("x", -1.0)], [TokenLogprob("y", -0.6), TokenLogprob("z", -0.6)], *([TokenLogprob("w", -9.0)] for _ in "ab")]


def test_embspatials_likelihood_takes_the_option_with_the_highest_mean(rooms: Path):
    asked = uncounted(embspatial.BENCHMARK)
    options: dict[str, Any] = {"model_name": "likely", "data": rooms, "protocol": "likelihood"}
    result, graded = asyncio.run(evaluate(Likely([]), asked, rooms / "out", **options))
    assert figures(result)["accuracy"] == 20.0
    assert [item.score.extracted for item in graded] == ["B"] * 5
    assert graded[0].question.conversation.messages[0].text == "\nWhich is close 1?"


def test_embspatials_file_is_refused_where_it_is_not_the_official_one(rooms: Path):
    path, load = rooms / "embspatial" / embspatial.FILE, uncounted(embspatial.BENCHMARK).questions
    with pytest.raises(DataError, match="questions: 5, but the benchmark has 3640"):
        embspatial.BENCHMARK.questions(rooms)
    good = placed(1, 1, "close", "mp3d")
    for items, complaint in (
        ([good, good], r"item 2: 'mp3d_1' was there before"),
        ([good | {"answer": 4}], "index of one of 4 choices"),
        ([good | {"relation": "near"}], "'relation' must be one of close"),
        ([good | {"image": "x"}], "'image' is not base64"),
        ([good | {"question": ["a", "b"]}], "'question' must be text"),  # the file for tuning
        ({"0": good}, "must be a list of objects"),
    ):
        write_json(path, items)
        with pytest.raises(DataError, match=complaint):
            load(rooms)


# --- ColonINST ----------------------------------------------------------------------------------------------------------------------------


def dialogue(picture: str, request: str, answer: str) -> dict[str, Any]:
    turns = [{"from": "human", "value": f"<image>\n{request}"}, {"from": "gpt", "value": answer}]
    return {"id": f"Set/{picture}.jpg", "image": f"{picture}.jpg", "conversations": turns}


def colon_rows(split: str) -> dict[str, list[dict[str, Any]]]:
    return {
        "cls": [dialogue("p1", f"Categorize {split} 1.", "Polyp"), dialogue("p2", f"Categorize {split} 2.", "ulcer")],
        "reg": [dialogue("p1", f"What is {{<1><2><3><4>}} {split}?", "adenoma")],
        "rec": [
            dialogue("p1", f"Where is the polyp {split}?", "{<0><0><9><9>}"),
            dialogue("p2", f"Where is the ulcer {split}?", "{<10><10><19><19>}"),
        ],
    }


@pytest.fixture
def colon(tmp_path: Path) -> Path:
    root = tmp_path / "coloninst"
    for split in ("val", "test"):
        for task, rows in colon_rows(split).items():
            write_json(root / f"Json-file/{split}/ColonINST-{split}-{task}.json", rows)
    write_pictures(root / "Positive-images/Set", "p1.jpg", "p2.jpg")
    return tmp_path


COLON_REPLIES = {
    "val-cls-0": "polyp<|endoftext|>",
    "val-cls-1": "Ulcer.",  # a full stop is wrong
    "val-reg-0": " Adenoma\n",
    "val-rec-0": "{<0><0><9><9>}",  # 1
    "val-rec-1": "somewhere on the left",  # no box: 0
    "test-cls-0": "adenoma",
    "test-cls-1": LOST,
    "test-reg-0": "polyp",
    "test-rec-0": "{<0><0><9><4>}",  # 50 of 100 pixels: not above a half
    "test-rec-1": "{<10><10><19><17>}",  # 80 of 100
}


def test_coloninst_has_the_columns_of_the_published_table(colon: Path):
    result, questions, model = run(coloninst.BENCHMARK, colon, COLON_REPLIES)
    assert figures(result) == {
        "CLS accuracy/seen": 50.0,
        "REG accuracy/seen": 100.0,
        **{"REC IoU/seen": 50.0, "REC precision/seen": 50.0, "REC recall/seen": 12.5},
        "CLS accuracy/unseen": 0.0,
        "REG accuracy/unseen": 0.0,
        **{"REC IoU/unseen": 65.0, "REC precision/unseen": 50.0, "REC recall/unseen": 12.5},
    }
    assert headline(result) == "CLS accuracy/unseen"
    assert questions[0].conversation.messages[0].text == "\nCategorize val 1."
    assert model.calls[0][1].max_new_tokens == 40
    assert questions[0].image_group == "Set/p1.jpg"


def test_coloninst_may_be_asked_for_one_split(colon: Path):
    replies = {id: reply for id, reply in COLON_REPLIES.items() if id.startswith("val")}
    result, _, _ = run(coloninst.BENCHMARK, colon, replies, protocol="seen")
    assert headline(result) == "CLS accuracy/seen"
    assert not any("unseen" in name for name in figures(result))


def test_coloninsts_files_are_refused_where_they_are_not_the_official_ones(colon: Path):
    path, load = colon / "coloninst/Json-file/val/ColonINST-val-rec.json", uncounted(coloninst.BENCHMARK).questions
    with pytest.raises(DataError, match="dialogues: 2, but the benchmark has 8929"):
        coloninst.BENCHMARK.questions(colon)
    good = dialogue("p1", "Where?", "{<0><0><9><9>}")
    predicted = good | {"conversations": [*good["conversations"], {"from": "prediction", "value": "x"}]}
    for row, complaint in (
        (predicted, "one turn of 'human' and one of 'gpt'"),
        (dialogue("p1", "Where?", "{<0><0><9>}"), "must be a box"),
        (dialogue("p1", "Where is <image>?", "{<0><0><9><9>}"), "hold <image> once"),
        (dialogue("p3", "Where?", "{<0><0><9><9>}"), "there is no picture"),
        (dialogue("../../p1", "Where?", "{<0><0><9><9>}"), "would be outside"),
    ):
        write_json(path, [row])
        with pytest.raises(DataError, match=complaint):
            load(colon)


# --- MMR ----------------------------------------------------------------------------------------------------------------------------------

BOX = "[0.1, 0.1, 0.5, 0.5]"


def mmr_row(task: str, number: int, answer: str) -> dict[str, Any]:
    return {"img_id": number, "image": in_base64(number), "Question": f"What of {task} {number}?", "Answer": answer, "task": task}


def write_mmr(root: Path, rows: list[dict[str, Any]], split: str = "test") -> None:
    import pyarrow
    from pyarrow import parquet

    data = root / "mmr/data"
    data.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), data / f"{split}-00000-of-00001.parquet")


def test_mmr_adds_up_twelve_columns(tmp_path: Path):
    rows = [
        *(mmr_row("font_size", number, "2") for number in (1, 2, 3)),
        *(mmr_row("recognition_label", number, '"Exit 7"') for number in (1, 2)),
        *(mmr_row("grounding_o", number, BOX) for number in (1, 2)),
        *(mmr_row("grounding_t", number, json.dumps(["Stop", json.loads(BOX)])) for number in (1, 2, 3)),
    ]
    write_mmr(tmp_path, rows)
    replies = {
        "font_size-0": "2. the larger",
        "font_size-1": "the first, 1",
        "font_size-2": LOST,
        "recognition_label-0": 'It says "EXIT 7"',
        "recognition_label-1": "Entrance",
        "grounding_o-0": '"[0.1, 0.1, 0.5, 0.4]"',
        "grounding_o-1": "The box is [0.1, 0.1, 0.5, 0.5]",  # prose around it
        "grounding_t-0": '"Stop", [0.1, 0.1, 0.5, 0.5]',  # both
        "grounding_t-1": '"Stop", [0.6, 0.6, 0.9, 0.9]',  # the text alone
        "grounding_t-2": "I cannot read it.",
    }
    result, questions, model = run(mmr.BENCHMARK, tmp_path, replies)
    assert figures(result) == {
        "total": 6.0,
        **{"total/font_size": 1, "total/recognition_label": 1, "total/grounding_o": 1},
        **{"total/grounding_t_text": 2, "total/grounding_t_box": 1},
    }
    assert headline(result) == "total"
    assert result.bounds == (6.0, 7.0)
    assert questions[0].conversation.messages[0].text == f"\nWhat of font_size 1?\n{mmr.REQUESTS['mcq']}"
    assert model.calls[0][1].max_new_tokens == 200


def test_mmr_asks_the_first_fifty_of_each_task_from_either_split(tmp_path: Path):
    write_mmr(tmp_path, [mmr_row("font_color", number, "1") for number in range(52)], split="train")
    questions = uncounted(mmr.BENCHMARK).questions(tmp_path)
    assert len(questions) == 50
    assert questions[-1].image_group == "49"


def test_an_answer_that_mmr_itself_gives_hits_every_column():
    for task in mmr.TASKS:
        answer = {"mcq": "3", "recognition": '"EXIT"', "grounding_o": BOX}.get(mmr.TASKS[task], json.dumps(["Stop", json.loads(BOX)]))
        assert all(mmr.hits_of(task, answer, answer))


def test_mmr_adds_the_printed_columns_of_llava_next_34b_up_to_412():
    printed = dict(zip(mmr.TASKS, (42, 39, 39, 39, 28, 31, 46, 39, 27, 40), strict=False)) | {"grounding_t": 37}
    texts_alone, gold = 37 - 5, json.dumps(["Stop", json.loads(BOX)])
    graded = []
    for task, hits in printed.items():
        right = {"mcq": "3", "recognition": "EXIT", "grounding_o": BOX}.get(mmr.TASKS[task], gold)
        for number in range(mmr.ITEMS_PER_TASK):
            extracted = right if number < hits else mmr.ERROR
            if task == "grounding_t" and number < texts_alone:
                extracted = json.dumps(["Stop", [0.8, 0.8, 0.9, 0.9]])
            question = Question(f"{task}-{number}", Conversation(()), answers=(right,), category=task)
            graded.append(Graded(question, Reply("", "stop"), Score(0.0, extracted=extracted)))
    found = {metric.name: metric.value for metric in mmr.summarise(graded, "official")}
    assert found["total"] == 412
    assert (found["total/grounding_t_text"], found["total/grounding_t_box"]) == (37, 5)


def test_mmrs_shards_are_refused_where_they_are_not_the_official_ones(tmp_path: Path):
    for row, complaint in (
        (mmr_row("font_size", 1, "2"), "questions of font_size: 1, but the benchmark has 50"),
        (mmr_row("font_size", 1, "two"), "'Answer' must be the number of a choice"),
        (mmr_row("fonts", 1, "2"), "'task' must be one of font_size"),
        (mmr_row("grounding_o", 1, "[1, 2]"), "the answer of grounding_o cannot be scored"),
        (mmr_row("grounding_t", 1, BOX), "the answer of grounding_t cannot be scored"),
    ):
        write_mmr(tmp_path, [row])
        with pytest.raises(DataError, match=complaint):
            mmr.BENCHMARK.questions(tmp_path)
    write_mmr(tmp_path, [mmr_row("font_size", 1, "2") | {"image": "!"}])
    with pytest.raises(ImageError, match="row 1: 'image' is not base64"):
        mmr.BENCHMARK.questions(tmp_path)
