"""From a folder to a folder: what a run leaves is what it trained, and the next stage begins there."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.conftest import logits

from vistune.checkpoint.adapters import is_adapter
from vistune.checkpoint.folder import load_model
from vistune.errors import UsageError
from vistune.model.llava import Llava
from vistune.train.config import ModelChoice, TrainConfig, override
from vistune.train.start import start_model
from vistune.train.trainer import train


@pytest.mark.parametrize("trainable", [("projector",), ("projector", "language_model"), ("projector", "lora")])
def test_a_whole_folder_is_trained_into_a_whole_folder(
    config: TrainConfig, tiny_folder: Path, trained: list[Llava], coloured_squares: Path, trainable: Any
):
    config = replace(config, trainable=trainable, max_steps=2, model=replace(config.model, init_from=str(tiny_folder)))
    model, processor = load_model(train(config))
    assert processor.config.template == config.model.template
    torch.testing.assert_close(*(logits(each, processor, coloured_squares / "0.png") for each in (model, trained[0])), rtol=1e-4, atol=1e-5)


def test_two_backbones_become_a_projector_and_then_an_adapter_on_them(
    config: TrainConfig, backbones: tuple[str, str], trained: list[Llava], coloured_squares: Path, tmp_path: Path
):
    choice = replace(config.model, init_from="", language_model=backbones[0], vision_tower=backbones[1], projector="grid_mlp")
    first = train(replace(config, model=choice, max_steps=2))
    assert not is_adapter(first)
    second = replace(config, trainable=("projector", "lora"), output=str(tmp_path / "second"), precision="bf16", max_steps=2)
    folder = train(replace(second, model=replace(choice, init_from=str(first))))
    assert is_adapter(folder)
    assert sum(file.stat().st_size for file in folder.iterdir()) < 200_000
    model, processor = load_model(folder, dtype=torch.float32)
    found, expected = (logits(each.float(), processor, coloured_squares / "0.png") for each in (model, trained[1]))
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.05)  # the frozen weights were held in bf16


def test_an_aligned_grid_projector_says_what_it_sees_in_the_words_of_its_data(
    config: TrainConfig, backbones: tuple[str, str], trained: list[Llava], coloured_squares: Path, tmp_path: Path
):
    choice = replace(config.model, init_from="", language_model=backbones[0], vision_tower=backbones[1], projector="grid_mlp")
    align = override(replace(config, model=choice, max_steps=3), {"objective": "align", "data.dataset": "annotations.jsonl"})
    stopped = replace(align, output=str(tmp_path / "stopped"), save_every=2)
    folders = [train(align), train(stopped)]
    shutil.rmtree(folders[1])
    folders[1] = train(stopped, resume=True)
    labels = {
        box["label"] for line in (coloured_squares / "annotations.jsonl").read_text().splitlines() for box in json.loads(line)["boxes"]
    }
    model, processor = load_model(folders[0])
    assert model.config.visual_words == len(labels | {"background"})
    torch.testing.assert_close(
        logits(model, processor, coloured_squares / "0.png"), logits(trained[0], processor, coloured_squares / "0.png")
    )
    # Gone on with, the run has the same words and the same weights.
    tensors = [load_model(folder)[0].multi_modal_projector.state_dict() for folder in folders]
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
    # The next stage goes on with them.
    second = replace(config, output=str(tmp_path / "second"), max_steps=1, model=replace(choice, init_from=str(folders[0])))
    assert torch.equal(load_model(train(second))[0].multi_modal_projector.words, model.multi_modal_projector.words)


def test_a_run_without_a_model_says_what_to_set():
    with pytest.raises(UsageError, match=r"model\.init_from"):
        start_model(ModelChoice(language_model="smollm2-135m-instruct"))


def test_a_model_that_saw_pictures_whole_begins_to_see_them_in_tiles(tiny_folder: Path):
    start = start_model(ModelChoice(init_from=str(tiny_folder), image_mode="anyres"))
    config, side = start.model.config, start.model.config.image.size
    assert (config.image.mode, config.image_newline, config.image.pinpoints[2]) == ("anyres", True, (2 * side, 2 * side))
    assert start.model.image_newline is not None
    assert dict(start.model.named_parameters())["image_newline"].shape == (config.text_config["hidden_size"],)
