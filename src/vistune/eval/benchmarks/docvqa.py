"""DocVQA: average normalised Levenshtein similarity (ANLS) of one answer, in two published variants.

`lmms` follows lmms-eval, whose metric comes from Qwen-VL's evaluation; `m4c` follows the ST-VQA evaluator in m4c_evaluator.py of Pythia and
MMF. They differ in what a distance is divided by. The benchmark's figure is the mean over questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from vistune.errors import ScoringError, UnknownName
from vistune.eval.benchmark import About, Benchmark, Metric, Protocol
from vistune.eval.benchmarks.vqa import as_text
from vistune.eval.official_files import Pictures, json_rows, require_count, unique
from vistune.eval.shared import SHORT_ANSWER, about_pictures, answer_texts, mean_percent, mean_percents, unanswered
from vistune.types import Graded, Question, Reply, SamplingParams, Score

Mode = Literal["lmms", "m4c"]
MODES = ("lmms", "m4c")
THRESHOLD = 0.5


def anls(pred: str | None, golds: Sequence[str], mode: Mode = "lmms", *, strict_official: bool = False) -> float:
    """1 for an answer like a reference, less with every edit, 0 below one half; the best over references.

    Args:
        pred: the reply; None counts as empty.
        golds: the accepted answers.
        mode: `lmms` compares lower-cased texts with squeezed blanks, yet divides by the longer of the *raw* upper-cased texts; `m4c`
            compares lower-cased trimmed texts and divides by the longer of these.
        strict_official: raise where the script fails: no references (otherwise 0) and, in `m4c` mode, two empty texts (otherwise 1).

    Raises:
        ScoringError: for what is not text, for references that are not a list, and in the cases above.
    """
    if mode not in MODES:
        raise UnknownName("ANLS mode", mode, known=MODES)
    if isinstance(golds, str) or not isinstance(golds, Sequence):
        raise ScoringError(f"References are a list of texts; found {type(golds).__name__}.")
    if not golds and strict_official:
        raise ScoringError("A DocVQA question without references has no ANLS; the script fails on it. Drop the question.")
    reply = as_text(pred, strict_official=strict_official)
    similarity = _lmms if mode == "lmms" else _m4c
    best = max((similarity(reply, as_text(gold, strict_official=strict_official), strict_official) for gold in golds), default=0.0)
    return best if best >= THRESHOLD else 0.0


def _lmms(reply: str, gold: str, _strict_official: bool) -> float:
    length = max(len(gold.upper()), len(reply.upper()))  # "ß" is one letter, and two in upper case
    return _similarity(" ".join(reply.lower().split()), " ".join(gold.lower().split()), length) if length else 1.0


def _m4c(reply: str, gold: str, strict_official: bool) -> float:
    reply, gold = reply.lower().strip(), gold.lower().strip()
    if not reply and not gold and strict_official:
        raise ScoringError("Reply and reference are both empty; the official script divides by zero.")
    length = max(len(reply), len(gold))
    return _similarity(reply, gold, length) if length else 1.0


def _similarity(first: str, second: str, length: int) -> float:
    # No distance is smaller than the difference in length: a long reply to a short reference is 0 without a look at it.
    at_most = 1 - abs(len(first) - len(second)) / length
    return at_most if at_most < THRESHOLD else 1 - levenshtein(first, second) / length


def levenshtein(first: str, second: str) -> int:
    """How many insertions, deletions and substitutions of one character turn one text into the other.

    A column of the table at a time, as the bits of two integers (Myers, 1999, in the form of Hyyrö, 2003): which vertical steps go up, and
    which down. The usual table, cell by cell, would be the slowest part of the suite.
    """
    short, long = sorted((first, second), key=len)
    if not short:
        return len(long)
    places: dict[str, int] = {}
    for row, letter in enumerate(short):
        places[letter] = places.get(letter, 0) | 1 << row
    all_rows, last_row = (1 << len(short)) - 1, 1 << len(short) - 1
    up, down, distance = all_rows, 0, len(short)
    for letter in long:
        equal = places.get(letter, 0)
        diagonal = (((equal & up) + up) ^ up) | equal | down
        right_up = (down | ~(diagonal | up)) & all_rows
        right_down = diagonal & up
        if right_up & last_row:
            distance += 1
        elif right_down & last_row:
            distance -= 1
        right_up = right_up << 1 | 1  # the top row counts up: here the whole of both texts is compared
        up = (right_down << 1 | ~(diagonal | right_up)) & all_rows
        down = right_up & diagonal & all_rows
    return distance


# --- the validation questions -------------------------------------------------------------------------------------------------------------

FILE = "spdocvqa_qas/val_v1.0_withQT.json"
IMAGES = "spdocvqa_images"
VALIDATION_QUESTIONS = 5_349


def load(folder: Path, protocol: str, *, check_counts: bool = True) -> list[Question]:
    """The validation questions; those of the test set have no public answers.

    Raises:
        DataError: the file or a picture is missing, an id comes twice, a question is of another split, or there are not 5,349.
    """
    rows = unique(json_rows(folder / FILE, "data"), lambda row: row.name("questionId"))
    if check_counts:
        require_count(len(rows), VALIDATION_QUESTIONS, f"{folder / FILE}: questions")
    pictures = Pictures(folder / IMAGES)
    questions = []
    for name, row in rows.items():
        row.choice("data_split", ["val"])
        image = PurePosixPath(row.name("image")).name  # given as documents/<name>, packed without that folder
        questions.append(
            Question(
                name,
                about_pictures(pictures.part(image, row), f"{row.text('question')}\n{SHORT_ANSWER}"),
                answers=answer_texts(row, "answers"),
                image_group=image,
                facts={"question_types": row.texts("question_types")},
            )
        )
    return questions


def score(question: Question, reply: Reply, protocol: str) -> Score:
    """The similarity of a reply to the nearest reference."""
    said = reply.text.strip()
    return unanswered(reply) or Score(anls(said, question.answers, "m4c" if protocol == "m4c" else "lmms"), extracted=said)


def summarise(graded: Sequence[Graded], protocol: str) -> tuple[Metric, ...]:
    return (
        mean_percent("ANLS", graded, headline=True),
        *mean_percents("ANLS", graded, lambda item: item.question.facts["question_types"]),
    )


BENCHMARK = Benchmark(
    "docvqa",
    "1",
    about=About(
        title="DocVQA: questions about scanned pages",
        source="https://rrc.cvc.uab.es/?ch=17 (single-page task, after registration: annotations and pictures)",
        licence="research use, after registration",
        layout=f"{FILE}\n{IMAGES}/ffbf0023_4.png",
        metric="ANLS on the validation questions; published test figures need the authors' server",
        paper="https://arxiv.org/abs/2007.00398",
    ),
    protocols=(
        Protocol("lmms", "LLaVA's prompt; ANLS as in lmms-eval"),
        Protocol("m4c", "the same prompt; ANLS as in m4c_evaluator.py"),
    ),
    load=load,
    score=score,
    summarise=summarise,
    params=SamplingParams(max_new_tokens=32),
    sizes=dict.fromkeys(("lmms", "m4c"), VALIDATION_QUESTIONS),
)
