"""A folder of scenes: what is written can be read back, and a second run writes the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from vistune.errors import UsageError
from vistune.formats import read_examples
from vistune.scenes import SceneSpec
from vistune.scenes.write import read_annotated_scenes, write_scenes


def test_a_folder_of_scenes_is_read_back_by_the_ordinary_reader(tmp_path: Path):
    folder = write_scenes(tmp_path / "scenes", 5, seed=1)
    examples = list(read_examples(folder / "instruct.json", folder))
    assert len(examples) == 5
    for example in examples:
        (image,) = example.conversation.images
        with Image.open(image.source) as picture:  # type: ignore[arg-type]
            assert picture.size == (224, 224)


def test_annotations_say_for_every_box_what_and_where_it_is(tmp_path: Path):
    folder = write_scenes(tmp_path / "scenes", 5, seed=1)
    for scene in read_annotated_scenes(folder / "annotations.jsonl"):
        boxes = len(scene.annotations.boxes)
        assert boxes == len(scene.places) == len(scene.categories) == len(scene.colours)
        assert scene.background in scene.annotations.captions[0]


def test_the_same_seed_writes_the_same_words_and_another_seed_others(tmp_path: Path):
    words = [(write_scenes(tmp_path / str(run), 3, seed=seed) / "instruct.json").read_text() for run, seed in enumerate((1, 1, 2))]
    assert words[0] == words[1] != words[2]
    assert json.loads(words[0])[0]["conversations"][0]["value"].startswith("<image>\n")


def test_held_out_sprites_are_refused_for_training(tmp_path: Path):
    with pytest.raises(UsageError, match="held out"):
        write_scenes(tmp_path / "scenes", 1, spec=SceneSpec(splits=("seen", "new_name")))
