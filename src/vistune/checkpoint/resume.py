"""Where a run stands, on disk: enough to go on bit for bit, or a refusal.

A checkpoint is a folder `step-00000100` with safetensors files, a page of JSON, and a manifest of sha256 digests. The files hold the
trained tensors under their names in the model, and the optimizer's moments as `exp_avg.NAME`, `exp_avg_sq.NAME` and `step.NAME`. Each
process of a run writes its own shards (torch's distributed checkpointing, in its safetensors format: no pickle), and any number of
processes reads them: a run may go on with fewer or more than it had.

A folder appears under its name only when all of it is there; its manifest is verified before any tensor is used, and a damaged checkpoint
makes room for the one before it. The order of the data and all randomness are functions of the step number, so no generator needs saving.
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter

from vistune.checkpoint.tensors import read_header
from vistune.errors import CheckpointError, ResumeMismatch, SaveError
from vistune.journal import atomic_folder, verify_manifest, write_manifest

_STATE = "state.json"
_STEP_FOLDER = re.compile(r"step-(\d{8})")
_FORMATS = (1, 2)
"""1: one process wrote two plain files. 2: each wrote its shards. Both are read alike."""
_BYTES_PER_FILE = 1 << 30
"""About; a file is put together in memory before it is written."""

Result = TypeVar("Result")


class Processes(Protocol):
    """What saving and loading needs to know of the processes that share a run (`train.distributed.World`)."""

    @property
    def size(self) -> int: ...

    def on_main(self, act: Callable[[], Result]) -> Result: ...


@dataclass(frozen=True)
class TrainingState:
    """A run between two optimizer steps, but for its tensors."""

    step: int
    """Optimizer steps that are done."""
    fingerprints: Mapping[str, str]
    """What must be the same for the run to go on: config, data, tokenizer, frozen weights."""
    progress: Mapping[str, Any] = field(default_factory=dict)
    """What the trainer remembers besides: best validation, tokens seen, ... (JSON)."""


def step_folder(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def save_state(folder: Path, state: TrainingState, tensors: Mapping[str, Tensor], world: Processes) -> Path:
    """Writes `folder/step-N` whole or not at all; all processes call it, each with its shards (DTensors) or with whole tensors.

    Raises SaveError, in all processes alike, when the disk of any is full or read-only; earlier checkpoints stay.
    """
    target = step_folder(folder, state.step)
    page = {"format": _FORMATS[-1], "step": state.step, "fingerprints": dict(state.fingerprints), "progress": dict(state.progress)}
    try:
        with ExitStack() as unsealed:
            # Only a damaged folder can be in the way: from a good one the run would have gone on.
            unfinished = world.on_main(lambda: unsealed.enter_context(atomic_folder(target, existing="replace")))
            writer = HuggingFaceStorageWriter(str(unfinished), fqn_to_index_mapping=_files_of(tensors, world.size), save_distributed=True)
            with _quiet():
                state_dict_saver.save(dict(tensors), storage_writer=writer, no_dist=world.size == 1)

            def seal() -> None:
                (unfinished / _STATE).write_text(json.dumps(page, indent=2) + "\n")
                write_manifest(unfinished)
                _check_whole(unfinished)
                unsealed.close()  # durable, and under its name

            world.on_main(seal)
    except CheckpointException as error:
        raise SaveError(f"Saving {target} failed: {_reason(error)}. Earlier checkpoints are untouched.") from error
    except (OSError, CheckpointError) as error:  # whatever the reason, a run can go on without this one
        raise SaveError(f"Saving {target} failed: {error}. Earlier checkpoints are untouched.") from error
    return target


def _files_of(tensors: Mapping[str, Tensor], processes: int) -> dict[str, int]:
    """Which file of a process each tensor goes to, counted from 1."""
    files: dict[str, int] = {}
    number, filled = 1, 0
    for name, tensor in sorted(tensors.items()):
        share = tensor.numel() * tensor.element_size() // processes
        if filled and filled + share > _BYTES_PER_FILE:
            number, filled = number + 1, 0
        files[name], filled = number, filled + share
    return files


def load_latest(folder: Path, fingerprints: Mapping[str, str], world: Processes) -> tuple[TrainingState | None, list[str]]:
    """The newest good checkpoint of a run, or None if there is none yet, and a sentence about each newer one that was damaged.

    The first process looks, and all go by what it found.

    Raises:
        ResumeMismatch: the run began with another config, other data, another tokenizer or other frozen weights.
        CheckpointError: there are checkpoints, and all of them are damaged.
    """
    return world.on_main(lambda: _newest_good(folder, fingerprints))


def _newest_good(folder: Path, fingerprints: Mapping[str, str]) -> tuple[TrainingState | None, list[str]]:
    damaged: list[str] = []
    steps = saved_steps(folder)
    for step in reversed(steps):
        path = step_folder(folder, step)
        try:
            state = read_state(path)
        except (CheckpointError, OSError) as error:
            damaged.append(f"{path} is damaged and was passed over: {error}")
            continue
        _check_fingerprints(path, state.fingerprints, fingerprints)
        return state, damaged
    if damaged:
        raise CheckpointError(f"None of the {len(steps)} checkpoints in {folder} is good. {damaged[0]} Remove the folder to begin anew.")
    return None, []


def newest_fingerprints(folder: Path) -> dict[str, str]:
    """The fingerprints in the newest good checkpoint of a run; none where there is no such."""
    for step in reversed(saved_steps(folder)):
        with suppress(CheckpointError, OSError):
            return dict(read_state(step_folder(folder, step)).fingerprints)
    return {}


def read_state(path: Path) -> TrainingState:
    """Reads the page of one checkpoint folder, after every byte of the folder was compared with its manifest.

    Raises CheckpointError for any file missing, left over, cut off or changed since it was written.
    """
    verify_manifest(path)
    page = _read_page(path / _STATE)
    if page.get("format") not in _FORMATS or page.get("step") != int(path.name.removeprefix("step-")):
        raise CheckpointError(
            f"{path / _STATE} says format {page.get('format')}, step {page.get('step')}; expected format {_FORMATS[-1]} and the folder's "
            "step."
        )
    return TrainingState(page["step"], page["fingerprints"], page["progress"])


def _check_whole(folder: Path) -> None:
    """Finds a write that was cut short unnoticed: a manifest of what is there cannot know what is not."""
    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors":
            read_header(path)
        elif path.suffix == ".json":
            _read_page(path)


def _read_page(path: Path) -> dict[str, Any]:
    try:
        page = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not readable as JSON ({error}).") from error
    if not isinstance(page, dict):
        raise CheckpointError(f"{path} holds a {type(page).__name__} where an object is expected.")
    return page


def saved_names(path: Path) -> frozenset[str]:
    """The names of a checkpoint's tensors: a weight that never had a gradient has no moments."""
    return frozenset(HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata)


def load_tensors(path: Path, into: Mapping[str, Tensor], world: Processes) -> None:
    """Reads tensors of a checkpoint into those given, in place; all processes call it, each with the shards it wants to have.

    Raises CheckpointError, in all processes alike, for a tensor that the checkpoint does not hold or that has another shape there.
    """
    try:
        with torch.no_grad(), _quiet():
            state_dict_loader.load(dict(into), storage_reader=HuggingFaceStorageReader(str(path)), no_dist=world.size == 1)
    except CheckpointException as error:
        raise CheckpointError(f"{path} could not be read: {_reason(error)}. Do all processes see this folder?") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """A process alone is told by torch that it is alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        yield


def _reason(error: CheckpointException) -> str:
    """What went wrong in the first process that failed, in a line. What is no failure (Ctrl-C) is raised as it was."""
    for failure, _ in error.failures.values():
        if not isinstance(failure, Exception):
            raise failure
    rank, (failure, _) = next(iter(sorted(error.failures.items())))
    return f"{str(failure).splitlines()[0] if str(failure) else type(failure).__name__} (process {rank})"


def saved_steps(folder: Path) -> list[int]:
    """Step numbers of the checkpoints in a folder, ascending. Names decide, not dates: clocks are set back."""
    if not folder.is_dir():
        return []
    return sorted(int(match[1]) for each in folder.iterdir() if (match := _STEP_FOLDER.fullmatch(each.name)))


def prune(folder: Path, *, keep: int, protect: int | None = None) -> None:
    """Removes all but the newest `keep` checkpoints (at least 2: one may turn out damaged) and the protected step."""
    for step in saved_steps(folder)[: -max(2, keep)]:
        if step != protect:
            shutil.rmtree(step_folder(folder, step))


def _check_fingerprints(path: Path, saved: Mapping[str, str], current: Mapping[str, str]) -> None:
    differing = [name for name in sorted(saved.keys() | current.keys()) if saved.get(name) != current.get(name)]
    if differing:
        raise ResumeMismatch(
            f"The run in {path.parent.parent} cannot go on: its {', '.join(differing)} differ from those it began with, so it would become "
            "neither the old run nor a new one. Restore them, or choose another `output` to begin anew."
        )
