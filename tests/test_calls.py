"""Rates, retries, money and the log around a scripted model, in virtual time. Against a provider over HTTP: faults/test_calls_faults.py."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.faults import virtual_time
from tests.faults.virtual_time import now

from vistune.calls import Answer, CallLimits, Calls, Price
from vistune.chat_model import ChatModel, ScriptedChatModel, ScriptedReply
from vistune.errors import ContextLengthError, CostCapReached, DataError, ImageError, Locked, RemoteError, UsageError
from vistune.journal import Journal
from vistune.types import ANY_OBJECT, Conversation, Delta, ImagePart, Reply, SamplingParams, TokenLogprob

PARAMS = SamplingParams(max_new_tokens=100)
PRICE = Price(input_per_million=1_000_000, output_per_million=1_000_000)
"""One unit of money a token, so that costs can be read."""


def question(text: str) -> Conversation:
    return Conversation(()).then("user", text)


def answer_to(conversation: Conversation, *_: object) -> Reply:
    return Reply(f"about {conversation.messages[-1].text}", "stop", prompt_tokens=10, completion_tokens=5)


class Provider:
    """Answers by `script(question, n)`, n counting from 0 for each question, `seconds` later; remembers when it was asked what."""

    def __init__(self, script: Callable[[str, int], ScriptedReply | None] = lambda *_: None, *, seconds: float = 0.1):
        self.asked: list[tuple[float, str]] = []
        self.model = ScriptedChatModel(self._play, pause=seconds)
        self._script = script

    def _play(self, conversation: Conversation, _: SamplingParams) -> ScriptedReply:
        text = conversation.messages[-1].text
        scripted = self._script(text, self.count(text))
        self.asked.append((now(), text))
        return answer_to(conversation) if scripted is None else scripted

    def count(self, text: str) -> int:
        return sum(asked == text for _, asked in self.asked)

    @property
    def times(self) -> list[float]:
        return [time for time, _ in self.asked]


def calls_of(provider: Provider, path: Path, **options: Any) -> Calls:
    return Calls(provider.model, name="teacher", log=path / "calls.log", **options)


async def ask_all(calls: Calls, texts: list[str], params: SamplingParams = PARAMS) -> list[Answer | BaseException]:
    return await asyncio.gather(*(calls.ask(question(text), params) for text in texts), return_exceptions=True)


def run(provider: Provider, path: Path, texts: list[str], params: SamplingParams = PARAMS, **options: Any) -> Any:
    """(outcomes, stats) of asking all texts at once, in virtual time."""

    async def main() -> Any:
        with calls_of(provider, path, **options) as calls:
            return await ask_all(calls, texts, params), calls.stats

    return virtual_time.run(main())


# --- the cache ---


def test_what_was_answered_is_never_sent_again(tmp_path: Path):
    provider = Provider()
    first, _ = run(provider, tmp_path, ["a", "b"])
    second, stats = run(provider, tmp_path, ["b", "a", "c"])
    assert [answer.reply.text for answer in second] == ["about b", "about a", "about c"]
    assert [answer.cached for answer in second] == [True, True, False]
    assert second[1] == dataclasses.replace(first[0], cached=True)
    assert [text for _, text in provider.asked] == ["a", "b", "c"]
    assert (stats.asked, stats.answered, stats.cached) == (3, 1, 2)


def test_the_key_changes_with_everything_that_changes_the_answer(tmp_path: Path):
    (tmp_path / "one.png").write_bytes(b"picture")
    (tmp_path / "same.png").write_bytes(b"picture")
    (tmp_path / "other.png").write_bytes(b"another")
    model = Provider().model

    def key(
        text: str = "q", role: Any = "user", image: Any = None, name: str = "m", version: str = "", index: int = 0, **params: Any
    ) -> str:
        parts = [text] if image is None else [text, ImagePart(image)]
        with Calls(model, name=name, version=version, log=tmp_path / "log") as calls:
            return calls.key(Conversation(()).then(role, *parts), dataclasses.replace(PARAMS, **params), index)

    keys = [
        key(),
        key(text="r"),
        key(role="system"),
        key(image=tmp_path / "one.png"),
        key(image=tmp_path / "other.png"),
        key(image="https://a.test/one.png"),
        key(name="n"),
        key(version="2"),
        key(index=1),
        *(key(temperature=temperature) for temperature in (0.5, 1.0)),
        key(seed=1),
        key(seed=2),
        key(stop=("\n",)),
        key(max_new_tokens=9),
        key(response_schema=ANY_OBJECT),
        key(frequency_penalty=0.5),
        key(logit_bias=((1, 2.0),)),
    ]
    assert len(set(keys)) == len(keys)
    assert key(image=tmp_path / "one.png") == key(image=tmp_path / "same.png") == key(image=b"picture")
    with pytest.raises(ImageError):
        key(image=tmp_path / "missing.png")


def test_the_key_of_what_was_bought_by_an_earlier_version_stays_the_same(tmp_path: Path):
    with Calls(Provider().model, name="m", version="", log=tmp_path / "log") as calls:
        key = calls.key(Conversation(()).then("user", "q"), SamplingParams(max_new_tokens=9, stop=("x",), seed=3), 1)
    assert key == "089d0f3c94eeec75cde532c98f0fc00ddc655f2a7f5a1910956310d65d7f4bc0"  # as of the first version


def test_the_same_question_asked_twice_at_once_is_one_call(tmp_path: Path):
    provider = Provider()
    answers, stats = run(provider, tmp_path, ["a", "a", "a"])
    assert len(provider.asked) == 1
    assert [answer.cached for answer in answers] == [False, True, True]
    assert (stats.answered, stats.cached) == (1, 2)


def test_who_waits_for_a_shared_call_gets_it_although_the_first_left(tmp_path: Path):
    async def main() -> tuple[Answer, bool]:
        with calls_of(provider := Provider(seconds=1.0), tmp_path) as calls:
            first, second = (asyncio.create_task(calls.ask(question("a"), PARAMS)) for _ in range(2))
            await asyncio.sleep(0.5)
            first.cancel()
            return await second, len(provider.asked) == 1

    answer, was_one_call = virtual_time.run(main())
    assert answer.reply.text == "about a"
    assert was_one_call


def test_a_call_that_nobody_waits_for_is_cancelled_and_may_have_been_billed(tmp_path: Path):
    async def main() -> Any:
        with calls_of(provider := Provider(seconds=1.0), tmp_path, price=PRICE) as calls:
            task = asyncio.create_task(calls.ask(question("a"), PARAMS))
            await asyncio.sleep(0.5)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return provider.model.num_active, provider.model.num_cancelled, calls.stats

    active, cancelled, stats = virtual_time.run(main())
    assert (active, cancelled) == (0, 1)
    assert stats.failed == 0
    assert (stats.maybe_billed, stats.maybe_spent, stats.reserved) == (1, 81 + 100, 0)


def test_draws_of_one_question_are_told_apart_by_their_index_which_moves_the_seed(tmp_path: Path):
    async def main() -> list[int | None]:
        provider = Provider()
        with calls_of(provider, tmp_path) as calls:
            for index in (0, 1, 1):
                await calls.ask(question("a"), dataclasses.replace(PARAMS, seed=5), sample_index=index)
        return [params.seed for _, params in provider.model.calls]

    assert virtual_time.run(main()) == [5, 6]


def test_a_reply_comes_out_of_the_log_as_it_went_in(tmp_path: Path):
    logprobs = (TokenLogprob("A", -0.5, (("B", -1.0), ("C", -2.0))), TokenLogprob("\ud83d", -9999.0))
    reply = Reply("half a pair \ud83d\n\0", "length", prompt_tokens=3, cached_tokens=2, completion_tokens=2, logprobs=logprobs)
    provider = Provider(lambda *_: reply)
    for _ in range(2):
        answers, _ = run(provider, tmp_path, ["a"])
        assert answers[0].reply == reply
    assert len(provider.asked) == 1


def test_it_is_a_chat_model_whose_stream_is_the_logged_reply(tmp_path: Path):
    async def main() -> list[Delta]:
        with calls_of(Provider(), tmp_path) as calls:
            assert isinstance(calls, ChatModel)
            return [delta async for delta in calls.stream(question("a"), PARAMS)]

    (delta,) = virtual_time.run(main())
    assert delta.text == "about a"
    assert delta.reply == answer_to(question("a"))


# --- failures ---


def test_a_failure_is_repeated_with_growing_pauses_at_most_five_times_and_never_cached(tmp_path: Path):
    provider = Provider(lambda *_: RemoteError("busy", status=500), seconds=0.0)
    outcomes, stats = run(provider, tmp_path, ["a"])
    assert isinstance(outcomes[0], RemoteError)
    pauses = [later - earlier for earlier, later in itertools.pairwise(provider.times)]
    assert all(full / 2 <= pause <= full for pause, full in zip(pauses, (1, 2, 4, 8), strict=True))
    assert (stats.failed, stats.retries) == (1, 4)
    outcomes, _ = run(provider, tmp_path, ["a"])
    assert len(provider.asked) == 10


def test_nobody_calls_earlier_than_the_provider_asked(tmp_path: Path):
    slow_down = RemoteError("slow down", status=429, retry_after=30.0)
    provider = Provider(lambda text, n: slow_down if text == "a" and n == 0 else None)
    outcomes, _ = run(provider, tmp_path, [*"abcdefgh"], limits=CallLimits(concurrency=2))
    assert all(isinstance(outcome, Answer) for outcome in outcomes)
    refused_at = provider.times[0] + 0.1
    assert not [time for time in provider.times if refused_at < time < refused_at + 30]
    assert provider.times[-1] < refused_at + 33


def test_an_absurd_pause_ends_everything_with_a_clear_error(tmp_path: Path):
    provider = Provider(lambda *_: RemoteError("slow down", status=429, retry_after=1e9))
    outcomes, _ = run(provider, tmp_path, [*"abcdefghijkl"])
    assert len(provider.asked) == 8
    assert all(isinstance(outcome, RemoteError) for outcome in outcomes)
    assert "1,000,000,000 s" in str(outcomes[0])


@pytest.mark.parametrize(
    "error",
    [*(RemoteError("no", status=status) for status in (401, 402, 403, 404)), RemoteError("no", status=429, code="insufficient_quota")],
    ids=lambda error: error.code or str(error.status),
)
def test_what_no_repetition_mends_stops_everything_at_once(tmp_path: Path, error: RemoteError):
    provider = Provider(lambda text, _: error if text == "c" else None)
    outcomes, stats = run(provider, tmp_path, [*"abcdefgh"], limits=CallLimits(concurrency=1))
    assert [text for _, text in provider.asked] == ["a", "b", "c"]
    assert [type(outcome) for outcome in outcomes] == [Answer] * 2 + [RemoteError] * 6
    assert all(outcome.status == error.status for outcome in outcomes[2:])
    assert stats.retries == 0


@pytest.mark.parametrize(
    "error", [RemoteError("bad", status=400), RemoteError("withheld", status=200, code="content_filter"), ContextLengthError("long"),
              ImageError("missing", "no picture")], ids=lambda error: type(error).__name__ + str(getattr(error, "status", ""))
)  # fmt: skip
def test_a_refused_question_costs_the_others_nothing(tmp_path: Path, error: Exception):
    provider = Provider(lambda text, _: error if text.startswith("bad") else None)
    outcomes, stats = run(provider, tmp_path, [*(f"bad {n}" for n in range(30)), "good"])
    assert [type(outcome) for outcome in outcomes] == [type(error)] * 30 + [Answer]
    assert len(provider.asked) == 31
    assert stats.retries == 0


def test_an_unreadable_answer_is_asked_for_once_more_and_kept_with_its_reason(tmp_path: Path):
    provider = Provider(lambda *_: RemoteError("no completion", status=200, body="<html>"))
    outcomes, stats = run(provider, tmp_path, ["a"], price=PRICE)
    assert str(outcomes[0]) == "no completion"
    assert len(provider.asked) == 2
    assert stats.maybe_billed == 2
    with Journal(tmp_path / "calls.log") as log:
        failures = [record for record in log if record["event"] == "failed"]
    assert [(record["why"], record["body"]) for record in failures] == [("no completion", "<html>")] * 2


def test_after_twenty_failures_in_a_row_one_call_at_a_time_is_tried_until_one_succeeds(tmp_path: Path):
    provider = Provider(lambda *_: RemoteError("down", status=503) if now() < 1600 else None)
    outcomes, _ = run(provider, tmp_path, [str(n) for n in range(100)], limits=CallLimits(concurrency=16, max_attempts=100))
    assert all(isinstance(outcome, Answer) for outcome in outcomes)
    during = [time for time in provider.times if time < 1600]
    assert len(during) < 20 + 16 + 20
    probes = during[-5:]
    assert all(30 <= later - earlier <= 61 for earlier, later in itertools.pairwise(probes))
    after = [time for time in provider.times if time >= 1600]
    assert max(after) - min(after) < 5


def test_five_tries_at_most_are_kept_to_through_an_outage(tmp_path: Path):
    provider = Provider(lambda *_: RemoteError("down", status=503) if now() < 2000 else None)
    texts = [str(n) for n in range(20)]
    outcomes, _ = run(provider, tmp_path, texts)
    assert max(provider.count(text) for text in texts) <= 5
    assert sum(isinstance(outcome, Answer) for outcome in outcomes) >= 10


def test_patience_has_an_end(tmp_path: Path):
    provider = Provider(lambda *_: RemoteError("down", status=503))
    outcomes, _ = run(provider, tmp_path, [str(n) for n in range(200)], limits=CallLimits(patience=600.0))
    assert max(provider.times) - min(provider.times) <= 601
    assert "patience is 600 s" in str(outcomes[-1])
    assert len(provider.asked) < 60


# --- outages and clocks ---


def test_an_outage_is_waited_out_and_costs_neither_tries_nor_money(tmp_path: Path):
    away = RemoteError("cannot be reached", reached=False)
    provider = Provider(lambda *_: away if 1001 < now() < 1001 + 1800 else None)
    outcomes, stats = run(provider, tmp_path, [str(n) for n in range(200)], price=PRICE)
    assert all(isinstance(outcome, Answer) for outcome in outcomes)
    assert (stats.maybe_billed, stats.failed) == (0, 0)
    assert len(provider.asked) < 200 + 100
    assert max(provider.times) < 1001 + 1800 + 60 + 15


def test_an_address_that_never_answered_is_given_up_soon(tmp_path: Path):
    for concurrency in (1, 8):
        provider = Provider(lambda *_: RemoteError("cannot be reached", reached=False))
        outcomes, _ = run(provider, tmp_path, [str(n) for n in range(50)], limits=CallLimits(concurrency=concurrency))
        assert all("cannot be reached" in str(outcome) for outcome in outcomes)
        assert max(provider.times) - min(provider.times) < 20


def test_a_request_without_an_answer_ends_and_may_have_been_billed(tmp_path: Path):
    provider = Provider(lambda text, n: None if n else Reply("late", "stop"), seconds=0.0)
    provider.model = ScriptedChatModel(lambda *_: "late", pause=1e6)
    outcomes, stats = run(provider, tmp_path, ["a"], limits=CallLimits(call_timeout=60.0), price=PRICE)
    assert "within 60 s" in str(outcomes[0])
    assert (stats.maybe_billed, stats.maybe_spent) == (5, 5 * 181)


def test_a_clock_that_jumps_an_hour_ahead_only_times_out_what_was_under_way(tmp_path: Path):
    async def main() -> Any:
        provider = Provider(seconds=1.0)
        with calls_of(provider, tmp_path, limits=CallLimits(call_timeout=60.0)) as calls:
            asking = asyncio.ensure_future(ask_all(calls, [str(n) for n in range(50)]))
            await asyncio.sleep(2.5)
            loop = asyncio.get_running_loop()
            assert isinstance(loop, virtual_time.VirtualLoop)
            loop.now += 3600
            return await asking, provider, calls.stats

    outcomes, provider, stats = virtual_time.run(main())
    assert all(isinstance(outcome, Answer) for outcome in outcomes)
    assert len(provider.asked) <= 50 + 8
    assert stats.maybe_billed <= 8


# --- rates ---


def most_in_a_minute(uses: list[tuple[float, float]]) -> float:
    return max(sum(amount for time, amount in uses if start <= time < start + 60) for start, _ in uses)


def test_no_minute_sees_more_requests_than_allowed_and_none_is_left_unused(tmp_path: Path):
    provider = Provider()
    run(provider, tmp_path, [str(n) for n in range(100)], limits=CallLimits(requests_per_minute=30))
    assert most_in_a_minute([(time, 1) for time in provider.times]) == 30
    assert max(provider.times) - min(provider.times) < 3 * 60 + 5


def test_no_minute_sees_more_tokens_than_allowed_and_the_estimate_is_corrected_by_the_bill(tmp_path: Path):
    provider = Provider()
    run(provider, tmp_path, [str(n) for n in range(200)], limits=CallLimits(concurrency=2, tokens_per_minute=1000))
    assert most_in_a_minute([(time, 15) for time in provider.times]) <= 1000
    # 15 tokens a call in truth, 181 by the estimate: 5 calls a minute if it were not corrected
    assert max(provider.times) - min(provider.times) < 4 * 60


def test_concurrency_is_kept(tmp_path: Path):
    provider = Provider(lambda text, n: RemoteError("busy", status=500) if n == 0 and int(text) % 3 == 0 else None)
    run(provider, tmp_path, [str(n) for n in range(50)], limits=CallLimits(concurrency=3))
    assert provider.model.max_active == 3


# --- money ---


def test_a_call_that_could_exceed_the_cap_is_not_sent(tmp_path: Path):
    provider = Provider()
    outcomes, stats = run(provider, tmp_path, [str(n) for n in range(50)], price=PRICE, cap=400.0)
    # Each is 15 in the end, at most 181: reserved two at a time, until less than 181 is left.
    assert len(provider.asked) == 15
    assert stats.spent == 15 * 15
    refused = [outcome for outcome in outcomes if isinstance(outcome, CostCapReached)]
    assert len(refused) == 35
    assert refused[0].exit_code == 9
    assert provider.model.max_active == 2


def test_the_cap_counts_what_earlier_runs_spent_or_may_have_spent(tmp_path: Path):
    run(Provider(), tmp_path, ["a"], price=PRICE, cap=400.0)
    with Journal(tmp_path / "calls.log") as log:
        log.append({"event": "sent", "key": "00", "try": 1, "worst": 181.0})
        log.append({"event": "sent", "key": "00", "try": 1, "worst": 181.0})
    provider = Provider()
    outcomes, stats = run(provider, tmp_path, ["a", "b"], price=PRICE, cap=400.0)
    assert (stats.spent, stats.maybe_billed, stats.maybe_spent) == (15, 2, 362)
    assert isinstance(outcomes[0], Answer)
    assert isinstance(outcomes[1], CostCapReached)
    assert provider.asked == []


def test_tokens_that_are_not_counted_are_billed_at_their_worst(tmp_path: Path):
    _, stats = run(Provider(lambda *_: "no usage"), tmp_path, ["a"], price=PRICE)
    assert stats.spent == 181 - 0


def test_cached_input_has_its_own_price():
    assert Price(2.0, 8.0).of(1_000_000, 500_000, 400_000) == 6.0
    assert math.isclose(Price(2.0, 8.0, 0.5).of(1_000_000, 500_000, 400_000), 0.6 * 2 + 0.4 * 0.5 + 4)


# --- what cannot be used ---


def test_what_makes_no_sense_is_refused_with_a_reason(tmp_path: Path):
    model = Provider().model
    with pytest.raises(UsageError, match="needs a price"):
        Calls(model, name="m", log=tmp_path / "log", cap=1.0)
    for limits in ({"concurrency": 0}, {"requests_per_minute": math.nan}, {"patience": math.inf}):
        with pytest.raises(UsageError, match=next(iter(limits))):
            CallLimits(**limits)
    with pytest.raises(UsageError, match="from 0 up"):
        Price(-1.0, 1.0)


def test_a_log_has_one_writer_and_only_records_of_calls(tmp_path: Path):
    with calls_of(Provider(), tmp_path), pytest.raises(Locked):
        calls_of(Provider(), tmp_path)
    with Journal(tmp_path / "other.log") as log:
        log.append({"id": 3})
    with pytest.raises(DataError, match="not one of calls"):
        Calls(Provider().model, name="m", log=tmp_path / "other.log")
    with Journal(tmp_path / "other.log"):
        pass  # it was let go of
