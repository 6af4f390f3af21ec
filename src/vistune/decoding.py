"""Untrusted pictures are decoded in processes that have nothing to lose.

    DecodePool.open_image ─media─► header in order, within limits ─► a decoder of its own ─► pixels, checked ─► RGB picture

Decoders of pictures are where a hostile file meets code that is not memory-safe. Reading the source, the header and every limit stays here,
in Python; what goes to `decode_child.py` is the part of the file that draws, and what comes back is bytes, whose number was known before.
Each picture has a process and a shared memory of its own that end with it, so that nothing of one is there when the next comes.

A decoding that crashes, is killed, needs too much memory or too long, or answers nonsense is an ImageError of that picture and of no other.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path

import PIL
from PIL import Image

import vistune
from vistune import media
from vistune.decode_child import ENDED, MAX_TEXT_BYTES, NO_FORK, NO_MEMORY, REASONS, REPLY, Protection, request_of
from vistune.errors import ImageError, OutOfMemory, UsageError
from vistune.image_headers import ImageHeader
from vistune.media import DEFAULT_LIMITS, ImageLimits
from vistune.types import ImageSource

WALL_FACTOR = 5
"""A decoding may take so many times its processor time by the clock, because others want the processor too."""
START_SECONDS = 30.0
_ENVIRONMENT = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""All that a decoder has. Each decoding asks the kernel for its memory anew, and in large pages that takes half the time."""
_CHILD = "import sys; sys.path += sys.argv[4:]; from vistune.decode_child import main; main()"


class DecodePool:
    """Opens pictures as `media.open_image` does (same pixels, same errors), decoding them elsewhere. May be shared by threads.

    >>> with DecodePool() as pool:
    ...     picture = pool.open_image(data)

    Args:
        processes: pictures that are decoded at once; others wait in the order in which they came.
        limits: of pictures, where `open_image` is not given others.
        seconds: of processor time for one picture (rounded up to whole ones). By the clock it may take `WALL_FACTOR` times as long.
        memory_bytes: address space of one decoding besides the picture itself; about 70 MB of it are the interpreter's.

    Raises:
        OutOfMemory: no decoder could be started.
    """

    def __init__(self, processes: int = 2, *, limits: ImageLimits = DEFAULT_LIMITS, seconds: float = 2.0, memory_bytes: int = 512 << 20):
        if processes < 1 or seconds <= 0:
            raise UsageError(f"{processes} processes of {seconds} seconds each decode nothing; at least one and some time are needed.")
        self._limits, self._seconds, self._memory_bytes = limits, seconds, memory_bytes
        self._lock = threading.Lock()
        self._waiting: deque[Future[_Decoder]] = deque()
        self._closed = False
        self.peak_bytes = 0
        """The most memory that a decoding had so far, the interpreter's part included."""
        self._idle: list[_Decoder] = []
        try:
            while len(self._idle) < processes:
                self._idle.append(_Decoder(seconds, memory_bytes))
            self.protections: Protection = min(decoder.protections for decoder in self._idle)
            """What the decoders could give up on this machine."""
        except BaseException:
            self.close()
            raise

    def open_image(self, source: ImageSource, *, limits: ImageLimits | None = None, root: Path | None = None) -> Image.Image:
        """What `media.open_image` gives for the same arguments. Raises ImageError, also with reason `time`, and OutOfMemory."""
        return media.open_image(source, limits=limits or self._limits, root=root, decoder=self._decode)

    def close(self) -> None:
        """Ends the decoders; those at work, after it. Pictures that wait fail. Closing twice does nothing."""
        with self._lock:
            self._closed = True
            waiting, idle = list(self._waiting), list(self._idle)
            self._waiting.clear()
            self._idle.clear()
        for turn in waiting:
            turn.set_exception(_closed())
        for decoder in idle:
            decoder.close()

    def __enter__(self) -> DecodePool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _decode(self, header: ImageHeader) -> Image.Image:
        with self._turn() as decoder:
            try:
                return decoder.decode(header)
            finally:
                self.peak_bytes = max(self.peak_bytes, decoder.peak_bytes)

    @contextmanager
    def _turn(self) -> Iterator[_Decoder]:
        """A decoder that lives, for one picture: the one who came first has the next that is free."""
        decoder = self._taken()
        try:
            if not decoder.alive:
                decoder.close()
                decoder = _Decoder(self._seconds, self._memory_bytes)
            yield decoder
        finally:
            self._put_back(decoder)

    def _taken(self) -> _Decoder:
        with self._lock:
            if self._closed:
                raise _closed()
            if self._idle:
                return self._idle.pop()
            turn: Future[_Decoder] = Future()
            self._waiting.append(turn)
        return turn.result()

    def _put_back(self, decoder: _Decoder) -> None:
        with self._lock:
            closed = self._closed
            if self._waiting:
                self._waiting.popleft().set_result(decoder)
            elif not closed:
                self._idle.append(decoder)
        if closed:
            decoder.close()


class _Decoder:
    """One confined process, used by one thread at a time."""

    def __init__(self, seconds: float, memory_bytes: int):
        self._seconds = math.ceil(seconds * WALL_FACTOR)
        self._protections: Protection | None = None
        self.peak_bytes = 0
        self._control, theirs = socket.socketpair()
        numbers = (memory_bytes, math.ceil(seconds), self._seconds)
        homes = dict.fromkeys(str(Path(str(package.__file__)).resolve().parents[1]) for package in (vistune, PIL))
        with theirs:
            try:
                # A program of its own, not a fork: this process has torch and threads. In a session of its own, so that Ctrl-C in a
                # terminal is the server's business, and so that one signal ends the decoder with what it forked.
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", _CHILD, *map(str, numbers), *homes],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=_ENVIRONMENT,
                    cwd="/",
                    start_new_session=True,
                )
            except OSError as error:
                self._control.close()
                raise OutOfMemory(f"No process for decoding pictures can be started ({error.strerror}).") from error

    @property
    def protections(self) -> Protection:
        """What it could give up; waits until it is ready. Raises OutOfMemory if that never comes."""
        if self._protections is None:
            self._control.settimeout(START_SECONDS)
            try:
                first = self._control.recv(1)
            except OSError:
                first = b""
            if not first:
                self.close()
                raise OutOfMemory(
                    f"The process for decoding pictures ended with status {self._process.returncode} before it was ready. It needs Pillow "
                    "and memory; `vistune doctor` says more."
                )
            self._protections = Protection(first[0])
        return self._protections

    @property
    def alive(self) -> bool:
        return self._control.fileno() >= 0 and self._process.poll() is None

    def decode(self, header: ImageHeader) -> Image.Image:
        """The picture, by a process of its own. Unless that ended in good order, so does this decoder."""
        assert self.protections is not None  # it is ready
        request = request_of(header)
        width, height = header.upright_size
        try:
            with _shared_memory(len(request) + REPLY.size + max(3 * width * height, MAX_TEXT_BYTES)) as (descriptor, memory):
                memory[: len(request)] = request
                status = self._run(descriptor)
                if status == 0:
                    return _picture(memory, len(request), header)
        except (MemoryError, OSError) as error:  # ours: the picture does not fit beside the others
            raise ImageError("memory", NO_MEMORY) from error
        if status == NO_FORK:
            raise ImageError("memory", NO_MEMORY)
        if status in (-signal.SIGXCPU, _LATE):
            raise ImageError("time", "decoding it takes too long; save it again with an image editor")
        raise _died(header)

    def _run(self, descriptor: int) -> int:
        """How a decoding of this memory ended, which it has then; `_LATE` or `_GONE` if the decoder had to be killed, or was."""
        try:
            self._control.settimeout(self._seconds)
            socket.send_fds(self._control, [b"\0"], [descriptor])
            told = self._control.recv(ENDED.size, socket.MSG_WAITALL)
            status, self.peak_bytes = ENDED.unpack(told)
        except TimeoutError:
            self._kill()
            return _LATE
        except (OSError, struct.error):
            self._kill()
            return _GONE
        return status

    def _kill(self) -> None:
        """Ends it with what it forked, and waits until it is no more."""
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._control.close()

    def close(self) -> None:
        """Ends it; one that is not idle is killed."""
        self._control.close()
        try:
            self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            self._kill()


_LATE, _GONE = 1000, 1001  # no exit status


@contextmanager
def _shared_memory(count: int) -> Iterator[tuple[int, memoryview]]:
    """Zeros that another process may write to, and their descriptor. They cannot be made fewer while they are read here."""
    if sys.platform == "linux":
        descriptor = os.memfd_create("picture", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        os.ftruncate(descriptor, count)
        if sys.platform == "linux":
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        with mmap.mmap(descriptor, count) as mapped, memoryview(mapped) as memory:
            yield descriptor, memory
    finally:
        os.close(descriptor)


def _picture(memory: memoryview, reply_at: int, header: ImageHeader) -> Image.Image:
    """The picture that was written, if it has the size that its header promised. Raises what refused it."""
    kind, first, second = REPLY.unpack_from(memory, reply_at)
    content_at, size = reply_at + REPLY.size, header.upright_size
    if kind == 1 and (first, second) == size:
        with memory[content_at : content_at + 3 * first * second] as pixels:
            return Image.frombytes("RGB", size, pixels)  # type: ignore[arg-type]  (any buffer will do)
    if 2 <= kind < 2 + len(REASONS) and first <= MAX_TEXT_BYTES and second == 0:
        text = bytes(memory[content_at : content_at + first]).decode(errors="replace")
        raise ImageError(REASONS[kind - 2], text if text and text.isprintable() else "it cannot be decoded")
    raise _died(header)


def _died(header: ImageHeader) -> ImageError:
    return ImageError("broken", f"the {header.format} cannot be decoded (its decoder broke down); get a complete copy of it")


def _closed() -> UsageError:
    return UsageError("The decoders were closed while a picture waited; ask again.")
