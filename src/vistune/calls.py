"""Around any `ChatModel`, the teacher's or the judge's: an answer is paid for once, and what may be spent has an end.

    with Calls(model, name="gpt-4o-mini", log=out / "calls.log", price=Price(0.15, 0.6), cap=5.0) as calls:
        answer = await calls.ask(conversation, SamplingParams(max_new_tokens=512))

Before a request is sent, the most that it can cost is reserved and written to the log; the answer is on the disk before anyone sees it. So
after a crash nothing that was answered is asked again, and what was under way is counted as spent. Providers have no idempotency keys: a
request without an answer *may* have been billed, and is counted so. Failures are logged, but never taken for answers.

When the next request may go is decided in `rates.py`; the file format and its crash safety are `journal.py`'s.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import itertools
import json
import math
import threading
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vistune.chat_model import GREEDY, ChatModel, OpenAIChatModel, require_single
from vistune.errors import CostCapReached, DataError, ImageError, RemoteError, SaveError, UsageError, VistuneError
from vistune.journal import Journal
from vistune.rates import CallLimits, Gate, verdict
from vistune.types import Conversation, Delta, Part, Reply, SamplingParams, TextPart, TokenLogprob

__all__ = ["Answer", "CallLimits", "CallStats", "Calls", "Price", "reply_from"]


@dataclass(frozen=True)
class Price:
    """What tokens cost, in units of one currency per million. Cached input costs what input does, where nothing else is said."""

    input_per_million: float
    output_per_million: float
    cached_input_per_million: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise UsageError(f"{name} is {value}; a price is a number from 0 up.")

    def of(self, input_tokens: int, output_tokens: int, cached_tokens: int = 0) -> float:
        """The cost of one call; `cached_tokens` are some of the input's."""
        cached = self.input_per_million if self.cached_input_per_million is None else self.cached_input_per_million
        fresh = max(input_tokens - cached_tokens, 0)
        return (fresh * self.input_per_million + cached_tokens * cached + output_tokens * self.output_per_million) / 1e6


@dataclass(frozen=True)
class Answer:
    """A reply with what it took: its cost when it was bought, the tries of that run, and whether it was bought before this call."""

    key: str
    reply: Reply
    cost: float
    cached: bool
    attempts: int


@dataclass
class CallStats:
    """Figures that change as the calls go on. Money and `maybe_billed` are those of the whole log, earlier runs included; all else is of
    this run. `spent` is what answers cost, `maybe_spent` the most that `maybe_billed` requests without an answer can have cost, `reserved`
    the most that those under way can cost; their sum never exceeds the cap. `failed` counts calls that ended in an error, be it only that
    all was stopped.
    """

    asked: int = 0
    answered: int = 0
    cached: int = 0
    failed: int = 0
    retries: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    spent: float = 0.0
    reserved: float = 0.0
    maybe_billed: int = 0
    maybe_spent: float = 0.0


@dataclass(frozen=True)
class _Order:
    """A call to be bought: what is sent, and the most that it can take of each supply."""

    key: str
    conversation: Conversation
    params: SamplingParams
    tokens: int
    worst: float
    room: int


class Calls:
    """A `ChatModel` whose replies come from the log where they can, and from `model` within limits and a cap where they must.

    Args:
        name: the model's name, a part of every key; `version` another, for whatever else changes its answers.
        log: the file of requests and answers. It may be shared by models, not by processes.
        price: what the model's tokens cost; a model of one's own needs none.
        cap: the most that the whole log may cost, in the price's currency.

    Raises:
        UsageError: a cap without a price, or a model that repeats requests by itself.
        Locked, DataError, SaveError: as `Journal`.

    Belongs to one event loop.
    """

    def __init__(
        self,
        model: ChatModel,
        *,
        name: str,
        log: Path,
        limits: CallLimits | None = None,
        price: Price | None = None,
        cap: float | None = None,
        version: str = "",
    ):
        if cap is not None and (price is None or not (math.isfinite(cap) and cap > 0)):
            raise UsageError(f"A cost cap of {cap} needs a price, and must be a number above 0.")
        if isinstance(model, OpenAIChatModel) and model.max_retries:
            raise UsageError(f"The client of {name} repeats requests by itself, which nobody counts; make it with max_retries=0.")
        self._model, self._name, self._version = model, name, version
        self._limits, self._price, self._cap = limits or CallLimits(), price, cap
        self.stats = CallStats()
        self._gate = Gate(self._limits)
        self._slots = asyncio.Semaphore(self._limits.concurrency)
        self._reserved: dict[int, _Order] = {}  # by id: a call may begin anew while its cancelled one ends
        self._under_way: dict[str, asyncio.Task[Answer]] = {}
        self._waiting: dict[str, int] = {}
        self._log = _AnswerLog(log, self.stats, on_failure=self._gate.stop)

    async def ask(self, conversation: Conversation, params: SamplingParams, *, sample_index: int = 0) -> Answer:
        """The answer to a conversation. Asked twice, also at the same time, it is bought once.

        Args:
            sample_index: tells several draws of one conversation apart; added to the seed where there is one.

        Raises:
            CostCapReached: this call could exceed the cap; nothing was sent.
            RemoteError: the provider refused or failed at this call, or stopped all calls for good.
            SaveError: the log cannot be written (disk full, ...); nothing more is sent.
        """
        require_single(params)
        if _pictures(conversation):
            key = await asyncio.to_thread(self.key, conversation, params, sample_index)
        else:
            key = self.key(conversation, params, sample_index)
        self.stats.asked += 1
        if key in self._log:
            self.stats.cached += 1
            return self._log.answer(key)
        task = self._under_way.get(key)
        shared = task is not None
        if task is None:
            order = self._order(key, conversation, params, sample_index)
            task = self._under_way[key] = asyncio.create_task(self._buy(order))
            task.add_done_callback(lambda task: self._ended(key, task))
        self._waiting[key] = self._waiting.get(key, 0) + 1
        try:
            answer = await asyncio.shield(task)
        finally:
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key]
                if not task.done():  # the last who wanted it was cancelled
                    self._under_way.pop(key, None)  # who asks from now on begins anew
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
        if not shared:
            return answer
        self.stats.cached += 1
        return dataclasses.replace(answer, cached=True)

    def _ended(self, key: str, task: asyncio.Task[Answer]) -> None:
        if self._under_way.get(key) is task:
            del self._under_way[key]
        if not task.cancelled() and task.exception() is not None:
            self.stats.failed += 1

    async def generate(self, conversation: Conversation, params: SamplingParams = GREEDY) -> Reply:
        return (await self.ask(conversation, params)).reply

    async def stream(self, conversation: Conversation, params: SamplingParams = GREEDY) -> AsyncGenerator[Delta, None]:
        """The reply in one piece: it is shown when it is safe in the log."""
        reply = await self.generate(conversation, params)
        yield Delta(reply.text, reply)

    def key(self, conversation: Conversation, params: SamplingParams, sample_index: int = 0) -> str:
        """The sha256 of everything that changes the answer, images by their content. Reads the image files."""
        messages = [[message.role, [_part(part) for part in message.parts]] for message in conversation.messages]
        # The first parameters always stand in a key, `response_format` as the null it was; later ones only where they ask for something. So
        # a log that was paid for keeps its answers when parameters are added.
        fields = {field.name: (getattr(params, field.name), field.default) for field in dataclasses.fields(params)}
        parameters = {name: value for name, (value, neutral) in fields.items() if name in _FIRST_PARAMETERS or value != neutral}
        parameters["response_format"] = None
        document = [self._name, self._version, sample_index, messages, parameters]
        return hashlib.sha256(json.dumps(document, sort_keys=True, default=dict).encode("ascii")).hexdigest()

    def close(self) -> None:
        """Makes the log durable and lets others write it."""
        self._log.close()

    def __enter__(self) -> Calls:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- buying one answer ---

    def _order(self, key: str, conversation: Conversation, params: SamplingParams, sample_index: int) -> _Order:
        prompt = _most_prompt_tokens(conversation, params, self._limits.tokens_per_image)
        return _Order(
            key,
            conversation,
            params if params.seed is None else dataclasses.replace(params, seed=params.seed + sample_index),
            tokens=prompt + params.max_new_tokens,
            worst=self._price.of(prompt, params.max_new_tokens) if self._price else 0.0,
            room=_log_room(params),
        )

    async def _buy(self, order: _Order) -> Answer:
        """Tries until there is an answer or a reason to give up."""
        sent = malformed = 0  # of the tries
        async with self._slots:
            for tries in itertools.count(1):
                try:
                    return await self._try(order, tries)
                except RemoteError as error:
                    self._gate.raise_if_stopped()
                    sent += error.reached
                    malformed += error.status == 200
                    # An answer that could not be read was paid for, and the next may be no better: it gets one more chance only.
                    if verdict(error) == "refuse" or malformed > 1 or sent >= self._limits.max_attempts:
                        raise
                self.stats.retries += 1
                await self._gate.back_off(tries)
        raise AssertionError("it counts without end")

    async def _try(self, order: _Order, tries: int) -> Answer:
        """One request: let through and reserved, logged, sent, and accounted for whatever comes of it."""
        async with self._gate.passage(order.tokens, lambda: self._reserve(order)) as passage:
            billed: Literal["no", "maybe", "yes"] = "no"
            why, body = "it was cancelled", ""
            try:
                sent = {"event": "sent", "key": order.key, "try": tries, "worst": order.worst}
                await self._log.write(sent, room=sum(each.room for each in self._reserved.values()))
                await self._gate.pause_over()
                billed = "maybe"
                reply = await self._reply(order)
                billed, cost = "yes", self._cost(order, reply)
            except RemoteError as error:
                if billed == "maybe":
                    passage.failed(error, tries)
                    billed = "maybe" if _may_be_billed(error) else "no"
                why, body = str(error), error.body
                raise
            except VistuneError as error:  # refused before any work, such as an image that cannot be read
                billed, why = "no", str(error)
                raise
            finally:
                del self._reserved[id(order)]
                self._count_reserved()
                if billed != "yes":
                    self._count_unanswered(order, tries, billed, why, body)
            passage.answered(reply.prompt_tokens + reply.completion_tokens)
            self.stats.spent += cost
        # Nobody else had a turn since the reservation ended: the log takes records in order, so what others reserve comes after this one.
        await self._log.write({"event": "answer", "key": order.key, "try": tries, "cost": cost, "reply": dataclasses.asdict(reply)})
        self.stats.answered += 1
        self.stats.input_tokens += reply.prompt_tokens
        self.stats.output_tokens += reply.completion_tokens
        return Answer(order.key, reply, cost, cached=False, attempts=tries)

    async def _reply(self, order: _Order) -> Reply:
        try:
            async with asyncio.timeout(self._limits.call_timeout):
                return await self._model.generate(order.conversation, order.params)
        except TimeoutError:
            raise RemoteError(f"{self._name} gave no answer within {self._limits.call_timeout:g} s; it may have been billed.") from None

    def _reserve(self, order: _Order) -> bool:
        """Takes the order's worst case out of what the cap leaves; False while calls under way may yet leave enough."""
        stats = self.stats
        if self._cap is not None and stats.spent + stats.maybe_spent + stats.reserved + order.worst > self._cap:
            if self._reserved:
                return False
            maybe = f", and {stats.maybe_billed} requests without an answer up to {stats.maybe_spent:.6g}" if stats.maybe_billed else ""
            raise CostCapReached(
                f"The cap of {self._cap:.6g} is reached: answers cost {stats.spent:.6g}{maybe}; the next call may cost {order.worst:.6g}. "
                "What was answered is kept; raise the cap to go on."
            )
        self._reserved[id(order)] = order
        self._count_reserved()
        return True

    def _count_reserved(self) -> None:
        self.stats.reserved = math.fsum(order.worst for order in self._reserved.values())

    def _count_unanswered(self, order: _Order, tries: int, billed: Literal["no", "maybe"], why: str, body: str) -> None:
        cost = 0.0
        if billed == "maybe":
            cost = order.worst
            self.stats.maybe_billed += 1
            self.stats.maybe_spent += cost
        self._log.post({"event": "failed", "key": order.key, "try": tries, "billed": billed, "cost": cost, "why": why, "body": body})

    def _cost(self, order: _Order, reply: Reply) -> float:
        """What a reply cost; the worst case where the provider does not count its tokens."""
        counted = reply.prompt_tokens and (reply.completion_tokens or not reply.text)
        if self._price is None or not counted:
            return order.worst
        return self._price.of(reply.prompt_tokens, reply.completion_tokens, reply.cached_tokens)


_FIRST_PARAMETERS = ("max_new_tokens", "temperature", "top_p", "stop", "seed", "n", "logprobs")


def _may_be_billed(error: RemoteError) -> bool:
    """Whether a request that failed so can be on the bill: not where nothing was reached, nor where the server said no (4xx)."""
    return error.reached and not (error.status is not None and 400 <= error.status < 500)


def _part(part: Part) -> list[str]:
    """What tells a part of a message from others: text, an address, or the digest of a file's content."""
    if isinstance(part, TextPart):
        return ["text", part.text]
    kind, source = type(part).__name__, part.source
    if isinstance(source, str):
        return [kind, "address", source]
    try:
        content = source.read_bytes() if isinstance(source, Path) else source
    except OSError as error:
        raise ImageError("missing", f"{source} cannot be read ({error.strerror}); check the path.") from error
    return [kind, "sha256", hashlib.sha256(content).hexdigest()]


def _most_prompt_tokens(conversation: Conversation, params: SamplingParams, tokens_per_image: int) -> int:
    """More tokens than the prompt can have: no tokenizer makes more than one of a byte, and no chat template adds 16 to a message."""
    texts = [message.text for message in conversation.messages]
    if params.response_schema is not None:  # servers put the schema into the prompt
        texts.append(params.response_schema)
    return sum(len(text.encode("utf-8", "surrogatepass")) + 16 for text in texts) + 64 + _pictures(conversation) * tokens_per_image


def _pictures(conversation: Conversation) -> int:
    return sum(not isinstance(part, TextPart) for message in conversation.messages for part in message.parts)


def _log_room(params: SamplingParams) -> int:
    """Bytes on the disk for all that a request can add to the log: 32 a token (a usual one has 4), more with logprobs, and its failure."""
    alternatives = 0 if params.logprobs is None else 1 + params.logprobs
    return 32_768 + params.max_new_tokens * 32 * (1 + 3 * alternatives)


# --- the log ------------------------------------------------------------------------------------------------------------------------------


class _AnswerLog:
    """The journal of a `Calls`: what was sent, what came of it, and where each answer stands.

    Records are written in a thread, those that wait together with one fsync. `on_failure` hears of a record that could not be written.
    """

    def __init__(self, path: Path, stats: CallStats, on_failure: Callable[[VistuneError], None]):
        self._on_failure = on_failure
        self._answers: dict[bytes, int] = {}
        self._posted: list[tuple[Mapping[str, Any], int, asyncio.Future[None]]] = []
        self._writer: asyncio.Task[None] | None = None
        self._appending = threading.Lock()
        self._journal = Journal(path, sync="manual")
        try:
            self._load(stats)
        except BaseException:
            self._journal.close()
            raise

    def __contains__(self, key: str) -> bool:
        return bytes.fromhex(key) in self._answers

    def answer(self, key: str) -> Answer:
        record = self._journal.read(self._answers[bytes.fromhex(key)])
        return Answer(key, reply_from(record["reply"]), record["cost"], cached=True, attempts=record["try"])

    async def write(self, record: Mapping[str, Any], *, room: int = 0) -> None:
        """Returns when the record is on the disk. It gets there even if the caller is cancelled.

        Args:
            room: bytes to reserve first; without them nothing is written.
        """
        await asyncio.shield(self.post(record, room=room))

    def post(self, record: Mapping[str, Any], *, room: int = 0) -> asyncio.Future[None]:
        """The same for a caller that does not wait."""
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        written.add_done_callback(lambda done: done.cancelled() or done.exception())  # `on_failure` has heard of it
        self._posted.append((record, room, written))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_posted())
        return written

    def close(self) -> None:
        with self._appending:
            left, self._posted = self._posted, []  # by an event loop that ended early
            try:
                for outcome in self._append([(record, 0) for record, _, _ in left]):
                    if isinstance(outcome, VistuneError):
                        raise outcome
            finally:
                self._journal.close()

    async def _write_posted(self) -> None:
        while self._posted:
            batch, self._posted = self._posted, []
            self._appending.acquire()  # the thread lets go of it: whoever closes meanwhile waits for what is under way
            records = [(record, room) for record, room, _ in batch]
            outcomes = await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, self._append_and_let_go, records))
            for (record, _, written), outcome in zip(batch, outcomes, strict=True):
                if isinstance(outcome, VistuneError):
                    self._on_failure(outcome)
                    written.set_exception(outcome)
                else:
                    if record["event"] == "answer":
                        self._answers[bytes.fromhex(record["key"])] = outcome
                    written.set_result(None)

    def _append_and_let_go(self, records: list[tuple[Mapping[str, Any], int]]) -> list[int | VistuneError]:
        try:
            return self._append(records)
        finally:
            self._appending.release()

    def _append(self, records: list[tuple[Mapping[str, Any], int]]) -> list[int | VistuneError]:
        """The place of each record, once all are on the disk, or why it is not there."""
        outcomes: list[int | VistuneError] = []
        for record, room in records:
            try:
                if room:
                    self._journal.make_room(room)
                outcomes.append(self._journal.append(record))
            except VistuneError as error:
                outcomes.append(error)
            except OSError as error:
                outcomes.append(SaveError(f"Writing {self._journal.path} failed: {error}. Check the disk, and run again."))
        try:
            self._journal.sync()
        except VistuneError as error:
            return [error] * len(records)
        return outcomes

    def _load(self, stats: CallStats) -> None:
        under_way: dict[str, float] = {}
        try:
            for position, record in self._journal.items():
                key, event = record["key"], record["event"]
                if event == "answer":
                    under_way.pop(key, None)
                    self._answers[bytes.fromhex(key)] = position
                    stats.spent += record["cost"]
                elif event == "failed":
                    under_way.pop(key, None)
                    stats.maybe_billed += record["billed"] == "maybe"
                    stats.maybe_spent += record["cost"]
                else:
                    if key in under_way:  # a run died before it knew what came of an earlier request
                        stats.maybe_billed += 1
                        stats.maybe_spent += under_way[key]
                    under_way[key] = record["worst"]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{self._journal.path} is a journal, but not one of calls ({error!r}); choose another file.") from error
        stats.maybe_billed += len(under_way)
        stats.maybe_spent += math.fsum(under_way.values())


def reply_from(record: dict[str, Any]) -> Reply:
    """The reply that `dataclasses.asdict` took apart."""
    logprobs = record.pop("logprobs")
    if logprobs is not None:
        logprobs = tuple(TokenLogprob(each["token"], each["logprob"], tuple(map(tuple, each["top"]))) for each in logprobs)
    return Reply(**record, logprobs=logprobs)
