"""MMMU (Yue et al. 2024): college questions of 30 subjects with up to seven pictures; the validation set, read by the rules of `mmmu`."""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from vistune.eval.benchmark import About, Benchmark, Metric, Protocol
from vistune.eval.benchmarks.choices import LETTER_ANSWER, LETTERS, NO_OPTION, lettered, unreadable
from vistune.eval.benchmarks.mmmu import OFFICIAL_SEED, eval_open, find_choice, parse_mc, parse_open
from vistune.eval.official_files import EmbeddedPictures, Row, parquet_rows, require_count, unique
from vistune.eval.shared import SHORT_ANSWER, about_pictures, mean_percent, mean_percents, unanswered
from vistune.types import Conversation, Graded, ImagePart, Message, Part, Question, Reply, SamplingParams, Score, TextPart

SUBJECTS = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        "Agriculture",
        "Architecture_and_Engineering",
        "Computer_Science",
        "Electronics",
        "Energy_and_Power",
        "Materials",
        "Mechanical_Engineering",
    ),
}
PER_SUBJECT = 30
PICTURES = tuple(f"image_{number}" for number in range(1, 8))
_COLUMNS = ("id", "question", "options", "answer", "question_type", *PICTURES)
_MARK = re.compile(r"<image ([1-7])>")
_MULTIPLE_CHOICE = "multiple-choice"
_LONGEST_LIST = 20_000


def load(folder: Path, protocol: str, *, check_counts: bool = True) -> list[Question]:
    """The validation questions; the category is discipline and subject.

    Raises:
        DataError: a subject, column or picture is missing, an id comes twice or is of another split, options are no list, an answer is no
            letter of them, or a subject has not 30 questions.
    """
    pictures = EmbeddedPictures()
    questions = []
    for discipline, subjects in SUBJECTS.items():
        for subject in subjects:
            if not (folder / subject).is_dir() and not check_counts:
                continue
            rows = unique(parquet_rows(folder / subject, "validation", _COLUMNS), lambda row: row.name("id"))
            if check_counts:
                require_count(len(rows), PER_SUBJECT, f"{folder / subject}: validation questions")
            questions += [_question(name, f"{discipline}/{subject}", row, pictures, protocol) for name, row in rows.items()]
    return questions


def _question(name: str, category: str, row: Row, pictures: EmbeddedPictures, protocol: str) -> Question:
    subject = category.rpartition("/")[2]
    if not name.startswith(f"validation_{subject}_"):
        raise row.wrong("id", f"that of a validation question of {subject}")
    options, answers = _text_list(row.text("options")), (row.text("answer"),)
    if row.choice("question_type", (_MULTIPLE_CHOICE, "open")) == "open":
        options, answers = (), _text_list(row.text("answer")) or answers  # some have several, written as a list
        text = f"{row.text('question')}\n\n{SHORT_ANSWER}"
    else:
        if not options:
            raise row.wrong("options", "a list of texts as Python writes it")
        row.choice("answer", tuple(LETTERS[: len(options)]))
        text = f"{row.text('question')}\n{lettered(options)}\n\n{LETTER_ANSWER}"
    numbers = dict.fromkeys(_MARK.findall(text))
    shown = {number: pictures.from_parquet(row, f"image_{number}") for number in numbers or ("1",)}
    asked = (
        about_pictures([shown[number] for number in sorted(shown)], text) if protocol == "front" or not numbers else _within(text, shown)
    )
    return Question(name, asked, answers, options, category)


def _text_list(text: str) -> tuple[str, ...]:
    """A list of texts that is written out as Python does; nothing where it is something else."""
    try:
        found = ast.literal_eval(text) if len(text) <= _LONGEST_LIST else None
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        found = None
    return tuple(found) if isinstance(found, list) and all(isinstance(item, str) for item in found) else ()


def _within(text: str, shown: Mapping[str, ImagePart]) -> Conversation:
    """The text with each picture where it is first named; later names stay words, for no picture is given twice."""
    parts: list[Part] = []
    end = 0
    waiting = dict(shown)
    for mark in _MARK.finditer(text):
        if mark[1] in waiting:
            parts += [TextPart(text[end : mark.start()]), waiting.pop(mark[1])]
            end = mark.end()
    parts.append(TextPart(text[end:]))
    return Conversation((Message("user", tuple(part for part in parts if part != TextPart(""))),))


def score_reply(question: Question, reply: Reply, protocol: str) -> Score:
    """Whether the reply is right; what chooses no option is a guess, as officially, or wrong under `no-guess`."""
    if missing := unanswered(reply):
        return missing
    said = reply.text.strip()
    if not question.choices:
        candidates = parse_open(said)
        return Score(float(eval_open(question.answers, candidates)), extracted=" | ".join(map(str, candidates))[:200])
    letters = tuple(LETTERS[: len(question.choices)])
    options = dict(zip(letters, question.choices, strict=True))
    found = find_choice(said, letters, options)
    if found is not None:
        return Score(float(found == question.answers[0]), extracted=found)
    if protocol == "no-guess":
        return Score(0.0, note=NO_OPTION)
    # The script has one generator for a run, so that a guess depends on all replies before it; here it depends on the question alone.
    guess = parse_mc(said, letters, options, rng=random.Random(f"{OFFICIAL_SEED}/{question.id}"))
    return Score(
        float(guess == question.answers[0]), note=f"no option can be read in the reply; {guess} was drawn, as the official script draws"
    )


def summarise(graded: Sequence[Graded], protocol: str) -> tuple[Metric, ...]:
    """Accuracy over all questions, per discipline and per subject; `unreadable` are those whose option was drawn, or missing."""
    return (
        mean_percent("accuracy", graded, headline=True),
        *mean_percents("accuracy", graded, lambda item: (item.question.category.partition("/")[0], item.question.category)),
        unreadable(graded),
    )


BENCHMARK = Benchmark(
    "mmmu",
    "1",
    about=About(
        title="MMMU: college questions of 30 subjects",
        source="https://huggingface.co/datasets/MMMU/MMMU",
        licence="Apache-2.0",
        layout="{subject}/validation-00000-of-00001.parquet (30 folders, from Accounting to Sociology)",
        metric="accuracy over the 900 validation questions",
        paper="https://arxiv.org/abs/2311.16502",
    ),
    protocols=(
        Protocol(
            "official", "pictures where the question names them, LLaVA-1.5's closing sentences, the authors' reading; unreadable = drawn"
        ),
        Protocol("no-guess", "the same; a reply without a readable option is wrong"),
        Protocol("front", "the same as official with all pictures before the question, as lmms-eval"),
    ),
    load=load,
    score=score_reply,
    summarise=summarise,
    params=SamplingParams(max_new_tokens=128),
    sizes=dict.fromkeys(("official", "no-guess", "front"), PER_SUBJECT * sum(map(len, SUBJECTS.values()))),
)
