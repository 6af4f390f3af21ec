"""`vistune data convert`: a data file in another of the three formats, row by row, losing nothing or saying what would be lost."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vistune.data.pictures import PictureFolder, absolute_folder, embedded
from vistune.data.validate import Rejection, reason_of
from vistune.errors import DataError, UsageError
from vistune.formats import (
    Losses,
    dataset_info,
    default_format,
    example_from_row,
    example_to_sharegpt,
    example_writer,
    read_rows,
    spells_mark,
)
from vistune.journal import atomic_write
from vistune.types import InstructionExample

Pictures = Literal["auto", "embed", "paths"]
"""`embed` puts the bytes of pictures into the file (Parquet only), `paths` their names; `auto` embeds in Parquet."""
BadRows = Literal["stop", "skip"]


@dataclass
class Conversion:
    """What a conversion did, for the command line to print."""

    rows: int = 0
    rejected: list[Rejection] = field(default_factory=list)
    pictures_saved: int = 0
    spelled_marks: int = 0
    """Rows of plain text that spell `<image>`, in a ShareGPT file: LLaMA-Factory stops at them."""


def convert(
    source: Path,
    out: Path,
    *,
    images: Path,
    out_images: Path | None = None,
    format: str | None = None,
    pictures: Pictures = "auto",
    bad_rows: BadRows = "stop",
    losses: Losses = "refuse",
    reject: Callable[[Rejection, Any], None] = lambda rejection, row: None,
) -> Conversion:
    """Writes `source` again as `out`, which appears complete or not at all.

    Args:
        images: the folder that the source's picture names start from.
        out_images: the folder that names in `out` start from, and where embedded pictures are saved as files; default: `images`.
        format: a key of FORMATS; by default what the suffix of `out` usually holds.
        bad_rows: what to do with a row that cannot be read, or that the format cannot hold.
        losses: `allow` leaves out what records do not hold: an answer before the first question, further keys of turns.
        reject: gets every row that is skipped.

    Raises:
        DataError: the first row that cannot be converted, with its number, unless they are skipped.
    """
    if out.resolve() == source.resolve():
        raise UsageError(f"{out} is the file to convert; give the new file another name.")
    result = Conversion()
    images = absolute_folder(images)
    with rewriting(out, images, out_images=out_images, format=format, pictures=pictures) as (write, folder):
        for number, row in enumerate(read_rows(source)):
            try:
                example = example_from_row(row, images, row_number=number, losses=losses)
                write(example)
            except DataError as error:
                if bad_rows == "stop":
                    raise
                rejection = Rejection(number, reason_of(error), str(error))
                result.rejected.append(rejection)
                reject(rejection, row)
                continue
            result.rows += 1
            result.spelled_marks += format == "sharegpt" and spells_mark(example)
    result.pictures_saved = folder.saved
    return result


@contextmanager
def rewriting(
    out: Path, images: Path, *, out_images: Path | None = None, format: str | None = None, pictures: Pictures = "auto"
) -> Iterator[tuple[Callable[[InstructionExample], None], PictureFolder]]:
    """Gives a function that writes one record with its pictures embedded or as files, as chosen, and the folder that files go to.

    A ShareGPT file also gets its stanza in the `dataset_info.json` beside it, which is how LLaMA-Factory finds it.
    """
    parquet = out.suffix == ".parquet"
    if pictures == "embed" and not parquet:
        raise UsageError(f"{out} is JSON, which has no place for pictures; write .parquet, or leave --pictures out.")
    embed = parquet and pictures != "paths"
    name = format or default_format(out)
    root, out_root = absolute_folder(images), absolute_folder(out_images or images)
    folder = PictureFolder(out_root)
    columns: set[str] = set()
    with example_writer(out, out_root, name) as write_record:

        def write(example: InstructionExample) -> None:
            example = embedded(example, root) if embed else folder.place(example)
            if name == "sharegpt":
                columns.update(example_to_sharegpt(example, out_root))
            write_record(example)

        yield write, folder
    if name == "sharegpt":
        _describe(out, columns)


def _describe(out: Path, columns: set[str]) -> None:
    """Adds a file to the `dataset_info.json` beside it, and leaves the other entries as they are."""
    path = out.with_name("dataset_info.json")
    known: Any = {}
    if path.exists():
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} is not JSON ({error}); mend or remove it, so that {out.name} can be added.") from error
    if not isinstance(known, dict):
        raise DataError(f"{path} holds no JSON object; mend or remove it, so that {out.name} can be added.")
    known[out.stem] = dataset_info(out.name, columns)
    atomic_write(path, (json.dumps(known, indent=2, ensure_ascii=False) + "\n").encode())
