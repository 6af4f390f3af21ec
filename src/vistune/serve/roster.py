"""What is served under which name, read from the command line before anything is loaded or asked.

    SOURCE or NAME=SOURCE                       a model on this machine: `assistant`, a folder, a hub name
    NAME=http://host/v1 or ...#MODEL            one that another server has, there called NAME or MODEL
    --adapter NAME=FOLDER or NAME@BASE=FOLDER   an adapter over the first model, or over the one called BASE

Addresses come from here and from nowhere else: nothing that a client, an upstream or a folder says adds one.
"""

from __future__ import annotations

import os
import urllib.parse
from collections.abc import Collection, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vistune.errors import UnknownName, UsageError
from vistune.http_client import Secret, usable_key

_LONGEST_NAME = 128


@dataclass(frozen=True)
class LocalModel:
    """Weights of this machine, under one or more names."""

    names: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class LocalAdapter:
    """An adapter's folder, over the weights of the model called `base`."""

    name: str
    source: str
    base: str


@dataclass(frozen=True)
class UpstreamModel:
    """A model that an OpenAI-compatible server at `address` calls `model`."""

    name: str
    address: str
    model: str
    key: Secret


@dataclass(frozen=True)
class Lineage:
    """What a served name stands for, as `/v1/models` tells it: `root`, its source's own name, and of an adapter the name of its base."""

    root: str
    parent: str | None = None


@dataclass(frozen=True)
class Roster:
    models: tuple[LocalModel, ...]
    adapters: tuple[LocalAdapter, ...]
    upstreams: tuple[UpstreamModel, ...]

    @property
    def lineage(self) -> dict[str, Lineage]:
        """All names that are served, each adapter after its base, those of other servers last."""
        found: dict[str, Lineage] = {}
        for model in self.models:
            found |= {name: Lineage(public_name(model.source)) for name in model.names}
            own = [adapter for adapter in self.adapters if adapter.base in model.names]
            found |= {adapter.name: Lineage(public_name(adapter.source), adapter.base) for adapter in own}
        return found | {upstream.name: Lineage(upstream.model) for upstream in self.upstreams}


def read_roster(
    models: Sequence[str],
    adapters: Sequence[str] = (),
    *,
    names: Sequence[str] = (),
    keys_from: Sequence[str] = (),
    environment: MutableMapping[str, str] | None = None,
) -> Roster:
    """The roster of a command line.

    Args:
        names: what to call the one model instead, where there is only one.
        keys_from: `NAME=VARIABLE`, the environment variable with the key of the server behind NAME. It is taken out of `environment`.

    Raises:
        UsageError: two of one name, a name or an address that cannot be one, an adapter or a key without what it is for.
    """
    keys = _keys(keys_from, os.environ if environment is None else environment)
    local: list[LocalModel] = []
    upstreams: list[UpstreamModel] = []
    for argument in models:
        name, source = _split(argument)
        if _is_address(source):
            upstreams.append(_upstream(name, source, keys))
        elif not source:
            raise UsageError(f"{argument!r} names no model; write NAME=SOURCE, where SOURCE is a folder, a hub name or an address.")
        else:
            local.append(LocalModel((name or public_name(source),), source))
    if names:
        if len(local) != 1 or upstreams:
            raise UsageError("--name is for one model on this machine; with several, write NAME=SOURCE for each.")
        local = [LocalModel(tuple(dict.fromkeys(names)), local[0].source)]
    over = [_adapter(argument, local) for argument in adapters]
    if keys:
        raise UnknownName("address to use a key at (--key-from)", next(iter(keys)), [each.name for each in upstreams])
    _check_names([*(name for each in local for name in each.names), *(each.name for each in (*over, *upstreams))])
    return Roster(tuple(local), tuple(over), tuple(upstreams))


def public_name(source: str) -> str:
    """What clients call a model that was given no name: of a folder only its own, because where it lies is nobody's business."""
    folder = Path(source).expanduser()
    return folder.resolve().name if folder.exists() else source


def _split(argument: str) -> tuple[str, str]:
    """(name, source); a name that is empty was not given. A folder may have `=` in its name, and an address in its path."""
    if _is_address(argument) or Path(argument).expanduser().is_dir():
        return "", argument
    name, separator, source = argument.partition("=")
    return (name, source) if separator else ("", argument)


def _is_address(source: str) -> bool:
    return source.lower().startswith(("http://", "https://"))


def checked_address(source: str) -> urllib.parse.SplitResult:
    """The parts of a server's address. Raises UsageError for one that cannot be used, with what to write instead."""
    try:
        parts = urllib.parse.urlsplit(source)
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable, parts = False, urllib.parse.urlsplit("")
    if not usable or not _is_address(source) or not source.isprintable() or any(each.isspace() or each == "\\" for each in source):
        raise UsageError(f"{source!r} is no address of a server; one looks like http://host:port/v1")
    if parts.username is not None or parts.password is not None or parts.query:
        raise UsageError("An address with a password or a query ends up in logs; give the server's key by --key-from.")
    if parts.path in ("", "/"):
        raise UsageError(f"{source} has no path, and the API mostly lies at /v1: write {source.partition('#')[0].rstrip('/')}/v1")
    return parts


def _upstream(name: str, source: str, keys: MutableMapping[str, Secret]) -> UpstreamModel:
    parts = checked_address(source)
    model = urllib.parse.unquote(parts.fragment) or name
    if not model:
        raise UsageError(f"What is the model at {source} called? Write NAME={source}, or {source}#MODEL.")
    address = urllib.parse.urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))
    return UpstreamModel(name or model, address, model, keys.pop(name or model, Secret("")))


def _adapter(argument: str, models: Sequence[LocalModel]) -> LocalAdapter:
    called, separator, source = argument.partition("=")
    name, at, base = called.partition("@")
    if not separator or not name or not source or (at and not base):
        raise UsageError(f"{argument!r} is no adapter; write --adapter NAME=FOLDER, or NAME@BASE=FOLDER over another model than the first.")
    if not models:
        raise UsageError(f"The adapter {name!r} needs a model on this machine to stand on; name one.")
    known = [each for model in models for each in model.names]
    if at and base not in known:
        raise UnknownName("model", base, known)
    return LocalAdapter(name, source, base or known[0])


def _keys(given: Sequence[str], environment: MutableMapping[str, str]) -> dict[str, Secret]:
    keys: dict[str, Secret] = {}
    for argument in given:
        name, separator, variable = argument.partition("=")
        if not separator or not name or not variable:
            raise UsageError("A key is given by the environment variable that holds it: --key-from NAME=VARIABLE")
        if not environment.get(variable):
            raise UsageError(f"The environment variable {variable} is not set; it should hold the key of the server behind {name}.")
        keys[name] = usable_key(environment[variable])
    for variable in {argument.partition("=")[2] for argument in given}:
        del environment[variable]  # children would inherit it
    return keys


def _check_names(names: Collection[str]) -> None:
    seen: Mapping[str, int] = {name: list(names).count(name) for name in names}
    for name, count in seen.items():
        if not name or len(name) > _LONGEST_NAME or not name.isprintable() or name != name.strip():
            raise UsageError(f"A model cannot be called {name[:_LONGEST_NAME]!r}; choose 1 to {_LONGEST_NAME} printable characters.")
        if count > 1:
            raise UsageError(f"Two models are called {name!r}; call one of them something else: OTHER_NAME=SOURCE")
