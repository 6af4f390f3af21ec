"""ScanQA: questions about rooms in three dimensions, here shown in pictures from several sides; exact match, F-value, class of a question.

Follows `scripts/score.py` of ScanQA. The scorer of LL3DA, which made the published LL3DA row, uses the same rules for exact match and
differs in the captions: it does not tokenise (`captions.score(items, tokenise=False)`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from vistune.errors import ScoringError
from vistune.eval.benchmark import About, Benchmark, Metric, Protocol
from vistune.eval.benchmarks.captions import as_metrics, caption_items, extremes, require_tools
from vistune.eval.official_files import Pictures, Row, json_rows, require_count, unique
from vistune.eval.shared import SHORT_ANSWER, about_pictures, answer_texts, mean_percent, mean_percents, unanswered
from vistune.types import Graded, ImagePart, Question, Reply, SamplingParams, Score
from vistune.video import frame_files, frame_numbers

# In this order, and with capitals as written: the first that is found anywhere in the question decides.
_CLASSES = (
    ("Where", "Place"),
    ("How many", "Number"),
    ("What color", "Color"),
    ("What is the color", "Color"),
    ("What shape", "Object nature"),
    ("What type", "Object nature"),
    ("What kind", "Object nature"),
    ("What is", "Object"),
)


def question_class(question: str) -> str:
    """Place, Number, Color, Object nature, Object or Other."""
    return next((name for words, name in _CLASSES if words in question), "Other")


def em(prediction: str | Sequence[str], answers: Collection[str], *, top: int = 1, strict_official: bool = False) -> float:
    """1.0 if one of the first `top` predictions is among the answers, letter for letter; else 0.0.

    Args:
        prediction: the answer, or the answers ranked best first.
        answers: the accepted answers.
        top: how many of the ranked predictions count (1 and 10 are reported).
        strict_official: raise where the official code fails, which is for an empty prediction that is not among the answers.

    Raises:
        ScoringError: the answers are one text instead of several; see also `strict_official`.
    """
    if isinstance(answers, str):
        raise ScoringError(f"the answers are one text, {answers!r}; expected a list of texts")
    ranked = list(prediction) if isinstance(prediction, list | tuple) else [prediction]
    if any(candidate in answers for candidate in ranked[:top]):
        return 1.0
    if strict_official and not (ranked and ranked[0]):
        raise ScoringError("the prediction is empty, for which the official script has no F-value")
    return 0.0


def f_value(prediction: str, answers: Collection[str], lemmatise: Callable[[str], str] = str, *, strict_official: bool = False) -> float:
    """1.0 for an exact match, else the best F1 of words over the answers, from 0 to 1.

    Precision is the share of the prediction's words that the answer has anywhere, recall the share of the answer's words that the
    prediction has: membership, so repeated words count each time.

    Args:
        prediction: the first answer given.
        answers: the accepted answers.
        lemmatise: turns a word into its base form; the official script uses WordNet's nouns.
        strict_official: raise for an empty prediction that is not among the answers; otherwise that is 0.0.

    Raises:
        ScoringError: see `strict_official` and `em`.
    """
    if em(prediction, answers, strict_official=strict_official):
        return 1.0
    words = [lemmatise(word) for word in prediction.split()]
    return max((_f1(words, [lemmatise(word) for word in answer.split()]) for answer in answers), default=0.0)


def _f1(words: Sequence[str], reference: Sequence[str]) -> float:
    known, said = frozenset(reference), frozenset(words)
    if not known & said:
        return 0.0
    precision = sum(word in known for word in words) / len(words)
    recall = sum(word in said for word in reference) / len(reference)
    return 2 * precision * recall / (precision + recall)


# --- the validation questions, until point clouds can be shown ----------------------------------------------------------------------------

FILE = "ScanQA_v1.0_val.json"
VALIDATION_QUESTIONS = 4_675
VIEWS = 6
"""Pictures of a room; six of 576 tokens leave room for words in a context of 4,096."""


def load(folder: Path, protocol: str, *, check_counts: bool = True) -> list[Question]:
    """The validation questions, each with six pictures of its room; the category is the class of the question.

    Raises:
        DataError: the file is missing, an id comes twice, a question has no answers (the test files), or there are not 4,675.
        VideoError: a room has no pictures.
        MissingDependency: the metrics of the protocol cannot be computed here.
    """
    require_tools(protocol.endswith("-java"))
    rows = unique(json_rows(folder / FILE), lambda row: row.name("question_id"))
    if check_counts:
        require_count(len(rows), VALIDATION_QUESTIONS, f"{folder / FILE}: questions")
    views: dict[str, list[ImagePart]] = {}
    questions = []
    for name, row in rows.items():
        scene = row.name("scene_id")
        if scene not in views:
            views[scene] = _views(folder, scene, row)
        question = row.text("question")
        questions.append(
            Question(
                name,
                about_pictures(views[scene], f"{question}\n{SHORT_ANSWER}"),
                answers=answer_texts(row, "answers"),
                category=question_class(question),
                image_group=scene,
            )
        )
    return questions


def _views(folder: Path, scene: str, row: Row) -> list[ImagePart]:
    """Pictures from all along the walk through a room: those at the middles of equal parts of it."""
    if not scene.replace("_", "").isalnum():
        raise row.wrong("scene_id", "the name of a scan such as scene0000_00")
    place = folder / "scans" / scene / "color"
    files = frame_files(place)
    chosen = sorted(set(frame_numbers(VIEWS, None, 1.0, len(files) - 1))) if len(files) > VIEWS else range(len(files))
    pictures = Pictures(place)
    return [pictures.part(files[number].name, row) for number in chosen]


def score(question: Question, reply: Reply, protocol: str) -> Score:
    """Exact match; what is compared is the reply, trimmed, with `ll3da` also with single blanks."""
    said = " ".join(reply.text.split()) if protocol.startswith("ll3da") else reply.text.strip()
    return unanswered(reply) or Score(em(said, question.answers), extracted=said)


def summarise(graded: Sequence[Graded], protocol: str) -> tuple[Metric, ...]:
    """Caption metrics over all answers, then exact match and the F-value; words are not lemmatised, for which WordNet is needed."""
    kept = [item for item in graded if item.score.value is not None]
    values = [f_value(item.score.extracted or "", item.question.answers) for item in kept]
    return (
        *as_metrics(caption_items(kept), tokenise=protocol.startswith("scanqa"), java=protocol.endswith("-java")),
        mean_percent("EM@1", kept),
        *mean_percents("EM@1", kept, lambda item: item.question.category),
        Metric("F-value (no lemmas)", 100 * sum(values) / max(len(values), 1), len(values)),
    )


BENCHMARK = Benchmark(
    "scanqa",
    "1",
    about=About(
        title="ScanQA: questions about scanned rooms, asked with pictures from several sides",
        source="https://github.com/ATR-DBI/ScanQA (docs/dataset.md); frames exported from ScanNet v2 with its SensReader",
        licence="CC BY-NC-SA 3.0 (questions); ScanNet's terms of use (pictures)",
        layout=f"{FILE}\nscans/scene0000_00/color/0.jpg",
        metric="CIDEr x 100 on the validation questions, which is what published LL3DA figures are of",
        paper="https://arxiv.org/abs/2112.10482",
    ),
    protocols=(
        Protocol("ll3da", "texts as they are, as LL3DA's scorer; no METEOR"),
        Protocol("ll3da-java", "the same with METEOR, which needs Java"),
        Protocol("scanqa", "texts tokenised by vistune's own rules, near to ScanQA's scorer; no METEOR"),
        Protocol("scanqa-java", "Stanford's tokeniser and METEOR, as ScanQA's scorer; needs Java"),
    ),
    load=load,
    score=score,
    summarise=summarise,
    params=SamplingParams(max_new_tokens=16),
    sizes=dict.fromkeys(("ll3da", "ll3da-java", "scanqa", "scanqa-java"), VALIDATION_QUESTIONS),
    extremes=extremes,
    intervals=False,
)
