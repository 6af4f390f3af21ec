"""Crashes, torn tails, short writes and full disks: what was saved is whole, and what was not is as before."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vistune import journal
from vistune.errors import CheckpointError, DataError, Locked, SaveError
from vistune.journal import Journal, atomic_folder, atomic_write, recover_folder, verify_manifest, write_manifest

SYSTEM_CALLS = ("mkdir", "open", "write", "fsync", "rename", "replace", "unlink", "rmdir", "ftruncate")


def wrap_system_calls(before: Callable[[str], None]) -> None:
    """Calls `before(name)` ahead of every system call that changes something. Only for a forked child: it is never undone."""
    originals = {name: getattr(os, name) for name in SYSTEM_CALLS}
    for name, original in originals.items():

        def wrapped(*arguments, _name=name, _original=original, **keywords):
            before(_name)
            return _original(*arguments, **keywords)

        setattr(os, name, wrapped)
    exchange = journal._exchange

    def exchange_wrapped(one: Path, other: Path) -> bool:
        before("exchange")
        return exchange(one, other)

    journal._exchange = exchange_wrapped


def killed_at(point: int, action: Callable[[], None]) -> bool:
    """Runs `action` in a fork that is killed ahead of its `point`-th system call; False if it ended before."""
    pid = os.fork()
    if pid == 0:
        calls = 0

        def kill_at_point(_name: str) -> None:
            nonlocal calls
            calls += 1
            if calls == point:
                os.kill(os.getpid(), signal.SIGKILL)

        status = 1
        try:
            wrap_system_calls(kill_at_point)
            action()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the action failed by itself"
    return os.WIFSIGNALED(status)


def crash_points(action: Callable[[], None], *, at_least: int) -> Iterator[int]:
    """Kills `action` at each of its system calls in turn; yields after each death."""
    point = 1
    while killed_at(point, action):
        yield point
        point += 1
    assert point > at_least, f"only {point - 1} crash points were met: the calls are no longer intercepted"


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, call: str, number: int, code: int) -> Iterator[None]:
    """The `number`-th call of one system call fails with `code`."""
    original, calls = getattr(os, call), 0

    def fails(*arguments, **keywords):
        nonlocal calls
        calls += 1
        if calls == number:
            raise OSError(code, os.strerror(code))
        return original(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fails)
        yield


def write_new_folder(path: Path, *, existing: str = "replace") -> None:
    with atomic_folder(path, existing=existing) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "weights").write_bytes(b"new" * 1000)
        (folder / "config").write_bytes(b"new")
        write_manifest(folder)


def content(folder: Path) -> dict[str, bytes] | None:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()} if folder.is_dir() else None


@pytest.fixture(params=["exchange", "two renames"])
def replacing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "two renames":
        monkeypatch.setattr(journal, "_exchange", lambda one, other: False)
    return request.param


def test_a_file_killed_at_any_system_call_is_the_old_or_the_new_one(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    for point in crash_points(lambda: atomic_write(path, b"new" * 100), at_least=6):
        assert path.read_bytes() in (b"old", b"new" * 100), point
        path.write_bytes(b"old")
    assert path.read_bytes() == b"new" * 100
    assert os.listdir(tmp_path) == ["file"], "the last save removes what the killed ones left"


def test_a_new_folder_killed_at_any_system_call_is_absent_or_complete(tmp_path: Path):
    path = tmp_path / "model"
    for point in crash_points(lambda: write_new_folder(path), at_least=10):
        if path.exists():
            verify_manifest(path)
            path.rename(tmp_path / f"done-{point}")
    verify_manifest(path)
    assert not list(tmp_path.glob("model.*"))


def test_a_replaced_folder_killed_at_any_system_call_is_the_old_or_the_new_one(tmp_path: Path, replacing: str):
    path = tmp_path / "model"
    path.mkdir()
    (path / "config").write_bytes(b"old")
    old, new = {"config": b"old"}, None
    for point in crash_points(lambda: write_new_folder(path), at_least=15):
        if replacing == "two renames":
            recover_folder(path)
        found = content(path)
        assert found == old or (found is not None and found["weights"] == b"new" * 1000), point
        if found != old:
            new = found
            verify_manifest(path)
        journal._remove(path)
        path.mkdir()
        (path / "config").write_bytes(b"old")
    assert new is not None
    verify_manifest(path)
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("call", ["fsync", "rename", "mkdir"])
def test_a_full_disk_at_any_call_leaves_the_old_folder_and_nothing_else(tmp_path: Path, monkeypatch, replacing: str, call: str):
    path = tmp_path / "model"
    path.mkdir()
    (path / "config").write_bytes(b"old")
    messages = []
    for number in range(1, 10):
        with failing(monkeypatch, call, number, errno.ENOSPC):
            try:
                write_new_folder(path)
                break
            except SaveError as error:
                messages.append(str(error))
        late = "did not confirm" in messages[-1]  # then the new folder is in its place
        assert late or (content(path) == {"config": b"old"} and os.listdir(tmp_path) == ["model"]), number
    assert messages
    assert all("No space left" in message for message in messages)
    verify_manifest(path)
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT])
def test_a_file_that_cannot_be_written_stays_the_old_one_and_the_error_says_what_to_do(tmp_path: Path, monkeypatch, code: int):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with failing(monkeypatch, "write", 1, code), pytest.raises(SaveError, match=r"untouched; .+\."):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_rename_that_the_disk_does_not_confirm_is_reported(tmp_path: Path, monkeypatch):
    with failing(monkeypatch, "fsync", 2, errno.EIO), pytest.raises(SaveError, match="did not confirm"):
        atomic_write(tmp_path / "file", b"new")


def test_short_writes_are_continued(tmp_path: Path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, bytes(data)[:3]))
    atomic_write(tmp_path / "file", bytes(range(256)))
    assert (tmp_path / "file").read_bytes() == bytes(range(256))
    with Journal(tmp_path / "log") as log:
        log.append({"text": "longer than three bytes"})
        assert list(log) == [{"text": "longer than three bytes"}]


def test_a_file_keeps_its_permissions_and_its_symbolic_link(tmp_path: Path):
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_bytes(b"old")
    real.chmod(0o600)
    link.symlink_to(real)
    atomic_write(link, b"new")
    assert link.is_symlink()
    assert real.read_bytes() == b"new"
    assert real.stat().st_mode & 0o777 == 0o600


def test_an_exception_inside_the_block_leaves_nothing(tmp_path: Path):
    def interrupted() -> None:
        with atomic_folder(tmp_path / "model") as folder:
            (folder / "config").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.listdir(tmp_path) == []


def test_a_folder_with_something_in_it_is_replaced_only_on_request(tmp_path: Path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "diary").write_bytes(b"mine")
    with pytest.raises(SaveError, match="already exists"):
        write_new_folder(tmp_path / "home", existing="refuse")
    assert content(tmp_path / "home") == {"diary": b"mine"}
    (tmp_path / "empty").mkdir()
    write_new_folder(tmp_path / "empty", existing="refuse")
    verify_manifest(tmp_path / "empty")


def test_leftovers_are_removed_only_if_no_writer_holds_them(tmp_path: Path):
    path = tmp_path / "model"
    (tmp_path / "model.tmp-1-w0").mkdir()  # process 1 lives, but it does not hold a lock on this
    (tmp_path / "model.tmp-2026-11").mkdir()  # somebody's own
    with atomic_folder(path) as living:
        write_new_folder(path, existing="refuse")
        assert living.is_dir()
    assert sorted(os.listdir(tmp_path)) == ["model", "model.tmp-2026-11"]


def test_a_missing_parent_folder_is_named(tmp_path: Path):
    with pytest.raises(SaveError, match="create the folder"):
        atomic_write(tmp_path / "nowhere" / "file", b"")


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda folder: (folder / "config").write_bytes(b"nEw"), "config has another sha256"),
        (lambda folder: (folder / "config").write_bytes(b"ne"), "config has 2 bytes instead of 3"),
        (lambda folder: (folder / "config").unlink(), "config is missing"),
        (lambda folder: (folder / "inner" / "extra").write_bytes(b""), "inner/extra is not in the manifest"),
        (lambda folder: (folder / "manifest.json").unlink(), "has no manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text("[1]"), "cannot be read"),
        (lambda folder: ((folder / "config").unlink(), (folder / "config").symlink_to("/nonexistent")), "config is not a regular file"),
    ],
)
def test_a_manifest_names_every_damaged_file(tmp_path: Path, damage: Callable[[Path], object], named: str):
    write_new_folder(tmp_path / "model")
    verify_manifest(tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(CheckpointError, match=named):
        verify_manifest(tmp_path / "model")


RECORDS = [{"id": 1}, "Grüße\n\u2028", [None, 1.5], "\ud800"]


def filled(path: Path) -> bytes:
    with Journal(path) as log:
        for record in RECORDS:
            log.append(record)
    return path.read_bytes()


def test_a_journal_torn_at_any_byte_keeps_every_whole_record(tmp_path: Path):
    data = filled(tmp_path / "log")
    ends = [index + 1 for index, byte in enumerate(data) if byte == ord("\n")]
    for size in range(len(data) + 1):
        torn = tmp_path / "torn"
        torn.write_bytes(data[:size])
        whole = RECORDS[: max(0, sum(end <= size for end in ends) - 1)]  # the first line is the head
        with Journal(torn) as log:
            assert list(log) == whole, size
            log.append("next")
        with Journal(torn) as log:
            assert list(log) == [*whole, "next"], size
            assert log.torn_bytes == 0
        torn.unlink()


def test_a_journal_killed_at_any_system_call_holds_what_append_returned_for(tmp_path: Path):
    path, returned = tmp_path / "log", tmp_path / "returned"

    def append_three() -> None:
        with Journal(path) as log:
            for number in range(3):
                log.append(number)
                returned.write_text(json.dumps(number))

    for point in crash_points(append_three, at_least=8):
        promised = json.loads(returned.read_text()) + 1 if returned.exists() else 0
        with Journal(path) as log:
            assert list(log) in ([0, 1, 2][:promised], [0, 1, 2][: promised + 1]), point
        path.unlink()
        returned.unlink(missing_ok=True)


@pytest.mark.parametrize("flipped", range(0, 60, 7))
def test_damage_before_the_end_is_refused_and_nothing_is_cut(tmp_path: Path, flipped: int):
    data = bytearray(filled(tmp_path / "log"))
    data[flipped] ^= 4
    (tmp_path / "log").write_bytes(data)
    with pytest.raises(DataError, match=r"damaged at byte|not a journal"):
        Journal(tmp_path / "log")
    assert (tmp_path / "log").read_bytes() == data


def test_a_file_that_is_no_journal_is_refused_and_left_alone(tmp_path: Path):
    (tmp_path / "notes").write_bytes(b"dear diary")
    with pytest.raises(DataError, match="not a journal"):
        Journal(tmp_path / "notes")
    assert (tmp_path / "notes").read_bytes() == b"dear diary"


def test_a_second_writer_is_refused_while_the_first_lives(tmp_path: Path):
    with Journal(tmp_path / "log") as first:
        with pytest.raises(Locked, match="another process"):
            Journal(tmp_path / "log")
        first.append(1)
    with Journal(tmp_path / "log") as second:
        assert list(second) == [1]


def test_a_record_that_does_not_fit_is_not_there_and_those_before_are(tmp_path: Path, monkeypatch):
    write = os.write
    with Journal(tmp_path / "log") as log:
        log.append("before")

        def half_then_full(descriptor: int, data: bytes) -> int:
            if len(data) > 5:
                return write(descriptor, bytes(data)[:5])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", half_then_full)
            with pytest.raises(SaveError, match="free some space"):
                log.append("too much")
        log.append("after")
        assert list(log) == ["before", "after"]


def test_a_failed_fsync_is_not_tried_again(tmp_path: Path, monkeypatch):
    with Journal(tmp_path / "log") as log:
        with failing(monkeypatch, "fsync", 1, errno.EIO), pytest.raises(SaveError, match="disk reported an error"):
            log.append(1)
        with pytest.raises(SaveError, match="open it again"):
            log.append(2)


def test_manual_sync_leaves_fsync_to_the_caller(tmp_path: Path, monkeypatch):
    synced: list[int] = []
    with Journal(tmp_path / "log", sync="manual") as log:
        monkeypatch.setattr(os, "fsync", synced.append)
        log.append(1)
        assert not synced
        log.sync()
        assert len(synced) == 1


@pytest.mark.parametrize("record", [float("nan"), object(), b"bytes"])
def test_a_record_that_is_not_json_is_refused(tmp_path: Path, record: object):
    with Journal(tmp_path / "log") as log, pytest.raises(DataError, match="not JSON"):
        log.append(record)


def test_a_closed_journal_takes_nothing(tmp_path: Path):
    log = Journal(tmp_path / "log")
    log.close()
    log.close()
    with pytest.raises(SaveError, match="is closed"):
        log.append(1)


def test_records_are_read_at_the_positions_that_append_and_items_give(tmp_path: Path):
    with Journal(tmp_path / "log") as log:
        positions = [log.append({"n": n, "text": "ä" * n}) for n in range(3)]
        assert list(log.items()) == [(position, log.read(position)) for position in positions]
        assert [log.read(position)["n"] for position in reversed(positions)] == [2, 1, 0]


def test_room_that_was_made_is_no_part_of_the_file_and_is_given_back(tmp_path: Path):
    path = tmp_path / "log"
    with Journal(path) as log:
        log.append("first")
        length = path.stat().st_size
        log.make_room(4 << 20)
        assert path.stat().st_size == length
        assert path.stat().st_blocks * 512 >= 4 << 20 or journal.sys.platform != "linux"
        log.append("second")
    assert path.stat().st_blocks * 512 < 1 << 20
    with Journal(path) as log:
        assert list(log) == ["first", "second"]


def test_room_that_does_not_exist_is_refused_before_anything_is_written(tmp_path: Path):
    with Journal(tmp_path / "log") as log:
        log.append("first")
        with pytest.raises(SaveError):
            log.make_room(1 << 50)
        log.append("second")
        assert list(log) == ["first", "second"]
