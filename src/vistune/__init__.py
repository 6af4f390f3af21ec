"""vistune: LLaVA, the Large Language and Vision Assistant, as a complete system.

    import vistune
    from pathlib import Path

    with vistune.Engine.from_folder(vistune.pull("assistant")) as engine:
        ask = vistune.Conversation(()).then("user", vistune.ImagePart(Path("cat.jpg")), "\nWhat is this?")
        print(vistune.SynchronousChatModel(engine).generate(ask, vistune.SamplingParams()).text)

Importing the package is instant: torch is loaded by the rooms that compute, when one of their names is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vistune.errors import VistuneError
from vistune.types import Conversation, ImagePart, InstructionExample, Message, Reply, SamplingParams, TextPart

if TYPE_CHECKING:
    from vistune.chat_model import SynchronousChatModel
    from vistune.checkpoint.folder import load_model, save_model
    from vistune.engine.engine import Engine
    from vistune.pull import pull
    from vistune.train.recipes import recipe
    from vistune.train.trainer import train

__version__ = "0.1.0"

__all__ = [
    "Conversation",
    "Engine",
    "ImagePart",
    "InstructionExample",
    "Message",
    "Reply",
    "SamplingParams",
    "SynchronousChatModel",
    "TextPart",
    "VistuneError",
    "load_model",
    "pull",
    "recipe",
    "save_model",
    "train",
]

_WHERE = {
    "Engine": "vistune.engine.engine",
    "SynchronousChatModel": "vistune.chat_model",
    "load_model": "vistune.checkpoint.folder",
    "pull": "vistune.pull",
    "recipe": "vistune.train.recipes",
    "save_model": "vistune.checkpoint.folder",
    "train": "vistune.train.trainer",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'vistune' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
