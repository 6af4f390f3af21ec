"""ScienceQA (Lu et al. 2022): parser and scorer of LLaVA's `eval_science_qa.py`, category table of the benchmark's `evaluate_acc.py`.

Pure functions: replies in, numbers out. The two ways to combine a model with a text-only teacher (LLaVA paper, section 5.2: "complement"
and "judge") are here as well; asking the teacher is the caller's work.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vistune.errors import ScoringError, UnknownName

OPTIONS = ("A", "B", "C", "D", "E")
FAILED = "FAILED"
UNKNOWN_PROMPT = "Unknown"
SPLIT_COUNTS = {"train": 12_726, "val": 4_241, "test": 4_241}
CATEGORIES = ("NAT", "SOC", "LAN", "TXT", "IMG", "NO", "G1-6", "G7-12", "Avg")

EnsembleMode = Literal["no_guess", "official"]
ENSEMBLE_MODES: tuple[EnsembleMode, ...] = ("no_guess", "official")
Problems = Mapping[str, Mapping[str, Any]]

# The dot is meant as a full stop but is a wildcard: "The answer is B, ..." counts, "The answer is B" at the very end does not.
_SENTENCE = re.compile(r"The answer is ([A-Z]).")
_SUBJECTS = {"natural science": "NAT", "social science": "SOC", "language science": "LAN"}
_GRADES = {f"grade{number}": "G1-6" if number <= 6 else "G7-12" for number in range(1, 13)}


def parse(text: str, n_choices: int) -> tuple[str, int]:
    """The letter that a reply answers with and its index among the choices, as LLaVA's scorer reads it.

    The letter is `FAILED` where none is found; the index is -1 for that and for a letter that the question has no choice for.

    Raises:
        ScoringError: `text` is not text.
    """
    if not isinstance(text, str):
        raise ScoringError(f"a ScienceQA reply must be text, not {type(text).__name__}; give a failed request no row at all.")
    if text in OPTIONS:
        label = text
    elif text[:1] in OPTIONS and text[1:3] == ". ":
        label = text[0]
    else:
        label = _sentence_label(text)
    return label, _index(label, n_choices)


def match_lmms(reply: str, letter: str) -> bool:
    """Whether lmms-eval calls a reply right: nothing but the gold letter in any case, or first of all the gold capital and a full stop."""
    reply = reply.strip()
    return reply.lower() == letter.lower() or reply.startswith(f"{letter}.")


def _sentence_label(text: str) -> str:
    found = _SENTENCE.findall(text)
    return found[0] if len(found) == 1 else FAILED


def _index(label: str, n_choices: int) -> int:
    index = OPTIONS.index(label) if label in OPTIONS else -1
    return index if index < n_choices else -1


@dataclass(frozen=True)
class ScienceQAScore:
    """What LLaVA's scorer finds. `results` is what `by_category` reads.

    Attributes:
        image_count: predictions whose stored prompt holds `<image>`, the denominator of the IMG-accuracy.
        missing: problems without a prediction, which count as wrong.
        foreign: predictions of other problems, which the official scorer passes over in silence.
    """

    correct: int
    count: int
    image_correct: int
    image_count: int
    results: dict[str, int]
    outputs: dict[str, str]
    missing: int
    foreign: int

    @property
    def accuracy(self) -> float:
        """Fraction of problems that are right; 0 without problems."""
        return _fraction(self.correct, self.count)

    @property
    def image_accuracy(self) -> float:
        """Fraction right of those asked with an image; 0 without any."""
        return _fraction(self.image_correct, self.image_count)

    def record(self) -> dict[str, Any]:
        """The result file of the official scorer (`acc` is a percentage there), which the benchmark's own table is made from."""
        return {
            "acc": self.correct / self.count * 100 if self.count else 0.0,
            "correct": self.correct,
            "count": self.count,
            "results": self.results,
            "outputs": self.outputs,
        }


def score(problems: Problems, predictions: Iterable[Mapping[str, Any]], *, strict_official: bool = False) -> ScienceQAScore:
    """Scores predictions as LLaVA's `eval_science_qa.py` does.

    Args:
        problems: the problems of one split by id, each with `choices` and `answer` (index).
        predictions: rows with `question_id`, `text` and `prompt`; of several for one problem the last one counts.
        strict_official: raise where the official script fails: no problems, no question with an image, a row without a prompt.

    Raises:
        ScoringError: a row or problem that has no value, or (strict) an input on which the official script fails.
    """
    rows = {_field(row, "question_id", "a prediction"): row for row in predictions}
    results: dict[str, int] = {}
    outputs: dict[str, str] = {}
    right: list[bool] = []
    with_image: list[bool] = []
    for problem_id, problem in problems.items():
        row = rows.get(problem_id, {"text": FAILED, "prompt": UNKNOWN_PROMPT})
        if strict_official:
            _field(row, "prompt", f"the prediction of {problem_id}")
        text = _field(row, "text", f"the prediction of {problem_id}")
        _, index = parse(text, _choices(problem_id, problem))
        results[problem_id], outputs[problem_id] = index, text
        right.append(index == _answer(problem_id, problem))
        with_image.append("<image>" in str(row.get("prompt", UNKNOWN_PROMPT)))
    if strict_official and not any(with_image):
        raise ScoringError("the official scorer divides by the number of questions with an image, and there is none.")
    return ScienceQAScore(
        correct=sum(right),
        count=len(right),
        image_correct=sum(hit for hit, image in zip(right, with_image, strict=True) if image),
        image_count=sum(with_image),
        results=results,
        outputs=outputs,
        missing=sum(problem_id not in rows for problem_id in problems),
        foreign=sum(question_id not in problems for question_id in rows),
    )


def by_category(
    problems: Problems,
    index_by_id: Mapping[str, Any],
    *,
    split: str = "test",
    check_counts: bool = True,
    strict_official: bool = False,
) -> dict[str, str]:
    """The nine columns of the paper's table, in per cent with two decimals, as the benchmark's `evaluate_acc.py` prints them.

    A hint of one blank counts as text. An empty class is "-1.00". The average divides by the number of results, not of problems.

    Args:
        problems: the whole problem file or a part; problems of other splits are passed over.
        index_by_id: the predicted choice (anything that `int` takes) for each problem of the split.
        check_counts: require exactly as many results as the split has problems (4,241 in the test split).
        strict_official: raise where there is no result at all, as the official script does.

    Raises:
        ScoringError: wrong counts, a problem without a result, or a result that is no number.
    """
    if check_counts and len(index_by_id) != SPLIT_COUNTS.get(split):
        raise ScoringError(f"the {split} split has {SPLIT_COUNTS.get(split)} problems, but there are {len(index_by_id)} results.")
    if strict_official and not index_by_id:
        raise ScoringError("the official table divides by the number of results, and there is none.")
    hits: dict[str, list[bool]] = {name: [] for name in CATEGORIES[:-1]}
    correct = 0
    for problem_id, problem in problems.items():
        if problem.get("split", split) != split:
            continue
        hit = _field(problem, "answer", f"problem {problem_id}") == _predicted(problem_id, index_by_id)
        correct += hit
        for name in classes(problem):
            hits[name].append(hit)
    table = {name: _percent(sum(values), len(values)) for name, values in hits.items()}
    return table | {"Avg": _percent(correct, len(index_by_id))}


def classes(problem: Mapping[str, Any]) -> Iterator[str]:
    """The columns of the paper's table, but for the average, that a problem counts in."""
    hint, image = problem.get("hint"), problem.get("image")
    if problem.get("subject") in _SUBJECTS:
        yield _SUBJECTS[problem["subject"]]
    if hint:
        yield "TXT"
    if image:
        yield "IMG"
    if not hint and not image:
        yield "NO"
    if problem.get("grade") in _GRADES:
        yield _GRADES[problem["grade"]]


def _predicted(problem_id: str, index_by_id: Mapping[str, Any]) -> int:
    value = _field(index_by_id, problem_id, "the results")
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        raise ScoringError(f"the result of problem {problem_id} must be the number of a choice, not {str(value)[:40]!r}.") from None


@dataclass(frozen=True)
class EnsembleScore:
    """A model and its teacher combined. All numbers are counts out of `total`.

    Attributes:
        correct: right by the combined answer, which `results` holds as indices.
        ours: right by the model alone.
        teacher: right by the teacher alone.
        complement: right by the teacher where it gives an answer, else by the model; `correct` itself in that scheme.
        upper_bound: right by the model or the teacher.
        teacher_failed: problems for which the teacher gave no answer that could be read.
        skipped: problems without a reply of both, which the complement scheme leaves out.
    """

    total: int
    correct: int
    ours: int
    teacher: int
    complement: int
    upper_bound: int
    teacher_failed: int
    skipped: int
    results: dict[str, int]

    @property
    def accuracy(self) -> float:
        """Fraction right by the combined answer; 0 without problems."""
        return _fraction(self.correct, self.total)


def disagreements(problems: Problems, ours: Mapping[str, str], teacher: Mapping[str, str]) -> tuple[str, ...]:
    """The problems that the judge scheme asks the teacher again: those that both answered, and not with the same letter.

    An unreadable answer differs from every letter.
    """
    both = [
        (problem_id, _choices(problem_id, problem))
        for problem_id, problem in problems.items()
        if problem_id in ours and problem_id in teacher
    ]
    return tuple(problem_id for problem_id, n in both if parse(ours[problem_id], n)[0] != parse(teacher[problem_id], n)[0])


def complement(
    problems: Problems,
    ours: Mapping[str, str],
    teacher: Mapping[str, str],
    *,
    mode: EnsembleMode = "no_guess",
    draw: random.Random | None = None,
    strict_official: bool = False,
) -> EnsembleScore:
    """The "complement" scheme of LLaVA's `eval_science_qa_gpt4.py`: the teacher's answer, or the model's where the teacher's is unreadable.

    Args:
        problems: the problems of one split by id.
        ours, teacher: reply texts by problem id; a problem that either lacks is skipped.
        mode: `official` reads only "The answer is X." and replaces what is no choice by a random one, drawn from `draw` in the order
            model, teacher; `no_guess` reads replies as `parse` does and calls such answers wrong.
        strict_official: raise where nothing is left to score, as the official script does.

    Raises:
        ScoringError: a problem without choices or answer, or (strict) nothing to score.
    """
    both = {problem_id: problem for problem_id, problem in problems.items() if problem_id in ours and problem_id in teacher}
    return _combine(both, ours, teacher, None, _Reader(mode, draw), len(problems) - len(both), strict_official)


def judge(
    problems: Problems,
    ours: Mapping[str, str],
    teacher: Mapping[str, str],
    requery: Mapping[str, str],
    *,
    mode: EnsembleMode = "no_guess",
    draw: random.Random | None = None,
    strict_official: bool = False,
) -> EnsembleScore:
    """The "judge" scheme of LLaVA's `eval_science_qa_gpt4_requery.py`, 92.53 % in the paper: the teacher's second answer, else the model's.

    Arguments as in `complement`; `requery` holds the teacher's second replies, for the problems that it was asked again.

    Raises:
        ScoringError: a problem that the model or the teacher did not answer (the official script stops there), or as in `complement`.
    """
    lacking = [problem_id for problem_id in problems if problem_id not in ours or problem_id not in teacher]
    if lacking:
        raise ScoringError(
            f"{len(lacking)} problems lack the model's or the teacher's reply, the first is {lacking[0]!r}; answer all of them."
        )
    return _combine(problems, ours, teacher, requery, _Reader(mode, draw), 0, strict_official)


@dataclass
class _Reader:
    """How replies are read in an ensemble; `draw` advances with every guess."""

    mode: EnsembleMode
    draw: random.Random | None

    def __post_init__(self) -> None:
        if self.mode not in ENSEMBLE_MODES:
            raise UnknownName("ensemble mode", self.mode, known=ENSEMBLE_MODES)

    def __call__(self, text: str, n_choices: int) -> tuple[str, int]:
        if self.mode == "no_guess":
            return parse(text, n_choices)
        label = _sentence_label(text)
        index = _index(label, n_choices)
        if index < 0:
            self.draw = self.draw or random.Random(0)
            index = self.draw.choice(range(n_choices))
        return label, index


def _combine(
    problems: Problems,
    ours: Mapping[str, str],
    teacher: Mapping[str, str],
    requery: Mapping[str, str] | None,
    read: _Reader,
    skipped: int,
    strict_official: bool,
) -> EnsembleScore:
    if strict_official and not problems:
        raise ScoringError("the official script divides by the number of problems, and there is none with both replies.")
    results: dict[str, int] = {}
    right = dict.fromkeys(("correct", "ours", "teacher", "complement", "upper_bound", "teacher_failed"), 0)
    for problem_id, problem in problems.items():
        n_choices, answer = _choices(problem_id, problem), _answer(problem_id, problem)
        _, our_index = read(ours[problem_id], n_choices)
        teacher_label, teacher_index = read(teacher[problem_id], n_choices)
        complement_index = our_index if teacher_label == FAILED else teacher_index
        final_index = complement_index
        if requery is not None:
            label, index = read(requery.get(problem_id, ""), n_choices)
            final_index = our_index if label == FAILED else index
        results[problem_id] = final_index
        right["correct"] += final_index == answer
        right["ours"] += our_index == answer
        right["teacher"] += teacher_index == answer
        right["complement"] += complement_index == answer
        # The two scripts differ in one corner: the complement's bound forgets the teacher's lucky guess, the judge's does not.
        right["upper_bound"] += answer in (our_index, complement_index if requery is None else teacher_index)
        right["teacher_failed"] += teacher_label == FAILED
    return EnsembleScore(total=len(problems), skipped=skipped, results=results, **right)


def _choices(problem_id: str, problem: Mapping[str, Any]) -> int:
    choices = _field(problem, "choices", f"problem {problem_id}")
    if not isinstance(choices, list | tuple) or not choices:
        raise ScoringError(f"problem {problem_id} must have a list of choices, not {str(choices)[:40]!r}.")
    return len(choices)


def _answer(problem_id: str, problem: Mapping[str, Any]) -> int:
    answer = _field(problem, "answer", f"problem {problem_id}")
    if answer not in range(len(OPTIONS)):
        raise ScoringError(f"the answer of problem {problem_id} must be the index of a choice (0 to 4), not {str(answer)[:40]!r}.")
    return answer


def _field(row: Mapping[str, Any], key: str, what: str) -> Any:
    try:
        return row[key]
    except KeyError:
        raise ScoringError(f"{what} has no {key!r}.") from None


def _fraction(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _percent(part: int, whole: int) -> str:
    return f"{part / whole * 100:.2f}" if whole else "-1.00"
