"""The process in which untrusted pictures are decoded. Started by `decoding.py`, which takes only the layout of the memory from here.

    server ─shared memory for one picture─► decoder ─fork─► one decoding: reads the request, writes the pixels, exits

The decoder itself never looks at a picture: it takes descriptors of shared memory from its standard input, makes a child for each, and says
how that ended. Such a *decoding* has all that a picture needs already imported, that memory, no descriptor, a fixed amount of memory and
processor time, and a filter of system calls that leaves getting memory and exiting. Whatever a picture does to it, the next has another.

    python -I -S -c "...; main()" MEMORY_BYTES CPU_SECONDS SECONDS PATH ...      (the paths hold vistune and Pillow)

Linux gives all of this; elsewhere on POSIX the steps that do not exist are left out, and `Protection` says which are in force.
"""

from __future__ import annotations

import ctypes
import gc
import io
import mmap
import os
import platform
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from enum import IntFlag
from functools import cache

from PIL import Image, ImageCms

from vistune import media
from vistune.errors import ImageError
from vistune.image_headers import Format, ImageHeader

STRIP_BYTES = 3 << 20
REASONS = ("broken", "truncated", "memory")
"""What `media.decode` refuses a picture for; a reply names one by its place here."""
REQUEST = struct.Struct("<4s 2I 4i 3B 3H 2I")
"""Format, size, area, orientation, bit depth, number of transparent samples, these, bytes of profile and drawing, which follow."""
REPLY = struct.Struct("<B 2I")
"""Behind the request. 1, width, height and rows of RGB; or 2 + place of the reason, bytes of the text, 0 and the text in UTF-8."""
ENDED = struct.Struct("<i Q")
"""How a decoding ended (exit status, or minus a signal) and the most memory it had, in bytes."""
NO_FORK = 255
"""In place of an exit status: the system was short of memory or processes."""
NO_MEMORY = "there is not enough memory to decode it; scale it down"
MAX_TEXT_BYTES = 500


class Protection(IntFlag):
    """What a decoder could give up; the value is the first byte it sends."""

    limits = 1
    """Memory, processor time, files (none can be opened, none written), processes (but for root) and core dumps."""
    privileges = 2
    """No capability, none to be had from any program, and no tracing of one another."""
    namespaces = 4
    """A user and network of its own: no interface is up, and being root means nothing outside."""
    system_calls = 8
    """A decoding can get memory and exit."""


# The memory -----------------------------------------------------------------------------------------------------------------------------


def request_of(header: ImageHeader) -> bytes:
    transparent, icc = header.transparent or (), header.icc or b""
    samples = (*transparent, 0, 0, 0)[:3]
    fixed = REQUEST.pack(
        header.format.encode(),
        *(header.width, header.height),
        *header.area,
        *(header.orientation, header.bit_depth, len(transparent)),
        *samples,
        *(len(icc), len(header.drawing)),
    )
    return b"".join((fixed, icc, header.drawing))


def _header_of(memory: mmap.mmap) -> tuple[ImageHeader, int]:
    """The request, and where the reply begins."""
    kind, width, height, left, top, right, bottom, orientation, depth, count, *rest = REQUEST.unpack_from(memory)
    *samples, icc_bytes, drawing_bytes = rest
    formats: dict[bytes, Format] = {b"JPEG": "JPEG", b"PNG\0": "PNG", b"WEBP": "WEBP", b"GIF\0": "GIF"}
    drawing_at = REQUEST.size + icc_bytes
    end = drawing_at + drawing_bytes
    icc, drawing, transparent = memory[REQUEST.size : drawing_at], memory[drawing_at:end], tuple(samples[:count])
    area = (left, top, right, bottom)
    return ImageHeader(formats[kind], width, height, drawing, area, orientation, icc or None, transparent or None, depth), end


# One decoding ---------------------------------------------------------------------------------------------------------------------------


def _decode_one(descriptor: int, memory_bytes: int, cpu_seconds: int, confine: Callable[[], None]) -> None:
    """Decodes what a shared memory asks for, into it. Runs in a fork of its own, whose last act it is."""
    memory = mmap.mmap(descriptor, 0)  # not filled before the decoder gave back what it needed itself
    os.closerange(0, 64)
    _limit("RLIMIT_AS", memory_bytes + len(memory))
    _limit("RLIMIT_CPU", cpu_seconds, cpu_seconds + 1)
    _limit("RLIMIT_NPROC", 0)
    _limit("RLIMIT_NOFILE", 0)
    confine()
    header, reply_at = _header_of(memory)
    content_at = reply_at + REPLY.size
    try:
        picture = media.decode(header)
        width, height = picture.size
        rows = max(1, STRIP_BYTES // (3 * width))  # in strips, so that the picture is not held a third time
        for top in range(0, height, rows):
            strip = picture.crop((0, top, width, min(top + rows, height))).tobytes()
            start = content_at + 3 * width * top
            memory[start : start + len(strip)] = strip
        reply = (1, width, height)
    except (ImageError, MemoryError) as error:
        reason, said = (error.reason, str(error)) if isinstance(error, ImageError) else ("memory", NO_MEMORY)
        text = said.encode()[:MAX_TEXT_BYTES]
        memory[content_at : content_at + len(text)] = text
        reply = (2 + REASONS.index(reason), len(text), 0)
    REPLY.pack_into(memory, reply_at, *reply)


def _limit(name: str, soft: int, hard: int | None = None) -> bool:
    """Lowers a limit for good. False where the system does not have it."""
    try:
        resource.setrlimit(getattr(resource, name), (soft, soft if hard is None else hard))
    except (AttributeError, ValueError, OSError):
        return False
    return True


# The decoder ----------------------------------------------------------------------------------------------------------------------------


def main() -> None:
    memory_bytes, cpu_seconds, seconds = (int(argument) for argument in sys.argv[1:4])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # meant for the server, which lets requests under way finish; it ends us
    _warm_up()
    protections, confine = _confine_decoder()
    gc.freeze()
    with socket.socket(fileno=0) as control:
        control.sendall(bytes([protections]))
        while True:
            # A server that is gone, however it went, leaves an end of file here. (The signal at a parent's death would not do: it comes
            # already when the *thread* ends that started us.)
            message, descriptors, _, _ = socket.recv_fds(control, 1, 1)
            if not message:
                return
            with suppress(BrokenPipeError, ConnectionResetError):
                control.sendall(ENDED.pack(*_decode_in_a_fork(descriptors[0], memory_bytes, cpu_seconds, seconds, confine)))


def _decode_in_a_fork(descriptor: int, memory_bytes: int, cpu_seconds: int, seconds: int, confine: Callable[[], None]) -> tuple[int, int]:
    """Exit status (or minus a signal) and peak of memory in bytes."""
    decoder = os.getpid()
    try:
        process = os.fork()
    except OSError:
        os.close(descriptor)
        return NO_FORK, 0
    if process == 0:
        status = 1
        try:
            if _dies_with(decoder):
                _decode_one(descriptor, memory_bytes, cpu_seconds, confine)
                status = 0
        finally:
            os._exit(status)  # no error of a decoding, whatever it is, may go on to where it was forked
    os.close(descriptor)
    signal.alarm(seconds + 5)  # the server kills us both long before, if it lives
    _, status, used = os.wait4(process, 0)
    signal.alarm(0)
    return os.waitstatus_to_exitcode(status), used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _warm_up() -> None:
    """Loads whatever Pillow loads late, because a decoding can open no file any more: each format, a profile, and an error."""
    picture = Image.new("RGB", (8, 8), "red")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for kind in ("JPEG", "PNG", "WEBP", "GIF"):
        file = io.BytesIO()
        picture.save(file, kind, **({} if kind == "GIF" else {"icc_profile": profile}))
        media.open_image(file.getvalue()).tobytes()
        with suppress(ImageError):
            media.open_image(file.getvalue()[: len(file.getvalue()) // 2])


# What is given up -----------------------------------------------------------------------------------------------------------------------

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_CLONE_NEWIPC, _CLONE_NEWUSER, _CLONE_NEWNET = 0x08000000, 0x10000000, 0x40000000
_CAPABILITY_VERSION_3 = 0x20080522

_AUDIT_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_SYSTEM_CALLS = {
    # name: (x86-64, AArch64). What CPython, the C library and the decoders call between a picture's first byte and the exit.
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "exit": (60, 93),
    "gettimeofday": (96, 169),
    "futex": (202, 98),
    "clock_gettime": (228, 113),
    "exit_group": (231, 94),
    "getrandom": (318, 278),
}
_MEMORY_CALLS = {"mmap": (9, 222), "mprotect": (10, 226)}
"""Allowed unless their third argument asks for memory that can be executed."""


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("if_true", ctypes.c_uint8), ("if_false", ctypes.c_uint8), ("value", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("instructions", ctypes.POINTER(_Instruction)))


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _confine_decoder() -> tuple[Protection, Callable[[], None]]:
    """Gives up at once what forking does not need; the callable gives up the rest, in a decoding.

    Every step but the limits is best effort: a kernel, a container or a macOS may not offer it.
    """
    in_force = Protection(0)
    # A decoding lowers the first one further, by how large its picture is.
    limited = _limit("RLIMIT_AS", 1 << 40), _limit("RLIMIT_FSIZE", 0), _limit("RLIMIT_CORE", 0)
    if all(limited):
        in_force |= Protection.limits
    if sys.platform != "linux":
        return in_force, lambda: None
    libc = _libc()
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWIPC) == 0:
        in_force |= Protection.namespaces
    no_capabilities = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    steps = libc.capset(*no_capabilities), libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    if not any(steps):
        in_force |= Protection.privileges
    program = _filter_of_system_calls()
    if program is None or not _filter_works(program):
        return in_force, lambda: None
    return in_force | Protection.system_calls, lambda: _install(program)


def _dies_with(decoder: int) -> bool:
    """Has this fork killed when its decoder dies; False if that has happened already."""
    if sys.platform == "linux":
        _libc().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    return os.getppid() == decoder


def _filter_of_system_calls() -> _Program | None:
    """A seccomp program: what is not listed fails with EPERM. None on a processor whose numbers are not listed."""
    machine = platform.machine()
    if machine not in _AUDIT_ARCHITECTURES or sys.maxsize < 2**32 or sys.byteorder != "little":
        return None
    column = list(_AUDIT_ARCHITECTURES).index(machine)
    load, equal, any_bit, answer = 0x20, 0x15, 0x45, 0x06
    allow, refuse, kill = 0x7FFF0000, 0x00050001, 0x80000000
    number, architecture, third_argument, executable = 0, 4, 32, 4
    steps = [(load, 0, 0, architecture), (equal, 1, 0, _AUDIT_ARCHITECTURES[machine]), (answer, 0, 0, kill), (load, 0, 0, number)]
    for numbers in _MEMORY_CALLS.values():
        steps += [(equal, 0, 4, numbers[column]), (load, 0, 0, third_argument), (any_bit, 0, 1, executable)]
        steps += [(answer, 0, 0, refuse), (answer, 0, 0, allow)]
    for numbers in _SYSTEM_CALLS.values():
        steps += [(equal, 0, 1, numbers[column]), (answer, 0, 0, allow)]
    steps.append((answer, 0, 0, refuse))
    return _Program(len(steps), (_Instruction * len(steps))(*steps))


def _install(program: _Program) -> None:
    if _libc().prctl(_PR_SET_SECCOMP, 2, ctypes.byref(program), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "no filter of system calls")


def _filter_works(program: _Program) -> bool:
    """Whether a fork with the filter can do nothing but what is listed."""
    process = os.fork()
    if process == 0:
        status = 1
        try:
            _install(program)
            try:
                os.getppid()
                socket.socket().close()
            except PermissionError:
                status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0


if __name__ == "__main__":
    main()
