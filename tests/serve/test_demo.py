"""The demo's questions and its rule for a right answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from vistune.chat_model import ScriptedChatModel
from vistune.errors import DataError
from vistune.serve.demo import is_right, read_demo, run_demo
from vistune.types import ImagePart, TextPart


def test_an_answer_is_right_when_an_expected_one_stands_in_it_as_words():
    assert is_right("A Cat, on a sofa.", ["cat"])
    assert is_right("It is a coffee cup", ["mug", "coffee cup"])
    assert not is_right("A category", ["cat"])
    assert not is_right("", ["cat"])


def test_every_picture_is_asked_about_on_its_own_and_greedily(tmp_path: Path):
    (tmp_path / "demo.json").write_text('[{"picture": "a.png", "question": "What?", "answers": ["yes"]}]')
    model = ScriptedChatModel(["Yes."])
    (result,) = run_demo(model, read_demo(tmp_path))
    assert result.right
    conversation, params = model.calls[0]
    assert conversation.messages[0].parts == (ImagePart(tmp_path / "a.png"), TextPart("\nWhat?"))
    assert params.temperature == 0


def test_missing_or_unreadable_questions_are_errors_that_say_what_to_do(tmp_path: Path):
    with pytest.raises(DataError, match="Install it again"):
        read_demo(tmp_path)
    (tmp_path / "demo.json").write_text('[{"picture": "a.png"}]')
    with pytest.raises(DataError, match="picture, question, answers"):
        read_demo(tmp_path)
