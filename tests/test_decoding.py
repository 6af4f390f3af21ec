"""Pictures decoded in other processes are the same pictures and the same refusals, whatever becomes of those processes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from faulty_decoders import ENDLESS, decode_by, faulty_child, gone
from hostile_images import FAMILIES, Case, good_files, judge, make, mutated
from image_files import encode, photo
from vistune import decode_child, decoding
from vistune.decode_child import Protection
from vistune.decoding import DecodePool
from vistune.errors import ImageError, OutOfMemory, UsageError
from vistune.media import ImageLimits, open_image

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

PICTURE, OTHER = encode(photo(64, 48), "PNG"), encode(photo(32, 24), "JPEG")
REACH_A_DECODER = ("truncations", "bit flips", "colour modes", "EXIF orientation", "animation", "same bytes, other picture", "tiny")


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    with DecodePool() as pool:
        yield pool


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., DecodePool]]:
    """Makes pools whose decoders run some statements of the test's before they begin."""
    pools: list[DecodePool] = []

    def make_pool(statements: str, *, processes: int = 1, seconds: float = 2.0) -> DecodePool:
        monkeypatch.setattr(decoding, "_CHILD", faulty_child(statements))
        pools.append(DecodePool(processes, seconds=seconds))
        return pools[-1]

    yield make_pool
    for pool in pools:
        pool.close()


def refusal(opener: Callable[..., object], source: bytes | str | Path = PICTURE) -> tuple[str, str]:
    with pytest.raises(ImageError) as caught:
        opener(source)
    return caught.value.reason, str(caught.value)


def works(pool: DecodePool) -> bool:
    return pool.open_image(OTHER).tobytes() == open_image(OTHER).tobytes()


def decoders(pool: DecodePool) -> list[int]:
    return [decoder._process.pid for decoder in pool._idle]


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "this did not come true in time"
        time.sleep(0.01)


# The same as in this process ------------------------------------------------------------------------------------------------------------


RARE = (*(name for name in FAMILIES if name not in REACH_A_DECODER), "largest allowed")


@pytest.mark.parametrize("family", [*REACH_A_DECODER, *(pytest.param(name, marks=pytest.mark.nightly) for name in RARE)])
def test_hostile_images_get_the_same_verdict_and_the_same_pixels_twice(family: str, tmp_path: Path, pool: DecodePool):
    cases = make(family, tmp_path)
    here, first, second = ([judge(case, opener) for case in cases] for opener in (open_image, pool.open_image, pool.open_image))
    assert first == here
    assert second == here


@pytest.mark.parametrize("count", [60, pytest.param(10_000, marks=pytest.mark.nightly)])
def test_mutated_files_get_the_same_verdict(count: int, pool: DecodePool):
    generator, files = random.Random(count), list(good_files().values())
    for number in range(count):
        case = Case(str(number), mutated(generator, files), "either")
        assert judge(case, pool.open_image) == judge(case)


def test_refusals_read_the_same(tmp_path: Path, pool: DecodePool):
    cut, broken = tmp_path / "cut.jpg", bytearray(PICTURE)
    cut.write_bytes(OTHER[: len(OTHER) // 2])
    broken[broken.index(b"IDAT") + 30] ^= 255
    for source in (cut, bytes(broken), tmp_path / "none.png", b"", "https://example.org/a.png", "data:image/png;base64,!"):
        assert refusal(pool.open_image, source) == refusal(open_image, source)


def test_a_picture_of_several_strips_arrives_whole(pool: DecodePool):
    picture = photo(1500, 1403)
    assert 2 < 3 * 1500 * 1403 / decode_child.STRIP_BYTES < 3
    assert pool.open_image(encode(picture, "PNG")).tobytes() == picture.tobytes()


def test_limits_and_roots_hold_before_anything_is_sent(tmp_path: Path, pool: DecodePool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(DecodePool, "_decode", lambda *_: pytest.fail("a decoder was asked"))
    (tmp_path / "a.png").write_bytes(PICTURE)
    with pytest.raises(ImageError):
        pool.open_image(tmp_path / "a.png", limits=ImageLimits(pixels=100))
    with pytest.raises(ImageError):
        pool.open_image(tmp_path / "a.png", root=tmp_path / "other")


# What a decoding may do -----------------------------------------------------------------------------------------------------------------

ATTEMPTS = {
    "open a file": "open('/etc/hostname').close()",
    "write one": "open('/tmp/vistune-was-here', 'w').close()",
    "delete one": "os.unlink('/tmp/vistune-never-was')",
    "use the network": "socket.socket()",
    "reach a local service": "socket.socket(socket.AF_UNIX)",
    "fork": "os.fork() or os._exit(0)",
    "run a program": "os.execv('/bin/true', ['true'])",
    "signal its decoder": "os.kill(os.getppid(), 0)",
    "copy a descriptor": "os.dup(1)",
    "speak for its decoder": "os.write(0, b'')",
    "keep the memory's descriptor": "os.fstat(3)",
    "keep another": "os.fstat(4)",
    "get memory to execute": "mmap.mmap(-1, 4096, prot=7)",
}


def test_a_decoding_can_do_nothing_but_decode(faulty: Callable[..., DecodePool]):
    tries = [f"try:\n    {statement}\n    done.append({name!r})\nexcept PermissionError: pass" for name, statement in ATTEMPTS.items()]
    pool = faulty(decode_by("\n".join(["done = []", *tries, "raise ImageError('broken', f'{done}')"])))
    if Protection.system_calls not in pool.protections:
        pytest.skip("this kernel or processor has no filter of system calls")
    assert refusal(pool.open_image) == ("broken", "The image: [].")
    assert works(pool)


def test_without_the_filter_its_limits_still_hold(faulty: Callable[..., DecodePool]):
    tries = [
        f"try:\n    {statement}\n    done.append({name!r})\nexcept OSError: pass"
        for name, statement in ATTEMPTS.items()
        if name not in ("delete one", "fork", "run a program", "signal its decoder", "get memory to execute")
    ]
    body = decode_by("\n".join(["done = []", *tries, "raise ImageError('broken', f'{done}')"]))
    pool = faulty(f"child._filter_of_system_calls = lambda: None\n{body}")
    assert Protection.system_calls not in pool.protections
    assert refusal(pool.open_image) == ("broken", "The image: [].")


def test_a_decoder_sees_nothing_of_the_server(pool: DecodePool, monkeypatch: pytest.MonkeyPatch):
    for process in decoders(pool):
        assert Path(f"/proc/{process}/cmdline").read_bytes().count(b"\0") < 12
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines() if ":\t" in line)
        assert (status["NoNewPrivs"], int(status["CapEff"], 16)) == ("1", 0)
        if os.geteuid() == 0:  # or who may look at a process that cannot be traced
            assert Path(f"/proc/{process}/environ").read_bytes() == b"GLIBC_TUNABLES=glibc.malloc.hugetlb=1\0"
            assert len(list(Path(f"/proc/{process}/fd").iterdir())) == 3
            assert os.readlink(f"/proc/{process}/cwd") == "/"
            if Protection.namespaces in pool.protections:
                assert os.readlink(f"/proc/{process}/ns/net") != os.readlink("/proc/self/ns/net")


# What becomes of one that fails ---------------------------------------------------------------------------------------------------------

BROKE_DOWN = "its decoder broke down"
FAULTS = {
    "a crash": ("broken", BROKE_DOWN, "ctypes.string_at(0)"),
    "an error of no kind": ("broken", BROKE_DOWN, "raise KeyError(1)"),
    "memory for ever": ("memory", "not enough memory", "bytearray(1 << 30)"),
    "an end without a reply": ("broken", BROKE_DOWN, "os._exit(0)"),
    "another size of as many pixels": ("broken", BROKE_DOWN, "return child.Image.new('RGB', (48, 64))"),
    "a picture larger than its memory": ("broken", BROKE_DOWN, "return child.Image.new('RGB', (64, 480))"),
    "noise": ("broken", BROKE_DOWN, "child.REPLY = Noise"),
    "a reason that is none": ("broken", BROKE_DOWN, "child.REASONS = ('',) * 9 + ('none',); raise ImageError('none', '')"),
    "a text that moves the cursor": ("broken", "it cannot be decoded", "raise ImageError('broken', chr(27) + '[2J')"),
    "no end": ("time", "too long", "while True: pass"),
}
NOISE = """
import ctypes
class Noise:
    size = child.REPLY.size
    def pack_into(memory, place, *reply): memory[place : place + 9] = b"\\xff" * 9
"""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_decoding_that_fails_is_an_error_of_its_picture_only(fault: str, faulty: Callable[..., DecodePool]):
    reason, words, body = FAULTS[fault]
    pool = faulty(NOISE + decode_by(body), seconds=1.0)
    found = refusal(pool.open_image)
    assert (found[0], words in found[1]) == (reason, True), found
    assert works(pool)


@pytest.mark.parametrize(
    ("whom", "sent", "expected"), [(0, "KILL", "broken"), (1, "KILL", "broken"), (1, "STOP", "time"), (0, "STOP", "time")]
)
def test_a_process_that_is_killed_or_stopped_in_mid_picture(whom: int, sent: str, expected: str, faulty: Callable[..., DecodePool]):
    pool = faulty(ENDLESS, seconds=0.25 if sent == "STOP" else 5.0)
    decoder = decoders(pool)[0]
    with ThreadPoolExecutor(1) as executor:
        answer = executor.submit(refusal, pool.open_image)
        until(lambda: children(decoder))
        chain = (decoder, children(decoder)[0])
        os.kill(chain[whom], getattr(signal, f"SIG{sent}"))
        if (whom, sent) == (0, "STOP"):
            os.kill(chain[1], signal.SIGSTOP)  # else its limit of processor time ends it, which the stopped decoder does not tell
        assert answer.result(timeout=60)[0] == expected
    until(lambda: gone(chain[1]))
    assert works(pool)


def test_a_decoder_that_died_while_idle_is_replaced_unseen(faulty: Callable[..., DecodePool]):
    pool = faulty("")
    os.kill(decoders(pool)[0], signal.SIGKILL)
    until(lambda: gone(decoders(pool)[0]))
    assert works(pool)


def test_crashes_beside_it_change_no_other_picture(faulty: Callable[..., DecodePool]):
    pool = faulty("import ctypes\n" + decode_by("ctypes.string_at(0)"), processes=2)
    with ThreadPoolExecutor(6) as executor:
        pairs = [(executor.submit(works, pool), executor.submit(refusal, pool.open_image)) for _ in range(12)]
        assert all(good.result(timeout=60) and bad.result(timeout=60)[0] == "broken" for good, bad in pairs)


def test_three_hundred_pictures_leave_no_descriptor_no_process_and_no_memory(faulty: Callable[..., DecodePool]):
    pool = faulty(decode_by("raise KeyError(1)"), processes=2)
    held: list[int] = []
    for number in range(300):
        if number % 3 == 0:
            refusal(pool.open_image)
        else:
            assert works(pool)
        if number in (20, 299):
            held.append(len(os.listdir("/proc/self/fd")))
            assert sum(len(children(decoder)) for decoder in decoders(pool)) == 0
    assert held[0] == held[1]
    processes = decoders(pool)
    pool.close()
    assert not any(Path(f"/proc/{process}").exists() for process in processes), "ended and waited for"


def test_decoders_end_with_a_server_that_is_killed():
    program = (
        "import os, signal, threading; from vistune.decoding import DecodePool; pool = DecodePool()\n"
        "print(*[decoder._process.pid for decoder in pool._idle], flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    processes = [int(word) for word in finished.stdout.split()]
    assert (finished.returncode, len(processes)) == (-signal.SIGKILL, 2)
    until(lambda: all(gone(process) for process in processes))


# Who waits for whom ---------------------------------------------------------------------------------------------------------------------


def test_pictures_are_decoded_in_the_order_in_which_they_came(faulty: Callable[..., DecodePool]):
    pool, order = faulty("", processes=1), []

    def opened(number: int) -> None:
        pool.open_image(OTHER)
        order.append(number)

    with pool._turn():
        threads = []
        for number in range(5):
            threads.append(threading.Thread(target=opened, args=(number,)))
            threads[-1].start()
            until(lambda expected=number + 1: len(pool._waiting) == expected)
    for thread in threads:
        thread.join(timeout=30)
    assert order == [0, 1, 2, 3, 4]


def test_closing_fails_those_who_wait_and_whoever_comes_later(faulty: Callable[..., DecodePool]):
    pool = faulty("")
    with ThreadPoolExecutor(1) as executor, pool._turn():
        waiting = executor.submit(pool.open_image, OTHER)
        until(lambda: pool._waiting)
        pool.close()
        with pytest.raises(UsageError, match="closed"):
            waiting.result(timeout=30)
    with pytest.raises(UsageError, match="closed"):
        pool.open_image(OTHER)
    pool.close()


def test_decoders_that_cannot_start_say_so_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(decoding, "_CHILD", "raise SystemExit(3)")
    with pytest.raises(OutOfMemory, match="status 3"):
        DecodePool()
    with pytest.raises(UsageError):
        DecodePool(0)


def test_a_decoder_loads_little_and_no_numbers():
    program = "import sys; import vistune.decode_child; print(sorted({'numpy', 'torch', 'subprocess'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == "[]"
