from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.checkpoint.tiny import ROWS, digests, tiny_llava

from vistune.checkpoint.folder import load_model, save_model
from vistune.checkpoint.tensors import open_weights, write_file
from vistune.errors import CheckpointError, ConversionError, SaveError, TensorError, UnsupportedModel
from vistune.model.inputs import lay_end_to_end
from vistune.types import Conversation, Message, TextPart

TEXT_ONLY = Conversation((Message("user", (TextPart("Hello, what can you do?"),)),))
KINDS = {
    "hub": {},
    "hub anyres": {"mode": "anyres", "template": "mistral_instruct", "max_length": 300},
    "hub tied": {"family": "qwen2", "tie": True},
    "native linear": {"projector": "linear"},
    "native phi": {"family": "phi"},
    "native efficientnet": {"tower": "efficientnet_lite0", "projector": "grid_mlp", "template": "smollm2"},
}


def settings_of(name: str) -> dict:
    if "efficientnet" not in name:
        return KINDS[name]
    from vistune.model.backbones import VISION_TOWERS

    image = replace(VISION_TOWERS["efficientnet_lite0"].image, size=32)
    return {**KINDS[name], "tower": "siglip", "vision_tower": "efficientnet_lite0", "vision_config": {}, "image": image}


def edit_json(path: Path, **changes) -> None:
    values = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in {**values, **changes}.items() if value is not None}))


def rewrite_weights(folder: Path, **changes) -> None:
    """Replaces (or with None removes) tensors, and forgets the digests."""
    tensors = {name: slot.read() for name, slot in open_weights(folder).items()}
    write_file(folder / "model.safetensors", {name: tensor for name, tensor in {**tensors, **changes}.items() if tensor is not None})
    edit_json(folder / "vistune.json", weights=None)


@pytest.mark.parametrize("name", KINDS)
def test_a_saved_model_comes_back_bit_for_bit_with_all_its_settings(name, tmp_path):
    model, processor = tiny_llava(**settings_of(name))
    save_model(model, processor, tmp_path / "saved")
    loaded, loaded_processor = load_model(tmp_path / "saved")
    assert digests(loaded) == digests(model)
    unchanged = {"text_config": {}, "vision_config": {}}
    assert replace(loaded.config, **unchanged) == replace(model.config, **unchanged)
    first, second = processor(TEXT_ONLY), loaded_processor(TEXT_ONLY)
    assert first.input_ids.tolist() == second.input_ids.tolist()
    assert torch.equal(model(lay_end_to_end([first])), loaded(lay_end_to_end([second])))
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["model_type"].startswith("vistune") == name.startswith("native")


def test_saving_what_was_loaded_writes_the_same_bytes(saved_folder, tmp_path):
    save_model(*load_model(saved_folder), tmp_path / "again")
    first, second = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in (saved_folder, tmp_path / "again"))
    assert first == second


def test_a_model_over_the_shard_size_is_saved_in_shards_and_loads_again(tmp_path):
    model, processor = tiny_llava()
    save_model(model, processor, tmp_path / "sharded", max_shard_bytes=40_000)
    assert len(list((tmp_path / "sharded").glob("model-*.safetensors"))) > 3
    assert digests(load_model(tmp_path / "sharded")[0]) == digests(model)


def test_weights_load_in_the_dtype_they_are_stored_in_or_the_one_asked_for(tmp_path):
    model, processor = tiny_llava(dtype=torch.bfloat16)
    save_model(model, processor, tmp_path / "half")
    assert load_model(tmp_path / "half")[0].dtype == torch.bfloat16
    asked, _ = load_model(tmp_path / "half", dtype=torch.float32)
    assert {parameter.dtype for parameter in asked.parameters()} == {torch.float32}


def test_a_tied_head_stays_tied_and_is_stored_once(tmp_path):
    model, processor = tiny_llava(family="qwen2", tie=True)
    save_model(model, processor, tmp_path / "tied")
    assert "language_model.lm_head.weight" not in open_weights(tmp_path / "tied")
    causal_lm = load_model(tmp_path / "tied")[0].causal_lm
    assert causal_lm.lm_head.weight is causal_lm.get_input_embeddings().weight


def test_rope_settings_of_old_folders_are_understood(saved_folder):
    config = json.loads((saved_folder / "config.json").read_text())
    del config["text_config"]["rope_parameters"]
    config["text_config"]["rope_theta"] = 5000.0
    (saved_folder / "config.json").write_text(json.dumps(config))
    loaded, _ = load_model(saved_folder)
    assert loaded.config.text_config["rope_parameters"]["rope_theta"] == 5000.0
    inverse = loaded.causal_lm.model.rotary_emb.inv_freq
    assert inverse[1] == pytest.approx(5000.0 ** (-2 / 8))


NEWLINE = "language_model.model.norm.weight"
DAMAGES = {
    "missing": ({NEWLINE: None}, "missing: language_model.model.norm.weight"),
    "left over": ({"language_model.model.extra.weight": torch.ones(2)}, "left over: language_model.model.extra.weight"),
    "wrongly shaped": ({NEWLINE: torch.ones(31)}, r"language_model.model.norm.weight is \[31\], expected \[32\]"),
    "not finite": ({NEWLINE: torch.full((32,), float("nan"))}, "language_model.model.norm.weight holds nan"),
    "in two generations of names": ({"model.language_model.norm.weight": torch.ones(32)}, "same tensor"),
}


@pytest.mark.parametrize(("changes", "message"), DAMAGES.values(), ids=DAMAGES)
def test_a_tensor_that_is_wrong_is_an_error_that_names_it(changes, message, saved_folder, monkeypatch):
    monkeypatch.setattr("vistune.checkpoint.tensors.check_finite", lambda name, tensor: None)  # while writing
    rewrite_weights(saved_folder, **changes)
    monkeypatch.undo()
    with pytest.raises(TensorError, match=message):
        load_model(saved_folder)


def test_one_flipped_bit_is_noticed(saved_folder):
    path = saved_folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(data)
    with pytest.raises(TensorError, match="damaged or exchanged"):
        load_model(saved_folder)


def test_a_head_that_differs_from_the_embeddings_it_is_tied_to_is_refused(tmp_path):
    model, processor = tiny_llava(tie=True)
    save_model(model, processor, tmp_path / "tied")
    rewrite_weights(tmp_path / "tied", **{"language_model.lm_head.weight": torch.zeros(320, 32)})
    with pytest.raises(TensorError, match="the two differ"):
        load_model(tmp_path / "tied")


CONFIGS = {
    "code of its own": ({"auto_map": {"AutoModel": "modeling.Evil"}}, CheckpointError, "auto_map"),
    "quantised weights": ({"quantization_config": {"bits": 4}}, CheckpointError, "quantization_config"),
    "an unknown architecture": ({"model_type": "x" * 100_000}, UnsupportedModel, "loads LLaVA folders"),
    "a billion layers": ({"text_config": {"model_type": "llama", "num_hidden_layers": 10**9}}, CheckpointError, "num_hidden_layers"),
    "a negative width": ({"text_config": {"model_type": "llama", "hidden_size": -4}}, CheckpointError, "hidden_size"),
    "a fraction of a layer": ({"vision_config": {"model_type": "clip_vision_model", "num_hidden_layers": 2.5}}, CheckpointError, "2.5"),
    "a family outside the tests": ({"text_config": {"model_type": "gpt2"}}, UnsupportedModel, "gpt2"),
    "a rope of the batch": ({"text_config": {"model_type": "llama", "rope_scaling": {"type": "dynamic"}}}, UnsupportedModel, "dynamic"),
    "settings that contradict": ({"vision_feature_layer": -1}, CheckpointError, "vision_feature_layer"),
}


@pytest.mark.parametrize(("changes", "error", "message"), CONFIGS.values(), ids=CONFIGS)
def test_a_configuration_that_asks_too_much_is_refused_by_name(changes, error, message, saved_folder):
    edit_json(saved_folder / "config.json", **changes)
    with pytest.raises(error, match=message):
        load_model(saved_folder)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": 1, "a": 2}', '{"a": NaN}', "[]", "\xff", " " * (5 << 20)])
def test_json_that_is_no_plain_object_is_refused(text, saved_folder):
    (saved_folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_model(saved_folder)


def test_pickled_weights_are_refused_with_the_command_that_converts_them(saved_folder):
    (saved_folder / "model.safetensors").rename(saved_folder / "pytorch_model.bin")
    with pytest.raises(ConversionError, match=r"vistune convert .*saved OUT"):
        load_model(saved_folder)


def test_an_unknown_chat_template_asks_for_the_name_of_ours(saved_folder):
    (saved_folder / "vistune.json").unlink()
    (saved_folder / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(CheckpointError, match="--template NAME"):
        load_model(saved_folder)
    assert load_model(saved_folder, template="qwen_2")[0].config.template == "qwen_2"


def test_weights_that_are_not_finite_are_not_saved_and_nothing_remains(tmp_path):
    model, processor = tiny_llava()
    model.multi_modal_projector.linear_1.bias.data[3] = float("inf")
    with pytest.raises(TensorError, match=r"linear_1\.bias holds inf"):
        save_model(model, processor, tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_saving_never_overwrites_unless_told_to(saved_folder):
    model, processor = load_model(saved_folder)
    with pytest.raises(SaveError):
        save_model(model, processor, saved_folder)
    save_model(model, processor, saved_folder, existing="replace")
    assert load_model(saved_folder)[0].config.text_config["vocab_size"] == ROWS


@pytest.mark.parametrize("name", ["PreTrainedTokenizerFast", "GPT2TokenizerFast", "Qwen2Tokenizer"])
def test_the_tokenizer_of_a_native_folder_is_read_without_a_warning(name, tmp_path, caplog, monkeypatch):
    model, processor = tiny_llava(projector="linear")
    save_model(model, processor, tmp_path / "native")
    edit_json(tmp_path / "native" / "tokenizer_config.json", tokenizer_class=name)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    _, again = load_model(tmp_path / "native")
    assert again.tokenizer("A b\n<image>").input_ids == processor.tokenizer("A b\n<image>").input_ids
    assert not caplog.records
