"""What a run learns from: rows chosen once, their sizes known before anything is decoded."""

from __future__ import annotations

import json
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vistune.data.grouping import official_length
from vistune.data.planner import RowSize
from vistune.errors import DataError
from vistune.model.llava import Llava
from vistune.model.processor import Processor
from vistune.train.config import TrainConfig
from vistune.train.lessons import Lessons, load_lessons
from vistune.train.objectives import Objective


@pytest.mark.parametrize("objective", ["next_token", "align"])
def test_the_size_of_an_example_is_known_before_it_is_prepared(
    config: TrainConfig, tiny: tuple[Llava, Processor], tmp_path: Path, objective: str
):
    data = replace(config.data, dataset="rows.json" if objective == "next_token" else "annotations.jsonl", validation_rows=0)
    lessons = load_lessons(replace(config, objective=objective, data=data), *tiny, manifest_path=tmp_path / "data.json")  # type: ignore[arg-type]
    prepared = [lessons.training.prepare(place) for place in range(len(lessons.training))]
    pictures = [1] * 12 + [0] * (objective == "next_token")
    assert [lessons.training.size(place) for place in range(len(prepared))] == [
        RowSize(example.length, images) for example, images in zip(prepared, pictures, strict=True)
    ]


def lessons_of(config: TrainConfig, tiny: tuple[Llava, Processor], folder: Path, objective: str = "next_token", **data: object) -> Lessons:
    data = {"dataset": "rows.json" if objective == "next_token" else "annotations.jsonl", "validation_rows": 0, **data}
    config = replace(config, objective=objective, data=replace(config.data, **data))  # type: ignore[arg-type]
    return load_lessons(config, *tiny, manifest_path=folder / "data.json")


def pixels(objective: Objective) -> list[tuple[str, torch.Tensor | None]]:
    return [(objective.id(place), objective.prepare(place).inputs.pixel_values) for place in range(len(objective))]


def test_rows_are_checked_once_and_read_when_asked_for(
    config: TrainConfig, tiny: tuple[Llava, Processor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = lessons_of(config, tiny, tmp_path, validation_rows=3)
    read: list[int] = []
    monkeypatch.setattr("vistune.train.lessons.example_from_row", lambda row, root, **named: read.append(named["row_number"]))
    again = lessons_of(config, tiny, tmp_path, validation_rows=3)
    assert read == []  # not even to choose the rows that are held out
    assert again.manifest.digest == first.manifest.digest
    assert again.validation is not None
    assert first.validation is not None
    assert [again.validation.size(place) for place in range(len(again.validation))] == [
        first.validation.size(place) for place in range(len(first.validation))
    ]
    assert len(again.training) + len(again.validation) == 13
    again.training._examples.named(4)  # type: ignore[attr-defined]
    assert len(read) == 1


def test_a_row_that_changes_under_a_run_is_an_error_and_not_another_row(config: TrainConfig, tiny: tuple[Llava, Processor], tmp_path: Path):
    rows = tmp_path / "changing.json"
    rows.write_text((Path(config.data.root) / "rows.json").read_text())
    training = lessons_of(config, tiny, tmp_path, dataset=str(rows), images=config.data.root).training
    training.prepare(12)
    rows.write_text(rows.read_text().replace("Hello", "HELLO"))
    training._examples._record.cache_clear()  # type: ignore[attr-defined]  # as after many other rows
    with pytest.raises(DataError, match=r"changing\.json holds other bytes"):
        training.prepare(12)


@pytest.mark.parametrize("objective", ["next_token", "align"])
def test_pictures_in_a_tar_are_those_of_the_folder(config: TrainConfig, tiny: tuple[Llava, Processor], tmp_path: Path, objective: str):
    with tarfile.open(tmp_path / "squares.tar", "w") as tar:
        for picture in sorted(Path(config.data.root).glob("*.png")):
            tar.add(picture, picture.name)
    folder, shards = tmp_path / "folder", tmp_path / "shards"
    folder.mkdir()
    shards.mkdir()
    plain = lessons_of(config, tiny, folder, objective)
    packed = lessons_of(config, tiny, shards, objective, images=str(tmp_path / "squares.tar"))
    assert [id for id, _ in pixels(packed.training)] == [id for id, _ in pixels(plain.training)]
    assert packed.manifest.digest == plain.manifest.digest
    for (_, ours), (_, theirs) in zip(pixels(packed.training), pixels(plain.training), strict=True):
        assert (ours is None and theirs is None) or torch.equal(ours, theirs)  # type: ignore[arg-type]


def test_a_picture_that_is_not_in_the_tar_is_a_row_that_cannot_be_used(config: TrainConfig, tiny: tuple[Llava, Processor], tmp_path: Path):
    with tarfile.open(tmp_path / "few.tar", "w") as tar:
        tar.add(Path(config.data.root) / "3.png", "3.png")
    found = lessons_of(config, tiny, tmp_path, images=str(tmp_path / "few.tar"), bad_rows="skip").manifest
    assert found.accepted == (3, 12)
    assert found.reasons == {"image_missing": 11}
    assert [each["row"] for each in json.loads((tmp_path / "data.json").read_text())["rejected"]] == [0, 1, 2, *range(4, 12)]


def test_the_official_lengths_are_known_without_reading_a_row(config: TrainConfig, tiny: tuple[Llava, Processor], tmp_path: Path):
    training = lessons_of(config, tiny, tmp_path).training
    assert training.official_lengths() == [official_length(training.conversation(place)) for place in range(13)]
    assert training.official_lengths()[12] == -2
