"""`vistune train` and `vistune plan`: look at a recipe, say what it will take, run it.

Under torchrun every process runs the same verb; only the first of them prints.
"""

from __future__ import annotations

import ast
import json
import os
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vistune.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vistune.model.llava import Llava
    from vistune.model.processor import Processor
    from vistune.train.config import TrainConfig
    from vistune.train.plan import DeviceSpec
    from vistune.types import Conversation

Gpu = Literal["h100", "h200", "a100-80", "a100-40", "cpu"]

RecipeArgument = Annotated[str | None, typer.Argument(help="A recipe's name; vistune train --list shows them.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Change a setting, e.g. optim.lr=1e-4.")]


def train(
    recipe: RecipeArgument = None,
    changes: SetOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last complete checkpoint.")] = False,
    allow_mismatch: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="With --resume: go on although NAME (data, optim.lr, ...) is another now.")
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Print the recipe's settings, with what each means, and exit.")] = False,
    list_recipes: Annotated[bool, typer.Option("--list", help="List the recipes and exit.")] = False,
) -> None:
    """Train a model by a recipe; prints the folder of the model.

    On several GPUs: torchrun --nproc-per-node 8 -m vistune train RECIPE. What a run will take, vistune plan RECIPE says.
    """
    if list_recipes:
        return typer.echo(_listing())
    config = _config(recipe, changes)
    if show:
        return typer.echo(settings_of(config))
    from vistune.train.trainer import train as run

    model = run(config, resume=resume, allow_mismatch=allow_mismatch or (), sampler=_sample_answers)
    if _is_first_process():
        typer.echo(model)


def plan(
    recipe: RecipeArgument = None,
    changes: SetOption = None,
    gpus: Annotated[int, typer.Option(min=1, help="How many devices share the run.")] = 1,
    gpu: Annotated[Gpu | None, typer.Option(help="Which kind they are; default: what this machine has.")] = None,
    images: Annotated[int | None, typer.Option(min=1, help="Plan for so many rows in place of those that the data has.")] = None,
    efficiency: Annotated[float, typer.Option(help="Which part of the devices' speed the run will reach, 0 to 1.")] = 0.4,
    price: Annotated[float | None, typer.Option(min=0, help="Of one device for an hour: prints what the run costs.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say before a run begins how long it is, what it needs, and whether it fits.

    vistune plan llava_v1_5_7b_finetune --gpus 8 --gpu h100. What cannot fit ends with exit code 7 and the settings that would make it fit.
    """
    from vistune.train.plan import make_plan

    config = _config(recipe, changes)
    device = _device(gpu, config)
    planned = make_plan(config, device, gpus=gpus, rows=images, efficiency=efficiency)
    typer.echo(json.dumps(planned.as_json(), indent=2) if as_json else planned.render(price=price))
    planned.refuse_unless_it_fits()


def _config(name: str | None, changes: list[str] | None) -> TrainConfig:
    from vistune.train.config import override
    from vistune.train.recipes import RECIPES
    from vistune.train.recipes import recipe as recipe_named

    if name is None:
        raise UsageError(f"Which recipe? Known: {', '.join(RECIPES)}.")
    return override(recipe_named(name), assignments(changes or []))


def assignments(changes: list[str]) -> dict[str, str]:
    """`["optim.lr=1e-4"]` as a mapping; the room that gets it knows the names and types."""
    pairs = [change.partition("=") for change in changes]
    wrong = next((name for name, equals, _ in pairs if not equals), None)
    if wrong is not None:
        raise UsageError(f"--set {wrong} has no value; write --set {wrong}=VALUE.")
    return {name.strip(): value.strip() for name, _, value in pairs}


# --- looking at recipes ---------------------------------------------------------------------------------------------------------------


def _listing() -> str:
    from vistune.train.recipes import RECIPES

    width = max(map(len, RECIPES))
    return "\n".join(f"{name:<{width}}  {(build.__doc__ or '').strip().partition(chr(10))[0]}" for name, build in RECIPES.items())


def settings_of(config: TrainConfig) -> str:
    """Every setting as NAME=VALUE, and under it what it means, where its definition says so."""
    from vistune.train.config import flat

    meanings = _meanings()
    lines: list[str] = []
    for name, value in flat(config).items():
        spelled = ",".join(map(str, value)) if isinstance(value, tuple) else str(value).lower() if isinstance(value, bool) else value
        lines.append(f"{name}={spelled}")
        if meaning := meanings.get(name):
            lines.append(textwrap.fill(meaning, 110, initial_indent="    ", subsequent_indent="    "))
    return "\n".join(lines)


def _meanings() -> dict[str, str]:
    """What the fields of the config's classes say about themselves, by dotted names. Read from the source: Python keeps no such text."""
    import vistune.model.config
    import vistune.train.config

    said: dict[str, dict[str, str]] = {}
    kinds: dict[str, dict[str, str]] = {}
    for module in (vistune.model.config, vistune.train.config):
        tree = ast.parse(Path(module.__file__ or "").read_text(encoding="utf-8"))
        for defined in (node for node in tree.body if isinstance(node, ast.ClassDef)):
            texts, types = said.setdefault(defined.name, {}), kinds.setdefault(defined.name, {})
            for field, after in zip(defined.body, [*defined.body[1:], None], strict=True):
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    types[field.target.id] = ast.unparse(field.annotation)
                    if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
                        texts[field.target.id] = " ".join(after.value.value.replace("`", "").split())

    def below(kind: str, prefix: str) -> dict[str, str]:
        found = {prefix + name: text for name, text in said[kind].items()}
        for name, inner in kinds[kind].items():
            if inner in said:
                found |= below(inner, f"{prefix}{name}.")
        return found

    return below("TrainConfig", "")


# --- this machine ---------------------------------------------------------------------------------------------------------------------


def _device(gpu: Gpu | None, config: TrainConfig) -> DeviceSpec:
    """The published device of that name; or this machine's GPU; or its CPU, whose speed is measured now."""
    from vistune.train.plan import DEVICES, this_device

    if gpu is not None and gpu != "cpu":
        return DEVICES[gpu]
    import torch

    from vistune.doctor import describe_machine

    if gpu is None and config.device != "cpu" and torch.cuda.is_available():
        device = this_device("cuda")
        return device if device.flops_bf16 else _measured(config, device)
    memory = describe_machine(ask_torch=False).memory_bytes
    return _measured(config, replace(this_device("cpu"), memory=None if memory is None else float(memory)))


def _measured(config: TrainConfig, device: DeviceSpec) -> DeviceSpec:
    """The device with the speed that it has now, at products of this model's shapes."""
    from vistune.train.expected import expected_model
    from vistune.train.limits import measure_attainable
    from vistune.train.shapes import language_shape

    shape = language_shape(expected_model(config.model).config.text_config)
    rates = [measure_attainable(shape, number, device=device.kind, tokens=256, megabytes=16, repeats=2) for number in ("bf16", "fp32")]
    return replace(device, flops_bf16=rates[0].flops_per_second, flops_fp32=rates[1].flops_per_second, measured=True)


def _is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _sample_answers(model: Llava, processor: Processor, conversations: Sequence[Conversation]) -> list[str]:
    """What the model under training says at this moment: the trainer knows no engine, so it is handed this."""
    import asyncio

    from vistune.engine.engine import Engine
    from vistune.types import SamplingParams

    async def answers() -> list[str]:
        with Engine(model, processor) as engine:
            replies = (engine.generate(each, SamplingParams(max_new_tokens=64)) for each in conversations)
            return [reply.text for reply in await asyncio.gather(*replies)]

    return asyncio.run(answers())
