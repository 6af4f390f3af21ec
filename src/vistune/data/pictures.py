"""Pictures of instruction data that move between files and rows: embedded as bytes, or saved as files again. No torch here."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from vistune.formats import ImageBytes, confined_name
from vistune.image_headers import read_header
from vistune.journal import atomic_write
from vistune.media import image_bytes
from vistune.types import Conversation, ImagePart, ImageSource, InstructionExample, Message, Part

_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif"}


def absolute_folder(folder: Path) -> Path:
    """The folder as an absolute path without `..`, so that pictures under two folders can be told to be the same file, or one inside the
    other, however the folders were written."""
    return Path(os.path.abspath(folder))


def with_pictures(example: InstructionExample, change: Callable[[ImageSource], ImageSource]) -> InstructionExample:
    """The same record with every picture's source replaced."""

    def changed(part: Part) -> Part:
        return ImagePart(change(part.source)) if isinstance(part, ImagePart) else part

    messages = (Message(message.role, tuple(changed(part) for part in message.parts)) for message in example.conversation.messages)
    return replace(example, conversation=Conversation(tuple(messages)))


def embedded(example: InstructionExample, root: Path) -> InstructionExample:
    """The record with every picture that is a file as its bytes, which remember its name under `root`.

    Raises ImageError for a picture that is missing, broken at its head or over a limit.
    """

    def read(source: ImageSource) -> ImageSource:
        if not isinstance(source, Path):
            return source
        name = source.relative_to(root) if source.is_relative_to(root) else Path(source.name)
        return ImageBytes(image_bytes(source, root=root), name.as_posix())

    return with_pictures(example, read)


class PictureFolder:
    """Saves pictures that are bytes as files under a folder, each under the name that it had, and never over another file.

    Where that name is taken by other bytes, or is none that may be used, the picture is named by its digest, in `embedded/`.
    """

    def __init__(self, root: Path):
        self.root = root
        self.saved = 0

    def place(self, example: InstructionExample) -> InstructionExample:
        """The record with every picture that is bytes as a file. Raises ImageError for bytes that are no picture."""
        return with_pictures(example, lambda source: self._save(source) if isinstance(source, bytes) else source)

    def _save(self, data: bytes) -> Path:
        data = image_bytes(data)
        path = self._path(data, getattr(data, "name", ""))
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, data)
            self.saved += 1
        return path

    def _path(self, data: bytes, name: str) -> Path:
        try:
            path = self.root / confined_name(name)
            inside = path.resolve().is_relative_to(self.root.resolve())  # also behind symbolic links
            if inside and path.suffix.lower() in (*_SUFFIXES.values(), ".jpeg") and (not path.exists() or path.read_bytes() == data):
                return path
        except (ValueError, OSError):
            pass  # a name that leads out of the folder, or that this file system cannot have: take the digest
        return self.root / "embedded" / (hashlib.sha256(data).hexdigest()[:32] + _SUFFIXES[read_header(data).format])
