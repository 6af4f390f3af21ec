"""The layers laid out for inference beside transformers' own modules: the same states for every family, in chunks and in company."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from parity_models import FAMILIES, VOCABULARY, build, model_config
from torch import Tensor, nn

from vistune.checkpoint.adapters import AdaptedLinear
from vistune.engine.kv_cache import KVArena, KVShape
from vistune.model import decoder
from vistune.model.config import LoraConfig
from vistune.model.decoder import DecoderLayers, can_pack
from vistune.model.inputs import RaggedBatch
from vistune.model.llava import Llava
from vistune.train.parts import choose_parts

PASSES = ([7, 19, 4], [1, 5, 1], [1, 1, 1])
"""New rows of each of three sequences in three passes: prompts, one token beside a chunk, one token each."""


def read(model: Llava, layers: DecoderLayers | None, passes: Sequence[Sequence[int]] = PASSES, only: int | None = None) -> list[Tensor]:
    """Logits of the last two rows of each sequence (or of the sequence `only`) in each pass."""
    arena = KVArena(KVShape.of(model.config.text_config), dtype=model.dtype)
    indices = range(3) if only is None else [only]
    sequences = {index: arena.allocate() for index in indices}
    results = []
    for number, counts in enumerate(passes):
        ids, positions, select, bounds = [], [], [], [0]
        for index in indices:
            start = sequences[index].length
            random = torch.Generator().manual_seed(10 * number + index)
            ids.append(torch.randint(2, VOCABULARY - 2, (counts[index],), generator=random))
            positions.append(torch.arange(start, start + counts[index]))
            bounds.append(bounds[-1] + counts[index])
            select += [row for row in (bounds[-1] - 2, bounds[-1] - 1) if row >= bounds[-2]]
        batch = RaggedBatch(
            torch.cat(ids), torch.cat(positions), torch.tensor(bounds, dtype=torch.int32), torch.zeros(bounds[-1], dtype=torch.bool)
        )
        with torch.inference_mode():
            view = arena.view([sequences[index] for index in indices])
            hidden = model.hidden_states(batch, select=torch.tensor(select), kv=view, layers=layers)
            results.append(model.logits(hidden) if layers is None else layers.logits(hidden))
    return results


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_layers_give_the_logits_of_the_modules(family: str, deterministic: bool):
    model = build(model_config(family))
    for ours, expected in zip(read(model, model.layers_for_inference(deterministic=deterministic)), read(model, None), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi_qk_norm"])
def test_packed_weights_give_the_logits_of_the_modules_to_the_rounding_of_bf16(family: str):
    model = build(model_config(family), dtype=torch.bfloat16)
    if not can_pack(model.dtype, model.device):
        pytest.skip("this machine has no packed products in bf16")
    exact = read(build(model_config(family)), None)
    for ours, theirs, truth in zip(read(model, model.layers_for_inference()), read(model, None), exact, strict=True):
        assert (ours - truth).abs().mean() < 1.5 * (theirs - truth).abs().mean() + 1e-3


@pytest.mark.parametrize(("dtype", "deterministic"), [(torch.float32, False), (torch.float32, True), (torch.bfloat16, True)])
def test_a_sequence_has_the_same_bits_alone_and_in_company(dtype: torch.dtype, deterministic: bool):
    model = build(model_config("llama"), dtype=dtype)
    layers = model.layers_for_inference(deterministic=deterministic)
    together = read(model, layers)
    for only in range(3):
        rows = [slice(sum(min(count, 2) for count in counts[:only]), None) for counts in PASSES]
        for alone, all_rows, own in zip(read(model, layers, only=only), together, rows, strict=True):
            assert torch.equal(alone, all_rows[own][: len(alone)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_beside_the_weights_keep_working(dtype: torch.dtype):
    model = build(model_config("llama"), dtype=dtype)
    plain = read(model, model.layers_for_inference())[0]
    torch.manual_seed(3)
    for layer in model.causal_lm.model.layers:
        for holder, name in ((layer.self_attn, "k_proj"), (layer.mlp, "up_proj"), (layer.mlp, "down_proj")):
            base: nn.Linear = getattr(holder, name)
            down, up = torch.randn(2, base.in_features, dtype=dtype) * 0.3, torch.randn(base.out_features, 2, dtype=dtype) * 0.3
            setattr(holder, name, AdaptedLinear(base, down, up))
    adapted, expected = read(model, model.layers_for_inference())[0], read(model, None)[0]
    tolerance = 1e-4 if dtype == torch.float32 else 0.1 * float(expected.std())
    assert (adapted - expected).abs().mean() < tolerance
    assert (adapted - plain).abs().mean() > 5 * tolerance


def test_peft_adapters_keep_working():
    model = build(model_config("llama"))
    choose_parts(model, ["projector", "lora"], LoraConfig(rank=2, alpha=4, dropout=0.0))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    torch.testing.assert_close(read(model.eval(), model.layers_for_inference())[0], read(model, None)[0], atol=1e-4, rtol=1e-4)


def test_models_over_the_same_weights_share_their_packed_copies():
    model = build(model_config("llama"), dtype=torch.bfloat16)
    if not can_pack(model.dtype, model.device):
        pytest.skip("this machine has no packed products in bf16")
    before = len(decoder._packed)
    first = model.layers_for_inference()
    packed = len(decoder._packed) - before
    second = model.layers_for_inference()
    assert len(decoder._packed) - before == packed > 0
    del first, second
    assert len(decoder._packed) == before


def test_weights_that_changed_are_packed_anew():
    model = build(model_config("llama"), dtype=torch.bfloat16)
    kept = model.layers_for_inference()
    before = read(model, kept)[0]
    with torch.no_grad():
        model.causal_lm.lm_head.weight.mul_(2)
    torch.testing.assert_close(read(model, model.layers_for_inference())[0], 2 * before)
