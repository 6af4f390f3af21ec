"""Runs of the data engine that are killed, interrupted and starved of disk, against a provider that bills, through the command line.

What `Calls` promises is tested beside this file; here is what a run makes of it: the rows of a run that was stopped any number of times are
those of one that never was, and nothing that was answered is paid for again.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.datagen.runs import config_for, rows_of
from tests.faults.billing_provider import BillingProvider, forked, read_ledger

from vistune import journal
from vistune.__main__ import main
from vistune.calls import CallLimits
from vistune.chat_model import ChatModel, OpenAIChatModel
from vistune.datagen.config import DatagenConfig
from vistune.datagen.generate import run_datagen
from vistune.errors import SaveError
from vistune.types import Conversation, Delta, Reply, SamplingParams

CONCURRENCY = 8


def config_of(folder: Path, count: int) -> DatagenConfig:
    """A run whose every reply is a row: the provider repeats what it is asked, and a description may be anything."""
    limits = CallLimits(concurrency=CONCURRENCY, backoff=0.01, max_backoff=0.05)
    return config_for(folder, count, kinds=("detail",), filters=(), teacher="m", limits=limits)


class Doomed:
    """A teacher whose process is killed `delay` seconds after its answer number `answers`."""

    def __init__(self, url: str, answers: int, delay: float):
        self._teacher, self._answers, self._delay = OpenAIChatModel("m", base_url=url), answers, delay

    async def generate(self, conversation: Conversation, params: SamplingParams) -> Reply:
        reply = await self._teacher.generate(conversation, params)
        self._answers -= 1
        if self._answers == 0:
            asyncio.get_running_loop().call_later(self._delay, os.kill, os.getpid(), signal.SIGKILL)
        return reply

    async def stream(self, conversation: Conversation, params: SamplingParams) -> AsyncGenerator[Delta, None]:
        reply = await self.generate(conversation, params)
        yield Delta(reply.text, reply)


def run_in_child(config: DatagenConfig, teacher: ChatModel) -> int:
    """Begins or goes on with a run in a forked process, and returns its exit code, or -signal."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            run_datagen(config, teacher)
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def answered(log: Path) -> set[str]:
    """The requests that had an answer on the disk. Read without the lock: the run is dead."""
    found = set()
    for line in log.read_bytes().split(b"\n")[1:-1]:
        record = json.loads(line[9:])
        if record["event"] == "answer":
            found.add(record["reply"]["text"])
    return found


def bill_of(ledger: Path) -> Counter[str]:
    """How often each reply was billed."""
    return Counter(f"About {entry.item}." for entry in read_ledger(ledger))


def wait_until(reached: Callable[[], bool], seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not reached() and time.monotonic() < until:
        time.sleep(0.005)


def kill_and_go_on(folder: Path, *, items: int, kills: int, seed: int) -> None:
    config = config_of(folder, items)
    with BillingProvider() as provider:
        whole = run_datagen(replace(config, out=folder / "whole"), OpenAIChatModel("m", base_url=provider.url)).folder
    draw, ledger, log = random.Random(seed), folder / "ledger", config.unfinished / "calls.log"
    paid_for_good: dict[str, int] = {}
    killed = 0
    with forked(ledger, latency=0.01) as url:
        while killed < kills and not config.out.exists():
            doomed = Doomed(url, draw.randrange(1, max(2, items // (2 * kills))), draw.random() / 50)
            killed += run_in_child(config, doomed) == -signal.SIGKILL
            if log.exists():
                billed = bill_of(ledger)
                paid_for_good |= {text: billed[text] for text in answered(log)}
        if not config.out.exists():
            assert run_in_child(config, OpenAIChatModel("m", base_url=url)) == 0
    billed = bill_of(ledger)
    assert killed > kills // 2  # a slow machine may have finished early
    assert len(billed) == items
    assert billed.total() <= items + killed * CONCURRENCY
    assert {text: billed[text] for text in paid_for_good} == paid_for_good
    assert (config.out / "instruct.json").read_bytes() == (whole / "instruct.json").read_bytes()
    assert len({row["id"] for row in rows_of(config.out)}) == items


def test_d1_a_killed_run_goes_on_and_pays_for_nothing_that_was_answered(tmp_path: Path):
    kill_and_go_on(tmp_path, items=40, kills=4, seed=1)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_d1_a_hundred_kills_leave_the_rows_of_a_run_that_was_never_killed(tmp_path: Path):
    kill_and_go_on(tmp_path, items=1000, kills=100, seed=2)


# --- the command line ---


def arguments_of(config: DatagenConfig, url: str) -> list[str]:
    arguments = [
        "jsonl",
        config.annotations[0],
        "--teacher",
        "m",
        "--server",
        url,
        "--kinds",
        "detail",
        "--filters",
        "none",
        "--out",
        config.out,
    ]
    return ["datagen", *map(str, arguments)]


def test_ctrl_c_ends_what_is_under_way_and_the_same_command_goes_on(tmp_path: Path):
    config = config_of(tmp_path, 40)
    with BillingProvider(latency=0.1) as provider:
        command = [sys.executable, "-m", "vistune", *arguments_of(config, provider.url), "--concurrency", "4"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wait_until(lambda: len(provider.ledger) >= 8, seconds=280)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
        assert process.returncode == 130
        assert "the same command goes on" in said
        assert not config.out.exists()
        sent = len(provider.ledger)
        assert len(answered(config.unfinished / "calls.log")) == sent < 40  # nothing under way was lost
        assert main(arguments_of(config, provider.url)) == 0
        assert len(provider.ledger) == 40
    assert len(rows_of(config.out)) == 40


def test_a_full_disk_stops_the_run_before_anything_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = config_of(tmp_path, 60)
    room = 10
    reserve = journal._reserve

    def filling(*arguments: int) -> None:
        nonlocal room
        room -= 1
        if room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        reserve(*arguments)

    with BillingProvider() as provider:
        with monkeypatch.context() as patch:
            patch.setattr(journal, "_reserve", filling)
            with pytest.raises(SaveError, match="No space left"):
                run_datagen(config, OpenAIChatModel("m", base_url=provider.url))
        kept = len(answered(config.unfinished / "calls.log"))
        assert 0 < kept == len(provider.ledger) < 60
        run_datagen(config, OpenAIChatModel("m", base_url=provider.url))
        assert len(provider.ledger) == 60
    assert len(answered(config.out / "calls.log")) == 60


@pytest.mark.parametrize(("fault", "told"), [("401", "key"), ("quota", "quota"), ("429 forever", "asks to wait")])
def test_what_no_repetition_mends_stops_at_once_with_its_reason_and_without_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fault: str, told: str
):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-0123456789")
    config = config_of(tmp_path, 30)
    with BillingProvider(lambda item, nth: fault) as provider:
        monkeypatch.setenv("OPENAI_BASE_URL", provider.url)
        arguments = ["jsonl", config.annotations[0], "--teacher", "m", "--kinds", "detail", "--out", config.out, "--concurrency", "4"]
        assert main(["datagen", *map(str, arguments)]) == 24
        assert len(provider.ledger) <= 4
        assert provider.authorizations == {"Bearer sk-canary-0123456789"}
    printed, said = capsys.readouterr()
    assert told in said
    everything = printed + said + "".join(path.read_text(errors="replace") for path in config.unfinished.iterdir())
    assert "canary" not in everything
