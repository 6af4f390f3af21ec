"""A training checkpoint is whole and of this run, or it is passed over or refused."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vistune.checkpoint import resume
from vistune.checkpoint.resume import TrainingState, load_latest, load_state, prune, save_state, saved_steps
from vistune.errors import CheckpointError, ResumeMismatch, SaveError

FINGERPRINTS = {"data": "d", "setting optim.lr": "0.1"}


def state(step: int) -> TrainingState:
    weights = {"projector.weight": torch.randn(3, 2), "projector.scale": torch.tensor(float(step))}
    moments = {"exp_avg.projector.weight": torch.randn(3, 2), "step.projector.weight": torch.tensor(float(step))}
    return TrainingState(step, weights, moments, FINGERPRINTS, {"best_loss": 1.5})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step in (1, 2):
        save_state(tmp_path, state(step))
    return tmp_path


def test_what_is_saved_is_loaded_bit_for_bit(tmp_path: Path):
    saved = state(7)
    loaded = load_state(save_state(tmp_path, saved))
    for before, after in ((saved.weights, loaded.weights), (saved.optimizer, loaded.optimizer)):
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
    assert (loaded.step, loaded.fingerprints, loaded.progress) == (7, FINGERPRINTS, {"best_loss": 1.5})


def test_the_newest_by_step_is_taken(run: Path):
    found, damaged = load_latest(run, FINGERPRINTS)
    assert found is not None
    assert (found.step, damaged) == (2, [])


def test_no_checkpoint_is_no_error(tmp_path: Path):
    assert load_latest(tmp_path / "none", FINGERPRINTS) == (None, [])


@pytest.mark.parametrize("seed", range(40))
def test_any_flipped_bit_is_found_and_the_one_before_is_taken(run: Path, seed: int):
    generator = random.Random(seed)
    path = generator.choice(sorted((run / "step-00000002").iterdir()))
    data = bytearray(path.read_bytes())
    place = generator.randrange(len(data))
    data[place] ^= 1 << generator.randrange(8)
    path.write_bytes(data)
    found, damaged = load_latest(run, FINGERPRINTS)
    assert found is not None
    assert found.step == 1
    assert "step-00000002" in damaged[0]


@pytest.mark.parametrize("name", ["trained.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("harm", ["empty", "half", "missing", "of another step"])
def test_cut_missing_and_exchanged_files_are_found(run: Path, name: str, harm: str):
    path = run / "step-00000002" / name
    if harm == "missing":
        path.unlink()
    elif harm == "of another step":
        shutil.copy(run / "step-00000001" / name, path)
    else:
        path.write_bytes(path.read_bytes()[: 0 if harm == "empty" else path.stat().st_size // 2])
    found, damaged = load_latest(run, FINGERPRINTS)
    assert found is not None
    assert found.step == 1
    assert damaged


def test_a_folder_under_the_name_of_another_step_is_found(run: Path):
    (run / "step-00000002").rename(run / "step-00000003")
    assert load_latest(run, FINGERPRINTS)[0].step == 1  # type: ignore[union-attr]


def test_when_none_is_good_the_run_does_not_begin_anew_by_itself(run: Path):
    for each in run.iterdir():
        (each / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match="None of the 2"):
        load_latest(run, FINGERPRINTS)


def test_what_differs_is_named(run: Path):
    with pytest.raises(ResumeMismatch, match=r"its setting optim\.lr, tokenizer differ"):
        load_latest(run, {"data": "d", "setting optim.lr": "0.2", "tokenizer": "t"})


def test_pruning_keeps_two_and_the_protected_one(tmp_path: Path):
    for step in range(1, 7):
        save_state(tmp_path, state(step))
    prune(tmp_path, keep=0, protect=2)
    assert saved_steps(tmp_path) == [2, 5, 6]


def test_a_full_disk_leaves_what_was_there(run: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(resume, "write_file", full)
    with pytest.raises(SaveError, match="No space left"):
        save_state(run, state(3))
    assert {each.name for each in run.iterdir()} == {"step-00000001", "step-00000002"}
    assert load_latest(run, FINGERPRINTS)[0].step == 2  # type: ignore[union-attr]


def test_a_damaged_folder_in_the_way_is_replaced(run: Path):
    (run / "step-00000002" / "state.json").write_text("{}")
    save_state(run, replace(state(2), progress={"best_loss": 9.0}))
    assert load_state(run / "step-00000002").progress == {"best_loss": 9.0}
