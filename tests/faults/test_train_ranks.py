"""T16: one of two processes that torchrun started is killed, again and again; its launcher starts both anew and nothing is lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from tests.faults.tiny_training import Outcome, config_for, outcome_of, write_rows
from tests.train.conftest import tiny_config, tiny_model

from vistune.checkpoint.folder import save_model
from vistune.train.config import TrainConfig
from vistune.train.metrics import read_metrics

pytestmark = [pytest.mark.nightly, pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds processes in /proc")]

ROWS, STEPS, KILLS = 200, 100, 5
SECONDS = 60
"""Within these the process that is left must have ended, and both be back."""


def begin(config: TrainConfig, start: Path, log: Path) -> subprocess.Popen[bytes]:
    """`vistune train` in two processes, as a user writes it; started anew as often as it is killed here."""
    sets = {
        "output": config.output,
        "model.init_from": str(start),
        "model.template": config.model.template,
        "model.max_length": "512",
        "trainable": "projector,language_model",
        "data.dataset": "rows.json",
        "data.root": config.data.root,
        "data.validation_rows": "1",
        "batch.conversations": "4",
        "batch.tokens_per_forward": "120",
        "optim.lr": "0.01",
        "max_steps": str(STEPS),
        "save_every": "2",
        "validate_every": "50",
        "precision": "fp32",
        "device": "cpu",
        "sample_every": "0",
        "parallel.timeout": str(SECONDS),
    }
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", str(KILLS), "-m", "vistune"]
    changes = [part for name, value in sets.items() for part in ("--set", f"{name}={value}")]
    with log.open("wb") as told:
        return subprocess.Popen([sys.executable, *launcher, "train", "smol_tune", "--resume", *changes], stdout=told, stderr=told)


def steps_of(config: TrainConfig) -> int:
    with suppress(FileNotFoundError):
        return max((row["step"] for row in read_metrics(Path(config.output) / "metrics.jsonl")), default=0)
    return 0


def wait_for(step: int, config: TrainConfig, run: subprocess.Popen[bytes], log: Path, seconds: float) -> None:
    end = time.monotonic() + seconds
    while steps_of(config) < step:
        assert run.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < end, f"step {step} was not reached within {seconds} s: {log.read_text()[-3000:]}"
        time.sleep(0.02)


def ranks_of(run: subprocess.Popen[bytes]) -> list[int]:
    """The processes that the launcher started for us, by rank."""
    ranks = {}
    for children in Path(f"/proc/{run.pid}/task").glob("*/children"):
        for pid in map(int, children.read_text().split()):
            environment = dict(entry.partition("=")[::2] for entry in Path(f"/proc/{pid}/environ").read_text().split("\0"))
            if "RANK" in environment:
                ranks[int(environment["RANK"])] = pid
    return [ranks[rank] for rank in sorted(ranks)]


def is_alive(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    return False


@pytest.fixture
def start(tmp_path: Path) -> Path:
    save_model(*tiny_model(tiny_config()), tmp_path / "start")
    return tmp_path / "start"


def finished(config: TrainConfig, run: subprocess.Popen[bytes], log: Path) -> Outcome:
    assert run.wait(timeout=300) == 0, log.read_text()[-3000:]
    return outcome_of(config)


@pytest.mark.timeout(1800)
def test_t16_a_process_that_is_killed_ends_the_other_and_the_launcher_goes_on(tmp_path: Path, start: Path):
    draw = random.Random(16)
    write_rows(tmp_path / f"data{ROWS}", ROWS)
    whole, killed = (config_for(tmp_path, rows=ROWS, output=str(tmp_path / name)) for name in ("whole", "killed"))
    expected = finished(whole, begin(whole, start, tmp_path / "whole.log"), tmp_path / "whole.log")

    log, slowest = tmp_path / "killed.log", 0.0
    run = begin(killed, start, log)
    for number in range(KILLS):
        before = (number * STEPS) // (KILLS + 1) + draw.randint(2, 8)
        wait_for(before, killed, run, log, 5 * SECONDS)
        time.sleep(draw.uniform(0, 0.05))
        ranks = ranks_of(run)
        assert len(ranks) == 2
        began = time.monotonic()
        os.kill(ranks[draw.randrange(2)], signal.SIGKILL)
        while any(map(is_alive, ranks)):
            assert time.monotonic() - began < SECONDS
            time.sleep(0.02)
        slowest = max(slowest, time.monotonic() - began)
    assert finished(killed, run, log) == expected
    print(
        f"T16: {KILLS} kills of one of two processes; the other had ended after {slowest:.1f} s at most; every number equal to the last bit"
    )
