"""Where a run stands, on disk: enough to go on bit for bit, or a refusal.

A checkpoint is a folder `step-00000100` with the trained tensors, the optimizer's moments, a page of JSON, and a manifest of sha256
digests. It appears under its name only when it is complete; the manifest is verified before any tensor is used, and a damaged checkpoint
makes room for the one before it. The order of the data and all randomness are functions of the step number, so no generator needs saving.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from vistune.checkpoint.tensors import read_header, write_file
from vistune.errors import CheckpointError, ResumeMismatch
from vistune.journal import atomic_folder, verify_manifest, write_manifest

_WEIGHTS, _OPTIMIZER, _STATE = "trained.safetensors", "optimizer.safetensors", "state.json"
_STEP_FOLDER = re.compile(r"step-(\d{8})")
_FORMAT = 1


@dataclass(frozen=True)
class TrainingState:
    """A run between two optimizer steps."""

    step: int
    """Optimizer steps that are done."""
    weights: Mapping[str, Tensor]
    """Trained parameters and the buffers beside them, by their names in the model."""
    optimizer: Mapping[str, Tensor]
    """`exp_avg.<parameter>`, `exp_avg_sq.<parameter>`, `step.<parameter>`."""
    fingerprints: Mapping[str, str]
    """What must be the same for the run to go on: config, data, tokenizer, frozen weights."""
    progress: Mapping[str, Any] = field(default_factory=dict)
    """What the trainer remembers besides: best validation, tokens seen, ... (JSON)."""


def save_state(folder: Path, state: TrainingState) -> Path:
    """Writes `folder/step-N` whole or not at all. Raises SaveError when the disk is full or read-only; earlier checkpoints stay."""
    target = folder / f"step-{state.step:08d}"
    page = {"format": _FORMAT, "step": state.step, "fingerprints": dict(state.fingerprints), "progress": dict(state.progress)}
    # Only a damaged folder can be in the way: from a good one the run would have gone on.
    with atomic_folder(target, existing="replace") as unfinished:
        write_file(unfinished / _WEIGHTS, state.weights)
        write_file(unfinished / _OPTIMIZER, state.optimizer)
        (unfinished / _STATE).write_text(json.dumps(page, indent=2) + "\n")
        write_manifest(unfinished)
    return target


def load_latest(folder: Path, fingerprints: Mapping[str, str]) -> tuple[TrainingState | None, list[str]]:
    """The newest good checkpoint of a run, or None if there is none yet, and a sentence about each newer one that was damaged.

    Raises:
        ResumeMismatch: the run began with another config, other data, another tokenizer or other frozen weights.
        CheckpointError: there are checkpoints, and all of them are damaged.
    """
    damaged: list[str] = []
    steps = saved_steps(folder)
    for step in reversed(steps):
        path = folder / f"step-{step:08d}"
        try:
            state = load_state(path)
        except (CheckpointError, OSError) as error:
            damaged.append(f"{path} is damaged and was passed over: {error}")
            continue
        _check_fingerprints(path, state.fingerprints, fingerprints)
        return state, damaged
    if damaged:
        raise CheckpointError(f"None of the {len(steps)} checkpoints in {folder} is good. {damaged[0]} Remove the folder to begin anew.")
    return None, []


def load_state(path: Path) -> TrainingState:
    """Reads one checkpoint folder. Raises CheckpointError for any file missing, left over, cut off or changed since it was written."""
    verify_manifest(path)
    page = _read_page(path / _STATE)
    if page.get("format") != _FORMAT or page.get("step") != int(path.name.removeprefix("step-")):
        raise CheckpointError(
            f"{path / _STATE} says format {page.get('format')}, step {page.get('step')}; expected {_FORMAT} and the folder's step."
        )
    weights, optimizer = ({name: slot.read() for name, slot in read_header(path / file).items()} for file in (_WEIGHTS, _OPTIMIZER))
    return TrainingState(page["step"], weights, optimizer, page["fingerprints"], page["progress"])


def saved_steps(folder: Path) -> list[int]:
    """Step numbers of the checkpoints in a folder, ascending. Names decide, not dates: clocks are set back."""
    if not folder.is_dir():
        return []
    return sorted(int(match[1]) for each in folder.iterdir() if (match := _STEP_FOLDER.fullmatch(each.name)))


def prune(folder: Path, *, keep: int, protect: int | None = None) -> None:
    """Removes all but the newest `keep` checkpoints (at least 2: one may turn out damaged) and the protected step."""
    for step in saved_steps(folder)[: -max(2, keep)]:
        if step != protect:
            shutil.rmtree(folder / f"step-{step:08d}")


def _read_page(path: Path) -> dict[str, Any]:
    try:
        page = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not readable as JSON ({error}).") from error
    if not isinstance(page, dict):
        raise CheckpointError(f"{path} holds a {type(page).__name__} where an object is expected.")
    return page


def _check_fingerprints(path: Path, saved: Mapping[str, str], current: Mapping[str, str]) -> None:
    differing = [name for name in sorted(saved.keys() | current.keys()) if saved.get(name) != current.get(name)]
    if differing:
        raise ResumeMismatch(
            f"The run in {path.parent.parent} cannot go on: its {', '.join(differing)} differ from those it began with, so it would become "
            "neither "
            f"the old run nor a new one. Restore them, or choose another `output` to begin anew."
        )
