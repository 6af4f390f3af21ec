"""Checkpoints on a bad disk: what is damaged is noticed before it is used, and a save that failed is never called saved.

T7 (bits that flip), T8 (files cut, missing, exchanged), T9 (a disk that fills up), T10 (errors and short writes).
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.faults.tiny_training import (
    Faults,
    at_the_second_save,
    config_for,
    fail_with,
    in_child,
    leftovers,
    no_file_longer_than,
    outcome_of,
    points,
    state_of,
    state_on_disk,
    train_on,
    whole_run,
)

from vistune.checkpoint.resume import saved_steps
from vistune.errors import SaveError
from vistune.train.config import TrainConfig, override
from vistune.train.keep import Keeper
from vistune.train.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("tiny_start")


# --- T7, T8 ----------------------------------------------------------------------------------------------------------------------------


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def taken_in_place_of(keeper: Keeper, harm: Callable[[], object], *, old: str) -> None:
    """After `harm`, the process goes on from the old checkpoint and says so; then all is put back as it was."""
    newest = keeper.checkpoints / f"step-{saved_steps(keeper.checkpoints)[-1]:08d}"
    kept = newest.with_name("kept")
    shutil.copytree(newest, kept)
    said: list[str] = []
    keeper.say = said.append
    harm()
    keeper.take_up(True)
    assert state_of(keeper) == old, "the damaged checkpoint was used"
    assert newest.name in said[0]
    assert "damaged" in said[0]
    shutil.rmtree(newest)
    kept.rename(newest)


def flip_bits(folder: Path, count: int) -> None:
    def flip(keeper: Keeper, old: str, new: str) -> None:
        keeper.save()
        newest = keeper.checkpoints / f"step-{saved_steps(keeper.checkpoints)[-1]:08d}"
        draw = random.Random(7)
        for _ in range(count):
            path = draw.choice(files_of(newest))
            data = bytearray(path.read_bytes())
            # Headers and the page of JSON are small: half of the flips are meant for the beginnings of files.
            place = draw.randrange(min(len(data), draw.choice([256, len(data)])))
            data[place] ^= 1 << draw.randrange(8)
            taken_in_place_of(keeper, lambda path=path, data=data: path.write_bytes(data), old=old)
        keeper.take_up(True)
        assert state_of(keeper) == new
        print(f"T7: {count} of {count} flipped bits noticed before any tensor was used, and the checkpoint before was taken")

    assert at_the_second_save(config_for(folder), flip) == 130


def test_t7_a_flipped_bit_is_noticed_and_the_checkpoint_before_is_taken(tmp_path: Path):
    flip_bits(tmp_path, 50)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_t7_a_thousand_flipped_bits(tmp_path: Path):
    flip_bits(tmp_path, 1000)


def test_t8_files_cut_missing_added_and_exchanged_are_noticed(tmp_path: Path):
    def harm(keeper: Keeper, old: str, new: str) -> None:
        keeper.save()
        before, newest = (keeper.checkpoints / f"step-{step:08d}" for step in saved_steps(keeper.checkpoints))
        harms: list[Callable[[], object]] = [
            lambda: (newest / "another").write_bytes(b"1"),
            lambda: (newest / "another").mkdir() or (newest / "another" / "file").write_bytes(b""),
            lambda: (newest / "link").symlink_to("/etc/passwd"),
        ]
        for path in files_of(newest):
            # The line break at a manifest's end says nothing; the brace before it does.
            size, other = len(path.read_bytes().rstrip(b"\n")), before / path.relative_to(newest)
            harms += [lambda path=path, cut=cut: os.truncate(path, cut) for cut in {0, 1, size // 2, size - 1}]
            harms.append(lambda path=path: path.unlink())
            if other.is_file() and other.read_bytes() != path.read_bytes():
                harms.append(lambda path=path, other=other: shutil.copy(other, path))
        for each in harms:
            taken_in_place_of(keeper, each, old=old)
        keeper.take_up(True)
        assert state_of(keeper) == new
        print(f"T8: {len(harms)} of {len(harms)} cut, missing, added and exchanged files noticed")

    assert at_the_second_save(config_for(tmp_path), harm) == 130


# --- T9, T10 ---------------------------------------------------------------------------------------------------------------------------


def failed_metrics(config: TrainConfig) -> list[int]:
    return [int(row["step"]) for row in read_metrics(Path(config.output) / "metrics.jsonl") if "checkpoint_failed" in row]


@contextmanager
def saves_through(limit: int, failures: int) -> Iterator[list[str]]:
    """The first saves after the first good one find a disk on which no file may be longer than `limit`; gives what is said."""
    whole, calls, said = Keeper.save, [0], []

    def save(keeper: Keeper) -> bool:
        keeper.say = said.append
        calls[0] += 1
        if not 2 <= calls[0] < 2 + failures:
            return whole(keeper)
        with no_file_longer_than(limit):
            return whole(keeper)

    Keeper.save = save  # type: ignore[method-assign]
    try:
        yield said
    finally:
        Keeper.save = whole  # type: ignore[method-assign]


@pytest.mark.parametrize("limit", [0, 100, 5_000, 60_000])
def test_t9_a_disk_that_fills_up_costs_a_checkpoint_and_the_run_goes_on(tmp_path_factory: pytest.TempPathFactory, limit: int):
    folder = tmp_path_factory.getbasetemp() / "disk"
    config = config_for(folder, output=str(folder / f"full-{limit}"))
    whole = whole_run(override(config, {"output": str(folder / "run")}))

    def starved() -> None:
        with saves_through(limit, failures=2) as said:
            train_on(config)
        errors = [each for each in said if each.startswith("ERROR")]
        assert len(errors) == 2, said

    assert in_child(starved) == 0
    assert failed_metrics(config) == [4, 6]
    assert not leftovers(config)
    assert outcome_of(config) == whole


def test_t9_the_third_failure_in_a_row_ends_the_run_and_the_good_checkpoint_is_gone_on_from(tmp_path: Path):
    config = config_for(tmp_path)
    whole = whole_run(config)

    def starved() -> None:
        with saves_through(1000, failures=9):
            train_on(config)

    assert in_child(starved) == SaveError.exit_code
    assert saved_steps(Path(config.output) / "checkpoints") == [2]
    assert in_child(lambda: train_on(config)) == 0
    assert outcome_of(config) == whole


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EXDEV], ids=lambda code: errno.errorcode[code])
def test_t10_a_refused_change_to_the_disk_is_a_failed_save_or_none_at_all(tmp_path: Path, code: int):
    config = config_for(tmp_path)

    def refuse_everywhere(keeper: Keeper, old: str, new: str) -> None:
        outcomes: list[tuple[int, str]] = []

        def refused_at(point: int) -> int | None:
            def save() -> None:
                met: list[str] = []
                Faults(point, lambda name: (met.append(name), fail_with(code)(name))[1])
                saved = keeper.save()
                os._exit(99 if not met else 0 if saved else SaveError.exit_code)

            exit_code = in_child(save)
            if exit_code == 99:
                return None
            state = state_on_disk(keeper)
            outcomes.append((exit_code, state))
            # Called saved, it is there; a failure after the rename (the disk did not confirm it) may leave the new state, never less.
            assert (exit_code, state) in ((0, new), (SaveError.exit_code, old), (SaveError.exit_code, new)), (point, exit_code)
            shutil.rmtree(keeper.checkpoints / f"step-{keeper.progress.step:08d}", ignore_errors=True)
            return exit_code

        for _ in points(refused_at, at_least=12):
            pass
        assert in_child(keeper.save) == 0
        assert state_on_disk(keeper) == new
        assert not leftovers(config)
        failed = sum(exit_code != 0 for exit_code, _ in outcomes)
        print(f"T10: {errno.errorcode[code]} at each of {len(outcomes)} changes: {failed} reported failed, none of those called saved")

    assert at_the_second_save(config, refuse_everywhere) == 130


def test_t10_a_write_cut_short_at_any_length_is_never_a_checkpoint(tmp_path: Path):
    config = config_for(tmp_path)

    def cut_everywhere(keeper: Keeper, old: str, new: str) -> None:
        keeper.save()
        newest = keeper.checkpoints / f"step-{saved_steps(keeper.checkpoints)[-1]:08d}"
        sizes = sorted({path.stat().st_size for path in files_of(newest)})
        limits = sorted({cut for size in sizes for cut in (1, size // 3, size - 1)})
        shutil.rmtree(newest)
        for limit in limits:

            def save(limit: int = limit) -> None:
                with no_file_longer_than(limit):
                    assert not keeper.save()

            assert in_child(save) == 0
            assert state_on_disk(keeper) == old, limit
        assert in_child(keeper.save) == 0
        assert state_on_disk(keeper) == new
        assert not leftovers(config)
        print(f"T10: short writes at {len(limits)} lengths: none called saved")

    assert at_the_second_save(config, cut_everywhere) == 130


@pytest.mark.nightly
@pytest.mark.timeout(1200)
def test_t9_a_small_disk_of_its_own(tmp_path: Path):
    """A tmpfs that a run fills up, in a name space where it can be mounted."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("unshare -rm is not allowed here")
    config = config_for(tmp_path)
    whole = whole_run(config)
    counted: list[int] = []
    needed = sum(path.stat().st_size for path in files_of(Path(f"{config.output}-whole") / "checkpoints"))
    for share in (0.3, 0.6, 0.9, 1.1, 1.6):
        disk = tmp_path / f"disk-{share}"
        disk.mkdir()
        lived = override(config, {"output": str(disk / "run")})

        def on_a_small_disk(disk: Path = disk, lived: TrainConfig = lived, size: int = int(share * needed)) -> None:
            _unshare()
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], check=True)
            code = in_child(lambda: train_on(lived))
            assert code in (0, SaveError.exit_code), code
            counted.append(len(failed_metrics(lived)))
            subprocess.run(["mount", "-o", "remount,size=1g", str(disk)], check=True)
            assert in_child(lambda: train_on(lived)) == 0
            assert outcome_of(lived) == whole
            assert not leftovers(lived)
            print(f"T9: a disk of {size:,} bytes: exit code {code}, {counted[-1]} failed checkpoints, then gone on with to the same end")

        assert in_child(on_a_small_disk) == 0


def _unshare() -> None:
    """Gives this process mounts of its own (os.unshare came with Python 3.12)."""
    user, group = os.getuid(), os.getgid()
    new_mounts, new_user = 0x20000, 0x10000000
    if ctypes.CDLL(None, use_errno=True).unshare(new_user | new_mounts):
        raise OSError(ctypes.get_errno(), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
