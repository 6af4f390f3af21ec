"""Calls against a provider on loopback that bills, through the real client: kills, torn logs, full disks, storms, garbage, leaks.

The letters and numbers are those of the list of data generation faults: D1 kills, D2 the log, D3 the cap, D4 storms, D5 malformed replies,
D8 the key, D9 the same request twice, D10 outages. Each has a quick tier, and most a `nightly` one with the full counts.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.faults.billing_provider import (
    FAULTS,
    FINAL,
    MALFORMED,
    ODD,
    PASSING,
    RETRY_AFTER,
    BillingProvider,
    Entry,
    Plan,
    forked,
    read_ledger,
    seeded_plan,
)

from vistune import journal
from vistune.calls import Answer, CallLimits, Calls, CallStats, Price
from vistune.chat_model import OpenAIChatModel, ScriptedChatModel
from vistune.errors import CostCapReached, Locked, RemoteError, SaveError, UsageError
from vistune.journal import Journal
from vistune.types import Conversation, SamplingParams

PARAMS = SamplingParams(max_new_tokens=64)
PRICE = Price(0.5, 1.5)
QUICK = CallLimits(backoff=0.01, max_backoff=0.05, call_timeout=30.0, patience=300.0)
"""Pauses of milliseconds, because most of these tests run in real time."""


def question(item: str) -> Conversation:
    return Conversation(()).then("user", item)


def items(count: int) -> list[str]:
    return [f"item {number}" for number in range(count)]


@dataclass(frozen=True)
class Run:
    outcomes: list[Answer | BaseException]
    stats: CallStats

    @property
    def answers(self) -> list[Answer]:
        return [outcome for outcome in self.outcomes if isinstance(outcome, Answer)]


async def ask_all(url: str, log: Path, texts: Sequence[str], params: SamplingParams = PARAMS, **options: Any) -> Run:
    model = OpenAIChatModel("m", base_url=url, api_key="sk-test")
    try:
        with Calls(model, name="m", log=log, **{"limits": QUICK, **options}) as calls:
            asking = (calls.ask(question(text), params) for text in texts)
            return Run(await asyncio.gather(*asking, return_exceptions=True), calls.stats)
    finally:
        await model.close()


def run(url: str, log: Path, texts: Sequence[str], params: SamplingParams = PARAMS, **options: Any) -> Run:
    return asyncio.run(ask_all(url, log, texts, params, **options))


def in_a_fork(action: Callable[[], object]) -> int:
    """Starts `action` in a process of its own, which ends with 0, or 1 if it failed."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            action()
            status = 0
        finally:
            os._exit(status)
    return pid


def events(log: Path) -> Counter[str]:
    with Journal(log) as records:
        return Counter(record["event"] for record in records)


# --- D1: kills ---


def kill_and_resume(path: Path, *, count: int, kills: int, seed: int, plan: Plan) -> dict[str, int]:
    """Answers `count` items in a process that is killed `kills` times, and says what that did; fails where a promise is broken."""
    log, ledger, chance = path / "calls.log", path / "ledger", random.Random(seed)
    answered_at: dict[str, int] = {}  # item → length of the bill when it was seen to be answered
    made = 0
    with forked(ledger, plan, latency=0.01) as url:
        while made < kills:
            before = len(read_ledger(ledger))
            pid = in_a_fork(lambda: run(url, log, items(count)))
            if chance.random() < 0.1:  # also while it starts
                time.sleep(chance.uniform(0, 0.1))
            else:
                # Few enough that all kills are made before all is answered.
                wanted = before + chance.randint(1, max(2, 3 * count // (2 * kills)))
                while len(read_ledger(ledger)) < wanted and os.waitpid(pid, os.WNOHANG) == (0, 0):
                    time.sleep(0.002)
                time.sleep(chance.uniform(0, 0.01))
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                made += 1
            except (ProcessLookupError, ChildProcessError):
                break  # it had finished: all is answered
            billed = len(read_ledger(ledger))
            with Journal(log) as records:
                for record in records:
                    if record["event"] == "answer":
                        answered_at.setdefault(record["reply"]["text"].removeprefix("About ").removesuffix("."), billed)
        last = run(url, log, items(count))
        bill = read_ledger(ledger)
    with Journal(log) as records:
        answers = [record for record in records if record["event"] == "answer"]
        retries = sum(record["event"] == "sent" and record["try"] > 1 for record in records)
    assert [answer.reply.text for answer in last.answers] == [f"About {item}." for item in items(count)]
    assert len({answer["key"] for answer in answers}) == len(answers) == count
    again = [entry.item for number, entry in enumerate(bill) if number >= answered_at.get(entry.item, len(bill))]
    assert again == []
    assert len(bill) <= count + made * 8 + retries
    return {"kills": made, "billed": len(bill), "items": count, "retries": retries}


def test_d1_twenty_kills_lose_no_answer_and_pay_for_none_twice(tmp_path: Path):
    figures = kill_and_resume(
        tmp_path, count=80, kills=20, seed=1, plan=seeded_plan(seed=1, rate=0.1, faults=("500", "503", "reset during"))
    )
    assert figures["kills"] == 20


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_d1_five_hundred_kills_lose_no_answer_and_pay_for_none_twice(tmp_path: Path):
    faults = ("500", "502 page", "503", "429 bare", "reset before", "reset during", "reset after", "truncated")
    figures = kill_and_resume(tmp_path, count=5000, kills=500, seed=2, plan=seeded_plan(seed=2, rate=0.05, faults=faults))
    print(figures)
    assert figures["kills"] == 500


# --- D2: the log ---


def test_d2_a_log_torn_anywhere_in_its_last_record_loses_at_most_that_record(tmp_path: Path):
    log = tmp_path / "calls.log"

    def ask(texts: Sequence[str]) -> tuple[Run, int]:
        async def main() -> tuple[Run, int]:
            model = ScriptedChatModel(lambda conversation, _: conversation.messages[-1].text)
            with Calls(model, name="m", log=log) as calls:
                outcomes = await asyncio.gather(*(calls.ask(question(text), PARAMS) for text in texts))
                return Run(list(outcomes), calls.stats), len(model.calls)

        return asyncio.run(main())

    ask(["first"])
    ask(["last"])
    whole = log.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    assert b'"answer"' in whole[last:]
    for length in range(last, len(whole)):
        log.write_bytes(whole[:length])
        again, sent = ask(["first", "last"])
        assert [answer.reply.text for answer in again.answers] == ["first", "last"]
        assert sent == 1
        assert again.stats.maybe_billed == 1  # the request whose answer was torn


def test_d2_a_second_writer_is_refused(tmp_path: Path):
    def second() -> None:
        with pytest.raises(Locked):
            run("http://127.0.0.1:9/v1", tmp_path / "calls.log", ["a"])

    with Journal(tmp_path / "calls.log"):
        pid = in_a_fork(second)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize("fault", ["fallocate", "write", "fsync"])
def test_d2_a_disk_that_fails_at_any_point_stops_the_sending_and_loses_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
):
    code = errno.EIO if fault == "fsync" else errno.ENOSPC
    place, name = (journal, "_reserve") if fault == "fallocate" else (journal.os, fault)
    original = getattr(place, name)
    with BillingProvider() as provider:
        for point in (1, 2, 3, 4, 6, 9):
            log, done, sent_before = tmp_path / f"{point}", 0, len(provider.ledger)

            def failing(*arguments: Any, point: int = point) -> Any:
                nonlocal done
                done += 1
                if done >= point:
                    raise OSError(code, os.strerror(code))
                return original(*arguments)

            with monkeypatch.context() as patch:
                patch.setattr(place, name, failing)
                try:
                    broken = run(provider.url, log, items(40))
                except SaveError:
                    broken = None  # the log could not be begun, or not be closed
            sent = len(provider.ledger) - sent_before
            if broken is not None:
                assert done < point or any(isinstance(outcome, SaveError) for outcome in broken.outcomes)
                assert len(broken.answers) <= sent <= len(broken.answers) + 8
                if fault == "fallocate":  # what was sent had its place on the disk
                    assert sent == len(broken.answers)
            resumed = run(provider.url, log, items(40))
            assert len(resumed.answers) == 40
            assert resumed.stats.cached >= (len(broken.answers) if broken else 0)


SMALL_DISK = """
mount -t tmpfs -o size=1m tmpfs "$1" && exec "$2" -c '
import sys; sys.path[:0] = sys.argv[2:]
from pathlib import Path
from tests.faults.test_calls_faults import fill_a_small_disk
fill_a_small_disk(Path(sys.argv[1]))' "$1" "$3" "$4"
"""


def fill_a_small_disk(disk: Path) -> None:
    """Asks until a disk of 1 MiB is full, and checks what is there then."""
    with BillingProvider() as provider:
        full = run(provider.url, disk / "calls.log", [f"item {number} " + "x" * 2000 for number in range(2000)])
        sent = len(provider.ledger)
        assert any(isinstance(outcome, SaveError) for outcome in full.outcomes)
        assert 100 < sent == len(full.answers)  # nothing was sent whose answer had no place
        with Journal(disk / "calls.log") as records:
            assert sum(record["event"] == "answer" for record in records) == sent


@pytest.mark.skipif(
    subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode != 0 if sys.platform == "linux" else True,
    reason="needs a mount namespace",
)
def test_d2_a_real_disk_that_fills_up_loses_no_answer(tmp_path: Path):
    source, root = Path(journal.__file__).parents[1], Path(__file__).parents[2]
    command = ["unshare", "-rm", "sh", "-c", SMALL_DISK, "sh", tmp_path, sys.executable, source, root]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


# --- D3: the cap ---


def spend(path: Path, seed: int) -> float:
    """Spends until the cap of 1.00, with kills between; the fraction of it that was used. Fails where the bill is higher."""
    chance, log, ledger = random.Random(seed), path / f"{seed}.log", path / f"{seed}.ledger"
    price = Price(chance.choice((100.0, 500.0)), chance.choice((500.0, 5000.0)), chance.choice((None, 50.0)))
    params = SamplingParams(max_new_tokens=chance.choice((16, 64)))
    options: dict[str, Any] = {
        "price": price,
        "cap": 1.0,
        "limits": CallLimits(concurrency=chance.choice((1, 8)), backoff=0.01, call_timeout=30.0),
    }
    plan = seeded_plan(
        seed=seed, rate=chance.choice((0.0, 0.2)), faults=("500", "429 bare", "reset during", "reset after", "truncated", "empty")
    )
    with forked(ledger, plan, dear=chance.random() < 0.5, latency=0.002) as url:
        for _ in range(chance.randint(0, 2)):
            pid = in_a_fork(lambda: run(url, log, items(400), params, **options))
            time.sleep(chance.uniform(0.02, 0.2))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        last = run(url, log, items(400), params, **options)
    bill = sum(e.input_tokens * price.input_per_million + e.output_tokens * price.output_per_million for e in read_ledger(ledger)) / 1e6
    counted = last.stats.spent + last.stats.maybe_spent
    assert any(isinstance(outcome, CostCapReached) for outcome in last.outcomes)
    assert bill <= counted + 1e-9 <= 1.0 + 1e-9
    return bill


def test_d3_six_seeds_stay_under_the_cap_through_kills_and_faults(tmp_path: Path):
    assert max(spend(tmp_path, seed) for seed in range(6)) > 0.8


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_d3_two_hundred_seeds_stay_under_the_cap(tmp_path: Path):
    bills = sorted(spend(tmp_path, seed) for seed in range(200))
    print(f"bills: least {bills[0]:.4f}, median {bills[100]:.4f}, most {bills[-1]:.4f}")
    assert bills[100] > 0.5


# --- D4: storms ---


def earlier_than_asked(provider: BillingProvider) -> list[Entry]:
    """Requests that repeat one which was told to wait, before the time was over. (That nobody else goes is seen in virtual time.)"""
    may_go: dict[str, float] = {}
    early = []
    for number, entry in enumerate(provider.ledger):
        if entry.received < may_go.get(entry.item, 0):
            early.append(entry)
        if entry.fault in ("429 seconds", "429 date"):
            may_go[entry.item] = provider.answered[number] + RETRY_AFTER
    return early


def test_d4_a_storm_of_429_is_sat_out_as_long_as_asked(tmp_path: Path):
    def plan(item: str, nth: int) -> str | None:
        return random.Random(f"{item} {nth}").choice(("429 seconds", "429 date")) if nth == 0 and item in items(3) else None

    with BillingProvider(plan) as provider:
        result = run(provider.url, tmp_path / "log", items(40))
        assert len(result.answers) == 40
        assert earlier_than_asked(provider) == []
        assert max(Counter(entry.item for entry in provider.ledger).values()) <= 5


@pytest.mark.nightly
def test_d4_a_long_storm_of_all_troubles_keeps_to_five_tries(tmp_path: Path):
    with BillingProvider(seeded_plan(seed=4, rate=0.3), hang=6.0) as provider:
        limits = CallLimits(backoff=0.01, max_backoff=0.05, call_timeout=5.0)
        result = run(provider.url, tmp_path / "log", items(400), limits=limits)
        tries = Counter(entry.item for entry in provider.ledger)
        print(f"{len(result.answers)} of 400 answered, {sum(tries.values())} requests, most for one {max(tries.values())}")
        assert earlier_than_asked(provider) == []
        assert max(tries.values()) <= 5
        assert len(result.answers) >= 390


def test_d4_after_twenty_failures_in_a_row_requests_come_one_at_a_time(tmp_path: Path):
    with BillingProvider(lambda *_: "503", latency=0.01) as provider:
        result = run(provider.url, tmp_path / "log", items(9))
        assert result.answers == []
        assert [provider.count(item) for item in items(9)] == [5] * 9
        before = 20 + 7  # 7 were on their way when the twentieth failed
        ends = [provider.answered[number] for number in range(before, 45)]
        assert all(later.received >= end for later, end in zip(provider.ledger[before + 1 :], ends, strict=False))


@pytest.mark.parametrize("fault", FINAL)
def test_d4_a_wrong_key_and_an_empty_account_stop_everything_without_a_retry(tmp_path: Path, fault: str):
    with BillingProvider(lambda item, _: fault) as provider:
        result = run(provider.url, tmp_path / "log", items(50))
        assert len(provider.ledger) <= 8
        assert all(isinstance(outcome, RemoteError) for outcome in result.outcomes)
        assert {entry.nth for entry in provider.ledger} == {0}


def test_a_client_that_repeats_requests_by_itself_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="max_retries=0"):
        Calls(OpenAIChatModel("m", base_url="http://127.0.0.1:9/v1", max_retries=2), name="m", log=tmp_path / "log")


# --- D5: malformed replies ---


@pytest.mark.parametrize("fault", MALFORMED)
def test_d5_a_malformed_reply_is_asked_for_once_more_kept_and_never_used(tmp_path: Path, fault: str):
    with BillingProvider(lambda item, nth: fault if item == "item 0" or nth == 0 else None) as provider:
        result = run(provider.url, tmp_path / "log", items(4))
        assert [provider.count(item) for item in items(4)] == [2] * 4
    assert [type(outcome) for outcome in result.outcomes] == [RemoteError] + [Answer] * 3
    with Journal(tmp_path / "log") as log:
        failed = [record for record in log if record["event"] == "failed"]
    assert len(failed) == 5
    assert all(record["billed"] == "maybe" and record["body"] and "no chat completion" in record["why"] for record in failed)


def test_d5_odd_but_well_formed_replies_are_replies(tmp_path: Path):
    with BillingProvider(lambda item, _: item) as provider:
        result = run(provider.url, tmp_path / "log", ODD)
        assert len(provider.ledger) == len(ODD)
    replies = {item: answer.reply for item, answer in zip(ODD, result.answers, strict=True)}
    assert replies["empty"].text == ""
    assert replies["length"].finish_reason == "length"
    assert replies["duplicate"].text == "About duplicate."


# --- D8: the key ---

KEY = "sk-canary-7f3a9b2c5d"
LEAKY = """
    import asyncio, logging, os, sys, traceback
    from pathlib import Path
    from vistune.calls import CallLimits, Calls
    from vistune.chat_model import OpenAIChatModel
    from vistune.types import Conversation, SamplingParams

    logging.basicConfig(level=logging.INFO)
    async def main(folder, faults):
        for fault in faults:
            model = OpenAIChatModel("m", api_key=os.environ["TEACHER_KEY"])
            limits = CallLimits(backoff=0.01, max_backoff=0.02, call_timeout=1.0, max_attempts=2, patience=60)
            with Calls(model, name="m", log=folder / f"{fault}.log", limits=limits) as calls:
                print(repr(model), repr(calls), model.__dict__, calls.__dict__, file=sys.stderr)
                try:
                    print(await calls.ask(Conversation(()).then("user", fault), SamplingParams(max_new_tokens=8)), file=sys.stderr)
                except Exception as error:
                    traceback.print_exc()
                    print(repr(error), vars(error), error.__cause__, error.__context__, file=sys.stderr)
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2:]))
    raise RuntimeError("a crash at the end")
"""


def test_d8_the_key_is_in_no_output_file_or_process_list_whatever_fails(tmp_path: Path):
    with BillingProvider(lambda item, _: item, hang=1.5) as provider:
        environment = {
            **os.environ,
            "TEACHER_KEY": KEY,
            "OPENAI_BASE_URL": provider.url,
            "PYTHONPATH": str(Path(journal.__file__).parents[1]),
        }
        command = [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(LEAKY), str(tmp_path), *FAULTS]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            arguments = Path(f"/proc/{process.pid}/cmdline")
            assert not arguments.exists() or KEY not in arguments.read_text()
            output = process.communicate()[0]
        assert provider.authorizations == {f"Bearer {KEY}"}
        assert {entry.item for entry in provider.ledger} == set(FAULTS)
    assert "a crash at the end" in output
    assert "***" in output  # what the server echoed was shown, without it
    assert KEY not in output
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == len(FAULTS)
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


# --- D9: the same request twice ---


def test_d9_two_runs_that_ask_the_same_make_one_call_and_a_new_version_makes_another(tmp_path: Path):
    with BillingProvider() as provider:
        for _ in range(2):
            run(provider.url, tmp_path / "log", ["same", "same"])
        assert provider.count("same") == 1
        run(provider.url, tmp_path / "log", ["same"], version="another prompt")
        assert provider.count("same") == 2
    assert events(tmp_path / "log")["answer"] == 2


# --- D10: outages ---


def outage(path: Path, seconds: float, limits: CallLimits) -> float:
    """Goes through an outage of the provider in the midst of a run; the share of a processor that the waiting took."""

    async def main() -> float:
        with BillingProvider() as provider:
            model = OpenAIChatModel("m", base_url=provider.url, api_key="sk-test")
            with Calls(model, name="m", log=path / "log", limits=limits) as calls:
                await calls.ask(question("early"), PARAMS)
                await asyncio.to_thread(provider.close)
                asking = asyncio.ensure_future(asyncio.gather(*(calls.ask(question(item), PARAMS) for item in items(20))))
                await asyncio.sleep(0.5)  # the first failures are not the waiting
                before, began = time.process_time(), time.monotonic()
                await asyncio.sleep(seconds)
                share = (time.process_time() - before) / (time.monotonic() - began)
                with BillingProvider(port=provider.port):
                    assert len(await asking) == 20
                assert calls.stats.failed == 0
            await model.close()
        return share

    return asyncio.run(main())


def test_d10_an_outage_is_slept_through_and_the_run_goes_on_by_itself(tmp_path: Path):
    limits = CallLimits(backoff=0.2, max_backoff=0.5, circuit_failures=8)
    assert outage(tmp_path, 2.0, limits) < 0.05


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_d10_a_long_outage_takes_no_processor(tmp_path: Path):
    share = outage(tmp_path, 300.0, CallLimits())
    print(f"{100 * share:.2f} % of a processor")
    assert share < 0.05


def test_d10_the_wall_clock_may_jump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 86_400 * random.choice((-1, 1)))
    with BillingProvider(lambda item, nth: "429 seconds" if nth == 0 and item == "item 0" else None) as provider:
        result = run(provider.url, tmp_path / "log", items(20))
        assert len(result.answers) == 20
        assert earlier_than_asked(provider) == []


def test_passing_troubles_pass(tmp_path: Path):
    with BillingProvider(lambda item, nth: item if nth == 0 else None, hang=2.5) as provider:
        limits = CallLimits(backoff=0.01, max_backoff=0.05, call_timeout=2.0)
        result = run(provider.url, tmp_path / "log", PASSING, price=PRICE, limits=limits)
        assert len(result.answers) == len(PASSING)
        assert provider.bill(PRICE.input_per_million, PRICE.output_per_million) <= result.stats.spent + result.stats.maybe_spent
    assert result.stats.maybe_billed >= 6
