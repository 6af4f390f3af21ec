"""What stands between the options of `vistune datagen` and a run: the teacher by its name, lists by commas, the bar, the last words."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from vistune.calls import CallStats
from vistune.chat_model import ChatModel, OpenAIChatModel
from vistune.datagen.batch import BatchReplies, write_batch
from vistune.datagen.config import DatagenConfig, check_config
from vistune.datagen.filters import filter_description, filter_names
from vistune.datagen.generate import DatagenResult, Progress, batch_requests, find_items, run_datagen
from vistune.datagen.sources import SOURCES
from vistune.datagen.tally import Tally
from vistune.datagen.teacher import kind_named, kind_names, render_prompt, teacher_conversation
from vistune.datagen.template_teacher import TemplateTeacher
from vistune.errors import UsageError, VistuneError
from vistune.formats import FORMATS

TEMPLATE = "template"


def chosen_kinds(text: str) -> tuple[str, ...]:
    return chosen(text, kind_names())


def chosen_filters(text: str) -> tuple[str, ...]:
    return chosen(text, filter_names())


def chosen(text: str, known: Sequence[str]) -> tuple[str, ...]:
    """The names of a comma list: `a,b` those, `all` all, `all,-b` all but one, `none` none. In the order of `known` where that has them."""
    names = [name for name in (part.strip() for part in text.split(",")) if name]
    if not names:
        raise UsageError(f"{text!r} names nothing; write all, none, or some of: {', '.join(known)}.")
    left_out = {name.removeprefix("-") for name in names if name.startswith("-")}
    wanted = [name for name in names if not name.startswith("-") and name != "none"]
    if left_out and not wanted:
        wanted = ["all"]
    named = {name for name in wanted if name != "all"} | (set(known) if "all" in wanted else set())
    strangers = [name for name in wanted if name not in known and name != "all"]
    return (*(name for name in known if name in named - left_out), *strangers, *sorted(left_out - set(known)))


def run(config: DatagenConfig, *, server: str | None, batch: Sequence[Path]) -> str:
    """Runs to the end behind a bar, and says what was made."""
    check_config(config)
    teacher, address = teacher_named(config.teacher, server=server, batch=batch)
    # A batch that is back answers no second question, and the grammar would answer the same.
    config = replace(config, server=address, repair=not batch and config.teacher != TEMPLATE)
    try:
        with progress_bar(config) as progress:
            return last_words(run_datagen(config, teacher, progress=progress))
    except (KeyboardInterrupt, VistuneError):
        if config.unfinished.is_dir():
            print(f"Stopped. What was answered is in {config.unfinished}; the same command goes on from there.", file=sys.stderr)
        raise


def prompts(config: DatagenConfig, picture: str) -> str:
    """Exactly what would be sent about a picture, for each kind."""
    check_config(config)
    items = find_items(config, picture)
    return "\n".join(f"=== {item.kind.name} ===\n{render_prompt(teacher_conversation(item.kind, item.annotations))}" for item in items)


def write_requests(config: DatagenConfig, path: Path, *, answered: Sequence[Path]) -> str:
    """Writes the requests of a run for a batch, those without that `answered` files hold a reply to, and says what was written."""
    check_config(config)
    if config.teacher == TEMPLATE:
        raise UsageError("Whom is the batch for? Give the model's name with --teacher.")
    replies = BatchReplies(answered, model=config.teacher)
    wanted = (request for request in batch_requests(config) if not replies.answers(*request))
    written = write_batch(wanted, path, model=config.teacher)
    files = "\n".join(map(str, written.files))
    return (
        f"{files}\n{written.requests:,} requests. When the results are there: the same command with --read-batch instead of --write-batch."
    )


def teacher_named(name: str, *, server: str | None, batch: Sequence[Path] = ()) -> tuple[ChatModel, str]:
    """The teacher, and the address it is asked at ("" for one that is asked at none).

    Raises:
        UsageError: an address in the place of a name, or no key where one is needed.
        DataError: a batch file that is none.
    """
    if "://" in name:
        raise UsageError(f"--teacher takes the model's name; give the address with --server {name}.")
    if name == TEMPLATE:
        if server or batch:
            raise UsageError(f"The teacher {TEMPLATE!r} is built in and asks nobody; name the server's model with --teacher.")
        return TemplateTeacher(), ""
    if batch:
        return BatchReplies(batch, model=name), "batch files"
    model = OpenAIChatModel(name, base_url=server)
    return model, model.address


def listing() -> str:
    """All that can be chosen, a line each."""
    tables: Mapping[str, Mapping[str, str]] = {
        "sources": {name: source.description for name, source in SOURCES.items()},
        "kinds": {name: _of_kind(name) for name in kind_names()},
        "filters": {name: filter_description(name) for name in filter_names()},
        "formats": {name: each.description for name, each in FORMATS.items()},
    }
    return "\n\n".join(
        "\n".join([f"{title}:", *(f"  {name:<16} {said}" for name, said in table.items())]) for title, table in tables.items()
    )


def _of_kind(name: str) -> str:
    kind = kind_named(name)
    return f"{kind.shape}, from {'captions and boxes' if kind.uses_boxes else 'captions'}, with {len(kind.examples)} worked examples"


@contextmanager
def progress_bar(config: DatagenConfig) -> Iterator[Progress]:
    """A bar on stderr with rows, rate, money and the time that is left; nothing is drawn where no terminal is."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[said]}"), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    total = config.limit * len(config.kinds) if config.limit else None
    with Progress(*columns, console=console, disable=not console.is_terminal) as drawn:
        task = drawn.add_task(f"Drawing {config.limit:,} scenes" if config.draws_scenes else "Reading annotations", total=total, said="")

        def show(tally: Tally, stats: CallStats) -> None:
            speed = drawn.tasks[task].speed
            said = [f"{tally.total_rows:,} rows"]
            said += [f"{speed:,.0f}/s"] if speed else []
            said += [f"spent {stats.spent:,.2f}"] if config.price else []
            drawn.update(task, completed=tally.asked, description="Asking", said=" · ".join(said))

        yield show


def last_words(result: DatagenResult) -> str:
    """What a finished run made, for a person."""
    page, counts = result.page, result.page["counts"]
    rejected = ", ".join(f"{count:,} {reason}" for reason, count in counts["rejected"].items())
    share_drawing = f", {page['seconds_drawing'] / page['seconds']:.0%} of it for drawing" if page["seconds_drawing"] else ""
    spent = f", spent {page['calls']['spent']:,.4g}" if page["calls"]["spent"] else ""
    lines = [
        f"{counts['rows']:,} rows with {counts['questions']:,} questions in {page['seconds']:,.0f} s{share_drawing}{spent}.",
        f"Rejected: {rejected or 'nothing'} ({counts['reject_rate']:.1%} of the replies).",
        f"{result.rows}",
        f"{result.folder / 'report.html'}",
    ]
    if result.tally is None:
        lines.insert(0, "This run was complete already:")
    return "\n".join(lines)
