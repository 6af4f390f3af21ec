"""The terminal, driven as a person and as a pipe would, with a model that is a script."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vistune.chat_model import BrokenReply, ScriptedChatModel
from vistune.errors import ContextLengthError, ImageError, UnknownName, UsageError
from vistune.serve.prompt import _completer
from vistune.serve.terminal import (
    Choice,
    TerminalChat,
    check_pictures,
    looks_like_picture,
    printable,
    question_parts,
    save_conversation,
    split_arguments,
)
from vistune.types import Conversation, FinishReason, ImagePart, Reply, SamplingParams, TextPart


def repeater(*, pause: float = 0.0, finish_reason: FinishReason = "stop", error_on: str = "never") -> ScriptedChatModel:
    """A model that says "You said" and the last user message, or fails where that contains `error_on`."""

    def script(conversation: Conversation, params: SamplingParams) -> str | Reply | Exception:
        question = conversation.messages[-1].text.strip()
        if error_on in question:
            return ContextLengthError("too long")
        text = f"You said {question}"
        return text if finish_reason == "stop" else Reply(text, finish_reason, prompt_tokens=7, cached_tokens=3, completion_tokens=2)

    return ScriptedChatModel(script, pause=pause)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a cat.png"
    Image.new("RGB", (8, 8), "red").save(path)
    return path


def terminal(model: ScriptedChatModel | Choice, **options: Any) -> tuple[TerminalChat, io.StringIO, io.StringIO]:
    out, notes = io.StringIO(), io.StringIO()
    return TerminalChat(model, params=SamplingParams(), out=out, notes=notes, **options), out, notes


def typed(*lines: str) -> Callable[[], str]:
    """A `read_line` that types these lines and then Ctrl-D; "^C" is Ctrl-C at the prompt."""
    waiting = iter(lines)

    def read_line() -> str:
        line = next(waiting, None)
        if line is None:
            raise EOFError
        if line == "^C":
            raise KeyboardInterrupt
        return line

    return read_line


# --- arguments ---


def test_leading_pictures_are_split_from_the_words_of_the_question(picture: Path):
    images, question = split_arguments([str(picture), "https://example.org/x", "missing.jpg", "What", "is this?"])
    assert images == (picture, "https://example.org/x", Path("missing.jpg"))
    assert question == "What is this?"


def test_without_words_there_is_no_question():
    assert split_arguments([]) == ((), None)
    assert split_arguments(["a.jpg"]) == ((Path("a.jpg"),), None)


def test_a_question_that_mentions_a_file_name_is_not_a_picture():
    assert split_arguments(["What does cat.jpg show?"]) == ((), "What does cat.jpg show?")
    assert split_arguments(["What is in this.jpg"])[0] == ()


def test_a_picture_after_the_question_says_to_put_it_first(picture: Path):
    with pytest.raises(UsageError, match="pictures first"):
        split_arguments(["What is this?", str(picture)])


def test_an_existing_path_counts_as_a_picture_but_a_bare_word_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "what").write_text("a file that is called like a word")
    monkeypatch.chdir(tmp_path)
    assert looks_like_picture(f".{os.sep}what")
    assert not looks_like_picture("what")


def test_a_missing_picture_is_an_image_error_that_names_it(tmp_path: Path):
    with pytest.raises(ImageError, match=r"no-such\.jpg") as caught:
        check_pictures([tmp_path / "no-such.jpg"])
    assert caught.value.reason == "missing"


# --- answers ---


def test_an_answer_in_a_pipe_is_plain_text_and_nothing_else():
    chat, out, notes = terminal(repeater())
    with chat:
        chat.ask("one two")
    assert out.getvalue() == "You said one two\n"
    assert notes.getvalue() == ""


def test_pictures_stand_before_the_first_question_each_on_its_own_line(picture: Path):
    model = repeater()
    chat, _, _ = terminal(model, pictures=[picture, picture], system="Be brief.")
    with chat:
        chat.ask("What?")
        chat.ask("And now?")
    system, first, _, second = model.calls[1][0].messages
    assert system.text == "Be brief."
    assert first.parts == (ImagePart(picture), TextPart("\n"), ImagePart(picture), TextPart("\nWhat?"))
    assert second.parts == (TextPart("And now?"),)


def test_a_question_without_pictures_has_no_leading_line_end():
    assert question_parts((), "Hello?") == (TextPart("Hello?"),)


def test_json_is_one_object_per_answer_with_the_promised_keys(picture: Path):
    chat, out, notes = terminal(repeater(), output="json", pictures=[picture])
    with chat:
        chat.ask("one")
        chat.ask("two")
    first, second = map(json.loads, out.getvalue().splitlines())
    assert list(first) == [
        "question", "images", "answer", "finish_reason", "prompt_tokens", "cached_tokens", "completion_tokens",
        "seconds_to_first_token", "seconds",
    ]  # fmt: skip
    assert (first["question"], first["images"], first["answer"], first["prompt_tokens"]) == ("one", [str(picture)], "You said one", 0)
    assert second["images"] == [str(picture)]
    assert 0 <= second["seconds_to_first_token"] <= second["seconds"]
    assert notes.getvalue() == ""


def test_every_line_of_a_pipe_is_asked_on_its_own_about_the_same_pictures(picture: Path):
    model = repeater()
    chat, out, _ = terminal(model, pictures=[picture])
    with chat:
        chat.ask_each(["one\n", "\n", "two\n"])
    assert out.getvalue() == "You said one\nYou said two\n"
    assert [(len(conversation.messages), len(conversation.images)) for conversation, _ in model.calls] == [(1, 1), (1, 1)]


def test_a_cut_answer_is_remarked_upon_beside_the_output():
    chat, out, notes = terminal(repeater(finish_reason="length"))
    with chat:
        answer = chat.ask("one")
    assert answer.as_json()["completion_tokens"] == 2
    assert "--max-new-tokens" in notes.getvalue()
    assert "max" not in out.getvalue()


def test_control_characters_of_an_answer_do_not_reach_the_terminal():
    assert printable("a\x1b[2Jb\x07\x9bc\td\n\r") == "a[2Jbc\td\n"


def test_markdown_is_rendered_and_printed_whole_at_the_end():
    chat, out, _ = terminal(repeater(), output="markdown")
    with chat:
        chat.ask("**bold** words")
    assert "bold words" in out.getvalue()
    assert "**" not in out.getvalue()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_cancels_the_answer_and_leaves_the_conversation_as_it_was():
    model = repeater(pause=0.05)
    chat, _, notes = terminal(model)

    def interrupt() -> None:
        while not model.num_active:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    with chat:
        thread = threading.Thread(target=interrupt)
        thread.start()
        chat.talk(typed("a long answer " * 50))
        thread.join()
        assert model.num_cancelled == 1
        assert chat.conversation == Conversation(())
        assert chat.ask("again").reply.text == "You said again"
    assert "(stopped)" in notes.getvalue()


def test_a_stream_that_breaks_off_ends_the_line_and_raises_its_error():
    chat, out, _ = terminal(ScriptedChatModel([BrokenReply("half an ans", ContextLengthError("full"))]))
    with chat, pytest.raises(ContextLengthError):
        chat.ask("Well?")
    assert out.getvalue() == "half an ans\n"
    assert chat.conversation == Conversation(())


# --- the REPL ---


def test_commands_of_the_repl_do_what_help_says(picture: Path, tmp_path: Path):
    model = repeater()
    chat, out, notes = terminal(model)
    saved = tmp_path / "talk.json"
    with chat:
        chat.talk(typed("/help", f"/image {picture}", "What?", "^C", f"/save '{saved}'", "/reset", "Hi", "/quit", "never asked"))
    assert out.getvalue() == "You said What?\nYou said Hi\n"
    assert "/reset" in notes.getvalue()
    assert [len(conversation.images) for conversation, _ in model.calls] == [1, 0]
    roles = [message["role"] for message in json.loads(saved.read_text())["messages"]]
    assert roles == ["user", "assistant"]


def test_an_error_ends_the_question_and_not_the_session():
    chat, out, notes = terminal(repeater(error_on="huge"))
    with chat:
        chat.talk(typed("huge question", "/nonsense", "/image no-such-file.png", "/image 'open", "/save", "small"))
    assert out.getvalue().strip() == "You said small"
    for word in ("too long", "/reset", "no-such-file.png", "close the quote", "Which file?"):
        assert word in notes.getvalue()


def test_an_unknown_command_lists_the_known_ones():
    chat, _, _ = terminal(repeater())
    with chat, pytest.raises(UnknownName, match="/image"):
        chat._command("/picture x")


def test_a_conversation_saves_as_markdown_and_refuses_other_suffixes(tmp_path: Path):
    conversation = Conversation(()).then("user", *question_parts([Path("cat.png")], "What?")).then("assistant", "A cat.")
    text = save_conversation(conversation, tmp_path / "talk.md").read_text()
    assert text == "**User**\n\n![](cat.png)\n\nWhat?\n\n**Assistant**\n\nA cat.\n"
    with pytest.raises(UsageError, match=r"\.json or \.md"):
        save_conversation(conversation, tmp_path / "talk.docx")
    with pytest.raises(UsageError, match="nothing to save"):
        save_conversation(Conversation(()), tmp_path / "talk.md")


def test_tab_completes_commands_picture_paths_and_the_names_of_models(picture: Path):
    from prompt_toolkit.completion import CompleteEvent
    from prompt_toolkit.document import Document

    (picture.parent / "notes.txt").touch()

    def completions(text: str) -> list[str]:
        return [each.text for each in _completer(["llava", "llama", "poet"]).get_completions(Document(text), CompleteEvent())]

    assert completions("/im") == ["/image"]
    assert completions(f"/image {picture.parent}{os.sep}") == ["a cat.png"]
    assert completions("what is /im") == []
    assert completions("/model ll") == ["llava", "llama"]


PTY_SCRIPT = """
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # only a controlling terminal turns Ctrl-C into a signal
sys.path.insert(0, {tests!r})
from test_terminal import repeater
from pathlib import Path
from vistune.serve.prompt import line_reader
from vistune.serve.terminal import TerminalChat
from vistune.types import SamplingParams
with TerminalChat(repeater(pause=float(sys.argv[2])), params=SamplingParams(), output="markdown") as chat:
    chat.talk(line_reader(Path(sys.argv[1])))
print("left", "politely")
"""


PROMPT = "\x1b[?2004h"  # bracketed paste on: what a terminal is sent when a line is about to be read


class Keyboard:
    """A person at a pseudo-terminal: types, and waits until the screen says something."""

    def __init__(self, *arguments: str):
        self.master, slave = pty.openpty()
        environment = os.environ | {"PROMPT_TOOLKIT_NO_CPR": "1", "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
        script = PTY_SCRIPT.format(tests=str(Path(__file__).parent))
        command = [sys.executable, "-c", script, *arguments]
        self.process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True)
        os.close(slave)
        self.screen = ""

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def wait_for(self, text: str, seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.screen:
            ready, _, _ = select.select([self.master], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{text!r} did not appear on:\n{self.screen}"
            try:
                self.screen += os.read(self.master, 4096).decode(errors="replace")
            except OSError:  # Linux' way to say that the other side is closed
                raise AssertionError(f"ended before {text!r} appeared:\n{self.screen}") from None
        self.screen = self.screen.partition(text)[2]

    def close(self) -> int:
        """The exit code; the terminal goes away only after the program, which would be hung up on otherwise."""
        try:
            return self.process.wait(10)
        finally:
            os.close(self.master)


def test_a_person_at_a_real_terminal_asks_edits_and_leaves(tmp_path: Path):
    history = tmp_path / "deep" / "history"
    keyboard = Keyboard(str(history), "0")
    keyboard.wait_for(PROMPT)
    keyboard.type("hellp\x7fo there\r")  # a typo, Backspace, and on
    keyboard.wait_for("You said hello there")
    keyboard.wait_for(PROMPT)
    keyboard.type("\x1b[A")  # Up brings it back
    keyboard.wait_for("hello there")
    keyboard.type("\x03")  # Ctrl-C drops the line
    keyboard.wait_for(PROMPT)
    keyboard.type("\x04")  # Ctrl-D leaves
    keyboard.wait_for("left politely")
    assert keyboard.close() == 0
    assert "+hello there" in history.read_text()


def test_ctrl_c_at_a_real_terminal_stops_the_answer_and_asks_again(tmp_path: Path):
    keyboard = Keyboard(str(tmp_path / "history"), "0.05")
    keyboard.wait_for(PROMPT)
    keyboard.type("word " * 100 + "\r")
    keyboard.wait_for("You said word")
    keyboard.type("\x03")
    keyboard.wait_for("(stopped)")
    keyboard.wait_for(PROMPT)
    keyboard.type("/quit\r")
    keyboard.wait_for("left politely")
    assert keyboard.close() == 0


# --- several models -----------------------------------------------------------------------------------------------------------------------


def test_a_conversation_goes_on_with_another_model_of_the_server():
    models = {name: ScriptedChatModel(lambda conversation, _, name=name: f"{name} {len(conversation.messages)}") for name in ("one", "two")}
    chat, out, notes = terminal(Choice(tuple(models), "two", models.__getitem__))
    with chat:
        chat.talk(typed("Hi", "/model", "/model one", "And you?", "/model tow", "/model", "Still there?"))
    assert out.getvalue() == "two 1\none 3\none 5\n"
    said = notes.getvalue()
    assert "  one\n* two\n" in said
    assert "* one\n  two\n" in said
    assert "Did you mean 'two'?" in said


def test_without_a_server_there_is_one_model():
    chat, _, notes = terminal(repeater())
    with chat:
        chat.talk(typed("/model other"))
    assert "--server" in notes.getvalue()
