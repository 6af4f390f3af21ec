"""GGUF text models become ordinary Hugging Face folders with the same weights."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from vistune.checkpoint.gguf import LAYER_NAMES, TOP_LEVEL_NAMES, convert_gguf
from vistune.errors import CheckpointError, TensorError, UnsupportedModel

# All single bytes in GPT-2's alphabet, a merge of letters, one of spaces, and a special token.
BYTES = sorted(
    {*map(chr, range(33, 127)), *map(chr, range(161, 173)), *map(chr, range(174, 256)), *(chr(256 + place) for place in range(68))}
)
TOKENS = ["<|end|>", *BYTES, "ab", "ĠĠ", *(f"<unused{number}>" for number in range(29))]
CONFIG = LlamaConfig(
    vocab_size=len(TOKENS),
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    tie_word_embeddings=True,
    rms_norm_eps=1e-5,
)


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(CONFIG)


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of query and key rows, as its converter from Hugging Face makes it."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(
    path: Path, model: LlamaForCausalLM, *, quantised: bool = False, architecture: str = "llama", pre: str = "smollm", drop: str = ""
):
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] + [1] * (len(TOKENS) - 1))
    writer.add_token_merges(["a b", "Ġ Ġ"])
    writer.add_eos_token_id(0)
    names = {ours: theirs for theirs, ours in TOP_LEVEL_NAMES.items()}
    parts = {ours: theirs for theirs, ours in LAYER_NAMES.items()}
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        if name not in names:
            layer, part = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
            names[name] = f"blk.{layer}.{parts[part]}.weight"
            if part.endswith(("q_proj", "k_proj")):
                values = permuted(values, 4 if part.endswith("q_proj") else 2)
        if name in ("lm_head.weight", drop):
            continue
        if quantised and values.ndim == 2:
            writer.add_tensor(names[name], gguf.quantize(values, gguf.GGMLQuantizationType.Q4_1), raw_dtype=gguf.GGMLQuantizationType.Q4_1)
        else:
            writer.add_tensor(names[name], values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_converted_weights_are_the_originals_in_bfloat16(llama: LlamaForCausalLM, tmp_path: Path):
    write_gguf(tmp_path / "model.gguf", llama)
    convert_gguf(tmp_path / "model.gguf", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    expected = {name: tensor.bfloat16() for name, tensor in llama.state_dict().items() if name != "lm_head.weight"}
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def test_the_folder_loads_in_transformers_to_the_same_model(llama: LlamaForCausalLM, tmp_path: Path):
    write_gguf(tmp_path / "model.gguf", llama)
    convert_gguf(tmp_path / "model.gguf", tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    rounded = LlamaForCausalLM(CONFIG)
    rounded.load_state_dict({name: tensor.bfloat16().float() for name, tensor in llama.state_dict().items()})
    ids = torch.arange(40)[None]
    assert loaded.config.rms_norm_eps == 1e-5
    assert torch.equal(loaded(ids).logits, rounded(ids).logits)


def test_quantised_weights_equal_transformers_own_reading_of_the_file(llama: LlamaForCausalLM, tmp_path: Path):
    write_gguf(tmp_path / "model.gguf", llama, quantised=True)
    convert_gguf(tmp_path / "model.gguf", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32).state_dict()
    assert all(torch.equal(tensor, theirs[name].bfloat16()) for name, tensor in tensors.items())


def test_digits_are_cut_apart_before_words_as_the_model_was_trained(llama: LlamaForCausalLM, tmp_path: Path):
    write_gguf(tmp_path / "model.gguf", llama)
    convert_gguf(tmp_path / "model.gguf", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.tokenize("ab  12<|end|>") == ["ab", "ĠĠ", "1", "2", "<|end|>"]
    assert tokenizer.eos_token == "<|end|>"
    assert tokenizer.model_max_length == 128
    text = "naïve 👩‍🚀 ab"
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_what_is_not_read_is_refused_by_name(llama: LlamaForCausalLM, tmp_path: Path):
    write_gguf(tmp_path / "qwen.gguf", llama, architecture="qwen2")
    with pytest.raises(UnsupportedModel, match="qwen2"):
        convert_gguf(tmp_path / "qwen.gguf", tmp_path)
    write_gguf(tmp_path / "pre.gguf", llama, pre="tekken")
    with pytest.raises(UnsupportedModel, match="tekken"):
        convert_gguf(tmp_path / "pre.gguf", tmp_path)


def test_a_missing_tensor_is_named(llama: LlamaForCausalLM, tmp_path: Path):
    write_gguf(tmp_path / "model.gguf", llama, drop="model.layers.1.mlp.up_proj.weight")
    with pytest.raises(TensorError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        convert_gguf(tmp_path / "model.gguf", tmp_path)


def test_a_truncated_file_is_refused(llama: LlamaForCausalLM, tmp_path: Path):
    write_gguf(tmp_path / "model.gguf", llama)
    data = (tmp_path / "model.gguf").read_bytes()
    for length in (0, 10, 200, len(data) - 1000):
        (tmp_path / "short.gguf").write_bytes(data[:length])
        with pytest.raises(CheckpointError):
            convert_gguf(tmp_path / "short.gguf", tmp_path)
