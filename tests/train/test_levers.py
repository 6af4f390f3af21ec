"""Off = on: every lever that makes a step cheaper leaves its loss and its gradients as they were.

lever                                  the test that switches it off
ragged batches instead of padding      parity/test_transformers_parity: ..._equal_a_padded_reference_in_fp64
a step cut into forwards               train/test_trainer: ..._cut_batch_equals_that_of_a_single_one_in_fp64
chunked head and loss                  model/test_llava: ..._chunked_head_has_the_gradients_of_the_plain_one; below, in whole steps
supervised positions only              model/test_llava: the_loss_is_that_of_all_logits_...
pruned last layer                      parity: ..._last_layer_pruned_to_some_rows_...; below, with gradients
frozen parts without weight gradients  below
cached features                        below, to the bit in batches of one shape
fused AdamW                            below
activation checkpointing               below, to the bit
compiled norms and MLPs                below (nightly)
examples prepared ahead by threads     train/test_loader
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.parity.parity_models import FAMILIES, build, conversation, model_config
from torch import Tensor

from vistune.errors import MissingDependency, UsageError
from vistune.model import llava as llava_module
from vistune.model.config import LoraConfig
from vistune.model.inputs import RaggedBatch, lay_end_to_end
from vistune.model.llava import Llava
from vistune.train import levers
from vistune.train.config import OptimConfig, Part, TrainConfig, override
from vistune.train.optim import make_optimizer
from vistune.train.parts import choose_parts, hold_in_precision

TRAINED: list[tuple[Part, ...]] = [("projector",), ("projector", "language_model"), ("projector", "lora")]
Gradients = dict[str, Tensor]


def model_of(family: str, parts: tuple[Part, ...], dtype: torch.dtype = torch.float64, *, dropout: float = 0.0) -> Llava:
    model = build(model_config(family), dtype=dtype)
    choose_parts(model, parts, LoraConfig(rank=2, alpha=4, dropout=dropout))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.train()


def batch_for(model: Llava) -> RaggedBatch:
    return lay_end_to_end([conversation(model, words=words, images=images, seed=words) for words, images in ((9, [(50, 40)]), (12, []))])


def step(model: Llava, batch: RaggedBatch, *, bf16: bool = False, chunk_size: int = 1024) -> tuple[Tensor, Gradients]:
    """Loss and gradients by name, with the same dropout each time."""
    model.zero_grad()
    torch.manual_seed(7)
    autocast: AbstractContextManager[object] = torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext()
    with autocast:
        loss, _ = model.loss(batch, chunk_size=chunk_size)
    loss.backward()
    return loss.detach(), {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


def assert_same(one: tuple[Tensor, Gradients], other: tuple[Tensor, Gradients], *, rtol: float, atol: float = 0.0) -> None:
    assert one[1].keys() == other[1].keys()
    assert any(gradient.abs().sum() > 0 for gradient in one[1].values())
    torch.testing.assert_close(one[0], other[0], rtol=rtol, atol=atol)
    for name in one[1]:
        torch.testing.assert_close(one[1][name], other[1][name], rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


# --- Checkpointing ---


@pytest.mark.parametrize("parts", TRAINED, ids="+".join)
@pytest.mark.parametrize("family", ["llama", "qwen3", "phi"])
@pytest.mark.parametrize("bf16", [False, True], ids=["fp64", "bf16"])
def test_checkpointed_layers_give_the_same_bits(family: str, parts: tuple[Part, ...], bf16: bool):
    model = model_of(family, parts, torch.float32 if bf16 else torch.float64, dropout=0.1)
    if bf16:
        hold_in_precision(model, "bf16")
    batch = batch_for(model)
    before = step(model, batch, bf16=bf16)
    levers.checkpoint_layers(model)
    assert_same(step(model, batch, bf16=bf16), before, rtol=0)


def test_checkpointed_layers_run_a_second_time_in_the_backward_pass_and_once_where_nothing_learns():
    model = model_of("llama", ("projector",))
    first, runs = model.causal_lm.model.layers[0], []
    plain = first.mlp.forward
    first.mlp.forward = lambda hidden: (runs.append(1), plain(hidden))[1]
    levers.checkpoint_layers(model)
    batch = batch_for(model)
    with torch.no_grad():
        model(batch)
    assert len(runs) == 1
    model.loss(batch)[0].backward()
    assert len(runs) == 3


# --- Adapters ---


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi"])
def test_lean_adapters_give_what_those_of_peft_give(family: str):
    model = model_of(family, ("projector", "lora"))
    batch = batch_for(model)
    before = step(model, batch)
    levers.lean_adapters(model)
    assert_same(step(model, batch), before, rtol=1e-10, atol=1e-12)
    levers.checkpoint_layers(model)
    assert_same(step(model, batch), before, rtol=1e-10, atol=1e-12)


def test_lean_adapters_drop_inputs_and_scale_what_is_left_as_dropout_does():
    model = model_of("llama", ("projector", "lora"), dropout=0.5)
    levers.lean_adapters(model)
    layer = model.causal_lm.model.layers[0].mlp.down_proj
    down, up = (getattr(layer, name)["default"].weight for name in ("lora_A", "lora_B"))
    down.data, up.data = torch.ones_like(down), torch.ones_like(up)
    input = torch.ones(400, layer.in_features, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(0)
    plain, adapted = layer.base_layer(input), layer(input)
    dropped = (adapted - plain)[:, 0] / (len(down) * layer.scaling["default"] * layer.in_features)
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.02)
    assert dropped.std() > 0.05
    assert torch.autograd.gradcheck(lambda each: (torch.manual_seed(0), layer(each))[1], input[:2].detach().requires_grad_())
    layer.eval()
    torch.testing.assert_close(layer(input) - plain, torch.full_like(plain, len(down) * layer.scaling["default"] * layer.in_features))


def test_lean_adapters_on_bf16_weights_are_as_near_to_exact_as_those_of_peft():
    exact = model_of("llama", ("projector", "lora"))
    batch = batch_for(exact)
    _, reference = step(exact, batch)
    model = model_of("llama", ("projector", "lora"), torch.float32)
    hold_in_precision(model, "bf16")

    def error() -> float:
        _, found = step(model, batch, bf16=True)
        return max(((found[name] - reference[name]).norm() / reference[name].norm()).item() for name in reference if ".lora_" in name)

    of_peft = error()
    levers.lean_adapters(model)
    assert error() < 1.2 * of_peft


# --- Compiling ---


@pytest.mark.nightly
@pytest.mark.filterwarnings("default")  # the compiler's own
@pytest.mark.parametrize("parts", TRAINED, ids="+".join)
def test_compiled_parts_give_the_same_losses_and_gradients(parts: tuple[Part, ...]):
    model = model_of("llama", parts, torch.float32)
    batches = [batch_for(model), lay_end_to_end([conversation(model, words=30, images=[(50, 40), (50, 40)], seed=3)])]
    plain = [step(model, batch) for batch in batches]
    levers.compile_parts(model)
    for batch, (loss, gradients) in zip(batches, plain, strict=True):
        compiled_loss, compiled = step(model, batch)
        torch.testing.assert_close(compiled_loss, loss, rtol=1e-5, atol=0)
        assert compiled.keys() == gradients.keys()
        for name, gradient in gradients.items():
            assert (compiled[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def test_compiling_without_a_compiler_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(MissingDependency, match="no-such-compiler is not there"):
        levers.compile_parts(model_of("llama", ("projector",)))


# --- What is always on ---


@pytest.mark.parametrize("parts", TRAINED, ids="+".join)
def test_the_chunked_head_and_the_pruned_last_layer_give_what_all_logits_give(parts: tuple[Part, ...], monkeypatch: pytest.MonkeyPatch):
    model = model_of("llama", parts)
    batch = batch_for(model)
    ours = step(model, batch, chunk_size=2)
    whole = Llava.hidden_states
    monkeypatch.setattr(Llava, "hidden_states", lambda self, batch, *, select: whole(self, batch)[select])

    def all_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, *, chunk_size: int) -> Tensor:
        return torch.nn.functional.cross_entropy(torch.nn.functional.linear(hidden, weight, bias), targets, reduction="sum")

    monkeypatch.setattr(llava_module, "linear_cross_entropy_sum", all_logits)
    assert_same(ours, step(model, batch), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_frozen_language_model_changes_nothing_for_the_projector_and_keeps_no_gradient_of_its_own(family: str):
    model = model_of(family, ("projector", "language_model"))
    batch = batch_for(model)
    loss, everything = step(model, batch)
    choose_parts(model, ("projector",), LoraConfig())
    frozen_loss, alone = step(model, batch)
    assert {name.partition(".")[0] for name in alone} == {"multi_modal_projector"}
    assert_same((frozen_loss, alone), (loss, {name: everything[name] for name in alone}), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("parts", TRAINED, ids="+".join)
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_cached_features_give_the_bits_of_live_ones_in_a_batch_of_one_shape(parts: tuple[Part, ...], bf16: bool):
    model = model_of("llama", parts, torch.float32)
    hold_in_precision(model, "bf16" if bf16 else "fp32")
    batch = batch_for(model)
    autocast: AbstractContextManager[object] = torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext()
    assert batch.pixel_values is not None
    with autocast:
        features = model.encode_images(batch.pixel_values)  # as `train/features.py` does
    stored = features.to(torch.bfloat16 if bf16 else torch.float32)
    assert_same(step(model, replace(batch, pixel_values=None, image_features=stored), bf16=bf16), step(model, batch, bf16=bf16), rtol=0)


def test_fused_adamw_differs_from_the_plain_one_by_at_most_one_unit_in_the_last_place_a_step():
    """Of weights that are large beside the step: one that is as small as the step also shows how the step itself was rounded."""
    torch.manual_seed(0)
    start = {"weight": 0.5 + torch.rand(64, 64), "bias": 0.5 + torch.rand(64)}

    def optimised(fused: bool) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        model = torch.nn.Linear(64, 64)
        model.load_state_dict(start)
        optimizer = make_optimizer(model, OptimConfig(lr=1e-3, weight_decay=0.01))
        for group in optimizer.param_groups:
            group["fused"], group["foreach"] = fused, False
        return model, optimizer

    (fused, fused_optimizer), (plain, plain_optimizer) = optimised(True), optimised(False)
    for _ in range(5):
        plain.load_state_dict(fused.state_dict())  # each step is judged by itself
        gradients = [torch.randn_like(parameter) for parameter in fused.parameters()]
        for model, optimizer in ((fused, fused_optimizer), (plain, plain_optimizer)):
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter.grad = gradient.clone()
            optimizer.step()
        for one, other in zip(fused.parameters(), plain.parameters(), strict=True):
            assert (one.view(torch.int32) - other.view(torch.int32)).abs().max() <= 1
    assert not torch.equal(fused.weight, start["weight"])  # type: ignore[arg-type]


# --- What does not go together ---


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [({"trainable": "projector,language_model"}, "cannot learn"), ({"parallel.shard": "all"}, "parallel.shard=trained")],
)
def test_levers_that_do_not_go_together_are_refused_before_anything_is_loaded(config: TrainConfig, changes: dict[str, Any], complaint: str):
    with pytest.raises(UsageError, match=complaint):
        levers.check_levers(override(config, {"model.quantise": "nf4", **changes}))


def test_levers_are_pulled_as_the_config_says(config: TrainConfig, monkeypatch: pytest.MonkeyPatch):
    pulled: list[str] = []
    names = ("quantise", "compile_parts", "checkpoint_layers", "lean_adapters")
    for name in names:
        monkeypatch.setattr(levers, name, lambda *_, name=name: pulled.append(name))
    model: Any = None
    levers.apply(model, config)
    assert not pulled
    levers.apply(model, override(config, {"model.quantise": "int8", "compile": "true", "activation_checkpointing": "true"}))
    assert pulled == ["quantise", "compile_parts", "checkpoint_layers"]
    pulled.clear()
    levers.apply(model, override(config, {"trainable": "projector,lora"}))
    assert pulled == ["lean_adapters"]
