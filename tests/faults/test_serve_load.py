"""More clients than places, slow ones, ones that leave, and an end while all are there: who is in is answered, and nothing leaks."""

from __future__ import annotations

import json
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tests.faults.crowd import Crowd, Outcome
from tests.faults.serve_traffic import CHAT, ask, exchange, leave, request, shown
from tests.faults.tiny_server import PATIENCE, Options, TinyServer, tiny_server
from tests.serve.live import CLIENT, png, until


@contextmanager
def crowd(options: Crowd) -> Iterator[subprocess.Popen[str]]:
    """Clients in a process of their own, from the moment on at which all are connected."""
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.crowd", json.dumps(asdict(options))],
        stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "holding\n"
        yield child
    finally:
        child.kill()
        child.communicate()


def outcomes(child: subprocess.Popen[str]) -> list[Outcome]:
    assert child.stdout is not None
    return [Outcome(**each) for each in json.loads(child.stdout.readline())]


def quantile(seconds: list[float], share: float) -> float:
    return sorted(seconds)[min(int(share * len(seconds)), len(seconds) - 1)] if seconds else 0.0


# --- S9: a thousand at once ---------------------------------------------------------------------------------------------------------------


def assert_who_is_in_is_answered_and_nobody_else(server: TinyServer, count: int, places: int) -> None:
    server.post(ask(max_tokens=30))
    server.settled()
    memory, descriptors, threads = server.memory(), server.descriptors(), server.threads()
    with crowd(Crowd(server.port, count, "ask", ask(max_tokens=30), seconds=PATIENCE)) as clients:
        said = outcomes(clients)
    server.settled()
    let_in = [each for each in said if each.status == 200]
    refused = [each for each in said if each.status == 429]
    milliseconds = [1000 * each.seconds for each in refused]
    print(
        f"\nS9, {count} connections, {places} places: {dict(Counter(each.status for each in said))}; 429 after p50 "
        f"{quantile(milliseconds, 0.5):.0f} ms, p99 {quantile(milliseconds, 0.99):.0f} ms; memory {memory:.0f} → "
        f"{server.memory():.0f} MiB, descriptors {descriptors} → {server.descriptors()}, threads {threads} → {server.threads()}"
    )
    assert len(let_in) + len(refused) == count  # nobody was hung up on, nobody got anything else
    assert len(let_in) >= places
    assert all(each.whole for each in said)
    assert all(each.retry_after for each in refused)
    assert server.memory() - memory < 150
    until(lambda: server.descriptors() <= descriptors + 2, seconds=60)
    assert server.post(ask()).status_code == 200


def test_of_a_hundred_who_is_let_in_is_answered_and_the_rest_is_told_when_to_come_back(server: TinyServer):
    assert_who_is_in_is_answered_and_nobody_else(server, 100, 24)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_of_a_thousand_who_is_let_in_is_answered_and_the_rest_is_told_when_to_come_back():
    with tiny_server(Options(max_queue=64, max_running=16, step_seconds=0.05)) as server:
        for _ in range(3):
            assert_who_is_in_is_answered_and_nobody_else(server, 1000, 80)


# --- S8: slow ones ------------------------------------------------------------------------------------------------------------------------


def typical(server: TinyServer, times: int) -> list[float]:
    seconds = []
    for _ in range(times):
        started = time.monotonic()
        assert server.post(ask(max_tokens=8), timeout=PATIENCE).status_code == 200
        seconds.append(time.monotonic() - started)
    return seconds


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("kind", "count", "within"), [("slow-head", 500, 10), ("slow-body", 500, 30), ("slow-read", 100, 30)])
def test_slow_clients_are_thrown_out_and_slow_nobody_down(kind: Any, count: int, within: float):
    # A body that is on its way has a place in the house, and so only as many are waited for as there are places.
    with tiny_server(Options(max_queue=600)) as server:
        typical(server, 10)
        descriptors, memory = server.descriptors(), server.memory()
        before = typical(server, 40)
        with crowd(Crowd(server.port, count, kind, ask("x" * 200), seconds=within + 120)):
            started, during = time.monotonic(), list[float]()
            # By the server's own sockets: who reads nothing does not hear that it was hung up on either.
            while server.descriptors() > descriptors + 2:
                during += typical(server, 2)
                assert time.monotonic() - started < within + 110  # on a busy machine they are noticed late, but not much
            gone, held = time.monotonic() - started, server.memory()
        usual, meanwhile = (1000 * quantile(seconds, 0.95) for seconds in (before, during))
        print(
            f"\nS8, {count} {kind}: all thrown out after {gone:.0f} s; a good request's p95 {usual:.0f} → {meanwhile:.0f} ms, median "
            f"{1000 * statistics.median(before):.0f} → {1000 * statistics.median(during):.0f} ms ({len(during)} asked meanwhile); "
            f"memory +{held - memory:.0f} MiB"
        )
        server.settled()


# --- S10: ones that leave -----------------------------------------------------------------------------------------------------------------


@cache
def large_picture() -> bytes:
    """A small file that takes a while to decode."""
    return png("green", (4800, 4800))


def assert_work_stops_when_clients_leave(server: TinyServer, count: int) -> None:
    alone = words_of(server)
    kept: list[str] = []
    with ThreadPoolExecutor() as pool:
        staying = pool.submit(lambda: kept.extend(words_of(server) for _ in range(max(count // 8, 2))))
        for number in range(count):
            match number % 4:
                case 0 | 2:  # after some chunks
                    leave(server.port, ask(f"Question {number}", max_tokens=500, stream=True), chunks=1 + number % 20)
                case 1:  # the answer would come whole
                    leave(server.port, ask(f"Question {number}", max_tokens=500), chunks=0)
                case _:  # its pictures are being decoded
                    leave(server.port, ask(shown(f"Question {number}", large_picture()), max_tokens=500), chunks=0)
        staying.result()
    assert set(kept) == {alone}
    server.settled()

    steps = []
    for _ in range(max(count // 20, 3)):  # alone now, so that every step is the leaver's
        leave(server.port, ask("Tell me more", max_tokens=500, stream=True), chunks=3)
        before = server.state().steps
        server.settled()
        steps.append(server.state().steps - before)
    print(f"\nS10, {count} left: {len(kept)} others unchanged; steps after leaving {sorted(steps)}; {server.state()}")
    assert statistics.median(steps) < 100  # of the 497 to come; on a busy machine some pass until the server hears of it


def words_of(server: TinyServer) -> str:
    """What somebody who stays is told; asked again while there is no place."""
    for _ in range(1000):
        response = server.post(ask("Who are you?", max_tokens=24))
        if response.status_code == 200:
            return response.json()["choices"][0]["message"]["content"]
        assert response.status_code == 429
        time.sleep(0.05)
    pytest.fail("there never was a place")


def test_when_clients_leave_their_work_stops_and_others_notice_nothing(server: TinyServer):
    assert_work_stops_when_clients_leave(server, 16)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_two_hundred_clients_leave_at_every_moment_and_nothing_is_left_of_them():
    """Steps of 50 ms: a reply of 500 tokens that nobody waits for would be 25 seconds of them."""
    with tiny_server(Options(step_seconds=0.05, max_running=4, max_queue=200)) as server:
        assert_work_stops_when_clients_leave(server, 200)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_who_leaves_the_queue_is_never_begun():
    with tiny_server(Options(step_seconds=0.02, max_running=1, max_queue=50)) as server, ThreadPoolExecutor() as pool:
        first = pool.submit(server.post, ask(max_tokens=100))
        until(lambda: server.state().running == 1, seconds=PATIENCE)
        for number in range(10):
            leave(server.port, ask(f"Question {number}", max_tokens=500), chunks=0)
        assert first.result().status_code == 200
        server.settled()
        assert server.state().completion_tokens < 300


# --- S12: the end -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_at_the_first_signal_a_hundred_replies_are_finished_and_nobody_else_begins():
    with tiny_server(Options(step_seconds=0.01, max_running=16, max_queue=100, grace=PATIENCE)) as server, ThreadPoolExecutor(120) as pool:
        bodies = [ask(f"Question {number}", max_tokens=60, stream=number % 2 == 0) for number in range(100)]
        under_way = [pool.submit(server.post, body, timeout=PATIENCE) for body in bodies]
        until(lambda: server.admitted() == 100, seconds=PATIENCE)
        server.child.send_signal(signal.SIGTERM)
        until(lambda: server.get("/health/ready").status_code == 503, seconds=PATIENCE)
        live = server.get("/health/live").status_code
        refused = [server.post(ask()).status_code for _ in range(5)]
        responses = [each.result() for each in under_way]
        code = server.child.wait(timeout=PATIENCE)
        lost = sum(response.status_code != 200 or not response.text.rstrip().endswith(("[DONE]", "}")) for response in responses)
        print(f"\nS12: {lost} of {len(responses)} under way were lost; refused {refused}, live {live}, exit {code}")
        assert (lost, live, code) == (0, 200, 0)
        assert set(refused) == {503}


def _forget(server: TinyServer, body: Any) -> None:
    import httpx2

    try:
        CLIENT.post(server.address + CHAT, json=body, timeout=PATIENCE)
    except httpx2.HTTPError:
        return


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_a_second_signal_ends_it_at_once_and_after_a_kill_it_comes_back_at_the_same_address():
    with tiny_server(Options(step_seconds=0.05, grace=PATIENCE)) as server:
        threads = [threading.Thread(target=_forget, args=(server, ask(f"{number}", max_tokens=600)), daemon=True) for number in range(8)]
        for thread in threads:
            thread.start()
        until(lambda: server.state().running == 8, seconds=PATIENCE)
        server.child.send_signal(signal.SIGTERM)
        until(lambda: server.get("/health/ready").status_code == 503, seconds=PATIENCE)
        started = time.monotonic()
        assert server.end() == 0
        print(f"\nS12: ended {time.monotonic() - started:.2f} s after the second signal")
        assert time.monotonic() - started < 20
    with tiny_server(Options(step_seconds=0.05, port=server.port)) as killed:
        threading.Thread(target=_forget, args=(killed, ask(max_tokens=600)), daemon=True).start()
        until(lambda: killed.state().running == 1, seconds=PATIENCE)
        assert killed.end(signal.SIGKILL) == -signal.SIGKILL
    with tiny_server(Options(port=server.port)) as again:
        assert exchange(again.port, request(method="GET", path="/health/ready")).status == 200
        assert again.post(ask()).status_code == 200
