"""TextVQA: questions about what is written in a picture, with or without the words that an OCR program read in it.

LLaVA's questions are prompts that hold such words; they are joined to the annotations by picture and question, and the question survives
only inside the prompt; follows LLaVA's eval_textvqa.py. The accuracy itself is `vqa.soft_m4c`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from vistune.errors import ScoringError
from vistune.eval.benchmark import About, Benchmark, Metric, Protocol
from vistune.eval.benchmarks.vqa import ANNOTATORS, as_text, normalise_m4c, soft_m4c
from vistune.eval.official_files import Pictures, Row, json_rows, jsonl_rows, require_count, unique
from vistune.eval.shared import SHORT_ANSWER, about_pictures, answer_texts, mean_percent, unanswered
from vistune.types import Graded, Question, Reply, SamplingParams, Score

_ALL_TOKENS_FIRST = "OCR tokens: "
_QUESTION, _ANSWER = "Question: ", " Short answer:"
_REFERENCE = "Reference OCR token:"


def question_from_prompt(prompt: str | None, *, strict_official: bool = False) -> str:
    """The question in a prompt, lower-cased as the join wants it.

    Three layouts are known: OCR tokens before `Question: … Short answer:`; three lines of which one gives the reference tokens; and two
    lines, question and instruction.

    Raises:
        ScoringError: for a prompt in no known layout, with or without `strict_official`: any question guessed would be a wrong one.
    """
    prompt = as_text(prompt, strict_official=strict_official)
    lines = prompt.split("\n")
    if prompt.startswith(_ALL_TOKENS_FIRST):
        question, found, _ = prompt.partition(_QUESTION)[2].partition(_ANSWER)
        if found:
            return question.lower()
        raise _unknown_layout(prompt)
    if f"{_REFERENCE} " in prompt and len(lines) == 3:
        return lines[1 if prompt.startswith(_REFERENCE) else 0].lower()
    if len(lines) == 2:
        return lines[0].lower()
    raise _unknown_layout(prompt)


def _unknown_layout(prompt: str) -> ScoringError:
    return ScoringError(
        f"No TextVQA question can be read from the prompt {prompt[:80]!r} ({prompt.count(chr(10)) + 1} lines). Known are: OCR tokens, then "
        "the question between `Question:` and `Short answer:`; three lines, one with the reference OCR tokens; question and instruction."
    )


# --- the validation questions -------------------------------------------------------------------------------------------------------------

ANNOTATIONS_FILE = "TextVQA_0.5.1_val.json"
PROMPTS_FILE = "llava_textvqa_val_v051_ocr.jsonl"
VALIDATION_QUESTIONS = 5_000


def load(folder: Path, protocol: str, *, check_counts: bool = True) -> list[Question]:
    """The validation questions; with protocol `llava` in the order and the words of LLaVA's question file.

    Raises:
        DataError: a file or picture is missing, an id comes twice, a prompt asks what the annotations do not have, a question lacks its
            ten answers, or there are not 5,000.
    """
    annotations = unique(json_rows(folder / ANNOTATIONS_FILE, "data"), lambda row: row.name("question_id"))
    if check_counts:
        require_count(len(annotations), VALIDATION_QUESTIONS, f"{folder / ANNOTATIONS_FILE}: questions")
    pictures = Pictures(folder / "train_images")
    if protocol == "llava":
        return _prompts(folder, annotations, pictures)
    # lmms-eval writes the first letter large and all others small.
    return [_question(name, row, f"{row.text('question').capitalize()}\n{SHORT_ANSWER}", pictures) for name, row in annotations.items()]


def _prompts(folder: Path, annotations: Mapping[str, Row], pictures: Pictures) -> list[Question]:
    prompts = jsonl_rows(folder / PROMPTS_FILE)
    require_count(len(prompts), len(annotations), f"{folder / PROMPTS_FILE}: prompts (one for each of {ANNOTATIONS_FILE})")
    # A question that is asked twice about a picture takes its answers from the last of them, as in eval_textvqa.py.
    known = {(row.name("image_id"), row.text("question").lower()): row for row in annotations.values()}
    questions = []
    for number, prompt in enumerate(prompts):
        try:
            asked = (prompt.name("question_id"), question_from_prompt(prompt.text("text")))
        except ScoringError as error:
            raise prompt.error(str(error)) from None
        if asked not in known:
            raise prompt.error(f"{ANNOTATIONS_FILE} has no question {asked[1][:60]!r} about picture {asked[0]!r}")
        questions.append(_question(f"{asked[0]}-{number}", known[asked], prompt.text("text"), pictures))
    return questions


def _question(name: str, annotation: Row, text: str, pictures: Pictures) -> Question:
    image = annotation.name("image_id")
    return Question(
        name,
        about_pictures(pictures.part(f"{image}.jpg", annotation), text),
        answers=answer_texts(annotation, "answers", count=ANNOTATORS),
        image_group=image,
    )


def score(question: Question, reply: Reply, protocol: str) -> Score:
    """The soft accuracy of a reply."""
    if missing := unanswered(reply):
        return missing
    said = reply.text.strip()
    return Score(soft_m4c(said, question.answers), extracted=normalise_m4c(said))


def summarise(graded: Sequence[Graded], protocol: str) -> tuple[Metric, ...]:
    return (mean_percent("accuracy", graded, headline=True),)


BENCHMARK = Benchmark(
    "textvqa",
    "1",
    about=About(
        title="TextVQA: reading in pictures",
        source="https://textvqa.org/dataset (validation 0.5.1, training pictures); the prompts from eval.zip of LLaVA's docs/Evaluation.md",
        licence="CC BY 4.0",
        layout=f"{ANNOTATIONS_FILE}\n{PROMPTS_FILE} (protocol llava)\ntrain_images/003a8ae2ef43b901.jpg",
        metric="soft accuracy over ten annotators on the validation questions",
        paper="https://arxiv.org/abs/1904.08920",
    ),
    protocols=(
        Protocol("llava", "LLaVA-1.5's prompts, which hold reference OCR tokens; scored as m4c_evaluator.py"),
        Protocol("lmms", "lmms-eval's prompt, without OCR tokens: scores are some points lower; scored alike"),
    ),
    load=load,
    score=score,
    summarise=summarise,
    params=SamplingParams(max_new_tokens=128),
    sizes=dict.fromkeys(("llava", "lmms"), VALIDATION_QUESTIONS),
)
