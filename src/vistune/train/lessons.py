"""From the config's data to the examples of a run: rows checked once, some held out, the rest in a fixed list."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from vistune.data.datasets import DataFiles, annotations_from, locate
from vistune.data.grouping import official_length
from vistune.data.records import Records
from vistune.data.shards import PictureShards, tars_at
from vistune.data.validate import Manifest, Measured, check_file_once, explain_rejections, held_out, picture_group
from vistune.errors import DataError
from vistune.formats import RowFile, example_from_row, placed_rows
from vistune.media import open_image
from vistune.model.llava import Llava
from vistune.model.processor import Processor
from vistune.train.config import DataConfig, TrainConfig
from vistune.train.objectives import Align, CellNames, NextToken, Objective, annotation_names, measure_example, measure_picture
from vistune.types import ImageAnnotations, ImagePart, InstructionExample

Record = TypeVar("Record")


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
    data, shards = config.data, _shards(files, manifest_path)

    def read(number: int, row: Any) -> InstructionExample:
        return example_from_row(row, files.images, row_number=number, image_place=data.image_place)

    def fill(example: InstructionExample) -> InstructionExample:
        return shards.filled(example) if shards else example

    def measure(example: InstructionExample) -> Measured:
        _look_at(example.conversation.images, data)
        tokens = measure_example(example, processor, data.mask)
        return Measured(tokens, len(example.conversation.images), abs(official_length(example.conversation)))

    manifest = _checked(config, files, processor, manifest_path, lambda number, row: fill(read(number, row)), measure)
    examples = Records(RowFile(files.rows), manifest.table, read, fill)
    groups = map(picture_group, examples.all_named())
    training, validation = (
        NextToken(examples.only(table), processor, data.mask) for table in _split(manifest, groups, config, manifest_path)
    )
    return Lessons(training, validation if len(validation) else None, manifest)


def _align(config: TrainConfig, files: DataFiles, model: Llava, processor: Processor, manifest_path: Path) -> Lessons:
    shards = _shards(files, manifest_path)

    def read(number: int, row: Any) -> ImageAnnotations:
        return annotations_from(row, where=f"row {number}")

    def fill(annotations: ImageAnnotations) -> tuple[ImageAnnotations, ImagePart]:
        path = files.images / annotations.image
        return annotations, ImagePart(shards.read(path) if shards else path)

    def measure(picture: tuple[ImageAnnotations, ImagePart]) -> Measured:
        _look_at([picture[1]], config.data)
        return Measured(measure_picture(picture), images=1, words=1)

    manifest = _checked(config, files, processor, manifest_path, lambda number, row: fill(read(number, row)), measure)
    pictures = Records(RowFile(files.rows), manifest.table, read, fill)
    names = CellNames.of(annotation_names(pictures.all_named(), config.align.background), model, processor)
    groups = (annotations.image for annotations in pictures.all_named())
    training, validation = (
        Align(pictures.only(table), processor, names, config.align) for table in _split(manifest, groups, config, manifest_path)
    )
    return Lessons(training, validation if len(validation) else None, manifest)


def _shards(files: DataFiles, manifest_path: Path) -> PictureShards | None:
    """The tars that hold the pictures, if they are in tars. Their index lies beside the manifest."""
    return PictureShards(files.images, index=manifest_path.with_name("pictures.npy")) if tars_at(files.images) else None


def _checked(
    config: TrainConfig,
    files: DataFiles,
    processor: Processor,
    manifest_path: Path,
    read: Callable[[int, Any], Record],
    measure: Callable[[Record], Measured],
) -> Manifest:
    """The outcome of the check, of this call or an earlier one, once it is one that a run can begin with."""
    known = Manifest.read(manifest_path)
    rows = placed_rows(files.rows)
    manifest = check_file_once(files.rows, rows, read, measure, settings_digest=_settings_digest(config, files, processor), known=known)
    if manifest is not known:
        manifest.write(manifest_path)
    _refuse_unfit(manifest, config.data, files, manifest_path)
    return manifest


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


def _refuse_unfit(manifest: Manifest, data: DataConfig, files: DataFiles, manifest_path: Path) -> None:
    if manifest.rejected and data.bad_rows == "stop":
        raise DataError(
            f"{explain_rejections(manifest, files.rows)} All are listed in {manifest_path}. Mend them, or train without them: "
            "data.bad_rows=skip."
        )
    if len(manifest.table) <= data.validation_rows:
        raise DataError(
            f"{files.rows} has {len(manifest.table)} usable rows, of which data.validation_rows holds out {data.validation_rows}; "
            f"nothing is left to train on. The reasons for rows left out are in {manifest_path}."
        )


def _split(
    manifest: Manifest, groups: Iterable[str], config: TrainConfig, manifest_path: Path
) -> tuple[NDArray[np.void], NDArray[np.void]]:
    """The rows of the manifest to learn from, and those held out. Choosing them takes every row, so the choice is kept in the manifest."""
    rows = config.data.validation_rows
    key = f"seed {config.seed}, {rows} rows"
    if rows and key not in manifest.held_out:
        manifest.held_out[key] = sorted(held_out(groups, rows, seed=config.seed))
        manifest.write(manifest_path)
    places = np.array(manifest.held_out.get(key, []), np.int64)
    if len(places) == len(manifest.table):
        raise DataError("All rows show the same picture, so none can be held out for validation; set data.validation_rows=0.")
    return np.delete(manifest.table, places), manifest.table[places]
