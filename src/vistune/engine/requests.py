"""A request, what happens to it, and what is known of it while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from vistune.engine.grammar import Grammar
from vistune.engine.kv_cache import KVSequence
from vistune.engine.pictures import Picture
from vistune.engine.prefixes import TokenPath
from vistune.engine.sampling import ReplyText, Sampler
from vistune.model.inputs import ModelInputs
from vistune.types import Reply, SamplingParams, TokenLogprob


@dataclass(frozen=True)
class Event:
    """What happened to a request: text to show (with the `logprobs` of its tokens), and at its end a reply, scores or an error."""

    text: str = ""
    reply: Reply | None = None
    scores: tuple[TokenLogprob, ...] | None = None
    error: Exception | None = None
    logprobs: tuple[TokenLogprob, ...] = ()

    @property
    def is_last(self) -> bool:
        return self.reply is not None or self.scores is not None or self.error is not None


@dataclass(eq=False)
class Request:
    """One conversation to be answered, or, with `score_from`, tokens from that row on to be given their probabilities."""

    name: str
    inputs: ModelInputs
    params: SamplingParams
    deliver: Callable[[Event], None]
    continued: bool = False
    score_from: int | None = None
    grammar: Grammar | None = None
    cancelled: bool = False
    path: TokenPath | None = None  # of its prompt, once it is queued


@dataclass(eq=False)
class Running:
    """A request that has its place in the arena."""

    request: Request
    path: TokenPath
    sequence: KVSequence
    cached: int
    limit: int
    sampler: Sampler
    text: ReplyText
    pictures: dict[int, Picture] = field(default_factory=dict)  # by their number in the prompt, until it is embedded
    embeddings: Tensor | None = None  # [prompt rows after `cached`, D], until the prompt is read
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    num_told: int = 0

    @property
    def num_prompt(self) -> int:
        return len(self.path)

    @property
    def is_prefilling(self) -> bool:
        return self.sequence.length < self.num_prompt

    @property
    def waits_to_see(self) -> bool:
        """Whether its prompt cannot be read yet, as the tower has not seen all of its pictures."""
        return self.is_prefilling and self.embeddings is None

    def untold(self) -> tuple[TokenLogprob, ...]:
        """The log-probabilities since this was last asked."""
        new = tuple(self.logprobs[self.num_told :])
        self.num_told = len(self.logprobs)
        return new


@dataclass(frozen=True)
class Part:
    """Rows of one sequence in the next forward pass, and which of them need logits (counted from the part's first row)."""

    running: Running
    count: int
    wanted: range
