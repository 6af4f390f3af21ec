"""Steps that go wrong: numbers that are no numbers, rows that cannot be read, memory that is not there, a run that is another one.

T6 (what differs is refused), T13 (NaN, Inf, spikes), T14 (bad rows are decided on once), T15 (readers that hang or devour memory), T17 (a
forward that does not fit).
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.faults.tiny_training import config_for, digest_of_folder, in_child, outcome_of, state_of, train_on, whole_run
from tests.train.conftest import tiny_config, tiny_model

from vistune.__main__ import main
from vistune.checkpoint.folder import save_model
from vistune.checkpoint.resume import saved_steps
from vistune.errors import DataError, ImageError, NonFiniteError, OutOfMemory, Preempted, ResumeMismatch, UnknownName, WorkerError
from vistune.model.llava import Llava
from vistune.train.config import TrainConfig, flat, override
from vistune.train.keep import Keeper
from vistune.train.metrics import read_metrics
from vistune.train.objectives import NextToken
from vistune.train.step import Stepper
from vistune.train.trainer import _Run


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("steps")


def metrics_of(config: TrainConfig) -> list[dict[str, Any]]:
    return read_metrics(Path(config.output) / "metrics.jsonl")


# --- T13 -------------------------------------------------------------------------------------------------------------------------------


def spoil(step: int, kind: str, times: int) -> None:
    """Makes a step come out badly so many times: `nan` its loss, `inf` its gradients, `spike` a loss a thousand times too high."""
    whole, left = Stepper.compute, [times]

    def spoiled(stepper: Stepper, number: int, *rest: Any) -> Any:
        computed = whole(stepper, number, *rest)
        if number != step or not left[0]:
            return computed
        left[0] -= 1
        if kind == "spike":
            return replace(computed, loss=computed.loss * 1000)
        for parameter in stepper.parameters():
            if parameter.grad is not None:
                parameter.grad.fill_(float(kind))
        return replace(computed, loss=float("nan")) if kind == "nan" else replace(computed, gradient_norm=float("inf"))

    Stepper.compute = spoiled  # type: ignore[method-assign]


@pytest.mark.usefixtures("tiny_start")
@pytest.mark.parametrize("kind", ["nan", "inf", "spike"])
def test_t13_a_passing_fault_leaves_no_trace_but_a_note(shared: Path, kind: str):
    config = config_for(shared, rows=56, output=str(shared / f"passing-{kind}"), guard__spike="20")
    whole = whole_run(override(config, {"output": str(shared / "guarded")}))
    assert in_child(lambda: (spoil(20, kind, 1), train_on(config))) == 0
    assert outcome_of(config) == whole
    assert [row["step"] for row in metrics_of(config) if "recomputed" in row] == [21]


@pytest.mark.usefixtures("tiny_start")
@pytest.mark.parametrize("kind", ["nan", "inf", "spike"])
def test_t13_a_fault_that_comes_back_stops_the_run_or_costs_the_step(shared: Path, kind: str):
    config = config_for(shared, rows=56, output=str(shared / f"lasting-{kind}"), guard__spike="20")
    assert in_child(lambda: (spoil(20, kind, 99), train_on(config))) == NonFiniteError.exit_code
    assert saved_steps(Path(config.output) / "checkpoints")[-1] == 20

    # The run goes on from there and leaves the step out, and is killed and gone on with as if that were nothing.
    config = override(config, {"guard.bad_step": "skip"})
    states: list[str] = []

    def skipped() -> None:
        spoil(20, kind, 99)
        whole, kept = Keeper.save, states

        def save(keeper: Keeper) -> bool:
            kept.append(state_of(keeper))
            return whole(keeper)

        Keeper.save = save  # type: ignore[method-assign]
        update = Stepper.update

        def watched(stepper: Stepper, step: int, total: int) -> float:
            assert step != 20, "the bad step reached the weights"
            if step == 24:
                os.kill(os.getpid(), signal.SIGKILL)
            return update(stepper, step, total)

        Stepper.update = watched  # type: ignore[method-assign]
        train_on(config)

    assert in_child(skipped) == -signal.SIGKILL
    assert in_child(lambda: (spoil(20, kind, 99), train_on(config))) == 0
    once = override(config, {"output": str(shared / f"lasting-{kind}-once")})
    assert in_child(lambda: (spoil(20, kind, 99), train_on(once))) == 0
    assert outcome_of(config) == outcome_of(once)
    assert [row["step"] for row in metrics_of(config) if "skipped" in row] == [21]
    (line,) = (json.loads(line) for line in (Path(config.output) / "quarantine.jsonl").read_text().splitlines())
    assert line["step"] == 21
    assert len(line["rows"]) == 4


@pytest.mark.usefixtures("tiny_start")
def test_t13_more_bad_steps_than_allowed_end_the_run_with_finite_weights(shared: Path):
    config = config_for(shared, output=str(shared / "hopeless"), guard__bad_step="skip", guard__max_skips="2")
    whole = Stepper.compute
    finite: list[bool] = []

    def hopeless() -> None:
        def spoiled(stepper: Stepper, number: int, *rest: Any) -> Any:
            finite.append(all(bool(each.isfinite().all()) for each in stepper.parameters()))
            computed = whole(stepper, number, *rest)
            return replace(computed, loss=float("nan")) if number > 2 else computed

        Stepper.compute = spoiled  # type: ignore[method-assign]
        try:
            train_on(config)
        finally:
            assert all(finite)
            assert len(finite) == 3 + 2 * 3

    assert in_child(hopeless) == NonFiniteError.exit_code


@pytest.mark.usefixtures("tiny_start")
def test_t13_weights_that_are_not_finite_are_never_saved(shared: Path):
    config = config_for(shared, output=str(shared / "broken"))
    whole = Stepper.update

    def broken() -> None:
        def update(stepper: Stepper, step: int, total: int) -> float:
            rate = whole(stepper, step, total)
            if step == 3:
                with torch.no_grad():
                    stepper.parameters()[0].view(-1)[0] = float("nan")
            return rate

        Stepper.update = update  # type: ignore[method-assign]
        train_on(config)

    assert in_child(broken) == NonFiniteError.exit_code
    assert saved_steps(Path(config.output) / "checkpoints") == [2]


# --- T14 -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("tiny_start")
def test_t14_bad_rows_are_decided_on_once_and_no_row_takes_the_place_of_another(tmp_path: Path):
    config = config_for(tmp_path, rows=40, epochs="1", data__bad_rows="skip", data__validation_rows="0")
    data = Path(config.data.root)
    rows = json.loads((data / "rows.json").read_text())
    (data / "3.png").write_bytes((data / "3.png").read_bytes()[:60])
    (data / "8.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 200)
    (data / "9.png").unlink()
    del rows[10]["conversations"]
    rows[11]["conversations"][0]["value"] = "no place for the picture"
    rows[12]["conversations"][1]["value"] = "  "
    rows[14]["conversations"][0]["value"] += " word" * 200_000
    rows[15]["image"] = "../../etc/passwd"
    (data / "rows.json").write_text(json.dumps(rows))
    bad = {3, 8, 9, 10, 11, 12, 14, 15}
    used = {}
    for workers in (0, 1, 3):
        lived = override(config, {"output": str(tmp_path / f"workers-{workers}"), "data.workers": workers})
        assert in_child(lambda lived=lived: train_on(lived)) == 0
        used[workers] = [json.loads(line) for line in Path(lived.output).with_suffix(".rows").read_text().splitlines()]
        page = json.loads((Path(lived.output) / "data.json").read_text())
        assert {each["row"] for each in page["rejected"]} == bad
        assert all(each["reason"] for each in page["rejected"])
    assert used[0] == used[1] == used[3]
    learned = [row for _, ids in used[0] for row in ids]
    assert sorted(learned) == sorted(f"row{number}" for number in range(40) if number not in bad)
    stopping = override(config, {"output": str(tmp_path / "stopping"), "data.bad_rows": "stop"})
    assert in_child(lambda: train_on(stopping)) == DataError.exit_code


# --- T15 -------------------------------------------------------------------------------------------------------------------------------


def read_badly(number: int, act: Callable[[], object]) -> None:
    """Arranges that one row of the data cannot be read as the others are."""
    whole = NextToken.prepare

    def prepare(objective: NextToken, place: int) -> Any:
        if objective.id(place) == f"row{number}":
            act()
        return whole(objective, place)

    NextToken.prepare = prepare  # type: ignore[method-assign]


@pytest.mark.usefixtures("tiny_start")
def test_t15_a_row_that_is_read_for_ever_ends_the_run_in_time_and_by_name(shared: Path, capfd: pytest.CaptureFixture[str]):
    config = config_for(shared, output=str(shared / "hangs"), data__timeout="1", data__validation_rows="0")
    started = time.monotonic()
    assert in_child(lambda: (read_badly(5, lambda: time.sleep(10_000)), train_on(config))) == WorkerError.exit_code
    assert time.monotonic() - started < 30 + 60
    assert "Row row5 is still being read after 1 seconds" in capfd.readouterr().err


@pytest.mark.usefixtures("tiny_start")
def test_t15_a_row_that_devours_the_memory_ends_the_run_by_name(shared: Path, capfd: pytest.CaptureFixture[str]):
    config = config_for(shared, output=str(shared / "devours"), data__validation_rows="0")

    def limited() -> None:
        def devour() -> None:
            limit_memory(more=2**28)
            bytearray(4 * 2**30)

        read_badly(5, devour)
        train_on(config)

    assert in_child(limited) == WorkerError.exit_code
    assert "row row5 took more memory than there is" in capfd.readouterr().err


@pytest.mark.usefixtures("tiny_start")
@pytest.mark.parametrize("workers", [0, 2])
def test_t15_a_picture_that_breaks_after_the_check_ends_the_run_by_its_row(tmp_path: Path, capfd: pytest.CaptureFixture[str], workers: int):
    config = config_for(tmp_path, data__workers=str(workers), data__validation_rows="0")
    picture, whole = Path(config.data.root) / "5.png", _Run.learn

    def learn(run: _Run, sampler: Any) -> None:
        picture.write_bytes(picture.read_bytes()[:-30])
        whole(run, sampler)

    def broken() -> None:
        _Run.learn = learn  # type: ignore[method-assign]
        try:
            train_on(config)
        except ImageError as error:
            print(*error.__notes__, file=sys.stderr)
            raise

    assert in_child(broken) == ImageError.exit_code
    assert "Row row5 was being read." in capfd.readouterr().err


def limit_memory(*, more: int) -> None:
    """Lets this process have so many bytes more than it has now, and no more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, resource.RLIM_INFINITY))


# --- T17 -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("tiny_start")
def test_t17_a_forward_that_does_not_fit_ends_the_run_by_its_shape_and_leaves_the_checkpoint(
    shared: Path, capfd: pytest.CaptureFixture[str]
):
    config = config_for(shared, output=str(shared / "memory"))
    whole_end = whole_run(override(config, {"output": str(shared / "memory-whole")}))
    whole = Llava.loss

    def limited() -> None:
        update, steps = Stepper.update, [0]

        def counted(*arguments: Any) -> float:
            steps[0] += 1
            return update(*arguments)

        def hungry(model: Llava, batch: Any) -> Any:
            if steps[0] == 3:
                limit_memory(more=2**27)
                torch.empty(2**30)  # torch's own refusal, not ours
            return whole(model, batch)

        Stepper.update, Llava.loss = counted, hungry  # type: ignore[method-assign]
        train_on(config)

    assert in_child(limited) == OutOfMemory.exit_code
    assert "conversations with" in capfd.readouterr().err
    assert saved_steps(Path(config.output) / "checkpoints") == [2]
    assert in_child(lambda: train_on(config)) == 0
    assert outcome_of(config) == whole_end


# --- T6, and exit codes at the shell -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def command(shared: Path) -> list[str]:
    """`train RECIPE --set ...` that says all of the tiny config."""
    model = shared / "model"
    save_model(*tiny_model(tiny_config()), model)
    config = config_for(shared, output=str(shared / "shell"), model__init_from=str(model), sample_every="none")
    changes = {name: value for name, value in flat(config).items() if name != "recipe"}
    spelled = {name: ",".join(map(str, value)) if isinstance(value, tuple) else str(value) for name, value in changes.items()}
    return ["train", "smol_pretrain", *(part for name, value in spelled.items() for part in ("--set", f"{name}={value}"))]


def at_the_shell(command: list[str], *more: str) -> int:
    """The exit code of a verb, run in a fork by the door that the shell uses."""
    return in_child(lambda: os._exit(main([*command, *more])))


def test_t6_a_run_that_would_be_another_one_is_refused_with_exit_code_3(
    command: list[str], shared: Path, capfd: pytest.CaptureFixture[str]
):
    assert at_the_shell(command, "--set", "max_steps=3") == 0
    capfd.readouterr()
    for change, name in (("seed=4", "setting seed"), ("batch.conversations=2", "setting batch.conversations"), ("optim.lr=1", "optim.lr")):
        assert at_the_shell(command, "--set", "max_steps=3", "--set", change, "--resume") == ResumeMismatch.exit_code
        assert name in capfd.readouterr().err
    data = shared / "data14" / "rows.json"
    rows = data.read_bytes()
    data.write_text(json.dumps(json.loads(rows)[1:]))
    assert at_the_shell(command, "--set", "max_steps=3", "--resume") == ResumeMismatch.exit_code
    assert "its data differ" in capfd.readouterr().err
    assert at_the_shell(command, "--set", "max_steps=3", "--resume", "--allow-mismatch", "datum") == UnknownName.exit_code
    assert at_the_shell(command, "--set", "max_steps=3", "--resume", "--allow-mismatch", "data") == 0
    assert "WARNING: data differs" in capfd.readouterr().err
    assert [row["step"] for row in read_metrics(shared / "shell" / "metrics.jsonl") if "mismatch of data" in row] == [3]
    data.write_bytes(rows)
    before = digest_of_folder(shared / "shell" / "model")
    assert at_the_shell(command, "--set", "max_steps=3", "--resume") == 0
    assert digest_of_folder(shared / "shell" / "model") == before


def test_a_run_that_fails_before_it_begins_leaves_no_folder(command: list[str], shared: Path):
    nowhere = shared / "nowhere"
    assert at_the_shell(command, "--set", f"output={nowhere}", "--set", "data.dataset=missing.json") != 0
    assert not nowhere.exists()
    nowhere.mkdir()
    assert at_the_shell(command, "--set", f"output={nowhere}", "--set", "data.dataset=missing.json") != 0
    assert list(nowhere.iterdir()) == []


@pytest.mark.nightly
def test_a_process_of_its_own_is_stopped_by_sigterm_and_refused_while_another_one_trains(command: list[str], shared: Path):
    output = shared / "process"
    arguments = [sys.executable, "-m", "vistune", *command, "--set", f"output={output}", "--set", "epochs=1000"]
    first = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 250
    while len(read_metrics(output / "metrics.jsonl")) < 5 and time.monotonic() < until:
        time.sleep(0.05)
    assert subprocess.run([*arguments, "--resume"], capture_output=True).returncode == 23
    first.send_signal(signal.SIGTERM)
    _, said = first.communicate(timeout=60)
    assert first.returncode == Preempted.exit_code
    assert "SIGTERM" in said
    assert "--resume goes on" in said
    assert shutil.rmtree(output) is None
