"""What a run learns from: rows chosen once, their sizes known before anything is decoded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vistune.data.planner import RowSize
from vistune.model.llava import Llava
from vistune.model.processor import Processor
from vistune.train.config import TrainConfig
from vistune.train.lessons import load_lessons


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
