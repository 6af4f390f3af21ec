"""Clients that vistune does not depend on, each in an environment of its own: two turns about a picture, the second streamed.

Nightly: they are installed from the package registries first, and skipped where these cannot be reached.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from tests.serve.live import Live, live

from vistune.chat_model import ScriptedChatModel

pytestmark = pytest.mark.nightly

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", PAGE, re.DOTALL)
PAUSE = 0.15
REPLIES = ("A cup of coffee.", "It is on the table, to the left.")


@pytest.fixture
def model() -> ScriptedChatModel:
    return ScriptedChatModel(REPLIES, pause=PAUSE)


@pytest.fixture
def server(model: ScriptedChatModel) -> Iterator[Live]:
    with live({"assistant": model}) as running:
        yield running


def installed(command: list[str], folder: Path, what: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        pytest.skip(f"{what} cannot be installed here: {done.stderr[-300:]}")


def gaps_between_pieces(command: list[str], folder: Path, server: Live) -> tuple[str, list[float]]:
    """What a program printed, and the seconds between one piece of output and the next."""
    Image.new("RGB", (16, 8), "red").save(folder / "photo.jpg")
    environment = os.environ | {"OPENAI_BASE_URL": f"{server.address}/v1", "OPENAI_API_KEY": "none"}
    environment.pop("PYTHONPATH", None)
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        printed, times = b"", []
        while piece := os.read(process.stdout.fileno(), 4096):
            printed += piece
            times.append(time.monotonic())
    assert process.returncode == 0
    return printed.decode(), [after - before for before, after in itertools.pairwise(times)]


def check(printed: str, gaps: list[float], model: ScriptedChatModel) -> None:
    assert printed == "\n".join(REPLIES)
    first, second = (conversation for conversation, _ in model.calls)
    assert [message.role for message in first.messages] == ["user"]
    assert [message.role for message in second.messages] == ["user", "assistant", "user"]
    assert first.images == second.images
    assert len(first.images) == 1
    pieces = len(REPLIES[1]) // 4
    print(f"gaps between pieces of output: {', '.join(f'{gap:.2f}' for gap in gaps)} s; the model pauses {PAUSE} s")
    assert sum(gap > PAUSE / 2 for gap in gaps) >= pieces - 2, "the second reply did not come piece by piece"


@pytest.mark.skipif(not shutil.which("npm"), reason="needs Node.js and npm")
def test_the_openai_package_of_npm(server: Live, model: ScriptedChatModel, tmp_path: Path):
    (program,) = [text for language, text in BLOCKS if language == "js"]
    (tmp_path / "program.mjs").write_text(program)
    installed(["npm", "install", "--no-audit", "--no-fund", "openai"], tmp_path, "openai (npm)")
    check(*gaps_between_pieces(["node", "program.mjs"], tmp_path, server), model)


def test_langchain(server: Live, model: ScriptedChatModel, tmp_path: Path):
    (program,) = [text for language, text in BLOCKS if language == "python" and "langchain" in text]
    (tmp_path / "program.py").write_text(program)
    installed([sys.executable, "-m", "venv", "environment"], tmp_path, "a virtual environment")
    python = str(tmp_path / "environment" / "bin" / "python")
    installed([python, "-m", "pip", "install", "--quiet", "langchain-openai"], tmp_path, "langchain-openai")
    check(*gaps_between_pieces([python, "program.py"], tmp_path, server), model)
