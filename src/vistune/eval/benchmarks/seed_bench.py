"""SEED-Bench: accuracy of option letters, in all and for pictures and videos apart.

`official` follows convert_seed_for_submission.py of LLaVA, `lmms` follows lmms-eval; they differ in how much beside the letter a reply may
hold.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vistune.errors import ScoringError, UnknownName
from vistune.eval.benchmarks.vqa import as_text

Mode = Literal["official", "lmms"]
MODES = ("official", "lmms")
Predictions = Mapping[int | str, str] | Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class SeedBenchScore:
    """Fractions over questions, 0 where there is none; `by_type` is keyed by `question_type_id`."""

    accuracy: float
    image: float
    video: float
    by_type: dict[int, float]
    n: int
    n_missing: int


def match(reply: str | None, answer: str, mode: Mode = "official") -> bool:
    """Whether a reply is the answer's letter: exactly, or in `lmms` mode by its first character, trimmed and in any case."""
    if mode not in MODES:
        raise UnknownName("SEED-Bench mode", mode, known=MODES)
    if mode == "official":
        return reply == answer
    return as_text(reply).strip()[:1].lower() == answer.lower().strip()


def score(
    questions: Iterable[Mapping[str, Any]], predictions: Predictions, *, mode: Mode = "official", strict_official: bool = False
) -> SeedBenchScore:
    """Adds up letters. A question without a prediction is wrong, and counted in `n_missing`.

    Args:
        questions: records with `question_id`, `answer`, `data_type` (`image` or `video`) and `question_type_id`.
        predictions: by question, or rows of `question_id` and `text`, of which the last counts. Ids that read as integers are integers.
        strict_official: raise where LLaVA's script fails: no question of pictures or none of videos, or a type all of whose questions
            are answered and none right.

    Raises:
        ScoringError: as above, and for a record without a field that is needed.
    """
    replies = predictions if isinstance(predictions, Mapping) else {_field(row, "question_id"): _field(row, "text") for row in predictions}
    points: dict[str, list[bool]] = {"image": [], "video": []}
    by_type: dict[int, list[bool]] = defaultdict(list)
    missing: set[int] = set()  # types with a missing prediction: these have a count even if none is right
    n_missing = 0
    for question in questions:
        kind = _field(question, "question_type_id")
        name = _as_integer(_field(question, "question_id"))
        right = name in replies and match(replies[name], _field(question, "answer"), mode)
        if name not in replies:
            missing.add(kind)
            n_missing += 1
        by_type[kind].append(right)
        points.setdefault(_field(question, "data_type"), []).append(right)
    if strict_official:
        _refuse_as_the_script(points, by_type, missing)
    everything = [right for found in by_type.values() for right in found]
    return SeedBenchScore(
        accuracy=_mean(everything),
        image=_mean(points["image"]),
        video=_mean(points["video"]),
        by_type={kind: _mean(found) for kind, found in by_type.items()},
        n=len(everything),
        n_missing=n_missing,
    )


def _refuse_as_the_script(points: Mapping[str, list[bool]], by_type: Mapping[int, list[bool]], missing: set[int]) -> None:
    for name in ("image", "video"):
        if not points[name]:
            raise ScoringError(f"There is no SEED-Bench question of kind {name}; the official script divides by zero.")
    for kind, found in by_type.items():
        if not any(found) and kind not in missing:
            raise ScoringError(f"No question of SEED-Bench type {kind} is right; the official script has no count for the type and fails.")


def _as_integer(name: Any) -> Any:
    try:
        return int(name)
    except (TypeError, ValueError):
        return name  # the ids of videos are words


def _field(record: Any, name: str) -> Any:
    if not isinstance(record, Mapping) or name not in record:
        found = ", ".join(map(str, record)) if isinstance(record, Mapping) else type(record).__name__
        raise ScoringError(
            f"A SEED-Bench record has no `{name}`; found {found or 'nothing'}. Check that the file is in the official layout."
        )
    return record[name]


def _mean(values: list[bool]) -> float:
    return sum(values) / len(values) if values else 0.0
