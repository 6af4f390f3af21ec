"""VQAv2, the soft accuracy of VQA, and the two ways of normalising answers that go with it.

`official` follows vqaEval.py of the VQA authors (VQAv2); `m4c` follows m4c_evaluator.py of Pythia and MMF, with which LLaVA scores TextVQA
and VizWiz. Oddities are kept, for they move the published figures. All but `load`, at the end, are pure: no files, no model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vistune.errors import ScoringError
from vistune.eval.benchmark import About, Benchmark, Metric, Protocol
from vistune.eval.official_files import Pictures, json_rows, require_count, unique
from vistune.eval.shared import SHORT_ANSWER, about_pictures, answer_texts, mean_percent, mean_percents, require_same_ids, unanswered
from vistune.types import Graded, Question, Reply, SamplingParams, Score

Answer = str | Mapping[str, Any]
"""One annotator's answer: the text, or a record with the text under `answer`."""

ANNOTATORS = 10
MOST_DOTS = 32  # the authors hand the flag re.UNICODE (32) to re.sub where it takes the number of replacements

_PUNCTUATION = frozenset(';/[]"{}()=+\\_-><@`,?!')
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
# The look-behind of the published pattern is misspelt and does nothing: a dot after a digit goes too, unless a digit follows.
_LOOSE_DOT = re.compile(r"\.(?!\d)")
_ARTICLES = frozenset({"a", "an", "the"})
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBER_WORDS)}

_KNOWN_WITHOUT_APOSTROPHE = """
    ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't it'd it'll ma'am
    mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't somebody'll somebody's someone'd someone'll
    someone's something'd something'll that's there'd there're there's they'd they'll they're they've 'twas wasn't we've weren't what'll
    what're what's what've when's where'd where's where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all
    you'd you'll you're you've
"""
_KNOWN_WITH_ONE_APOSTROPHE_LESS = """
    couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've something'd've there'd've they'd've
    we'd've who'd've wouldn't've you'd've y'all'll y'all'd've 'ow's'at
"""


def _contractions() -> dict[str, str]:
    """The authors' table without what cannot matter: words mapped to themselves, and capitals, which never survive lower-casing."""
    table = {word.replace("'", ""): word for word in _KNOWN_WITHOUT_APOSTROPHE.split()}
    for word in _KNOWN_WITH_ONE_APOSTROPHE_LESS.split():
        table |= {word[:at] + word[at + 1 :]: word for at, letter in enumerate(word) if letter == "'"}
    return table | {"somebody'd": "somebodyd"}  # the wrong way round in the table of the authors


CONTRACTIONS = _contractions()


def as_text(value: object, *, strict_official: bool = False) -> str:
    """A reply or reference as text; None, a reply that never came, is empty.

    Raises:
        ScoringError: for anything else that is not text, and with `strict_official` for None, on which the official scripts fail.
    """
    if isinstance(value, str):
        return value
    if value is None and not strict_official:
        return ""
    raise ScoringError(f"Found {type(value).__name__} where the scorer takes text ({value!r:.80}); give the reply or answer as a string.")


def remove_punctuation(text: str) -> str:
    """Deletes or blanks each mark of punctuation, then removes dots.

    A mark is deleted if it stands beside a blank anywhere in the text, or if any comma stands between digits; else each becomes a blank.
    """
    comma_in_number = "," in text and _COMMA_IN_NUMBER.search(text) is not None
    cleaned = text
    for mark in _PUNCTUATION.intersection(text):
        deleted = comma_in_number or f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if deleted else " ")
    return _LOOSE_DOT.sub("", cleaned, count=MOST_DOTS) if "." in cleaned else cleaned


def simplify_words(text: str) -> str:
    """Lower case, number words as digits, no articles, contractions with their apostrophes, single blanks."""
    numbered = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in numbered if word not in _ARTICLES)


def normalise_official(text: str | None) -> str:
    """An answer as vqaEval.py compares it: newlines and tabs as blanks, trimmed, punctuation, words.

    >>> normalise_official("The two dogs.")
    '2 dogs'
    """
    return simplify_words(remove_punctuation(_on_one_line(as_text(text))))


def normalise_m4c(text: str | None) -> str:
    """An answer as the answer processor of m4c_evaluator.py leaves it: commas and question marks go first, and `'s` is a word of its own.

    >>> normalise_m4c("Joe's, 1,000")
    "joe 's 1000"
    """
    words = as_text(text).lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    # The published rule about commas in numbers can never apply here: no comma is left.
    return simplify_words(remove_punctuation(_on_one_line(words)))


def _on_one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def soft_official(prediction: str | None, answers: Sequence[Answer], *, strict_official: bool = False) -> float:
    """The accuracy of one VQAv2 answer, 0 to 1, as vqaEval.py computes it.

    For each annotator, a third for every *other* annotator who agrees with the prediction, at most 1; then the mean. Nothing at all is
    normalised where all annotators wrote the same string, so that "Yes." is then wrong for "yes".

    Args:
        prediction: the reply; None counts as empty.
        answers: texts, each an annotator of its own, or records with `answer`; equal records count as one annotator, as in the script.
        strict_official: raise where the script fails.

    Raises:
        ScoringError: with `strict_official`, for no answers at all (otherwise 0) and for None; always for what is not text.
    """
    _refuse_text(answers)
    predicted = _on_one_line(as_text(prediction, strict_official=strict_official))
    texts = [_on_one_line(_text_of(answer, strict_official=strict_official)) for answer in answers]
    if len(set(texts)) > 1:
        predicted = normalise_official(predicted)
        texts = [normalise_official(text) for text in texts]
    if not texts and strict_official:
        raise ScoringError("A VQA question without answers has no accuracy; the official script divides by zero. Drop the question.")
    return _leave_one_out(predicted, texts, [_identity(number, answer) for number, answer in enumerate(answers)])


def soft_m4c(prediction: str | None, answers: Sequence[Answer], *, check_counts: bool = True, strict_official: bool = False) -> float:
    """The accuracy of one TextVQA or VizWiz answer, 0 to 1, as m4c_evaluator.py computes it; everything is normalised, always.

    Args:
        prediction: the reply; None counts as empty.
        answers: ten texts, or records with `answer`; each is an annotator of its own.
        check_counts: refuse any other number of answers than ten, as the script does. Without it none at all give 0.
        strict_official: raise where the script fails.

    Raises:
        ScoringError: for a wrong number of answers, for what is not text, and with `strict_official` for None.
    """
    _refuse_text(answers)
    if (check_counts or strict_official) and len(answers) != ANNOTATORS:
        raise ScoringError(f"Found {len(answers)} answers to one question; the official script takes exactly {ANNOTATORS}.")
    predicted = normalise_m4c(as_text(prediction, strict_official=strict_official))
    texts = [normalise_m4c(_text_of(answer, strict_official=strict_official)) for answer in answers]
    return _leave_one_out(predicted, texts, range(len(texts)))


def _leave_one_out(predicted: str, texts: Sequence[str], identities: Sequence[object]) -> float:
    agreeing = [identity for text, identity in zip(texts, identities, strict=True) if text == predicted]
    accuracies = []
    for text, identity in zip(texts, identities, strict=True):
        others = len(agreeing) - (agreeing.count(identity) if text == predicted else 0)
        accuracies.append(min(1.0, others / 3))
    return sum(accuracies) / len(accuracies) if accuracies else 0.0


def _identity(number: int, answer: Answer) -> object:
    """What tells an annotator from those who wrote the same: everything else in the record (`answer_id`), or the place in the list."""
    if isinstance(answer, Mapping):
        return {key: value for key, value in answer.items() if key != "answer"}
    return number


def _text_of(answer: Answer, *, strict_official: bool) -> str:
    if isinstance(answer, Mapping):
        if "answer" not in answer:
            raise ScoringError(f"An answer record has no `answer` but {', '.join(map(str, answer)) or 'nothing'}.")
        answer = answer["answer"]
    return as_text(answer, strict_official=strict_official)


def _refuse_text(answers: object) -> None:
    """A string is a sequence too: its letters would be taken for annotators."""
    if isinstance(answers, str) or not isinstance(answers, Sequence):
        raise ScoringError(f"Answers are a list, one for each annotator; found {type(answers).__name__}.")


# --- VQAv2, the validation questions of 2014: those of the test set have no public answers ------------------------------------------------

QUESTIONS_FILE = "v2_OpenEnded_mscoco_val2014_questions.json"
ANNOTATIONS_FILE = "v2_mscoco_val2014_annotations.json"
VALIDATION_QUESTIONS = 214_354


def load(folder: Path, protocol: str, *, check_counts: bool = True) -> list[Question]:
    """The validation questions; the category is the `answer_type`.

    Raises:
        DataError: a file or picture is missing, an id comes twice, the two files are not of the same split, or there are not 214,354.
    """
    questions = unique(json_rows(folder / QUESTIONS_FILE, "questions"), lambda row: row.name("question_id"))
    annotations = unique(json_rows(folder / ANNOTATIONS_FILE, "annotations"), lambda row: row.name("question_id"))
    require_same_ids(questions, annotations, ANNOTATIONS_FILE)
    if check_counts:
        require_count(len(questions), VALIDATION_QUESTIONS, f"{folder / QUESTIONS_FILE}: questions")
    pictures = Pictures(folder / "val2014")
    loaded = []
    for name, row in questions.items():
        annotation, image = annotations[name], f"COCO_val2014_{row.integer('image_id'):012d}.jpg"
        loaded.append(
            Question(
                name,
                about_pictures(pictures.part(image, row), f"{row.text('question')}\n{SHORT_ANSWER}"),
                answers=answer_texts(annotation, "answers", count=ANNOTATORS),
                category=annotation.text("answer_type"),
                image_group=image,
                facts={"question_type": annotation.text("question_type")},
            )
        )
    return loaded


def score(question: Question, reply: Reply, protocol: str) -> Score:
    """The soft accuracy of a reply."""
    if missing := unanswered(reply):
        return missing
    said = reply.text.strip()
    if protocol == "m4c":
        return Score(soft_m4c(said, question.answers, check_counts=False), extracted=normalise_m4c(said))
    return Score(soft_official(said, question.answers), extracted=normalise_official(said))


def summarise(graded: Sequence[Graded], protocol: str) -> tuple[Metric, ...]:
    return (
        mean_percent("accuracy", graded, headline=True),
        *mean_percents("accuracy", graded, lambda item: item.question.category),
        *mean_percents("accuracy by question", graded, lambda item: item.question.facts["question_type"]),
    )


BENCHMARK = Benchmark(
    "vqav2",
    "1",
    about=About(
        title="VQAv2: open questions about COCO pictures",
        source="https://visualqa.org/download.html (validation questions, annotations and pictures)",
        licence="CC BY 4.0; the pictures under Flickr's terms",
        layout=f"{QUESTIONS_FILE}\n{ANNOTATIONS_FILE}\nval2014/COCO_val2014_000000000042.jpg",
        metric="soft accuracy over ten annotators on the validation questions; published test-dev figures need the authors' server",
        paper="https://arxiv.org/abs/1612.00837",
    ),
    protocols=(
        Protocol("official", "LLaVA's prompt; scored as vqaEval.py, which normalises only where annotators differ"),
        Protocol("m4c", "the same prompt; everything normalised as in m4c_evaluator.py, which is near to lmms-eval"),
    ),
    load=load,
    score=score,
    summarise=summarise,
    params=SamplingParams(max_new_tokens=128),
    sizes=dict.fromkeys(("official", "m4c"), VALIDATION_QUESTIONS),
)
