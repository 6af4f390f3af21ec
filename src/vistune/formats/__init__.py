"""Instruction data on disk and the records in memory: LLaVA JSON ⇄ messages ⇄ ShareGPT ⇄ InstructionExample.

The only place that knows the words "human", "gpt" and "<image>". A row is read or refused as it stands; whether its picture exists, or fits
the context, is for `data/` to say. Rows and records are converted one at a time, so that one bad row can be named and set aside. What a
format cannot hold is refused, never changed; ids, kinds, provenance and columns that mean nothing to vistune survive in all three.
"""

from vistune.formats.files import (
    FORMATS,
    Format,
    Place,
    default_format,
    example_from_row,
    example_writer,
    format_named,
    format_of,
    placed_rows,
    read_examples,
    read_rows,
    write_examples,
)
from vistune.formats.llava import example_from_llava, example_to_llava
from vistune.formats.messages import example_from_messages, example_to_messages
from vistune.formats.row_file import RowFile
from vistune.formats.sharegpt import dataset_info, example_from_sharegpt, example_to_sharegpt, spells_mark
from vistune.formats.turns import IMAGE_MARK, ImageBytes, ImagePlace, Losses, confined_name, json_text

__all__ = [
    "FORMATS",
    "IMAGE_MARK",
    "Format",
    "ImageBytes",
    "ImagePlace",
    "Losses",
    "Place",
    "RowFile",
    "confined_name",
    "dataset_info",
    "default_format",
    "example_from_llava",
    "example_from_messages",
    "example_from_row",
    "example_from_sharegpt",
    "example_to_llava",
    "example_to_messages",
    "example_to_sharegpt",
    "example_writer",
    "format_named",
    "format_of",
    "json_text",
    "placed_rows",
    "read_examples",
    "read_rows",
    "spells_mark",
    "write_examples",
]
