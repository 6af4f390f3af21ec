"""Runs that are killed anywhere, any number of times, or asked to stop: they end as the run that never was.

T1 (repeated), T2 (killed at random), T3 (killed at each change that a checkpoint makes to the disk), T4 (stopped at every boundary), T5
(with other numbers of threads), T12 (asked to stop), T18 (two trainers, clocks set back, very many checkpoints).
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.faults.tiny_training import (
    Faults,
    at_the_second_save,
    check_rows_were_used_once,
    config_for,
    die,
    ended,
    in_child,
    leftovers,
    outcome_of,
    points,
    spawn,
    state_of,
    state_on_disk,
    train_on,
    whole_run,
)

from vistune.checkpoint.resume import saved_steps
from vistune.errors import Locked, Preempted
from vistune.model.llava import Llava
from vistune.train.config import TrainConfig, override
from vistune.train.keep import Keeper
from vistune.train.metrics import read_metrics
from vistune.train.step import Stepper
from vistune.train.trainer import _Run

pytestmark = pytest.mark.usefixtures("tiny_start")


# --- T1, T2 ----------------------------------------------------------------------------------------------------------------------------


def test_t1_a_run_repeated_is_equal_to_the_last_bit(tmp_path: Path):
    config = config_for(tmp_path)
    whole = whole_run(config)
    assert in_child(lambda: train_on(config)) == 0
    assert outcome_of(config) == whole
    assert len(whole.steps) == 8
    assert [step for step, _ in whole.validations] == [3, 6, 8]


def kill_at_random(folder: Path, kills: int, seed: int, **changes: Any) -> str:
    """Kills runs at random moments and goes on with them until so many are killed; every run is compared with one that never was."""
    draw, killed, runs, started = random.Random(seed), 0, 0, time.monotonic()
    config = config_for(folder, **changes)
    whole = whole_run(config)
    lasted = time.monotonic() - started
    while killed < kills:
        config = override(config, {"output": str(folder / f"run-{runs}")})
        code: int | None = None
        while code != 0:
            pid = spawn(lambda config=config: train_on(config))
            if killed < kills:
                time.sleep(draw.uniform(0, lasted / 3))
                os.kill(pid, signal.SIGKILL)
            code = ended(pid)
            assert code in (0, -signal.SIGKILL)
            killed += code != 0
        assert outcome_of(config) == whole
        check_rows_were_used_once(config)
        assert not leftovers(config)
        runs += 1
    return f"{killed} SIGKILLs in {runs} runs of {len(whole.steps)} steps: every loss, gradient norm, rate and weight equal to the last bit"


def test_t2_a_run_killed_at_random_ends_as_if_nothing_had_happened(tmp_path: Path):
    print("T2:", kill_at_random(tmp_path, kills=10, seed=1))


@pytest.mark.nightly
@pytest.mark.timeout(7200)
def test_t2_two_hundred_kills(tmp_path: Path):
    print("T2:", kill_at_random(tmp_path, kills=200, seed=2, batch__conversations="8", rows=256, save_every="7", validate_every="20"))


# --- T3 --------------------------------------------------------------------------------------------------------------------------------


def test_t3_a_save_killed_at_any_change_to_the_disk_leaves_the_old_state_or_the_new(tmp_path: Path):
    config = config_for(tmp_path)

    def crash_everywhere(keeper: Keeper, old: str, new: str) -> None:
        def killed_at(point: int) -> int | None:
            def save() -> None:
                Faults(point, lambda name: die())
                keeper.save()

            return in_child(save) or None  # 0: it ended before the point was met

        found = []
        for _ in points(killed_at, at_least=12):
            found.append(state_on_disk(keeper))
            # The next save begins from here, as the process that is started after the crash would.
        assert set(found) == {old, new}
        assert found == sorted(found, key=[old, new].index), "once the new state is there it stays"
        assert state_on_disk(keeper) == new
        assert not leftovers(config)
        print(f"T3: killed ahead of each of {len(found)} changes: {found.count(old)} times the old state, {found.count(new)} times the new")

    assert at_the_second_save(config, crash_everywhere) == 130


# --- T4, T5 ----------------------------------------------------------------------------------------------------------------------------


def die_ahead_of(owner: type, name: str, number: int) -> Callable[[], None]:
    """Arranges that a process dies when a method is called for the `number`-th time."""

    def arrange() -> None:
        whole, calls = getattr(owner, name), [0]

        def doomed(*arguments: Any, **keywords: Any) -> Any:
            calls[0] += 1
            if calls[0] == number:
                die()
            return whole(*arguments, **keywords)

        setattr(owner, name, doomed)

    return arrange


def step(number: int) -> Callable[[], None]:
    return die_ahead_of(_Run, "_step", number)


LIVES = {
    "before the first step": [step(1)],
    "after the first step": [step(2)],
    "before the last step of an epoch": [step(4)],
    "after the last step of an epoch": [step(5)],
    "before the last step": [step(8)],
    "after the last step": [die_ahead_of(Keeper, "save", 5)],  # 2, 4, 6, 8: the last one is asked for again at the end
    "before the model is written": [die_ahead_of(Keeper, "write_model", 1)],
    "inside a step": [die_ahead_of(Llava, "loss", 5)],
    "before the weights change": [die_ahead_of(Stepper, "update", 6)],
    "during a validation": [die_ahead_of(Stepper, "evaluate", 2)],
    "before a checkpoint": [die_ahead_of(Keeper, "save", 2)],
    "right after going on": [step(4), step(1), step(1)],
    "in the second step after going on, twice": [step(4), step(2), step(2)],
    "three times": [step(3), step(3), step(3)],
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


def live(config: TrainConfig, deaths: list[Callable[[], None]], workers: tuple[int, ...] = (2,)) -> None:
    """Goes on with a run once for each death, and then to its end; each life reads with another number of threads."""
    for number, arrange in enumerate([*deaths, lambda: None]):
        lived = override(config, {"data.workers": workers[number % len(workers)]})
        code = in_child(lambda arrange=arrange, lived=lived: (arrange(), train_on(lived)))
        assert code == (0 if number == len(deaths) else -signal.SIGKILL)


@pytest.mark.parametrize("name", LIVES)
def test_t4_a_run_that_died_at_a_boundary_goes_on_to_the_same_end(shared: Path, name: str):
    config = config_for(shared, output=str(shared / name.replace(" ", "-")))
    whole = whole_run(override(config, {"output": str(shared / "run")}))
    live(config, LIVES[name])
    assert outcome_of(config) == whole
    check_rows_were_used_once(config)


def test_a_last_line_of_the_metrics_that_was_cut_off_is_no_obstacle(shared: Path):
    config = config_for(shared, output=str(shared / "torn"))
    whole = whole_run(override(config, {"output": str(shared / "run")}))
    assert in_child(lambda: (step(6)(), train_on(config))) == -signal.SIGKILL
    with (Path(config.output) / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    assert in_child(lambda: train_on(config)) == 0
    assert outcome_of(config) == whole


def test_t5_other_numbers_of_threads_change_nothing(shared: Path):
    config = config_for(shared, output=str(shared / "threads"))
    whole = whole_run(override(config, {"output": str(shared / "run")}))
    live(config, [step(3), step(3), step(3)], workers=(0, 2, 1, 8))
    assert outcome_of(config) == whole


# --- T12 -------------------------------------------------------------------------------------------------------------------------------


def inside(owner: type, name: str, number: int, act: Callable[[], None]) -> None:
    """Calls `act` when a method is called for the `number`-th time, and then goes on."""
    whole, calls = getattr(owner, name), [0]

    def watched(*arguments: Any, **keywords: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            act()
        return whole(*arguments, **keywords)

    setattr(owner, name, watched)


def send(*numbers: int) -> Callable[[], None]:
    def act() -> None:
        for number in numbers:
            os.kill(os.getpid(), number)

    return act


def steps_taken(config: TrainConfig) -> int:
    return max(row["step"] for row in read_metrics(Path(config.output) / "metrics.jsonl"))


@pytest.mark.parametrize(
    ("numbers", "where"),
    [
        ((signal.SIGTERM,), (Llava, "loss", 8)),
        ((signal.SIGTERM,), (Stepper, "evaluate", 1)),
        ((signal.SIGUSR1,), (Stepper, "update", 3)),
        ((signal.SIGINT,), (Stepper, "update", 3)),
        ((signal.SIGTERM,) * 3, (Keeper, "save", 1)),
    ],
    ids=["in a forward", "in a validation", "at an update", "Ctrl-C", "three times, in a save"],
)
def test_t12_a_run_asked_to_stop_finishes_its_step_saves_and_goes_on(shared: Path, numbers: tuple[int, ...], where: Any):
    config = config_for(shared, output=str(shared / f"stop-{int(numbers[0])}-{where[1]}"))
    whole = whole_run(override(config, {"output": str(shared / "run")}))
    assert in_child(lambda: (inside(*where, send(*numbers)), train_on(config))) == (
        130 if signal.SIGINT in numbers else Preempted.exit_code
    )
    assert saved_steps(Path(config.output) / "checkpoints")[-1] == steps_taken(config) < 8
    assert not (Path(config.output) / "model").exists()
    assert in_child(lambda: train_on(config)) == 0
    assert outcome_of(config) == whole


def test_t12_the_second_ctrl_c_leaves_at_once_and_the_run_goes_on_from_the_checkpoint_before(shared: Path):
    config = config_for(shared, output=str(shared / "impatient"))
    whole = whole_run(override(config, {"output": str(shared / "run")}))
    assert in_child(lambda: (inside(Stepper, "update", 4, send(signal.SIGINT, signal.SIGINT)), train_on(config))) == 130
    assert saved_steps(Path(config.output) / "checkpoints") == [2]
    assert in_child(lambda: train_on(config)) == 0
    assert outcome_of(config) == whole


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_t12_a_hundred_orders_to_stop_at_random_moments(tmp_path: Path):
    draw, slowest, stops, runs = random.Random(3), 0.0, 0, 0
    started = time.monotonic()
    config = config_for(tmp_path, rows=256, batch__conversations="8", save_every="1000")
    whole = whole_run(config)
    lasted = time.monotonic() - started
    while stops < 100:
        config = override(config, {"output": str(tmp_path / f"run-{runs}")})
        code: int | None = None
        while code != 0:
            pid = spawn(lambda config=config: train_on(config))
            time.sleep(draw.uniform(0.1, 0.4) * lasted)
            asked = time.monotonic()
            for _ in range(draw.choice([1, 1, 3])):
                os.kill(pid, draw.choice([signal.SIGTERM, signal.SIGUSR1]))
            code = ended(pid)
            if code == Preempted.exit_code:
                slowest, stops = max(slowest, time.monotonic() - asked), stops + 1
            else:  # before the first step and after the last one the process simply ends
                assert code in (0, -signal.SIGTERM, -signal.SIGUSR1)
        assert outcome_of(config) == whole
        check_rows_were_used_once(config)
        runs += 1
    assert slowest < 10
    print(f"T12: {stops} of {stops} orders to stop obeyed with a checkpoint in {runs} runs, the slowest in {slowest:.2f} s")


# --- T18 -------------------------------------------------------------------------------------------------------------------------------


def test_t18_a_second_trainer_is_refused_and_the_first_is_not_disturbed(shared: Path):
    config = config_for(shared, output=str(shared / "two"))
    whole = whole_run(override(config, {"output": str(shared / "run")}))
    seen: list[int] = []

    def first() -> None:
        inside(Stepper, "update", 3, lambda: seen.append(in_child(lambda: train_on(config))))
        train_on(config)
        assert seen == [Locked.exit_code]

    assert in_child(first) == 0
    assert outcome_of(config) == whole


def test_t18_steps_are_ordered_by_their_numbers_whatever_the_clock_said(shared: Path):
    config = config_for(shared, output=str(shared / "clock"))
    whole = whole_run(override(config, {"output": str(shared / "run")}))
    assert in_child(lambda: (step(8)(), train_on(config))) == -signal.SIGKILL
    folders = sorted((Path(config.output) / "checkpoints").iterdir())
    assert len(folders) == 2
    for age, folder in enumerate(folders):
        os.utime(folder, (10**9 - age * 10**6,) * 2)
    first: list[int] = []

    def go_on() -> None:
        whole_step = _Run._step
        _Run._step = lambda run, number: (first.append(number), whole_step(run, number))[1]  # type: ignore[method-assign]
        train_on(config)
        assert first[0] == 6

    assert in_child(go_on) == 0
    assert outcome_of(config) == whole


@pytest.mark.nightly
def test_t18_ten_thousand_old_checkpoints_do_not_hold_up_the_start(tmp_path: Path):
    config = config_for(tmp_path, keep_checkpoints="20000")

    def crowded(keeper: Keeper, old: str, new: str) -> None:
        keeper.save()
        for number in range(100, 10_100):
            (keeper.checkpoints / f"step-{number:08d}").mkdir()
        # The newest is good and the last number of all; the ten thousand before it are empty.
        keeper.progress.step = 20_000
        keeper.save()
        started = time.monotonic()
        assert keeper.take_up(True)
        seconds = time.monotonic() - started
        assert seconds < 2
        assert state_of(keeper) != new
        print(f"T18: taken up beside 10,000 old steps in {seconds:.2f} s")

    assert at_the_second_save(config, crowded) == 130
