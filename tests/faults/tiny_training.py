"""A run of seconds, in processes of its own that may be killed, starved and asked to stop, and what it leaves.

Training happens in forked children only: what is killed has to be a process, and a fork has no packages to import.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from tests.train.conftest import COLOURS

from vistune import journal
from vistune.errors import VistuneError
from vistune.train import trainer
from vistune.train.config import BatchConfig, DataConfig, ModelChoice, OptimConfig, TrainConfig, override
from vistune.train.keep import Keeper
from vistune.train.metrics import Display, read_metrics
from vistune.train.step import Stepper

ROWS = 14


def write_rows(folder: Path, count: int = ROWS) -> Path:
    """Questions about pictures of two colours, and each seventh row without a picture."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        left, right = (list(COLOURS)[index % 6] for index in (number, number // 6 + 1))
        picture = Image.new("RGB", (32, 32), COLOURS[left])
        picture.paste(COLOURS[right], (16, 0, 32, 32))
        picture.save(folder / f"{number}.png")
        shown = {} if number % 7 == 6 else {"image": f"{number}.png"}
        question = "Which colours?" + ("\n<image>" if shown else "")
        rows.append(
            {
                "id": f"row{number}",
                **shown,
                "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": f" {left} {right}"}],
            }
        )
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder


def config_for(folder: Path, *, rows: int = ROWS, **changes: Any) -> TrainConfig:
    """Eight steps over two epochs, the last of each of one row, with a validation at every third and a checkpoint at every second."""
    data = folder / f"data{rows}"
    if not data.exists():
        write_rows(data, rows)
    config = TrainConfig(
        recipe="tiny",
        output=str(folder / "run"),
        model=ModelChoice(init_from="tiny", template="chatml_direct", max_length=512),
        trainable=("projector", "language_model"),
        data=DataConfig(dataset="rows.json", root=str(data), validation_rows=1),
        batch=BatchConfig(conversations=4, tokens_per_forward=120),
        optim=OptimConfig(lr=1e-2),
        epochs=2.0,
        validate_every=3,
        save_every=2,
        seed=3,
        precision="fp32",
        device="cpu",
    )
    return override(config, {name.replace("__", "."): value for name, value in changes.items()})


# --- Processes -------------------------------------------------------------------------------------------------------------------------


def train_on(config: TrainConfig, *, resume: bool = True) -> None:
    """Begins a run, or goes on with it, and notes which rows each step was computed from."""
    whole = Stepper.compute
    log = os.open(Path(config.output).with_suffix(".rows"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def noted(stepper: Stepper, step: int, *rest: Any) -> Any:
        computed = whole(stepper, step, *rest)
        os.write(log, (json.dumps([step, computed.ids]) + "\n").encode())
        return computed

    Stepper.compute = noted  # type: ignore[method-assign]
    try:
        trainer.train(config, resume=resume, display=Display(Console(file=io.StringIO())))
    finally:
        Stepper.compute = whole  # type: ignore[method-assign]
        os.close(log)


def spawn(action: Callable[[], object]) -> int:
    """Runs `action` in a fork; gives its process number. Errors become exit codes as at the command line."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            # In a fork torch makes its pool of threads anew when first asked; two reading threads that ask at once trip over that.
            torch.set_num_threads(1)
            action()
            code = 0
        except KeyboardInterrupt:
            code = 130
        except VistuneError as error:
            print(error, file=sys.stderr)
            code = error.exit_code
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return pid


def ended(pid: int) -> int:
    """Waits for a child: its exit code, or -signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def in_child(action: Callable[[], object]) -> int:
    return ended(spawn(action))


def asked_of_child(action: Callable[[], Any]) -> Any:
    """What `action` returns in a fork, as JSON."""
    reading, writing = os.pipe()

    def answer() -> None:
        os.write(writing, json.dumps(action()).encode())

    pid = spawn(answer)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    assert ended(pid) == 0
    return json.loads(said)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# --- What a run leaves -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """A finished run: each step's loss, gradient norm and rate and each validation's loss to the last bit, and the model's digest."""

    steps: tuple[tuple[str, ...], ...]
    validations: tuple[tuple[int, str], ...]
    model: str


def outcome_of(config: TrainConfig) -> Outcome:
    folder = Path(config.output)
    rows = read_metrics(folder / "metrics.jsonl")
    steps = [row for row in rows if "seconds" in row]
    assert [row["step"] for row in steps] == list(range(1, len(steps) + 1))
    numbers = ("loss", "gradient_norm", "learning_rate")
    return Outcome(
        tuple(tuple(float(row[name]).hex() if name in row else "skipped" for name in numbers) for row in steps),
        tuple((row["step"], float(row["validation_loss"]).hex()) for row in rows if "validation_loss" in row),
        digest_of_folder(folder / "model"),
    )


def digest_of_folder(folder: Path) -> str:
    """Of a model: everything but its card, which tells of times."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix != ".md":
            digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def whole_run(config: TrainConfig) -> Outcome:
    """The same run, never stopped; made once for a folder."""
    whole = override(config, {"output": f"{config.output}-whole"})
    if not (Path(whole.output) / "model").exists():
        assert in_child(lambda: train_on(whole, resume=False)) == 0
        check_rows_were_used_once(whole)
    return outcome_of(whole)


def check_rows_were_used_once(config: TrainConfig) -> None:
    """However often a step was lived, its rows were the same, and each row is in exactly one step of each epoch."""
    of_step: dict[int, list[str]] = {}
    for line in Path(config.output).with_suffix(".rows").read_bytes().split(b"\n")[:-1]:
        step, ids = json.loads(line)
        assert of_step.setdefault(step, ids) == ids
    assert sorted(of_step) == list(range(len(of_step)))
    learned = len({each for ids in of_step.values() for each in ids})
    per_epoch = -(-learned // config.batch.conversations)
    for epoch in range(len(of_step) // per_epoch):
        rows = Counter(row for step in range(epoch * per_epoch, (epoch + 1) * per_epoch) for row in of_step[step])
        assert len(rows) == learned
        assert set(rows.values()) == {1}


def leftovers(config: TrainConfig) -> list[str]:
    """What writers that died left under a name of their own."""
    return [path.name for path in Path(config.output).rglob("*") if ".tmp-" in path.name or ".replaced-" in path.name]


# --- One checkpoint --------------------------------------------------------------------------------------------------------------------


def state_of(keeper: Keeper) -> str:
    """A digest of all that a checkpoint keeps: weights, moments, progress."""
    digest = hashlib.sha256(json.dumps(asdict(keeper.progress), sort_keys=True).encode())
    for group in keeper.optimizer.param_groups:
        for parameter in group["params"]:
            for tensor in (parameter, *(keeper.optimizer.state[parameter][key] for key in sorted(keeper.optimizer.state[parameter]))):
                digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def state_on_disk(keeper: Keeper) -> str:
    """The digest of what a process would go on from that finds the folder as it is now. Asked in a fork: this one keeps its own."""

    def taken_up() -> str:
        assert keeper.take_up(True)
        return state_of(keeper)

    return asked_of_child(taken_up)


def at_the_second_save(config: TrainConfig, act: Callable[[Keeper, str, str], None]) -> int:
    """Trains, in a fork, up to its second checkpoint, and calls `act(keeper, old state, new state)` in place of saving it."""
    whole, first = Keeper.save, []

    def save(keeper: Keeper) -> bool:
        if not first:
            saved = whole(keeper)
            first.append(state_of(keeper))
            assert state_on_disk(keeper) == first[0]
            return saved
        Keeper.save = whole  # type: ignore[method-assign]
        act(keeper, first[0], state_of(keeper))
        raise KeyboardInterrupt

    def trained() -> None:
        Keeper.save = save  # type: ignore[method-assign]
        train_on(config)

    return in_child(trained)


# --- Faults in calls of the system -----------------------------------------------------------------------------------------------------

_CALLS = ("write", "fsync", "rename", "replace", "ftruncate", "unlink", "rmdir", "mkdir")


class Faults:
    """Does something ahead of the `point`-th change that this process makes to the disk; only for a fork, it is never undone.

    Changes are system calls made by way of `os`, files opened for writing by anybody, and the exchange of two folders. What is written to
    an open file by other ways is not seen here; limits of size (`no_file_longer_than`) and strace see that.
    """

    def __init__(self, point: int, act: Callable[[str], None]):
        self.point, self.act, self.seen = point, act, 0
        for name in _CALLS:
            setattr(os, name, self._wrapped(name, getattr(os, name)))
        journal._exchange = self._wrapped("exchange", journal._exchange)
        sys.addaudithook(self._audit)

    def _wrapped(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            self._meet(name)
            return call(*arguments, **keywords)

        return wrapped

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            self._meet("open")

    def _meet(self, name: str) -> None:
        self.seen += 1
        if self.seen == self.point:
            self.act(name)


def fail_with(code: int) -> Callable[[str], None]:
    def act(name: str) -> None:
        raise OSError(code, os.strerror(code))

    return act


def points(act: Callable[[int], int | None], *, at_least: int) -> Iterator[int]:
    """Calls `act(1)`, `act(2)`, ... until it says None, that is, until the point lies behind the last change; gives each point met."""
    point = 1
    while act(point) is not None:
        yield point
        point += 1
    assert point > at_least, f"only {point - 1} points were met: the calls are no longer seen"


@contextmanager
def no_file_longer_than(size: int) -> Iterator[None]:
    """Writes beyond `size` bytes of a file are cut short and then refused by the kernel, as on a disk that fills up."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


DISK_FAULTS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EXDEV)
