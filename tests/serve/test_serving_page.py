"""What docs/serving.md shows works as it stands there."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from tests.serve.live import Live, live
from typer.main import get_command

from vistune import http_client
from vistune.chat_model import ScriptedChatModel
from vistune.cli import app
from vistune.serve import upstream
from vistune.serve.roster import LocalAdapter, LocalModel, UpstreamModel, read_roster
from vistune.serve.schemas import Body, RequestLimits
from vistune.types import ImagePart

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", PAGE, re.DOTALL)
PROGRAMS = [text for language, text in BLOCKS if language == "python" and "langchain" not in text and "pydantic" not in text]
"""The programs that need nothing but vistune's own packages; test_other_clients.py and test_response_format.py run the others."""


@pytest.fixture
def model() -> ScriptedChatModel:
    return ScriptedChatModel(lambda conversation, _: f"It is answer {len(conversation.messages)}.")


@pytest.fixture
def server(model: ScriptedChatModel) -> Iterator[Live]:
    with live({"assistant": model}) as running:
        yield running


def run(command: list[str], folder: Path, server: Live) -> str:
    Image.new("RGB", (16, 8), "red").save(folder / "photo.jpg")
    environment = os.environ | {"OPENAI_BASE_URL": f"{server.address}/v1", "OPENAI_API_KEY": "none"}
    finished = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_both_programs_are_on_the_page():
    assert len(PROGRAMS) == 2


@pytest.mark.parametrize(("number", "answers"), [(0, ["answer 1", "answer 3"]), (1, ["answer 1"])])
def test_the_programs_talk_about_a_picture(number: int, answers: list[str], server: Live, model: ScriptedChatModel, tmp_path: Path):
    (tmp_path / "program.py").write_text(PROGRAMS[number])
    printed = run([sys.executable, "program.py"], tmp_path, server)
    assert all(answer in printed for answer in answers)
    assert {len(conversation.images) for conversation, _ in model.calls} == {1}


@pytest.mark.skipif(not shutil.which("curl") or not shutil.which("bash"), reason="needs curl and bash")
def test_the_command_with_curl_asks_about_a_picture(server: Live, model: ScriptedChatModel, tmp_path: Path):
    (command,) = [text for language, text in BLOCKS if language == "bash"]
    printed = run(["bash", "-c", command], tmp_path, server)
    assert json.loads(printed)["choices"][0]["message"]["content"] == "It is answer 1."
    assert model.calls[0][0].images == (ImagePart((tmp_path / "photo.jpg").read_bytes()),)


def test_the_pictures_on_the_page_are_there_and_light():
    named = re.findall(r"images/[\w-]+\.\w+", PAGE)
    assert named
    folder = Path(__file__).parents[2] / "docs"
    assert all(0 < (folder / name).stat().st_size < 150_000 for name in named)
    assert {path.name for path in (folder / "images").glob("web-chat*")} == {Path(name).name for name in named}


def test_every_option_that_the_page_names_exists():
    known = {option for parameter in get_command(app).commands["serve"].params for option in (*parameter.opts, *parameter.secondary_opts)}  # type: ignore[attr-defined]
    of_others = {"--model", "--model-name", "--server", "--served-model-name"}  # chat's, eval's, chat's, vLLM's
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE)) - of_others
    assert named <= known


def test_every_command_on_the_page_says_what_can_be_served():
    serve = get_command(app).commands["serve"]  # type: ignore[attr-defined]
    lines = [shlex.split(line, comments=True) for _, block in BLOCKS for line in block.splitlines() if line.startswith("vistune serve ")]
    rosters = []
    for line in lines:
        given = serve.make_context("serve", line[2:]).params
        environment = {key.partition("=")[2]: "a key" for key in given["key_from"] or ()}
        rosters.append(
            read_roster(
                given["models"],
                given["adapter"] or (),
                names=given["name"] or (),
                keys_from=given["key_from"] or (),
                environment=environment,
            )
        )
    assert {type(each) for roster in rosters for each in (*roster.models, *roster.adapters, *roster.upstreams)} == {
        LocalModel,
        LocalAdapter,
        UpstreamModel,
    }


def test_what_the_page_says_of_other_servers_is_what_happens():
    for seconds in (upstream.CONNECT_SECONDS, upstream.FIRST_SECONDS, upstream.SILENCE_SECONDS):
        assert f"{seconds:g} s" in PAGE
    assert f"left alone for {upstream.DOWN_SECONDS:g} seconds" in PAGE
    assert f"{http_client.MAX_STREAM >> 20} MiB, an event over {http_client.MAX_EVENT >> 20} MiB" in PAGE


def test_the_page_names_every_field_that_is_honoured():
    assert all(f"`{name}`" in PAGE for name in Body.model_fields)


def test_the_limits_on_the_page_are_those_in_force():
    limits = RequestLimits()
    for shown in (f"{limits.body_bytes >> 20} MiB", f"{limits.max_tokens:,} tokens", f"{limits.messages}, {limits.characters:,}"):
        assert shown in PAGE
    assert f"{limits.default_tokens:,} where" in PAGE
    assert f"up to {limits.choices} choices" in PAGE
