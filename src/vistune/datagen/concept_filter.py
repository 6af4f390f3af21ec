"""From a file of captions the smaller one in which rare concepts are kept and common ones are not repeated without end.

The filter that made 595 thousand pairs out of CC3M for the first stage of LLaVA: a concept is a noun phrase; phrases in fewer than 3
captions are ignored; the others are visited from the rarest to the commonest, and each puts its captions into the pool, a random 100 of
them where it has more. The description leaves three things open, on which the size of the result depends more than on anything else, so
they are settings here, and `compare` reports the size for each combination (https://github.com/haotian-liu/LLaVA/issues/1176):

    what is one phrase     lower case or not; with its determiner or not; nouns in the singular or not
    what is counted        all captions of the phrase, or only those that no rarer phrase has put into the pool yet

    file ─parts─► processes: captions ─► phrases ─► 64-bit hashes ─► spilled to disk ─► postings ─► pool ─► the file's own lines

Nothing is kept of a caption but the hashes of its phrases. Two of a million phrases share a hash once in 37 million files.

Source: Visual Instruction Tuning (LLaVA), appendix "Pretraining data"; frequency is counted in captions, not in occurrences.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import os
import shutil
import signal
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from vistune.datagen.captioned import caption_of
from vistune.datagen.concepts import NounPhrase, parse_noun_phrases
from vistune.datagen.json_stream import MAX_LINE, open_binary, text_lines
from vistune.datagen.source_rows import Refusal
from vistune.errors import DataError, UsageError, WorkerError
from vistune.journal import atomic_folder

Counted = Literal["all", "unpooled", "fill"]


@dataclass(frozen=True)
class ConceptSettings:
    """How captions are chosen; the defaults are what LLaVA's description says, read in the most ordinary way."""

    min_frequency: int = 3
    """Phrases in fewer captions choose none."""
    cap: int = 100
    """Most captions that one phrase chooses."""
    lower_case: bool = True
    strip_determiners: bool = True
    lemmatise: bool = True
    counted: Counted = "all"
    """What a phrase in more than `cap` captions chooses: `all`: `cap` of all its captions; `unpooled`: `cap` of those that are not in the
    pool yet; `fill`: as many of these as bring its captions in the pool up to `cap`."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.min_frequency < 1 or self.cap < 1 or self.seed < 0:
            raise UsageError("The least frequency and the cap are whole numbers from 1, the seed from 0.")
        if self.counted not in get_args(Counted):
            raise UsageError(f"What is counted is one of {', '.join(get_args(Counted))}, not {self.counted!r}.")


@dataclass(frozen=True)
class ConceptSize:
    """What one setting gives."""

    settings: ConceptSettings
    phrases: int
    """Different phrases in the file."""
    frequent_phrases: int
    """Those of them in at least `min_frequency` captions."""
    captions: int
    """Captions chosen."""


@dataclass(frozen=True)
class ConceptReport:
    """What became of a file of captions."""

    captions: int
    """Captions read; of them `rejected` could not be used, by reason."""
    rejected: dict[str, int]
    chosen: ConceptSize
    compared: tuple[ConceptSize, ...] = ()
    """The same for every combination of the open settings, where that was asked for."""

    def as_text(self) -> str:
        """A sentence, and a table of the combinations if they were compared."""
        left_out = ", ".join(f"{count:,} {reason}" for reason, count in sorted(self.rejected.items()))
        lines = [
            f"{self.chosen.captions:,} of {self.captions:,} captions chosen, by {self.chosen.frequent_phrases:,} frequent phrases of "
            f"{self.chosen.phrases:,}" + (f"; rejected: {left_out}." if left_out else ".")
        ]
        if self.compared:
            lines.append(f"{'captions':>10} {'frequent':>10} {'phrases':>10}  a phrase is / counted are")
        for size in self.compared:
            settings = size.settings
            steps = {
                "lower case": settings.lower_case,
                "without determiner": settings.strip_determiners,
                "in the singular": settings.lemmatise,
            }
            taken = ", ".join(name for name, step in steps.items() if step) or "as written"
            lines.append(f"{size.captions:>10,} {size.frequent_phrases:>10,} {size.phrases:>10,}  {taken} / {settings.counted}")
        return "\n".join(lines)


def filter_captions(
    path: Path,
    out: Path,
    settings: ConceptSettings = ConceptSettings(),
    *,
    compare: bool = False,
    workers: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> ConceptReport:
    """Writes the chosen captions into a new folder: the file's own lines in their order, the rejected ones with reasons, and the report.

    Args:
        path: captions, one a line: `.tsv` (first column), `.jsonl` (field `caption`), or plain text.
        out: a folder that does not exist yet. It gets captions.tsv (or as the file is called), rejects.jsonl and report.json.
        compare: also report the size for each combination of the open settings; takes a third longer.
        workers: processes; None takes one for each core that this process may use.
        progress: called with the part of the file that was read, 0 to 1.

    Raises:
        DataError: the file cannot be read, or holds no caption.
        SaveError: the folder cannot be written.
    """
    open_binary(path).close()  # or say why not, before anything is made
    variants = _variants(settings) if compare else [settings]
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(out) as folder:
        spill = folder / "spilled"
        spill.mkdir()
        captions, rejected = _spill_phrases(path, spill, folder / "rejects.jsonl", variants, workers or _cores(), progress)
        postings = _read_postings(spill, variants.index(settings), settings)
        pool = _pool(postings, settings)
        _copy_lines(path, folder / f"captions{path.suffix}", pool)
        compared: list[ConceptSize] = []
        for place, variant in enumerate(variants if compare else ()):
            of_variant = _read_postings(spill, place, variant)
            for counted in get_args(Counted):
                combination = replace(variant, counted=counted)
                compared.append(_size(of_variant, combination, _pool(of_variant, combination)))
        shutil.rmtree(spill)
        report = ConceptReport(captions, dict(rejected), _size(postings, settings, pool), tuple(compared))
        (folder / "report.json").write_text(json.dumps(asdict(report), indent=1) + "\n", encoding="utf-8")
    return report


def _variants(settings: ConceptSettings) -> list[ConceptSettings]:
    """Every combination of what makes two phrases one."""
    return [
        replace(settings, lower_case=lower, strip_determiners=strip, lemmatise=lemmas)
        for lower, strip, lemmas in itertools.product((True, False), repeat=3)
    ]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# From captions to hashes of phrases, in several processes -------------------------------------------------------------------------------

PART_BYTES = 2**20
"""What one process takes at a time; some 15 thousand captions."""


@dataclass(frozen=True)
class _Part:
    """What a process found in its part of the file."""

    lines: int
    captions: int
    counts: tuple[bytes, ...]
    """For each variant, how many phrases each line has: 16 bits a line."""
    hashes: tuple[bytes, ...]
    """For each variant, the hashes of the lines' phrases, one line after the other: 64 bits a phrase."""
    rejected: tuple[tuple[int, str, str], ...]
    """(line in the part, reason, message)"""


def _spill_phrases(
    path: Path, spill: Path, rejects: Path, variants: list[ConceptSettings], workers: int, progress: Callable[[float], None] | None
) -> tuple[int, Counter[str]]:
    """Writes the phrases of all captions into files of plain numbers; returns the number of captions, and of rejected lines by reason."""
    size = max(1, path.stat().st_size)
    lines = captions = 0
    reasons: Counter[str] = Counter()
    files = [((spill / f"{place}.counts").open("wb"), (spill / f"{place}.hashes").open("wb")) for place in range(len(variants))]
    with contextlib.ExitStack() as opened, rejects.open("w", encoding="utf-8") as refused:
        for pair in files:
            for file in pair:
                opened.enter_context(file)
        for end, part in _parts_in_order(path, variants, workers):
            for (counts, hashes), of_counts, of_hashes in zip(files, part.counts, part.hashes, strict=True):
                counts.write(of_counts)
                hashes.write(of_hashes)
            for line, reason, message in part.rejected:
                reasons[reason] += 1
                where = f"{path.name}, line {lines + line + 1}"
                refused.write(json.dumps({"row": where, "reason": reason, "message": f"{where}: {message}."}) + "\n")
            lines += part.lines
            captions += part.captions
            if progress is not None:
                progress(end / size)
    if captions == sum(reasons.values()):
        raise DataError(f"{path} holds no caption that can be used ({dict(reasons) or 'it is empty'}). Expected one caption a line.")
    return captions, reasons


def _parts_in_order(path: Path, variants: list[ConceptSettings], workers: int) -> Iterator[tuple[int, _Part]]:
    """(where the part ends, what was found in it) for all parts of the file. At most two parts a process are under way."""
    spans = _spans(path)
    if workers == 1 or path.stat().st_size <= PART_BYTES:
        for start, end in spans:
            yield end, _read_part(path, start, end, variants)
        return
    under_way: deque[tuple[int, Future[_Part]]] = deque()
    # Ctrl-C reaches every process of a terminal; only this one says so.
    with ProcessPoolExecutor(workers, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)) as pool:
        try:
            for start, end in spans:
                under_way.append((end, pool.submit(_read_part, path, start, end, variants)))
                if len(under_way) >= 2 * workers:
                    done, future = under_way.popleft()
                    yield done, future.result()
            for done, future in under_way:
                yield done, future.result()
        except BrokenProcessPool as error:
            raise WorkerError(
                f"A process that reads {path} has died, most likely for want of memory (each needs some 150 MB). Use fewer workers."
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _spans(path: Path) -> Iterator[tuple[int, int]]:
    """Byte ranges that cover the file, each of whole lines."""
    start = 0
    with open_binary(path) as file:
        size = os.fstat(file.fileno()).st_size
        while start < size:
            file.seek(min(start + PART_BYTES, size) - 1)
            while (line := file.readline(MAX_LINE)) and not line.endswith(b"\n"):
                pass  # a line longer than MAX_LINE goes by in pieces
            yield start, file.tell()
            start = file.tell()


def _read_part(path: Path, start: int, end: int, variants: list[ConceptSettings]) -> _Part:
    normalise = _hasher(tuple(variants))
    counts = [array("H") for _ in variants]
    hashes = [array("Q") for _ in variants]
    rejected: list[tuple[int, str, str]] = []
    lines = captions = 0
    for lines, line in enumerate(text_lines(path, start, end), 1):
        found: list[tuple[int, ...]] = []
        try:
            if line is None:
                raise Refusal("too_long", "the line is longer than 1 MiB")
            if line.strip():
                captions += 1
                found = [normalise(phrase) for phrase in parse_noun_phrases(caption_of(line, path.suffix))]
        except Refusal as refusal:
            captions += line is None
            rejected.append((lines - 1, refusal.reason, str(refusal)))
        for place in range(len(variants)):
            # A phrase counts once a caption; `dict` keeps the order, `set` would not.
            of_line = dict.fromkeys(each[place] for each in found)
            counts[place].append(len(of_line))
            hashes[place].extend(of_line)
    return _Part(lines, captions, tuple(map(array.tobytes, counts)), tuple(map(array.tobytes, hashes)), tuple(rejected))


@functools.lru_cache(maxsize=1)
def _hasher(variants: tuple[ConceptSettings, ...]) -> Callable[[NounPhrase], tuple[int, ...]]:
    """A function that gives a phrase's hash under each variant. Common phrases make up most of a file, so it remembers them."""

    @functools.lru_cache(maxsize=32_768)
    def hashes(phrase: NounPhrase) -> tuple[int, ...]:
        texts = (
            phrase.normalised(lower_case=each.lower_case, strip_determiners=each.strip_determiners, lemmatise=each.lemmatise)
            for each in variants
        )
        return tuple(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") for text in texts)

    return hashes


# From hashes to the pool ----------------------------------------------------------------------------------------------------------------

_Rows = np.ndarray[Any, np.dtype[np.uint32]]
_Mask = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class _Postings:
    """Which lines hold which phrase, as far as the pool depends on it."""

    phrases: int
    frequent: int
    rare: _Mask
    """Lines with a phrase that is frequent enough and within the cap: they are in the pool whatever is counted."""
    common: tuple[tuple[int, int, _Rows], ...]
    """(frequency, hash, lines) of each phrase over the cap, from the rarest to the commonest."""


def _read_postings(spill: Path, place: int, settings: ConceptSettings) -> _Postings:
    counts = np.fromfile(spill / f"{place}.counts", dtype=np.uint16)
    hashes = np.fromfile(spill / f"{place}.hashes", dtype=np.uint64)
    lines = np.repeat(np.arange(len(counts), dtype=np.uint32), counts)
    rare = np.zeros(len(counts), dtype=np.bool_)
    common: list[tuple[int, int, _Rows]] = []
    phrases = frequent = 0
    # Sorting all at once would need three more arrays of this size.
    for sixteenth in range(16):
        chosen = np.flatnonzero(hashes >> np.uint64(60) == sixteenth)
        chosen = chosen[np.argsort(hashes[chosen], kind="stable")]
        keys, starts, frequencies = np.unique(hashes[chosen], return_index=True, return_counts=True)
        of_chosen = lines[chosen]
        phrases += len(keys)
        frequent += int((frequencies >= settings.min_frequency).sum())
        keep = (frequencies >= settings.min_frequency) & (frequencies <= settings.cap)
        rare[of_chosen[np.repeat(keep, frequencies)]] = True
        for each in np.flatnonzero((frequencies >= settings.min_frequency) & (frequencies > settings.cap)):
            start, frequency = int(starts[each]), int(frequencies[each])
            common.append((frequency, int(keys[each]), of_chosen[start : start + frequency].copy()))
    common.sort(key=lambda posting: posting[:2])
    return _Postings(phrases, frequent, rare, tuple(common))


def _pool(postings: _Postings, settings: ConceptSettings) -> _Mask:
    """Which lines are chosen."""
    pool = postings.rare.copy()
    for frequency, key, lines in postings.common:
        candidates, wanted = lines, settings.cap
        if settings.counted != "all":
            candidates = lines[~pool[lines]]
            if settings.counted == "fill":
                wanted = settings.cap - (frequency - len(candidates))
        if wanted < len(candidates):
            candidates = candidates[_lots(candidates, key, settings.seed).argsort()[: max(0, wanted)]]
        pool[candidates] = True
    return pool


def _lots(lines: _Rows, key: int, seed: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """A lot for each line, different for each phrase and seed: the same on every machine and with every version of numpy.

    SplitMix64's mixing function (Vigna, https://prng.di.unimi.it/splitmix64.c), which maps different lines to different lots.
    """
    start = hashlib.blake2b(f"{seed}:{key}".encode(), digest_size=8).digest()
    mixed = lines.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(int.from_bytes(start, "little"))
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _size(postings: _Postings, settings: ConceptSettings, pool: _Mask) -> ConceptSize:
    return ConceptSize(settings, postings.phrases, postings.frequent, int(pool.sum()))


def _copy_lines(path: Path, out: Path, pool: _Mask) -> None:
    """Writes the chosen lines as they are."""
    with out.open("wb") as file:
        try:
            for chosen, line in zip(pool, text_lines(path), strict=True):
                if chosen and line is not None:
                    file.write(line + b"\n")
        except ValueError as error:
            raise DataError(f"{path} has changed while it was read; filter it when nobody writes to it.") from error
