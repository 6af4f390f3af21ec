"""Untrusted pictures are decoded in processes that have nothing to lose.

    DecodePool.open_image ─media─► header in order, within limits ─► a decoder of its own ─► pixels, checked ─► RGB picture

Decoders of pictures are where a hostile file meets code that is not memory-safe. Reading the source, the header and every limit stays here,
in Python; what goes to `decode_child.py` is the part of the file that draws, and what comes back is bytes, whose number was known before.
Each picture has a process of its own that ends with it, so that nothing of one is there when the next comes.

A decoding that crashes, is killed, needs too much memory or too long, or answers nonsense is an ImageError of that picture and of no other.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path

import PIL
from PIL import Image

import vistune
from vistune import media
from vistune.decode_child import ENDED, MAX_TEXT_BYTES, NO_FORK, REASONS, REPLY, Protection, request_of, strips
from vistune.errors import ImageError, OutOfMemory, UsageError
from vistune.image_headers import ImageHeader
from vistune.media import DEFAULT_LIMITS, ImageLimits
from vistune.types import ImageSource

WALL_FACTOR = 4
"""A decoding may take so many times its processor time by the clock, because others want the processor too."""
START_SECONDS = 30.0
_CHILD = "import sys; sys.path += sys.argv[4:]; from vistune.decode_child import main; main()"


class DecodePool:
    """Opens pictures as `media.open_image` does (same pixels, same errors), decoding them elsewhere. May be shared by threads.

    >>> with DecodePool() as pool:
    ...     picture = pool.open_image(data)

    Args:
        processes: pictures that are decoded at once; others wait in the order in which they came.
        limits: of pictures, where `open_image` is not given others.
        seconds: of processor time for one picture (rounded up to whole ones). By the clock it may take `WALL_FACTOR` times as long.
        memory_bytes: address space of one decoding, about 70 MB of which the interpreter has.

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
                    env={},
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
        deadline = time.monotonic() + self._seconds
        picture: Image.Image | None = None
        refused: ImageError | None = None
        try:
            with _request_line(self._control) as line:
                line.settimeout(self._seconds)
                line.sendall(request_of(header))
                picture = _reply(line, header.upright_size, deadline)
        except ImageError as error:
            refused = error
        except TimeoutError:
            self._kill()
            raise _took_too_long() from None
        except MemoryError:  # ours: the picture does not fit beside the others
            self._kill()
            raise _needs_too_much() from None
        except _NonsenseError:
            self._kill()
            raise _died(header) from None
        except OSError:
            pass  # it broke off; how it ended says why
        status = self._ended(deadline)
        if status == NO_FORK:
            raise _needs_too_much()
        if status == -signal.SIGXCPU or status == _LATE:
            raise _took_too_long()
        if status != 0 or (picture is None and refused is None):
            raise _died(header)
        if refused is not None:
            raise refused
        assert picture is not None
        return picture

    def _ended(self, deadline: float) -> int:
        """How the decoding ended, which it has then; `_LATE` or `_GONE` if the decoder had to be killed or was."""
        try:
            status, peak = ENDED.unpack(_received(self._control, ENDED.size, deadline))
        except TimeoutError:
            self._kill()
            return _LATE
        except (_NonsenseError, OSError):
            self._kill()
            return _GONE
        self.peak_bytes = peak
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


class _NonsenseError(Exception):
    """A reply that is none."""


@contextmanager
def _request_line(control: socket.socket) -> Iterator[socket.socket]:
    """Our end of a new line whose other end only the next decoding has."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            socket.send_fds(control, [b"\0"], [theirs.fileno()])
        yield ours


def _reply(line: socket.socket, size: tuple[int, int], deadline: float) -> Image.Image:
    """The picture that was sent back, if it has the size that its header promised and not a byte more or less. Raises what refused it."""
    kind, first, second = REPLY.unpack(_received(line, REPLY.size, deadline))
    if kind == 0 and (first, second) == size:
        picture = Image.new("RGB", size)
        for top, rows in strips(size):
            strip = _received(line, 3 * size[0] * rows, deadline)
            picture.paste(Image.frombytes("RGB", (size[0], rows), strip), (0, top))
        _check_end(line, deadline)
        return picture
    if 1 <= kind <= len(REASONS) and first <= MAX_TEXT_BYTES and second == 0:
        text = _received(line, first, deadline).decode(errors="replace")
        _check_end(line, deadline)
        raise ImageError(REASONS[kind - 1], text if text and text.isprintable() else "it cannot be decoded")
    raise _NonsenseError


def _check_end(line: socket.socket, deadline: float) -> None:
    line.settimeout(max(deadline - time.monotonic(), 0.001))
    if line.recv(1):
        raise _NonsenseError


def _received(line: socket.socket, count: int, deadline: float) -> bytearray:
    """Exactly so many bytes. Raises TimeoutError, and ConnectionError if they do not come."""
    data = bytearray(count)
    view = memoryview(data)
    while view:
        line.settimeout(max(deadline - time.monotonic(), 0.001))
        got = line.recv_into(view)
        if not got:
            raise ConnectionError
        view = view[got:]
    return data


def _took_too_long() -> ImageError:
    return ImageError("time", "decoding it takes too long; save it again with an image editor")


def _needs_too_much() -> ImageError:
    return ImageError("memory", "there is not enough memory to decode it; scale it down")


def _died(header: ImageHeader) -> ImageError:
    return ImageError("broken", f"the {header.format} cannot be decoded (its decoder broke down); get a complete copy of it")


def _closed() -> UsageError:
    return UsageError("The decoders were closed while a picture waited; ask again.")
