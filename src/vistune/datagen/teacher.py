"""Annotations → what a teacher that sees only text is sent.

A kind of instruction data is a folder: `prompts/<kind>/` holds `kind.json` (`shape`: dialogue, description or pair; `uses_boxes`), the
system text in `system.txt`, and worked examples as `example_<n>_context.json` with `example_<n>_reply.txt`. A new kind is a new folder;
`kind_named` also takes the path of one. What is known about the picture is sent as quoted lines, each behind "> ":

    > A red bus stops at the corner.          captions, one a line
    >
    > bus: [0.120, 0.300, 0.880, 0.910]       label: [left, top, right, bottom], fractions of width and height, from the top left

so that text in it can neither end the quotation nor pass for an instruction (`quoting.py`). File names are never sent.

A reply of shape dialogue or pair is a run of blocks, which `parse.py` reads:

    Question:
    ===
    What color is the bus?
    ===
    Answer:
    ===
    The bus is red.
    ===
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from vistune.datagen.quoting import quoted
from vistune.errors import DataError, UnknownName
from vistune.types import Box, Conversation, ImageAnnotations, Message, TextPart

PROMPTS = Path(__file__).parent / "prompts"
QUOTE = ">"
Shape = Literal["dialogue", "description", "pair"]

_BOX_LINE = re.compile(r"(?P<label>.*): \[(?P<numbers>[0-9., ]+)\]")


@dataclass(frozen=True)
class Kind:
    """One kind of instruction data: how the teacher is asked for it, and the shape of its reply."""

    name: str
    system: str
    examples: tuple[tuple[str, str], ...]
    """(context, reply) pairs shown before the question."""
    uses_boxes: bool
    shape: Shape

    @functools.cached_property
    def digest(self) -> str:
        """Changes with every word that this kind puts into a request."""
        return hashlib.sha256(json.dumps([self.system, self.examples, self.uses_boxes, self.shape]).encode()).hexdigest()


def kind_names() -> tuple[str, ...]:
    """The kinds that ship with vistune."""
    return tuple(sorted(folder.parent.name for folder in PROMPTS.glob("*/kind.json")))


@functools.cache
def kind_named(name: str) -> Kind:
    """A shipped kind by its name, or one's own by the path of its folder.

    Raises:
        UnknownName: neither a shipped kind nor a folder.
        DataError: a folder that is not a kind; the message says what is missing.
    """
    if name in kind_names():
        return _read_kind(PROMPTS / name)
    if Path(name).is_dir():
        return _read_kind(Path(name))
    raise UnknownName("kind of instruction data", name, known=kind_names())


def render_context(annotations: ImageAnnotations, *, boxes: bool) -> str:
    """The quoted block about one picture: captions one a line, then, if wanted, a blank line and the boxes to three decimals."""
    lines = [line for caption in annotations.captions if (line := quoted(caption))]
    if boxes and annotations.boxes:
        lines += ["", *(f"{quoted(box.label)}: [{', '.join(f'{edge:.3f}' for edge in box.xyxy)}]" for box in annotations.boxes)]
    return "\n".join(f"{QUOTE} {line}".rstrip() for line in lines)


def parse_context(text: str) -> tuple[tuple[str, ...], tuple[Box, ...]]:
    """Captions and boxes of a block that `render_context` wrote.

    Raises DataError for anything else.
    """
    captions: list[str] = []
    boxes: list[Box] = []
    in_boxes = False
    for number, quoted_line in enumerate(text.splitlines(), 1):
        line = quoted_line.removeprefix(QUOTE).removeprefix(" ")
        match = _BOX_LINE.fullmatch(line) if in_boxes else None
        if not quoted_line.startswith(QUOTE) or (in_boxes and match is None):
            raise DataError(f"Line {number} of the context, {quoted_line[:60]!r}, is no line of annotations; see vistune.datagen.teacher.")
        if match is not None:
            left, top, right, bottom = (float(edge) for edge in match["numbers"].split(","))
            boxes.append(Box(match["label"], (left, top, right, bottom)))
        elif line:
            captions.append(line)
        else:
            in_boxes = True
    return tuple(captions), tuple(boxes)


def teacher_conversation(kind: Kind, annotations: ImageAnnotations) -> Conversation:
    """What the teacher is asked about one picture: the kind's system text, its worked examples, and the picture's quoted annotations."""
    messages = [Message("system", (TextPart(kind.system),))]
    for context, reply in kind.examples:
        messages += [Message("user", (TextPart(context),)), Message("assistant", (TextPart(reply),))]
    messages.append(Message("user", (TextPart(render_context(annotations, boxes=kind.uses_boxes)),)))
    return Conversation(tuple(messages))


def render_prompt(conversation: Conversation) -> str:
    """Exactly what would be sent, as text for people: every message under a line with its role."""
    return "\n\n".join(f"--- {message.role} ---\n{message.text}" for message in conversation.messages) + "\n"


@functools.cache
def brief_questions() -> tuple[str, ...]:
    """Eleven ways to ask for a short description, one for each row of alignment data."""
    return _lines(PROMPTS / "brief.txt")


@functools.cache
def detailed_questions() -> tuple[str, ...]:
    """Sixteen ways to ask for a thorough description: the question to an answer of shape `description`."""
    return _lines(PROMPTS / "detailed.txt")


# --- reading a kind -----------------------------------------------------------------------------------------------------------------------


def _read_kind(folder: Path) -> Kind:
    settings = _json(folder / "kind.json")
    shape, uses_boxes = str(settings.get("shape")), settings.get("uses_boxes")
    if shape not in get_args(Shape) or not isinstance(uses_boxes, bool):
        raise DataError(f"{folder / 'kind.json'} must give 'shape' (one of {', '.join(get_args(Shape))}) and 'uses_boxes' (true or false).")
    examples = tuple(
        (render_context(_example(path), boxes=uses_boxes), _text(path.with_name(path.name.replace("_context.json", "_reply.txt"))))
        for path in sorted(folder.glob("example_*_context.json"))
    )
    return Kind(folder.name, _text(folder / "system.txt"), examples, uses_boxes, cast(Shape, shape))


def _example(path: Path) -> ImageAnnotations:
    page = _json(path)
    try:
        boxes = tuple(Box(str(label), (left, top, right, bottom)) for label, (left, top, right, bottom) in page.get("boxes", ()))
        return ImageAnnotations("", 0, 0, tuple(map(str, page["captions"])), boxes)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} must hold 'captions' and 'boxes' as [label, [left, top, right, bottom]] pairs ({error!r}).") from error


def _json(path: Path) -> Mapping[str, Any]:
    try:
        page = json.loads(_text(path))
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}).") from error
    if not isinstance(page, dict):
        raise DataError(f"{path} holds a JSON {type(page).__name__}, not an object.")
    return page


def _lines(path: Path) -> tuple[str, ...]:
    return tuple(line for line in _text(path).split("\n") if line)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"A kind of instruction data needs {path}, which cannot be read ({error}).") from error
