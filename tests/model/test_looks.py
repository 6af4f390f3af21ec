"""Pictures of late are not decoded again, and nobody sees by that what another has shown."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from model_fixtures import MARKERS, llama_tokenizer, picture, tiny_config
from PIL import Image

from vistune import media
from vistune.errors import ImageError
from vistune.model.looks import ENTRY_BYTES, Looks
from vistune.model.processor import Processor
from vistune.types import Conversation, ImagePart, ImageSource


def file_of(seed: int) -> bytes:
    file = io.BytesIO()
    picture(40, 30, seed).save(file, "PNG")
    return file.getvalue()


class Opened:
    """A processor that notes what it opened."""

    def __init__(self, mode: str = "pad"):
        self.sources: list[ImageSource] = []
        pinpoints = {"pinpoints": ((28, 56), (56, 28))} if mode == "anyres" else {}
        config = replace(tiny_config(mode=mode, **pinpoints), image_token_id=-200)
        self.processor = Processor(llama_tokenizer(markers=MARKERS), config, open_image=self._open)

    def _open(self, source: ImageSource) -> Image.Image:
        self.sources.append(source)
        return media.open_image(source)

    def times(self, looks: Looks, *sources: ImageSource, salt: str = "") -> int:
        before = len(self.sources)
        self.processor(asking(*sources), looks=looks, salt=salt)
        return len(self.sources) - before


def asking(*sources: ImageSource) -> Conversation:
    return Conversation(()).then("user", *(ImagePart(source) for source in sources), "What is it?")


@pytest.mark.parametrize("mode", ["square", "pad", "anyres"])
def test_a_picture_looked_at_before_gives_the_same_inputs_without_being_opened(mode: str):
    opened, looks = Opened(mode), Looks()
    fresh = opened.processor(asking(file_of(1)))
    opened.processor(asking(file_of(1)), looks=looks)
    opened.sources.clear()
    again = opened.processor(asking(file_of(1)).then("assistant", "A thing.").then("user", "Which?"), looks=looks)
    assert opened.sources == []
    assert again.pixel_values is not None
    assert fresh.pixel_values is not None
    assert torch.equal(again.pixel_values, fresh.pixel_values)
    assert (again.views, again.image_sizes, again.image_keys) == (fresh.views, fresh.image_sizes, fresh.image_keys)


def test_another_picture_another_salt_and_other_company_are_looked_at_anew():
    opened, looks = Opened(), Looks()
    assert opened.times(looks, file_of(1)) == 1
    assert opened.times(looks, file_of(2)) == 1
    assert opened.times(looks, file_of(1), salt="another tenant") == 1
    assert opened.times(looks, file_of(1), file_of(2)) == 2  # AnyRes folders show one of several otherwise
    assert opened.times(looks, file_of(1)) == opened.times(looks, file_of(2), file_of(1)) == 0


def test_a_file_is_opened_each_time_because_it_may_be_another(tmp_path: Path):
    opened, looks = Opened(), Looks()
    path = tmp_path / "picture.png"
    for seed in (1, 2):
        path.write_bytes(file_of(seed))
        assert opened.times(looks, path) == 1
    assert looks.bytes_used == 0


def test_training_and_pictures_that_were_given_keep_nothing():
    opened, looks = Opened(), Looks()
    opened.processor(asking(file_of(1)).then("assistant", "A thing."), train=True, looks=looks)
    opened.processor(asking(file_of(1)), images=[picture(40, 30, 1)], looks=looks)
    opened.processor(asking(file_of(1)), load_pixels=False, looks=looks)
    assert looks.bytes_used == 0


def test_the_longest_unused_go_when_memory_is_full_and_what_never_fits_is_not_kept():
    opened = Opened()
    each = ENTRY_BYTES + 4 * 3 * opened.processor.config.image.size**2
    looks = Looks(2 * each)
    assert [opened.times(looks, file_of(seed)) for seed in (1, 2, 1, 3, 1, 2)] == [1, 1, 0, 1, 0, 1]
    assert looks.bytes_used == 2 * each
    small = Looks(each - 1)
    assert [opened.times(small, file_of(1)) for _ in range(2)] == [1, 1]
    assert small.bytes_used == 0


def test_a_picture_that_cannot_be_opened_is_refused_each_time():
    opened, looks = Opened(), Looks()
    for _ in range(2):
        with pytest.raises(ImageError):
            opened.times(looks, file_of(1)[:60])
    assert len(opened.sources) == 2
