"""A server over a tiny random model, in a process of its own as `vistune serve` is one, and what can be seen of it from outside.

    with tiny_server(Options(max_queue=4)) as server:
        server.post(ask()); server.state().running; server.memory()

At its end everything that it answered with an error and everything that it logged is searched for what may never stand there.

    python -m tests.faults.tiny_server JSON     the server itself; a line on its input asks for a line of its state, or breaks it
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from tests.serve.live import Served, until

MIB = 1 << 20
CANARY = "sk-canary-0123456789abcdef"
"""A key, and whatever else must not come back: it stands in headers, queries and bodies of the tests."""
STARTED = "--- listening ---"
PATIENCE = 300.0
"""Seconds that something may take which does not depend on how fast the machine is."""


@dataclass(frozen=True)
class Options:
    """How the server behaves. `step_seconds` are added to every forward pass, so that replies last as long as a test needs."""

    step_seconds: float = 0.0
    keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] | None = ("127.0.0.1", "localhost", "[::1]")
    max_running: int = 16
    max_queue: int = 64
    max_tokens: int = 600
    body_bytes: int = 4 * MIB
    kv_bytes: int = 64 * MIB
    grace: float = 60.0
    port: int = 0
    longest_step: float = 120.0
    """After how many seconds a step counts as stuck."""


@dataclass(frozen=True)
class State:
    """What the engine holds. Kept prefixes are the cache, and meant to stay; `sequences` are those and the running ones."""

    running: int
    waiting: int
    steps: int
    completion_tokens: int
    kv_bytes_used: int
    kept_prefixes: int
    sequences: int

    @property
    def idle(self) -> bool:
        """Nothing runs, nothing waits, and nothing is held but what is kept."""
        return not self.running and not self.waiting and self.sequences == self.kept_prefixes


@dataclass(frozen=True)
class Weight:
    """Resident memory in MiB, and how many objects Python's collector knows."""

    memory: float
    objects: int


@dataclass(frozen=True)
class TinyServer(Served):
    """A running one. `refusals` are the bodies of all its errors that `note` was told of."""

    child: subprocess.Popen[str]
    log: Path
    refusals: set[str] = field(default_factory=set)
    lock: Any = field(default_factory=threading.Lock)

    def post(self, body: Any = None, **options: Any) -> Any:
        return self.note(super().post(body, **options))

    def get(self, path: str, **options: Any) -> Any:
        return self.note(super().get(path, **options))

    def note(self, response: Any) -> Any:
        if response.status_code >= 400:
            self.refusals.add(response.text)
        return response

    def state(self) -> State:
        return State(**self._asked("state"))

    def weighed(self) -> Weight:
        """What it holds after everything was given back that can be: what is left of growth then is no hole in the heap."""
        objects = self._asked("weigh")["objects"]
        return Weight(self.memory(), objects)

    def _asked(self, line: str) -> dict[str, int]:
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        with self.lock:
            self.child.stdin.write(f"{line}\n")
            self.child.stdin.flush()
            return json.loads(self.child.stdout.readline())

    def break_engine(self, how: Literal["die", "stick", "fail", "mend"]) -> None:
        """From the next step on the engine's thread ends, hangs, or fails at every step; `mend` undoes the last."""
        assert self.child.stdin is not None
        with self.lock:
            self.child.stdin.write(f"{how}\n")
            self.child.stdin.flush()

    def admitted(self) -> int:
        """Requests in the house, as the server itself counts them."""
        return self.get("/health/ready").json()["admitted"]

    def settled(self) -> None:
        """Waits until all work has stopped."""
        until(lambda: self.state().idle, seconds=PATIENCE)
        until(lambda: self.admitted() == 0, seconds=PATIENCE)

    def alive(self) -> bool:
        return self.child.poll() is None and self.get("/health/live").status_code == 200

    def memory(self) -> float:
        """Resident memory in MiB."""
        return int(_proc(self.child.pid, "statm").split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.child.pid}/fd"))

    def threads(self) -> int:
        return len(os.listdir(f"/proc/{self.child.pid}/task"))

    def cpu_seconds(self) -> float:
        fields = _proc(self.child.pid, "stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def files_written(self) -> list[str]:
        """Regular files that it has open and that are not its own log."""
        folder = Path(f"/proc/{self.child.pid}/fd")
        targets = []
        for link in folder.iterdir():
            with suppress(FileNotFoundError):  # closed between the listing and the reading
                targets.append(os.readlink(link))
        return [target for target in targets if target.startswith("/") and Path(target).is_file() and Path(target) != self.log]

    def logged(self) -> list[str]:
        """What it said since it listens; what libraries say while they are imported is not ours."""
        return self.log.read_text(encoding="utf-8").partition(STARTED + "\n")[2].splitlines()

    def end(self, number: int = signal.SIGTERM) -> int:
        self.child.send_signal(number)
        return self.child.wait(timeout=PATIENCE)


def _proc(number: int, name: str) -> str:
    return Path(f"/proc/{number}/{name}").read_text()


@contextmanager
def tiny_server(options: Options | None = None) -> Iterator[TinyServer]:
    """Starts one, and ends it. What it said must be clean."""
    with TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("w") as errors:
            child = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.tiny_server", json.dumps(asdict(options or Options()))],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True,
                cwd=Path(__file__).parents[2],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        try:
            assert child.stdout is not None
            address = child.stdout.readline().strip().removesuffix("/v1")
            assert address, log.read_text()[-2000:]
            server = TinyServer(address, int(address.rpartition(":")[2]), child, log)
            yield server
            assert_clean(server)
        finally:
            child.kill()
            child.communicate()


# --- what may never stand in an answer or a log -------------------------------------------------------------------------------------------

SECRET = re.compile(rf"canary|{re.escape(CANARY[:9])}", re.IGNORECASE)
ADDRESS = re.compile(r"0x[0-9a-fA-F]{6,}| object at ")
FILE = re.compile(r"(?<![\w:/])/(?:home|usr|opt|tmp|etc|proc|var|root|lib|site-packages)/|site-packages|\b\w+\.py\b|[A-Z]:\\\\")
CLASS = re.compile(r"\b(?:[A-Z]\w+(?:Error|Exception|Warning)|Traceback|vistune\.\w+\.\w+|pydantic|starlette|uvicorn|PIL|torch)\b")
SHAPE = {"message", "type", "param", "code"}


def faults_of_an_answer(text: str) -> list[str]:
    """What an error's body says that it must not, in words."""
    found = [f"{name}: {match.group()!r}" for name, match in _searched(text, secret=SECRET, address=ADDRESS, file=FILE, cls=CLASS)]
    try:
        error = json.loads(text)["error"]
    except (ValueError, TypeError, KeyError):
        return [*found, f"not OpenAI's shape: {text[:80]!r}"]
    return found + ([] if set(error) == SHAPE else [f"not OpenAI's fields: {sorted(error)}"])


def faults_of_a_log_line(text: str) -> list[str]:
    found = [f"{name}: {match.group()!r}" for name, match in _searched(text, secret=SECRET, address=ADDRESS, file=FILE)]
    try:
        is_entry = isinstance(json.loads(text), dict)
    except ValueError:
        is_entry = False
    return found if is_entry else [*found, f"no JSON object: {text[:120]!r}"]


def _searched(text: str, **patterns: re.Pattern[str]) -> list[tuple[str, re.Match[str]]]:
    return [(name, match) for name, pattern in patterns.items() if (match := pattern.search(text))]


def assert_clean(server: TinyServer) -> None:
    """Nothing forbidden in any error that was noted, nor in any line of the log."""
    assert [fault for body in server.refusals for fault in faults_of_an_answer(body)] == []
    assert [fault for line in server.logged() for fault in faults_of_a_log_line(line)] == []


# --- the process itself -------------------------------------------------------------------------------------------------------------------


def _given_back() -> int:
    """Has Python and the heap give back what they can, and returns how many objects are left."""
    gc.collect()
    count = len(gc.get_objects())  # before the heap is trimmed: the list of them is megabytes itself
    ctypes.CDLL(None).malloc_trim(0)
    return count


def main(settings: str) -> None:
    read: dict[str, Any] = json.loads(settings)
    options = Options(**read | {"keys": tuple(read["keys"]), "hosts": read["hosts"] and tuple(read["hosts"])})

    from tests.engine.conftest import byte_tokenizer, tiny_config, tiny_model

    from vistune.engine import engine as engines
    from vistune.engine.engine import Engine
    from vistune.model.llava import Llava
    from vistune.model.processor import Processor
    from vistune.serve import server as serving
    from vistune.serve.api import Settings
    from vistune.serve.keys import ApiKeys
    from vistune.serve.schemas import RequestLimits

    tokenizer = byte_tokenizer()
    processor = Processor(tokenizer, tiny_config(tokenizer))
    forward = Llava.hidden_states

    def slowed(self: Llava, *arguments: Any, **named: Any) -> Any:
        time.sleep(options.step_seconds)
        return forward(self, *arguments, **named)

    engines.LONGEST_STEP = options.longest_step
    if options.step_seconds:
        Llava.hidden_states = slowed  # type: ignore[method-assign]

    with Engine(tiny_model(processor), processor, max_sequences=options.max_running, kv_bytes=options.kv_bytes) as engine:
        scheduler = engine._worker._scheduler

        step = scheduler.step
        broken: dict[str, Callable[[], None]] = {"die": sys.exit, "stick": lambda: time.sleep(3600), "fail": lambda: [][0], "mend": step}

        def tell() -> None:
            for line in sys.stdin:
                if line.strip() in broken:
                    scheduler.step = broken[line.strip()]
                    continue
                if line.strip() == "weigh":
                    print(json.dumps({"objects": _given_back()}), flush=True)
                    continue
                counted = engine.counters()
                said = {name: getattr(counted, name) for name in State.__dataclass_fields__ if name != "sequences"}
                print(json.dumps(said | {"sequences": len(scheduler.arena)}), flush=True)

        def announce(address: str) -> None:
            print(STARTED, file=sys.stderr, flush=True)
            print(address, flush=True)
            threading.Thread(target=tell, daemon=True).start()

        serving.serve(
            {"tiny": engine},
            Settings(
                keys=ApiKeys(options.keys),
                hosts=options.hosts and frozenset(options.hosts),
                limits=RequestLimits(body_bytes=options.body_bytes, max_tokens=options.max_tokens, default_tokens=8),
                max_running=options.max_running,
                max_queue=options.max_queue,
            ),
            host="127.0.0.1",
            port=options.port,
            grace_seconds=options.grace,
            announce=announce,
        )


if __name__ == "__main__":
    main(sys.argv[1])
