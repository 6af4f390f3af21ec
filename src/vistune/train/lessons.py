"""From the config's data to the examples of a run: rows checked once, some held out, the rest in a fixed list."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vistune.data.datasets import DataFiles, annotations_from, locate
from vistune.data.validate import Manifest, check_rows, explain_rejections, held_out, picture_group
from vistune.errors import DataError
from vistune.formats import example_from_row, read_rows
from vistune.media import open_image
from vistune.model.llava import Llava
from vistune.model.processor import Processor
from vistune.train.config import DataConfig, TrainConfig
from vistune.train.objectives import Align, CellNames, NextToken, Objective, annotation_names, measure_example, measure_picture
from vistune.types import ImageAnnotations, ImagePart, InstructionExample


@dataclass(frozen=True)
class Lessons:
    """What a run learns from and is measured on, and the manifest that says which rows these are."""

    training: Objective
    validation: Objective | None
    manifest: Manifest


def load_lessons(config: TrainConfig, model: Llava, processor: Processor, *, manifest_path: Path) -> Lessons:
    """Checks every row (or takes over the manifest of an earlier call, if nothing changed), and splits off the validation rows.

    Raises DataError when there are rows that cannot be used and `data.bad_rows` is "stop", or when nothing is left to train on.
    """
    files = locate(config.data.dataset, root=Path(config.data.root), images=config.data.images)
    build = _align if config.objective == "align" else _next_token
    return build(config, files, model, processor, manifest_path)


def _next_token(config: TrainConfig, files: DataFiles, model: Llava, processor: Processor, manifest_path: Path) -> Lessons:
    data = config.data

    def measure(example: InstructionExample) -> int:
        _look_at(example.conversation.images, data)
        return measure_example(example, processor, data.mask)

    examples, manifest = check_rows(
        list(read_rows(files.rows)),
        read=lambda number, row: example_from_row(row, files.images, row_number=number, image_place=data.image_place),
        measure=measure,
        settings_digest=_settings_digest(config, files, processor),
        known=Manifest.read(manifest_path),
    )
    _settle(manifest, data, files, manifest_path)
    training, validation = (
        [(examples[place], manifest.lengths[place]) for place in places]
        for places in _split([picture_group(example) for example in examples], config)
    )

    def objective(rows: Sequence[tuple[InstructionExample, int]]) -> NextToken:
        return NextToken([example for example, _ in rows], [length for _, length in rows], processor, data.mask)

    return Lessons(objective(training), objective(validation) if validation else None, manifest)


def _align(config: TrainConfig, files: DataFiles, model: Llava, processor: Processor, manifest_path: Path) -> Lessons:
    def read(number: int, row: Any) -> tuple[ImageAnnotations, ImagePart]:
        annotations = annotations_from(row, where=f"row {number}")
        return annotations, ImagePart(files.images / annotations.image)

    def measure(picture: tuple[ImageAnnotations, ImagePart]) -> int:
        _look_at([picture[1]], config.data)
        return measure_picture(picture)

    pictures, manifest = check_rows(
        list(read_rows(files.rows)),
        read=read,
        measure=measure,
        settings_digest=_settings_digest(config, files, processor),
        known=Manifest.read(manifest_path),
    )
    _settle(manifest, config.data, files, manifest_path)
    names = CellNames.of(annotation_names([annotations for annotations, _ in pictures], config.align.background), model, processor)
    training, validation = ([pictures[place] for place in places] for places in _split([each.image for each, _ in pictures], config))
    return Lessons(
        Align(training, processor, names, config.align), Align(validation, processor, names, config.align) if validation else None, manifest
    )


def _look_at(pictures: Sequence[ImagePart], data: DataConfig) -> None:
    if data.picture_check == "decode":
        for picture in pictures:
            open_image(picture.source)


def _settings_digest(config: TrainConfig, files: DataFiles, processor: Processor) -> str:
    """Of all that decides whether a row can be used, besides the row."""
    tokenizer: str = processor.tokenizer.backend_tokenizer.to_str()  # type: ignore[attr-defined]
    data, model = config.data, processor.config
    settings = (config.objective, data.mask, data.image_place, str(files.images), repr(model), tokenizer)
    return hashlib.sha256("\n".join(settings).encode()).hexdigest()


def _settle(manifest: Manifest, data: DataConfig, files: DataFiles, manifest_path: Path) -> None:
    manifest.write(manifest_path)
    if manifest.rejected and data.bad_rows == "stop":
        raise DataError(
            f"{explain_rejections(manifest, files.rows)} All are listed in {manifest_path}. Mend them, or train without them: "
            "data.bad_rows=skip."
        )
    if len(manifest.accepted) <= data.validation_rows:
        raise DataError(
            f"{files.rows} has {len(manifest.accepted)} usable rows, of which data.validation_rows holds out {data.validation_rows}; "
            "nothing is "
            f"left to train on. The reasons for rows left out are in {manifest_path}."
        )


def _split(groups: Sequence[str], config: TrainConfig) -> tuple[list[int], list[int]]:
    """The places of the rows to learn from, and of those held out."""
    chosen = held_out(groups, config.data.validation_rows, seed=config.seed)
    if len(chosen) == len(groups):
        raise DataError("All rows show the same picture, so none can be held out for validation; set data.validation_rows=0.")
    return [place for place in range(len(groups)) if place not in chosen], sorted(chosen)
