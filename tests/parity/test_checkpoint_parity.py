"""Folders cross between vistune and transformers in both directions: same weights, same logits, same pixels and ids."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.checkpoint.tiny import ROWS, digests, tiny_llava
from transformers import AutoModelForImageTextToText, AutoProcessor

from vistune.checkpoint.folder import load_model, save_model
from vistune.model.inputs import lay_end_to_end
from vistune.types import Conversation, ImagePart, Message, TextPart

CASES = {
    "clip llama pad": {},
    "clip mistral square": {"family": "mistral", "mode": "square", "template": "mistral_instruct"},
    "siglip qwen2 tied": {"family": "qwen2", "tower": "siglip", "mode": "square", "tie": True, "template": "qwen_2"},
    "siglip qwen3 pad": {"family": "qwen3", "tower": "siglip"},
    "clip llama anyres": {"mode": "anyres"},
    "clip qwen2 anyres, transformers order": {"family": "qwen2", "mode": "anyres", "order": "transformers"},
}


def picture(width: int = 45, height: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def conversation(text: str = "What is shown?") -> Conversation:
    return Conversation((Message("user", (ImagePart(b"given"), TextPart(text))),))


def load_with_transformers(folder: Path):
    model, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_transformers_reads_our_folder_to_the_same_ids_pixels_and_logits(settings, tmp_path):
    model, processor = tiny_llava(**settings, text_after_image="transformers")
    save_model(model, processor, tmp_path / "out")
    theirs = load_with_transformers(tmp_path / "out")
    their_processor = AutoProcessor.from_pretrained(tmp_path / "out")
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is shown?"}]}]
    text = their_processor.apply_chat_template(chat, add_generation_prompt=True)
    expected = their_processor(text=text, images=[picture()], return_tensors="pt")

    inputs = processor(conversation(), images=[picture()])

    assert inputs.input_ids.tolist() == expected["input_ids"][0].tolist()
    pixels = expected["pixel_values"][0] if settings.get("mode") == "anyres" else expected["pixel_values"]
    assert torch.equal(inputs.pixel_values, pixels)
    with torch.no_grad():
        ours, logits = model(lay_end_to_end([inputs])), theirs(**expected).logits[0]
    assert (ours - logits[:, :ROWS]).abs().max() < 1e-4
    assert logits.shape[1] == 320  # rows for <image> and <pad>, up to a multiple of 64


@pytest.mark.parametrize("generation", ["transformers 5", "intermediate", "transformers 4"])
@pytest.mark.parametrize("mode", ["pad", "anyres"])
def test_we_read_what_transformers_saves_in_each_generation_of_names(generation, mode, tmp_path):
    model, processor = tiny_llava(mode=mode)
    save_model(model, processor, tmp_path / "ours")
    theirs = load_with_transformers(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs", save_original_format=generation != "transformers 5")
    AutoProcessor.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    if generation == "intermediate":
        path = tmp_path / "theirs" / "model.safetensors"
        save_file({nested(name): tensor for name, tensor in load_file(path).items()}, path)

    loaded, loaded_processor = load_model(tmp_path / "theirs")

    state = model.state_dict()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor[: len(state[name])] if tensor.dim() else tensor, state[name]), name
    assert loaded.config.image.mode == mode
    assert loaded.config.image.pinpoint_order == "transformers"
    assert loaded.config.template == "vicuna_v1"
    assert loaded_processor.config.text_config["vocab_size"] == 320


def nested(name: str) -> str:
    """The names of releases between 4.52 and 5: everything but the head inside `model.`."""
    if name.startswith("language_model.lm_head"):
        return name.removeprefix("language_model.")
    return "model." + name.replace("language_model.model.", "language_model.")


def test_a_hub_folder_of_the_4x_style_with_sparse_configuration_loads(tmp_path):
    model, processor = tiny_llava()
    save_model(model, processor, tmp_path / "hub")
    (tmp_path / "hub" / "vistune.json").unlink()
    (tmp_path / "hub" / "processor_config.json").unlink()
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    for absent in ("vision_feature_layer", "vision_feature_select_strategy", "image_seq_length", "projector_hidden_act", "dtype"):
        del config[absent]
    config["text_config"] |= {"rope_theta": 10000.0, "rope_scaling": None, "_name_or_path": "someone/base", "top_k": 50}
    del config["text_config"]["rope_parameters"]
    (tmp_path / "hub" / "config.json").write_text(json.dumps(config))

    loaded, _ = load_model(tmp_path / "hub")

    assert (
        digests(loaded)["vision_tower.vision_model.post_layernorm.weight"]
        == digests(model)["vision_tower.vision_model.post_layernorm.weight"]
    )
    assert loaded.config.image.mode == "pad"  # its image processor says do_pad
    assert loaded.config.feature_layer == -2
