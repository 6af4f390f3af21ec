"""Puts a model together from tensors, wherever they come from, and takes one apart again.

Sources are named as the model names its tensors. All names and shapes are compared before the first tensor is read; then each is read,
cast and moved by itself, so that a model is never in memory twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AddedToken, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from vistune.checkpoint import names
from vistune.checkpoint.files import MAX_TOKENIZER_BYTES, contained_file, has_file, read_json
from vistune.checkpoint.hub import refuse_code
from vistune.checkpoint.tensors import LazyTensor, TensorSource, listed, size_of
from vistune.errors import CheckpointError, TensorError
from vistune.model.config import ModelConfig
from vistune.model.llava import Llava
from vistune.model.projector import build_projector
from vistune.model.threads import one_thread

DType = Literal["auto"] | torch.dtype
_PARTS = (names.TOWER, names.PROJECTOR, names.NEWLINE, names.LANGUAGE_MODEL)


def build(
    config: ModelConfig, sources: Mapping[str, TensorSource], *, where: str, dtype: DType, device: str | torch.device, fresh: bool = False
) -> Llava:
    """A model with exactly these tensors.

    Args:
        where: what the tensors came from, for errors.
        dtype: of all floating point tensors, or `auto`: each part (tower, projector, language model) in the one most of it is stored in.
        fresh: the projector and the newline vector start with random values; sources must then hold neither.

    Raises TensorError for tensors that are missing, left over, wrongly shaped or not finite, and for a head that differs from the
    embeddings it is tied to.
    """
    model = _empty(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if fresh:
        expected = {name: shape for name, shape in expected.items() if not name.startswith((names.PROJECTOR, names.NEWLINE))}
    sources = dict(sources)
    if tied(config):
        expected.pop(names.HEAD, None)
        _drop_tied_head(sources, where)
    compare(sources, expected, where)
    dtypes: dict[str, torch.dtype] = _dtypes_of_parts(sources) if dtype == "auto" else dict.fromkeys(_PARTS, dtype)
    for name in expected:
        tensor = sources.pop(name).read()
        with one_thread():
            _assign(model, name, tensor.to(device, dtypes[_part(name)] if tensor.is_floating_point() else None))
    if fresh:
        _start_projector(model, dtypes[names.LANGUAGE_MODEL], device)
    causal_lm = model.causal_lm
    if tied(config):
        causal_lm.lm_head.weight = causal_lm.get_input_embeddings().weight
    model.to(device)  # the buffers that no checkpoint holds
    return model.eval()


def tied(config: ModelConfig) -> bool:
    """Whether the head and the embeddings are one tensor."""
    return bool(config.text_config.get("tie_word_embeddings"))


def compare(sources: Mapping[str, TensorSource], expected: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Raises TensorError unless the names are the expected ones and each has its shape."""
    missing, left_over = expected.keys() - sources.keys(), sources.keys() - expected.keys()
    problems = []
    if missing:
        problems.append(f"missing: {listed(missing)}")
    if left_over:
        problems.append(f"left over: {listed(left_over)}")
    wrong = [name for name in expected.keys() & sources.keys() if tuple(sources[name].shape) != expected[name]]
    if wrong:
        shapes = {f"{name} is {list(sources[name].shape)}, expected {list(expected[name])}" for name in wrong}
        problems.append(f"wrong shape: {listed(shapes)}")
    if problems:
        raise TensorError(f"{where} does not hold the tensors its configuration describes; {'; '.join(problems)}.")


def tensors_of(model: Llava) -> dict[str, TensorSource]:
    """All tensors of a model by name, LoRA adapters merged as PEFT merges them. A tied head is not among them."""
    from peft.tuners.lora import LoraLayer

    causal_lm = cast(nn.Module, model.causal_lm)
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(names.LANGUAGE_MODEL)}
    result: dict[str, TensorSource] = {name: LazyTensor.of(tensor) for name, tensor in state.items()}
    adapted = {f"{name}.base_layer.weight": layer for name, layer in causal_lm.named_modules() if isinstance(layer, LoraLayer)}
    for name, tensor in causal_lm.state_dict().items():
        if ".lora_" in name:
            continue
        source = LazyTensor.of(tensor)
        if name in adapted:
            layer = adapted[name]
            source = LazyTensor(tensor.dtype, tuple(tensor.shape), lambda layer=layer, base=tensor: _merged(layer, base))
        result[names.LANGUAGE_MODEL + name.replace(".base_layer.", ".")] = source
    if tied(model.config):
        result.pop(names.HEAD, None)
    return result


def _merged(layer: Any, base: Tensor) -> Tensor:
    if layer.merged:
        return base
    merged = base.clone()
    for adapter in layer.active_adapters:
        merged += layer.get_delta_weight(adapter).detach()
    return merged


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The folder's tokenizer. Raises CheckpointError if there is none, it needs code of its own, or is too large to be one."""
    present = [name for name in ("tokenizer.json", "tokenizer.model", "vocab.json") if has_file(folder, name)]
    if not present:
        raise CheckpointError(f"{folder} has no tokenizer (tokenizer.json or tokenizer.model); copy the language model's into it.")
    for name in present:
        if contained_file(folder, name).stat().st_size > MAX_TOKENIZER_BYTES:
            raise CheckpointError(f"{folder / name} is larger than {MAX_TOKENIZER_BYTES} bytes; no tokenizer is.")
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "added_tokens.json", "tokenizer_config.json"):
        if has_file(folder, name):
            settings = read_json(folder, name)
            refuse_code(settings, str(folder / name))
    general = settings.get("tokenizer_class") in ("PreTrainedTokenizerFast", "TokenizersBackend")
    try:
        if general:
            return PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
        config = {} if _model_type(folder) in CONFIG_MAPPING else {"config": PreTrainedConfig()}
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False, **config)
    except Exception as error:
        # Tokenizers fail with exceptions of several libraries, one of them a bare Exception from Rust; none tells us more than its text.
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"The tokenizer in {folder} cannot be read ({reason}); copy the language model's tokenizer.json.") from error


def _model_type(folder: Path) -> Any:
    """The model type of config.json. One that transformers does not know (our native one, the original's) it would read with a warning."""
    return read_json(folder, "config.json").get("model_type") if has_file(folder, "config.json") else None


def add_image_token(tokenizer: PreTrainedTokenizerBase, token: str = "<image>") -> int:
    """Gives the tokenizer an image token, and a padding token if it has none; returns the image token's id."""
    if token not in tokenizer.get_vocab():
        tokenizer.add_tokens([AddedToken(token, special=True, normalized=False)], special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": AddedToken("<pad>", special=True, normalized=False)})
    return cast(int, tokenizer.convert_tokens_to_ids(token))


def _empty(config: ModelConfig) -> Llava:
    """The model's modules without memory for their parameters; buffers that are computed (rotary frequencies) are real."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        return Llava(config)


def _drop_tied_head(sources: dict[str, TensorSource], where: str) -> None:
    """Some writers store a tied head a second time: it must be the embeddings again."""
    head = sources.pop(names.HEAD, None)
    embedding = sources.get(names.EMBEDDING)
    if head is None or embedding is None:
        return
    if head.shape != embedding.shape or not torch.equal(head.read(), embedding.read()):
        raise TensorError(
            f"{where}: its configuration ties {names.HEAD} to {names.EMBEDDING}, but the two differ; set tie_word_embeddings to false."
        )


def _part(name: str) -> str:
    return next(part for part in _PARTS if name.startswith(part))


def _dtypes_of_parts(sources: Mapping[str, TensorSource]) -> dict[str, torch.dtype]:
    stored: dict[str, Counter[torch.dtype]] = {part: Counter() for part in _PARTS}
    for name, source in sources.items():
        if source.dtype.is_floating_point:
            stored[_part(name)][source.dtype] += size_of(source)
    dtypes = {part: counts.most_common(1)[0][0] for part, counts in stored.items() if counts}
    return {part: dtypes.get(part, dtypes[names.LANGUAGE_MODEL]) for part in _PARTS}


def _assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if leaf in module._parameters:
        module._parameters[leaf] = nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
    else:
        module._buffers[leaf] = tensor


def _start_projector(model: Llava, dtype: torch.dtype, device: str | torch.device) -> None:
    model.multi_modal_projector = build_projector(model.config).to(device, dtype)
    if model.image_newline is not None:
        width = int(model.config.text_config["hidden_size"])
        model.image_newline = nn.Parameter((torch.randn(width) / width**0.5).to(device, dtype))
