"""One checkpoint, every call of the system that it makes: killed there, refused there, and all that a power cut may leave of it.

T3, T9 and T10 by strace, which also sees what compiled code writes, and T19: kill -9 leaves the page cache alive and so says nothing about
power cuts; here the calls of a save are recorded, and every state of the disk is built in which what was not yet fsynced is lost, cut or
out of order.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.faults.tiny_training import at_the_second_save, config_for, ended, in_child, leftovers, spawn, state_of, state_on_disk

from vistune.errors import SaveError
from vistune.train.keep import Keeper

CHANGES = (
    "openat,write,pwrite64,writev,pwritev,fsync,fdatasync,ftruncate,rename,renameat,renameat2,"
    "unlink,unlinkat,mkdir,mkdirat,rmdir,link,symlink,sendfile,copy_file_range"
)

pytestmark = [
    pytest.mark.usefixtures("tiny_start"),
    pytest.mark.nightly,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed"),
]


def under_strace(action: Callable[[], object], log: Path, *options: str) -> int:
    """Runs `action` in a fork, under strace from its first statement on."""

    def stopped() -> None:
        os.kill(os.getpid(), signal.SIGSTOP)
        action()

    pid = spawn(stopped)
    os.waitpid(pid, os.WUNTRACED)
    command = ["strace", "-qq", "-f", "-y", "-s", "0", "-p", str(pid), "-o", str(log), "-e", f"trace={CHANGES}", *options]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while "TracerPid:\t0\n" in Path(f"/proc/{pid}/status").read_text():
        if tracer.poll() is not None or time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
            ended(pid)
            pytest.skip(f"strace may not attach here: {tracer.communicate()[1]}")
        time.sleep(0.001)
    os.kill(pid, signal.SIGCONT)
    code = ended(pid)
    tracer.communicate()
    return code


@dataclass(frozen=True)
class Call:
    """One system call on something below the run's folder."""

    name: str
    number: int
    """Which call of this name it is: strace counts each name by itself."""
    paths: tuple[str, ...]
    arguments: str
    result: int


_LINE = re.compile(r"^\d+ +(\w+)\((.*)\) += (-?\d+)")


def calls_of(log: Path, below: Path) -> list[Call]:
    numbers: Counter[str] = Counter()
    calls = []
    for line in log.read_text().splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        name, arguments, result = match[1], match[2], int(match[3])
        numbers[name] += 1
        paths = tuple(path for path in _paths(arguments) if path.startswith(str(below)))
        reads = name == "openat" and not re.search("O_WRONLY|O_RDWR|O_CREAT", arguments)
        if paths and not reads:
            calls.append(Call(name, numbers[name], paths, arguments, result))
    return calls


def _paths(arguments: str) -> Iterator[str]:
    """The paths among a call's arguments, whether they are spelled out, come with a descriptor, or are relative to one."""
    for descriptor, name in re.findall(r"(?:[\w]+<([^>]*)>)?(?:, )?(?:\"([^\"]*)\")?", arguments):
        if name:
            yield name if name.startswith("/") else f"{descriptor}/{name}"
        elif descriptor:
            yield descriptor


def at_every_call(folder: Path, fault: str, judge: Callable[[Keeper, Call, int, str, str], str], title: str) -> None:
    """Saves once under strace to see which calls there are, and then once for each call with a fault at it."""
    config = config_for(folder)

    def everywhere(keeper: Keeper, old: str, new: str) -> None:
        log, target = folder / "strace.log", keeper.checkpoints / f"step-{keeper.progress.step:08d}"
        assert under_strace(keeper.save, log) == 0
        calls = [call for call in calls_of(log, keeper.checkpoints) if _can_meet(fault, call.name)]
        assert len(calls) >= 3, log.read_text()
        found: Counter[str] = Counter()
        for call in calls:
            shutil.rmtree(target, ignore_errors=True)

            def save() -> None:
                os._exit(0 if keeper.save() else SaveError.exit_code)

            code = under_strace(save, log, "-e", f"inject={call.name}:{fault}:when={call.number}")
            found[judge(keeper, call, code, old, new)] += 1
        assert in_child(keeper.save) == 0
        assert state_on_disk(keeper) == new
        assert not leftovers(config)
        print(f"{title} at each of {len(calls)} calls of a save: {dict(found)}")

    assert at_the_second_save(config, everywhere) == 130


def _can_meet(fault: str, name: str) -> bool:
    writes = ("write", "pwrite64", "writev", "pwritev")
    if fault.startswith("retval"):
        return name in writes
    return "ENOSPC" not in fault or name in (*writes, "openat", "mkdir", "mkdirat", "rename", "renameat", "renameat2", "fsync")


def test_t3_a_save_killed_at_any_call_leaves_the_old_state_or_the_new(tmp_path: Path):
    def judge(keeper: Keeper, call: Call, code: int, old: str, new: str) -> str:
        assert code == -signal.SIGKILL, call
        state = state_on_disk(keeper)
        assert state in (old, new), call
        return "old state" if state == old else "new state"

    at_every_call(tmp_path, "signal=KILL", judge, "T3: killed")


@pytest.mark.parametrize("fault", ["error=ENOSPC", "error=EIO"])
def test_t9_t10_a_save_refused_at_any_call_is_reported_failed_or_whole(tmp_path: Path, fault: str):
    def judge(keeper: Keeper, call: Call, code: int, old: str, new: str) -> str:
        state = state_on_disk(keeper)
        assert (code, state) in ((0, new), (SaveError.exit_code, old), (SaveError.exit_code, new)), (call, code)
        return "saved" if code == 0 else "reported failed"

    at_every_call(tmp_path, fault, judge, f"T9/T10: {fault}")


def test_t10_a_write_that_takes_one_byte_is_repeated_or_reported(tmp_path: Path):
    """strace's short write lies: it says 1 and writes nothing. A file with a hole must not be called saved as if it were whole."""

    def judge(keeper: Keeper, call: Call, code: int, old: str, new: str) -> str:
        state = state_on_disk(keeper)
        assert state in (old, new), call
        return "saved whole" if (code, state) == (0, new) else "reported failed" if code else "called saved, noticed when read"

    at_every_call(tmp_path, "retval=1", judge, "T10: short write")


# --- T19 -------------------------------------------------------------------------------------------------------------------------------


@dataclass
class File:
    """An inode: what was written to it, and how much of that is known to be on the disk."""

    written: int = 0
    durable: int = 0


@dataclass
class Disk:
    """The folder of checkpoints as a tree of names; files that were there before are kept by their path."""

    names: dict[str, File | str | None] = field(default_factory=dict)
    """File: made by the save. str: a file from before, by where its bytes are. None: a folder."""


@dataclass(frozen=True)
class Entry:
    """A change of names, and when (by number of the call) the folder that it stands in was fsynced after it."""

    at: int
    act: str  # create, mkdir, rename, exchange, remove
    one: str
    other: str = ""


def replay(calls: list[Call]) -> tuple[list[Entry], list[tuple[int, str, str, int]]]:
    """Changes of names, and (number, what, path, bytes) for writes and fsyncs, in order."""
    entries: list[Entry] = []
    data: list[tuple[int, str, str, int]] = []
    for number, call in enumerate(calls):
        if call.result < 0:
            continue
        path = call.paths[0]
        if call.name == "openat" and "O_CREAT" in call.arguments:
            entries.append(Entry(number, "create", path))
            if "O_TRUNC" in call.arguments:
                data.append((number, "cut", path, 0))
        elif call.name in ("write", "pwrite64", "writev", "pwritev"):
            data.append((number, "write", path, call.result))
        elif call.name in ("fsync", "fdatasync"):
            data.append((number, "fsync", path, 0))
        elif call.name in ("mkdir", "mkdirat"):
            entries.append(Entry(number, "mkdir", path))
        elif call.name in ("rename", "renameat", "renameat2"):
            entries.append(Entry(number, "exchange" if "EXCHANGE" in call.arguments else "rename", path, call.paths[-1]))
        elif call.name in ("unlink", "unlinkat", "rmdir"):
            entries.append(Entry(number, "remove", path))
        elif call.name != "openat":
            raise AssertionError(f"the replay does not know {call}")
    return entries, data


def parent(path: str) -> str:
    return path.rpartition("/")[0]


def moved(path: str, one: str, other: str) -> str:
    return other + path[len(one) :] if path == one or path.startswith(f"{one}/") else path


def disk_after(before: Disk, chosen: list[Entry], sizes: dict[str, int]) -> dict[str, int | str | None]:
    """The tree that is found after a crash: for each path how many of its bytes are there, where its old bytes are, or None (a folder).

    Args:
        sizes: bytes on the disk of each file that was made, by the path under which it was made.
    """
    names: dict[str, tuple[str, File | str | None]] = {path: (path, node) for path, node in before.names.items()}
    for entry in chosen:
        if entry.act in ("create", "mkdir"):
            if parent(entry.one) in names:
                names.setdefault(entry.one, (entry.one, None if entry.act == "mkdir" else File()))
        elif entry.act == "remove":
            for path in [path for path in names if path == entry.one or path.startswith(f"{entry.one}/")]:
                del names[path]
        elif entry.act == "rename" and entry.one in names:
            inside = {path: names.pop(path) for path in list(names) if path == entry.one or path.startswith(f"{entry.one}/")}
            for path in [path for path in names if path == entry.other or path.startswith(f"{entry.other}/")]:
                del names[path]
            names |= {moved(path, entry.one, entry.other): node for path, node in inside.items()}
        elif entry.act == "exchange" and entry.one in names and entry.other in names:
            names = {
                moved(path, entry.one, entry.other)
                if moved(path, entry.one, entry.other) != path
                else moved(path, entry.other, entry.one): node
                for path, node in names.items()
            }
    return {path: sizes.get(made, 0) if isinstance(node, File) else node for path, (made, node) in names.items()}


def crash_states(before: Disk, calls: list[Call]) -> Iterator[tuple[str, dict[str, int | str | None]]]:
    """Every state that a power cut may leave: at each moment what is fsynced, and of the rest all, nothing, all but one thing, or one."""
    entries, data = replay(calls)
    for moment in range(len(calls) + 1):
        done = [entry for entry in entries if entry.at < moment]
        fsynced = {path: number for number, what, path, _ in data if what == "fsync" and number < moment}

        def holds(entry: Entry, fsynced: dict[str, int] = fsynced) -> bool:
            folder = parent(entry.other or entry.one)
            return fsynced.get(folder, -1) > entry.at

        pending = [entry for entry in done if not holds(entry)]
        written: dict[str, list[int]] = {}  # bytes written, bytes fsynced
        for number, what, path, size in data:
            if number >= moment:
                break
            sizes = written.setdefault(path, [0, 0])
            if what == "cut":
                written[path] = [0, 0]
            elif what == "write":
                sizes[0] += size
            else:
                sizes[1] = sizes[0]
        subsets: list[tuple[str, list[Entry]]] = [("nothing", []), ("all", pending)]
        for lone in pending:
            subsets += [(f"all but {lone}", [each for each in pending if each is not lone]), (f"only {lone}", [lone])]
        for told, kept in subsets:
            chosen = [entry for entry in done if entry in kept or holds(entry)]
            for share in (0.0, 0.5, 1.0):
                sizes_now = {path: durable + int(share * (all_ - durable)) for path, (all_, durable) in written.items()}
                yield f"after call {moment}, of the names {told}, of the bytes {share}", disk_after(before, chosen, sizes_now)


def test_t19_whatever_a_power_cut_leaves_is_the_old_state_or_the_new(tmp_path: Path):
    config = config_for(tmp_path)

    def cut_everywhere(keeper: Keeper, oldest: str, old: str) -> None:
        # The third save also removes the first checkpoint.
        keeper.save()
        keeper.progress.step += 1
        new = state_of(keeper)
        root, log = keeper.checkpoints, tmp_path / "strace.log"
        kept = tmp_path / "kept"
        shutil.copytree(root, kept)
        before = Disk({str(root): None})
        before.names |= {str(root / path.relative_to(kept)): None if path.is_dir() else str(path) for path in sorted(kept.rglob("*"))}
        assert under_strace(keeper.save, log) == 0
        calls = calls_of(log, root)
        final = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
        made = [call.paths[0] for call in calls if call.name == "openat" and "O_CREAT" in call.arguments]
        folder = re.compile(re.escape(str(root)) + r"/(step-\d{8})\.tmp-[^/]*")
        bytes_of = {path: final.get(Path(folder.sub(rf"{root}/\1", path)), b"") for path in made}
        assert sum(map(len, bytes_of.values())) > 10_000
        seen: dict[str, str] = {}
        found: Counter[str] = Counter()
        states = 0
        for told, tree in crash_states(before, calls):
            states += 1
            key = hashlib.sha256(repr(sorted(tree.items())).encode()).hexdigest()
            if key not in seen:
                place = tmp_path / "state"
                shutil.rmtree(place, ignore_errors=True)
                build(place, root, tree, bytes_of, folder)
                keeper.checkpoints = place
                assert keeper.take_up(True), told
                seen[key] = state_of(keeper)
                assert seen[key] in (old, new), told
            found["old" if seen[key] == old else "new"] += 1
        assert set(found) == {"old", "new"}
        print(f"T19: {states} crash states of {len(calls)} calls, {len(seen)} different: {found['old']} old, {found['new']} new, 0 lost")

    assert at_the_second_save(config, cut_everywhere) == 130


def build(place: Path, root: Path, tree: dict[str, int | str | None], bytes_of: dict[str, bytes], folder: re.Pattern[str]) -> None:
    """Lays a tree out below `place`, which stands for `root`."""
    content = {folder.sub(rf"{root}/\1", path): data for path, data in bytes_of.items()}
    for path, node in sorted(tree.items()):
        target = place / Path(path).relative_to(root)
        if node is None:
            target.mkdir(parents=True, exist_ok=True)
        elif isinstance(node, str):
            shutil.copy(node, target)
        else:
            target.write_bytes(content.get(folder.sub(rf"{root}/\1", path), b"")[:node])
