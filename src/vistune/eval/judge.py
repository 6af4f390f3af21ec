"""How a judge gives a score: what it is shown, how its reply is read, and what becomes of the replies that cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vistune.types import Conversation, Question, Reply, SamplingParams, Score


def same_params(params: SamplingParams, question: Question, attempt: int) -> SamplingParams:
    return params


def only(scores: Sequence[Score], question: Question) -> Score:
    """Of a single request."""
    (score,) = scores
    return score


@dataclass(frozen=True)
class JudgeRules:
    """What makes a judge of a model.

    `ask(question, reply, protocol)` gives what the judge is shown, in one or several requests. `parse(text, question, protocol)` reads its
    reply: prose, two numbers, an 11, NaN or nothing are a Score without a value, and the judge is asked again. `combine` makes one score of
    those of all requests (order swap, ensembles); a request without a readable reply is a Score without a value there too.
    """

    ask: Callable[[Question, Reply, str], Sequence[Conversation]]
    parse: Callable[[str, Question, str], Score]
    params: SamplingParams
    attempts: int = 3
    combine: Callable[[Sequence[Score], Question], Score] = only
    vary: Callable[[SamplingParams, Question, int], SamplingParams] = same_params
    """The parameters of an attempt, counted from 0, where an official script raises the temperature to get another reply."""
    canaries: bool = True
    """Whether a reply equal to `answers[0]` must get a higher score than another question's answer, which is tried before the run."""
