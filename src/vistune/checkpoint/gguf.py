"""Reads a llama.cpp text model (GGUF) into a Hugging Face folder.

Only what `pull` needs: a Llama with a byte-level BPE tokenizer, any quantisation that the `gguf` package can undo. The folder is an
ordinary one (config, safetensors, tokenizer), so that nothing downstream knows that the weights were ever quantised. Done here and
not by transformers' `gguf_file=` because that takes 12 s and 1.2 GB, refuses to save what it loaded, and splits digits otherwise than
the model was trained with.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vistune.errors import CheckpointError, TensorError, UnsupportedModel

if TYPE_CHECKING:
    import numpy as np
    import torch
    from gguf import GGUFReader

TOP_LEVEL_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
DIGITS_APART = frozenset({"smollm", "starcoder", "refact", "command-r"})
"""llama.cpp's names of the pre-tokenizer that first cuts out every digit and then applies GPT-2's pattern (`llama-vocab.cpp`)."""
GPT2_PATTERN = frozenset({"gpt-2", "gpt2"})
CONTROL_TOKEN = 3  # GGUF's token type of special tokens


def convert_gguf(source: Path, folder: Path) -> None:
    """Writes the model in `source` as config.json, model.safetensors (bfloat16), tokenizer.json and tokenizer_config.json into `folder`.

    bfloat16 is what the models were published in before they were quantised, and half of float32 on disk. Its rounding (at most
    2^-8 of a weight) is a small part of a four-bit block's own step.

    Raises:
        UnsupportedModel: an architecture, RoPE scaling or tokenizer outside the ones read here.
        TensorError: a tensor that is missing, unknown or not finite.
        CheckpointError: a file that is no readable GGUF.
    """
    import gguf
    from safetensors.torch import save_file

    try:
        reader = gguf.GGUFReader(source)
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise CheckpointError(f"{source} is not a readable GGUF file ({error}); fetch it again.") from error
    config = _llama_config(reader, source)
    tensors = dict(_tensors(reader, config, source))
    _check_complete(tensors, config, source)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", config)
    _write_tokenizer(reader, folder, source, max_length=config["max_position_embeddings"])


def _field(reader: GGUFReader, name: str, default: Any = None) -> Any:
    field = reader.get_field(name)
    return default if field is None else field.contents()


def _required(reader: GGUFReader, name: str, source: Path) -> Any:
    value = _field(reader, name)
    if value is None:
        raise CheckpointError(f"{source} has no field {name!r}; it is not a complete llama.cpp text model.")
    return value


def _llama_config(reader: GGUFReader, source: Path) -> dict[str, Any]:
    """The GGUF's hyper-parameters under transformers' names (LlamaConfig)."""
    architecture = _required(reader, "general.architecture", source)
    if architecture != "llama":
        raise UnsupportedModel(
            f"{source} holds a {architecture!r} model; only 'llama' GGUF files are read. Give a Hugging Face folder instead."
        )
    scaling = _field(reader, "llama.rope.scaling.type", "none")
    if scaling != "none" or any(tensor.name == "rope_freqs.weight" for tensor in reader.tensors):
        raise UnsupportedModel(
            f"{source} scales its RoPE frequencies ({scaling!r}), which is not read; give a Hugging Face folder instead."
        )
    hidden_size = int(_required(reader, "llama.embedding_length", source))
    num_heads = int(_required(reader, "llama.attention.head_count", source))
    names = {tensor.name for tensor in reader.tensors}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "bos_token_id": _field(reader, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": _field(reader, "tokenizer.ggml.eos_token_id"),
        "pad_token_id": _field(reader, "tokenizer.ggml.padding_token_id"),
        "dtype": "bfloat16",
        "head_dim": int(_field(reader, "llama.attention.key_length", hidden_size // num_heads)),
        "hidden_act": "silu",
        "hidden_size": hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": int(_required(reader, "llama.feed_forward_length", source)),
        "max_position_embeddings": int(_required(reader, "llama.context_length", source)),
        "mlp_bias": False,
        "num_attention_heads": num_heads,
        "num_hidden_layers": int(_required(reader, "llama.block_count", source)),
        "num_key_value_heads": int(_field(reader, "llama.attention.head_count_kv", num_heads)),
        # The file stores a float32: 1e-5 comes back as 9.99999974e-06, which six digits undo.
        "rms_norm_eps": float(f"{_required(reader, 'llama.attention.layer_norm_rms_epsilon', source):.6g}"),
        "rope_parameters": {"rope_theta": float(_field(reader, "llama.rope.freq_base", 10000.0)), "rope_type": "default"},
        "tie_word_embeddings": "output.weight" not in names,
        "use_cache": True,
        "vocab_size": len(_required(reader, "tokenizer.ggml.tokens", source)),
    }


def _tensors(reader: GGUFReader, config: dict[str, Any], source: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor dequantised, under its Hugging Face name and in its Hugging Face row order."""
    import gguf
    import numpy as np
    import torch

    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for tensor in reader.tensors:
        name = _hugging_face_name(tensor.name, source)
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        values = np.array(values, dtype=np.float32).reshape(tuple(int(side) for side in reversed(tensor.shape)))
        if not np.isfinite(values).all():
            raise TensorError(f"Tensor {tensor.name!r} of {source} holds values that are not finite; fetch the file again.")
        block_name = tensor.name.split(".")[-2]
        if block_name in heads:
            values = _undo_rope_permutation(values, heads[block_name])
        yield name, torch.from_numpy(values).to(torch.bfloat16)


def _hugging_face_name(name: str, source: Path) -> str:
    if name in TOP_LEVEL_NAMES:
        return TOP_LEVEL_NAMES[name]
    match name.split("."):
        case ["blk", layer, part, "weight"] if layer.isdigit() and part in LAYER_NAMES:
            return f"model.layers.{layer}.{LAYER_NAMES[part]}.weight"
    raise TensorError(f"{source} holds a tensor {name!r} that no Llama of ours has a place for.")


def _undo_rope_permutation(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Query and key rows from llama.cpp's order (rotated pairs adjacent) to Hugging Face's (pairs half a head apart).

    [heads * head_dim, in] -> the same shape; the inverse of `permute` in llama.cpp's `convert_hf_to_gguf.py`.
    """
    import numpy as np

    rows, columns = weight.shape
    pairs = weight.reshape(num_heads, rows // num_heads // 2, 2, columns)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows, columns)


def _check_complete(tensors: dict[str, torch.Tensor], config: dict[str, Any], source: Path) -> None:
    expected = {"model.embed_tokens.weight", "model.norm.weight"}
    expected |= {f"model.layers.{layer}.{part}.weight" for layer in range(config["num_hidden_layers"]) for part in LAYER_NAMES.values()}
    if not config["tie_word_embeddings"]:
        expected.add("lm_head.weight")
    if missing := sorted(expected - set(tensors)):
        raise TensorError(f"{source} lacks {len(missing)} tensors, the first of which is {missing[0]!r}; fetch the file again.")
    if extra := sorted(set(tensors) - expected):
        raise TensorError(
            f"{source} holds {len(extra)} tensors more than its {config['num_hidden_layers']} layers need, first {extra[0]!r}."
        )


def _write_tokenizer(reader: GGUFReader, folder: Path, source: Path, *, max_length: int) -> None:
    """tokenizer.json and tokenizer_config.json from the vocabulary and merges in the file."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    kind, pattern = _required(reader, "tokenizer.ggml.model", source), _field(reader, "tokenizer.ggml.pre", "")
    if kind != "gpt2" or pattern not in DIGITS_APART | GPT2_PATTERN:
        known = ", ".join(sorted(DIGITS_APART | GPT2_PATTERN))
        raise UnsupportedModel(f"{source} has a {kind!r} tokenizer that splits text as {pattern!r}; read are 'gpt2' with one of {known}.")
    tokens: list[str] = _required(reader, "tokenizer.ggml.tokens", source)
    merges = [tuple(merge.split(" ", 1)) for merge in _required(reader, "tokenizer.ggml.merges", source)]
    types = _required(reader, "tokenizer.ggml.token_type", source)

    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    digits = [pre_tokenizers.Digits(individual_digits=True)] if pattern in DIGITS_APART else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*digits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, token_type in zip(tokens, types, strict=True) if token_type == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))

    settings: dict[str, Any] = {
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    for setting, field in {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}.items():
        token_id = _field(reader, f"tokenizer.ggml.{field}_token_id")
        if token_id is not None:
            settings[setting] = tokens[token_id]
    if (template := _field(reader, "tokenizer.chat_template")) is not None:
        settings["chat_template"] = template
    _write_json(folder / "tokenizer_config.json", settings)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
