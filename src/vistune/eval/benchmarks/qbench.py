"""Q-Bench, perception (Wu et al. 2024): how good is the picture itself? Multiple choice about blur, light, noise and the like.

The development half of LLVisionQA is asked; the answers of the other half are not public. Prompt as LLaVA's `model_vqa_qbench.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from vistune.eval.benchmark import About, Benchmark, Metric, Protocol
from vistune.eval.benchmarks.choices import LETTER_ANSWER, LETTERS, chosen, lettered, unreadable
from vistune.eval.benchmarks.mmmu import find_choice
from vistune.eval.official_files import Pictures, Row, json_rows, require_count
from vistune.eval.shared import about_pictures, mean_percent, mean_percents, unanswered
from vistune.types import Graded, Question, Reply, SamplingParams, Score

FILE = "llvisionqa_dev.json"
QUESTIONS = 1_495
TYPES = ("Yes/No", "How", "What")
_MARKED_FIRST = re.compile(r"\(?([A-Z])[.):]")
CONCERNS = ("Global Distortion", "Global Others", "Local Distortion", "Local Others")


def load(folder: Path, protocol: str, *, check_counts: bool = True) -> list[Question]:
    """The development questions; they have no ids, so their place in the file is their id. Category: the form; group: the concern.

    Raises:
        DataError: the file or a picture is missing, a question has no answer (the test half has none) or one that is no candidate, or
            there are not 1,495.
    """
    rows = json_rows(folder / FILE)
    if check_counts:
        require_count(len(rows), QUESTIONS, f"{folder / FILE}: questions")
    pictures = Pictures(folder / "images_llvisionqa")
    return [_question(number, row, pictures, protocol) for number, row in enumerate(rows)]


def _question(number: int, row: Row, pictures: Pictures, protocol: str) -> Question:
    candidates = row.texts("candidates")
    if row.text("correct_ans") not in candidates:
        raise row.wrong("correct_ans", f"one of the candidates {', '.join(candidates)}")
    name = row.text("img_path")
    return Question(
        f"dev-{number}",
        about_pictures(pictures.part(name, row), _prompt(row.text("question"), candidates, protocol)),
        answers=(LETTERS[candidates.index(row.text("correct_ans"))],),
        choices=candidates,
        category=TYPES[row.index("type", len(TYPES))],
        group=CONCERNS[row.index("concern", len(CONCERNS))],
        image_group=name,
    )


def _prompt(text: str, candidates: Sequence[str], protocol: str) -> str:
    if protocol == "lmms":
        return f"{text}\n{lettered(candidates)}\n{LETTER_ANSWER}"
    return f"{text}\nChoose between one of the options as follows:\n{lettered(candidates)}\n"


def parse(reply: str, candidates: Sequence[str]) -> str | None:
    """The letter that a reply chooses; the authors published no parser for it.

    In turn: a letter that the reply begins with, marked as in the options ("B. Noise", "(B) ..."); the rules of MMMU without its guess; the
    only candidate that is the whole reply, case and a full stop aside. None where there is none of these.

    >>> parse("(B) Noise", ["Blur", "Noise"]), parse("noise.", ["Blur", "Noise"]), parse("Hard to say", ["Blur", "Noise"])
    ('B', 'B', None)
    """
    letters = LETTERS[: len(candidates)]
    first = _MARKED_FIRST.match(reply)
    if first and first[1] in letters:
        return first[1]
    found = find_choice(reply, letters, dict(zip(letters, candidates, strict=True)))
    if found is not None:
        return found
    bare = reply.strip().rstrip(".").lower()
    same = [letter for letter, candidate in zip(letters, candidates, strict=True) if candidate.strip().rstrip(".").lower() == bare]
    return same[0] if len(same) == 1 else None


def score_reply(question: Question, reply: Reply, protocol: str) -> Score:
    """Whether the reply chooses the right candidate."""
    return unanswered(reply) or chosen(parse(reply.text.strip(), question.choices), question.answers[0])


def summarise(graded: Sequence[Graded], protocol: str) -> tuple[Metric, ...]:
    """Accuracy over all questions, per form and per concern."""
    return (
        mean_percent("accuracy", graded, headline=True),
        *mean_percents("accuracy", graded, lambda item: (item.question.category, item.question.group)),
        unreadable(graded),
    )


BENCHMARK = Benchmark(
    "qbench",
    "1",
    about=About(
        title="Q-Bench (perception): low-level vision, multiple choice",
        source="https://huggingface.co/datasets/teowu/LLVisionQA-QBench",
        licence="not stated by the authors for the data; S-Lab licence for the code",
        layout=f"{FILE}\nimages_llvisionqa/00001.jpg",
        metric="accuracy over the development questions",
        paper="https://arxiv.org/abs/2309.14181",
    ),
    protocols=(
        Protocol("llava", "the prompt of LLaVA's model_vqa_qbench.py; a letter in front, or by MMMU's rules, or the candidate's own text"),
        Protocol("lmms", "lmms-eval's prompt (LLaVA-1.5's closing sentence); read in the same way, without guesses"),
    ),
    load=load,
    score=score_reply,
    summarise=summarise,
    params=SamplingParams(max_new_tokens=1024),
    sizes=dict.fromkeys(("llava", "lmms"), QUESTIONS),
)
