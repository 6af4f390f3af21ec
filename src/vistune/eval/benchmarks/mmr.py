"""MMR's rules (also known as MRR-Benchmark): what is taken out of a reply, the two measures, and hits per task.

Follows the extraction and evaluation scripts of MMR_Bench. A task's column is the number of hits among its first 50 items in file order;
`grounding_t` has two columns, text and box; the total of the twelve columns is at most 600.
"""

from __future__ import annotations

import functools
import json
import re
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vistune.errors import ScoringError, UnknownName
from vistune.eval.benchmark import About, Benchmark, Metric, Protocol
from vistune.eval.official_files import EmbeddedPictures, Row, parquet_rows, require_count
from vistune.eval.shared import about_pictures, unanswered
from vistune.types import Graded, Question, Reply, SamplingParams, Score

ITEMS_PER_TASK = 50
IOU_HIT = 0.3
PNLS_HIT = 0.9
GAP = "-"
ERROR = "ERROR"

# In the order in which the total is added up.
TASKS: dict[str, str] = {
    "font_size": "mcq",
    "font_color": "mcq",
    "localize_o": "mcq",
    "localize_t": "mcq",
    "spatial_ot": "mcq",
    "spatial_oo": "mcq",
    "spatial_tt": "mcq",
    "recognition_label": "recognition",
    "recognition_pos": "recognition",
    "grounding_o": "grounding_o",
    "grounding_t": "grounding_t",
}
TYPES = tuple(dict.fromkeys(TASKS.values()))
COLUMNS = (*[task for task in TASKS if task != "grounding_t"], "grounding_t_text", "grounding_t_box")


class Item(NamedTuple):
    """What `extract` made of a reply, and the benchmark's `Answer`."""

    extracted: str | int
    answer: str


def clean(reply: str) -> str:
    """The reply without double quotes, which is what `extract` expects."""
    return reply.replace('"', "")


def extract(type: str, reply: str | None) -> str | int:
    """The answer in a cleaned reply; for grounding, JSON, or a text that contains `ERROR`.

    Args:
        type: `mcq` (the first run of digits, or the number 0), `recognition` (the reply without double quotes), `grounding_o` (the whole
            reply, if it is JSON of length 4) or `grounding_t` (`[text, [four numbers]]`); or the name of a task.
        reply: the model's reply after `clean`.

    Raises:
        UnknownName: a type that the benchmark does not have.
    """
    kind = TASKS.get(type, type)
    if kind not in TYPES:
        raise UnknownName("type of MMR task", type, known=[*TYPES, *TASKS])
    if not isinstance(reply, str):
        return f"{ERROR}: there is no reply"
    if kind == "mcq":
        digits = re.search(r"\d+", reply)
        return digits[0] if digits else 0
    if kind == "recognition":
        return clean(reply)
    try:
        return _box_text(reply) if kind == "grounding_o" else _text_and_box(reply)
    except (ValueError, TypeError, IndexError, OverflowError, RecursionError) as error:
        return f"{ERROR}: {error.__class__.__name__}"


def _box_text(reply: str) -> str:
    spaced = reply.replace(", ", ",").replace(",", ", ")
    if len(json.loads(spaced)) != 4:
        raise ValueError("a box has four numbers")
    return spaced


def _text_and_box(reply: str) -> str:
    pieces = reply.split("[", 2)
    box = [float(number) for number in json.loads("[" + pieces[1])]
    if len(box) != 4:
        raise ValueError("a box has four numbers")
    return json.dumps([clean(pieces[0]).strip(), box])


def iou(box: Sequence[float], other: Sequence[float], *, strict_official: bool = False) -> float:
    """Intersection over union of two boxes `[x_min, y_min, x_max, y_max]`; boxes the wrong way round are not put right.

    Raises:
        ScoringError: not four numbers; or a union of zero, for which the official code divides by zero, if `strict_official`.
            Otherwise that is 0.0.
    """
    left, top, right, bottom = _corners(box)
    other_left, other_top, other_right, other_bottom = _corners(other)
    width = max(0.0, min(right, other_right) - max(left, other_left))
    height = max(0.0, min(bottom, other_bottom) - max(top, other_top))
    intersection = width * height
    union = (right - left) * (bottom - top) + (other_right - other_left) * (other_bottom - other_top) - intersection
    if union:
        return intersection / union
    if strict_official:
        raise ScoringError(f"the union of {box!r} and {other!r} is zero")
    return 0.0


def _corners(box: Any) -> list[float]:
    try:
        if len(box) == 4 and all(isinstance(number, int | float) for number in box):
            return [float(number) for number in box]
    except (TypeError, OverflowError):
        pass
    raise ScoringError(f"{str(box)[:200]} is not a box of four numbers")


def pnls(gold: str, pred: str) -> float:
    """Partial normalised Levenshtein similarity: how well `gold` is found somewhere inside `pred`, from 0 to 1.

    The alignment gives +1 for equal characters and -1 for different ones and for gaps; leaving out the start of the prediction is
    free. It ends in the first column with the highest score of at least 0. Of the alignment, what counts lies between the first of
    gold's first character and the last of gold's last. Case is ignored, and double quotes in gold. Empty gold is always found.

    Gaps are written `-` and a gap against a real `-` counts as equal, as officially.
    """
    gold, pred = gold.lower().replace('"', ""), pred.lower()
    if not gold:
        return 1.0
    if gold in pred and gold[0] != GAP:
        return 1.0  # the alignment is gold upon itself
    aligned_gold, aligned_pred = _align(gold, pred)
    start, stop = aligned_gold.index(gold[0]), aligned_gold.rindex(gold[-1]) + 1
    equal = sum(one == another for one, another in zip(aligned_gold[start:stop], aligned_pred[start:stop], strict=True))
    return equal / (stop - start)


def _align(gold: str, pred: str) -> tuple[str, str]:
    """Both texts with gaps, equally long. Ties in the trace go to the diagonal, then to a gap in the prediction."""
    window, rows = 0, ()
    if len(pred) <= _LONGEST_TABLE:
        rows = tuple(_rows(gold, pred))
        end = _end_column(rows[-1])
    else:
        (last,) = deque(_rows(gold, pred), maxlen=1)
        end = _end_column(last)
        # An optimal path to a cell of row i is at most 3 i columns wide, so the cells on the trace and beside it are exact in this window.
        window = max(0, end - 6 * len(gold) - 2)
        rows = tuple(_rows(gold, pred[window:end]))
    left_gold: list[str] = []
    left_pred: list[str] = []
    row, column = len(gold), end - window
    while row and column:
        character = pred[window + column - 1]
        here = rows[row][column]
        if here == rows[row - 1][column - 1] + (2 if gold[row - 1] == character else 0):
            left_gold.append(gold[row - 1])
            left_pred.append(character)
            row, column = row - 1, column - 1
        elif here == rows[row - 1][column] - 1:
            left_gold.append(gold[row - 1])
            left_pred.append(GAP)
            row -= 1
        else:
            left_gold.append(GAP)
            left_pred.append(character)
            column -= 1
    unread = pred[: window + column]
    aligned_gold = GAP * len(unread) + gold[:row] + "".join(reversed(left_gold))
    aligned_pred = unread + GAP * row + "".join(reversed(left_pred))
    return aligned_gold, aligned_pred


_LONGEST_TABLE = 4096
"""Characters of a prediction up to which all rows of the table are kept, not only those near the end of the alignment."""


def _end_column(last: np.ndarray) -> int:
    scores = last - np.arange(len(last))
    best = int(np.argmax(scores[1:])) + 1 if len(last) > 1 else 0
    return best if scores[best] > -1 else 0


def _rows(gold: str, pred: str) -> Iterator[np.ndarray]:
    """The rows of the table of scores, [pred + 1] each, every cell plus its column: zeros, then one row per character of gold.

    With the column added, a gap in gold, which costs one per column, costs nothing: a row is the running maximum of what comes from above.
    """
    equal = 2 * (_codes(gold)[:, None] == _codes(pred)[None]) if len(gold) * len(pred) < 2**20 else None
    codes, gold_codes = _codes(pred), _codes(gold)
    above = np.arange(len(pred) + 1)
    yield above
    for number in range(len(gold)):
        here = np.empty_like(above)
        here[0] = -number - 1
        np.add(above[:-1], 2 * (codes == gold_codes[number]) if equal is None else equal[number], out=here[1:])
        np.maximum(here[1:], above[1:] - 1, out=here[1:])
        above = np.maximum.accumulate(here)
        yield above


def _codes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def score(task: str, items: Sequence[tuple[str | int, str]], *, strict_official: bool = False) -> int:
    """The hits among the first 50 items of a task; for `grounding_t`, text hits and box hits together.

    Args:
        task: one of `TASKS`.
        items: (what `extract` gave, the benchmark's `Answer`) in file order.
        strict_official: raise where the official code fails, on boxes that are not numbers or have no area; otherwise those do not hit.

    Raises:
        UnknownName: a task that the benchmark does not have.
        ScoringError: an answer of a grounding task that is not the JSON it should be; see also `strict_official`.
    """
    return sum(columns(task, items, strict_official=strict_official).values())


def columns(task: str, items: Sequence[tuple[str | int, str]], *, strict_official: bool = False) -> dict[str, int]:
    """Like `score`, per column of the results table: two columns for `grounding_t`, one for every other task."""
    if task not in TASKS:
        raise UnknownName("MMR task", task, known=TASKS)
    if TASKS[task] == "grounding_t":
        names: tuple[str, ...] = ("grounding_t_text", "grounding_t_box")
    else:
        names = (task,)
    hits = [hits_of(task, *item, strict_official=strict_official) for item in items[:ITEMS_PER_TASK]]
    return {name: sum(hit[place] for hit in hits) for place, name in enumerate(names)}


def hits_of(task: str, extracted: str | int, answer: str, *, strict_official: bool = False) -> tuple[bool, ...]:
    """Whether one item hits, once per column of its task. A grounding result that contains `ERROR` anywhere does not hit."""
    kind = TASKS[task]
    if kind == "mcq":
        return (extracted == answer,)
    if kind == "recognition":
        return (pnls(answer, str(extracted)) > PNLS_HIT,)
    gold_text, gold_box = _read(task, answer)
    try:
        if ERROR not in str(extracted):
            text, box = _read(task, str(extracted))
            box_hits = iou(box, gold_box, strict_official=strict_official) > IOU_HIT
            return (box_hits,) if kind == "grounding_o" else (pnls(gold_text, text) > PNLS_HIT, box_hits)
    except ScoringError:
        if strict_official:
            raise
    return (False,) if kind == "grounding_o" else (False, False)


def _read(task: str, document: str) -> tuple[str, Any]:
    """The text and the box in the JSON of a grounding task; `grounding_o` has no text."""
    try:
        found = json.loads(document)
        text, box = found if TASKS[task] == "grounding_t" else ("", found)
        return text + "", box
    except (ValueError, TypeError, RecursionError):
        raise ScoringError(f"{str(document)[:200]!r} is not what {task} calls for") from None


def total(hits: Mapping[str, int]) -> int:
    """The sum of the twelve `COLUMNS`, at most 600.

    Raises:
        ScoringError: a column is missing or is none of the twelve.
    """
    if set(hits) != set(COLUMNS):
        raise ScoringError(f"the columns {sorted(hits)} are not the twelve of MMR: {', '.join(COLUMNS)}")
    return sum(hits.values())


# --- the questions ------------------------------------------------------------------------------------------------------------------------

_BOX = "a Python list [x_min, y_min, x_max, y_max] of four floats between 0 and 1"
REQUESTS = {
    "mcq": "Print only the index of the right choice, such as 1, 2, 3 or 4.",
    "recognition": "Print only the text, without any description.",
    "grounding_o": f"Print only the bounding box as {_BOX}.",
    "grounding_t": f'Print only the text and its bounding box as {_BOX}, for example: "some words", [0.1, 0.2, 0.3, 0.4]',
}
"""What follows the question on a line of its own. The authors' requests in other words."""


def load(folder: Path, protocol: str, *, check_counts: bool = True) -> list[Question]:
    """The first 50 questions of each task in file order, which are all that is scored.

    Raises:
        DataError: a shard, column or picture is missing, a task has another name or fewer than 50 questions, or an answer
            is not of its task.
    """
    data = folder / "data"
    split = "test" if any(data.glob("test-*.parquet")) else "train"
    pictures = EmbeddedPictures()
    questions: dict[str, list[Question]] = defaultdict(list)
    for row in parquet_rows(data, split, ("img_id", "image", "Question", "Answer", "task")):
        task = row.choice("task", tuple(TASKS))
        if len(questions[task]) < ITEMS_PER_TASK:
            questions[task].append(_question(f"{task}-{len(questions[task])}", task, row, pictures))
    if check_counts:
        for task in TASKS:
            require_count(len(questions[task]), ITEMS_PER_TASK, f"{data}: questions of {task}")
    return [question for task in TASKS for question in questions[task]]


def _question(id: str, task: str, row: Row, pictures: EmbeddedPictures) -> Question:
    answer = row.text("Answer")
    if TASKS[task] == "mcq" and not answer.isdecimal():
        raise row.wrong("Answer", "the number of a choice")
    if TASKS[task].startswith("grounding"):
        try:
            _corners(_read(task, answer)[1])
        except ScoringError as error:
            raise row.error(f"the answer of {task} cannot be scored ({error})") from None
    picture = pictures.from_base64(row, "image")
    return Question(
        id,
        about_pictures(picture, f"{row.text('Question')}\n{REQUESTS[TASKS[task]]}"),
        answers=(answer,),
        category=task,
        image_group=row.name("img_id"),
    )


def score_reply(question: Question, reply: Reply, protocol: str) -> Score:
    """The hits of a reply: 0 or 1, and up to 2 in `grounding_t`, whose text and box are columns of their own."""
    if missing := unanswered(reply):
        return missing
    found = str(extract(question.category, clean(reply.text.strip())))
    note = "the reply is not of the form that was asked for, so it does not hit" if ERROR in found else ""
    return Score(float(sum(_hits(question.category, found, question.answers[0]))), extracted=found, note=note)


def extremes(question: Question) -> tuple[Score, Score]:
    """No hit, and the answer itself."""
    best = _hits(question.category, question.answers[0], question.answers[0])
    return Score(0.0, extracted=ERROR), Score(float(len(best)), extracted=question.answers[0])


@functools.lru_cache(maxsize=4096)
def _hits(task: str, extracted: str, answer: str) -> tuple[bool, ...]:
    return hits_of(task, extracted, answer)


def summarise(graded: Sequence[Graded], protocol: str) -> tuple[Metric, ...]:
    """The total and its twelve columns. They are sums: an unscored question adds nothing, and the bounds say what it could have added."""
    tasks: dict[str, list[tuple[bool, ...]]] = defaultdict(list)
    for item in graded:
        if item.score.value is not None:
            tasks[item.question.category].append(_hits(item.question.category, item.score.extracted or "", item.question.answers[0]))
    columns = []
    for task, hits in tasks.items():
        names = ("grounding_t_text", "grounding_t_box") if TASKS[task] == "grounding_t" else (task,)
        columns += [Metric(f"total/{name}", sum(hit[place] for hit in hits), len(hits), "points") for place, name in enumerate(names)]
    n = sum(len(hits) for hits in tasks.values())
    return (Metric("total", sum(column.value for column in columns), n, "points", headline=True), *columns)


BENCHMARK = Benchmark(
    "mmr",
    "1",
    about=About(
        title="MMR (MRR-Benchmark): reading and reasoning about text in pictures, 11 tasks",
        source="https://huggingface.co/datasets/puar-playground/MMR",
        licence="CC BY-NC 4.0",
        layout="data/test-00000-of-00001.parquet (or more shards, or train-)",
        metric="total of twelve columns, the hits among the first 50 questions of each task, at most 600",
        paper="https://arxiv.org/abs/2408.14594",
    ),
    protocols=(Protocol("official", "the authors' extraction and hits; their requests in other words, in the model's own template"),),
    load=load,
    score=score_reply,
    summarise=summarise,
    params=SamplingParams(max_new_tokens=200),
    extremes=extremes,
    sizes={"official": ITEMS_PER_TASK * len(TASKS)},
)
