"""POPE (Li et al. 2023): does the model see objects that are not there? Yes-or-no questions, scored as `evaluate.py` of the benchmark does.

`parse` and `score` are pure; the benchmark itself is at the end. The mode `lmms` scores as lmms-eval does, which differs in every step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

from vistune.errors import ScoringError, UnknownName
from vistune.eval.benchmark import About, Benchmark, Metric, Protocol
from vistune.eval.official_files import Pictures, jsonl_rows, require_count, unique
from vistune.eval.shared import SHORT_ANSWER, about_pictures, unanswered
from vistune.types import Graded, Question, Reply, SamplingParams, Score

Mode = Literal["official", "lmms"]
MODES: tuple[Mode, ...] = ("official", "lmms")
_NEGATIONS = frozenset({"No", "not", "no"})


def parse(text: str, mode: Mode = "official") -> str:
    """`yes` or `no`; in `lmms` mode the trimmed lower-case reply, whatever it is.

    Officially only the first sentence counts, and everything in which no negation stands between single blanks is a yes, even nothing.

    Raises:
        ScoringError: `text` is not text.
        UnknownName: there is no such mode.
    """
    if mode not in MODES:
        raise UnknownName("POPE mode", mode, known=MODES)
    if not isinstance(text, str):
        raise ScoringError(f"a POPE reply must be text, not {type(text).__name__}.")
    if mode == "lmms":
        return text.lower().strip()
    words = text.partition(".")[0].replace(",", "").split(" ")
    return "yes" if _NEGATIONS.isdisjoint(words) else "no"


@dataclass(frozen=True)
class PopeScore:
    """Fractions, with yes as the positive class; `n` counts the replies."""

    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_ratio: float
    true_positives: int
    false_positives: int
    true_negatives: int
    false_negatives: int
    n: int


def score(
    replies: Sequence[str],
    labels: Sequence[str],
    *,
    mode: Mode = "official",
    check_counts: bool = True,
    strict_official: bool = False,
) -> PopeScore:
    """Scores replies against labels, joined by order.

    Official: the label `no` is negative and every other one positive; the yes ratio is over all replies. lmms-eval: a reply that is neither
    `yes` nor `no` is in no cell of the table but in the denominator of the accuracy, and the yes ratio is that of the labels.

    Args:
        replies: raw replies, or parsed ones: parsing twice changes nothing.
        labels: the gold labels in the same order.
        check_counts: refuse unequal lengths; without it what is left over is passed over, as in the official script.
        strict_official: raise where the script divides by zero (officially precision, recall and F1 as well, lmms-eval only without
            any reply); else 0.

    Raises:
        ScoringError: unequal lengths, a reply that is not text, in `lmms` mode a label that is neither, or (strict) a zero denominator.
    """
    if check_counts and len(replies) != len(labels):
        raise ScoringError(
            f"there are {len(replies)} replies but {len(labels)} labels; POPE joins them by order, so they must be the same questions."
        )
    predicted = [parse(reply, mode) for reply in replies]
    gold = [_lmms_label(label) if mode == "lmms" else "no" if label == "no" else "yes" for label in labels]
    cell = Counter(zip(predicted, gold, strict=False))

    def ratio(part: float, whole: float, zero: str, *, safe: bool = mode == "lmms") -> float:
        if whole == 0 and strict_official and not safe:
            raise ScoringError(f"the official script divides by zero: {zero}.")
        return part / whole if whole else 0.0

    precision = ratio(cell["yes", "yes"], cell["yes", "yes"] + cell["yes", "no"], "no reply is yes")
    recall = ratio(cell["yes", "yes"], cell["yes", "yes"] + cell["no", "yes"], "no label is yes")
    counted = gold if mode == "lmms" else predicted
    return PopeScore(
        accuracy=ratio(cell["yes", "yes"] + cell["no", "no"], cell.total(), "there are no replies", safe=False),
        precision=precision,
        recall=recall,
        f1=ratio(2 * precision * recall, precision + recall, "no reply is rightly yes"),
        yes_ratio=ratio(counted.count("yes"), len(counted), "there are no replies"),
        true_positives=cell["yes", "yes"],
        false_positives=cell["yes", "no"],
        true_negatives=cell["no", "no"],
        false_negatives=cell["no", "yes"],
        n=len(predicted),
    )


def mean_f1(splits: Iterable[PopeScore]) -> float:
    """The headline that LLaVA reports: the mean F1 of the splits random, popular and adversarial; 0 without any."""
    values = [split.f1 for split in splits]
    return sum(values) / len(values) if values else 0.0


def _lmms_label(label: str) -> str:
    cleaned = parse(label, "lmms")
    if cleaned not in ("yes", "no"):
        raise ScoringError(f"a POPE label must be yes or no, not {label[:40]!r}.")
    return cleaned


# --- the questions ------------------------------------------------------------------------------------------------------------------------

SPLITS = ("random", "popular", "adversarial")
PER_SPLIT = 3_000


def load(folder: Path, protocol: str, *, check_counts: bool = True) -> list[Question]:
    """The questions of the three splits, which are the categories, about pictures of COCO's val2014.

    Raises:
        DataError: a file or picture is missing, an id comes twice in a split, a label is neither yes nor no, or a split has not 3,000 rows.
    """
    pictures = Pictures(folder / "val2014")
    questions = []
    for split in SPLITS:
        path = folder / f"coco/coco_pope_{split}.json"
        rows = unique(jsonl_rows(path), lambda row: row.name("question_id"))
        if check_counts:
            require_count(len(rows), PER_SPLIT, f"{path}: questions")
        for name, row in rows.items():
            image = row.text("image")
            questions.append(
                Question(
                    f"{split}-{name}",
                    about_pictures(pictures.part(image, row), f"{row.text('text')}\n{SHORT_ANSWER}"),
                    answers=(row.choice("label", ("yes", "no")),),
                    category=split,
                    image_group=image,
                )
            )
    return questions


def score_reply(question: Question, reply: Reply, protocol: str) -> Score:
    """Whether the reply is the label; what it was read as is what the metrics are made of."""
    if missing := unanswered(reply):
        return missing
    said = parse(reply.text.strip(), cast(Mode, protocol))
    note = "" if said in ("yes", "no") else "neither yes nor no, so in none of true and false positives and negatives"
    return Score(float(said == question.answers[0]), extracted=said, note=note)


def extremes(question: Question) -> tuple[Score, Score]:
    """The wrong and the right answer, as they would have been read."""
    (label,) = question.answers
    return Score(0.0, extracted="no" if label == "yes" else "yes"), Score(1.0, extracted=label)


def summarise(graded: Sequence[Graded], protocol: str) -> tuple[Metric, ...]:
    """Officially the mean F1 of the splits and every figure per split; in `lmms` the figures of all questions together."""
    scored = [item for item in graded if item.score.value is not None]
    if protocol == "lmms":
        headline, *others = _figures(scored, "lmms", "")
        return (replace(headline, headline=True), *others)
    splits = {split: members for split in SPLITS if (members := [item for item in scored if item.question.category == split])}
    figures = {split: _figures(members, "official", f"/{split}") for split, members in splits.items()}
    mean = sum(figure[0].value for figure in figures.values()) / len(figures) if figures else 0.0
    return (Metric("f1", mean, len(scored), headline=True), *(metric for figure in figures.values() for metric in figure))


def _figures(items: Sequence[Graded], mode: Mode, suffix: str) -> tuple[Metric, ...]:
    found = score([item.score.extracted or "" for item in items], [item.question.answers[0] for item in items], mode=mode)
    values = {
        "f1": found.f1,
        "accuracy": found.accuracy,
        "precision": found.precision,
        "recall": found.recall,
        "yes ratio": found.yes_ratio,
    }
    return tuple(Metric(f"{name}{suffix}", 100 * value, found.n) for name, value in values.items())


BENCHMARK = Benchmark(
    "pope",
    "1",
    about=About(
        title="POPE: polling-based probing for objects that are not there",
        source="https://github.com/RUCAIBox/POPE (folder output/coco); pictures: COCO val2014, https://cocodataset.org",
        licence="MIT (questions); COCO pictures under Flickr's terms",
        layout="coco/coco_pope_{random,popular,adversarial}.json\nval2014/COCO_val2014_000000000042.jpg",
        metric="mean F1 of the three splits (official), or F1 of all 9,000 questions (lmms)",
        paper="https://arxiv.org/abs/2305.10355",
    ),
    protocols=(
        Protocol("official", "LLaVA-1.5's prompt; read and scored as the authors' evaluate.py and LLaVA's eval_pope.py do"),
        Protocol("lmms", "the same prompt; exact yes or no and one table for all questions, as lmms-eval"),
    ),
    load=load,
    score=score_reply,
    summarise=summarise,
    params=SamplingParams(max_new_tokens=128),
    extremes=extremes,
    sizes=dict.fromkeys(("official", "lmms"), 3 * PER_SPLIT),
)
