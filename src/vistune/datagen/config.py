"""What a run of the data engine is told, and where it stands on disk.

While a run is under way, everything stands in `OUT.unfinished`: `run.json` with the settings, `calls.log` with every answer. When all is
written, the folder is renamed to `OUT`. So `OUT` is complete or not there, and `OUT.unfinished` says how it was begun.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vistune.calls import CallLimits, Price
from vistune.datagen.filters import filter_description, filter_names
from vistune.datagen.sources import SOURCES, source_named
from vistune.datagen.teacher import kind_named
from vistune.errors import DataError, ResumeMismatch, SaveError, UsageError
from vistune.formats import format_named
from vistune.journal import Journal, atomic_write
from vistune.types import SamplingParams

FILES = {"llava": "instruct.json", "messages": "messages.parquet", "sharegpt": "sharegpt.json"}
"""The file of rows in the output folder, by format."""


@dataclass(frozen=True)
class DatagenConfig:
    """What is made, from what, by whom. `limit`, `limits`, `price` and `cap` may change between the sittings of a run, the rest may not."""

    source: str
    out: Path
    annotations: tuple[Path, ...] = ()
    images: Path | None = None
    """The folder that the pictures' names begin in; None is the folder of the first annotation file."""
    licence: str = ""
    """Of the annotations and pictures; empty takes the source's own."""
    kinds: tuple[str, ...] = ("conversation", "detail", "reasoning")
    teacher: str = "template"
    """The model's name, for the log and the provenance; the model itself is handed to `run_datagen`."""
    server: str = ""
    temperature: float = 0.7
    max_new_tokens: int = 1024
    filters: tuple[str, ...] = filter_names()
    repair: bool = True
    """Whether a reply that cannot be read is asked for once more."""
    format: str = "llava"
    seed: int = 0
    limit: int | None = None
    """Only the first so many images; for `scenes` without annotations, how many are drawn."""
    limits: CallLimits = field(default_factory=CallLimits)
    price: Price | None = None
    cap: float | None = None

    @property
    def draws_scenes(self) -> bool:
        return self.source == "scenes" and not self.annotations

    @property
    def unfinished(self) -> Path:
        """Where the run stands until it is complete."""
        return self.out.with_name(f"{self.out.name}.unfinished")

    @property
    def params(self) -> SamplingParams:
        return SamplingParams(max_new_tokens=self.max_new_tokens, temperature=self.temperature, seed=self.seed)

    @property
    def licence_or_default(self) -> str:
        return self.licence or SOURCES[self.source].licence


def check_config(config: DatagenConfig) -> None:
    """Raises UnknownName or UsageError for settings that cannot be used, before anything is written."""
    source = source_named(config.source)
    format_named(config.format)
    for name in config.filters:
        filter_description(name)
    for name in config.kinds:
        kind_named(name)
    if not config.kinds or len(set(config.kinds)) < len(config.kinds):
        raise UsageError(f"--kinds must name each kind once, and at least one; it is {','.join(config.kinds)!r}.")
    if not config.draws_scenes and not config.annotations:
        raise UsageError(f"Where are the annotations? The source {config.source!r} is read from {source.description}.")
    if config.draws_scenes and config.limit is None:
        raise UsageError("How many scenes shall be drawn? Give -n.")
    if config.draws_scenes and config.images is not None:
        raise UsageError("Scenes are drawn into the output folder; leave --images out, or give the annotations.jsonl of drawn scenes.")
    if config.cap is not None and config.price is None:
        raise UsageError("A cap on the cost needs prices: give --price-in and --price-out, in money per million tokens.")


def fingerprint(config: DatagenConfig) -> dict[str, Any]:
    """The settings that decide what the rows are. A run goes on only with the same."""
    return {
        "source": config.source,
        "annotations": {path.name: _sha256(path) for path in config.annotations},
        "images": str(config.images.resolve()) if config.images else "",
        "licence": config.licence_or_default,
        "kinds": {name: kind_named(name).digest for name in config.kinds},
        "teacher": config.teacher,
        "server": config.server,
        "temperature": config.temperature,
        "max_new_tokens": config.max_new_tokens,
        "repair": config.repair,
        "filters": list(config.filters),
        "format": config.format,
        "seed": config.seed,
    }


def begin(config: DatagenConfig, settings: Mapping[str, Any]) -> Path:
    """Opens the folder of a run, new or to be gone on with, and returns it. One without an answer holds nothing to lose and begins anew.

    Raises:
        ResumeMismatch: it was begun with other settings, and was answered.
        SaveError: `config.out` is something else, or nothing can be written there.
    """
    folder = config.unfinished
    if config.out.exists() and not (config.out.is_dir() and not any(config.out.iterdir())):
        raise SaveError(f"{config.out} exists already and is not a run of the data engine; choose another name.")
    begun = _settings_of(folder)
    if begun is not None and begun != settings and not _is_answered(folder):
        shutil.rmtree(folder)
        begun = None
    if begun is None:
        folder.mkdir(parents=True, exist_ok=True)
        write_page(folder, {"settings": settings})
    elif begun != settings:
        raise ResumeMismatch(
            f"{folder} was begun with other settings ({changed(begun, settings)}). Give the same to go on, or another --out to begin anew."
        )
    return folder


def finished(config: DatagenConfig, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The page of a run that is complete already; None where there is none yet.

    Raises:
        ResumeMismatch: there is one, of other settings.
    """
    done = _settings_of(config.out)
    if done is None:
        return None
    page = json.loads((config.out / "run.json").read_text(encoding="utf-8"))
    wanted = {**settings, "limit": config.limit}
    done = {**done, "limit": page.get("limit")}
    if done != wanted:
        raise ResumeMismatch(f"{config.out} is complete, but of other settings ({changed(done, wanted)}); choose another --out.")
    return page


def write_page(folder: Path, page: Mapping[str, Any]) -> None:
    """Writes `run.json`: the settings, and of a finished run all that is known about it."""
    atomic_write(folder / "run.json", (json.dumps(page, indent=1, ensure_ascii=False) + "\n").encode())


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The settings that differ, in words: `temperature: 0.7, now 0.2`."""
    names = [name for name in now if before.get(name) != now[name]] + [name for name in before if name not in now]
    return "; ".join(f"{name}: {_shown(before.get(name))}, now {_shown(now.get(name))}" for name in names)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {str(digest)[:8]}" for name, digest in value.items()) or "none"
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def _is_answered(folder: Path) -> bool:
    """Whether a run has got any answer. Raises Locked while another process is at it."""
    if not (folder / "calls.log").exists():
        return False
    with Journal(folder / "calls.log") as log:
        return any(record.get("event") == "answer" for record in log)


def _settings_of(folder: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads((folder / "run.json").read_text(encoding="utf-8"))["settings"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / 'run.json'} is not a page of the data engine ({error}); choose another --out.") from error


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"The annotation file {path} cannot be read ({error.strerror}); check the path.") from error
