"""Our ragged forward beside transformers' padded one: the same logits, tokens and gradients, for every family and both LLaVAs."""

from __future__ import annotations

import pytest
import torch
import transformers
from parity_models import FAMILIES, build, conversation, decode, hf_inputs, hf_reference, mixed_conversations, model_config, prefill
from torch import Tensor
from torch.nn import functional as F

from vistune.model.config import LoraConfig
from vistune.model.inputs import IGNORE_INDEX, lay_end_to_end
from vistune.model.llava import Llava
from vistune.model.ragged import fixed_row_tiles
from vistune.train.parts import choose_parts

PAIRS = [("llama", "clip", False), ("qwen2", "siglip", False), ("llama", "clip", True), ("mistral", "clip", True)]
NAMES = ["llava_clip_llama", "llava_siglip_qwen2", "llava_next_clip_llama", "llava_next_clip_mistral"]


def stock_language_model(model: Llava) -> transformers.PreTrainedModel:
    """transformers' language model with stock attention and the same weights."""
    config = type(model.causal_lm.config)(**{k: v for k, v in model.config.text_config.items() if k != "model_type"})
    stock = type(model.causal_lm)._from_config(config, attn_implementation="sdpa", dtype=model.dtype)
    stock.load_state_dict(model.causal_lm.state_dict())
    return stock.eval()


@pytest.mark.parametrize(("family", "tower", "anyres"), PAIRS, ids=NAMES)
def test_logits_of_a_mixed_batch_equal_those_of_transformers(family, tower, anyres):
    model = build(model_config(family, tower, anyres=anyres))
    reference = hf_reference(model)
    conversations = mixed_conversations(model)
    with torch.inference_mode():
        expected = reference(**hf_inputs(model, conversations)).logits
    for logits, padded in zip(prefill(model, conversations), expected, strict=True):
        torch.testing.assert_close(logits, padded[: len(logits)], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("family", "tower", "anyres"), PAIRS, ids=NAMES)
def test_greedy_tokens_of_a_mixed_batch_equal_those_of_transformers(family, tower, anyres):
    model = build(model_config(family, tower, anyres=anyres))
    reference = hf_reference(model)
    conversations = mixed_conversations(model, seed=1)
    tokens, _ = decode(model, conversations, steps=8)
    for one, expected in zip(conversations, tokens, strict=True):
        inputs = hf_inputs(model, [one])
        answer = reference.generate(**inputs, max_new_tokens=8, min_new_tokens=8, do_sample=False)
        assert answer[0, one.num_tokens :].tolist() == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_generates_the_tokens_of_stock_generate(family):
    model = build(model_config(family))
    stock = stock_language_model(model)
    conversations = [conversation(model, words=words, seed=words) for words in (7, 19, 4)]
    tokens, _ = decode(model, conversations, steps=10)
    in_chunks, _ = decode(model, conversations, steps=10, chunk=3)
    for one, ours in zip(conversations, tokens, strict=True):
        answer = stock.generate(one.input_ids[None], max_new_tokens=10, min_new_tokens=10, do_sample=False)
        assert answer[0, one.num_tokens :].tolist() == ours
    assert in_chunks == tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_a_last_layer_pruned_to_some_rows_equals_the_full_one(family):
    model = build(model_config(family))
    batch = lay_end_to_end([conversation(model, words=words, seed=words) for words in (7, 19, 4)])
    select = torch.tensor([0, 6, 9, 10, 25, 29])
    with torch.inference_mode():
        torch.testing.assert_close(model(batch, select=select), model(batch)[select], atol=1e-5, rtol=1e-5)


def stock_loss(stock: transformers.PreTrainedModel, embeddings: list[Tensor], labels: list[Tensor]) -> Tensor:
    """The padded reference: every position's logits, summed cross entropy over the shifted labels."""
    longest = max(len(each) for each in labels)
    padded = torch.stack([F.pad(each, (0, 0, 0, longest - len(each))) for each in embeddings])
    mask = torch.stack([(torch.arange(longest) < len(each)).long() for each in labels])
    targets = torch.stack([F.pad(each, (0, longest - len(each)), value=IGNORE_INDEX) for each in labels])
    logits = stock(inputs_embeds=padded, attention_mask=mask, use_cache=False).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten(), ignore_index=IGNORE_INDEX, reduction="sum")


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_a_ragged_step_equal_a_padded_reference_in_fp64(family):
    model = build(model_config(family), dtype=torch.float64)
    stock = stock_language_model(model)
    conversations = [conversation(model, words=w, images=images, seed=w) for w, images in ((9, [(50, 40)]), (21, []), (6, [(30, 90)]))]
    loss, count = model.loss(lay_end_to_end(conversations), chunk_size=2)
    loss.backward()
    assert count == 9

    # A second graph through the same embeddings and projector, then stock attention over a padded batch.
    ours = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    embeddings = list(model.input_embeddings(lay_end_to_end(conversations)).split([each.num_tokens for each in conversations]))
    expected = stock_loss(stock, embeddings, [each.labels for each in conversations])
    expected.backward()
    torch.testing.assert_close(loss, expected, atol=1e-10, rtol=1e-10)
    theirs = {f"language_model.{name}": parameter.grad for name, parameter in stock.named_parameters() if parameter.grad is not None}
    for name, gradient in ours.items():
        other = model.get_parameter(name).grad  # embeddings, projector: this graph ran through our own modules
        reference = sum(each for each in (theirs.get(name), other) if each is not None)
        torch.testing.assert_close(gradient, reference, atol=1e-10, rtol=1e-10, msg=lambda text, name=name: f"{name}: {text}")
    assert any("multi_modal_projector" in name for name in ours)
    assert any("vision_tower" in name for name in ours)


@pytest.mark.parametrize("family", ["llama", "phi"])
def test_adapters_and_checkpointing_change_no_gradient(family):
    model = build(model_config(family), dtype=torch.float64)
    choose_parts(model, ["projector", "lora"], LoraConfig(rank=2, alpha=4, dropout=0.0))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    conversations = [conversation(model, words=words, images=[(50, 40)], seed=words) for words in (9, 12)]

    def gradients(*batches) -> tuple[Tensor, list[Tensor]]:
        model.zero_grad()
        total = sum(model.loss(batch)[0] for batch in batches)
        total.backward()
        return total.detach(), [parameter.grad.clone() for parameter in model.parameters() if parameter.requires_grad]

    together = gradients(lay_end_to_end(conversations))
    alone = gradients(*(lay_end_to_end([each]) for each in conversations))
    model.train()
    # Renamed in transformers 5.2x, with a warning under the old name.
    enable = getattr(model.causal_lm, "activation_checkpointing_enable", None) or model.causal_lm.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    checkpointed = gradients(lay_end_to_end(conversations))
    torch.testing.assert_close(together, alone, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(together, checkpointed, atol=1e-10, rtol=1e-10)


# --- Bits ---


def company(model: Llava, *, words: int, seed: int) -> list:
    """The conversation that is watched, first of a batch, and a neighbour with an image."""
    return [conversation(model, words=11, images=[(60, 200)], seed=1), conversation(model, words=words, images=[(300, 40)], seed=seed)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_what_a_neighbour_says_changes_no_bit(dtype, threads):
    model = build(model_config("qwen2"), dtype=dtype)
    one, other = company(model, words=13, seed=2), company(model, words=13, seed=3)
    assert torch.equal(prefill(model, one)[0], prefill(model, other)[0])
    (tokens, steps), (other_tokens, other_steps) = decode(model, one, steps=5), decode(model, other, steps=5)
    assert tokens[0] == other_tokens[0]
    assert not torch.equal(steps[:, 1], other_steps[:, 1])
    assert torch.equal(steps[:, 0], other_steps[:, 0])


@pytest.mark.parametrize("family", FAMILIES)
def test_how_long_or_how_many_neighbours_are_changes_no_bit_in_fp32(family, threads):
    model = build(model_config(family))
    watched = company(model, words=5, seed=2)
    alone = prefill(model, watched[:1])[0]
    _, steps_alone = decode(model, watched[:1], steps=4)
    for words in (6, 31):
        batch = [*company(model, words=words, seed=words), conversation(model, words=words, seed=9)]
        assert torch.equal(prefill(model, batch)[0], alone)
        assert torch.equal(decode(model, batch, steps=4)[1][:, 0], steps_alone[:, 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", ["llama", "phi"])
def test_deterministic_mode_gives_the_same_bits_in_any_company(family, dtype, threads):
    model = build(model_config(family), dtype=dtype)
    with fixed_row_tiles():
        alone = prefill(model, company(model, words=5, seed=2)[:1])[0]
        _, steps_alone = decode(model, company(model, words=5, seed=2)[:1], steps=4)
        for words in (6, 31):
            batch = company(model, words=words, seed=words)
            assert torch.equal(prefill(model, batch)[0], alone)
            assert torch.equal(decode(model, batch, steps=4)[1][:, 0], steps_alone[:, 0])
