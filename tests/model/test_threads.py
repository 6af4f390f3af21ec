"""Who computes on several cores: one thread at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from model_fixtures import MARKERS, dialogue, llama_tokenizer, picture, tiny_config

from vistune.model.processor import Processor
from vistune.model.threads import apart, keep_to_one_core, one_thread


def test_one_thread_is_for_a_while_and_also_over_after_an_error():
    before, inside = torch.get_num_threads(), []

    def fail() -> None:
        inside.append(torch.get_num_threads())
        raise RuntimeError

    torch.set_num_threads(3)
    try:
        with pytest.raises(RuntimeError), one_thread():
            fail()
        assert (inside, torch.get_num_threads()) == ([1], 3)
    finally:
        torch.set_num_threads(before)


def test_apart_gives_back_what_was_made_and_raises_what_was_raised():
    def divide(one: float, *, by: float) -> tuple[float, threading.Thread]:
        return one / by, threading.current_thread()

    made, thread = apart(divide, 3, by=2)
    assert made == 1.5
    assert thread is not threading.current_thread()
    assert not thread.is_alive()
    with pytest.raises(ZeroDivisionError):
        apart(divide, 3, by=0)


def test_apart_sees_what_was_chosen_outside():
    chosen = ContextVar("chosen", default="nothing")
    chosen.set("steady")
    assert apart(chosen.get) == "steady"


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def leaves_threads(work: Callable[[], object]) -> bool:
    """Whether a thread that does nothing else than `work` has started others that stay, as the threads of a team do.

    A thread has the name of the one that started it: whatever other tests left running is not counted. One that has been joined may be in
    the system's list for a moment more.
    """

    def watched() -> bool:
        me = threading.get_native_id()
        name = f"watched-{me}"[:15]
        Path(f"/proc/self/task/{me}/comm").write_text(name)
        work()
        end = time.monotonic() + 3
        while any(int(task.name) != me and name_of(task) == name for task in Path("/proc/self/task").iterdir()):
            if time.monotonic() > end:
                return True
            time.sleep(0.01)
        return False

    return apart(watched)


def name_of(task: Path) -> str:
    try:
        return (task / "comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):  # it ended between the listing and the reading
        return ""


lists_threads = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="this system does not list a process's threads")


@lists_threads
def test_a_thread_kept_to_one_core_starts_no_team_and_the_others_keep_theirs(two_threads: None):
    seen: list[int] = []

    def prepare() -> None:
        keep_to_one_core(2)
        torch.zeros(1_000_000)
        seen.append(torch.get_num_threads())

    assert leaves_threads(lambda: torch.zeros(1_000_000))
    assert not leaves_threads(prepare)
    assert (seen, torch.get_num_threads(), apart(torch.get_num_threads)) == ([1], 2, 2)


@lists_threads
@pytest.mark.parametrize("mode", ["pad", "anyres"])
def test_who_prepares_a_prompt_starts_no_team(mode: str, two_threads: None):
    processor = Processor(llama_tokenizer(markers=MARKERS), replace(tiny_config(size=336, mode=mode), image_token_id=-200))
    pictures = [picture(800, 600, seed) for seed in range(3)]
    processor(dialogue("What is shown?", images=3), images=pictures)  # the tokenizer has threads of its own, started once
    assert not leaves_threads(lambda: processor(dialogue("What is it?", "A cat.", images=3), images=pictures, train=True))
