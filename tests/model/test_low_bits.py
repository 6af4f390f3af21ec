"""Weights in int8 and int4: what they multiply by, which layers have them, and what cannot be done with them."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from tests.engine.conftest import byte_tokenizer, tiny_config
from torch import Tensor, nn
from torch.nn import functional as F

from vistune.errors import UsageError
from vistune.model import low_bits
from vistune.model.llava import Llava
from vistune.model.low_bits import GROUP, Bits, Int4Weight, Int8Weight, LowBitWeight, quantise_weights
from vistune.model.ragged import fixed_row_tiles

KINDS: dict[Bits, type[Int8Weight] | type[Int4Weight]] = {"int8": Int8Weight, "int4": Int4Weight}
every_kind = pytest.mark.parametrize("bits", KINDS)


def small_llava(**changes: Any) -> Llava:
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    config = tiny_config(tokenizer)
    text = {**config.text_config, "intermediate_size": 64, **changes}
    return Llava(tiny_config(tokenizer, text_config=text), dtype=torch.bfloat16).eval()


def product(rows: Tensor, weight: LowBitWeight, bias: Tensor | None = None) -> Tensor:
    return F.linear(rows, cast(Tensor, weight), bias)


@every_kind
@pytest.mark.parametrize("count", [1, 3, 16, 130])
def test_a_product_is_that_with_the_weights_made_wide(bits: Bits, count: int):
    torch.manual_seed(0)
    weight = KINDS[bits](torch.randn(192, 96) * 0.1)
    rows, bias = torch.randn(2, count, 96).to(torch.bfloat16), torch.randn(192).to(torch.bfloat16)
    expected = F.linear(rows.float(), weight.wide(), bias.float())
    torch.testing.assert_close(product(rows, weight, bias).float(), expected, rtol=0.02, atol=0.02)


@every_kind
def test_quantising_moves_no_weight_further_than_half_a_step(bits: Bits):
    torch.manual_seed(0)
    original = torch.randn(64, 128) * torch.rand(64, 1)
    groups = original.view(64, -1, 128 if bits == "int8" else GROUP)
    extent = 2 * groups.abs().amax(dim=2, keepdim=True) / 254 if bits == "int8" else (groups.amax(2, True) - groups.amin(2, True)) / 15
    error = (KINDS[bits](original).wide() - original).view(groups.shape).abs()
    # The scale's and the zero's own rounding to bf16 come on top.
    assert bool((error <= extent * 0.55 + groups.abs().amax(2, True) * 2**-8).all())


def test_a_row_of_zeros_stays_zero():
    for kind in KINDS.values():
        assert not kind(torch.zeros(16, 32)).wide().any()


@every_kind
def test_only_linear_layers_inside_the_decoder_layers_change(bits: Bits):
    model = small_llava()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    quantise_weights([model], bits)
    gone = before.keys() - dict(model.named_parameters()).keys()
    assert gone == {name for name in before if ".layers." in name and name.startswith("language_model.") and name.endswith("_proj.weight")}
    assert len(gone) == 2 * 7
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    assert {type(each) for each in model.modules() if isinstance(each, LowBitWeight)} == {KINDS[bits]}


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rows_bits_are_the_same_alone_and_in_company(bits: Bits, dtype: torch.dtype):
    torch.manual_seed(0)
    weight = KINDS[bits](torch.randn(192, 576))
    rows = torch.randn(200, 576).to(dtype)
    with fixed_row_tiles():
        together = product(rows, weight)
        alone = torch.cat([product(rows[at : at + 1], weight) for at in range(200)])
    assert torch.equal(together, alone)
    if dtype == torch.float32:  # without any mode: the engine promises it for fp32
        assert torch.equal(product(rows, weight), product(rows[None, 77], weight).new_tensor(together.tolist()))


def test_models_over_the_same_tensors_share_their_packed_weights():
    one, other = small_llava(), small_llava()
    other.load_state_dict(one.state_dict(), assign=True)
    quantise_weights([one, other], "int8")
    packed = [[each.packed.data_ptr() for each in model.modules() if isinstance(each, Int8Weight)] for model in (one, other)]
    assert packed[0] == packed[1]


@every_kind
def test_it_cannot_be_trained_saved_or_quantised_again(bits: Bits):
    model = small_llava()
    quantise_weights([model], bits)
    with pytest.raises(UsageError, match="cannot be trained"):
        model.train()
    with pytest.raises(UsageError, match="not saved"):
        model.state_dict()
    with pytest.raises(UsageError, match="already"):
        quantise_weights([model], bits)
    layer = next(each for each in model.modules() if isinstance(each, nn.Linear) and isinstance(each.weight, LowBitWeight))
    with pytest.raises(UsageError, match="learned"):
        layer(torch.ones(1, layer.in_features, dtype=torch.bfloat16, requires_grad=True))


def test_widths_that_the_int4_kernel_does_not_take_are_refused_and_left_alone():
    model = small_llava(intermediate_size=48)
    with pytest.raises(UsageError, match=r"0\.mlp\.down_proj is 32 x 48, .* Use --weights int8"):
        quantise_weights([model], "int4")
    assert not any(isinstance(each, LowBitWeight) for each in model.modules())
    quantise_weights([model], "int8")


def test_a_model_with_adapters_in_training_is_refused():
    model = small_llava()
    model.language_model.peft_config = {}  # type: ignore[assignment]
    with pytest.raises(UsageError, match="adapters"):
        quantise_weights([model], "int8")


def test_many_rows_are_multiplied_in_parts_by_what_few_rows_are(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    rows, original = torch.randn(20, 96).to(torch.bfloat16), torch.randn(192, 96)
    monkeypatch.setattr(low_bits, "AT_ONCE", 96 * 80)  # parts of 80, 80 and 32 rows, or of 64
    for kind in KINDS.values():
        weight = kind(original)
        torch.testing.assert_close(weight.times_many(rows), weight.times_few(rows), rtol=0.03, atol=0.05)


def test_an_order_of_int4_weights_that_is_not_known_is_left_to_the_kernel(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(low_bits, "BLOCKS", (96,))
    weight, rows = Int4Weight(torch.randn(192, 96)), torch.randn(200, 96).to(torch.bfloat16)
    assert torch.equal(product(rows, weight), weight.times_few(rows))


@every_kind
def test_weights_on_the_same_input_can_be_one_and_give_the_same_bits(bits: Bits):
    torch.manual_seed(0)
    weights = [KINDS[bits](torch.randn(rows, 96)) for rows in (128, 64, 64)]
    rows = torch.randn(5, 96).to(torch.bfloat16)
    apart = torch.cat([product(rows, each) for each in weights], dim=-1)
    whole = weights[0].joined(weights)
    assert whole is not None
    assert whole is weights[0].joined(weights)
    assert torch.equal(whole(rows), apart)
    assert torch.equal(torch.cat([product(rows, each) for each in weights], dim=-1), apart)
    assert weights[1].packed.untyped_storage().data_ptr() == whole.packed.untyped_storage().data_ptr()  # type: ignore[union-attr]
