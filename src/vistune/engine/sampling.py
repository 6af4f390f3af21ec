"""From logits to a token, and from tokens to text that may be shown.

Per request and independent of its neighbours: each has its own random generator, its own view of which bytes make a whole character and of
how much of a stop string it has seen. What was given out is never taken back: a beginning of a stop string, half a character and blanks at
the end are kept until it is known what they become.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from vistune.engine.grammar import GrammarState
from vistune.errors import UsageError
from vistune.types import SamplingParams, TokenLogprob

MAX_LOGPROBS = 20
MAX_BIASES = 300
FEW_TOKENS = 256
CONTEXT_TOKENS = 6
"""Tokens of the prompt that are decoded with the reply's first ones, so that a decoder knows whether a word began there."""
MAX_PENDING_TOKENS = 8
"""A character has at most four bytes. What is still unreadable after this many tokens is given out as it is: nothing waits for ever."""
REPLACEMENT = "\ufffd"


def check_params(params: SamplingParams, *, vocabulary: int) -> None:
    """Raises UsageError for values that nothing can be drawn with, from a model with so many tokens."""
    if params.max_new_tokens < 1:
        raise UsageError(f"max_new_tokens is {params.max_new_tokens}; a reply has at least one token.")
    if not (math.isfinite(params.temperature) and params.temperature >= 0):
        raise UsageError(f"temperature is {params.temperature}; give 0 for the likeliest token, or a positive number.")
    if not 0 <= params.top_p <= 1:
        raise UsageError(f"top_p is {params.top_p}; give a probability from 0 to 1.")
    if params.top_k < 0:
        raise UsageError(f"top_k is {params.top_k}; give a number of tokens, or 0 for all.")
    if not 0 <= params.min_p <= 1:
        raise UsageError(f"min_p is {params.min_p}; give a fraction from 0 to 1.")
    if params.logprobs is not None and not 0 <= params.logprobs <= MAX_LOGPROBS:
        raise UsageError(f"logprobs is {params.logprobs}; at most {MAX_LOGPROBS} alternatives are listed.")
    if "" in params.stop:
        raise UsageError("A stop string is empty; it would stop every reply before its first word.")
    for name, penalty in (("frequency_penalty", params.frequency_penalty), ("presence_penalty", params.presence_penalty)):
        if not -2 <= penalty <= 2:
            raise UsageError(f"{name} is {penalty}; give a number from -2 to 2.")
    if len(params.logit_bias) > MAX_BIASES:
        raise UsageError(f"logit_bias has {len(params.logit_bias)} tokens; at most {MAX_BIASES} are taken.")
    for token, bias in params.logit_bias:
        if not (0 <= token < vocabulary and -100 <= bias <= 100):
            raise UsageError(f"logit_bias adds {bias} to token {token}; give numbers from -100 to 100, and ids below {vocabulary:,}.")


class Sampler:
    """Draws the tokens of one reply. The same seed gives the same tokens from the same logits, whatever else is running.

    In this order: bias and penalties, the grammar's mask, temperature, then the likeliest tokens.
    """

    def __init__(self, params: SamplingParams, grammar: GrammarState | None = None):
        self._params, self._grammar = params, grammar
        self._bias = dict(params.logit_bias)
        self._counts: dict[int, int] = {}
        """How often each token was drawn so far."""
        self._generator = torch.Generator()
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(params.seed % (1 << 63))  # torch takes no larger ones; other programs do

    @property
    def complete(self) -> bool:
        """Whether the grammar lets nothing follow."""
        return self._grammar is not None and self._grammar.complete

    def draw(self, logits: Tensor) -> int:
        """The next token from its logits [V], which stay as they are.

        Raises:
            ResponseSchemaError: the reply's grammar became too costly to follow.
        """
        token = self._drawn(self._adjusted(logits))
        self._counts[token] = self._counts.get(token, 0) + 1
        if self._grammar is not None:
            self._grammar.accept(token)
        return token

    def _adjusted(self, logits: Tensor) -> Tensor:
        """The logits with all that was asked to change them: themselves where nothing was."""
        added = dict(self._bias)
        if self._params.frequency_penalty or self._params.presence_penalty:
            for token, count in self._counts.items():
                penalty = self._params.presence_penalty + count * self._params.frequency_penalty
                added[token] = added.get(token, 0.0) - penalty
        if not added and self._grammar is None:
            return logits
        logits = logits.to("cpu", torch.float64, copy=True)
        if added:
            logits[list(added)] += torch.tensor(list(added.values()), dtype=torch.float64)
        return logits if self._grammar is None else logits.masked_fill_(~self._grammar.allowed(len(logits)), -torch.inf)

    def _drawn(self, logits: Tensor) -> int:
        params = self._params
        if params.temperature == 0:
            return int(logits.argmax())
        scaled = logits.to("cpu", torch.float64)
        probabilities = ((scaled - scaled.max()) / params.temperature).softmax(dim=-1)
        tokens = None
        if params.top_p < 1 or params.top_k or params.min_p:
            probabilities, tokens = self._likeliest(probabilities)
        cumulative = probabilities.cumsum(dim=-1)
        # One number against the cumulative sum: where rounding moves a probability a little, the token is nearly always the same.
        place = torch.rand((), generator=self._generator, dtype=torch.float64) * cumulative[-1]
        index = min(int(torch.searchsorted(cumulative, place, right=True)), len(cumulative) - 1)
        return index if tokens is None else int(tokens[index])

    def _likeliest(self, probabilities: Tensor) -> tuple[Tensor, Tensor]:
        """The likeliest tokens, at least one: their probabilities and ids.

        Up to and including the one that reaches top_p; no more than top_k; none less than min_p as likely as the first.
        """
        params = self._params
        # Sorting a whole vocabulary takes a fifth of a small model's step, and a few hundred tokens nearly always suffice.
        for count in (FEW_TOKENS, len(probabilities)):
            largest, tokens = probabilities.topk(min(count, len(probabilities)))
            before = largest.cumsum(dim=-1) - largest
            kept = max(int(((before < params.top_p) & (largest >= params.min_p * largest[0])).sum()), 1)
            kept = min(kept, params.top_k or kept)
            if kept < len(largest):
                break
        return largest[:kept], tokens[:kept]


def token_logprob(tokenizer: Any, logits: Tensor, token: int, alternatives: int) -> TokenLogprob:
    """The token's natural-log probability under the model itself (before all that a `Sampler` does), and the likeliest alternatives."""
    logprobs = logits.float().log_softmax(dim=-1)
    values, tokens = logprobs.topk(min(alternatives, logprobs.shape[-1]))
    top = tuple((tokenizer.decode([other]), value) for other, value in zip(tokens.tolist(), values.tolist(), strict=True))
    return TokenLogprob(tokenizer.decode([token]), float(logprobs[token]), top)


class Detokenizer:
    """Text of a growing list of tokens, a piece at a time; half a character waits for its rest.

    Works with any fast tokenizer: it decodes a small window that begins before the new tokens, and what the window gained is new. The
    window begins where a piece did, never inside a character.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int]):
        self._tokenizer = tokenizer
        self._size = len(tokenizer)
        self._window = self._context(self._known(prompt))
        self._num_shown = len(self._window)
        self._shown = self._decode(self._window)
        """The window's text that was given out (or belongs to the prompt)."""

    def push(self, token: int) -> str:
        """The text that `token` completes; empty where it ends inside a character."""
        self._window += self._known([token])
        text = self._decode(self._window)
        if text.endswith(REPLACEMENT) and len(self._window) - self._num_shown < MAX_PENDING_TOKENS:
            return ""
        return self._give_out(text)

    def flush(self) -> str:
        """What is left when no token follows: an unreadable tail as replacement characters."""
        return self._give_out(self._decode(self._window))

    def _give_out(self, text: str) -> str:
        new = self._window[self._num_shown :]
        # A byte-fallback decoder makes a whole run of bytes unreadable when its end is; then the new tokens stand for themselves.
        piece = text[len(self._shown) :] if text.startswith(self._shown) else self._decode(new)
        if piece:
            # The last piece is the next one's context: a decoder drops the blank of a first word, not of a second.
            self._window, text = new, self._decode(new)
        self._num_shown, self._shown = len(self._window), text
        return piece

    def _context(self, prompt: list[int]) -> list[int]:
        for length in range(CONTEXT_TOKENS, CONTEXT_TOKENS + 4):
            if not self._decode(prompt[-length:]).startswith(REPLACEMENT):
                return prompt[-length:]
        return prompt[-CONTEXT_TOKENS:]

    def _decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _known(self, tokens: Sequence[int]) -> list[int]:
        """Without ids that the tokenizer has no text for: image placeholders, padding rows of the embedding."""
        return [token for token in tokens if 0 <= token < self._size]


class StopStrings:
    """Holds back what might become a stop string, and ends the text before the first that does.

    The first is the one that is complete first; of several complete at once, the longest. So the result is the same however the text is
    cut into pieces.
    """

    def __init__(self, stops: Sequence[str]):
        self._stops = tuple(sorted(set(stops), key=len, reverse=True))
        self._longest = max((len(stop) for stop in self._stops), default=0)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """What of the text so far may be shown now."""
        if self.stopped:
            return ""
        text = self._held + text
        ends = [(place + len(stop), place) for stop in self._stops if (place := text.find(stop)) >= 0]
        if ends:
            self.stopped, self._held = True, ""
            return text[: min(ends)[1]]
        keep = self._possible_start(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back and, as the text has ended, is no stop string."""
        held, self._held = self._held, ""
        return held

    def _possible_start(self, text: str) -> int:
        """The length of the longest end of the text that some stop string begins with."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            if any(stop.startswith(text[len(text) - length :]) for stop in self._stops):
                return length
        return 0


class ReplyText:
    """The text of one reply while its tokens come in.

    A new reply begins with its first visible character (the blank after "ASSISTANT:" belongs to the template); a continued message goes on
    exactly where it was. Blanks at the end of a finished reply are dropped, as the reference does; of one cut off by length they are kept.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int], stops: Sequence[str], *, continued: bool):
        self._detokenizer = Detokenizer(tokenizer, prompt)
        self._stops = StopStrings(stops)
        self._begun = continued
        self._blanks = ""
        self.text = ""
        """All that was given out."""

    @property
    def stopped(self) -> bool:
        """Whether a stop string is complete."""
        return self._stops.stopped

    def push(self, token: int) -> str:
        """What may be shown now that `token` is there."""
        return self._show(self._stops.push(self._detokenizer.push(token)))

    def finish(self, reason: Literal["stop", "length", "cancelled"]) -> str:
        """The rest, when no token follows."""
        rest = self._show(self._stops.push(self._detokenizer.flush()))
        rest += self._show(self._stops.flush())
        if reason != "stop" and not self.stopped:
            rest += self._blanks
            self.text += self._blanks
        self._blanks = ""
        return rest

    def _show(self, text: str) -> str:
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        text = self._blanks + text
        visible = text.rstrip()
        self._blanks = text[len(visible) :]
        self.text += visible
        return visible
