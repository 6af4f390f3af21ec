"""Runs many requests as one ragged batch: continuous batching, chunked prefill, and prefixes that are read once.

Each `step` is one forward pass: the next token of every running reply, and as many chunks of waiting prompts as the token budget allows, so
that a long prompt does not stop the others' replies. Synchronous and without threads; `engine.py` drives it.

A prompt is always cut at multiples of `CHUNK` rows from its own beginning, never by what else is running: together with steady matrix
products this makes a reply in fp32 the same alone and in company. In deterministic mode only whole chunks that were read as a prompt are
ever reused, so that it does not matter either what was asked before. Plain bf16 promises nothing of the kind, and there a last chunk of
few rows is read with the one before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor

from vistune.engine.counters import EngineCounters
from vistune.engine.kv_cache import KVArena, KVSequence, KVShape
from vistune.engine.pictures import KEPT_BYTES, Pictures
from vistune.engine.prefixes import Kept, PrefixCache, TokenPath
from vistune.engine.requests import Event, Part, Request, Running
from vistune.engine.sampling import ReplyText, Sampler, token_logprob
from vistune.errors import ContextLengthError, NonFiniteError, OutOfMemory, ResponseSchemaError
from vistune.model.inputs import RaggedBatch
from vistune.model.llava import Llava
from vistune.model.processor import Processor
from vistune.model.ragged import fixed_row_tiles
from vistune.types import FinishReason, Reply

CHUNK = 256
"""Rows of a prompt that are read at once: enough to fill a CPU's matrix products, a quarter of a second of waiting for the others."""
MIN_SHARED = 32
"""A request waits for a running one to finish its prompt if that saves it at least this many rows."""

Made = TypeVar("Made")


class Scheduler:
    """Args:
    max_sequences: requests that run at once; others wait.
    prefill_tokens: prompt rows in one step, at least one chunk.
    kv_bytes: limit on keys and values, running and kept; a thirty-second part of it is for what was seen of pictures.
    """

    def __init__(
        self, model: Llava, processor: Processor, *, max_sequences: int, prefill_tokens: int, kv_bytes: int | None, deterministic: bool
    ):
        self._model, self._processor = model, processor
        self._layers = model.layers_for_inference(deterministic=deterministic)
        self._max_sequences, self._prefill_tokens, self._deterministic = max_sequences, prefill_tokens, deterministic
        self.arena = KVArena(KVShape.of(model.config.text_config), dtype=model.dtype, device=model.device, max_bytes=kv_bytes)
        self.cache = PrefixCache(self.arena)
        self._pictures = Pictures(model, self._arithmetic, max_bytes=KEPT_BYTES if kv_bytes is None else min(KEPT_BYTES, kv_bytes // 32))
        self._waiting: list[Request] = []
        self._running: list[Running] = []
        self._steps = self._prompt_tokens = self._cached_tokens = self._completion_tokens = 0

    def counters(self, *, waiting_outside: int = 0) -> EngineCounters:
        """Totals and what is held now; `waiting_outside` are requests that were not submitted yet."""
        return EngineCounters(
            running=len(self._running),
            waiting=len(self._waiting) + waiting_outside,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            completion_tokens=self._completion_tokens,
            steps=self._steps,
            kv_bytes_used=self.arena.bytes_used,
            kv_bytes_limit=self.arena.max_bytes,
            kept_prefixes=len(self.cache),
            images_encoded=self._pictures.encoded,
        )

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._running)

    def submit(self, request: Request) -> None:
        """Queues a request. What happens to it is told to its `deliver`, never raised."""
        context = self._processor.config.max_length
        tokens = request.inputs.num_tokens
        if tokens + (request.score_from is None) > context:
            request.deliver(
                Event(
                    error=ContextLengthError(
                        f"The conversation fills the model's context: {tokens:,} of {context:,} tokens, which leaves no room for a reply. "
                        "Shorten it, drop early turns, or show fewer pictures."
                    )
                )
            )
            return
        try:
            request.path = TokenPath.of(request.inputs, self._processor.config, request.params.cache_salt)
        except Exception as error:  # inputs that contradict themselves are their sender's trouble only
            request.deliver(Event(error=error))
            return
        self._waiting.append(request)

    def step(self) -> None:
        """Admits what fits, runs one forward pass, and tells every request what came of it."""
        self._drop_cancelled()
        self._admit()
        self._see()
        if parts := list(self._plan()):
            self._steps += 1
            self._run(parts)

    def abandon(self, error: Exception) -> None:
        """Ends every request with `error` and forgets everything kept."""
        for request in self._waiting:
            request.deliver(Event(error=error))
        self._waiting.clear()
        for running in list(self._running):
            self._fail(running, error)
        while self.cache.drop_oldest():
            pass
        self._pictures.forget()

    # --- who runs ---

    def _drop_cancelled(self) -> None:
        self._waiting = [request for request in self._waiting if not request.cancelled]
        for running in [running for running in self._running if running.request.cancelled]:
            self._finish(running, "cancelled", "")

    def _admit(self) -> None:
        """Starts waiting requests in order, until the slots or the memory are full."""
        for request in list(self._waiting):
            if len(self._running) >= self._max_sequences:
                return
            path = request.path
            assert path is not None
            source, shared = self._longest_prefix(request, path)
            if self._worth_waiting_for(request, path, shared):
                continue
            try:
                sequence = self._place(source, shared, reserve=len(path) + self._limit(request))
            except OutOfMemory as error:
                if self._running:
                    return  # what runs now will give room back; nobody overtakes
                self._waiting.remove(request)
                request.deliver(Event(error=error))
                continue
            self._waiting.remove(request)
            self._start(request, path, sequence, shared)

    def _limit(self, request: Request) -> int:
        """How many tokens the reply may have."""
        if request.score_from is not None:
            return 0
        return min(request.params.max_new_tokens, self._processor.config.max_length - request.inputs.num_tokens)

    def _longest_prefix(self, request: Request, path: TokenPath) -> tuple[Kept | Running | None, int]:
        """Who has the most rows of this prompt in the arena, and how many of them can be used."""
        source: Kept | Running | None
        source, length = self.cache.longest(path)
        for running in self._running:
            read = min(running.sequence.length, running.num_prompt) if self._deterministic else running.sequence.length
            shared = min(running.path.common_length(path), read)
            if shared > length:
                source, length = running, shared
        length = self._usable(request, length)
        return (source, length) if length else (None, 0)

    def _usable(self, request: Request, length: int) -> int:
        """At least one row of a prompt is always read: its logits are where the reply begins."""
        last = request.inputs.num_tokens - 1 if request.score_from is None else request.score_from - 1
        length = min(length, last)
        return length // CHUNK * CHUNK if self._deterministic else length

    def _worth_waiting_for(self, request: Request, path: TokenPath, shared: int) -> bool:
        """Whether a running request is just reading much of this prompt: many questions about one picture read it once."""
        reading = (running for running in self._running if running.is_prefilling)
        return any(self._usable(request, running.path.common_length(path)) - shared >= MIN_SHARED for running in reading)

    def _place(self, source: Kept | Running | None, shared: int, *, reserve: int) -> KVSequence:
        """Room for a request in the arena, beginning with `shared` rows of `source`; kept prefixes make way. Raises OutOfMemory."""
        if source is None:
            return self._making_room(lambda: self.arena.allocate(reserve=reserve), but=None)
        if isinstance(source, Running):
            return self._making_room(lambda: self.arena.fork(source.sequence, shared, reserve=reserve), but=None)
        self.cache.use(source)
        if shared < len(source.path) * 3 // 4:  # much of it is another conversation, which may go on
            try:
                return self._making_room(lambda: self.arena.fork(source.sequence, shared, reserve=reserve), but=source)
            except OutOfMemory:
                pass  # not both: the new request takes it over
        self.arena.truncate(source.sequence, shared)
        sequence = self.cache.take(source)
        try:
            self._making_room(lambda: self.arena.make_room([(sequence, reserve)]), but=None)
        except OutOfMemory:
            self.arena.free(sequence)
            raise
        return sequence

    def _making_room(self, attempt: Callable[[], Made], *, but: Kept | None) -> Made:
        while True:
            try:
                return attempt()
            except OutOfMemory:
                if not self.cache.drop_oldest(but=but):
                    raise

    def _start(self, request: Request, path: TokenPath, sequence: KVSequence, shared: int) -> None:
        ids = request.inputs.input_ids.masked_fill(request.inputs.image_mask, -1).tolist()
        # What ends a template's turn may well stand in a JSON string; a grammar knows the end itself.
        stops = request.params.stop if request.grammar else (*request.params.stop, *self._processor.stop_strings)
        running = Running(
            request=request,
            path=path,
            sequence=sequence,
            cached=shared,
            limit=self._limit(request),
            sampler=Sampler(request.params, request.grammar.begin() if request.grammar else None),
            text=ReplyText(self._processor.tokenizer, ids, stops, continued=request.continued),
        )
        self._running.append(running)
        self._prompt_tokens += running.num_prompt
        self._cached_tokens += shared
        needed = [index for index, image in enumerate(path.images) if image.end > shared]
        running.pictures = {index: self._pictures.picture(request.inputs, index, request.params.cache_salt) for index in needed}

    # --- the forward pass ---

    def _arithmetic(self) -> AbstractContextManager[None]:
        return fixed_row_tiles() if self._deterministic else nullcontext()  # Llava itself keeps fp32 steady

    def _see(self) -> None:
        """Has the tower look at a portion of the pictures that are waited for, and embeds the prompts that wait for none any more."""
        waiting = [running for running in self._running if running.waits_to_see]
        self._pictures.look(picture for running in waiting for picture in running.pictures.values())
        for running in waiting:
            try:
                if all(picture.done for picture in running.pictures.values()):
                    running.embeddings = self._embed(running)
                    running.pictures = {}
            except Exception as error:
                # Whatever is wrong with one request's pictures must not reach the others: it is told its own error.
                self._fail(running, error)

    def _embed(self, running: Running) -> Tensor:
        """What the language model reads after the cached rows, [T - cached, D]. Raises what went wrong with a picture."""
        inputs, cached = running.request.inputs, running.cached
        ids = inputs.input_ids[cached:].masked_fill(inputs.image_mask[cached:], 0).to(self._model.device)
        with torch.inference_mode():
            embeddings = self._model.causal_lm.get_input_embeddings()(ids)
            for index, picture in running.pictures.items():
                if picture.error is not None:
                    raise picture.error
                assert picture.embeddings is not None
                image = running.path.images[index]
                first = max(image.start, cached)  # the cached rows may end inside a picture
                embeddings[first - cached : image.end - cached] = picture.embeddings[first - image.start :]
        return embeddings

    def _plan(self) -> Iterator[Part]:
        """The next token of every reply that runs, then chunks of prompts in order of arrival."""
        for running in self._running:
            if not running.is_prefilling:
                yield Part(running, 1, range(1))
        budget = max(self._prefill_tokens, CHUNK)
        for running in self._running:
            if running.is_prefilling and not running.waits_to_see:
                count = self._chunk(running)
                if count > budget:
                    return
                budget -= count
                yield Part(running, count, self._wanted(running, running.sequence.length, count))

    def _chunk(self, running: Running) -> int:
        """How many rows of a prompt are read next."""
        start = running.sequence.length
        rest, promised = running.num_prompt - start, self._deterministic or self._model.dtype in (torch.float32, torch.float64)
        if not promised and rest <= min(CHUNK + CHUNK // 2, self._prefill_tokens):
            return rest
        return min(CHUNK - start % CHUNK, rest)

    def _wanted(self, running: Running, start: int, count: int) -> range:
        """Rows of a prompt chunk whose logits are needed: the last of the prompt, or those before each token to be scored."""
        score_from = running.request.score_from
        first, end = (running.num_prompt - 1, running.num_prompt) if score_from is None else (score_from - 1, running.num_prompt - 1)
        return range(min(max(first - start, 0), count), max(min(end - start, count), 0))

    def _run(self, parts: list[Part]) -> None:
        """One forward pass; if it fails, each part alone, so that only the one at fault hears of it."""
        try:
            logits = self._forward(parts)
        except Exception as error:
            if len(parts) == 1:
                self._fail(parts[0].running, error)
                return
            for part in parts:
                self._run([part])
            return
        row, all_finite = 0, bool(logits.isfinite().all())
        for part in parts:
            own = logits[row : row + len(part.wanted)]
            row += len(part.wanted)
            self._advance(part, own, finite=all_finite or bool(own.isfinite().all()))

    def _forward(self, parts: list[Part]) -> Tensor:
        """Logits of all wanted rows of all parts, in order: [n, vocabulary]."""
        ids, positions, boundaries, selected = [], [], [0], []
        for part in parts:
            running, start = part.running, part.running.sequence.length
            ids += running.tokens[-1:] if not running.is_prefilling else running.path.ids[start : start + part.count].tolist()
            positions += range(start, start + part.count)
            selected += [boundaries[-1] + row for row in part.wanted]
            boundaries.append(boundaries[-1] + part.count)
        batch = RaggedBatch(
            input_ids=torch.tensor(ids),
            position_ids=torch.tensor(positions),
            cu_seqlens=torch.tensor(boundaries, dtype=torch.int32),
            image_mask=torch.zeros(len(ids), dtype=torch.bool),  # the prompts' embeddings have their pictures in them already
        ).to(self._model.device)
        view = self.arena.view([part.running.sequence for part in parts])
        # A pass without wanted rows only fills the arena, but the last layer is pruned to at least one row.
        select = torch.tensor(selected or [len(ids) - 1], device=self._model.device)
        with torch.inference_mode():
            embeddings = self._embeddings(parts)
            hidden = self._model.hidden_states(batch, select=select, kv=view, embeddings=embeddings, layers=self._layers)
            return self._layers.logits(hidden[: len(selected)])

    def _embeddings(self, parts: list[Part]) -> Tensor:
        pieces = []
        for part in parts:
            running, start = part.running, part.running.sequence.length
            if running.embeddings is None:
                token = torch.tensor(running.tokens[-1:], device=self._model.device)
                pieces.append(self._model.causal_lm.get_input_embeddings()(token))
            else:
                pieces.append(running.embeddings[start - running.cached :][: part.count])
        return torch.cat(pieces)

    # --- what comes of it ---

    def _advance(self, part: Part, logits: Tensor, *, finite: bool) -> None:
        """Uses the logits [len(part.wanted), V] of one sequence: nothing yet, scores, or a token."""
        running = part.running
        if not finite:
            self._fail(running, NonFiniteError(f"{running.request.name}: the model's logits are not finite; its weights are damaged."))
            return
        if running.request.score_from is not None:
            self._score(part, logits)
        elif not running.is_prefilling:
            running.embeddings = None
            self._accept(running, logits[0])

    def _score(self, part: Part, logits: Tensor) -> None:
        running, alternatives = part.running, part.running.request.params.logprobs or 0
        first = running.sequence.length - part.count + 1  # the row before a token tells its probability
        for offset, row in zip(part.wanted, logits, strict=True):
            token = int(running.path.ids[first + offset])
            running.logprobs.append(token_logprob(self._processor.tokenizer, row, token, alternatives))
        if not running.is_prefilling:
            self._retire(running)
            running.request.deliver(Event(scores=tuple(running.logprobs)))

    def _accept(self, running: Running, logits: Tensor) -> None:
        """Draws the next token and shows what it completes."""
        params = running.request.params
        try:
            token = running.sampler.draw(logits)
        except ResponseSchemaError as error:
            self._fail(running, error)
            return
        running.tokens.append(token)
        self._completion_tokens += 1
        if token in self._processor.stop_ids:
            self._finish(running, "stop", "")
            return
        if params.logprobs is not None:
            running.logprobs.append(token_logprob(self._processor.tokenizer, logits, token, params.logprobs))
        text = running.text.push(token)
        if running.text.stopped or running.sampler.complete:
            self._finish(running, "stop", text)
        elif len(running.tokens) >= running.limit:
            self._finish(running, "length", text)
        elif text:
            running.request.deliver(Event(text, logprobs=running.untold()))

    def _finish(self, running: Running, reason: FinishReason, text: str) -> None:
        text += running.text.finish(reason)
        self._retire(running)
        reply = Reply(
            running.text.text,
            # Held-back text can turn out to hold a stop string only now.
            "stop" if running.text.stopped else reason,
            prompt_tokens=running.num_prompt,
            cached_tokens=running.cached,
            completion_tokens=len(running.tokens),
            logprobs=tuple(running.logprobs) if running.request.params.logprobs is not None else None,
        )
        running.request.deliver(Event(text, reply, logprobs=running.untold()))

    def _retire(self, running: Running) -> None:
        """Frees the slot and keeps what was read and said for the next turn."""
        self._running.remove(running)
        length = running.sequence.length
        if self._deterministic:
            length = min(length, running.num_prompt) // CHUNK * CHUNK
        if length == 0:
            self.arena.free(running.sequence)
            return
        path = running.path.extended(running.tokens, length)
        self.arena.truncate(running.sequence, length)
        sequence = running.sequence
        if sequence.capacity > length + max(CHUNK, length // 4):  # room that was reserved for a longer reply
            try:
                sequence = self.arena.fork(running.sequence, length)
            except OutOfMemory:
                self.arena.free(running.sequence)
                return
            self.arena.free(running.sequence)
        self.cache.keep(path, sequence)

    def _fail(self, running: Running, error: Exception) -> None:
        self._running.remove(running)
        self.arena.free(running.sequence)
        running.request.deliver(Event(error=_typed(error)))


def _typed(error: Exception) -> Exception:
    """Torch's several ways of saying that memory ran out, as ours; other errors as they are."""
    out_of_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)
    if out_of_memory and not isinstance(error, OutOfMemory):
        return OutOfMemory("The machine ran out of memory in a forward pass; run fewer sequences at once, or show smaller pictures.")
    return error
