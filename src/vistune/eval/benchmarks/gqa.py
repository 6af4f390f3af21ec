"""GQA: accuracy by exact match on the balanced questions, and how far the answers' distribution is off.

Follows eval.py of the GQA authors, and convert_gqa_for_eval.py of LLaVA for what goes into it. Metrics that need scene graphs or choices
(grounding, validity, plausibility) are not here, nor is consistency, which needs replies to the unbalanced questions too.
"""

from __future__ import annotations

import string
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, overload

from vistune.errors import ScoringError, UnknownName
from vistune.eval.benchmark import About, Benchmark, Metric, Protocol
from vistune.eval.benchmarks.vqa import as_text
from vistune.eval.official_files import Pictures, keyed_rows, require_count
from vistune.eval.shared import SHORT_ANSWER, about_pictures, mean_percent, unanswered
from vistune.types import Graded, Question, Reply, SamplingParams, Score

Mode = Literal["official", "lmms"]
MODES = ("official", "lmms")
Predictions = Mapping[str, str] | Iterable[Mapping[str, Any]]

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Prediction(TypedDict):
    """One row of the file that eval.py reads."""

    questionId: str
    prediction: str


@dataclass(frozen=True)
class GQAScore:
    """Accuracies are fractions over balanced questions, means of nothing are 0; a distribution is better when smaller.

    `binary` has every structural type but `query`, which is `open`; `by_structural` and `by_semantic` have each type by itself.
    """

    accuracy: float
    binary: float
    open: float
    distribution: float
    by_structural: dict[str, float]
    by_semantic: dict[str, float]
    n: int


@overload
def convert(replies: str | None, *, strict_official: bool = False) -> str: ...
@overload
def convert(replies: Iterable[Mapping[str, Any]], *, strict_official: bool = False) -> list[Prediction]: ...
def convert(replies: str | Iterable[Mapping[str, Any]] | None, *, strict_official: bool = False) -> str | list[Prediction]:
    """A reply as the prediction that is compared: without the dots at its end, lower-cased, not trimmed.

    Args:
        replies: one reply, or the rows of an answers file (`question_id`, `text`), which become rows of a predictions file.
        strict_official: raise for a reply that is None (otherwise it is empty).

    >>> convert("Yes.")
    'yes'
    """
    if replies is None or isinstance(replies, str):
        return as_text(replies, strict_official=strict_official).rstrip(".").lower()
    return [
        {"questionId": _field(row, "question_id"), "prediction": convert(_field(row, "text"), strict_official=strict_official)}
        for row in replies
    ]


def match(prediction: str, answer: str, mode: Mode = "official") -> bool:
    """Whether a prediction is right: exactly equal, or in `lmms` mode (lmms-eval, which takes raw replies) but for case and punctuation."""
    if mode == "official":
        return prediction == answer
    if mode == "lmms":
        return prediction.lower().translate(_NO_PUNCTUATION) == answer.lower().translate(_NO_PUNCTUATION)
    raise UnknownName("GQA mode", mode, known=MODES)


def score(
    questions: Mapping[str, Mapping[str, Any]], predictions: Predictions, *, mode: Mode = "official", strict_official: bool = False
) -> GQAScore:
    """Scores predictions as eval.py does, in fractions.

    Args:
        questions: by id, as in the official file: `answer`, `isBalanced`, `types` (`structural`, `semantic`), `groups` (`global`).
        predictions: by id, or rows of `questionId` and `prediction`, of which the last for an id counts. Others than asked are ignored.
        strict_official: raise where eval.py fails: no question has a global group, so that there is no distribution (otherwise 0).

    Raises:
        ScoringError: for a balanced question without a prediction, and for a question without a field that is needed.
    """
    predicted = _by_id(predictions)
    balanced = {name: question for name, question in questions.items() if _field(question, "isBalanced")}
    missing = [name for name in balanced if name not in predicted]
    if missing:
        raise ScoringError(
            f"{len(missing)} of {len(balanced)} balanced GQA questions have no prediction (first: {missing[0]}); the score is defined only "
            "when all of them have one. Is the file from another split, or was the run cut short?"
        )
    right: list[float] = []
    by_answer: dict[str, list[float]] = {"binary": [], "open": []}
    structural: dict[str, list[float]] = defaultdict(list)
    semantic: dict[str, list[float]] = defaultdict(list)
    gold_counts: dict[str, Counter[str]] = defaultdict(Counter)
    predicted_counts: dict[str, Counter[str]] = defaultdict(Counter)
    for name, question in balanced.items():
        gold = as_text(_field(question, "answer"))
        reply = as_text(predicted[name])
        point = float(match(reply, gold, mode))
        kind = _field(_field(question, "types"), "structural")
        right.append(point)
        by_answer["open" if kind == "query" else "binary"].append(point)
        structural[kind].append(point)
        semantic[_field(question, "types").get("semantic", "")].append(point)
        group = (question.get("groups") or {}).get("global")
        if group is not None:
            gold_counts[group][gold] += 1
            predicted_counts[group][reply] += 1
    if not gold_counts and strict_official:
        raise ScoringError("No balanced GQA question has a global group; the official script divides by zero for the distribution.")
    return GQAScore(
        accuracy=_mean(right),
        binary=_mean(by_answer["binary"]),
        open=_mean(by_answer["open"]),
        distribution=distribution(gold_counts, predicted_counts),
        by_structural={kind: _mean(points) for kind, points in structural.items()},
        by_semantic={kind: _mean(points) for kind, points in semantic.items()},
        n=len(right),
    )


def distribution(gold: Mapping[str, Mapping[str, int]], predicted: Mapping[str, Mapping[str, int]]) -> float:
    """A hundredth of the chi-square between counts of answers per group, weighted by the group's size; 0 without groups.

    Only answers that occur in the gold counts of a group are summed, as in eval.py.
    """
    weighted = total = 0.0
    for group, counts in gold.items():
        found = predicted.get(group, {})
        chi_square = sum((found.get(answer, 0) - count) ** 2 / count for answer, count in counts.items())
        size = sum(counts.values())
        weighted += chi_square * size
        total += size
    return weighted / total / 100 if total else 0.0


def _by_id(predictions: Predictions) -> Mapping[Any, Any]:
    if isinstance(predictions, Mapping):
        return predictions
    return {_field(row, "questionId"): _field(row, "prediction") for row in predictions}


def _field(record: Any, name: str) -> Any:
    if not isinstance(record, Mapping) or name not in record:
        found = ", ".join(map(str, record)) if isinstance(record, Mapping) else type(record).__name__
        raise ScoringError(f"A GQA record has no `{name}`; found {found or 'nothing'}. Check that the file is in the official layout.")
    return record[name]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


# --- the balanced test-dev questions ------------------------------------------------------------------------------------------------------

FILE = "testdev_balanced_questions.json"
TESTDEV_QUESTIONS = 12_578


def load(folder: Path, protocol: str, *, check_counts: bool = True) -> list[Question]:
    """The balanced questions of the test-dev split; the category is the structural type.

    Raises:
        DataError: the file or a picture is missing, a field is not there, or there are not 12,578 balanced questions.
    """
    rows = {name: row for name, row in keyed_rows(folder / FILE).items() if row.get("isBalanced") is True}
    if check_counts:
        require_count(len(rows), TESTDEV_QUESTIONS, f"{folder / FILE}: balanced questions")
    pictures = Pictures(folder / "images")
    questions = []
    for name, row in rows.items():
        types, groups, image = row.get("types"), row.values.get("groups"), row.name("imageId")
        if not isinstance(types, Mapping) or not isinstance(types.get("structural"), str):
            raise row.wrong("types", "an object with `structural`")
        if groups is not None and not isinstance(groups, Mapping):
            raise row.wrong("groups", "an object")
        questions.append(
            Question(
                name,
                about_pictures(pictures.part(f"{image}.jpg", row), f"{row.text('question')}\n{SHORT_ANSWER}"),
                answers=(row.text("answer"),),
                category=types["structural"],
                image_group=image,
                facts={"isBalanced": True, "types": dict(types), "groups": dict(groups or {}), "answer": row.text("answer")},
            )
        )
    return questions


def grade(question: Question, reply: Reply, protocol: str) -> Score:
    """Whether a reply is right; what is compared (`extracted`) is the converted reply, or with `lmms` the raw one."""
    if missing := unanswered(reply):
        return missing
    prediction = reply.text.strip() if protocol == "lmms" else convert(reply.text.strip())
    return Score(float(match(prediction, question.answers[0], "lmms" if protocol == "lmms" else "official")), extracted=prediction)


def summarise(graded: Sequence[Graded], protocol: str) -> tuple[Metric, ...]:
    """`score` of the items that have one, in percent; the distribution is lower where answers are spread as they should be."""
    kept = [item for item in graded if item.score.value is not None]
    found = score(
        {str(number): item.question.facts for number, item in enumerate(kept)},
        {str(number): item.score.extracted or "" for number, item in enumerate(kept)},
        mode="lmms" if protocol == "lmms" else "official",
    )
    kinds = Counter(item.question.category for item in kept)
    meanings = Counter(item.question.facts["types"].get("semantic", "") for item in kept)
    return (
        mean_percent("accuracy", kept, headline=True),
        Metric("binary", 100 * found.binary, found.n - kinds["query"]),
        Metric("open", 100 * found.open, kinds["query"]),
        Metric("distribution", found.distribution, found.n, "score"),
        *(Metric(f"structural/{kind}", 100 * value, kinds[kind]) for kind, value in sorted(found.by_structural.items())),
        *(Metric(f"semantic/{kind}", 100 * value, meanings[kind]) for kind, value in sorted(found.by_semantic.items()) if kind),
    )


BENCHMARK = Benchmark(
    "gqa",
    "1",
    about=About(
        title="GQA: compositional questions about scenes",
        source="https://cs.stanford.edu/people/dorarad/gqa/download.html (questions 1.2 and pictures)",
        licence="CC BY 4.0; pictures of Visual Genome",
        layout=f"{FILE}\nimages/n161313.jpg",
        metric="exact match on the balanced test-dev questions",
        paper="https://arxiv.org/abs/1902.09506",
    ),
    protocols=(
        Protocol("official", "LLaVA's prompt; replies converted as by LLaVA, scored as eval.py"),
        Protocol("lmms", "the same prompt; raw replies, case and punctuation ignored, as in lmms-eval"),
    ),
    load=load,
    score=grade,
    summarise=summarise,
    params=SamplingParams(max_new_tokens=128),
    sizes=dict.fromkeys(("official", "lmms"), TESTDEV_QUESTIONS),
)
