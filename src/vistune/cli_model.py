"""How the command line's verbs name a model, and how they get it as a `ChatModel`."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypedDict

import typer

from vistune.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vistune.engine.engine import Engine

DType = Literal["auto", "float32", "bfloat16"]
Device = Literal["auto", "cpu", "cuda"]

ModelOption = Annotated[str, typer.Option("--model", "-m", help="`assistant` (the bundled one), a checkpoint folder, or a hub name.")]
BaseOption = Annotated[str | None, typer.Option(help="What an adapter or a projector alone stands on, if it does not say.")]
TowerOption = Annotated[str | None, typer.Option(help="The vision tower of an original LLaVA checkpoint that does not hold it.")]
TemplateOption = Annotated[str | None, typer.Option(help="The chat template of a checkpoint that does not name one, e.g. vicuna_v1.")]
DTypeOption = Annotated[DType, typer.Option(help="Number format of the weights; auto takes bfloat16 where the machine is fast at it.")]
DeviceOption = Annotated[Device, typer.Option(help="auto takes the GPU if there is one.")]


class _StandsOn(TypedDict):
    """What `load_model` wants to know about a foreign checkpoint beyond its folder."""

    base: Path | None
    vision_tower: Path | None
    template: str | None


def stands_on(base: str | None, vision_tower: str | None, template: str | None) -> _StandsOn:
    """The options of the same names, with what they name fetched; a wrong name is said before anything is loaded."""
    from vistune.model.templates import template_named
    from vistune.pull import pull

    if template is not None:
        template_named(template)
    return {"base": pull(base) if base else None, "vision_tower": pull(vision_tower) if vision_tower else None, "template": template}


@contextmanager
def loaded_model(
    name: str,
    dtype: DType,
    device: Device,
    *,
    deterministic: bool = False,
    untuned: bool = False,
    base: str | None = None,
    vision_tower: str | None = None,
    template: str | None = None,
) -> Iterator[Engine]:
    """`--model` as a ChatModel, with whatever else it stands on; `untuned`, only that."""
    from vistune.pull import pull

    others, folder = stands_on(base, vision_tower, template), pull(name)
    if sys.stderr.isatty():
        typer.echo(f"Loading {name} …", err=True)
    import torch

    from vistune.checkpoint.folder import load_model, load_untuned
    from vistune.engine.engine import Engine, best_dtype

    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("There is no GPU that this torch can use; leave --device out, or see `vistune doctor`.")
    place = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    precision = best_dtype(place) if dtype == "auto" else getattr(torch, dtype)
    if untuned:
        model, processor = load_untuned(folder, dtype=precision, device=place)
    else:
        model, processor = load_model(folder, dtype=precision, device=place, **others)
    with Engine(model, processor, deterministic=deterministic) as engine:
        yield engine
