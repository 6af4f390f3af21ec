"""`vistune data mix`: one data file out of several, by weights or in the notation of LLaVA-NeXT's yaml files.

    all            every row                       first:1000   end:5%   rows from the beginning or the end
    random:20%     a random choice, without repeats
    weight:2       a share of the mixture: weighted parts are mixed 2 : 1 : ..., as many rows as the smallest allows, or `total` in all

A percentage of a part is rounded up, as LLaVA-NeXT does. Which rows are taken is a function of the seed, the place of the part in the list
and its number of rows, and of nothing else. Rows stream, twice; in memory stay the numbers of the chosen rows and all ids.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from vistune.data.pictures import absolute_folder
from vistune.data.sampler import shuffled
from vistune.errors import DataError, UsageError
from vistune.formats import Losses, example_from_row, read_rows
from vistune.types import InstructionExample

_STRATEGY = re.compile(r"(all)|(first|end|random):(\d+(?:\.\d+)?)(%?)|(weight):(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class Part:
    """A data file, the folder of its pictures, and how much of it is taken."""

    path: Path
    images: Path
    strategy: str = "all"

    @property
    def weight(self) -> Fraction | None:
        """Its share, or None where the strategy itself says how many rows."""
        return Fraction(self.strategy.removeprefix("weight:")) if self.strategy.startswith("weight:") else None


def checked_strategy(text: str) -> str:
    """A strategy as written. Raises UsageError for what is none."""
    match = _STRATEGY.fullmatch(text)
    if match is None or not _is_possible(match):
        raise UsageError(
            f"{text!r} does not say how much of a file to take. Known: all, first:N, end:N, random:N (N rows, or a percentage such as 5%), "
            "and weight:W (a share of the mixture)."
        )
    return text


def _is_possible(match: re.Match[str]) -> bool:
    if match[6]:
        return float(match[6]) > 0
    return not match[3] or (float(match[3]) <= 100 if match[4] else match[3].isdecimal())


def parse_part(text: str, *, images: Path | None = None) -> Part:
    """`FILE` or `FILE=STRATEGY`; pictures lie beside the file unless `images` says where."""
    name, equals, strategy = text.rpartition("=")
    if not equals or Path(text).is_file():
        name, strategy = text, "all"
    return Part(Path(name), images or Path(name).parent, checked_strategy(strategy))


def read_mixture(path: Path) -> list[Part]:
    """A LLaVA-NeXT yaml file: `datasets: [{json_path, sampling_strategy, images}]`; `images` is ours. Paths are relative to the yaml file.

    `json_path` may name several files as `part{1,2,3}.json`, as in the original.
    """
    import yaml

    try:
        page: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path} is not YAML ({error}).") from error
    entries = page.get("datasets") if isinstance(page, dict) else None
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path} must hold `datasets:`, a list of files to mix.")
    parts = []
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("json_path"), str):
            raise DataError(f"{path}: each of `datasets` needs a `json_path`, unlike {str(entry)[:80]}.")
        unknown = sorted(map(str, set(entry) - {"json_path", "sampling_strategy", "images"}))
        if unknown:
            raise DataError(f"{path}: {', '.join(unknown)} means nothing here; known: json_path, sampling_strategy, images.")
        strategy = checked_strategy(str(entry.get("sampling_strategy", "all")))
        for name in _alternatives(entry["json_path"]):
            file = path.parent / name
            parts.append(Part(file, path.parent / entry["images"] if entry.get("images") else file.parent, strategy))
    return parts


def common_folder(parts: Sequence[Part]) -> Path:
    """The deepest folder that holds the pictures of all parts."""
    return Path(os.path.commonpath([absolute_folder(part.images) for part in parts]))


def _alternatives(name: str) -> list[str]:
    match = re.fullmatch(r"(.*)\{([^{}]*)\}(.*)", name)
    return [f"{match[1]}{each.strip()}{match[3]}" for each in match[2].split(",")] if match else [name]


def chosen_rows(parts: Sequence[Part], sizes: Sequence[int], *, total: int | None = None, seed: int = 0) -> list[Counter[int]]:
    """For each part, which of its rows are taken and how often (more than once only where `total` asks for more rows than there are)."""
    weights = {place: weight for place, part in enumerate(parts) if (weight := part.weight) is not None}
    if total is not None and not weights:
        raise UsageError("--total is about parts with a weight; give some part as FILE=weight:W.")
    empty = next((place for place in weights if not sizes[place]), None)
    if empty is not None:
        raise DataError(f"{parts[empty].path} has no rows, so nothing of it can be mixed.")
    counts = _weighted_counts(weights, sizes, total)
    chosen = []
    for place, (part, size) in enumerate(zip(parts, sizes, strict=True)):
        order = f"{seed}:{place}"
        if place in counts:
            passes, rest = divmod(counts[place], size)
            rows = Counter(dict.fromkeys(range(size), passes)) if passes else Counter()
            rows.update(shuffled(each, size, order) for each in range(rest))
        else:
            rows = Counter(_taken(part.strategy, size, order))
        chosen.append(rows)
    return chosen


def _taken(strategy: str, size: int, order: str) -> Iterable[int]:
    kind, _, amount = strategy.partition(":")
    if kind == "all":
        return range(size)
    wanted = math.ceil(size * Fraction(amount[:-1]) / 100) if amount.endswith("%") else int(amount)
    wanted = min(wanted, size)
    match kind:
        case "first":
            return range(wanted)
        case "end":
            return range(size - wanted, size)
        case _:
            return [shuffled(each, size, order) for each in range(wanted)]


def _weighted_counts(weights: dict[int, Fraction], sizes: Sequence[int], total: int | None) -> dict[int, int]:
    """Rows of each weighted part: shares rounded by largest remainder, so that they add up."""
    if not weights:
        return {}
    whole = sum(weights.values(), Fraction(0))
    if total is None:
        total = min(math.floor(sizes[place] * whole / weight) for place, weight in weights.items())
    exact = {place: total * weight / whole for place, weight in weights.items()}
    counts = {place: math.floor(share) for place, share in exact.items()}
    by_remainder = sorted(exact, key=lambda place: (counts[place] - exact[place], place))
    for place in by_remainder[: total - sum(counts.values())]:
        counts[place] += 1
    return counts


@dataclass(frozen=True)
class MixedPart:
    part: Part
    rows: int
    taken: int


def mix(
    parts: Sequence[Part],
    write: Callable[[InstructionExample], None],
    *,
    total: int | None = None,
    seed: int = 0,
    losses: Losses = "refuse",
) -> list[MixedPart]:
    """Writes the mixture, part after part, each in the order of its file, and says what was taken.

    Ids are made unique: the second "7" becomes "7~2". A row's provenance says in `mixed_from` which row of which file it was.

    Raises DataError for the first chosen row that cannot be used, and for files that cannot be read.
    """
    sizes = [sum(1 for _ in read_rows(part.path)) for part in parts]
    chosen = chosen_rows(parts, sizes, total=total, seed=seed)
    unique = _UniqueIds()
    for part, rows in zip(parts, chosen, strict=True):
        for example, number in _examples(part, rows, losses):
            origin = {"file": part.path.name, "row": number, "id": example.id}
            write(replace(example, id=unique(example.id), provenance={**example.provenance, "mixed_from": origin}))
    return [MixedPart(part, size, rows.total()) for part, size, rows in zip(parts, sizes, chosen, strict=True)]


def _examples(part: Part, rows: Counter[int], losses: Losses) -> Iterator[tuple[InstructionExample, int]]:
    for number, row in enumerate(read_rows(part.path)):
        if rows[number]:
            try:
                example = example_from_row(row, absolute_folder(part.images), row_number=number, losses=losses)
            except DataError as error:
                raise type(error)(f"{part.path}: {error} `vistune data check` lists all such rows.") from error
            yield from [(example, number)] * rows[number]


class _UniqueIds:
    """Gives every id once: as it is, or with the first number behind it that makes it new."""

    def __init__(self) -> None:
        self._next: dict[str, int] = {}

    def __call__(self, wanted: str) -> str:
        if wanted not in self._next:
            self._next[wanted] = 2
            return wanted
        while True:
            number = self._next[wanted]
            self._next[wanted] += 1
            if (made := f"{wanted}~{number}") not in self._next:
                self._next[made] = 2
                return made
