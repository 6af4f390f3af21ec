"""Runs of the data engine that are killed, interrupted and starved of disk, against a provider that bills, through the command line.

What `Calls` promises is tested beside this file; here is what a run makes of it: the rows of a run that was stopped any number of times are
those of one that never was, and nothing that was answered is paid for again.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.datagen.runs import config_for, rows_of
from tests.faults.billing_provider import BillingProvider, forked, read_ledger

from vistune.__main__ import main
from vistune.calls import CallLimits
from vistune.chat_model import OpenAIChatModel
from vistune.datagen.config import DatagenConfig
from vistune.datagen.generate import run_datagen
from vistune.journal import Journal

CONCURRENCY = 8


def config_of(folder: Path, count: int) -> DatagenConfig:
    """A run whose every reply is a row: the provider repeats what it is asked, and a description may be anything."""
    limits = CallLimits(concurrency=CONCURRENCY, backoff=0.01, max_backoff=0.05)
    return config_for(folder, count, kinds=("detail",), filters=(), teacher="m", limits=limits)


def run_in_child(config: DatagenConfig, url: str) -> int:
    """Begins or goes on with a run in a forked process, and returns its process number."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            run_datagen(config, OpenAIChatModel("m", base_url=url))
            status = 0
        finally:
            os._exit(status)
    return pid


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
    with forked(ledger, latency=0.02) as url:
        while killed < kills and not config.out.exists():
            enough = bill_of(ledger).total() + draw.randrange(1, max(2, items // kills))
            pid = run_in_child(config, url)
            wait_until(lambda enough=enough: bill_of(ledger).total() >= enough)
            time.sleep(draw.random() / 20)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            killed += 1
            if log.exists():
                billed = bill_of(ledger)
                paid_for_good |= {text: billed[text] for text in answered(log)}
        assert os.waitpid(run_in_child(config, url), 0)[1] == 0
    billed = bill_of(ledger)
    assert killed == kills
    assert len(billed) == items
    assert billed.total() <= items + kills * CONCURRENCY
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


def begin(arguments: list[str], *, file_size: int = resource.RLIM_INFINITY) -> subprocess.Popen[str]:
    """Starts vistune in a process of its own, whose files may grow so far."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write over the limit then fails, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))

    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-m", "vistune", *arguments], stdout=pipe, stderr=pipe, text=True, preexec_fn=limit)


def test_ctrl_c_ends_what_is_under_way_and_the_same_command_goes_on(tmp_path: Path):
    config = config_of(tmp_path, 40)
    with BillingProvider(latency=0.1) as provider:
        process = begin([*arguments_of(config, provider.url), "--concurrency", "4"])
        wait_until(lambda: len(provider.ledger) >= 8, seconds=120)
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


def test_a_full_disk_stops_the_run_before_anything_is_lost(tmp_path: Path):
    config = config_of(tmp_path, 60)
    with BillingProvider() as provider:
        process = begin(arguments_of(config, provider.url), file_size=150_000)
        _, said = process.communicate(timeout=120)
        assert process.returncode == 4, said
        assert "error: " in said
        kept = len(answered(config.unfinished / "calls.log"))
        assert 0 < kept == len(provider.ledger) < 60
        assert main(arguments_of(config, provider.url)) == 0
        assert len(provider.ledger) == 60
    with Journal(config.out / "calls.log") as log:
        assert sum(record["event"] == "answer" for record in log) == 60


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
