"""The run: annotated images → a teacher's replies → a folder of instruction data. Resumable, capped in money, the same file every time.

    source ─► (image, kind) ─► teacher, many at once ─► parse ─► filters, in the order of the source ─► rows and rejects

Every answer is durable in `calls.log` before it is used, and nothing else is carried over a crash. A run that is taken up again walks
through the source from its beginning and finds the answered calls in the log, so its rows are those of a run that was never cut off.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vistune import __version__
from vistune.calls import Answer, Calls, CallStats
from vistune.chat_model import ChatModel, OpenAIChatModel
from vistune.datagen.batch import NO_BATCH_ANSWER
from vistune.datagen.card import dataset_card
from vistune.datagen.config import FILES, DatagenConfig, begin, check_config, fingerprint, finished, write_page
from vistune.datagen.filters import DUPLICATE_FILTERS, FILTERS, Candidate, DuplicateFilter, filter_description, run_filters
from vistune.datagen.ordered import in_order
from vistune.datagen.parse import ParsedReply, Rejection, Turns, is_repairable, parse_reply, to_example
from vistune.datagen.report import write_report
from vistune.datagen.sources import RejectedRow, read_annotations
from vistune.datagen.tally import Rejected, Tally
from vistune.datagen.teacher import Kind, kind_named, teacher_conversation
from vistune.errors import ContextLengthError, DataError, RemoteError, UsageError
from vistune.formats import example_writer, json_text
from vistune.journal import atomic_file, atomic_write, commit_folder
from vistune.rates import verdict
from vistune.scenes.write import write_scenes
from vistune.types import Conversation, ImageAnnotations, InstructionExample, SamplingParams

AHEAD = 8
"""How many items per call under way may be held: while one answer is waited for, those behind it go on being asked for."""

UNUSABLE_IN_A_ROW = 20
"""Where a server sends so many pages, or refuses so many requests, with no reply between, it is not this picture: the run stops."""


@dataclass(frozen=True)
class DatagenResult:
    """A finished run: its folder, its file of rows, and its page (`run.json`). `tally` is None where it had been finished before."""

    folder: Path
    rows: Path
    page: dict[str, Any]
    tally: Tally | None


@dataclass(frozen=True)
class Item:
    """One request: a picture and a kind."""

    annotations: ImageAnnotations
    kind: Kind


@dataclass(frozen=True)
class Outcome:
    """What became of an item at the teacher: turns, or why there are none. `reply` is its last raw reply."""

    turns: Turns | None
    reply: str = ""
    reason: str = ""
    message: str = ""
    repaired: bool = False


Progress = Callable[[Tally, CallStats], None]


# --- what to ask --------------------------------------------------------------------------------------------------------------------------


def read_items(config: DatagenConfig, *, drawn: Path | None = None) -> Iterator[Item | RejectedRow]:
    """What the teacher is asked, image by image and kind by kind, and the rows of the source that cannot be used. Streams the source.

    Args:
        drawn: the folder of scenes of a run that draws them.

    Raises:
        UsageError: scenes that are not drawn yet.
    """
    if config.draws_scenes and drawn is None:
        raise UsageError(
            "These scenes are not drawn yet. Draw them with `vistune data scenes`, and give their annotations.jsonl after the source."
        )
    kinds = [kind_named(name) for name in config.kinds]
    files = config.annotations if drawn is None else (drawn / "annotations.jsonl",)
    count = 0
    for found in read_annotations(config.source, files, drawn or config.images):
        if isinstance(found, RejectedRow):
            yield found
        elif count == config.limit:
            return
        else:
            count += 1
            for kind in kinds:
                yield Item(found, kind)


def find_items(config: DatagenConfig, name: str) -> list[Item]:
    """What would be asked about one picture, found by its file name with or without folder, ending and leading zeros.

    Raises:
        DataError: the source has no such picture.
    """
    first: list[str] = []
    found: list[Item] = []
    for item in read_items(config):
        if isinstance(item, RejectedRow):
            continue
        path = Path(item.annotations.image)
        if name.lstrip("0") in (str(path), path.name.lstrip("0"), path.stem.lstrip("0")):
            found.append(item)
        elif found:
            break
        elif len(first) < 3 * len(config.kinds):
            first.append(item.annotations.image)
    if not found:
        raise DataError(f"The source has no picture {name!r}. Its first are: {', '.join(dict.fromkeys(first)) or 'none at all'}.")
    return found


def batch_requests(config: DatagenConfig) -> Iterator[tuple[Conversation, SamplingParams]]:
    """The requests of the whole run, for a batch file."""
    for item in read_items(config):
        if isinstance(item, Item):
            yield teacher_conversation(item.kind, item.annotations), config.params


def repair_request(asked: Conversation, reply: str, problem: str) -> Conversation:
    """Asks for the same once more, in the right form."""
    return asked.then("assistant", reply).then(
        "user",
        f"That reply cannot be used: {problem} Write it again in exactly the form of the replies before it, and nothing around it.",
    )


# --- the run ------------------------------------------------------------------------------------------------------------------------------


def run_datagen(config: DatagenConfig, teacher: ChatModel, *, progress: Progress | None = None) -> DatagenResult:
    """Runs, or goes on with, a run, and returns it finished.

    A run that had been finished with the same settings is not repeated. Whatever stops it (an error, Ctrl-C, a crash), running it again
    with the same settings goes on and pays for no answer twice.

    Args:
        progress: called after each row and each rejection.

    Raises:
        ResumeMismatch: `config.out` was begun with other settings.
        SaveError: `config.out` is something else, or cannot be written.
        CostCapReached, RemoteError: as `Calls` raises them; everything answered is kept.
        DataError: the source cannot be read, or gave no usable row.
        Locked: another process is at this run.
    """
    check_config(config)
    settings = fingerprint(config)
    if (page := finished(config, settings)) is not None:
        return DatagenResult(config.out, config.out / FILES[config.format], page, None)
    folder = begin(config, settings)
    # The log is also the lock: it is held until the folder has its final name.
    with Calls(
        teacher, name=config.teacher, log=folder / "calls.log", limits=config.limits, price=config.price, cap=config.cap
    ) as calls:  # fmt: skip
        run = _Run(config, folder, calls, progress)
        asyncio.run(_closing(teacher, run.run()))
        if not run.tally.total_rows:
            reasons = ", ".join(f"{count} {reason}" for reason, count in run.tally.rejected.most_common(5))
            raise DataError(f"Not one usable row came out ({reasons or 'the source is empty'}); see {folder / 'rejects.jsonl'}.")
        page = run.finish(settings)
        commit_folder(folder, config.out)
    return DatagenResult(config.out, config.out / FILES[config.format], page, run.tally)


async def _closing(teacher: ChatModel, work: Awaitable[None]) -> None:
    """Does the work, and then closes the connections that the teacher made: they belong to this event loop."""
    try:
        await work
    finally:
        if isinstance(teacher, OpenAIChatModel):
            await teacher.close()


class _Run:
    """One sitting: what it reads, what it writes to, and what it has counted."""

    def __init__(self, config: DatagenConfig, folder: Path, calls: Calls, progress: Progress | None):
        self._config, self._folder, self._calls, self._progress = config, folder, calls, progress
        self.tally = Tally(seed=config.seed)
        self._filters = [name for name in config.filters if name in FILTERS]
        self._duplicates = DuplicateFilter([name for name in config.filters if name in DUPLICATE_FILTERS])
        self._began = time.monotonic()
        self._drawn = _draw_scenes(config, folder / "scenes") if config.draws_scenes else None
        self._seconds_drawing = time.monotonic() - self._began
        # Where pictures are, and where the names of pictures in the rows begin: those of drawn scenes in the output folder itself.
        self._images = (self._drawn or config.images or config.annotations[0].parent).absolute()
        self._image_root = folder.absolute() if self._drawn else self._images
        self._answered = self._unusable = 0  # replies bought in this sitting, and failures since the last of them
        self._last_picture = ("", "")

    async def run(self) -> None:
        """Asks everything, and writes the rows and the rejects."""
        config, concurrency = self._config, self._config.limits.concurrency
        items = read_items(config, drawn=self._drawn)
        with (
            example_writer(self._folder / FILES[config.format], self._image_root, config.format) as write,
            atomic_file(self._folder / "rejects.jsonl") as rejects,
        ):
            async with aclosing(in_order(items, self._ask, concurrency=concurrency, ahead=AHEAD * concurrency)) as outcomes:
                async for item, outcome in outcomes:
                    settled = self._settle(item, outcome)
                    if isinstance(settled, Rejected):
                        self.tally.reject(settled)
                        rejects.write(json_text(asdict(settled)).encode() + b"\n")
                    else:
                        write(settled)
                        self.tally.add(settled)
                    if self._progress is not None:
                        self._progress(self.tally, self._calls.stats)

    async def _ask(self, item: Item | RejectedRow) -> Outcome:
        """What the teacher makes of an item; one more try for a reply that cannot be read, and no more."""
        if isinstance(item, RejectedRow):
            return Outcome(None, reason=f"source_{item.reason}", message=item.message)
        asked = teacher_conversation(item.kind, item.annotations)
        answered_before, repaired, said = self._answered, False, ""
        try:
            answer = await self._calls.ask(asked, self._config.params)
            parsed = self._parse(item, answer)
            if self._config.repair and isinstance(parsed, Rejection) and is_repairable(parsed):
                repaired, said = True, answer.reply.text
                answer = await self._calls.ask(repair_request(asked, said, parsed.message), self._config.params)
                parsed = self._parse(item, answer)
        except (RemoteError, ContextLengthError) as error:
            return self._unanswered(error, answered_before, said)
        self._answered += not answer.cached
        self._unusable = 0
        if isinstance(parsed, Rejection):
            return Outcome(None, answer.reply.text, parsed.reason, parsed.message, repaired)
        return Outcome(parsed.turns, answer.reply.text, repaired=repaired)

    def _parse(self, item: Item, answer: Answer) -> ParsedReply | Rejection:
        return parse_reply(item.kind, answer.reply.text, seed=self._seed(item), finish_reason=answer.reply.finish_reason)

    def _seed(self, item: Item) -> str:
        return f"{self._config.seed}/{item.annotations.image}/{item.kind.name}"

    def _unanswered(self, error: RemoteError | ContextLengthError, answered_before: int, said: str) -> Outcome:
        """A request that failed by itself is a rejected row. A failure that other requests would meet too stops the run."""
        if isinstance(error, RemoteError) and error.code != NO_BATCH_ANSWER:
            decision = verdict(error)
            if decision == "stop" or (decision == "repeat" and self._answered == answered_before):
                raise error
            self._unusable += 1
            if self._unusable >= UNUSABLE_IN_A_ROW and (decision == "repair" or not self._answered):
                raise RemoteError(
                    f"{self._unusable} requests in a row came to nothing, so the run has stopped. The last: {error}"
                ) from error
        return Outcome(None, said or getattr(error, "body", ""), "teacher_error", str(error))

    def _settle(self, item: Item | RejectedRow, outcome: Outcome) -> InstructionExample | Rejected:
        """The row of an item, or why there is none. Called in the order of the source, which decides which of two duplicates stays."""
        if isinstance(item, RejectedRow):
            return Rejected("", "", outcome.reason, outcome.message, row=item.row)
        image, kind = item.annotations.image, item.kind
        if outcome.turns is None:
            return Rejected(image, kind.name, outcome.reason, outcome.message, outcome.reply)
        self.tally.repaired += outcome.repaired
        candidate = Candidate(item.annotations, kind, outcome.turns, outcome.reply)
        verdicts = (*run_filters(candidate, self._filters), *self._duplicates.check(candidate))
        objections = {verdict.filter: verdict.reason for verdict in verdicts if verdict.reason is not None}
        if objections:
            reason, message = next(iter(objections.items()))
            return Rejected(image, kind.name, reason, message, outcome.reply, objections=objections)
        self._duplicates.keep(candidate)
        path = self._images / image
        return to_example(item.annotations, kind, outcome.turns, path, self._provenance(item, path), seed=self._seed(item))

    def _provenance(self, item: Item, path: Path) -> dict[str, Any]:
        if self._last_picture[0] != item.annotations.image:  # the kinds of one picture follow each other
            with path.open("rb") as file:
                self._last_picture = item.annotations.image, hashlib.file_digest(file, "sha256").hexdigest()
        return {
            "source": item.annotations.source or self._config.source,
            "licence": self._config.licence_or_default,
            "teacher": self._config.teacher,
            "prompt_sha256": item.kind.digest,
            "image_sha256": self._last_picture[1],
            "filters_passed": list(self._config.filters),
        }

    def finish(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Writes the card, the report and the page of the finished run."""
        config, tally, stats = self._config, self.tally, self._calls.stats
        seconds = time.monotonic() - self._began
        page = {
            "vistune": __version__,
            "settings": settings,
            "limit": config.limit,
            "licence": config.licence_or_default,
            "file": FILES[config.format],
            "counts": tally.figures(),
            "calls": asdict(stats),
            "seconds": round(seconds, 2),
            "seconds_drawing": round(self._seconds_drawing, 2),
        }
        atomic_write(self._folder / "README.md", dataset_card(tally, page).encode())
        figures = {
            "rows": f"{tally.total_rows:,}",
            "questions": f"{tally.pairs:,}",
            "replies rejected": f"{tally.reject_rate:.1%}",
            "rows a second": f"{tally.total_rows / max(seconds, 1e-9):,.0f}",
        }
        if stats.spent:
            figures["spent"] = f"{stats.spent:,.2f}"
        about = {
            "title": f"Instruction data from {config.source}",
            "figures": figures,
            "filters": {name: filter_description(name) for name in config.filters},
            "settings": settings | {"limit": config.limit or "none"},
        }
        write_report(self._folder / "report.html", tally, about, image_root=self._image_root)
        write_page(self._folder, page)
        return page


def _draw_scenes(config: DatagenConfig, folder: Path) -> Path:
    """Draws the scenes of a run, unless an earlier sitting has drawn as many."""
    annotations = folder / "annotations.jsonl"
    if annotations.is_file():
        with annotations.open("rb") as file:
            if sum(1 for _ in file) == config.limit:
                return folder
        shutil.rmtree(folder)
    return write_scenes(folder, config.limit or 0, seed=config.seed)
