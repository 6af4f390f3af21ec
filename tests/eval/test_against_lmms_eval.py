"""Our modes named `lmms`, and rules that lmms-eval shares with official scripts, against lmms-eval; skipped where it is not installed."""

from __future__ import annotations

import importlib.util
import random
from types import ModuleType

import pytest

from vistune.eval.benchmarks import chartqa, embspatial, mme, pope, scienceqa, seed_bench, vqa

pytestmark = pytest.mark.nightly
PIECES = """
    yes no Yes No. NO not y n A B. (C) d) (D ) E: The answer is a an the two ten none isnt couldntve Joe's red car
    1,000 1,,2 3.5 5% 50%% -2 1e3 .5 0 , . ! ? ; ' " ( ) - / % … é İ ſ ½ 中文
"""


def replies(count: int = 5_000) -> list[str]:
    draw, pieces = random.Random(5), [*PIECES.split(), *" " * 20, "\n", "\t"]
    return ["".join(draw.choices(pieces, k=draw.randint(0, 8))) for _ in range(count)]


def module(path: str) -> ModuleType:
    """One file of lmms-eval by itself: the package as a whole imports more than a scorer needs."""
    package = importlib.util.find_spec("lmms_eval")
    if package is None or not package.submodule_search_locations:
        pytest.skip("lmms-eval is not installed")
    spec = importlib.util.spec_from_file_location("theirs", f"{package.submodule_search_locations[0]}/tasks/{path}")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(loaded)
    except ModuleNotFoundError as error:
        pytest.skip(f"lmms-eval lacks {error.name}")
    return loaded


def test_answers_are_normalised_alike():
    theirs = module("_task_utils/vqa_eval_metric.py").EvalAIAnswerProcessor()
    assert [vqa.normalise_m4c(text) for text in replies()] == [theirs(text) for text in replies()]


def test_numbers_in_charts_are_compared_alike():
    theirs, texts = module("chartqa/utils.py").relaxed_correctness, replies()
    near = [(f"{number / 2}{sign}", f"100{sign}") for number in range(150, 250) for sign in ("", "%")]
    pairs = [*zip(texts, reversed(texts), strict=True), *((text, text.strip()) for text in texts), *near]
    assert [chartqa.relaxed(*pair) for pair in pairs] == [theirs(*pair) for pair in pairs]


def test_yes_and_no_are_read_alike():
    theirs = module("pope/utils.py").pope_process_results
    doc = {"answer": "yes", "question_id": 1}
    assert [pope.parse(text, "lmms") for text in replies()] == [theirs(doc, [text])["pope_accuracy"]["prediction"] for text in replies()]


def test_the_start_of_a_reply_is_read_alike():
    theirs = module("mme/utils.py").parse_pred_ans
    assert [mme.parse(text, "lmms") for text in replies()] == [theirs(text) for text in replies()]


@pytest.mark.parametrize("letter", "AD")
def test_letters_are_read_alike(letter: str):
    texts, index = replies(), "ABCD".index(letter)
    theirs = module("scienceqa/utils.py").sqa_process_results
    expected = [theirs({"choices": "1234", "answer": index}, [text])["exact_match"] for text in texts]
    assert [float(scienceqa.match_lmms(text, letter)) for text in texts] == expected
    seed = module("seedbench/utils.py")
    rows = [seed.seed_process_result({"answer": letter, "data_type": "image", "question_id": 1}, [text])["seed_all"] for text in texts]
    assert [seed_bench.match(text, letter, "lmms") for text in texts] == [seed.seed_aggregation_result([row]) == 1 for row in rows]
    theirs = module("embspatial/utils.py")._extract_answer_letter
    assert [embspatial.parse(text, (), "lmms") == index for text in texts] == [theirs(text) == letter for text in texts]
