"""Twenty prompts without a picture, for reading what tuning did to a language model's own conversation: base and tuned side by side.

Not scored: there is no right answer to most of them. None is in `assets/text_prompts.txt`, which training may use.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from vistune.chat_model import ChatModel
from vistune.types import Conversation, SamplingParams

PROMPTS = (
    "What is the capital of Portugal?",
    "Write one sentence about a lighthouse keeper.",
    "Why do leaves fall in autumn?",
    "Name four musical instruments.",
    "What is 14 plus 9?",
    "Good evening! How are you?",
    "Explain in two sentences what a library is.",
    "Write a short poem about the sea at night.",
    "What is the opposite of 'generous'?",
    "Give me three ideas for a rainy afternoon.",
    "How do I boil rice?",
    "Who wrote 'Romeo and Juliet'?",
    "Rewrite this politely: Move your bag.",
    "What do bees make?",
    "Tell me a joke about a penguin.",
    "What is the difference between a lake and a river?",
    "Write a thank-you note to a neighbour who watered my plants.",
    "How many days are there in a week?",
    "Summarise in one sentence: The bus was late, so Mia walked to school and met a friend on the way.",
    "What should I pack for a day in the mountains?",
)


@dataclass(frozen=True)
class SideBySide:
    prompt: str
    base: str
    tuned: str


async def side_by_side(base: ChatModel, tuned: ChatModel, *, max_new_tokens: int = 96) -> tuple[SideBySide, ...]:
    """Both models' greedy answers to all prompts."""
    params = SamplingParams(max_new_tokens=max_new_tokens)
    conversations = [Conversation(()).then("user", prompt) for prompt in PROMPTS]
    base_replies = await asyncio.gather(*(base.generate(conversation, params) for conversation in conversations))
    tuned_replies = await asyncio.gather(*(tuned.generate(conversation, params) for conversation in conversations))
    return tuple(SideBySide(prompt, one.text, other.text) for prompt, one, other in zip(PROMPTS, base_replies, tuned_replies, strict=True))


def side_by_side_markdown(rows: tuple[SideBySide, ...], *, tuned_name: str) -> str:
    """The answers of both models under each prompt, for a person to read."""
    title = "# Text-only prompts: base and tuned side by side"
    parts = [title, f"Tuned: {tuned_name}; base: the language model that it was tuned from. Greedy answers, verbatim."]
    for number, row in enumerate(rows, start=1):
        parts += [f"## {number}. {row.prompt}", f"**Base**\n\n{_quoted(row.base)}", f"**Tuned**\n\n{_quoted(row.tuned)}"]
    return "\n\n".join(parts) + "\n"


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.strip().splitlines() or ["(nothing)"])
