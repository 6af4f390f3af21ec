"""A LLaVA of a few thousand weights, its tokenizer, and a dozen coloured squares to learn from."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from vistune.checkpoint.folder import save_model
from vistune.model.config import ImageConfig, LoraConfig, ModelConfig
from vistune.model.inputs import lay_end_to_end
from vistune.model.llava import Llava
from vistune.model.processor import Processor
from vistune.train import keep
from vistune.train.config import BatchConfig, DataConfig, ModelChoice, OptimConfig, TrainConfig
from vistune.train.start import Start
from vistune.types import Conversation, ImagePart

COLOURS = {
    "red": (220, 30, 30),
    "green": (20, 160, 40),
    "blue": (30, 60, 220),
    "yellow": (240, 220, 20),
    "black": (0, 0, 0),
    "white": (255,) * 3,
}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens, and ChatML's markers."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<|im_start|>", "<|im_end|>", "<image>", *alphabet, *(f"Ġ{name}" for name in COLOURS)]
    tokenizer = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>", "<image>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>")


def tiny_config(**changes: Any) -> ModelConfig:
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    config = ModelConfig(
        vision_tower="clip",
        vision_config={"model_type": "clip_vision_model", **vision},
        text_config={"model_type": "llama", "vocab_size": 272, "max_position_embeddings": 512, "tie_word_embeddings": True, **text},
        projector="mlp2x_gelu",
        image=ImageConfig(size=32),
        image_token_id=2,
        template="chatml_direct",
        max_length=512,
    )
    return replace(config, **changes)


def tiny_model(config: ModelConfig, seed: int = 0) -> tuple[Llava, Processor]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Llava(config), Processor(tiny_tokenizer(), config)


@pytest.fixture
def tiny() -> tuple[Llava, Processor]:
    return tiny_model(tiny_config())


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets runs start from the tiny model (with changes to its config) instead of a folder."""

    def use(**changes: Any) -> None:
        monkeypatch.setattr("vistune.train.trainer.start_model", lambda choice: Start(*tiny_model(tiny_config(**changes)), None))

    use()
    return use


@pytest.fixture(scope="session")
def coloured_squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`rows.json` and `annotations.jsonl` about twelve pictures whose left and right halves have a colour each."""
    folder = tmp_path_factory.mktemp("squares")
    rows, annotations = [], []
    for number in range(12):
        left, right = (list(COLOURS)[index] for index in (number % 6, (number * 5 + 1) % 6))
        picture = Image.new("RGB", (32, 32), COLOURS[left])
        picture.paste(COLOURS[right], (16, 0, 32, 32))
        picture.save(folder / f"{number}.png")
        question = {"from": "human", "value": "<image>\nLeft?" if number % 2 else "Which?\n<image>"}
        turns = [
            question,
            {"from": "gpt", "value": f" {left}"},
            {"from": "human", "value": "Right?"},
            {"from": "gpt", "value": f" {right}"},
        ]
        rows.append({"id": f"row{number}", "image": f"{number}.png", "conversations": turns[: 2 + 2 * (number % 3 == 0)]})
        boxes = [{"label": left, "xyxy": [0, 0, 0.5, 1]}, {"label": right, "xyxy": [0.5, 0, 1, 1]}]
        annotations.append({"image": f"{number}.png", "width": 32, "height": 32, "boxes": boxes})
    rows.append({"id": "text", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": " Hello."}]})
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "annotations.jsonl").write_text("".join(json.dumps(each) + "\n" for each in annotations))
    return folder


@pytest.fixture
def config(coloured_squares: Path, tmp_path: Path) -> TrainConfig:
    """Seven steps over two epochs of thirteen rows, in fp32, projector only."""
    return TrainConfig(
        recipe="tiny",
        output=str(tmp_path / "run"),
        model=ModelChoice(init_from="tiny", template="chatml_direct", max_length=512),
        trainable=("projector",),
        data=DataConfig(dataset="rows.json", root=str(coloured_squares)),
        batch=BatchConfig(conversations=4, tokens_per_forward=120),
        optim=OptimConfig(lr=1e-2),
        lora=LoraConfig(rank=4, alpha=8, dropout=0.1),
        epochs=2.0,
        save_every=1000,
        seed=3,
        precision="fp32",
    )


# --- Runs from folder to folder ---


def logits(model: Llava, processor: Processor, picture: Path) -> torch.Tensor:
    conversation = Conversation(()).then("user", ImagePart(picture), "\nLeft?").then("assistant", " red")
    return model(lay_end_to_end([processor(conversation, train=True)]))


@pytest.fixture
def tiny_folder(tiny: tuple[Llava, Processor], tmp_path: Path) -> Path:
    save_model(*tiny, tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def backbones(tiny: tuple[Llava, Processor], tmp_path: Path) -> tuple[str, str]:
    """The tiny model's language model and tower, each a folder as its publisher would save it."""
    model, processor = tiny
    model.causal_lm.save_pretrained(tmp_path / "language")
    processor.tokenizer.save_pretrained(tmp_path / "language")
    model.vision_tower.vision_model.config.save_pretrained(tmp_path / "tower")
    state = {f"vision_model.{name}": each.contiguous() for name, each in model.vision_tower.vision_model.state_dict().items()}
    save_file(state, tmp_path / "tower" / "model.safetensors")
    return str(tmp_path / "language"), str(tmp_path / "tower")


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Llava]:
    """The models that runs wrote, still in memory."""
    whole, models = keep.save_result, []
    monkeypatch.setattr(keep, "save_result", lambda start, *rest: (models.append(start.model), whole(start, *rest))[1])
    return models
