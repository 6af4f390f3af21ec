"""AI2D: questions about diagrams of school books; the option letter of a reply, as lmms-eval takes it."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from pathlib import Path

from vistune.eval.benchmark import About, Benchmark, Metric, Protocol
from vistune.eval.benchmarks.choices import LETTER_ANSWER, LETTERS, lettered, picture_group, unreadable
from vistune.eval.benchmarks.vqa import as_text
from vistune.eval.official_files import EmbeddedPictures, Row, parquet_rows, require_count
from vistune.eval.shared import about_pictures, mean_percent, unanswered
from vistune.types import Graded, Question, Reply, SamplingParams, Score

_LETTER_AND_DOT = re.compile(r"\s*+([A-Z])\.")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def parse(reply: str | None) -> str:
    """The capital with a dot that a reply begins with, blanks aside; else the whole reply. None is an empty reply."""
    text = as_text(reply)
    found = _LETTER_AND_DOT.match(text)
    return found.group(1) if found else text


def match(reply: str | None, answer: str) -> bool:
    """Whether a reply gives the answer's letter, but for case and punctuation; blanks count.

    >>> match("B. the frog", "B"), match("(b)", "B"), match("B the frog", "B")
    (True, True, False)
    """
    return _bare(parse(reply)) == _bare(answer)


def _bare(text: str) -> str:
    return text.lower().translate(_NO_PUNCTUATION)


# --- the questions ------------------------------------------------------------------------------------------------------------------------

QUESTIONS = 3_088


def load(folder: Path, protocol: str, *, check_counts: bool = True) -> list[Question]:
    """The test questions; they have no ids, so their place in the file is their id.

    Raises:
        DataError: a shard, column or picture is missing, an answer is no index of the options, or there are not 3,088.
    """
    rows = list(parquet_rows(folder / "data", "test", ("question", "options", "answer", "image")))
    if check_counts:
        require_count(len(rows), QUESTIONS, f"{folder / 'data'}: test questions")
    pictures = EmbeddedPictures()
    return [_question(number, row, pictures) for number, row in enumerate(rows)]


def _question(number: int, row: Row, pictures: EmbeddedPictures) -> Question:
    options, answer = row.texts("options"), row.name("answer")
    if answer not in map(str, range(len(options))):
        raise row.wrong("answer", f"the index of one of {len(options)} options")
    picture = pictures.from_parquet(row, "image")
    return Question(
        f"test-{number}",
        about_pictures(picture, f"{row.text('question')}\n{lettered(options)}\n{LETTER_ANSWER}"),
        answers=(LETTERS[int(answer)],),
        choices=options,
        image_group=picture_group(picture),
    )


def score_reply(question: Question, reply: Reply, protocol: str) -> Score:
    """Whether the reply gives the letter."""
    said = reply.text.strip()
    letter = next((letter for letter in LETTERS[: len(question.choices)] if match(said, letter)), None)
    note = "" if letter else "the reply is no letter, which counts as wrong"
    return unanswered(reply) or Score(float(letter == question.answers[0]), extracted=letter, note=note)


def summarise(graded: Sequence[Graded], protocol: str) -> tuple[Metric, ...]:
    return (mean_percent("accuracy", graded, headline=True), unreadable(graded))


BENCHMARK = Benchmark(
    "ai2d",
    "1",
    about=About(
        title="AI2D: multiple choice about diagrams of school books",
        source="https://huggingface.co/datasets/lmms-lab/ai2d (from https://prior.allenai.org/projects/diagram-understanding)",
        licence="research use (Allen Institute for AI)",
        layout="data/test-00000-of-00001.parquet (or more shards)",
        metric="accuracy over the test questions",
        paper="https://arxiv.org/abs/1603.07396",
    ),
    protocols=(Protocol("lmms", "lmms-eval's prompt and reading: the letter, or a letter and a dot in front"),),
    load=load,
    score=score_reply,
    summarise=summarise,
    params=SamplingParams(max_new_tokens=16),
    sizes={"lmms": QUESTIONS},
)
