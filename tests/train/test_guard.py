"""A bad step is computed again, then left out or refused; it never counts as one that was taken."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from vistune.errors import NonFiniteError
from vistune.train.config import GuardConfig
from vistune.train.guard import LOSSES, Checked, Guard
from vistune.train.keep import Progress
from vistune.train.step import Computed

BAD = [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)]


@pytest.fixture
def quarantine(tmp_path: Path) -> Path:
    return tmp_path / "quarantine.jsonl"


def computed(loss: float, gradient_norm: float = 1.0) -> Computed:
    return Computed(loss, gradient_norm, ("a", "b"), 10, 5.0, 0.1)


def check(guard: Guard, step: int, *results: float | tuple[float, float]) -> Checked:
    """Lets a guard look at a step that comes out as `results`, one after the other; each of them has to be asked for."""
    outcomes: Iterator[Computed] = iter([computed(*(each if isinstance(each, tuple) else (each,))) for each in results])
    checked = guard.check(step, lambda asked: next(outcomes) if asked == step else pytest.fail("another step"), go_on_from=lambda: "step 3")
    assert next(outcomes, None) is None, "it was not computed again"
    return checked


def lines_of(quarantine: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in quarantine.read_text().splitlines()]


def test_a_good_step_is_computed_once(quarantine: Path):
    progress = Progress()
    assert check(Guard(GuardConfig(), progress, quarantine), 0, 2.0) == Checked(computed(2.0))
    assert progress.losses == [2.0]
    assert not quarantine.exists()


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("bad_step", ["stop", "skip"])
def test_what_comes_out_well_the_second_time_goes_on(quarantine: Path, bad: tuple[float, float], bad_step: Any):
    progress, said = Progress(), []
    guard = Guard(GuardConfig(bad_step=bad_step), progress, quarantine, say=said.append)
    assert check(guard, 4, bad, 2.0) == Checked(computed(2.0), recomputed=True)
    assert (progress.losses, progress.skipped) == ([2.0], [])
    assert "step 5" in said[0]
    assert not quarantine.exists()


@pytest.mark.parametrize("bad", BAD)
def test_what_is_bad_twice_stops_the_run_with_its_rows_and_the_place_to_go_on_from(quarantine: Path, bad: tuple[float, float]):
    with pytest.raises(NonFiniteError, match=r"Step 5 has loss .*rows are a, b\..*goes on from step 3"):
        check(Guard(GuardConfig(), Progress(), quarantine), 4, bad, bad)


@pytest.mark.parametrize("bad", BAD)
def test_what_is_bad_twice_is_left_out_if_the_run_says_so_and_its_rows_are_written_down(quarantine: Path, bad: tuple[float, float]):
    progress = Progress()
    guard = Guard(GuardConfig(bad_step="skip"), progress, quarantine)
    assert check(guard, 4, bad, bad).skipped
    assert (progress.losses, progress.skipped) == ([], [4])
    (line,) = lines_of(quarantine)
    assert (line["step"], line["rows"]) == (5, ["a", "b"])
    assert "loss" in line["fault"]


def test_more_skips_than_allowed_among_the_last_hundred_steps_end_the_run(quarantine: Path):
    progress = Progress()
    guard = Guard(GuardConfig(bad_step="skip", max_skips=2), progress, quarantine)
    for step in (0, 50, 100):  # step 0 is forgotten when step 100 comes
        assert check(guard, step, math.nan, math.nan).skipped
    with pytest.raises(NonFiniteError, match="3 of the last 100 steps"):
        check(guard, 149, math.nan, math.nan)
    assert [line["step"] for line in lines_of(quarantine)] == [1, 51, 101, 150]


def test_a_loss_far_above_the_median_of_the_last_fifty_is_bad(quarantine: Path):
    progress = Progress()
    guard = Guard(GuardConfig(bad_step="skip", spike=3.0), progress, quarantine)
    for step in range(9):
        check(guard, step, 1.0)
    check(guard, 9, 1000.0)  # nine losses are too few to judge by
    check(guard, 10, 3.0)
    assert check(guard, 11, 3.1, 3.1).skipped
    for step in range(12, 12 + LOSSES):
        check(guard, step, 2.0)
    assert progress.losses == [2.0] * LOSSES
    check(guard, 90, 6.0)
    assert check(guard, 91, 6.1, 2.0).recomputed


def test_without_a_limit_no_loss_is_too_high(quarantine: Path):
    guard = Guard(GuardConfig(), Progress(), quarantine)
    for step in range(20):
        check(guard, step, 1.0)
    check(guard, 20, 1e9)


@pytest.mark.parametrize("cut", [3, 12, 30])
def test_a_run_that_goes_on_decides_as_one_that_never_stopped(tmp_path: Path, cut: int):
    config = GuardConfig(bad_step="skip", spike=1.3, max_skips=100)
    losses = [1.0 + (step * 37 % 11) / 10 for step in range(40)]

    def decide(guard: Guard, steps: range) -> list[bool]:
        return [guard.check(step, lambda step: computed(losses[step]), go_on_from=str).skipped for step in steps]

    whole = decide(Guard(config, Progress(), tmp_path / "whole"), range(40))
    progress = Progress()
    first = decide(Guard(config, progress, tmp_path / "cut"), range(cut))
    progress.step = cut
    progress = Progress(**json.loads(json.dumps(asdict(progress))))
    assert first + decide(Guard(config, progress, tmp_path / "cut"), range(cut, 40)) == whole
    assert any(whole)
    assert lines_of(tmp_path / "cut") == lines_of(tmp_path / "whole")


def test_going_on_from_an_earlier_step_forgets_the_rows_of_later_ones(quarantine: Path):
    config = GuardConfig(bad_step="skip")
    guard = Guard(config, Progress(), quarantine)
    for step in (2, 5, 8):
        check(guard, step, math.nan, math.nan)
    Guard(config, Progress(step=6), quarantine)
    assert [line["step"] for line in lines_of(quarantine)] == [3, 6]


def test_processes_decide_alike(tmp_path: Path):
    """What one of them finds bad, all compute again, and all skip."""
    flags: list[bool] = []

    def anywhere(flag: bool) -> bool:
        flags.append(flag)
        return True

    guard = Guard(GuardConfig(bad_step="skip"), Progress(), tmp_path / "quarantine.jsonl", anywhere=anywhere, main=False)
    assert check(guard, 0, 1.0, 1.0).skipped
    assert flags == [False, False]
    assert not (tmp_path / "quarantine.jsonl").exists()  # the first process writes for all
    with pytest.raises(NonFiniteError, match="another process"):
        check(Guard(GuardConfig(), Progress(), tmp_path / "quarantine.jsonl", anywhere=anywhere, main=False), 0, 1.0, 1.0)


def test_the_warning_says_what_was_seen(quarantine: Path):
    said: list[str] = []
    say: Callable[[str], None] = said.append
    guard = Guard(GuardConfig(spike=2.0), Progress(losses=[1.0] * 20), quarantine, say=say)
    check(guard, 20, 5.0, 1.0)
    assert "loss 5, 5.0 times the median" in said[0]
    assert "a passing fault" in said[1]
