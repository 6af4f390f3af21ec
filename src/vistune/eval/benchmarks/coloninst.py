"""ColonINST-v1 (Ji et al. 2024): colonoscopy pictures; classify (CLS), describe a region (REG), find a region (REC).

As the evaluation scripts of IntelliScope; all but the questions at the end are pure functions. "Seen" in the published table is the
validation split, "unseen" the test split.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from vistune.errors import ScoringError, UnknownName
from vistune.eval.benchmark import About, Benchmark, Metric, Protocol
from vistune.eval.official_files import Pictures, Row, json_rows, require_count
from vistune.eval.shared import about_pictures, mean_percent, unanswered
from vistune.types import Graded, Question, Reply, SamplingParams, Score

COUNTS = {"cls": {"val": 8_929, "test": 45_284}, "reg": {"val": 4_874, "test": 37_631}, "rec": {"val": 4_874, "test": 37_631}}
HIT_ABOVE = 0.5
_BOX_NUMBERS = 4
_END_OF_TEXT = "<|endoftext|>"
# Possessive, because blanks and digits exclude each other: backtracking could never help. The look-ahead only lets runs of "<" fail early.
_NUMBER = re.compile(r"<(?![^<>]*+<)\s*+(\d++)\s*+>")


@dataclass(frozen=True)
class ColonINSTScore:
    """Fractions: `accuracy` for CLS and REG; `iou`, `precision` and `recall` for REC, None elsewhere.

    The official recall divides by the count of gold numbers, four, so that it never exceeds 0.25.
    """

    task: str
    n: int
    accuracy: float | None = None
    iou: float | None = None
    precision: float | None = None
    recall: float | None = None


def score(
    task: str,
    items: Iterable[Mapping[str, Any]],
    *,
    split: str | None = None,
    check_counts: bool = True,
    strict_official: bool = False,
) -> ColonINSTScore:
    """Scores answered dialogues of one task.

    Labels are compared lower-cased and letter for letter: no trimming, a full stop at the end is wrong.

    Args:
        task: `cls`, `reg` or `rec`, in any case; captions have no official score.
        items: dialogues in the official layout, whose `conversations` hold turns `from` `gpt` (gold) and `prediction` (reply).
        split: `val` or `test`; without it either count will do.
        check_counts: refuse any other number of items than the split's, as the official script does.
        strict_official: raise where the official script fails (no items, a number too long for an int, a gold text without numbers).

    Raises:
        ScoringError: wrong counts, a dialogue without gold or prediction, or (strict) as above.
        UnknownName: there is no such task or split.
    """
    name = task.lower()
    if name not in COUNTS:
        raise UnknownName("ColonINST task with a score", task, known=COUNTS)
    if split is not None and split not in COUNTS[name]:
        raise UnknownName("ColonINST split", split, known=COUNTS[name])
    pairs = [(_turn(item, "prediction").lower().replace(_END_OF_TEXT, ""), _turn(item, "gpt").lower()) for item in items]
    expected = [COUNTS[name][split]] if split else list(COUNTS[name].values())
    if check_counts and len(pairs) not in expected:
        raise ScoringError(
            f"{name} has {' or '.join(map(str, expected))} items, but there are {len(pairs)}; pass check_counts=False for a part."
        )
    if strict_official and not pairs:
        raise ScoringError("the official script divides by the number of items, and there is none.")
    if name != "rec":
        return ColonINSTScore(name, len(pairs), accuracy=_mean([prediction == gold for prediction, gold in pairs]))
    boxes = [(_numbers(prediction, strict_official), _numbers(gold, strict_official)) for prediction, gold in pairs]
    if strict_official and not all(gold for _, gold in boxes):
        raise ScoringError("the official script divides by the count of gold numbers, and a gold text has none.")
    overlaps = [box_iou(prediction, gold) for prediction, gold in boxes]
    hits = [overlap > HIT_ABOVE for overlap in overlaps]
    return ColonINSTScore(name, len(pairs), iou=_mean(overlaps), precision=_mean(hits), recall=_mean([hit / _BOX_NUMBERS for hit in hits]))


def parse_box(text: str) -> tuple[int, ...] | None:
    """The box `{<x1><y1><x2><y2>}` in a text, or None unless exactly four numbers stand in angle brackets."""
    numbers = _numbers(text.lower().replace(_END_OF_TEXT, ""), strict_official=False)
    return numbers if len(numbers) == _BOX_NUMBERS else None


def box_iou(box: Sequence[int], other: Sequence[int]) -> float:
    """Intersection over union of (x1, y1, x2, y2), corners inclusive (a side is x2 - x1 + 1 long); else 0."""
    if len(box) != _BOX_NUMBERS or len(other) != _BOX_NUMBERS:
        return 0.0
    width = min(box[2], other[2]) - max(box[0], other[0]) + 1
    height = min(box[3], other[3]) - max(box[1], other[1]) + 1
    # A box whose corners are swapped has no overlap with anything, so both areas below are positive.
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / (_area(box) + _area(other) - width * height)


def _area(box: Sequence[int]) -> int:
    return (box[2] - box[0] + 1) * (box[3] - box[1] + 1)


def _numbers(text: str, strict_official: bool) -> tuple[int, ...]:
    """The numbers in angle brackets; a fifth is enough to know that there are too many."""
    try:
        return tuple(int(match[1]) for match in islice(_NUMBER.finditer(text), _BOX_NUMBERS + 1))
    except ValueError:  # Python refuses to read more than 4,300 digits; a coordinate has four
        if strict_official:
            raise ScoringError("a number of thousands of digits, which the official script fails to read.") from None
        return ()


def _turn(item: Mapping[str, Any], speaker: str) -> str:
    turns = item.get("conversations")
    turns = turns if isinstance(turns, list | tuple) else ()
    values = [turn.get("value") for turn in turns if isinstance(turn, Mapping) and turn.get("from") == speaker]
    if not values or not isinstance(values[0], str):
        raise ScoringError(f"{item.get('id', 'a dialogue')} has no text from {speaker!r} in its conversations.")
    return values[0]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


# --- the questions ------------------------------------------------------------------------------------------------------------------------

SPLITS = {"seen": "val", "unseen": "test"}
_PICTURE_MARK = "<image>"


def load(folder: Path, protocol: str, *, check_counts: bool = True) -> list[Question]:
    """The dialogues of the three tasks, of both splits or of one; their place in the file is their id, for a picture has several.

    Raises:
        DataError: a file or picture is missing, a dialogue is not one question and its answer, or a file has another number of dialogues.
    """
    pictures = Pictures(folder / "Positive-images")
    questions = []
    for name, split in SPLITS.items():
        if protocol not in ("official", name):
            continue
        for task, counts in COUNTS.items():
            path = folder / f"Json-file/{split}/ColonINST-{split}-{task}.json"
            rows = json_rows(path)
            if check_counts:
                require_count(len(rows), counts[split], f"{path}: dialogues")
            questions += [_question(f"{split}-{task}-{number}", task, name, row, pictures) for number, row in enumerate(rows)]
    return questions


def _question(id: str, task: str, split: str, row: Row, pictures: Pictures) -> Question:
    turns = row.get("conversations")
    speakers = [turn.get("from") for turn in turns if isinstance(turn, Mapping)] if isinstance(turns, list) else []
    if speakers != ["human", "gpt"] or not all(isinstance(turn.get("value"), str) for turn in turns):
        raise row.wrong("conversations", "one turn of 'human' and one of 'gpt'; another turn may be a prediction")
    instruction, answer = turns[0]["value"], turns[1]["value"]
    if instruction.count(_PICTURE_MARK) != 1:
        raise row.error(f"the question must hold {_PICTURE_MARK} once")
    if task == "rec" and parse_box(answer) is None:
        raise row.error(f"the answer must be a box such as {{<1><2><30><40>}}, not {answer[:60]!r}")
    picture = pictures.part(row.text("id"), row)
    return Question(
        id,
        about_pictures(picture, instruction.replace(_PICTURE_MARK, "").strip()),
        answers=(answer,),
        category=task,
        group=split,
        image_group=row.text("id"),
    )


def score_reply(question: Question, reply: Reply, protocol: str) -> Score:
    """1 or 0 for a label, the overlap for a box. The official runner trims what the model says, the scorer does not."""
    if missing := unanswered(reply):
        return missing
    said, gold = reply.text.replace(_END_OF_TEXT, "").strip().lower(), question.answers[0].lower()
    if question.category != "rec":
        return Score(float(said == gold), extracted=said)
    box = parse_box(said)
    overlap = box_iou(box or (), _numbers(gold, strict_official=False))
    return Score(overlap, extracted=str(box) if box else None, note="" if box else "no four numbers in angle brackets, so no overlap")


def summarise(graded: Sequence[Graded], protocol: str) -> tuple[Metric, ...]:
    """The columns of the published table. It has no figure for all; the headline is the accuracy of CLS, unseen where that was asked."""
    metrics = []
    for split in SPLITS:
        members = {task: [item for item in graded if (item.question.category, item.question.group) == (task, split)] for task in COUNTS}
        metrics += [mean_percent(f"{task.upper()} accuracy/{split}", members[task]) for task in ("cls", "reg") if members[task]]
        if members["rec"]:
            hits = [Graded(item.question, item.reply, _hit(item.score)) for item in members["rec"]]
            precision = mean_percent(f"REC precision/{split}", hits)
            recall = Metric(f"REC recall/{split}", precision.value / _BOX_NUMBERS, precision.n)
            metrics += [mean_percent(f"REC IoU/{split}", members["rec"]), precision, recall]
    first = next((name for name in ("CLS accuracy/unseen", "CLS accuracy/seen") for metric in metrics if metric.name == name), None)
    metrics = metrics or [Metric("CLS accuracy", 0.0, 0)]
    headline = first or metrics[0].name
    return tuple(replace(metric, headline=metric.name == headline) for metric in metrics)


def _hit(score: Score) -> Score:
    return score if score.value is None else Score(float(score.value > HIT_ABOVE))


BENCHMARK = Benchmark(
    "coloninst",
    "1",
    about=About(
        title="ColonINST-v1: colonoscopy pictures; classify (CLS), name a region (REG), find a region (REC)",
        source="https://huggingface.co/datasets/ai4colonoscopy/ColonINST-v1; pictures of 19 public sets, on request from the authors",
        licence="Apache-2.0 (code); pictures under their own licences",
        layout="Json-file/{val,test}/ColonINST-{val,test}-{cls,reg,rec}.json\nPositive-images/<Set>/<Split>/<class>/<file>",
        metric="CLS accuracy on unseen pictures; beside it CLS, REG and REC, seen (val) and unseen (test)",
        paper="https://arxiv.org/abs/2410.17241",
    ),
    protocols=(
        Protocol("official", "both splits; the dialogues' own instructions, labels letter for letter but for case, boxes by overlap"),
        Protocol("seen", "the validation split alone"),
        Protocol("unseen", "the test split alone"),
    ),
    load=load,
    score=score_reply,
    summarise=summarise,
    params=SamplingParams(max_new_tokens=40),
    sizes={
        "official": sum(sum(counts.values()) for counts in COUNTS.values()),
        "seen": sum(counts["val"] for counts in COUNTS.values()),
        "unseen": sum(counts["test"] for counts in COUNTS.values()),
    },
)
