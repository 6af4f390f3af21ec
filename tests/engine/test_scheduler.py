"""The scheduler step by step, without threads: what one forward pass holds, and that nothing is ever lost or leaked."""

from __future__ import annotations

import random
import string
from typing import Any

import pytest
from tests.engine.conftest import ask, picture

from vistune.engine.scheduler import CHUNK, Event, Request, Scheduler
from vistune.model.llava import Llava
from vistune.model.processor import Processor
from vistune.types import Conversation, SamplingParams


def make_scheduler(model: Llava, processor: Processor, **options: Any) -> Scheduler:
    settings: dict[str, Any] = {"max_sequences": 8, "prefill_tokens": 512, "kv_bytes": None, "deterministic": False}
    return Scheduler(model, processor, **(settings | options))


def submit(scheduler: Scheduler, processor: Processor, conversation: Conversation, **params: Any) -> tuple[Request, list[Event]]:
    events: list[Event] = []
    settings = SamplingParams(**({"max_new_tokens": 8} | params))
    request = Request("request", processor(conversation), settings, events.append)
    scheduler.submit(request)
    return request, events


def run_dry(scheduler: Scheduler) -> None:
    for _ in range(2000):
        if not scheduler.has_work:
            return
        scheduler.step()
    pytest.fail("the scheduler never came to an end")


def test_a_long_prompt_is_read_in_chunks_beside_a_running_reply(model: Llava, processor: Processor, rows_read: list[list[int]]):
    scheduler = make_scheduler(model, processor, prefill_tokens=CHUNK)
    submit(scheduler, processor, ask("Hi."), max_new_tokens=100, temperature=5.0, seed=1)
    scheduler.step()
    submit(scheduler, processor, ask("word " * 120))
    rows_read.clear()
    for _ in range(3):
        scheduler.step()
    prefilled = [rows[1] for rows in rows_read]
    assert [rows[0] for rows in rows_read] == [1, 1, 1]
    start = processor(ask("word " * 120)).num_tokens - sum(prefilled)  # shared with "Hi."
    assert prefilled[0] == CHUNK - start % CHUNK  # chunks end at multiples of CHUNK, wherever they begin
    assert prefilled[1] == CHUNK


def test_prompts_share_a_step_up_to_the_token_budget(model: Llava, processor: Processor, rows_read: list[list[int]]):
    scheduler = make_scheduler(model, processor, prefill_tokens=2 * CHUNK)
    conversations = [Conversation(()).then("system", f"{number} " * 60).then("user", "Go.") for number in range(4)]
    for conversation in conversations:
        submit(scheduler, processor, conversation)
    scheduler.step()
    assert sum(rows_read[0]) <= 2 * CHUNK
    assert len(rows_read[0]) > 1


def test_no_more_run_at_once_than_allowed(model: Llava, processor: Processor, rows_read: list[list[int]]):
    scheduler = make_scheduler(model, processor, max_sequences=3)
    outcomes = [submit(scheduler, processor, ask(f"{number}?"))[1] for number in range(7)]
    run_dry(scheduler)
    assert max(map(len, rows_read)) == 3
    assert all(events[-1].reply is not None for events in outcomes)


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_storm_leaves_no_memory_behind_and_changes_nobodys_words(model: Llava, processor: Processor, deterministic: bool):
    """Many requests, a tight memory limit, cancellations at any moment: same words as alone, and only kept prefixes hold memory."""
    choose = random.Random(4)
    conversations = [ask(f"Question {number % 3}: " + "what? " * (number % 5 * 9), image=picture(number % 2)) for number in range(12)]
    alone = []
    for conversation in conversations:
        scheduler = make_scheduler(model, processor, deterministic=deterministic)
        _, events = submit(scheduler, processor, conversation)
        run_dry(scheduler)
        alone.append(events[-1].reply)
    scheduler = make_scheduler(model, processor, deterministic=deterministic, max_sequences=4, kv_bytes=900 * 256)
    submitted = []
    for index in choose.choices(range(12), k=40):
        submitted.append((index, *submit(scheduler, processor, conversations[index])))
        for _ in range(choose.randrange(3)):
            scheduler.step()
            assert scheduler.arena.bytes_used <= 900 * 256
        if choose.random() < 0.25:
            choose.choice(submitted)[1].cancelled = True
    run_dry(scheduler)
    finished = [(index, request, events[-1].reply) for index, request, events in submitted if events and events[-1].reply is not None]
    told = [(index, reply) for index, request, reply in finished if not request.cancelled]
    assert len(told) > 20
    assert all(reply.text == alone[index].text for index, reply in told)  # type: ignore[union-attr]
    assert len(scheduler.arena) == len(scheduler.cache)
    while scheduler.cache.drop_oldest():
        pass
    assert scheduler.arena.bytes_used == 0


def test_room_reserved_for_a_longer_reply_is_given_back(model: Llava, processor: Processor):
    scheduler = make_scheduler(model, processor)
    _, events = submit(scheduler, processor, ask("Hi."), max_new_tokens=600, stop=tuple(string.printable.strip()))
    run_dry(scheduler)
    assert events[-1].reply is not None
    assert len(scheduler.arena) == len(scheduler.cache) == 1
    assert scheduler.arena.bytes_used // scheduler.arena.bytes_per_token <= 192


def test_after_an_error_of_its_own_every_caller_is_told_and_work_goes_on(model: Llava, processor: Processor):
    scheduler = make_scheduler(model, processor, max_sequences=1)
    outcomes = [submit(scheduler, processor, ask(f"{number}?"))[1] for number in range(2)]
    scheduler.step()
    scheduler.abandon(RuntimeError("a bug"))
    assert [str(events[-1].error) for events in outcomes] == ["a bug", "a bug"]
    assert len(scheduler.arena) == 0
    _, events = submit(scheduler, processor, ask("Still there?"))
    run_dry(scheduler)
    assert events[-1].reply is not None
