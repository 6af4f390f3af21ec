"""A small world for runs of the data engine: captioned pictures, a teacher that knows its part, and what a finished folder holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.datagen.annotation_files import write_lines, write_picture

from vistune.chat_model import ScriptedChatModel, ScriptedReply
from vistune.datagen.config import DatagenConfig
from vistune.types import Conversation, SamplingParams

THINGS = ("dog", "cat", "horse", "car", "boat", "kite", "chair", "clock", "bowl", "bench")


def thing(number: int) -> str:
    return THINGS[number % len(THINGS)]


def write_photos(folder: Path, count: int) -> Path:
    """Pictures with a caption and a box each; returns their annotation file."""
    rows = []
    for number in range(count):
        write_picture(folder / f"{number:04}.jpg")
        caption = f"A {thing(number)} number {number} stands on the grass."
        boxes = [{"label": thing(number), "xyxy": [8, 8, 40, 40]}]
        rows.append({"image": f"{number:04}.jpg", "captions": [caption], "boxes": boxes, "units": "pixels"})
    return write_lines(folder / "photos.jsonl", rows)


def config_for(folder: Path, count: int = 6, **changes: Any) -> DatagenConfig:
    """A run over so many photos in `folder`; only conversations, to keep it small."""
    annotations = write_photos(folder / "photos", count)
    config = DatagenConfig("jsonl", folder / "out", (annotations,), kinds=("conversation",), teacher="scripted", max_new_tokens=200)
    return replace(config, **changes)


def dialogue(*turns: tuple[str, str]) -> str:
    return "\n".join(f"Question:\n===\n{question}\n===\nAnswer:\n===\n{answer}\n===" for question, answer in turns)


def number_of(conversation: Conversation) -> int:
    """Which picture a request is about: the number in its caption."""
    return int(conversation.messages[-1].text.partition("number ")[2].split()[0])


def good_reply(number: int) -> str:
    return dialogue(("What stands on the grass?", f"A {thing(number)} with the number {number} on it."))


def asked_again(conversation: Conversation) -> bool:
    """Whether a request is the second try after a reply that could not be read."""
    return "cannot be used" in conversation.messages[-1].text


def teacher(special: Callable[[int], ScriptedReply | None] = lambda number: None, **options: Any) -> ScriptedChatModel:
    """Answers well, except where `special` says otherwise; a second try is always answered well."""

    def script(conversation: Conversation, params: SamplingParams) -> ScriptedReply:
        if asked_again(conversation):
            return dialogue(("What is there?", "There is an animal or a thing on the grass."))
        number = number_of(conversation)
        said = special(number)
        return good_reply(number) if said is None else said

    return ScriptedChatModel(script, piece_size=1000, **options)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "instruct.json").read_text(encoding="utf-8"))


def rejects_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rejects.jsonl").read_text(encoding="utf-8").splitlines()]
