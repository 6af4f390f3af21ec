"""MM-Vet (version 1): open questions that need several abilities at once, graded by a judge from 0.0 to 1.0.

Follows mm-vet_evaluator.py: what the judge is asked, how its reply is read, and the mean over all questions, over those that need an
ability, and over those that need the same abilities. The wording and the examples of the judge's prompt are our own unless the data folder
holds the official text. The official script gives 0 where no reply could be read; here such a question is unscored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path

from vistune.eval.benchmark import About, Benchmark, Metric, Protocol
from vistune.eval.judge import JudgeRules
from vistune.eval.official_files import Pictures, keyed_rows, read_text, require_count
from vistune.eval.shared import about_pictures, mean_percent, mean_percents
from vistune.types import Conversation, Graded, Question, Reply, SamplingParams, Score

FILE = "mm-vet.json"
PROMPT_FILE = "judge_prompt.txt"
QUESTIONS = 218
ABILITIES = ("rec", "ocr", "know", "gen", "spat", "math")
ATTEMPTS = 6

_JOKE = "The cat wears glasses and reads a newspaper as a person would, while its owner sleeps in the cat's basket: they changed places."
_EXAMPLES = (
    ("Which letters are on the sign?", "A <AND> B", "C", "0.0"),
    ("Which letters are on the sign?", "A <AND> B", "It says A.", "0.5"),
    ("Which letters are on the sign?", "A <AND> B", "B or D", "0.5"),
    ("Which letters are on the sign?", "A <AND> B", "A and B", "1.0"),
    ("What is the dog lying on?", "sofa <OR> couch", "a couch", "1.0"),
    ("Why is this drawing funny?", _JOKE, "A cat is reading a newspaper.", "0.4"),
    (
        "Why is this drawing funny?",
        _JOKE,
        "The roles are reversed: the cat, with glasses, reads the paper like a person, and the person sleeps where the cat should.",
        "1.0",
    ),
)
OWN_PROMPT = (
    "Give the prediction of an AI model a correctness score by comparing it with the ground truth. Where the ground truth has <AND>, the "
    "prediction is fully right only if it has all the elements; where it has <OR>, any one of them makes it fully right. The scores are "
    "0.0 (fully wrong), 0.1, 0.2 and so on to 1.0 (fully right). Only fill in the last cell of the table.\n\n"
    + "\n".join(" | ".join(row) for row in (("Question", "Ground truth", "Prediction", "Correctness"), ("---",) * 4, *_EXAMPLES))
    + "\n"
)


def prompt(question: str, answer: str, prediction: str, head: str = OWN_PROMPT) -> str:
    """What the judge is asked: the table so far, and a row whose last cell is empty."""
    spaced = answer.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    return f"{head}\n{' | '.join((question, spaced, prediction, ''))}"


def parse(reply: str | None) -> float | None:
    """The score in a judge's reply: its first word as a number from 0 to 1, else None.

    The official script lets the judge write three tokens and cuts at the first blank; cut at any white space the longer replies of other
    judges are read alike.
    """
    words = reply.split(maxsplit=1) if isinstance(reply, str) else []
    try:
        value = float(words[0]) if words else -1.0
    except ValueError:
        return None
    return value if 0 <= value <= 1 else None  # NaN is neither


def combination(abilities: Collection[str]) -> str:
    """The abilities that a question needs, as one name: `rec_know_gen`. Those that are not known come last, by name."""
    return "_".join([*(each for each in ABILITIES if each in abilities), *sorted(set(abilities) - set(ABILITIES))])


def load(folder: Path, protocol: str, *, check_counts: bool = True) -> list[Question]:
    """The 218 questions; the category is the combination of abilities.

    Raises:
        DataError: a file or picture is missing, a field is not there, or there are not 218.
    """
    rows = keyed_rows(folder / FILE)
    if check_counts:
        require_count(len(rows), QUESTIONS, f"{folder / FILE}: questions")
    pictures = Pictures(folder / "images")
    official = (folder / PROMPT_FILE).exists()
    head = read_text(folder / PROMPT_FILE) if official else OWN_PROMPT
    questions = []
    for name, row in rows.items():
        image, abilities = row.name("imagename"), row.texts("capability")
        if not abilities:
            raise row.wrong("capability", "a list of one ability or more")
        questions.append(
            Question(
                name,
                about_pictures(pictures.part(image, row), row.text("question")),
                answers=(row.text("answer"),),
                category=combination(abilities),
                image_group=image,
                facts={"question": row.text("question"), "abilities": abilities, "head": head},
            )
        )
    return questions


def ask(question: Question, reply: Reply, protocol: str) -> tuple[Conversation, ...]:
    text = prompt(question.facts["question"], question.answers[0], reply.text.strip(), question.facts["head"])
    return (Conversation(()).then("user", text),)


def read_verdict(text: str, question: Question, protocol: str) -> Score:
    value = parse(text)
    if value is None:
        return Score(None, note=f"it does not begin with a number from 0 to 1: {text[:60]!r}")
    return Score(value, extracted=f"{value:g}")


def vary(params: SamplingParams, question: Question, attempt: int) -> SamplingParams:
    """Warmer with every attempt, as in the official script: 0, 0, 0.5, 1, 1.5, 2."""
    return dataclasses.replace(params, temperature=max(0.0, 0.5 * (attempt - 1)), seed=attempt)


def summarise(graded: Sequence[Graded], protocol: str) -> tuple[Metric, ...]:
    return (
        mean_percent("score", graded, headline=True),
        *mean_percents("ability", graded, lambda item: item.question.facts["abilities"]),
        *mean_percents("combination", graded, lambda item: item.question.category),
    )


BENCHMARK = Benchmark(
    "mm-vet",
    "1",
    about=About(
        title="MM-Vet: recognition, reading, knowledge, writing, space and arithmetic together",
        source="https://github.com/yuweihao/MM-Vet (mm-vet.zip of the releases)",
        licence="CC BY-NC 4.0 (data)",
        layout=f"{FILE}\n{PROMPT_FILE} (optional: the official text for the judge, up to the end of its table)\nimages/v1_0.png",
        metric="mean of a judge's scores; published with gpt-4-0613 as the judge",
        paper="https://arxiv.org/abs/2308.02490",
    ),
    protocols=(Protocol("v1", "the question alone; the judge fills in the last cell of a table, up to six attempts"),),
    load=load,
    score=lambda question, reply, protocol: Score(None, note="a judge scores this"),
    summarise=summarise,
    params=SamplingParams(max_new_tokens=1024),
    sizes={"v1": QUESTIONS},
    judge=JudgeRules(ask, read_verdict, SamplingParams(max_new_tokens=8), attempts=ATTEMPTS, vary=vary),
)
