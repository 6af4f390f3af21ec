from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.checkpoint.tiny import ROWS, TOWER, digests, tiny_llava, tiny_tokenizer
from transformers import AutoModelForCausalLM, CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

from vistune.checkpoint.folder import load_model, save_model
from vistune.checkpoint.original import save_original
from vistune.checkpoint.original_config import read_pinpoints
from vistune.errors import CheckpointError, ConversionError, TensorError, UnsupportedModel, UsageError
from vistune.model.config import OFFICIAL_PINPOINTS

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks transformers by an old name

TOWER_NAME = "openai/clip-vit-large-patch14-336"


def original_folder(path: Path, *, keep_tower: bool = True, **settings) -> dict[str, torch.Tensor]:
    """An original checkpoint of a random model at `path`; returns its tensors."""
    model, processor = tiny_llava(**settings)
    save_original(model, processor, path, vision_tower=TOWER_NAME)
    tensors = load_file(path / "model.safetensors")
    if not keep_tower:
        tensors = {name: tensor for name, tensor in tensors.items() if "vision_tower" not in name}
        save_file(tensors, path / "model.safetensors")
        edit_config(path, vistune_vision_config=None, vistune_image=None, vistune_template=None, unfreeze_mm_vision_tower=False)
    return tensors


def edit_config(folder: Path, **changes) -> None:
    values = {**json.loads((folder / "config.json").read_text()), **changes}
    (folder / "config.json").write_text(json.dumps({name: value for name, value in values.items() if value is not None}))


def tower_folder(path: Path) -> CLIPVisionModel:
    torch.manual_seed(7)
    tower = CLIPVisionModel(CLIPVisionConfig(**TOWER))
    tower.save_pretrained(path)
    return tower


def language_folder(path: Path) -> dict[str, torch.Tensor]:
    """A raw language model as its publisher saves it."""
    model, _ = tiny_llava(seed=5)
    model.causal_lm.save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if name.startswith("language_model.")}


def projector_tensors(width: int = 24) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return {"0.weight": torch.randn(32, width), "0.bias": torch.randn(32), "2.weight": torch.randn(32, 32), "2.bias": torch.randn(32)}


def trained_part(path: Path, **changes) -> None:
    """`config.json` of a folder that holds only what was trained."""
    original_folder(path)
    (path / "model.safetensors").unlink()
    edit_config(path, vistune_vision_config=None, vistune_image=None, vistune_template=None, **changes)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / name).unlink()


def test_names_are_the_originals(tmp_path):
    names = set(original_folder(tmp_path / "v1.6", mode="anyres"))
    assert {"model.embed_tokens.weight", "lm_head.weight", "model.layers.1.mlp.up_proj.weight", "model.image_newline"} <= names
    assert {"model.mm_projector.0.weight", "model.mm_projector.2.bias"} <= names
    assert "model.vision_tower.vision_tower.vision_model.encoder.layers.2.mlp.fc1.bias" in names
    assert not any(name.startswith(("language_model", "multi_modal", "vision_tower")) for name in names)


@pytest.mark.parametrize(
    "settings", [{}, {"mode": "anyres", "family": "mistral"}, {"family": "qwen2", "tower": "siglip", "tie": True}], ids=str
)
def test_original_to_ours_to_hugging_face_to_original_is_bit_equal(settings, tmp_path):
    model, processor = tiny_llava(**settings)
    save_original(model, processor, tmp_path / "first", vision_tower=TOWER_NAME)
    save_model(*load_model(tmp_path / "first"), tmp_path / "hub")
    save_original(*load_model(tmp_path / "hub"), tmp_path / "last", vision_tower=TOWER_NAME)
    assert digests(tmp_path / "first") == digests(tmp_path / "last")
    assert load_file(tmp_path / "last" / "model.safetensors")["model.embed_tokens.weight"].shape[0] == ROWS
    for name in ("config.json", "tokenizer.json"):
        assert (tmp_path / "first" / name).read_text() == (tmp_path / "last" / name).read_text()


def test_a_hub_folder_gives_back_the_rows_of_its_language_model(tmp_path):
    save_model(*tiny_llava(), tmp_path / "hub")
    (tmp_path / "hub" / "vistune.json").unlink()
    save_original(*load_model(tmp_path / "hub"), tmp_path / "original", vision_tower=TOWER_NAME)
    assert load_file(tmp_path / "original" / "model.safetensors")["lm_head.weight"].shape[0] == ROWS


def test_the_linear_projector_of_v1_loads_and_is_native_in_hugging_face(tmp_path):
    tensors = original_folder(tmp_path / "v1", projector="linear", mode="square")
    assert tensors["model.mm_projector.weight"].shape == (32, 24)
    model, processor = load_model(tmp_path / "v1")
    assert (model.config.projector, model.config.image.mode) == ("linear", "square")
    save_model(model, processor, tmp_path / "native")
    assert "projector linear" in json.loads((tmp_path / "native" / "config.json").read_text())["native_only"]


def test_a_stripped_checkpoint_takes_the_tower_that_it_names(tmp_path):
    tower = tower_folder(tmp_path / "tower")
    original_folder(tmp_path / "v1.5", keep_tower=False)
    edit_config(tmp_path / "v1.5", mm_vision_tower=str(tmp_path / "tower"))
    model, _ = load_model(tmp_path / "v1.5")
    assert torch.equal(model.vision_tower.vision_model.post_layernorm.weight, tower.post_layernorm.weight)
    assert (model.config.template, model.config.feature_layer) == ("vicuna_v1", -2)


def test_a_tuned_tower_inside_wins_over_the_one_that_is_named(tmp_path):
    tower_folder(tmp_path / "tower")
    tensors = original_folder(tmp_path / "tuned")
    edit_config(tmp_path / "tuned", vistune_vision_config=None, vistune_image=None, mm_vision_tower=str(tmp_path / "tower"))
    model, _ = load_model(tmp_path / "tuned")
    inside = tensors["model.vision_tower.vision_tower.vision_model.post_layernorm.bias"]
    assert torch.equal(model.vision_tower.vision_model.post_layernorm.bias, inside)


def test_siglip_loses_its_last_layer_and_its_head_as_in_next(tmp_path):
    SiglipVisionModel(SiglipVisionConfig(**TOWER)).save_pretrained(tmp_path / "tower")
    original_folder(tmp_path / "next", keep_tower=False, family="qwen2")
    model, _ = load_model(tmp_path / "next", vision_tower=tmp_path / "tower")
    assert model.config.vision_config["num_hidden_layers"] == 2
    assert (model.config.feature_layer, model.config.feature_select) == (-1, "full")


@pytest.mark.parametrize("prefix", ["model.mm_projector.", "mm_projector.", "base_model.model.model.mm_projector."])
def test_a_projector_only_checkpoint_loads_on_its_base(prefix, tmp_path):
    language = language_folder(tmp_path / "base")
    tower_folder(tmp_path / "tower")
    trained_part(tmp_path / "stage1", image_aspect_ratio="square", mm_vision_tower=str(tmp_path / "tower"))
    projector = projector_tensors()
    save_file({prefix + name: tensor for name, tensor in projector.items()}, tmp_path / "stage1" / "mm_projector.safetensors")
    with pytest.raises(UsageError, match="--base FOLDER"):
        load_model(tmp_path / "stage1")
    model, processor = load_model(tmp_path / "stage1", base=tmp_path / "base")
    assert torch.equal(model.multi_modal_projector.linear_2.weight, projector["2.weight"])
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in language.items())
    assert processor.config.image_token_id == ROWS


def test_a_projector_of_the_wrong_type_is_reported_by_its_tensors(tmp_path):
    language_folder(tmp_path / "base")
    tower_folder(tmp_path / "tower")
    trained_part(tmp_path / "stage1", mm_vision_tower=str(tmp_path / "tower"), mm_projector_type="linear")
    save_file({f"model.mm_projector.{n}": t for n, t in projector_tensors().items()}, tmp_path / "stage1" / "mm_projector.safetensors")
    with pytest.raises(TensorError, match=r"left over: multi_modal_projector\.linear_2"):
        load_model(tmp_path / "stage1", base=tmp_path / "base")


def lora_checkpoint(tmp_path: Path) -> dict[str, torch.Tensor]:
    """A LoRA checkpoint of the original on a raw base; returns the language model merged by PEFT."""
    language_folder(tmp_path / "base")
    tower_folder(tmp_path / "tower")
    folder = tmp_path / "a checkpoint of any name"
    trained_part(folder, mm_vision_tower=str(tmp_path / "tower"))
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    wrapped = peft.get_peft_model(base, peft.LoraConfig(r=4, lora_alpha=12, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"))
    for name, parameter in wrapped.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter)
    wrapped.save_pretrained(folder)
    projector = {f"base_model.model.model.mm_projector.{name}": tensor for name, tensor in projector_tensors().items()}
    save_file(projector, folder / "non_lora_trainables.safetensors")
    return dict(wrapped.merge_and_unload().state_dict())


def test_a_lora_checkpoint_is_merged_as_peft_merges_it(tmp_path):
    expected = lora_checkpoint(tmp_path)
    model, _ = load_model(tmp_path / "a checkpoint of any name", base=tmp_path / "base")
    for name, tensor in model.causal_lm.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert torch.equal(model.multi_modal_projector.linear_1.bias, projector_tensors()["0.bias"])


def test_an_intermediate_lora_checkpoint_says_what_it_lacks(tmp_path):
    lora_checkpoint(tmp_path)
    (tmp_path / "a checkpoint of any name" / "non_lora_trainables.safetensors").unlink()
    with pytest.raises(CheckpointError, match="Take the final folder"):
        load_model(tmp_path / "a checkpoint of any name", base=tmp_path / "base")


def test_pickled_parts_are_refused_with_the_command(tmp_path):
    trained_part(tmp_path / "stage1")
    (tmp_path / "stage1" / "mm_projector.bin").write_bytes(b"\x80\x02.")
    with pytest.raises(ConversionError, match="vistune convert"):
        load_model(tmp_path / "stage1", base=tmp_path / "base")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("mm_use_im_start_end", True),
        ("mm_resampler_type", "qformer"),
        ("image_aspect_ratio", "anyres_max_9"),
        ("mm_patch_merge_type", "maxpool2x2"),
        ("mm_projector_type", "mlp2x_res2x_gelu"),
        ("mm_vision_select_feature", "slicefour_patch"),
        ("model_type", "llava_mpt"),
    ],
)
def test_an_option_that_we_do_not_have_is_refused_by_name(option, value, tmp_path):
    original_folder(tmp_path / "odd")
    edit_config(tmp_path / "odd", **{option: value})
    with pytest.raises(UnsupportedModel, match=str(value)):
        load_model(tmp_path / "odd")


def test_pinpoints_are_read_as_a_list_its_text_and_a_range():
    assert read_pinpoints([[336, 672]], 336, "x") == ((336, 672),)
    assert read_pinpoints(str([list(pair) for pair in OFFICIAL_PINPOINTS]), 336, "x") == OFFICIAL_PINPOINTS
    assert read_pinpoints("[(336, 672), (672, 336)]", 336, "x") == ((336, 672), (672, 336))
    assert read_pinpoints("(1x1),...,(2x3)", 336, "x") == ((336, 336), (336, 672), (336, 1008), (672, 336), (672, 672), (672, 1008))
    with pytest.raises(CheckpointError, match="pinpoints"):
        read_pinpoints("__import__('os')", 336, "x")


def test_a_model_that_the_layout_cannot_express_is_refused(tmp_path):
    with pytest.raises(UnsupportedModel, match="qwen3"):
        save_original(*tiny_llava(family="qwen3"), tmp_path / "out")
    with pytest.raises(CheckpointError, match="--tower-id NAME"):
        save_original(*tiny_llava(), tmp_path / "out")
