"""LLaVA-Bench's rules: reading a judge's two scores, and the relative score made of them.

Follows LLaVA's `eval_gpt_review.py` and `summarize_gpt_review.py`, for COCO and In-the-Wild alike. The first score is the reference's,
the second the candidate's. A review without two scores counts as (-1, -1) in the means of `summary`, as officially; the benchmarks at the
end have the judge asked again, and leave a reply that it never scored unscored.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vistune.errors import ScoringError
from vistune.eval.benchmark import About, Benchmark, Metric, Protocol
from vistune.eval.judge import JudgeRules
from vistune.eval.official_files import Pictures, Row, jsonl_rows, keyed_rows, require_count, unique
from vistune.eval.shared import about_pictures, require_same_ids
from vistune.types import Conversation, Graded, Message, Question, Reply, SamplingParams, Score, TextPart

UNREADABLE = (-1.0, -1.0)


class RelativeScore(NamedTuple):
    """One line of the summary, as printed. `relative` is None where the reference's mean is zero."""

    relative: float | None
    reference: float
    candidate: float


def parse(review: str | None) -> list[float]:
    """The two scores on a review's first line, or [-1.0, -1.0].

    Commas count as blanks, and exactly one blank may stand between the numbers. Whatever `float` reads is a number, NaN included.
    """
    if not isinstance(review, str):
        return list(UNREADABLE)
    pieces = review.partition("\n")[0].replace(",", " ").split(" ", 2)
    if len(pieces) != 2:
        return list(UNREADABLE)
    try:
        return [float(pieces[0]), float(pieces[1])]
    except ValueError:
        return list(UNREADABLE)


def summary(rows: Sequence[Mapping[str, Any]], ignore: Collection[Any] = (), *, strict_official: bool = False) -> dict[str, RelativeScore]:
    """Relative score, reference mean x 10 and candidate mean x 10 of every category and of `all`, in the order of their names.

    The relative score is the ratio, in percent to one decimal, of two means that were rounded to three decimals; not a mean of ratios.

    Args:
        rows: reviews with `tuple` (or `score`, in old files), the pair from `parse`, and `category`; without the latter a row counts in
            `all` only.
        ignore: the `question_id`s to leave out.
        strict_official: raise where the official code divides by zero; otherwise `relative` is None there.

    Raises:
        ScoringError: a row has no pair of numbers; see also `strict_official`.
    """
    pairs: dict[str, list[Sequence[float]]] = defaultdict(list)
    for row in rows:
        if row.get("question_id") in ignore:
            continue
        pair = _pair(row)
        if "category" in row:
            pairs[row["category"]].append(pair)
        pairs["all"].append(pair)
    return {category: _line(category, pairs[category], strict_official) for category in sorted(pairs, key=str)}


def _pair(row: Mapping[str, Any]) -> Sequence[float]:
    found = row["tuple"] if "tuple" in row else row.get("score")
    if isinstance(found, Sequence) and len(found) == 2 and all(isinstance(value, int | float) for value in found):
        return found
    raise ScoringError(f"the review of question {row.get('question_id')!r} has {found!r} where a pair of scores belongs")


def _line(category: str, pairs: Sequence[Sequence[float]], strict_official: bool) -> RelativeScore:
    try:
        with np.errstate(invalid="ignore", over="ignore"):
            reference, candidate = (round(value, 3) for value in np.asarray(pairs, dtype=float).mean(0).tolist())
    except OverflowError:
        raise ScoringError(f"a score in {category!r} is too large to be one") from None
    relative = None
    if reference:
        relative = round(candidate / reference * 100, 1)
    elif strict_official:
        raise ScoringError(f"the reference's mean in {category!r} is zero; there is no relative score")
    return RelativeScore(relative, round(reference * 10, 1), round(candidate * 10, 1))


# --- the questions ------------------------------------------------------------------------------------------------------------------------

CATEGORIES = ("conv", "detail", "complex")
RULE_FILE = "rule.json"
SYSTEM = "You check the quality of answers. Be helpful and precise."
OWN_RULE = (
    "Two AI assistants have answered the user's question above about a picture. You cannot see the picture; what [Context] says of it "
    "stands in for it. Rate how helpful, relevant, accurate and detailed each answer is, with one number from 1 to 10 for each assistant; "
    "a higher number is a better answer.\nWrite the two numbers alone on the first line, Assistant 1 first, with one blank between them. "
    "On the lines below explain your ratings. Be fair: which answer stands first must not matter."
)


def load_coco(folder: Path, protocol: str, *, check_counts: bool = True) -> list[Question]:
    """The 90 questions about 30 COCO pictures; the judge gets the captions and the boxes.

    Raises:
        DataError: a file, picture, context or reference is missing, an id comes twice, or there are not 90.
    """
    contexts = unique(jsonl_rows(folder / "caps_boxes_coco2014_val_80.jsonl"), lambda row: row.name("image"))
    rows = _questions(folder / "qa90_questions.jsonl", 90 if check_counts else None)
    references = unique(jsonl_rows(folder / "qa90_gpt4_answer.jsonl"), lambda row: row.name("question_id"))
    require_same_ids(rows, references, "qa90_gpt4_answer.jsonl")
    pictures = Pictures(folder / "val2014")
    rules = _rules(folder, "")
    loaded = []
    for name, row in rows.items():
        image = row.name("image")
        file = image if image in pictures else f"COCO_val2014_{image}"
        loaded.append(_question(name, row, pictures, file, _context(contexts, row), references[name], rules))
    return loaded


def load_wild(folder: Path, protocol: str, *, check_counts: bool = True) -> list[Question]:
    """The 60 questions about 24 pictures from everywhere; the judge gets a detailed description of the picture.

    Raises:
        DataError: as `load_coco`, for 60.
    """
    contexts = unique(jsonl_rows(folder / "context.jsonl"), lambda row: row.name("image"))
    rows = _questions(folder / "questions.jsonl", 60 if check_counts else None)
    references = unique(jsonl_rows(folder / "answers_gpt4.jsonl"), lambda row: row.name("question_id"))
    require_same_ids(rows, references, "answers_gpt4.jsonl")
    pictures = Pictures(folder / "images")
    rules = _rules(folder, "llava_bench_")
    return [
        _question(name, row, pictures, row.name("image"), _context(contexts, row), references[name], rules) for name, row in rows.items()
    ]


def _questions(file: Path, count: int | None) -> dict[str, Row]:
    rows = unique(jsonl_rows(file), lambda row: row.name("question_id"))
    if count is not None:
        require_count(len(rows), count, f"{file}: questions")
    return rows


def _context(contexts: Mapping[str, Row], row: Row) -> str:
    """What stands in for the picture: captions a line each and, after a blank line, boxes as `category: [x, y, x, y]`."""
    image = row.name("image")
    if image not in contexts:
        raise row.error(f"there is no context of picture {image!r}")
    context = contexts[image]
    if "instances" not in context.values:
        caption = context.get("caption")
        return caption if isinstance(caption, str) else "\n".join(context.texts("caption"))
    boxes = [Row(box, context.where) for box in context.get("instances")]
    return "\n".join([*context.texts("captions"), "", *(f"{box.text('category')}: {box.get('bbox')}" for box in boxes)])


def _rules(folder: Path, prefix: str) -> dict[str, str]:
    """What the judge is told, by category: from the official file where it is there, else in our own words."""
    if not (folder / RULE_FILE).exists():
        return dict.fromkeys(CATEGORIES, OWN_RULE)
    rules = keyed_rows(folder / RULE_FILE)
    lacking = next((prefix + category for category in CATEGORIES if prefix + category not in rules), None)
    if lacking:
        raise Row({}, str(folder / RULE_FILE)).error(f"there is no rule {lacking!r}")
    return {category: rules[prefix + category].text("prompt") for category in CATEGORIES}


def _question(name: str, row: Row, pictures: Pictures, file: str, context: str, reference: Row, rules: Mapping[str, str]) -> Question:
    category = row.choice("category", CATEGORIES)
    rule = rules[category]
    return Question(
        name,
        about_pictures(pictures.part(file, row), row.text("text")),
        answers=(reference.text("text"),),
        category=category,
        image_group=file,
        facts={
            "question": row.text("text"),
            "context": context,
            "rule": rule,
            "rule_from": "vistune's own words" if rule == OWN_RULE else RULE_FILE,
        },
    )


# --- the judge ----------------------------------------------------------------------------------------------------------------------------


def ask(question: Question, reply: Reply, protocol: str) -> tuple[Conversation, ...]:
    """What the judge is shown: the reference first, as officially, and with `swap` once more with the candidate first."""
    orders = [(question.answers[0], reply.text)]
    if protocol == "swap":
        orders.append((reply.text, question.answers[0]))
    return tuple(_request(question, *order) for order in orders)


def _request(question: Question, first: str, second: str) -> Conversation:
    text = (
        f"[Context]\n{question.facts['context']}\n\n[Question]\n{question.facts['question']}\n\n"
        f"[Assistant 1]\n{first}\n\n[End of Assistant 1]\n\n[Assistant 2]\n{second}\n\n[End of Assistant 2]\n\n"
        f"[System]\n{question.facts['rule']}\n\n"
    )
    return Conversation((Message("system", (TextPart(SYSTEM),)), Message("user", (TextPart(text),))))


def read_review(text: str, question: Question, protocol: str) -> Score:
    """The two ratings of a review, in the order shown; no score unless both are from 1 to 10."""
    first, second = parse(text)
    if not (1 <= first <= 10 and 1 <= second <= 10):
        return Score(None, note=f"its first line is not two ratings from 1 to 10: {text.partition(chr(10))[0][:60]!r}")
    return _rated(first, second)


def _rated(reference: float, candidate: float) -> Score:
    return Score(candidate / 10, extracted=f"{reference:g} {candidate:g}", note=f"reference {reference:g}, candidate {candidate:g}")


def combine(scores: Sequence[Score], question: Question) -> Score:
    """One score of one or both orders: each answer's mean rating. No score where an order has none."""
    lacking = next((score for score in scores if score.value is None), None)
    if lacking:
        return lacking
    pairs = [_pair_of(score) for score in scores]
    pairs[1:] = [(reference, candidate) for candidate, reference in pairs[1:]]
    return _rated(sum(pair[0] for pair in pairs) / len(pairs), sum(pair[1] for pair in pairs) / len(pairs))


def _pair_of(score: Score) -> tuple[float, float]:
    reference, _, candidate = (score.extracted or "").partition(" ")
    return float(reference), float(candidate)


def extremes(question: Question) -> tuple[Score, Score]:
    return _rated(10, 1), _rated(1, 10)


def summarise(graded: Sequence[Graded], protocol: str) -> tuple[Metric, ...]:
    """The lines of `summary`: the candidate's mean rating in percent of the reference's, and both means times ten."""
    kept = [item for item in graded if item.score.value is not None]
    lines = summary([{"tuple": _pair_of(item.score), "category": item.question.category} for item in kept])
    metrics = []
    for category, line in sorted(lines.items(), key=lambda each: each[0] != "all"):
        n = sum(category in ("all", item.question.category) for item in kept)
        path = "" if category == "all" else f"/{category}"
        metrics += [
            Metric(f"relative score{path}", line.relative or 0.0, n, "score", headline=category == "all"),
            Metric(f"reference x 10{path}", line.reference, n, "score"),
            Metric(f"candidate x 10{path}", line.candidate, n, "score"),
        ]
    return tuple(metrics)


_PROTOCOLS = (
    Protocol("llava", "the reference shown first, as in eval_gpt_review; rules from rule.json where it is there, else our own words"),
    Protocol("swap", "the same in both orders, and each answer's mean rating"),
)
_JUDGE = JudgeRules(ask, read_review, SamplingParams(max_new_tokens=1024, temperature=0.2), combine=combine)
_METRIC = "relative score: the judge's mean rating of the answers in percent of that of GPT-4's, which saw the context and not the picture"

COCO = Benchmark(
    "llava-bench-coco",
    "1",
    about=About(
        title="LLaVA-Bench (COCO): conversation, detail, complex reasoning",
        source="https://github.com/haotian-liu/LLaVA (playground/data/coco2014_val_qa_eval, llava/eval/table) and https://cocodataset.org",
        licence="CC BY-NC 4.0; the pictures under Flickr's terms",
        layout=(
            "qa90_questions.jsonl\nqa90_gpt4_answer.jsonl\ncaps_boxes_coco2014_val_80.jsonl\nrule.json (optional)\n"
            "val2014/COCO_val2014_000000441147.jpg"
        ),
        metric=_METRIC,
        paper="https://arxiv.org/abs/2304.08485",
    ),
    protocols=_PROTOCOLS,
    load=load_coco,
    score=lambda question, reply, protocol: Score(None, note="a judge scores this"),
    summarise=summarise,
    params=SamplingParams(max_new_tokens=1024),
    sizes={"llava": 90, "swap": 90},
    judge=_JUDGE,
    extremes=extremes,
)
WILD = Benchmark(
    "llava-bench-wild",
    "1",
    about=About(
        title="LLaVA-Bench (In-the-Wild)",
        source="https://huggingface.co/datasets/liuhaotian/llava-bench-in-the-wild; rule.json from LLaVA's llava/eval/table",
        licence="CC BY-NC 4.0",
        layout="questions.jsonl\ncontext.jsonl\nanswers_gpt4.jsonl\nrule.json (optional)\nimages/001.jpg",
        metric=_METRIC,
        paper="https://arxiv.org/abs/2304.08485",
    ),
    protocols=_PROTOCOLS,
    load=load_wild,
    score=lambda question, reply, protocol: Score(None, note="a judge scores this"),
    summarise=summarise,
    params=SamplingParams(max_new_tokens=1024),
    sizes={"llava": 60, "swap": 60},
    judge=_JUDGE,
    extremes=extremes,
)
