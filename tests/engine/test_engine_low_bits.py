"""Engines over int8 and int4 weights: they answer, and as before the same in any company."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.checkpoint.test_adapters import bases, trained
from tests.engine.conftest import ask, byte_tokenizer, picture, run, tiny_config

from vistune.checkpoint import shared
from vistune.checkpoint.adapters import AdaptedLinear
from vistune.checkpoint.folder import save_adapter, save_model
from vistune.engine.engine import Engine
from vistune.model.llava import Llava
from vistune.model.low_bits import Bits, quantise_weights
from vistune.model.processor import Processor
from vistune.types import SamplingParams

assert bases  # a fixture


def small(dtype: torch.dtype) -> tuple[Llava, Processor]:
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    text = {**tiny_config(tokenizer).text_config, "intermediate_size": 64}
    config = tiny_config(tokenizer, text_config=text)
    return Llava(config, dtype=dtype).eval(), Processor(tokenizer, config)


@pytest.mark.parametrize("bits", ["int8", "int4"])
@pytest.mark.parametrize(("dtype", "deterministic"), [(torch.float32, False), (torch.bfloat16, True)])
def test_replies_are_the_same_alone_and_in_company(bits: Bits, dtype: torch.dtype, deterministic: bool, make_engine: Callable[..., Engine]):
    model, processor = small(dtype)
    quantise_weights([model], bits)
    questions = [ask("a" * (7 * number + 1), image=picture(number) if number % 2 else None) for number in range(6)]
    params = SamplingParams(max_new_tokens=12)
    alone = [
        run(make_engine(model=model, processor=processor, deterministic=deterministic).generate(each, params)).text for each in questions
    ]
    engine = make_engine(model=model, processor=processor, deterministic=deterministic)

    async def at_once() -> list[str]:
        return [reply.text for reply in await asyncio.gather(*(engine.generate(each, params) for each in questions))]

    assert run(at_once()) == alone
    assert f"{bits} weights, " in engine.arithmetic


def test_a_folder_can_be_opened_with_weights_in_few_bits(tmp_path: Path):
    model, processor = small(torch.float32)
    save_model(model, processor, tmp_path / "model")
    with Engine.from_folder(tmp_path / "model", weights="int8", dtype=torch.float32) as engine:
        assert engine.arithmetic == "int8 weights, float32 on cpu"
        assert run(engine.generate(ask("Hello"), SamplingParams(max_new_tokens=4))).completion_tokens > 0


def test_only_under_int4_an_adapter_stays_beside_its_base(bases: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_adapter(*trained(bases), tmp_path / "tuned", language_model=bases[0], vision_tower=bases[1])
    seen: dict[str, Any] = {}
    monkeypatch.setattr(shared, "quantise_weights", lambda models, bits: seen.update({bits: models[0]}))
    for bits in ("int8", "int4"):
        shared.load_sharing(tmp_path / "tuned", (), weights=bits)
    beside = {bits: any(isinstance(each, AdaptedLinear) for each in model.modules()) for bits, model in seen.items()}
    assert beside == {"int8": False, "int4": True}
