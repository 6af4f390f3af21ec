"""A blind model sees grey pictures of the right size and reads the same words."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import pytest
from PIL import Image

from vistune.chat_model import ScriptedChatModel
from vistune.errors import ImageError, UsageError
from vistune.eval.blind import GREY, BlindChatModel, blinded
from vistune.types import Conversation, ImagePart, VideoPart


def test_pictures_become_grey_and_keep_their_size_and_the_words_stay(tmp_path: Path):
    Image.effect_noise((7, 5), 80).convert("RGB").save(tmp_path / "noise.png")
    asked = Conversation(()).then("user", ImagePart(tmp_path / "noise.png"), "\nWhat?").then("assistant", "Noise.").then("user", "Sure?")
    scripted = ScriptedChatModel(["Grey."])
    assert asyncio.run(BlindChatModel(scripted).generate(asked)).text == "Grey."
    seen = scripted.calls[0][0]
    assert [(message.role, message.text) for message in seen.messages] == [(message.role, message.text) for message in asked.messages]
    source = seen.images[0].source
    assert isinstance(source, bytes)
    picture = Image.open(io.BytesIO(source))
    assert (picture.size, picture.getcolors()) == ((7, 5), [(35, GREY)])


def test_what_cannot_be_blinded_is_refused(tmp_path: Path):
    with pytest.raises(ImageError):
        blinded(Conversation(()).then("user", ImagePart(tmp_path / "none.png")))
    with pytest.raises(UsageError, match="video"):
        blinded(Conversation(()).then("user", VideoPart(tmp_path / "film.mp4")))
