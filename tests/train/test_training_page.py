"""Every command of docs/training.md is one that vistune takes; those that only look or plan are run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import vistune
from vistune.__main__ import main
from vistune.cli import app
from vistune.cli_train import assignments
from vistune.train.config import override
from vistune.train.recipes import recipe

PAGE = Path(vistune.__file__).parents[2] / "docs" / "training.md"
TEXT = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
COMMANDS = [line.split("vistune ", 1)[1] for language, block in BLOCKS if not language for line in block.splitlines()]
LOOKS = [command for command in COMMANDS if command.startswith(("plan", "train --list", "train --show"))]

pytestmark = pytest.mark.skipif(not TEXT, reason="installed without its documentation")


@pytest.mark.parametrize("command", LOOKS)
def test_a_command_that_looks_or_plans_runs_as_it_stands(command: str, capsys: pytest.CaptureFixture[str]):
    refused = command == "plan llava_v1_5_7b_finetune --gpu h100"  # the page says so
    assert main(shlex.split(command, comments=True)) == (7 if refused else 0)
    printed = capsys.readouterr()
    assert printed.out
    assert ("It would fit with" in printed.err) == refused


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in LOOKS])
def test_a_command_that_works_is_one_that_the_command_line_takes(command: str):
    verb, *arguments = shlex.split(command)
    group: Any = get_command(app)
    parser = group.commands[verb]
    if verb == "data":
        parser, arguments = parser.commands[arguments[0]], arguments[1:]
    context = parser.make_context(verb, arguments)
    if verb == "train":
        override(recipe(context.params["recipe"]), assignments(context.params["changes"]))


def test_every_setting_that_the_page_names_is_one():
    named = re.findall(r"`((?:\w+\.)*\w+)=([^`\s]+)`", TEXT)
    assert len(named) > 8
    for name, value in named:
        override(recipe("llava_v1_5_7b_finetune_lora"), {name: value})


def test_every_recipe_family_is_on_the_page():
    for name in ("llava_v1_pretrain", "llava_v1_5_7b_finetune_task", "llava_next_finetune", "smol_align"):
        assert f"`{name}`" in TEXT
