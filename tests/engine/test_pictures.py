"""Pictures of several requests: seen together, once, in portions, and with the bits that each has alone."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from tests.engine.conftest import ask, byte_tokenizer, picture, tiny_config, tiny_model
from tests.engine.test_scheduler import make_scheduler, run_dry, submit
from torch import Tensor

from vistune.engine import pictures
from vistune.engine.pictures import Pictures
from vistune.model.config import ImageConfig
from vistune.model.llava import Llava
from vistune.model.processor import Processor
from vistune.model.ragged import fixed_row_tiles
from vistune.types import Conversation, ImagePart


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Views in each call of the tower."""
    calls: list[int] = []
    original = Llava.encode_images

    def encode_images(self: Llava, pixel_values: Tensor) -> Tensor:
        calls.append(len(pixel_values))
        return original(self, pixel_values)

    monkeypatch.setattr(Llava, "encode_images", encode_images)
    return calls


def told(system: str, image: ImagePart) -> Conversation:
    return Conversation(()).then("system", system).then("user", image, "What?")


def test_pictures_of_requests_that_come_together_are_seen_together(model: Llava, processor: Processor, looked: list[int]):
    scheduler = make_scheduler(model, processor)
    # Different system texts: requests that share one wait for the first to read it.
    outcomes = [submit(scheduler, processor, told(letter * 9, picture(seed)))[1] for seed, letter in enumerate("abc")]
    run_dry(scheduler)
    assert looked == [3]
    assert scheduler.counters().images_encoded == 3
    assert all(events[-1].reply is not None for events in outcomes)


def test_a_picture_that_several_ask_about_is_seen_once(model: Llava, processor: Processor, looked: list[int]):
    scheduler = make_scheduler(model, processor)
    outcomes = [submit(scheduler, processor, told(letter * 9, picture(1)))[1] for letter in "abc"]
    run_dry(scheduler)
    assert looked == [1]
    submit(scheduler, processor, told("Another day, another system text.", picture(1)))
    run_dry(scheduler)
    assert looked == [1]
    for letter, salt in (("d", "mine"), ("e", "yours"), ("f", "mine")):  # nobody can tell from the time what others asked about
        submit(scheduler, processor, told(letter * 9, picture(1)), cache_salt=salt)
        run_dry(scheduler)
    assert looked == [1, 1, 1]
    alone = make_scheduler(model, processor)
    _, events = submit(alone, processor, told("c" * 9, picture(1)))
    run_dry(alone)
    assert outcomes[2][-1].reply.text == events[-1].reply.text  # type: ignore[union-attr]


def test_a_burst_of_pictures_is_seen_in_portions_between_the_tokens_of_others(
    model: Llava, processor: Processor, looked: list[int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pictures, "VIEWS_AT_FIRST", 2)
    monkeypatch.setattr(pictures, "MOST_VIEWS", 2)
    scheduler = make_scheduler(model, processor)
    _, events = submit(scheduler, processor, ask("Hi."), max_new_tokens=40, temperature=5.0, seed=1)
    scheduler.step()
    for seed in range(5):
        submit(scheduler, processor, ask("What?", image=picture(seed)))
    submit(scheduler, processor, ask("No picture."))
    tokens = []
    for _ in range(3):
        scheduler.step()
        tokens.append(scheduler.counters().completion_tokens)
    assert looked == [2, 2, 1]
    assert tokens[0] >= 3  # the running reply's second token, and the first of the prompts that wait for nothing
    run_dry(scheduler)
    assert events[-1].reply is not None


def test_a_tower_slower_than_it_may_be_looks_at_one_view_at_a_time(model: Llava, processor: Processor, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pictures, "SECONDS_AT_ONCE", 0.0)
    seen = Pictures(model, nullcontext)
    wanted = [seen.picture(processor(ask("What?", image=picture(seed))), 0) for seed in range(6)]
    counts = []
    while not all(each.done for each in wanted):
        seen.look(wanted)
        counts.append(seen.encoded)
    assert counts == [4, 5, 6]


def test_a_picture_that_breaks_the_tower_fails_its_own_request_only(model: Llava, processor: Processor, monkeypatch: pytest.MonkeyPatch):
    bad = processor(ask("What?", image=picture(7))).pixel_values
    assert bad is not None
    original = Llava.encode_images

    def encode_images(self: Llava, pixel_values: Tensor) -> Tensor:
        if any(torch.equal(view, bad[0]) for view in pixel_values):
            raise RuntimeError("a picture that no kernel likes")
        return original(self, pixel_values)

    monkeypatch.setattr(Llava, "encode_images", encode_images)
    scheduler = make_scheduler(model, processor)
    outcomes = [submit(scheduler, processor, ask("What?", image=picture(seed)))[1] for seed in (1, 7, 2)]
    run_dry(scheduler)
    assert [events[-1].reply is not None for events in outcomes] == [True, False, True]
    assert "no kernel likes" in str(outcomes[1][-1].error)
    monkeypatch.setattr(Llava, "encode_images", original)
    _, again = submit(scheduler, processor, ask("What?", image=picture(7)))
    run_dry(scheduler)
    assert again[-1].reply is not None


def towers() -> Iterator[tuple[str, ImageConfig]]:
    yield "clip", ImageConfig(size=28, mode="anyres", pinpoints=((28, 56), (56, 28)), several_images="anyres")
    yield "siglip", ImageConfig(size=28)
    yield "efficientnet_lite0", ImageConfig(size=64)


@pytest.mark.parametrize(("tower", "image"), towers(), ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize(("dtype", "deterministic"), [(torch.float32, False), (torch.float32, True), (torch.bfloat16, True)])
def test_in_company_a_picture_has_the_bits_it_has_alone(tower: str, image: ImageConfig, dtype: torch.dtype, deterministic: bool):
    tokenizer = byte_tokenizer()
    base = tiny_config(tokenizer)
    changes = {"vision_tower": tower, "image": image, "image_newline": image.mode == "anyres"}
    if tower == "siglip":
        changes |= {"feature_select": "full", "vision_config": {**base.vision_config, "model_type": "siglip_vision_model"}}
    if tower == "efficientnet_lite0":
        changes |= {"vision_config": {}, "projector": "grid_mlp"}
    processor = Processor(tokenizer, tiny_config(tokenizer, **changes))
    model = copy.deepcopy(tiny_model(processor)).to(dtype)

    def embeddings(seeds: list[int]) -> list[Tensor]:
        seen = Pictures(model, fixed_row_tiles if deterministic else nullcontext)
        wanted = [seen.picture(processor(ask("What?", image=picture(seed))), 0) for seed in seeds]
        for _ in range(20):
            seen.look(wanted)
        assert all(each.error is None for each in wanted)
        return [each.embeddings for each in wanted]  # type: ignore[misc]

    together = embeddings([0, 1, 2, 3, 4])
    assert all(torch.equal(embeddings([seed])[0], together[seed]) for seed in range(5))
    assert dtype == torch.bfloat16 or not torch.equal(together[0], together[1])  # a random tower says little, bf16 rounds it away


def test_what_is_kept_of_pictures_is_bounded_and_the_oldest_goes_first(model: Llava, processor: Processor, looked: list[int]):
    one = pictures.ENTRY_BYTES + 4 * 32 * 4  # tokens, width, bytes
    seen = Pictures(model, nullcontext, max_bytes=2 * one)
    for seed in (1, 2, 1, 3, 1, 2):
        seen.look([seen.picture(processor(ask("What?", image=picture(seed))), 0)])
        assert seen.bytes_used <= 2 * one
    assert (seen.encoded, len(looked)) == (4, 4)
    seen.forget()
    assert seen.bytes_used == 0
