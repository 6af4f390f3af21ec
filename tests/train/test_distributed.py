"""Two processes learn what one learns: the same rows, losses and weights, however rows and pictures fall to them.

The processes are forks that meet in a file, so no port is needed and any number of test runs may go on at once.
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.faults.tiny_training import ended, spawn, train_on
from torch.distributed.tensor import DTensor

from vistune.checkpoint.resume import saved_steps
from vistune.checkpoint.tensors import open_weights
from vistune.errors import UnknownName, UsageError, WorkerError
from vistune.model.inputs import lay_end_to_end
from vistune.model.llava import Llava
from vistune.model.processor import Processor
from vistune.train import distributed, trainer
from vistune.train.config import TrainConfig, override
from vistune.train.distributed import World, _raise, start_world
from vistune.train.loader import Forwards
from vistune.train.metrics import read_metrics
from vistune.train.step import Stepper
from vistune.types import Conversation


def together(folder: Path, action: Callable[[], object], size: int = 2, timeout: float = 120.0) -> list[int]:
    """Runs `action` in so many processes that know each other; gives their exit codes."""
    meeting = folder / f"meeting-{len(list(folder.glob('meeting-*')))}"
    pids = [spawn(lambda rank=rank: _joined(meeting, rank, size, timeout, action)) for rank in range(size)]
    return [ended(pid) for pid in pids]


def _joined(meeting: Path, rank: int, size: int, timeout: float, action: Callable[[], object]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size, timeout=timedelta(seconds=timeout))
    action()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory, coloured_squares: Path) -> Path:
    """Of twelve rows the first eight have a picture, so that pictures run out before the rows do."""
    folder = tmp_path_factory.mktemp("rows")
    found = json.loads((coloured_squares / "rows.json").read_text())[:12]
    for number, row in enumerate(found):
        if number >= 8:
            del row["image"]
            row["conversations"][0]["value"] = "Which colour does the sky have, and which the grass?"
    (folder / "rows.json").write_text(json.dumps(found))
    (folder / "annotations.jsonl").write_text((coloured_squares / "annotations.jsonl").read_text())
    for picture in coloured_squares.glob("*.png"):
        (folder / picture.name).write_bytes(picture.read_bytes())
    return folder


@pytest.fixture
def shared(config: TrainConfig, rows: Path, start: Callable[..., None]) -> TrainConfig:
    """Five rows a step, each in a forward of its own or nearly: of two processes one has less to do."""
    changes = {"data.root": str(rows), "batch.conversations": 5, "batch.tokens_per_forward": 60, "lora.dropout": 0.0, "optim.lr": 1e-3}
    return override(config, {**changes, "max_steps": 4, "device": "cpu", "data.workers": 0})


def numbers(config: TrainConfig) -> list[float]:
    """Each step's loss and gradient norm, and the validation losses."""
    rows = read_metrics(Path(config.output) / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, sum("loss" in row for row in rows) + 1))
    return [row[name] for name in ("loss", "gradient_norm", "validation_loss") for row in rows if name in row]


def ids(config: TrainConfig) -> list[Any]:
    lines = Path(config.output).with_suffix(".rows").read_text().splitlines()
    return [json.loads(line) for line in lines]


@contextmanager
def note_forwards(path: Path) -> Iterator[None]:
    """Lets steps write down, for each of this process's forwards, how many rows and pictures it has."""
    whole = Stepper.compute

    def compute(stepper: Stepper, step: int, forwards: Forwards) -> Any:
        counts = [[len(group), sum(len(each.inputs.views) for each in group)] for group in forwards]
        with path.with_suffix(f".forwards{stepper.world.rank}").open("a") as file:
            file.write(json.dumps(counts) + "\n")
        return whole(stepper, step, forwards)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stepper, "compute", compute)
        yield


VARIANTS: dict[str, dict[str, Any]] = {
    "projector": {"trainable": "projector"},
    "lora": {"trainable": "projector,lora"},
    "full": {"trainable": "projector,language_model,vision_tower", "data.validation_rows": 2, "validate_every": 2},
    "lora, all divided": {"trainable": "lora", "parallel.shard": "all", "activation_checkpointing": True},
    "replicas": {"trainable": "projector,language_model", "parallel.replicas": 2},
    "align": {"trainable": "projector", "objective": "align", "data.dataset": "annotations.jsonl"},
}


def test_two_processes_learn_what_one_learns(shared: TrainConfig, tmp_path: Path):
    configs = {name: override(shared, {**changes, "output": str(tmp_path / name)}) for name, changes in VARIANTS.items()}
    alone = {name: override(each, {"output": f"{each.output}-alone", "parallel.replicas": 1}) for name, each in configs.items()}

    def train_all() -> None:
        for each in configs.values():
            with note_forwards(Path(each.output)):
                train_on(each, resume=False)

    def train_alone() -> None:
        for each in alone.values():
            train_on(each, resume=False)

    child = spawn(train_alone)
    assert together(tmp_path, train_all) == [0, 0]
    assert ended(child) == 0
    for name, each in configs.items():
        assert sorted(ids(each)) == sorted(2 * ids(alone[name])), name
        assert numbers(each) == pytest.approx(numbers(alone[name]), rel=1e-6), name
        found, expected = (open_weights(Path(one.output) / "model") for one in (each, alone[name]))
        assert found.keys() == expected.keys()
        for tensor in found:
            torch.testing.assert_close(found[tensor].read(), expected[tensor].read(), rtol=1e-4, atol=1e-5, msg=f"{name}: {tensor}")
    _check_that_work_was_uneven(Path(configs["projector"].output))


def _check_that_work_was_uneven(output: Path) -> None:
    both = [[json.loads(line) for line in output.with_suffix(f".forwards{rank}").read_text().splitlines()] for rank in range(2)]
    forwards = [pair for steps in zip(*both, strict=True) for pair in zip(*steps, strict=True)]
    assert any(first[0] and second[0] and bool(first[1]) != bool(second[1]) for first, second in forwards)
    assert any(not first[0] or not second[0] for first, second in forwards)


def test_masters_are_made_layer_by_layer_and_never_stand_whole_beside_each_other(shared: TrainConfig, tmp_path: Path):
    """Of a model in bf16 whose language model learns: elements in fp32 and in one piece, whenever a layer or the rest is divided."""
    changes = {"trainable": "projector,language_model", "precision": "bf16", "max_steps": 1, "output": str(tmp_path / "run")}
    config = override(shared, changes)

    def noted(path: Path) -> None:
        begun: list[Llava] = []
        start, divide = trainer.start_model, distributed.fully_shard

        def in_bf16(choice: Any) -> Any:
            found = start(choice)
            found.model.causal_lm.bfloat16()
            begun.append(found.model)
            return found

        def fully_shard(module: torch.nn.Module, **rest: Any) -> Any:
            whole = [each for each in begun[0].causal_lm.parameters() if each.dtype == torch.float32 and not isinstance(each, DTensor)]
            own = sum(each.numel() for each in module.parameters() if not isinstance(each, DTensor))
            with path.open("a") as file:
                file.write(json.dumps([sum(each.numel() for each in whole), own]) + "\n")
            return divide(module, **rest)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trainer, "start_model", in_bf16)
            patch.setattr(distributed, "fully_shard", fully_shard)
            trainer.train(config)

    assert together(tmp_path, lambda: noted(tmp_path / f"masters{dist.get_rank()}")) == [0, 0]
    for rank in range(2):
        counts = [json.loads(line) for line in (tmp_path / f"masters{rank}").read_text().splitlines()]
        assert len(counts) > 1
        assert all(0 < whole <= own for whole, own in counts)


def test_what_is_cast_before_it_is_gathered_is_to_the_bit_what_is_cast_after(shared: TrainConfig, tmp_path: Path):
    """A forward in bf16 with layers gathered in bf16, and as it would be with fp32 weights under autocast."""
    changes = {"precision": "bf16", "max_steps": 3, "activation_checkpointing": True}
    variants = {"full": {"trainable": "projector,language_model"}, "lora": {"trainable": "projector,lora", "parallel.shard": "all"}}
    runs = {name: override(shared, {**changes, **each, "output": str(tmp_path / name)}) for name, each in variants.items()}
    after = {name: override(each, {"output": f"{each.output}-after"}) for name, each in runs.items()}
    divide = distributed.fully_shard

    def train_all() -> None:
        in_bf16: set[str] = set()

        def noted(module: torch.nn.Module, **rest: Any) -> Any:
            if rest["mp_policy"].param_dtype == torch.bfloat16:
                in_bf16.add(type(module).__name__)
            return divide(module, **rest)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(distributed, "fully_shard", noted)
            for each in runs.values():
                train_on(each, resume=False)
            assert in_bf16 == {"LlamaDecoderLayer"}
            patch.setattr(distributed, "fully_shard", lambda module, mp_policy, **rest: divide(module, **rest))
            for each in after.values():
                train_on(each, resume=False)

    assert together(tmp_path, train_all) == [0, 0]
    for name, each in runs.items():
        assert numbers(each) == numbers(after[name]), name
        found, expected = (open_weights(Path(one.output) / "model") for one in (each, after[name]))
        assert all(torch.equal(found[tensor].read(), expected[tensor].read()) for tensor in expected), name


# --- Stopping and going on -------------------------------------------------------------------------------------------------------------


def stop_before(config: TrainConfig, step: int) -> None:
    """Trains on until a step begins, and leaves as a process does that is killed: without a word to disk."""
    whole = Stepper.compute

    def compute(stepper: Stepper, number: int, *rest: Any) -> Any:
        if number == step:
            raise KeyboardInterrupt
        return whole(stepper, number, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stepper, "compute", compute)
        with pytest.raises(KeyboardInterrupt):
            train_on(config)


def test_a_run_goes_on_with_more_or_fewer_processes_and_past_a_damaged_shard(shared: TrainConfig, tmp_path: Path):
    config = override(shared, {"trainable": "projector,lora", "max_steps": 6, "save_every": 1, "keep_checkpoints": 9})
    whole, changed, same = (override(config, {"output": str(tmp_path / name)}) for name in ("whole", "changed", "same"))

    def in_two() -> None:
        train_on(whole)
        stop_before(same, 3)
        train_on(same)
        stop_before(changed, 4)

    assert ended(spawn(lambda: stop_before(changed, 2))) == 0
    assert together(tmp_path, in_two) == [0, 0]
    checkpoints = Path(changed.output) / "checkpoints"
    assert saved_steps(checkpoints) == [1, 2, 3, 4]
    shards = sorted((checkpoints / "step-00000004").glob("*.safetensors"))
    assert [shard.name.split("-model")[0] for shard in shards] == ["shard-00001", "shard-00002"]
    shards[1].write_bytes(shards[1].read_bytes()[:-1] + b"\0")
    assert together(tmp_path, lambda: stop_before(changed, 5)) == [0, 0]
    assert ended(spawn(lambda: train_on(changed))) == 0

    assert numbers(same) == numbers(whole)
    assert numbers(changed) == pytest.approx(numbers(whole), rel=1e-6)
    assert {(step, *rows) for step, rows in ids(changed)} == {(step, *rows) for step, rows in ids(whole)}
    models = [{name: slot.read() for name, slot in open_weights(Path(each.output) / "model").items()} for each in (whole, same)]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


# --- What goes wrong -------------------------------------------------------------------------------------------------------------------


def test_what_the_first_process_fails_at_all_fail_at_alike(shared: TrainConfig, tmp_path: Path):
    errors = (UnknownName("projector", "linaer", ["linear"]), OSError(28, "No space left on device", "there"))

    def fail() -> None:
        with start_world(shared) as world:
            for error in errors:
                with pytest.raises(type(error), match=re.escape(str(error))):
                    world.on_main(partial(_raise, error))
                with pytest.raises(type(error)), world.main_first():
                    _raise(error if world.main else None)

    assert together(tmp_path, fail) == [0, 0]


def test_processes_that_were_started_differently_are_refused(shared: TrainConfig, tmp_path: Path):
    def differing() -> None:
        with pytest.raises(UsageError, match=r"differ in: setting optim\.lr"):
            train_on(override(shared, {"optim.lr": 1e-3 * (1 + dist.get_rank())}), resume=False)

    assert together(tmp_path, differing) == [0, 0]


def test_a_process_that_dies_ends_the_others(shared: TrainConfig, tmp_path: Path):
    config = override(shared, {"save_every": 1})

    def one_dies() -> None:
        whole = Stepper.update

        def update(stepper: Stepper, step: int, total_steps: int) -> float:
            if step == 2 and stepper.world.rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return whole(stepper, step, total_steps)

        Stepper.update = update  # type: ignore[method-assign]
        train_on(config)

    assert together(tmp_path, one_dies, timeout=60) == [WorkerError.exit_code, -signal.SIGKILL]
    assert saved_steps(Path(config.output) / "checkpoints") == [1, 2]
    assert together(tmp_path, lambda: train_on(config)) == [0, 0]
    assert len(numbers(config)) == 2 * 4


def test_samples_are_answered_by_the_whole_model_in_the_first_process(shared: TrainConfig, tmp_path: Path):
    config = override(
        shared, {"trainable": "projector,language_model", "max_steps": 2, "sample_every": 1, "activation_checkpointing": True}
    )

    def sample(model: Llava, processor: Processor, conversations: Sequence[Conversation]) -> list[str]:
        batch = lay_end_to_end([processor(each, train=False) for each in conversations])
        return [f"{model(batch).double().sum():.3f}"] * len(conversations)

    def answers(each: TrainConfig) -> list[float]:
        return [float(json.loads(line)["answer"]) for line in (Path(each.output) / "samples.jsonl").read_text().splitlines()]

    alone = override(config, {"output": str(tmp_path / "alone")})
    assert together(tmp_path, lambda: trainer.train(config, sampler=sample)) == [0, 0]
    assert ended(spawn(lambda: trainer.train(alone, sampler=sample))) == 0
    assert answers(config) == pytest.approx(answers(alone), rel=1e-4)
    assert len(set(answers(config))) == 2


@pytest.mark.parametrize(
    ("processes", "changes", "complaint"),
    [
        (3, {"parallel.replicas": 2}, "parallel.replicas=2 does not divide the 3"),
        (1, {"parallel.replicas": 2}, "parallel.replicas=2 does not divide the 1"),
        (8, {}, "batch.conversations=5"),
        (2, {"parallel.timeout": 0.0}, "parallel.timeout=0"),
        (2, {"objective": "align", "trainable": "projector,vision_tower"}, "the projector alone"),
        (2, {}, "'RANK' is not"),
    ],
)
def test_processes_that_do_not_fit_the_run_are_refused_before_they_meet(
    shared: TrainConfig, monkeypatch: pytest.MonkeyPatch, processes: int, changes: dict[str, Any], complaint: str
):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    with pytest.raises(UsageError, match=complaint), start_world(override(shared, changes)):
        pytest.fail("they met")


@pytest.fixture
def lent_store(monkeypatch: pytest.MonkeyPatch) -> dist.TCPStore:
    """The store that torchrun keeps while it starts its processes again and again."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    torchrun = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port, "RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    torchrun |= {"TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RESTART_COUNT": 0, "TORCHELASTIC_MAX_RESTARTS": 3}
    for name, value in torchrun.items():
        monkeypatch.setenv(name, str(value))
    return store


def test_processes_that_were_started_again_see_no_address_of_dead_ones(lent_store: dist.TCPStore, monkeypatch: pytest.MonkeyPatch):
    first = distributed.store_of_this_start(timedelta(seconds=10))
    first.set("address", "dead")
    assert distributed.store_of_this_start(timedelta(seconds=10)).get("address") == b"dead"
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert not distributed.store_of_this_start(timedelta(seconds=10)).check(["address"])
    assert lent_store.num_keys() > 0


def test_restarts_on_several_machines_want_a_new_store_each_time(lent_store: dist.TCPStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UsageError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        distributed.store_of_this_start(timedelta(seconds=10))
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "0")
    distributed.store_of_this_start(timedelta(seconds=10)).set("address", "here")
    assert lent_store.num_keys() > 0


def test_a_process_alone_asks_nobody():
    alone = World(0, 1, torch.device("cpu"))
    assert alone.main
    assert alone.any(True)
    assert not alone.any(False)
    assert alone.sum(torch.tensor(2.0)) == 2.0
    assert alone.on_main(lambda: 3) == 3
