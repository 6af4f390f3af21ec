"""Engines beside each other on one machine: they compute one at a time, each gets its share of the time and of the memory."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import pytest
from tests.engine.conftest import ask, run

from vistune.engine import neighbours
from vistune.engine.engine import Engine
from vistune.engine.neighbours import Turns, kv_shares
from vistune.engine.scheduler import Scheduler
from vistune.model.llava import Llava
from vistune.model.processor import Processor
from vistune.types import SamplingParams


def test_engines_that_share_turns_never_step_at_once_and_answer_as_they_do_alone(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
):
    stepping, at_once = [], []
    step = Scheduler.step

    def watched(scheduler: Scheduler) -> None:
        stepping.append(scheduler)
        at_once.append(len(set(stepping)))
        step(scheduler)
        stepping.remove(scheduler)

    monkeypatch.setattr(Scheduler, "step", watched)
    params = SamplingParams(max_new_tokens=12)
    questions = [ask(f"Question {number}") for number in range(4)]

    async def all_of(engines: list[Engine]) -> list[str]:
        pairs = zip(engines * 4, questions, strict=False)
        return [reply.text for reply in await asyncio.gather(*(engine.generate(question, params) for engine, question in pairs))]

    with make_engine() as engine:  # closed after it, for its thread may still take a last, empty step
        alone = run(all_of([engine]))
    turns = Turns()
    assert run(all_of([make_engine(turn=turns.new()), make_engine(turn=turns.new())])) == alone
    assert set(at_once) == {1}


def test_a_step_that_fails_gives_its_turn_back(make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch):
    turns = Turns()
    broken, sound = make_engine(turn=turns.new()), make_engine(turn=turns.new())
    with monkeypatch.context() as patched:
        patched.setattr(Scheduler, "step", lambda _: (_ for _ in ()).throw(ZeroDivisionError))
        with pytest.raises(ZeroDivisionError):
            run(broken.generate(ask("Hi")))
    assert run(sound.generate(ask("Hi"), SamplingParams(max_new_tokens=2))).completion_tokens == 2


def test_short_steps_get_as_much_time_as_long_ones(monkeypatch: pytest.MonkeyPatch):
    had = {"long": 0, "short": 0}
    monkeypatch.setattr(neighbours.time, "monotonic", lambda: float(sum(had.values())))
    turns = Turns()
    first = turns.new()
    errors: list[BaseException] = []

    def work(name: str, length: int, turn: Any) -> None:
        try:
            while sum(had.values()) < 2000:
                with turn:
                    had[name] += length
        except BaseException as error:
            errors.append(error)

    with first:
        threads = [threading.Thread(target=work, args=(name, length, turns.new())) for name, length in (("long", 20), ("short", 1))]
        for thread in threads:
            thread.start()
        while len(turns._waiting) < 2:
            pass
    for thread in threads:
        thread.join(30)
    assert not errors
    assert had["short"] > 600  # in strict alternation it would be 95


def test_who_comes_late_gets_no_more_than_its_share_from_then_on():
    turns = Turns()
    early, late = turns.new(), turns.new()
    early.seconds = 100.0
    with early:
        pass
    with late:
        assert late.seconds >= 100.0


def test_the_memory_of_all_engines_adds_up_to_one_budget(model: Llava, processor: Processor):
    config = dataclasses.replace(processor.config, max_length=processor.config.max_length * 3)
    larger = Llava(config)
    shares = kv_shares([model, larger, model], 100 << 20)
    assert (100 << 20) - 3 <= sum(shares) <= 100 << 20
    assert shares[0] == shares[2] < shares[1] < 3 * shares[0]
    one_context = kv_shares([model], 0)[0]
    assert kv_shares([model] * 3, one_context) == [one_context] * 3  # none is left without room for a reply
    assert sum(kv_shares([model] * 5)) <= neighbours.DEFAULT_KV_BYTES
