"""SOURCES: whose annotated pictures can be read, each as a stream of `ImageAnnotations` and of rows that were refused.

    annotation files ─reader─► rows ─checks─► ImageAnnotations | RejectedRow

Pictures are looked up under one folder, read as far as their header, and compared with what the annotations say; nothing is fetched. Adding
a source is a reader and a line here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vistune.datagen.captioned import read_cc3m, read_jsonl, read_scenes
from vistune.datagen.coco import read_coco
from vistune.datagen.source_rows import REASONS, Pictures, Reader, RejectedRow, Row
from vistune.datagen.visual_genome import read_visual_genome
from vistune.errors import UnknownName, UsageError

__all__ = ["REASONS", "SOURCES", "RejectedRow", "Source", "read_annotations", "source_named"]


@dataclass(frozen=True)
class Source:
    """A kind of annotation file: what it is, under which terms it is published, and how it is read."""

    name: str
    description: str
    licence: str
    """Of the annotations, for the provenance of every row; pictures have terms of their own (drawn ones: assets/sprites/LICENCES.md)."""
    read: Reader


SOURCES: Mapping[str, Source] = {
    source.name: source
    for source in (
        Source("coco", "COCO captions_*.json and instances_*.json, together or alone", "CC-BY-4.0", read_coco),
        Source(
            "visual_genome",
            "Visual Genome region_descriptions.json and objects.json, with image_data.json if you have it",
            "CC-BY-4.0",
            read_visual_genome,
        ),
        Source(
            "cc3m",
            "captions with their files: TSV, JSON Lines or a JSON list, as CC3M",
            "free for any purpose, naming Google LLC",
            read_cc3m,
        ),
        Source("jsonl", "your own pictures: JSON Lines with image, captions and boxes", "yours to state", read_jsonl),
        Source("scenes", "the annotations.jsonl that `vistune data scenes` writes", "Apache-2.0", read_scenes),
    )
}


def source_named(name: str) -> Source:
    """The source of a name, or an `UnknownName` that lists the right ones."""
    try:
        return SOURCES[name]
    except KeyError:
        raise UnknownName("source", name, known=SOURCES) from None


def read_annotations(source: str, annotations: Sequence[Path], images: Path | None, *, check_images: bool = True) -> Iterator[Row]:
    """Reads annotated pictures one after the other, in the order of the files; each good row and each refused one as it comes.

    Args:
        source: a name in `SOURCES`.
        annotations: its files, in any order.
        images: the folder that the pictures' names begin in; None is the folder of the first file.
        check_images: look at every picture; without it the annotations must state their sizes, and are believed.

    Raises:
        DataError: a file that cannot be read, or is of another kind; rows before the fault have been yielded by then.
    """
    reader = source_named(source).read
    if not annotations:
        raise UsageError(f"The source {source!r} needs at least one annotation file.")
    return reader(annotations, Pictures(images if images is not None else annotations[0].parent, check_images))
