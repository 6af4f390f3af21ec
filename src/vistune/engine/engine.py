"""Weights as a `ChatModel`.

Concurrent calls share one thread that owns the model and runs them as one ragged batch (`scheduler.py`); what was read of a conversation is
kept, so that its next turn reads only the new words. This file is the door: coroutines on one side, the thread on the other.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
import weakref
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Literal

import torch

from vistune.chat_model import GREEDY, last_reply, require_single
from vistune.engine.counters import EngineCounters
from vistune.engine.grammar import Grammar, Grammars
from vistune.engine.neighbours import kv_shares
from vistune.engine.requests import Event, Request
from vistune.engine.sampling import check_params
from vistune.engine.scheduler import Scheduler
from vistune.errors import ResponseSchemaError, UsageError
from vistune.model.inputs import ModelInputs
from vistune.model.llava import Llava
from vistune.model.looks import Looks
from vistune.model.low_bits import Bits, bits_of
from vistune.model.processor import Processor
from vistune.model.threads import apart
from vistune.types import Conversation, Delta, Message, Reply, SamplingParams, TextPart, TokenLogprob

NATIVE_BF16 = ("avx512_bf16", "amx_bf16", "bf16")
"""The names of the instructions in `torch.cpu.get_capabilities`: Intel's and AMD's, and ARM's."""
LONGEST_STEP = 120.0
"""Seconds after which a step counts as stuck. The largest pictures of the largest model on a slow CPU take less."""


class Engine:
    """Answers any number of conversations at once with one model. Use it in a `with` block, or call `close`.

    >>> with Engine.from_folder(pull("llava-hf/llava-1.5-7b-hf")) as engine:
    ...     reply = await engine.generate(conversation)

    Args:
        max_sequences: conversations that run at once; others wait their turn.
        prefill_tokens: prompt tokens read in one step beside the running replies; fewer make those smoother, more make prompts faster.
        kv_bytes: limit on the keys and values of running and earlier conversations. By default a quarter of the machine's memory, at most
            4 GiB, and always enough for one full context. What the tower saw of pictures is kept in a thirty-second part of it beside, and
            the pixels of late ones in 32 MB.
        deterministic: the same bits for the same conversation in any company and after any other, also in bf16. Slower, as
            `model/ragged.py` says.
        turn: taken for each step, where other engines compute on the same device (`neighbours.py`).

    Calls raise what the processor raises for a conversation that cannot be rendered, ContextLengthError where no room is left for a reply,
    UsageError for sampling parameters out of range, OutOfMemory, and NonFiniteError where the model computes nonsense. One call's error
    never reaches another.
    """

    def __init__(
        self,
        model: Llava,
        processor: Processor,
        *,
        max_sequences: int = 16,
        prefill_tokens: int = 512,
        kv_bytes: int | None = None,
        deterministic: bool = False,
        turn: AbstractContextManager[None] | None = None,
    ):
        if max_sequences < 1:
            raise UsageError(f"max_sequences is {max_sequences}; at least one conversation must be able to run.")
        self.model, self.processor = model.eval(), processor
        bits = bits_of(model)
        self.arithmetic = (
            f"{f'{bits} weights, ' if bits else ''}{str(model.dtype).removeprefix('torch.')} on {model.device.type}"
            f"{', deterministic' if deterministic else ''}"
        )
        """What replies depend on besides weights and conversation, for a record of a measurement."""
        self._numbers = itertools.count(1)
        self._looks = Looks()
        self._vocabulary: int = model.causal_lm.get_input_embeddings().num_embeddings
        self._grammars = Grammars(processor.tokenizer, vocabulary=self._vocabulary, stop_ids=processor.stop_ids)
        scheduler = apart(
            Scheduler,
            model,
            processor,
            max_sequences=max_sequences,
            prefill_tokens=prefill_tokens,
            kv_bytes=kv_shares([model])[0] if kv_bytes is None else kv_bytes,
            deterministic=deterministic,
        )
        self._worker = _Worker(scheduler, turn or nullcontext())
        # The thread must end before the interpreter takes torch apart, also for an engine that nobody closed.
        self._finalizer = weakref.finalize(self, self._worker.close)

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        *,
        dtype: torch.dtype | Literal["auto"] = "auto",
        weights: Literal["full"] | Bits = "full",
        device: str = "cpu",
        max_sequences: int = 16,
        deterministic: bool = False,
    ) -> Engine:
        """An engine for a checkpoint folder of any layout that `checkpoint.folder.load_model` reads.

        Args:
            dtype: `auto` is bf16 where the hardware multiplies it natively, else fp32.
            weights: `int8` and `int4` are smaller and less exact (`model/low_bits.py`).
        """
        from vistune.checkpoint.shared import load_sharing

        precision = best_dtype(device) if dtype == "auto" else dtype
        ((model, processor),) = apart(load_sharing, folder, (), dtype=precision, weights=weights, device=device)
        return cls(model, processor, max_sequences=max_sequences, deterministic=deterministic)

    async def generate(self, conversation: Conversation, params: SamplingParams = GREEDY) -> Reply:
        """The whole reply; cancelling the task cancels the work."""
        return await last_reply(self.stream(conversation, params))

    async def stream(self, conversation: Conversation, params: SamplingParams = GREEDY) -> AsyncGenerator[Delta, None]:
        """The reply piece by piece; closing the generator cancels the work within a step."""
        require_single(params)
        check_params(params, vocabulary=self._vocabulary)
        continued = bool(conversation.messages) and conversation.messages[-1].role == "assistant"
        grammar = None
        if params.response_schema is not None:
            if continued:
                raise ResponseSchemaError("A reply with a response_schema is written from its beginning; end with the user's message.")
            grammar = await self._grammars.compiled(params.response_schema)
        inputs = await self._inputs(conversation, params)
        with _Call(self._worker, f"request {next(self._numbers)}", inputs, params, continued=continued, grammar=grammar) as call:
            while True:
                event = await call.event()
                yield Delta(event.text, event.reply, event.logprobs)
                if event.is_last:
                    return

    async def logprobs(self, conversation: Conversation, continuations: Sequence[str]) -> tuple[tuple[TokenLogprob, ...], ...]:
        """For each continuation of the conversation, its tokens with their natural-log probabilities. The common part is read once."""
        prompt = await self._inputs(conversation, GREEDY)
        scores = (self._score(conversation, prompt, text) for text in continuations)
        return tuple(await asyncio.gather(*scores))

    async def _inputs(self, conversation: Conversation, params: SamplingParams) -> ModelInputs:
        return await asyncio.to_thread(self.processor, conversation, looks=self._looks, salt=params.cache_salt)

    async def _score(self, conversation: Conversation, prompt: ModelInputs, text: str) -> tuple[TokenLogprob, ...]:
        inputs = await self._inputs(_continued_with(conversation, text), GREEDY)
        # The words may join with the prompt's last token into another one, which is then part of what is scored.
        shorter = min(prompt.num_tokens, inputs.num_tokens)
        different = (prompt.input_ids[:shorter] != inputs.input_ids[:shorter]).nonzero()
        score_from = int(different[0]) if len(different) else shorter
        if score_from == inputs.num_tokens:
            return ()
        with _Call(self._worker, f"request {next(self._numbers)}", inputs, GREEDY, score_from=max(score_from, 1)) as call:
            event = await call.event()
        assert event.scores is not None
        return event.scores

    @property
    def alive(self) -> bool:
        """Whether requests get on: the thread runs and its step is not stuck, or there is nothing to do yet. False once closed."""
        return self._worker.alive

    def counters(self) -> EngineCounters:
        """How much was done so far and what is held now. May be called from any thread; costs nothing."""
        return self._worker.counters()

    def close(self) -> None:
        """Ends the thread; calls under way fail. Closing twice does nothing."""
        self._finalizer()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def best_dtype(device: str) -> torch.dtype:
    """bf16 where the hardware multiplies it natively: AVX512-BF16, AMX or ARM's on a CPU, Ampere and later on NVIDIA. Elsewhere fp32."""
    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device != "cpu":
        return torch.float32
    capabilities = torch.cpu.get_capabilities()
    return torch.bfloat16 if any(capabilities.get(name) for name in NATIVE_BF16) else torch.float32


def _continued_with(conversation: Conversation, text: str) -> Conversation:
    """The conversation with `text` at the end of the assistant's message, which is begun where there is none."""
    if not conversation.messages or conversation.messages[-1].role != "assistant":
        return conversation.then("assistant", text)
    *earlier, last = conversation.messages
    return Conversation((*earlier, Message(last.role, (*last.parts, TextPart(text)))))


class _Call:
    """One request as the event loop sees it. Leaving the `with` block before the last event cancels the request."""

    def __init__(
        self,
        worker: _Worker,
        name: str,
        inputs: ModelInputs,
        params: SamplingParams,
        *,
        continued: bool = False,
        score_from: int | None = None,
        grammar: Grammar | None = None,
    ):
        self._worker = worker
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._request = Request(name, inputs, params, self._deliver, continued=continued, score_from=score_from, grammar=grammar)
        self._ended = False

    def __enter__(self) -> _Call:
        self._worker.submit(self._request)
        return self

    def __exit__(self, *_: object) -> None:
        if not self._ended:
            self._worker.cancel(self._request)

    async def event(self) -> Event:
        """The next thing that happens; raises the request's error."""
        event = await self._events.get()
        self._ended = event.is_last
        if event.error is not None:
            raise event.error
        return event

    def _deliver(self, event: Event) -> None:
        """Called by the worker's thread."""
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the caller's loop was closed under it: nobody listens any more
            self._request.cancelled = True


class _Worker:
    """The thread that owns the model. Starts with the first request, sleeps while there is nothing to do."""

    def __init__(self, scheduler: Scheduler, turn: AbstractContextManager[None]):
        self._scheduler, self._turn = scheduler, turn
        self._wake = threading.Condition()
        self._inbox: deque[Request] = deque()
        self._has_news = False
        self._thread: threading.Thread | None = None
        self._closed = False
        self._step_began: float | None = None

    @property
    def alive(self) -> bool:
        thread, began = self._thread, self._step_began
        if self._closed or (thread is not None and not thread.is_alive()):
            return False
        return began is None or time.monotonic() - began < LONGEST_STEP

    def counters(self) -> EngineCounters:
        return self._scheduler.counters(waiting_outside=len(self._inbox))

    def submit(self, request: Request) -> None:
        with self._wake:
            if self._closed:
                raise UsageError("This engine is closed; make a new one.")
            self._inbox.append(request)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="vistune-engine", daemon=True)
                self._thread.start()
            self._notify()

    def cancel(self, request: Request) -> None:
        request.cancelled = True
        with self._wake:
            self._notify()  # so that the slot is freed now, not with the next request

    def close(self) -> None:
        with self._wake:
            self._closed = True
            self._notify()
            thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _notify(self) -> None:
        self._has_news = True
        self._wake.notify()

    def _work(self) -> None:
        while True:
            with self._wake:
                while not (self._has_news or self._scheduler.has_work):
                    self._wake.wait()
                arrived, closed = list(self._inbox), self._closed
                self._inbox.clear()
                self._has_news = False
            for request in arrived:
                self._scheduler.submit(request)
            if closed:
                self._scheduler.abandon(UsageError("The engine was closed while this was under way; ask again with a new one."))
                return
            with self._turn:
                self._step_began = time.monotonic()
                try:
                    self._scheduler.step()
                except Exception as error:
                    # A bug of the scheduler's own. Its callers are told, and the engine goes on empty rather than dying unseen.
                    self._scheduler.abandon(error)
                finally:
                    self._step_began = None
