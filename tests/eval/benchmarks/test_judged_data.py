"""LLaVA-Bench, BenchLMM and MM-Vet from files in their official layouts, through a scripted model and a scripted judge, to every figure."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.eval.official_data import figures, headline, run, uncounted, words, write_json, write_lines, write_pictures
from tests.test_chat_model import Server

from vistune.calls import CallLimits, Calls
from vistune.chat_model import OpenAIChatModel, ScriptedChatModel
from vistune.errors import DataError, ImageError, RemoteError
from vistune.eval.benchmark import Benchmark
from vistune.eval.benchmarks import benchlmm, llava_bench, mm_vet
from vistune.eval.judge import Judge
from vistune.eval.results import BenchmarkResult, evaluate
from vistune.types import Question, Reply, SamplingParams

# --- LLaVA-Bench ----------------------------------------------------------------------------------------------------------------


def write_wild(root: Path) -> Path:
    kinds = ["conv", "detail", "complex", "complex"]
    folder = root / "llava-bench-wild"
    rows = [{"question_id": n, "image": f"00{n // 2}.jpg", "text": f"Question {n}?", "category": kind} for n, kind in enumerate(kinds)]
    write_lines(folder / "questions.jsonl", rows)
    write_lines(folder / "context.jsonl", [{"image": "000.jpg", "caption": "A dog."}, {"image": "001.jpg", "caption": ["A.", "B."]}])
    write_lines(folder / "answers_gpt4.jsonl", [{"question_id": n, "text": f"reference {n}"} for n in range(4)])
    write_pictures(folder / "images", "000.jpg", "001.jpg")
    return root


REPLIES = {str(n): f"candidate {n}" for n in range(4)}


def ratings(text: str) -> str:
    reviews = {"0": "8 6\nThe first says more.", "1": "10,5\n...", "2": "The first answer is better.", "3": "9 9"}
    found = re.search(r"candidate (\d)", text)
    assert found
    return reviews[found[1]]


def test_relative_scores_are_ratios_of_means_and_a_review_without_ratings_is_in_none(tmp_path: Path):
    result, *_ = run(llava_bench.WILD, write_wild(tmp_path), REPLIES, judge=ratings)
    assert figures(result) == {
        "relative score": 74.1,  # means of (8, 6), (10, 5), (9, 9): 9.0 and 6.667
        "reference x 10": 90.0,
        "candidate x 10": 66.7,
        "relative score/conv": 75.0,
        "reference x 10/conv": 80.0,
        "candidate x 10/conv": 60.0,
        "relative score/detail": 50.0,
        "reference x 10/detail": 100.0,
        "candidate x 10/detail": 50.0,
        "relative score/complex": 100.0,
        "reference x 10/complex": 90.0,
        "candidate x 10/complex": 90.0,
    }
    assert (result.n, result.n_unscored, headline(result), result.judge) == (4, 1, "relative score", "scripted")
    assert result.bounds == (56.8, 107.1)  # the lost one (10, 1): 9.25 and 5.25; or (1, 10): 7.0 and 7.5


def test_a_judge_that_likes_what_comes_first_likes_both_alike_when_orders_are_swapped(tmp_path: Path):
    root = write_wild(tmp_path)
    assert figures(run(llava_bench.WILD, root, REPLIES, judge=lambda text: "9 6")[0])["relative score"] == 66.7
    swapped = figures(run(llava_bench.WILD, root, REPLIES, judge=lambda text: "9 6", protocol="swap")[0])
    assert (swapped["relative score"], swapped["reference x 10"], swapped["candidate x 10"]) == (100.0, 75.0, 75.0)


def test_a_swapped_pair_without_one_of_its_reviews_has_no_score(tmp_path: Path):
    def judge(text: str) -> str:
        lost = "candidate 1" in text and text.index("candidate") < text.index("reference")
        return "I cannot say." if lost else "9 6"

    result, *_ = run(llava_bench.WILD, write_wild(tmp_path), REPLIES, judge=judge, protocol="swap")
    assert (result.n, result.n_unscored, figures(result).get("relative score/detail")) == (4, 1, None)


@pytest.mark.parametrize(
    "review", ["", "nan 8", "8 nan", "11 8", "8 11", "0 5", "5 0", "8", "8 7 6", "8  7", "Scores: 8 7", "inf 5", "-1 -1", "8/10 7/10"]
)
def test_a_review_that_is_not_two_ratings_is_no_score(review: str):
    assert llava_bench.read_review(review, Question("1", None), "llava").value is None  # type: ignore[arg-type]


def test_the_judge_sees_context_question_both_answers_and_the_rule(tmp_path: Path):
    root = write_wild(tmp_path)
    question = uncounted(llava_bench.WILD).questions(root)[3]
    (request,) = llava_bench.ask(question, Reply("mine", "stop"), "llava")
    assert request.messages[1].text == (
        "[Context]\nA.\nB.\n\n[Question]\nQuestion 3?\n\n[Assistant 1]\nreference 3\n\n[End of Assistant 1]\n\n"
        f"[Assistant 2]\nmine\n\n[End of Assistant 2]\n\n[System]\n{llava_bench.OWN_RULE}\n\n"
    )
    rules = {f"llava_bench_{kind}": {"role": "Assistant", "prompt": f"The rule of {kind}."} for kind in llava_bench.CATEGORIES}
    write_json(root / "llava-bench-wild/rule.json", rules)
    question = uncounted(llava_bench.WILD).questions(root)[3]
    (request,) = llava_bench.ask(question, Reply("mine", "stop"), "llava")
    assert request.messages[1].text.endswith("[System]\nThe rule of complex.\n\n")
    assert question.facts["rule_from"] == "rule.json"


def write_coco(root: Path) -> Path:
    folder = root / "llava-bench-coco"
    rows = [{"question_id": n, "image": "07.jpg", "text": f"Question {n}?", "category": llava_bench.CATEGORIES[n]} for n in range(3)]
    context = {
        "id": 1,
        "image": "07.jpg",
        "captions": ["A cup.", "Tea."],
        "instances": [{"category": "cup", "bbox": [0.1, 0.25, 0.5, 1.0]}],
    }
    write_lines(folder / "qa90_questions.jsonl", rows)
    write_lines(folder / "caps_boxes_coco2014_val_80.jsonl", [context])
    write_lines(folder / "qa90_gpt4_answer.jsonl", [{"question_id": n, "text": f"reference {n}"} for n in range(3)])
    write_pictures(folder / "val2014", "COCO_val2014_07.jpg")
    return root


def test_of_coco_the_judge_sees_captions_and_boxes(tmp_path: Path):
    root = write_coco(tmp_path)
    shown = []

    def judge(text: str) -> str:
        shown.append(text)
        return "10 8"

    result, _, model = run(llava_bench.COCO, root, {str(n): f"candidate {n}" for n in range(3)}, judge=judge)
    assert all(text.startswith("[Context]\nA cup.\nTea.\n\ncup: [0.1, 0.25, 0.5, 1.0]\n\n[Question]\nQuestion ") for text in shown)
    assert figures(result)["relative score"] == 80.0
    assert str(model.calls[0][0].images[0].source).endswith("COCO_val2014_07.jpg")


def test_wrong_llava_bench_files_are_named(tmp_path: Path):
    root = write_wild(tmp_path)
    folder = root / "llava-bench-wild"
    with pytest.raises(DataError, match="4, but the benchmark has 60"):
        llava_bench.WILD.questions(root)
    whole = (folder / "answers_gpt4.jsonl").read_text()
    (folder / "answers_gpt4.jsonl").write_text(whole.partition("\n")[2])
    with pytest.raises(DataError, match=r"answers_gpt4\.jsonl does not belong to the questions: 1 of 4"):
        uncounted(llava_bench.WILD).questions(root)
    (folder / "answers_gpt4.jsonl").write_text(whole)
    write_lines(folder / "context.jsonl", [{"image": "000.jpg", "caption": "A dog."}])
    with pytest.raises(DataError, match=r"line 3: there is no context of picture '001\.jpg'"):
        uncounted(llava_bench.WILD).questions(root)
    write_json(folder / "rule.json", {"conv": {"prompt": "x"}})
    with pytest.raises(DataError, match="no rule 'llava_bench_conv'"):
        uncounted(llava_bench.WILD).questions(root)


# --- BenchLMM -------------------------------------------------------------------------------------------------------------------

VERDICTS = {
    "style_cartoon-0": "0.5", "style_handmake-0": "1", "style_painting-0": "Score: 0.0", "style_sketch-0": "0.5", "style_tattoo-0": "0.5",
    "infrard-0": "0.2", "xray-0": "0.4", "Med-X-RAY-0": "0.6", "MRI-0": "0.8", "CT-0": "1.0",
    "RS-0": "0.3", "AD-0": "0.7", "Robots-0": "it goes left\naction score: 1", "game-0": "it waits\naction score: 0",
    "defect_detection-0": "0.5",
    "style_cartoon-1": "0.5 or 1.0", "game-1": "it may\naction score: 2",
}  # fmt: skip


def write_benchlmm(root: Path) -> Path:
    folder = root / "benchlmm"
    more = {"style_cartoon", "xray", "game", "RS"}
    for style in (style for styles in benchlmm.GROUPS.values() for style in styles):
        place = benchlmm._FOLDERS.get(style, "style" if style.startswith("style_") else style)
        rows = [
            {"question_id": n, "image": f"{style}.png", "text": f"{style} question {n}?", "answer": f"gold {style}"}
            for n in range(1 + (style in more))
        ]
        write_lines(folder / f"jsonl/Benchmark_{style}.jsonl", rows)
        write_pictures(folder / "images" / place, f"{style}.png")
        if style in benchlmm.ACTIONS:
            meta = [{"index": row["question_id"], "actions": ["go left", "wait"], "answer_index": 0, "domain": "x"} for row in rows]
            write_json(folder / f"jsonl/{style}_meta_data.json", meta)
    return root


def benchlmm_replies(root: Path) -> dict[str, Any]:
    return {question.id: f"reply {question.id.replace('/', '-')}" for question in uncounted(benchlmm.BENCHMARK).questions(root)}


def test_benchlmm_is_a_mean_of_groups_of_styles(tmp_path: Path):
    tries: Counter[str] = Counter()

    def judge(text: str) -> str:
        (key,) = re.findall(r"reply (\S+-\d)", text)
        tries[key] += 1
        if key == "RS-1":
            return "0.5" if tries[key] == 2 else "It is half right."
        return VERDICTS[key]

    root = write_benchlmm(tmp_path)
    result, *_ = run(benchlmm.BENCHMARK, root, benchlmm_replies(root) | {"xray/1": " "}, judge=judge)
    assert figures(result) == {
        "mean of groups": 54.0,  # (50 + 60 + 52) / 3
        "group/artistic": 50.0,
        "group/sensor": 60.0,
        "group/application": 52.0,  # RS 40, AD 70, Robots 100, game 0, defects 50
        "score/style_cartoon": 50.0, "score/style_handmake": 100.0, "score/style_painting": 0.0, "score/style_sketch": 50.0,
        "score/style_tattoo": 50.0, "score/infrard": 20.0, "score/xray": 40.0, "score/Med-X-RAY": 60.0, "score/MRI": 80.0,
        "score/CT": 100.0,
        "score/RS": 40.0, "score/AD": 70.0, "score/Robots": 100.0, "score/game": 0.0, "score/defect_detection": 50.0,
    }  # fmt: skip
    assert (result.n, result.n_unscored) == (19, 3)  # two numbers, an action score of 2, an empty reply
    assert tries == Counter(dict.fromkeys(VERDICTS, 1)) + Counter({"RS-1": 2, "style_cartoon-1": 2, "game-1": 2})


def test_officially_the_judge_sees_none_for_the_question(tmp_path: Path):
    root = write_benchlmm(tmp_path)
    questions = {question.id: question for question in uncounted(benchlmm.BENCHMARK).questions(root)}
    for protocol, shown in (("official", "None"), ("fixed", "CT question 0?")):
        (request,) = benchlmm.ask(questions["CT/0"], Reply("lungs", "stop"), protocol)
        assert f"Question: {shown}\nGround Truth: gold CT\nPrediction: lungs\nScore:" in request.messages[0].text
    (request,) = benchlmm.ask(questions["game/1"], Reply("(A)", "stop"), "official")
    assert "[Correct Action]\n(A) go left\n" in request.messages[0].text
    assert [str(questions[name].conversation.images[0].source).split("/images/")[1] for name in ("CT/0", "game/0", "style_tattoo/0")] == [
        "Med/CT.png",
        "open_game/game.png",
        "style/style_tattoo.png",
    ]


def test_the_judge_of_actions_is_asked_cold_first_and_of_the_others_as_the_api_does(tmp_path: Path):
    questions = {question.id: question for question in uncounted(benchlmm.BENCHMARK).questions(write_benchlmm(tmp_path))}
    drawn = [benchlmm.vary(SamplingParams(), questions[name], attempt) for name in ("game/0", "CT/0") for attempt in (0, 1)]
    assert [(params.temperature, params.seed) for params in drawn] == [(0.0, 0), (0.7, 1), (1.0, 0), (1.0, 1)]


def test_wrong_benchlmm_files_are_named(tmp_path: Path):
    root = write_benchlmm(tmp_path)
    with pytest.raises(DataError, match=r"style_cartoon\.jsonl: questions: 2, but the benchmark has 100"):
        benchlmm.BENCHMARK.questions(root)
    write_json(root / "benchlmm/jsonl/game_meta_data.json", [{"index": 0, "actions": ["go"], "answer_index": 0}])
    with pytest.raises(DataError, match=r"line 2: game_meta_data\.json has no record of index 1"):
        uncounted(benchlmm.BENCHMARK).questions(root)
    write_json(root / "benchlmm/jsonl/game_meta_data.json", [{"index": 0, "actions": ["go"], "answer_index": 1}])
    with pytest.raises(DataError, match="answer_index"):
        uncounted(benchlmm.BENCHMARK).questions(root)
    (root / "benchlmm/images/Med/CT.png").unlink()
    with pytest.raises(ImageError, match=r"CT\.png"):
        uncounted(benchlmm.BENCHMARK).questions(root)


# --- MM-Vet ---------------------------------------------------------------------------------------------------------------------


def write_mm_vet(root: Path) -> Path:
    abilities = [["ocr", "rec"], ["rec"], ["math", "ocr"], ["gen", "rec", "know"], ["rec"]]
    records = {
        f"v1_{n}": {"imagename": f"v1_{n % 2}.png", "question": f"Question {n}?", "answer": f"a<AND>b<OR>{n}", "capability": names}
        for n, names in enumerate(abilities)
    }
    write_json(root / "mm-vet/mm-vet.json", records)
    write_pictures(root / "mm-vet/images", "v1_0.png", "v1_1.png")
    return root


def test_mm_vet_adds_up_by_ability_and_by_what_is_needed_together(tmp_path: Path):
    verdicts = {"0": "0.5", "1": "1.0 for it is there", "2": "I think 0.5", "3": "0"}

    def judge(text: str) -> str:
        assert text.startswith(mm_vet.OWN_PROMPT)
        row = text.splitlines()[-1]
        number = row[9]
        assert row == f"Question {number}? | a <AND> b <OR> {number} | candidate {number} | "
        return verdicts[number]

    replies = {f"v1_{n}": f"candidate {n}" for n in range(4)} | {"v1_4": RemoteError("gone")}
    result, *_ = run(mm_vet.BENCHMARK, write_mm_vet(tmp_path), replies, judge=judge)
    assert figures(result) == {
        "score": 50.0,
        "ability/gen": 0.0,
        "ability/know": 0.0,
        "ability/ocr": 50.0,
        "ability/rec": 50.0,
        "combination/rec": 100.0,
        "combination/rec_know_gen": 0.0,
        "combination/rec_ocr": 50.0,
    }
    assert (result.n, result.n_unscored) == (5, 2)
    assert result.bounds == (30.0, 70.0)


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        *[("0.7", 0.7), ("1", 1.0), ("0", 0.0), (" 0.5\n\nbecause", 0.5), ("0.5 | the end", 0.5), ("1.1", None), ("-0.1", None)],
        *[("inf", None), ("", None), (None, None), ("Score: 0.5", None), ("9/10", None), ("0.5.", None), ("half", None), ("nan", None)],
    ],
)
def test_a_verdict_is_the_first_word_as_a_number_from_0_to_1(reply: str | None, value: float | None):
    assert mm_vet.parse(reply) == value


def test_the_judge_gets_warmer_as_in_the_official_script():
    drawn = [mm_vet.vary(SamplingParams(), Question("1", None), attempt).temperature for attempt in range(6)]  # type: ignore[arg-type]
    assert drawn == [0.0, 0.0, 0.5, 1.0, 1.5, 2.0]


def test_the_official_text_for_the_judge_is_taken_where_it_is_there(tmp_path: Path):
    root = write_mm_vet(tmp_path)
    (root / "mm-vet/judge_prompt.txt").write_text("Compare the ground truth and so on.\n")
    (request,) = mm_vet.ask(uncounted(mm_vet.BENCHMARK).questions(root)[0], Reply("mine", "stop"), "v1")
    assert request.messages[0].text == "Compare the ground truth and so on.\n\nQuestion 0? | a <AND> b <OR> 0 | mine | "


def test_wrong_mm_vet_files_are_named(tmp_path: Path):
    root = write_mm_vet(tmp_path)
    with pytest.raises(DataError, match="5, but the benchmark has 218"):
        mm_vet.BENCHMARK.questions(root)
    records = json.loads((root / "mm-vet/mm-vet.json").read_text())
    records["v1_0"]["capability"] = []
    write_json(root / "mm-vet/mm-vet.json", records)
    with pytest.raises(DataError, match="'v1_0': 'capability' must be a list of one ability or more"):
        uncounted(mm_vet.BENCHMARK).questions(root)


# --- a judge behind HTTP, canaries and all --------------------------------------------------------------------------------------


class JudgingServer(Server):
    """A chat completions server that says what `script` makes of the last message."""

    def __init__(self, script: Callable[[str], str]):
        self.script = script
        super().__init__()

    @property
    def body(self) -> bytes:
        content = self.script(self.requests[-1]["messages"][-1]["content"])
        choices = [{"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}]
        return json.dumps({"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": choices}).encode()

    @body.setter
    def body(self, value: bytes) -> None:
        """Nothing is prepared."""


def between(text: str, start: str, end: str) -> str:
    return text.split(start)[-1].split(end)[0].strip()


def fair(text: str) -> str:
    """What a judge says that finds right only what is the reference itself."""
    if "[Assistant 1]" in text:
        first, second = between(text, "[Assistant 1]", "[End of"), between(text, "[Assistant 2]", "[End of")
        return "10 10\nBoth say it." if first == second else "10 7\nThe first says more."
    if "[Correct Action]" in text:
        right = between(text, "[Agent Answer]", "[Correct") == between(text, "[Correct Action]", "\n\n")
        return f"that is what it says\naction score: {int(right)}"
    return "1.0" if between(text, "Ground Truth:", "\n") == between(text, "Prediction:", "\nScore:") else "0.2"


def run_over_http(benchmark: Benchmark, root: Path, say: Callable[[Question], str]) -> tuple[BenchmarkResult, JudgingServer]:
    asked = uncounted(benchmark)
    replies = {words(question.conversation): say(question) for question in asked.questions(root)}
    model = ScriptedChatModel(lambda conversation, params: replies[words(conversation)], piece_size=500)
    server = JudgingServer(fair)
    try:
        calls = Calls(OpenAIChatModel("judge", base_url=server.url), name="judge", log=root / "judge.log", limits=CallLimits(concurrency=1))
        with calls:
            judges = [Judge("judge", calls)]
            result, _ = asyncio.run(evaluate(model, asked, root / "out", model_name="scripted", data=root, judges=judges))
    finally:
        server.close()
    return result, server


def test_a_relative_score_comes_from_a_judge_behind_http_that_knew_its_canaries(tmp_path: Path):
    result, server = run_over_http(llava_bench.WILD, write_wild(tmp_path), lambda question: f"candidate {question.id}")
    assert (figures(result)["relative score"], result.n_unscored, result.judge) == (70.0, 0, "judge")
    assert len(server.requests) == 4 * 2 + 4  # a better and a worse canary for each of the four
    assert server.requests[0]["messages"][0] == {"role": "system", "content": llava_bench.SYSTEM}
    assert {request["temperature"] for request in server.requests} == {0.2}


def test_benchlmm_comes_from_a_judge_behind_http(tmp_path: Path):
    def say(question: Question) -> str:
        return "no idea" if question.category in benchlmm.GROUPS["sensor"] else question.answers[0]

    result, server = run_over_http(benchlmm.BENCHMARK, write_benchlmm(tmp_path), say)
    found = figures(result)
    assert (found["group/artistic"], found["group/sensor"], found["group/application"]) == (100.0, 20.0, 100.0)
    assert (found["mean of groups"], result.n_unscored) == (round(220 / 3, 9), 0)
    assert {request["temperature"] for request in server.requests} == {0.0, 1.0}
