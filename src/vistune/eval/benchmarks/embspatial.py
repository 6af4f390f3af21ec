"""EmbSpatial-Bench (Du et al. 2024): where things are, multiple choice, in four ways to read a reply.

`parse`, `most_likely` and `score` are pure; the benchmark itself is at the end. The authors published no scorer; `reform_upper` is that of
ReForm-Eval, by the same group and with the same two modes (generation, likelihood), and the one to use for the published row.
"""

from __future__ import annotations

import math
import re
import string
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from vistune.errors import ScoringError, UnknownName
from vistune.eval.benchmark import About, Benchmark, Metric, Protocol
from vistune.eval.benchmarks.choices import LETTER_ANSWER, LETTERS, chosen, lettered, unreadable
from vistune.eval.benchmarks.mmbench import infer_option
from vistune.eval.official_files import EmbeddedPictures, Row, json_rows, require_count, unique
from vistune.eval.shared import about_pictures, mean_percent, mean_percents, unanswered
from vistune.types import Graded, Question, Reply, SamplingParams, Score

Mode = Literal["reform_upper", "reform_all", "lmms", "vlmevalkit"]
MODES: tuple[Mode, ...] = ("reform_upper", "reform_all", "lmms", "vlmevalkit")

_MARKS = {"reform_upper": re.compile(r"\(([A-Z])\)"), "reform_all": re.compile(r"\(([1-9A-Za-z])\)")}
# The blanks that lmms-eval trims first are taken by the pattern anyway. Ignoring case lets four letters beyond ASCII pass: what is not A
# to Z as a capital is dropped after the match.
_FIRST_LETTER = re.compile(r"[(\s]*+([A-Z])", re.IGNORECASE)


def parse(reply: str, options: Sequence[str] | None = None, mode: Mode = "reform_upper") -> int | None:
    """The 0-based index of the option that a reply names, or None.

    * `reform_upper`, `reform_all`: the first mark such as (B), also (b) or (2) in `reform_all`; without any mark the option that is the
      whole reply, letter for letter.
    * `lmms`: the first letter of the trimmed reply after opening brackets, also that of an ordinary word.
    * `vlmevalkit`: the rules of `mmbench.infer_option`; a refusal is None.

    A mark beyond the options is returned as it is ("(Z)" is 25): the official code calls that a wrong answer, not an unreadable one.

    Raises:
        ScoringError: the reply is not text, or `vlmevalkit` is to choose from no or more than 26 options.
        UnknownName: there is no such mode.
    """
    if mode not in MODES:
        raise UnknownName("EmbSpatial mode", mode, known=MODES)
    if mode == "vlmevalkit":
        return _parse_vlmevalkit(reply, options or ())
    if not isinstance(reply, str):
        raise ScoringError(f"an EmbSpatial reply must be text, not {type(reply).__name__}.")
    if mode == "lmms":
        first = _FIRST_LETTER.match(reply)
        return _position(first[1].upper()) if first else None
    mark = _MARKS[mode].search(reply)
    if mark:
        return int(mark[1]) - 1 if mark[1].isdigit() else _position(mark[1].upper())
    return next((index for index, option in enumerate(options or ()) if option == reply), None)


def _parse_vlmevalkit(reply: str, options: Sequence[str]) -> int | None:
    if not 0 < len(options) <= len(string.ascii_uppercase):
        raise ScoringError(f"VLMEvalKit's rules need 1 to 26 options, not {len(options)}.")
    letters = string.ascii_uppercase[: len(options)]
    found = infer_option(reply, dict(zip(letters, options, strict=True)))
    return letters.index(found) if found and found in letters else None


def _position(letter: str) -> int | None:
    index = string.ascii_uppercase.find(letter)
    return index if index >= 0 else None


def most_likely(log_probabilities: Sequence[Sequence[float]], mode: Literal["mean", "sum"] = "mean") -> int:
    """Likelihood mode: the index of the option that the model would most probably have written.

    Args:
        log_probabilities: per option the natural log-probability of each of its tokens after the question.
        mode: `mean` per token, which is the lowest language-model loss as in ReForm-Eval, or `sum`, which favours short options.

    Raises:
        ScoringError: no options, an option without tokens, or a value that is no log-probability. Equal options go to the first.
    """
    if not log_probabilities or not all(log_probabilities):
        raise ScoringError("every option needs the log-probability of at least one token.")
    if not all(value <= 0 for tokens in log_probabilities for value in tokens):
        raise ScoringError("a log-probability is a number of at most 0.")
    totals = [math.fsum(tokens) / (len(tokens) if mode == "mean" else 1) for tokens in log_probabilities]
    return totals.index(max(totals))


@dataclass(frozen=True)
class EmbSpatialScore:
    """Accuracies as fractions, over all items and per relation and source; unread replies count as wrong and are told in `n_unread`."""

    accuracy: float
    by_relation: dict[str, float]
    by_source: dict[str, float]
    n: int
    n_unread: int


def score(items: Iterable[Mapping[str, Any]], *, mode: Mode = "reform_upper") -> EmbSpatialScore:
    """Scores items of the benchmark, each with the model's answer in `reply`; 0 without items.

    Args:
        items: rows with `answer_options`, `answer` (index), `relation`, `data_source` and `reply`.
        mode: how replies are read, see `parse`.

    Raises:
        ScoringError: a missing field, or an answer that is no index of the options.
    """
    right: list[bool] = []
    relations: dict[str, list[bool]] = defaultdict(list)
    sources: dict[str, list[bool]] = defaultdict(list)
    unread = 0
    for item in items:
        options, answer = _field(item, "answer_options"), _field(item, "answer")
        if answer not in range(len(options)):
            raise ScoringError(
                f"{item.get('question_id', 'an item')}: the answer {str(answer)[:40]!r} is no index of its {len(options)} options."
            )
        found = parse(_field(item, "reply"), options, mode)
        unread += found is None
        right.append(found == answer)
        relations[str(_field(item, "relation"))].append(found == answer)
        sources[str(_field(item, "data_source"))].append(found == answer)
    return EmbSpatialScore(
        accuracy=_mean(right),
        by_relation={name: _mean(hits) for name, hits in relations.items()},
        by_source={name: _mean(hits) for name, hits in sources.items()},
        n=len(right),
        n_unread=unread,
    )


def _mean(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits) if hits else 0.0


def _field(item: Mapping[str, Any], key: str) -> Any:
    try:
        return item[key]
    except KeyError:
        raise ScoringError(f"{item.get('question_id', 'an item')} of EmbSpatial-Bench has no {key!r}.") from None


# --- the questions ------------------------------------------------------------------------------------------------------------------------

FILE = "embspatial_bench.json"
QUESTIONS = 3_640
SOURCES = ("mp3d", "ai2thor", "scannet")
RELATIONS = ("close", "far", "left", "right", "above", "under")


def load(folder: Path, protocol: str, *, check_counts: bool = True) -> list[Question]:
    """The questions; the category is the relation, the group the source, and those of a scene belong together.

    Raises:
        DataError: the file, a field or a picture is missing, an id comes twice, an answer is no index of the options, or the
            count is not 3,640.
    """
    rows = unique(json_rows(folder / FILE), lambda row: row.name("question_id"))
    if check_counts:
        require_count(len(rows), QUESTIONS, f"{folder / FILE}: questions")
    pictures = EmbeddedPictures()
    return [_question(name, row, pictures, protocol) for name, row in rows.items()]


def _question(name: str, row: Row, pictures: EmbeddedPictures, protocol: str) -> Question:
    options = row.texts("answer_options")
    source = row.choice("data_source", SOURCES)
    return Question(
        name,
        about_pictures(pictures.from_base64(row, "image"), _prompt(row.text("question"), options, protocol)),
        answers=(LETTERS[row.index("answer", len(options))],),
        choices=options,
        category=row.choice("relation", RELATIONS),
        group=source,
        image_group=f"{source}/{row.name('scene_id')}",
    )


def _prompt(text: str, options: Sequence[str], protocol: str) -> str:
    if protocol == "likelihood":
        return text
    if protocol == "lmms":
        return f"Answer with A, B, C or D only.\n{text}\n{lettered(options, '{}) {}')}"
    if protocol == "vlmevalkit":
        return f"Question: {text}\nOptions:\n{lettered(options, '{}: {}')}\n{LETTER_ANSWER}"
    return f"{text} Options: {lettered(options, '({}) {}', '; ')}."  # as ReForm-Eval's SingleChoiceProcessor writes them


def continuations(question: Question, protocol: str) -> Sequence[str]:
    """What is compared in likelihood mode: the options themselves."""
    return question.choices if protocol == "likelihood" else ()


def score_reply(question: Question, reply: Reply, protocol: str) -> Score:
    """Whether the reply names the right option."""
    if missing := unanswered(reply):
        return missing
    if protocol == "likelihood":
        place: int | None = question.choices.index(reply.text)
    else:
        place = parse(reply.text.strip(), question.choices, cast(Mode, protocol))
    return chosen(None if place is None else LETTERS[place], question.answers[0])


def summarise(graded: Sequence[Graded], protocol: str) -> tuple[Metric, ...]:
    """Accuracy over all questions, per relation and per source."""
    return (
        mean_percent("accuracy", graded, headline=True),
        *mean_percents("accuracy", graded, lambda item: (item.question.category, item.question.group)),
        unreadable(graded),
    )


BENCHMARK = Benchmark(
    "embspatial",
    "1",
    about=About(
        title="EmbSpatial-Bench: where things are, seen from within a room",
        source="https://huggingface.co/datasets/Phineas476/EmbSpatial-Bench",
        licence="CC BY 4.0",
        layout=FILE,
        metric="accuracy over all questions",
        paper="https://arxiv.org/abs/2406.05756",
    ),
    protocols=(
        Protocol(
            "reform_upper",
            "options in one line, the first (A) to (Z) in the reply: ReForm-Eval's generation mode, likely the published one",
        ),
        Protocol("reform_all", "the same; also (a) and (1)"),
        Protocol("lmms", "options as lines, the first letter of the reply, as lmms-eval"),
        Protocol("vlmevalkit", "options as lines, read by VLMEvalKit's rules"),
        Protocol("likelihood", "which option the model would most probably write, by the mean log-probability of its tokens"),
    ),
    load=load,
    score=score_reply,
    summarise=summarise,
    params=SamplingParams(max_new_tokens=64),
    sizes=dict.fromkeys((*MODES, "likelihood"), QUESTIONS),
    continuations=continuations,
)
