"""Asks an assistant about the pictures that ship with vistune and says which answers are right.

The questions are a small file beside the pictures (`demo.json`: a list of `{"picture", "question", "answers"}`), so that the demo can be
read before it is believed. The rule is plain: an answer is right when one of the expected ones stands in it, word for word.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vistune.errors import DataError
from vistune.serve.terminal import question_parts
from vistune.types import Conversation, SamplingParams

if TYPE_CHECKING:
    from vistune.chat_model import ChatModel

GREEDY = SamplingParams(max_new_tokens=64)


@dataclass(frozen=True)
class DemoItem:
    picture: Path
    question: str
    answers: tuple[str, ...]
    """Each of them is right."""


@dataclass(frozen=True)
class DemoResult:
    item: DemoItem
    answer: str
    right: bool


def read_demo(folder: Path) -> tuple[DemoItem, ...]:
    """The shipped questions. Raises DataError where the folder has none or they are not as described above."""
    path = folder / "demo.json"
    if not path.is_file():
        raise DataError(f"There is no {path}; this copy of vistune was packed without its demo pictures. Install it again.")
    try:
        return tuple(DemoItem(folder / row["picture"], str(row["question"]), tuple(row["answers"])) for row in json.loads(path.read_text()))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a list of {{picture, question, answers}} ({type(error).__name__}: {error}).") from error


def is_right(answer: str, expected: Sequence[str]) -> bool:
    """Whether one of the expected answers stands in the answer, as whole words, in any case."""
    return any(re.search(rf"(?<!\w){re.escape(each)}(?!\w)", answer, re.IGNORECASE) for each in expected)


def run_demo(model: ChatModel, items: Sequence[DemoItem]) -> Iterator[DemoResult]:
    """Asks about one picture after the other, greedily, and yields each result as it comes."""

    with asyncio.Runner() as runner:
        for item in items:
            conversation = Conversation(()).then("user", *question_parts((item.picture,), item.question))
            reply = runner.run(model.generate(conversation, GREEDY))
            yield DemoResult(item, reply.text.strip(), is_right(reply.text, item.answers))
