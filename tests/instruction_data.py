"""Instruction examples drawn by hypothesis, and small files of them for the tools that read such files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from PIL import Image

from vistune.formats import IMAGE_MARK
from vistune.types import Conversation, ImagePart, InstructionExample, Message, Part, TextPart

ROOT = Path("/pictures")

words = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
"""Any text that UTF-8 can hold, NUL and right-to-left marks included."""
with_mark = st.lists(st.one_of(words, st.just(IMAGE_MARK), st.just("<ima"), st.just("ge>")), max_size=4).map("".join)
names = st.lists(st.text("abcü -_.1", min_size=1, max_size=5).filter(lambda name: name.strip(". ")), min_size=1, max_size=3).map("/".join)

json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), words),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(words, inner, max_size=2)),
    max_leaves=4,
)
provenances = st.dictionaries(st.one_of(words, st.sampled_from(("source", "licence", "fields"))), json_values, max_size=3)
columns = st.dictionaries(words.filter(lambda name: name not in _OWN_COLUMNS), json_values, min_size=1, max_size=2)
_OWN_COLUMNS = {
    "id", "kind", "provenance", "image", "images", "video", "videos", "audios", "conversations", "messages", "system"
}  # fmt: skip


@st.composite
def examples(draw: st.DrawFn) -> InstructionExample:
    """A record that all three formats hold: any number of pictures anywhere but in the system text; the mark only in plain text."""
    plain = draw(st.booleans())
    piece = with_mark if plain else words.filter(lambda text: IMAGE_MARK not in text)

    def message(role: Any) -> Message:
        pictures = 0 if plain or role == "system" else draw(st.integers(0, 2))
        parts: list[Part] = []
        for number in range(pictures + 1):
            if number:
                parts.append(ImagePart(ROOT / draw(names)))
            text = draw(piece)
            if not text.strip() and role == "assistant" and not pictures:
                text += "Yes."
            parts += [TextPart(text)] if text else []
        return Message(role, tuple(parts) or (TextPart(""),))

    messages = [message("system")] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 2))):
        messages += [message("user"), message("assistant")]
    provenance = draw(provenances)
    if draw(st.booleans()):
        provenance["fields"] = draw(columns)
    return InstructionExample(draw(words), Conversation(tuple(messages)), draw(words), provenance)


def row(question: str = "<image>\nWhat is it?", answer: str = "A cat.", **changes: Any) -> dict[str, Any]:
    """A LLaVA row of one turn; `image` None leaves it out."""
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    made = {"id": "1", "image": "cat.png", "conversations": turns, **changes}
    return {name: value for name, value in made.items() if value is not None}


def write_rows(path: Path, *rows: Any) -> Path:
    """A `.json` list or `.jsonl` lines."""
    lines = [json.dumps(each) for each in rows]
    path.write_text("\n".join(lines) + "\n" if path.suffix == ".jsonl" else f"[{','.join(lines)}]")
    return path


def write_picture(path: Path, seed: int = 0, size: tuple[int, int] = (96, 64)) -> Path:
    """A picture unlike those of other seeds: smooth coloured patches."""
    import random

    path.parent.mkdir(parents=True, exist_ok=True)
    patches = Image.frombytes("RGB", (6, 4), random.Random(seed).randbytes(72))
    patches.resize(size, Image.Resampling.BICUBIC).save(path, **({"quality": 95} if path.suffix == ".jpg" else {}))
    return path
