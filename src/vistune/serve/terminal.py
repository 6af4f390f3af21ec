"""Talks to a person at a terminal, or to a pipe.

A question goes to a `ChatModel` and its answer is shown while it is being written: as Markdown on a terminal, as plain text in a pipe, as
one JSON object per answer with `--json`. This file knows nothing of weights, tokens or torch: whatever is a `ChatModel` can be talked to.

The async model is run from ordinary code through one `asyncio.Runner` per conversation. The Runner turns Ctrl-C into a cancellation of the
answer at hand, so the session, and what the model keeps between turns, survive it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TextIO

from vistune.errors import RemoteError, SaveError, UnknownName, UsageError, VistuneError
from vistune.types import Conversation, ImagePart, ImageSource, Message, Part, Reply, SamplingParams, TextPart

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

    from vistune.chat_model import ChatModel

Output = Literal["markdown", "plain", "json"]

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic"})
"""What marks an argument as meant to be a picture. Wider than what `media.py` opens: it says better than we could why it does not."""

COMMANDS = {
    "/image": "/image PATH…   talk about these pictures (starts a new conversation)",
    "/model": "/model NAME    go on with another model of the server; without a name, list them",
    "/reset": "/reset         forget the conversation and its pictures",
    "/save": "/save FILE     write the conversation to FILE (.json or .md)",
    "/help": "/help          show this",
    "/quit": "/quit          leave (so does Ctrl-D); Ctrl-C stops an answer",
}


@dataclass(frozen=True)
class Choice:
    """The models that a conversation can be handed to: all by name, the one that it begins with, and how to get one."""

    names: tuple[str, ...]
    first: str
    get: Callable[[str], ChatModel]


@dataclass(frozen=True)
class Answer:
    """One answered question and how long it took."""

    question: str
    images: tuple[ImageSource, ...]
    reply: Reply
    seconds_to_first_token: float
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """The object that `--json` prints; its keys are a promise to scripts."""
        return {
            "question": self.question,
            "images": [source_name(image) for image in self.images],
            "answer": self.reply.text,
            "finish_reason": self.reply.finish_reason,
            "prompt_tokens": self.reply.prompt_tokens,
            "cached_tokens": self.reply.cached_tokens,
            "completion_tokens": self.reply.completion_tokens,
            "seconds_to_first_token": round(self.seconds_to_first_token, 4),
            "seconds": round(self.seconds, 4),
        }


def source_name(image: ImageSource) -> str:
    """What to call a picture in text: its path or address; a `data:` address by its start."""
    if isinstance(image, bytes):
        return f"<{len(image)} bytes>"
    name = str(image)
    return name if not name.startswith("data:") or len(name) <= 48 else f"{name[:48]}…"


# --- what the command line means ------------------------------------------------------------------------------------------------------


def looks_like_picture(argument: str) -> bool:
    """Whether an argument is meant as a picture: an address, one word with a picture's suffix, or a path to something that exists."""
    if argument.startswith(("data:", "http://", "https://")):
        return True
    suffix = os.path.splitext(argument)[1]
    if suffix.lower() in PICTURE_SUFFIXES and not any(character.isspace() for character in argument):
        return True
    return bool(suffix or os.sep in argument) and os.path.exists(argument)


def split_arguments(arguments: Sequence[str]) -> tuple[tuple[ImageSource, ...], str | None]:
    """`[IMAGE…] [QUESTION]`: leading pictures, and the words after them as one question (None if there are none).

    Raises UsageError for a picture among the question's words. Whether the pictures exist is for `check_pictures` to say.
    """
    count = next((index for index, argument in enumerate(arguments) if not looks_like_picture(argument)), len(arguments))
    words = arguments[count:]
    stray = next((word for word in words if os.path.isfile(word) and looks_like_picture(word)), None)
    if stray is not None:
        raise UsageError(f"The picture {stray} stands after the question's first word {words[0]!r}; put pictures first, the question last.")
    question = " ".join(words).strip()
    return tuple(picture_source(argument) for argument in arguments[:count]), question or None


def picture_source(argument: str) -> ImageSource:
    return argument if argument.startswith(("data:", "http://", "https://")) else Path(argument).expanduser()


def check_pictures(images: Sequence[ImageSource]) -> None:
    """Opens every picture once, so that a wrong one is reported before weights are loaded or a question is typed. Raises ImageError."""
    from vistune.media import open_image

    for image in images:
        open_image(image)


def question_parts(images: Sequence[ImageSource], question: str) -> tuple[Part, ...]:
    """A user turn as LLaVA was trained on it: every picture on a line of its own, then the words (`<image>`, a line end, text)."""
    lines = [part for image in images for part in (ImagePart(image), TextPart("\n"))]
    return (*lines[:-1], TextPart(f"\n{question}")) if images else (TextPart(question),)


# --- showing an answer while it is written --------------------------------------------------------------------------------------------


def printable(text: str) -> str:
    """The text without control characters: a model's words must not move the cursor or retitle the window."""
    return "".join(character for character in text if character in "\n\t" or not (ord(character) < 32 or 127 <= ord(character) < 160))


@contextlib.contextmanager
def _showing_nothing(_out: TextIO) -> Iterator[Callable[[str], None]]:
    yield lambda _piece: None


@contextlib.contextmanager
def _showing_text(out: TextIO) -> Iterator[Callable[[str], None]]:
    """Pieces as they come, and a line end however the answer ends. A question that fails before its first word shows nothing."""
    pieces = 0

    def show(piece: str) -> None:
        nonlocal pieces
        pieces += 1
        out.write(printable(piece))
        out.flush()

    failed = True
    try:
        yield show
        failed = False
    finally:
        if pieces or not failed:
            out.write("\n")
            out.flush()


@contextlib.contextmanager
def _showing_markdown(out: TextIO) -> Iterator[Callable[[str], None]]:
    """The answer so far as Markdown, redrawn in place; once done it is printed whole, so that it scrolls and can be copied."""
    from rich.console import Console
    from rich.live import Live
    from rich.markdown import Markdown
    from rich.segment import Segment

    console = Console(file=out)
    pieces: list[str] = []

    class Tail:
        """The last lines that fit the window: rich can only redraw what has not scrolled away."""

        def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
            lines = console.render_lines(Markdown("".join(pieces)), options.update(height=None), pad=False)
            for line in lines[-max(console.height - 2, 1) :]:
                yield from line
                yield Segment.line()

    try:
        with Live(Tail(), console=console, transient=True, refresh_per_second=12):
            yield lambda piece: pieces.append(printable(piece))
    finally:
        if pieces:
            console.print(Markdown("".join(pieces)))


_DISPLAYS = {"markdown": _showing_markdown, "plain": _showing_text, "json": _showing_nothing}


# --- the conversation -----------------------------------------------------------------------------------------------------------------


class TerminalChat:
    """A conversation with a `ChatModel`, shown on `out` as it goes. A context manager: the model's event loop lives inside it.

    Args:
        model: one model, or the choice among several.
        pictures: shown to the model with the first question.
        system: replaces the template's own system text; empty leaves it out; None keeps it.
        out, notes: where answers go, and where remarks about them go. A pipe gets only answers.
    """

    def __init__(
        self,
        model: ChatModel | Choice,
        *,
        params: SamplingParams,
        pictures: Sequence[ImageSource] = (),
        system: str | None = None,
        output: Output = "plain",
        out: TextIO | None = None,
        notes: TextIO | None = None,
    ):
        self._choice = model if isinstance(model, Choice) else None
        self._model = model.get(model.first) if isinstance(model, Choice) else model
        self._called = model.first if isinstance(model, Choice) else ""
        self._params, self._output = params, output
        self._out, self._notes = out or sys.stdout, notes or sys.stderr
        self._opening = Conversation((Message("system", (TextPart(system),)),) if system is not None else ())
        self._runner = asyncio.Runner()
        self.start_over(pictures)

    def __enter__(self) -> TerminalChat:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._leave()
        self._runner.close()

    def start_over(self, pictures: Sequence[ImageSource] = ()) -> None:
        """Forgets what was said; the next question is about `pictures`."""
        self.conversation = self._opening
        self._pictures = tuple(pictures)

    def ask(self, question: str) -> Answer:
        """Asks, shows the answer, and keeps both in the conversation. When interrupted or failed, the conversation is as before."""
        images = self._pictures if not any(message.role == "user" for message in self.conversation.messages) else ()
        conversation = self.conversation.then("user", *question_parts(images, question))
        answer = self._runner.run(self._answer(question, conversation))
        self.conversation = conversation.then("assistant", answer.reply.text)
        if self._output == "json":
            print(json.dumps(answer.as_json(), ensure_ascii=False), file=self._out, flush=True)
        elif answer.reply.finish_reason == "length":
            self._note(f"(stopped after {answer.reply.completion_tokens} tokens; --max-new-tokens allows more)")
        elif not answer.reply.text.strip():
            self._note("(the model ended its turn without a word)")
        return answer

    def ask_each(self, lines: Iterable[str]) -> None:
        """Asks every non-empty line on its own about the pictures: no answer depends on the lines before it."""
        for line in lines:
            if question := line.strip():
                self.start_over(self._pictures)
                self.ask(question)

    def talk(self, read_line: Callable[[], str]) -> None:
        """Reads questions and commands until `/quit` or the end of input. A failed question ends itself, not the session."""
        self._note("Ask away; /help lists the commands, /quit leaves.")
        while True:
            try:
                line = read_line().strip()
            except KeyboardInterrupt:
                continue  # Ctrl-C at the prompt drops the half-typed line, as a shell does
            except EOFError:
                return
            try:
                if line == "/quit":
                    return
                if line.startswith("/"):
                    self._command(line)
                elif line:
                    self.ask(line)
            except KeyboardInterrupt:
                self._note("(stopped)")
            except VistuneError as error:
                self._note(f"error: {error}")

    async def _answer(self, question: str, conversation: Conversation) -> Answer:
        started = time.perf_counter()
        first: float | None = None
        reply: Reply | None = None
        with _DISPLAYS[self._output](self._out) as show:
            async with contextlib.aclosing(self._model.stream(conversation, self._params)) as deltas:
                async for delta in deltas:
                    if delta.text:
                        first = first or time.perf_counter()
                        show(delta.text)
                    reply = delta.reply or reply
        finished = time.perf_counter()
        if reply is None:
            raise RemoteError("The model's stream broke off before its end; ask again.")
        images = tuple(image.source for image in conversation.images)
        return Answer(question, images, reply, (first or finished) - started, finished - started)

    def _command(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        if name not in COMMANDS:
            raise UnknownName("command", name, COMMANDS)
        if name == "/help":
            self._note("\n".join(COMMANDS.values()))
        elif name == "/reset":
            self.start_over()
            self._note("Forgotten.")
        elif name == "/save":
            saved = save_conversation(self.conversation, _one_path(rest, COMMANDS["/save"]))
            self._note(f"Saved to {saved}.")
        elif name == "/model":
            self._choose(rest)
        elif name == "/image":
            pictures = _picture_paths(rest)
            check_pictures(pictures)
            self.start_over(pictures)
            self._note(f"Now talking about {', '.join(map(source_name, pictures))}.")

    def _choose(self, name: str) -> None:
        if self._choice is None:
            raise UsageError("There is one model here; `vistune chat --server ADDRESS` talks to a server that may have several.")
        if not name:
            return self._note("\n".join(f"{'*' if each == self._called else ' '} {each}" for each in self._choice.names))
        if name not in self._choice.names:
            raise UnknownName("model at this server", name, self._choice.names)
        self._leave()
        self._model, self._called = self._choice.get(name), name
        self._note(f"Now talking to {name}; the conversation goes on.")

    def _leave(self) -> None:
        """Closes the connections of a model that was made for this conversation."""
        from vistune.chat_model import OpenAIChatModel

        if self._choice is not None and isinstance(self._model, OpenAIChatModel):
            self._runner.run(self._model.close())

    def _note(self, text: str) -> None:
        print(text, file=self._notes, flush=True)


def _one_path(text: str, usage: str) -> Path:
    """The path after a command: quoted or not, spaces or not."""
    if not text:
        raise UsageError(f"Which file? {usage}")
    unquoted = text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
    return Path(unquoted).expanduser()


def _picture_paths(text: str) -> tuple[ImageSource, ...]:
    """Paths after `/image`: the whole text where that is a file (spaces need no quotes), else split as a shell would."""
    if not text:
        raise UsageError(f"Which picture? {COMMANDS['/image']}")
    if Path(text).expanduser().is_file():
        return (Path(text).expanduser(),)
    try:
        return tuple(picture_source(word) for word in shlex.split(text))
    except ValueError as error:
        raise UsageError(f"{text!r} cannot be read as paths ({error}); close the quote.") from None


# --- saving ----------------------------------------------------------------------------------------------------------------------------


def save_conversation(conversation: Conversation, path: Path) -> Path:
    """Writes a conversation as JSON (messages with typed parts, as transformers' chat templates take them) or as Markdown, by suffix.

    Raises UsageError for another suffix or an empty conversation, SaveError where the file cannot be written.
    """
    from vistune.journal import atomic_write

    if not conversation.messages:
        raise UsageError("There is nothing to save yet; ask something first.")
    if path.suffix == ".json":
        text = json.dumps({"messages": [_message_json(message) for message in conversation.messages]}, ensure_ascii=False, indent=2) + "\n"
    elif path.suffix == ".md":
        text = "\n\n".join(_message_markdown(message) for message in conversation.messages) + "\n"
    else:
        raise UsageError(f"A conversation is saved as .json or .md, not as {path.suffix or 'a file without suffix'!r}.")
    if path.is_dir():
        raise SaveError(f"{path} is a folder; name a file in it.")
    atomic_write(path, text.encode())
    return path


def _message_json(message: Message) -> dict[str, Any]:
    def part_json(part: Part) -> dict[str, str]:
        if isinstance(part, TextPart):
            return {"type": "text", "text": part.text}
        if isinstance(part.source, str):
            return {"type": "image", "url": part.source}
        return {"type": "image", "path": source_name(part.source)}

    return {"role": message.role, "content": [part_json(part) for part in message.parts]}


def _message_markdown(message: Message) -> str:
    pictures = "".join(f"![]({source_name(image.source)})\n\n" for image in message.images)
    return f"**{message.role.capitalize()}**\n\n{pictures}{message.text.strip()}"
