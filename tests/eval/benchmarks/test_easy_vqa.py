"""easy-VQA as it lies in its package."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from vistune.formats import read_examples

pytest.importorskip("easy_vqa")
from vistune.eval.benchmarks import easy_vqa, text_only


def test_all_test_questions_are_there_with_their_pictures():
    questions = easy_vqa.load_test()
    assert len(questions) == easy_vqa.TEST_QUESTIONS
    assert set(Counter(question.category for question in questions)) == {"shape", "color", "yes-no"}
    assert Path(str(questions[0].conversation.images[0].source)).is_file()


def test_the_train_split_becomes_llava_json_without_losing_a_question(tmp_path: Path):
    examples = list(read_examples(easy_vqa.write_train(tmp_path), easy_vqa.image_root()))
    assert sum(len(example.conversation.messages) for example in examples) == 2 * 38_575
    assert all(len(example.conversation.images) == 1 for example in examples)


def test_the_text_only_prompts_are_in_no_training_file():
    training = (Path(text_only.__file__).parents[2] / "assets" / "text_prompts.txt").read_text(encoding="utf-8").splitlines()
    assert len(set(training)) == len(training) >= 300
    assert len(text_only.PROMPTS) == 20
    assert not set(training) & set(text_only.PROMPTS)
