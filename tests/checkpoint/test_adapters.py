from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.checkpoint.tiny import TOWER, tiny_config, tiny_llava, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, CLIPVisionConfig, CLIPVisionModel

from vistune.checkpoint.adapters import read_adapter
from vistune.checkpoint.backbones import new_model, read_vision_tower
from vistune.checkpoint.folder import load_model, load_untuned, save_adapter, save_model
from vistune.errors import CheckpointError, TensorError, UsageError
from vistune.model.config import LoraConfig
from vistune.model.inputs import lay_end_to_end
from vistune.model.llava import Llava
from vistune.train.parts import add_adapters
from vistune.types import Conversation, Message, TextPart

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks transformers by an old name

QUESTION = Conversation((Message("user", (TextPart("Hi"),)),))


@pytest.fixture
def bases(tmp_path: Path) -> tuple[str, str]:
    """Folders of a raw language model and of a raw tower."""
    language_model = Llava(tiny_config(family="qwen2", tie=True)).causal_lm
    language_model.save_pretrained(tmp_path / "language model")
    tiny_tokenizer().save_pretrained(tmp_path / "language model")
    CLIPVisionModel(CLIPVisionConfig(**TOWER)).save_pretrained(tmp_path / "tower")
    return str(tmp_path / "language model"), str(tmp_path / "tower")


def trained(bases: tuple[str, str]):
    """A new model on the bases whose projector and adapters have changed."""
    torch.manual_seed(1)
    model, processor = new_model(Path(bases[0]), Path(bases[1]), template="qwen_2", max_length=200)
    add_adapters(model, LoraConfig(rank=3, alpha=5, dropout=0.0))
    randomise_adapters(model)
    return model.eval(), processor


def randomise_adapters(model: torch.nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)


def test_a_new_model_is_its_two_backbones_and_a_fresh_projector(bases):
    model, processor = new_model(Path(bases[0]), Path(bases[1]), image_mode="anyres")
    base = AutoModelForCausalLM.from_pretrained(bases[0])
    assert torch.equal(model.causal_lm.model.norm.weight, base.model.norm.weight)
    assert model.causal_lm.lm_head.weight is model.causal_lm.get_input_embeddings().weight
    assert all(parameter.device.type == "cpu" and parameter.isfinite().all() for parameter in model.parameters())
    assert model.config.image.pinpoints[0] == (28, 56)
    assert processor.config.image_token_id == processor.tokenizer.convert_tokens_to_ids("<image>")


def test_an_adapter_folder_stands_on_its_bases_and_answers_the_same(bases, tmp_path):
    model, processor = trained(bases)
    save_adapter(model, processor, tmp_path / "adapter", language_model=bases[0], vision_tower=bases[1])
    stored = set(load_file(tmp_path / "adapter" / "model.safetensors"))
    assert all(name.startswith("multi_modal_projector.") for name in stored)
    loaded, loaded_processor = load_model(tmp_path / "adapter")
    assert loaded_processor.config.template == "qwen_2"
    inputs, again = processor(QUESTION), loaded_processor(QUESTION)
    assert inputs.input_ids.tolist() == again.input_ids.tolist()
    with torch.no_grad():
        assert torch.allclose(model(lay_end_to_end([inputs])), loaded(lay_end_to_end([again])), atol=1e-5)
    with_peft = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(bases[0]), tmp_path / "adapter").merge_and_unload()
    for name, tensor in loaded.causal_lm.state_dict().items():
        assert torch.equal(tensor, with_peft.state_dict()[name]), name


def test_a_base_with_other_weights_is_refused(bases, tmp_path):
    save_adapter(*trained(bases), tmp_path / "adapter", language_model=bases[0], vision_tower=bases[1])
    path = Path(bases[0]) / "model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path)
    with pytest.raises(TensorError, match="was trained on"):
        load_model(tmp_path / "adapter")


def test_a_model_whose_base_weights_were_trained_cannot_be_saved_as_an_adapter(bases, tmp_path):
    model, processor = trained(bases)
    model.vision_tower.vision_model.post_layernorm.bias.data += 1
    with pytest.raises(TensorError, match=r"post_layernorm\.bias was changed by training"):
        save_adapter(model, processor, tmp_path / "adapter", language_model=bases[0], vision_tower=bases[1])


def test_saving_whole_merges_the_adapters_as_peft_does(bases, tmp_path):
    model, processor = trained(bases)
    save_model(model, processor, tmp_path / "whole")
    loaded, _ = load_model(tmp_path / "whole")
    merged = model.language_model.merge_and_unload().state_dict()
    for name, tensor in loaded.causal_lm.state_dict().items():
        assert torch.equal(tensor, merged[name]), name


@pytest.mark.parametrize("stabilised", [False, True])
def test_an_adapter_that_peft_trained_on_a_whole_llava_loads_on_it(stabilised, tmp_path):
    save_model(*tiny_llava(), tmp_path / "base")
    base = AutoModelForImageTextToText.from_pretrained(tmp_path / "base")
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=r".*language_model.*v_proj", use_rslora=stabilised, modules_to_save=["multi_modal_projector"]
    )
    wrapped = peft.get_peft_model(base, config)
    randomise_adapters(wrapped)
    wrapped.save_pretrained(tmp_path / "adapter")
    with pytest.raises(UsageError, match="--base FOLDER"):
        load_model(tmp_path / "adapter")
    loaded, _ = load_model(tmp_path / "adapter", base=tmp_path / "base")
    expected = wrapped.merge_and_unload().state_dict()["model.language_model.layers.1.self_attn.v_proj.weight"]
    assert torch.equal(loaded.causal_lm.model.layers[1].self_attn.v_proj.weight, expected)


def small_adapter(folder: Path, tensors: dict[str, torch.Tensor] | None = None, **settings) -> Path:
    folder.mkdir()
    values = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "x", **settings}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    default = {f"{prefix}.lora_A.weight": torch.ones(2, 32), f"{prefix}.lora_B.weight": torch.ones(32, 2)}
    save_file(default if tensors is None else tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize(
    "settings",
    [{"use_dora": True}, {"bias": "all"}, {"peft_type": "IA3"}, {"alpha_pattern": {"^model.*": 3}}, {"lora_alpha": "4"}],
    ids=str,
)
def test_an_adapter_that_is_not_plain_lora_is_refused(settings, tmp_path):
    with pytest.raises(CheckpointError, match=r"adapter_config\.json"):
        read_adapter(small_adapter(tmp_path / "odd", **settings))


def test_half_an_adapter_and_one_for_another_model_are_refused_by_tensor(tmp_path):
    half = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2, 32)}
    with pytest.raises(TensorError, match=r"q_proj\.weight \(only lora_A\)"):
        read_adapter(small_adapter(tmp_path / "half", half))
    adapter = read_adapter(small_adapter(tmp_path / "whole"))
    with pytest.raises(TensorError, match="which the base model does not have"):
        adapter.merged_into({})


def test_the_vision_side_of_a_whole_clip_is_a_tower(tmp_path):
    from transformers import CLIPConfig, CLIPModel

    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
    clip = CLIPModel(CLIPConfig(text_config={**text, "bos_token_id": 0, "eos_token_id": 1}, vision_config=TOWER, projection_dim=8))
    clip.save_pretrained(tmp_path / "clip")
    tower = read_vision_tower(tmp_path / "clip")
    assert (tower.vision_tower, tower.image.size, tower.config["patch_size"]) == ("clip", 28, 7)
    assert all(name.startswith("vision_tower.vision_model.") for name in tower.weights)
    assert len(tower.weights) == len(CLIPVisionModel(CLIPVisionConfig(**TOWER)).state_dict())


def test_the_untuned_model_of_a_folder_is_its_bases_as_they_were(bases, tmp_path):
    save_adapter(*trained(bases), tmp_path / "adapter", language_model=bases[0], vision_tower=bases[1])
    untuned, processor = load_untuned(tmp_path / "adapter")
    inputs = processor(QUESTION)
    expected = AutoModelForCausalLM.from_pretrained(bases[0])(inputs.input_ids[None]).logits[0]
    torch.testing.assert_close(untuned(lay_end_to_end([inputs])), expected.float(), atol=1e-4, rtol=0)
    assert processor.config.template == "qwen_2"


def test_a_whole_model_has_no_bases_to_go_back_to(tmp_path):
    save_model(*tiny_llava(), tmp_path / "whole")
    with pytest.raises(CheckpointError, match="does not name the language model"):
        load_untuned(tmp_path / "whole")
