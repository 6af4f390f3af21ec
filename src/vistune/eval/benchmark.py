"""What a benchmark is, and what its graded answers add up to."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from vistune.types import Graded, Question, Reply, SamplingParams, Score


@dataclass(frozen=True)
class Benchmark:
    """A frozen set of questions and how they are graded. `load` may read files; nothing is read before it is called."""

    name: str
    version: str
    load: Callable[[], Sequence[Question]]
    score: Callable[[Question, Reply], Score]
    params: SamplingParams = field(default_factory=lambda: SamplingParams(max_new_tokens=96))


@dataclass(frozen=True)
class KindResult:
    """Exact match in one category of one group (or of all groups, when `group` is empty)."""

    group: str
    kind: str
    n: int
    n_unscored: int
    value: float


@dataclass(frozen=True)
class BenchmarkReport:
    """`overall` is the mean over kinds, so that a kind with many questions does not drown the others; `micro` the mean over questions.

    A question's group may be a path ("seen/new_phrasing"): it counts in "seen" as well.
    """

    benchmark: str
    overall: float
    micro: float
    by_group: dict[str, float]
    kinds: tuple[KindResult, ...]
    n: int
    n_unscored: int


def report(name: str, graded: Iterable[Graded]) -> BenchmarkReport:
    """Adds graded answers up, per kind, per group and overall. Unscored answers are counted and left out of every mean."""
    graded = list(graded)
    members: dict[str, list[Graded]] = defaultdict(list)
    for item in graded:
        steps = item.question.group.split("/") if item.question.group else []
        for depth in range(len(steps)):
            members["/".join(steps[: depth + 1])].append(item)
    kinds = list(_kind_results("", graded))
    per_group = {group: list(_kind_results(group, members[group])) for group in sorted(members)}
    return BenchmarkReport(
        benchmark=name,
        overall=_mean([kind.value for kind in kinds if kind.n]),
        micro=_mean([item.score.value for item in graded if item.score.value is not None]),
        by_group={group: _mean([kind.value for kind in results if kind.n]) for group, results in per_group.items()},
        kinds=(*kinds, *(kind for results in per_group.values() for kind in results)),
        n=len(graded),
        n_unscored=sum(item.score.value is None for item in graded),
    )


def _kind_results(group: str, graded: Sequence[Graded]) -> Iterable[KindResult]:
    values: dict[str, list[float]] = defaultdict(list)
    unscored: Counter[str] = Counter()
    for item in graded:
        if item.score.value is None:
            unscored[item.question.category] += 1
        else:
            values[item.question.category].append(item.score.value)
    for kind in sorted({*values, *unscored}):
        yield KindResult(group, kind, len(values[kind]), unscored[kind], _mean(values[kind]))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def majority_replies(questions: Iterable[Question], training: Iterable[tuple[str, str]]) -> dict[str, str]:
    """What someone who never looks would say: the most frequent training answer to the very same question text.

    Questions that training never asked get the most frequent answer among training questions with the same first two words, or failing
    that the most frequent answer of all. `training` holds (question, answer) pairs; ties go to the answer that came first.
    """
    exact: dict[str, Counter[str]] = defaultdict(Counter)
    opening: dict[str, Counter[str]] = defaultdict(Counter)
    everything: Counter[str] = Counter()
    for text, answer in training:
        exact[text][answer] += 1
        opening[_opening(text)][answer] += 1
        everything[answer] += 1
    replies = {}
    for question in questions:
        text = question.conversation.messages[-1].text.strip()
        votes = exact.get(text) or opening.get(_opening(text)) or everything
        replies[question.id] = votes.most_common(1)[0][0] if votes else ""
    return replies


def _opening(text: str) -> str:
    return " ".join(text.lower().split()[:2])
