"""The offline teacher: a `ChatModel` that composes questions and answers from annotations by grammar, with no network and no weights.

It reads only the conversation that any teacher is sent, takes the captions and boxes out of the last message again, and writes a reply
of the form that the system text asks for. Its answers are right by construction: a question is asked only where the annotations decide it.
Sentences of the form that vistune writes about drawn scenes name everything in the picture (`scene_facts.py`); of other captions it uses no
more than they plainly say (`photo_facts.py`).
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import AsyncGenerator, Callable

from vistune.chat_model import GREEDY, require_single
from vistune.datagen.deducing import describe_at_length
from vistune.datagen.photo_asking import describe_photo, photo_dialogue, photo_thought
from vistune.datagen.photo_facts import read_photo
from vistune.datagen.scene_dialogue import scene_dialogue, scene_thought
from vistune.datagen.scene_facts import read_scene
from vistune.datagen.teacher import Kind, Shape, kind_named, kind_names, parse_context
from vistune.errors import UsageError
from vistune.types import Box, Conversation, Delta, Reply, SamplingParams

NOTHING_TO_ASK = "I cannot help with this picture: nothing that is known about it makes a question."
"""The reply to annotations that decide nothing. It has no pair of question and answer, so that it is counted as a rejected reply."""


class TemplateTeacher:
    """Answers teacher conversations of the shipped kinds. The same seed, conversation and `params.seed` always give the same reply."""

    name = "template"

    def __init__(self, seed: int = 0):
        self.seed = seed

    async def generate(self, conversation: Conversation, params: SamplingParams = GREEDY) -> Reply:
        """The reply at once.

        Raises:
            UsageError: a conversation that is none of `teacher_conversation`, or of a kind that needs a real teacher.
            DataError: a last message that is no context block.
        """
        require_single(params)
        return self._reply(conversation, params)

    async def stream(self, conversation: Conversation, params: SamplingParams = GREEDY) -> AsyncGenerator[Delta, None]:
        """The reply line by line."""
        require_single(params)
        reply = self._reply(conversation, params)
        for line in reply.text.splitlines(keepends=True):
            yield Delta(line)
        yield Delta("", reply)

    def _reply(self, conversation: Conversation, params: SamplingParams) -> Reply:
        kind = _kind_of(conversation)
        context = conversation.messages[-1].text
        captions, boxes = parse_context(context)
        rng = random.Random(f"{self.seed}/{kind.name}/{params.seed}/{context}")
        pieces = _COMPOSERS[kind.shape](captions, boxes, rng) or [NOTHING_TO_ASK]
        # Told how long it may speak, this teacher says less instead of breaking off in the middle of a sentence.
        while len(pieces) > 1 and sum(map(_num_tokens, pieces)) > params.max_new_tokens:
            pieces.pop()
        text = (" " if kind.shape == "description" else "\n").join(pieces)
        num_tokens = _num_tokens(text)
        prompt_tokens = sum(_num_repeated_tokens(message.text) for message in conversation.messages[:-1]) + _num_tokens(context)
        if num_tokens > params.max_new_tokens:
            return Reply(_cut(text, params.max_new_tokens), "length", prompt_tokens, completion_tokens=params.max_new_tokens)
        return Reply(text, "stop", prompt_tokens, completion_tokens=num_tokens)


# --- what the shapes of reply are made of -------------------------------------------------------------------------------------------------


def _dialogue(captions: tuple[str, ...], boxes: tuple[Box, ...], rng: random.Random) -> list[str]:
    scene = read_scene(captions, boxes)
    turns = scene_dialogue(scene, rng) if scene else photo_dialogue(read_photo(captions, boxes), rng)
    return [render_pair(*turn) for turn in turns]


def _pair(captions: tuple[str, ...], boxes: tuple[Box, ...], rng: random.Random) -> list[str]:
    scene = read_scene(captions, boxes)
    turn = scene_thought(scene, rng) if scene else photo_thought(read_photo(captions, boxes), rng)
    return [render_pair(*turn)] if turn else []


def _description(captions: tuple[str, ...], boxes: tuple[Box, ...], rng: random.Random) -> list[str]:
    scene = read_scene(captions, boxes)
    return describe_at_length(scene, rng) if scene else describe_photo(read_photo(captions, boxes), rng)


_COMPOSERS: dict[Shape, Callable[[tuple[str, ...], tuple[Box, ...], random.Random], list[str]]] = {
    "dialogue": _dialogue, "pair": _pair, "description": _description,
}  # fmt: skip


def render_pair(question: str, answer: str) -> str:
    """One question and answer in the form that `teacher.py` describes."""
    return f"Question:\n===\n{question}\n===\nAnswer:\n===\n{answer}\n==="


def _kind_of(conversation: Conversation) -> Kind:
    """The shipped kind that a conversation asks for, which its system text tells."""
    messages = conversation.messages
    if len(messages) >= 2 and messages[0].role == "system" and messages[-1].role == "user":
        for name in kind_names():
            if kind_named(name).system == messages[0].text:
                return kind_named(name)
    raise UsageError(
        f"The template teacher answers conversations of teacher_conversation for the kinds {', '.join(kind_names())}; it cannot follow "
        "another system text. Use a language model as the teacher for a kind of your own."
    )


_TOKEN = re.compile(r"\w+|[^\w\s]")


def _num_tokens(text: str) -> int:
    """Words and signs: what this teacher counts as a token."""
    return sum(1 for _ in _TOKEN.finditer(text))


@functools.lru_cache(maxsize=64)
def _num_repeated_tokens(text: str) -> int:
    """Of a message that is the same in every conversation of a kind."""
    return _num_tokens(text)


def _cut(text: str, num_tokens: int) -> str:
    """The text up to that many tokens, as a model with that limit would leave it."""
    ends = [match.end() for _, match in zip(range(num_tokens), _TOKEN.finditer(text), strict=False)]
    return text[: ends[-1]] if ends else ""
