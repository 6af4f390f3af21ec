"""What a benchmark is, and what graded answers add up to where no official script says it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vistune.errors import DataError, UnknownName, UsageError
from vistune.eval.judge import JudgeRules
from vistune.types import Graded, Question, Reply, SamplingParams, Score


@dataclass(frozen=True)
class About:
    """What `vistune eval --list` says of a benchmark: what it is, where its data comes from, and where the files are to lie."""

    title: str
    source: str
    licence: str
    layout: str
    """The official files below the benchmark's data folder, one path per line; `{split}` where there are several."""
    metric: str
    """The headline metric in words."""
    paper: str


@dataclass(frozen=True)
class Protocol:
    """One way to ask and to score; its id is a part of every result."""

    id: str
    about: str


@dataclass(frozen=True)
class Metric:
    """A figure as the field prints it.

    A metric of one category is named "metric/category"; a category may be a path. Percents go to 100, fractions to 1, points and scores to
    wherever they go. `interval` is the 95 % interval, which the runner adds.
    """

    name: str
    value: float
    n: int
    unit: Literal["percent", "points", "score", "fraction"] = "percent"
    interval: tuple[float, float] | None = None
    headline: bool = False


def _nothing(question: Question, protocol: str) -> Sequence[str]:
    return ()


def _zero_or_one(question: Question) -> tuple[Score, Score]:
    return Score(0.0), Score(1.0)


@dataclass(frozen=True)
class Benchmark:
    """A set of questions, how they are asked and graded, and how the grades add up. Nothing is read before `load` is called.

    `load(folder, protocol)` reads the official files in the benchmark's own folder. `score(question, reply, protocol)` gives a Score
    without a value where none can be given. `summarise(graded, protocol)` is the official aggregation of the scored answers, of any part
    of the questions, with exactly one headline; unscored answers are never in it, for the runner counts and bounds them.
    """

    name: str
    version: str
    """Of the questions as they are asked."""
    about: About
    protocols: tuple[Protocol, ...]
    """The first is the default."""
    load: Callable[[Path, str], Sequence[Question]]
    score: Callable[[Question, Reply, str], Score]
    summarise: Callable[[Sequence[Graded], str], tuple[Metric, ...]]
    scorer: str = "1"
    """Version of the scoring rules."""
    params: SamplingParams = field(default_factory=lambda: SamplingParams(max_new_tokens=96))
    judge: JudgeRules | None = None
    """Only where a judge gives the score; `score` is not called then."""
    needs_data: bool = True
    """False where the questions come with vistune or a package."""
    continuations: Callable[[Question, str], Sequence[str]] = _nothing
    """What is compared by likelihood under a protocol. Where there are some, the model is not asked: the reply is the continuation with the
    highest mean log-probability of its tokens, and its `logprobs` are one entry (continuation, mean) for each."""
    extremes: Callable[[Question], tuple[Score, Score]] = _zero_or_one
    """The worst and the best that an unscored answer could have been, for the bounds."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Of each protocol, how many questions there officially are: a result on fewer or more is marked partial."""
    intervals: bool = True
    """False where `summarise` takes seconds (corpus statistics), too long to be repeated sixty times."""

    def protocol(self, id: str = "") -> Protocol:
        """The protocol of this id, or the default one. Raises UnknownName."""
        known = {protocol.id: protocol for protocol in self.protocols}
        if id and id not in known:
            raise UnknownName(f"protocol of {self.name}", id, known=known)
        return known[id] if id else self.protocols[0]

    def questions(self, data: Path | None = None, protocol: str = "") -> Sequence[Question]:
        """The questions, read and checked.

        Args:
            data: the folder that holds the benchmark's own, `data / name`.

        Raises:
            UsageError: it needs data and was given none.
            DataError: what `load` says, no questions, or an id that occurs twice.
        """
        chosen = self.protocol(protocol).id
        folder = (data or Path()) / self.name
        if self.needs_data and data is None:
            raise UsageError(f"{self.name} needs its official files; give --data ROOT with them in ROOT/{self.name}. {self._files()}")
        if self.needs_data and not folder.is_dir():
            raise DataError(f"{folder} is no folder. {self._files()}")
        questions = self.load(folder, chosen)
        twice = [id for id, count in Counter(question.id for question in questions).items() if count > 1]
        if twice:
            raise DataError(f"{self.name} has {len(twice)} ids more than once, the first {twice[0]!r}; its files are damaged or mixed.")
        if not questions:
            raise DataError(f"{self.name} has no questions in {folder}. {self._files()}")
        return questions

    def _files(self) -> str:
        return f"Expected there: {', '.join(self.about.layout.splitlines())}; from {self.about.source}."


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


def by_kind(graded: Sequence[Graded], protocol: str) -> tuple[Metric, ...]:
    """`report` as metrics, in fractions: "overall" (the headline), "every question", and one per kind; of each group too."""
    found = report("", graded)

    def named(metric: str, group: str) -> str:
        return f"{metric}/{group}" if group else metric

    metrics = [Metric("overall", found.overall, found.n - found.n_unscored, "fraction", headline=True)]
    metrics.append(Metric("every question", found.micro, found.n - found.n_unscored, "fraction"))
    for group, overall in found.by_group.items():
        scored = sum(kind.n for kind in found.kinds if kind.group == group)
        if scored:
            metrics.append(Metric(named("overall", group), overall, scored, "fraction"))
    metrics += [Metric(named(kind.kind, kind.group), kind.value, kind.n, "fraction") for kind in found.kinds if kind.n]
    return tuple(metrics)


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
