"""A training checkpoint is whole and of this run, or it is passed over or refused. Several processes: `train/test_distributed.py`."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vistune.checkpoint import resume
from vistune.checkpoint.resume import TrainingState, load_latest, load_tensors, prune, read_state, save_state, saved_names, saved_steps
from vistune.checkpoint.tensors import write_file
from vistune.errors import CheckpointError, ResumeMismatch, SaveError
from vistune.journal import write_manifest
from vistune.train.distributed import World

FINGERPRINTS = {"data": "d", "setting optim.lr": "0.1"}
ALONE = World(0, 1, torch.device("cpu"))
SHARD = "shard-00001-model-00001-of-00001.safetensors"


def state(step: int) -> TrainingState:
    return TrainingState(step, FINGERPRINTS, {"best_loss": float("inf")})


def tensors() -> dict[str, Tensor]:
    """A weight, a half-precision weight, a scale without dimensions, and moments."""
    weights = {"projector.weight": torch.randn(3, 2), "projector.half": torch.randn(5).bfloat16(), "projector.scale": torch.randn(())}
    return {**weights, "exp_avg.projector.weight": torch.randn(3, 2), "step.projector.weight": torch.tensor(7.0)}


def loaded(path: Path) -> dict[str, Tensor]:
    into = {name: torch.zeros_like(tensor) for name, tensor in tensors().items()}
    load_tensors(path, into, ALONE)
    return into


def newest(folder: Path) -> int:
    found, _ = load_latest(folder, FINGERPRINTS, ALONE)
    assert found is not None
    return found.step


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step in (1, 2):
        save_state(tmp_path, state(step), tensors(), ALONE)
    return tmp_path


def test_what_is_saved_is_loaded_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(resume, "_BYTES_PER_FILE", 30)
    saved = tensors()
    path = save_state(tmp_path, state(7), saved, ALONE)
    assert len(list(path.glob("*.safetensors"))) > 1
    after = loaded(path)
    assert saved.keys() == after.keys() == saved_names(path)
    assert all(torch.equal(saved[name], after[name]) for name in saved)
    assert read_state(path) == state(7)


def test_the_two_plain_files_of_the_first_format_are_still_read(tmp_path: Path):
    path, saved = tmp_path / "step-00000007", tensors()
    path.mkdir()
    write_file(path / "trained.safetensors", {name: tensor for name, tensor in saved.items() if name.startswith("projector")})
    write_file(path / "optimizer.safetensors", {name: tensor for name, tensor in saved.items() if not name.startswith("projector")})
    (path / "state.json").write_text(json.dumps({"format": 1, "step": 7, "fingerprints": FINGERPRINTS, "progress": {}}))
    write_manifest(path)
    assert newest(tmp_path) == 7
    assert saved_names(path) == saved.keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in loaded(path).items())


def test_nothing_in_a_checkpoint_is_a_pickle(run: Path):
    assert {each.name for each in (run / "step-00000002").iterdir()} == {SHARD, "state.json", "manifest.json"}


@pytest.mark.parametrize(("name", "tensor"), [("projector.other", torch.zeros(2)), ("projector.weight", torch.zeros(3, 3))])
def test_a_tensor_that_is_not_there_or_has_another_shape_is_an_error(run: Path, name: str, tensor: Tensor):
    with pytest.raises(CheckpointError, match=name):
        load_tensors(run / "step-00000002", {name: tensor}, ALONE)


def test_the_newest_by_step_is_taken(run: Path):
    assert load_latest(run, FINGERPRINTS, ALONE) == (state(2), [])


def test_no_checkpoint_is_no_error(tmp_path: Path):
    assert load_latest(tmp_path / "none", FINGERPRINTS, ALONE) == (None, [])


@pytest.mark.parametrize("seed", range(40))
def test_any_flipped_bit_is_found_and_the_one_before_is_taken(run: Path, seed: int):
    generator = random.Random(seed)
    path = generator.choice(sorted((run / "step-00000002").iterdir()))
    data = bytearray(path.read_bytes())
    place = generator.randrange(len(data))
    data[place] ^= 1 << generator.randrange(8)
    path.write_bytes(data)
    found, damaged = load_latest(run, FINGERPRINTS, ALONE)
    assert found is not None
    assert found.step == 1
    assert "step-00000002" in damaged[0]


@pytest.mark.parametrize("name", [SHARD, "state.json", "manifest.json"])
@pytest.mark.parametrize("harm", ["empty", "half", "missing", "of another step"])
def test_cut_missing_and_exchanged_files_are_found(run: Path, name: str, harm: str):
    path = run / "step-00000002" / name
    if harm == "missing":
        path.unlink()
    elif harm == "of another step":
        shutil.copy(run / "step-00000001" / name, path)
    else:
        path.write_bytes(path.read_bytes()[: 0 if harm == "empty" else path.stat().st_size // 2])
    found, damaged = load_latest(run, FINGERPRINTS, ALONE)
    assert found is not None
    assert found.step == 1
    assert damaged


def test_a_folder_under_the_name_of_another_step_is_found(run: Path):
    (run / "step-00000002").rename(run / "step-00000003")
    assert newest(run) == 1


def test_when_none_is_good_the_run_does_not_begin_anew_by_itself(run: Path):
    for each in run.iterdir():
        (each / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match="None of the 2"):
        load_latest(run, FINGERPRINTS, ALONE)


def test_what_differs_is_named(run: Path):
    with pytest.raises(ResumeMismatch, match=r"its setting optim\.lr, tokenizer differ"):
        load_latest(run, {"data": "d", "setting optim.lr": "0.2", "tokenizer": "t"}, ALONE)


def test_pruning_keeps_two_and_the_protected_one(tmp_path: Path):
    for step in range(1, 7):
        save_state(tmp_path, state(step), tensors(), ALONE)
    prune(tmp_path, keep=0, protect=2)
    assert saved_steps(tmp_path) == [2, 5, 6]


@pytest.mark.parametrize("moment", ["while the tensors are written", "at the end"])
def test_a_full_disk_leaves_what_was_there(run: Path, monkeypatch: pytest.MonkeyPatch, moment: str):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    if moment == "at the end":
        monkeypatch.setattr(resume, "write_manifest", full)
    else:
        monkeypatch.setattr("safetensors.torch.save", full)
    with pytest.raises(SaveError, match="No space left"):
        save_state(run, state(3), tensors(), ALONE)
    assert {each.name for each in run.iterdir()} == {"step-00000001", "step-00000002"}
    assert newest(run) == 2


def test_ctrl_c_while_saving_is_ctrl_c_and_no_failure_of_the_disk(run: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_state(run, state(3), tensors(), ALONE)
    assert saved_steps(run) == [1, 2]


def test_a_damaged_folder_in_the_way_is_replaced(run: Path):
    (run / "step-00000002" / "state.json").write_text("{}")
    save_state(run, replace(state(2), progress={"best_loss": 9.0}), tensors(), ALONE)
    assert read_state(run / "step-00000002").progress == {"best_loss": 9.0}
