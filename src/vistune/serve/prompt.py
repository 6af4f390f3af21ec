"""The line that a person types at a terminal: editing, history and completion. What it means is `terminal.py`'s to say."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vistune.serve.terminal import COMMANDS, PICTURE_SUFFIXES

if TYPE_CHECKING:
    from prompt_toolkit.completion import Completer


def line_reader(history: Path, models: Sequence[str] = ()) -> Callable[[], str]:
    """A prompt with history across sessions, editing, and Tab completion of commands, of paths and of models' names."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory
    from prompt_toolkit.output import create_output

    history.parent.mkdir(parents=True, exist_ok=True)
    session: PromptSession[str] = PromptSession(
        history=FileHistory(str(history)),
        completer=_completer(models),
        complete_while_typing=False,
        output=create_output(always_prefer_tty=True),  # the prompt stays on the terminal when answers are redirected to a file
    )
    return lambda: session.prompt("> ")


def _completer(models: Sequence[str]) -> Completer:
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document

    def fits_image(name: str) -> bool:
        return os.path.isdir(name) or os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES

    paths = {"/image": PathCompleter(expanduser=True, file_filter=fits_image), "/save": PathCompleter(expanduser=True)}

    class CommandCompleter(Completer):
        def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
            command, space, rest = document.text_before_cursor.partition(" ")
            if space and command in paths:
                yield from paths[command].get_completions(Document(rest), complete_event)
            elif space and command == "/model":
                yield from (Completion(name, start_position=-len(rest)) for name in models if name.startswith(rest))
            elif not space and command.startswith("/"):
                yield from (Completion(name, start_position=-len(command)) for name in COMMANDS if name.startswith(command))

    return CommandCompleter()
