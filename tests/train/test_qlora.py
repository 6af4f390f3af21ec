"""QLoRA: a base in few bits, adapters beside it, and a result that stands on the base as it was."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.parity.parity_models import build, conversation, model_config
from tests.train.conftest import logits
from torch import Tensor, nn

from vistune.checkpoint.adapters import is_adapter, read_adapter
from vistune.checkpoint.folder import load_model
from vistune.errors import MissingDependency, UsageError
from vistune.model.config import LoraConfig
from vistune.model.inputs import lay_end_to_end
from vistune.model.llava import Llava
from vistune.train.config import Quantisation, TrainConfig
from vistune.train.parts import choose_parts, hold_in_precision
from vistune.train.quantise import QuantisedLinear, put_back, quantise
from vistune.train.trainer import train

KINDS: list[Quantisation] = ["nf4", "int8"]


@pytest.fixture(autouse=True)
def bitsandbytes() -> None:
    pytest.importorskip("bitsandbytes")


def adapted(family: str = "llama") -> Llava:
    model = build(model_config(family))
    choose_parts(model, ["projector", "lora"], LoraConfig(rank=2, alpha=4, dropout=0.0))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def gradients(model: Llava, *, bf16: bool) -> dict[str, Tensor]:
    batch = lay_end_to_end([conversation(model, words=words, images=images, seed=words) for words, images in ((9, [(50, 40)]), (12, []))])
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss, _ = model.loss(batch)
    loss.backward()
    return {"loss": loss.detach(), **{name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}}


def norms_of(model: Llava) -> list[nn.Parameter]:
    """The norms before attention and MLP of each decoder layer."""
    inside = [(name, parameter) for name, parameter in model.named_parameters() if name.startswith("language_model.")]
    return [parameter for name, parameter in inside if name.endswith("layernorm.weight") and ".self_attn." not in name]


def quantised_names(model: Llava) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, QuantisedLinear)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "qwen3", "phi"])
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_a_quantised_layer_is_a_plain_one_with_the_rounded_weight(family: str, kind: Quantisation, bf16: bool):
    ours, plain = adapted(family), adapted(family)
    quantise(ours, kind, torch.bfloat16 if bf16 else torch.float32)
    for name in quantised_names(ours):
        plain.get_submodule(name).weight.data = ours.get_submodule(name).wide_weight().float()
    for model in (ours, plain):
        hold_in_precision(model, "bf16" if bf16 else "fp32")
    for parameter, as_ours in zip(norms_of(plain), norms_of(ours), strict=True):
        parameter.data = parameter.data.to(as_ours.dtype)
    first, expected = gradients(ours, bf16=bf16), gradients(plain, bf16=bf16)
    assert first.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(first[name], expected[name], rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}")
    # bitsandbytes' own layer loses its gradient here, on some CPUs: it repacks its weights for an evaluation.
    with torch.no_grad():
        ours.eval()(lay_end_to_end([conversation(ours, words=9)]))
    again = gradients(ours.train(), bf16=bf16)
    assert all(torch.equal(again[name], first[name]) for name in first)


@pytest.mark.parametrize(("kind", "bits", "error"), [("nf4", 4.5, 0.12), ("int8", 9.1, 0.02)])
def test_a_weight_is_kept_in_few_bits_near_what_it_was(kind: Quantisation, bits: float, error: float):
    torch.manual_seed(0)
    linear = nn.Linear(256, 96, bias=False)
    layer = QuantisedLinear(linear, kind, torch.float32)
    kept = sum(buffer.numel() * buffer.element_size() for buffer in layer.buffers() if buffer.numel() > 256 or buffer.dim() == 1)
    tables = 2 * 16 * 4 + 256 * 4  # nf4's and its scales' code tables: 1 KB a layer, however large
    assert 8 * (kept - tables * (kind == "nf4")) / linear.weight.numel() < bits
    assert (layer.wide_weight() - linear.weight).norm() / linear.weight.norm() < error


@pytest.mark.parametrize("family", ["llama", "phi"])
def test_only_linear_layers_inside_the_decoder_are_quantised_and_their_norms_are_fp32(family: str):
    model = adapted(family)
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    inside = [name for name in linear if ".layers." in name and name.startswith("language_model.") and ".lora_" not in name]
    quantise(model, "nf4", torch.bfloat16)
    hold_in_precision(model, "bf16")
    assert quantised_names(model) == inside != []
    held = {name: parameter.dtype for name, parameter in model.named_parameters()}
    assert {parameter.dtype for parameter in norms_of(model)} == {torch.float32 if family == "llama" else torch.bfloat16}
    assert {held[name] for name in held if "lora_" in name or "multi_modal_projector" in name} == {torch.float32}
    rest = [name for name in held if "embed_tokens" in name or "lm_head.weight" in name or name.startswith("vision_tower.")]
    assert {held[name] for name in rest} == {torch.bfloat16}


def test_weights_put_back_are_those_that_were_taken():
    model = adapted()
    batch = lay_end_to_end([conversation(model, words=9, images=[(50, 40)])])
    with torch.no_grad():
        before = model(batch)
        quantise(model, "nf4", torch.float32)
        assert not torch.allclose(model(batch), before, rtol=1e-2)
        put_back(model, build(model_config()))
        assert torch.equal(model(batch), before)
    assert not quantised_names(model)


def test_layers_that_learn_are_not_quantised():
    model = build(model_config())
    choose_parts(model, ["language_model"], LoraConfig())
    with pytest.raises(UsageError, match="is to be trained"):
        quantise(model, "nf4", torch.float32)


def test_without_bitsandbytes_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    model = adapted()
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    with pytest.raises(MissingDependency, match=r"vistune\[qlora\]"):
        quantise(model, "nf4", torch.float32)


# --- Results ---


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_on_named_backbones_leaves_an_adapter_that_answers_on_the_unquantised_base(
    config: TrainConfig, backbones: tuple[str, str], trained: list[Llava], coloured_squares: Path, kind: Quantisation
):
    choice = replace(config.model, init_from="", language_model=backbones[0], vision_tower=backbones[1], quantise=kind)
    run = replace(config, trainable=("projector", "lora"), model=choice, max_steps=3, save_every=2)
    folder = train(run)
    assert is_adapter(folder)
    assert sum(file.stat().st_size for file in folder.iterdir()) < 200_000
    assert any(b.read().abs().sum() > 0 for _, b in read_adapter(folder).pairs.values())
    model, processor = load_model(folder)
    picture = coloured_squares / "0.png"
    torch.testing.assert_close(logits(model, processor, picture), logits(trained[0], processor, picture), rtol=1e-4, atol=1e-5)


def test_a_run_on_a_whole_folder_merges_its_adapters_into_the_unquantised_weights(
    config: TrainConfig, tiny_folder: Path, trained: list[Llava], coloured_squares: Path
):
    choice = replace(config.model, init_from=str(tiny_folder), quantise="nf4")
    model, processor = load_model(train(replace(config, trainable=("projector", "lora"), model=choice, max_steps=3)))
    base, _ = load_model(tiny_folder)
    name = "model.layers.0.mlp.up_proj"
    lora = trained[0].causal_lm.get_submodule(name)
    expected = base.causal_lm.get_submodule(name).weight + lora.get_delta_weight("default")
    torch.testing.assert_close(model.causal_lm.get_submodule(name).weight, expected)
    picture = coloured_squares / "0.png"
    torch.testing.assert_close(logits(model, processor, picture), logits(trained[0], processor, picture), rtol=1e-4, atol=1e-5)


def test_only_a_projector_may_be_trained_under_a_quantised_language_model(
    config: TrainConfig, tiny_folder: Path, trained: list[Llava], coloured_squares: Path
):
    choice = replace(config.model, init_from=str(tiny_folder), quantise="int8")
    model, _ = load_model(train(replace(config, model=choice, max_steps=2)))
    base, _ = load_model(tiny_folder)
    for name, tensor in base.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor) == (not name.startswith("multi_modal_projector.")), name


# --- LoRA, merged ---


def test_a_merged_adapter_answers_as_beside_its_base(tmp_path: Path):
    model = adapted()
    batch = lay_end_to_end([conversation(model, words=9, images=[(50, 40)]), conversation(model, words=20)])
    with torch.no_grad():
        beside = model(batch)
        model.language_model.merge_and_unload()  # type: ignore[operator]
        torch.testing.assert_close(model(batch), beside, rtol=1e-5, atol=1e-5)
