"""How the command line's verbs name a model, or several, and how they get them as `ChatModel`s."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypedDict

import typer

from vistune.errors import RemoteError, UnknownName, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import torch
    from PIL.Image import Image

    from vistune.chat_model import ChatModel
    from vistune.engine.engine import Engine
    from vistune.model.llava import Llava
    from vistune.model.processor import Processor
    from vistune.serve.roster import LocalAdapter, LocalModel, Roster
    from vistune.serve.terminal import Choice
    from vistune.types import ImageSource

DType = Literal["auto", "float32", "bfloat16"]
Device = Literal["auto", "cpu", "cuda"]
Weights = Literal["full", "int8", "int4"]

ModelOption = Annotated[str, typer.Option("--model", "-m", help="`assistant` (the bundled one), a checkpoint folder, or a hub name.")]
BaseOption = Annotated[str | None, typer.Option(help="What an adapter or a projector alone stands on, if it does not say.")]
TowerOption = Annotated[str | None, typer.Option(help="The vision tower of an original LLaVA checkpoint that does not hold it.")]
TemplateOption = Annotated[str | None, typer.Option(help="The chat template of a checkpoint that does not name one, e.g. vicuna_v1.")]
DTypeOption = Annotated[DType, typer.Option(help="Number format of the weights; auto takes bfloat16 where the machine is fast at it.")]
WeightsOption = Annotated[Weights, typer.Option(help="int8 and int4 take less memory and are less exact; for CPUs only.")]
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
    weights: Weights = "full",
    untuned: bool = False,
    base: str | None = None,
    vision_tower: str | None = None,
    template: str | None = None,
) -> Iterator[Engine]:
    """`--model` as a ChatModel, with whatever else it stands on; `untuned`, only that."""
    from vistune.pull import pull

    others, folder = stands_on(base, vision_tower, template), pull(name)
    _say_loading(name)

    from vistune.checkpoint.folder import load_untuned
    from vistune.checkpoint.shared import load_sharing
    from vistune.engine.engine import Engine
    from vistune.model.threads import apart

    place, precision = _place_and_precision(device, dtype)
    if untuned:
        model, processor = apart(load_untuned, folder, dtype=precision, device=place)
    else:
        ((model, processor),) = apart(load_sharing, folder, (), dtype=precision, weights=weights, device=place, **others)
    with Engine(model, processor, deterministic=deterministic) as engine:
        yield engine


@contextmanager
def loaded_roster(
    roster: Roster,
    dtype: DType,
    device: Device,
    *,
    deterministic: bool = False,
    weights: Weights = "full",
    base: str | None = None,
    vision_tower: str | None = None,
    template: str | None = None,
) -> Iterator[dict[str, ChatModel]]:
    """All that a roster names, by name. Models on this machine take turns at the device and share one budget for keys and values; the
    pictures that strangers send them are decoded in processes of their own.

    Raises UsageError, before anything is loaded, where what one foreign checkpoint stands on is said of several models.
    """
    if len(roster.models) != 1 and (base or vision_tower or template):
        raise UsageError("--base, --vision-tower and --template are about one model on this machine; export the others first.")
    others = stands_on(base, vision_tower, template)
    from vistune.decoding import DecodePool
    from vistune.pull import pull

    folders = {each: pull(each.source) for each in (*roster.models, *roster.adapters)}
    with ExitStack() as open_engines:
        engines: dict[str, ChatModel] = {}
        if folders:
            pool, place = open_engines.enter_context(DecodePool()), _place_and_precision(device, dtype)
            for names, engine in _engines(roster, folders, others, place, pool.open_image, deterministic=deterministic, weights=weights):
                open_engines.enter_context(engine)
                engines |= dict.fromkeys(names, engine)
        engines |= _upstreams(roster)
        yield {name: engines[name] for name in roster.lineage}


def _engines(
    roster: Roster,
    folders: Mapping[LocalModel | LocalAdapter, Path],
    others: _StandsOn,
    where: tuple[str, torch.dtype],
    open_image: Callable[[ImageSource], Image],
    *,
    deterministic: bool,
    weights: Weights,
) -> list[tuple[Sequence[str], Engine]]:
    """An engine for each model and each adapter on this machine, with its names."""
    from vistune.checkpoint.shared import load_sharing
    from vistune.engine.engine import Engine
    from vistune.engine.neighbours import Turns, kv_shares
    from vistune.model.threads import apart

    place, precision = where
    loaded: list[tuple[Sequence[str], Llava, Processor]] = []
    for model in roster.models:
        over = [adapter for adapter in roster.adapters if adapter.base in model.names]
        _say_loading(", ".join([model.source, *(adapter.source for adapter in over)]))
        found = apart(
            load_sharing, folders[model], [folders[adapter] for adapter in over], dtype=precision, weights=weights, device=place, **others
        )
        for adapter in over:
            _note_other_base(adapter, folders[adapter], model)
        names = [model.names, *((adapter.name,) for adapter in over)]
        loaded += [(each, llava, processor.opening_with(open_image)) for each, (llava, processor) in zip(names, found, strict=True)]
    turns, shares = Turns(), kv_shares([model for _, model, _ in loaded])
    return [
        (names, Engine(model, processor, kv_bytes=share, deterministic=deterministic, turn=turns.new() if len(loaded) > 1 else None))
        for (names, model, processor), share in zip(loaded, shares, strict=True)
    ]


def _note_other_base(adapter: LocalAdapter, folder: Path, model: LocalModel) -> None:
    """Says so where PEFT's note names another model. No more than that: it is a path on whatever machine the adapter was trained on."""
    from vistune.checkpoint.adapters import read_adapter
    from vistune.checkpoint.folder import stands_on_bases

    if stands_on_bases(folder):
        return  # compared by digest
    trained_on = read_adapter(folder).base
    if trained_on and Path(trained_on).name != Path(model.source).resolve().name:
        typer.echo(f"note: {adapter.name} says that it was trained on {trained_on!r}; it now stands on {model.source}.", err=True)


def _upstreams(roster: Roster) -> dict[str, ChatModel]:
    if not roster.upstreams:
        return {}
    import openai

    from vistune.chat_model import OpenAIChatModel
    from vistune.serve.upstream import CONNECT_SECONDS, Upstream

    timeout = openai.Timeout(None, connect=CONNECT_SECONDS)  # `Upstream` watches over all else
    return {
        each.name: Upstream(OpenAIChatModel(each.model, base_url=each.address, api_key=each.key.reveal(), timeout=timeout))
        for each in roster.upstreams
    }


def models_at(address: str, *, first: str | None, key_from: str | None) -> Choice:
    """The models of an OpenAI-compatible server; `first` is the one to begin with, by default the first that it names.

    Raises RemoteError where it does not say which it has, UnknownName where it has no `first`.
    """
    from vistune.serve.roster import checked_address

    checked_address(address)
    if key_from and not os.environ.get(key_from):
        raise UsageError(f"The environment variable {key_from} is not set; it should hold the key.")
    import openai

    from vistune.chat_model import OpenAIChatModel
    from vistune.http_client import excerpt, usable_key
    from vistune.serve.terminal import Choice

    key = usable_key(os.environ[key_from] if key_from else "")
    carrier = openai.DefaultHttpxClient(follow_redirects=False)  # the key goes to this address or nowhere
    try:
        with openai.OpenAI(base_url=address, api_key=key.reveal() or "none", timeout=15, max_retries=1, http_client=carrier) as client:
            names = tuple(model.id for model in client.models.list() if isinstance(model.id, str) and model.id.isprintable())
    except (openai.OpenAIError, ValueError, AttributeError, TypeError) as error:  # whatever stands in place of a list
        hint = "Give its key by --key-from VARIABLE." if isinstance(error, openai.AuthenticationError) else "Check the address."
        raise RemoteError(f"{address} does not list its models ({excerpt(key.hidden_in(str(error)), 200)}). {hint}") from None
    if not names:
        raise RemoteError(f"{address} serves no model.")
    if first is not None and first not in names:
        raise UnknownName("model at this server", first, names)
    return Choice(names, first or names[0], lambda name: OpenAIChatModel(name, base_url=address, api_key=key.reveal()))


def _say_loading(name: str) -> None:
    if sys.stderr.isatty():
        typer.echo(f"Loading {name} …", err=True)


def _place_and_precision(device: Device, dtype: DType) -> tuple[str, torch.dtype]:
    import torch

    from vistune.engine.engine import best_dtype

    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("There is no GPU that this torch can use; leave --device out, or see `vistune doctor`.")
    place = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    return place, best_dtype(place) if dtype == "auto" else getattr(torch, dtype)
