"""MMBench (Liu et al. 2023): reading an option from a reply as VLMEvalKit does, and CircularEval.

VLMEvalKit asks a language model about the replies that its rules cannot read, or counts them as wrong ("exact matching"). The functions
above the questions are pure and leave such replies without a verdict; the benchmark counts them as wrong, and says how many there were.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vistune.errors import DataError, ScoringError
from vistune.eval.benchmark import About, Benchmark, Metric, Protocol
from vistune.eval.benchmarks.choices import LETTER_ANSWER, chosen, lettered, unreadable
from vistune.eval.judge import JudgeRules
from vistune.eval.official_files import SEE_LAYOUT, EmbeddedPictures, Row, tsv_rows, unique
from vistune.eval.shared import about_pictures, mean_percent, mean_percents, unanswered
from vistune.types import Conversation, Graded, ImagePart, Message, Question, Reply, SamplingParams, Score, TextPart

LETTERS = ("A", "B", "C", "D")
NO_OPTION = "Z"
"""What a refusal is read as: an answer, and a wrong one."""
ROTATION = 1_000_000

_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_API_FAILURE = "Failed to obtain answer via API"
_PUNCTUATION = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_LAST_PIECES = 4
# Kept as it is there: in any case, and the letter may begin a word, so that "the answer is dark" is D and "the answer is a cat" A, whatever
# the options say. Possessive, because none of its parts can match what another one takes.
_SENTENCE = re.compile(r"answer\s++is\s++\**+([A-D])", re.IGNORECASE)
_SENTENCE_ALONE = re.compile(r"nswer is(?<=[Aa]nswer is)\s*+:?+\s*+\*{0,3}+\(?+([A-D])(?![A-Za-z0-9])")


def options_of(row: Mapping[str, Any]) -> dict[str, str]:
    """A row's options by letter, as LLaVA reads them: the first that is None, NaN, "nan" or "none" (any case) ends the list."""
    options: dict[str, str] = {}
    for letter in LETTERS:
        value = row.get(letter)
        if value is None or (isinstance(value, float) and math.isnan(value)) or str(value).lower() in ("nan", "none"):
            break
        options[letter] = str(value)
    return options


def infer_option(reply: object, options: Mapping[str, object], *, alone: bool = False) -> str | None:
    """The letter that a reply means, `Z` for none of the options, or None where the rules of VLMEvalKit do not tell.

    In turn: a refusal; one single option letter that stands alone, first met among the last four pieces; a lone Z; "answer is X"; and,
    unless the reply is more than twice as long as all options together, the only option whose text it contains.

    Args:
        reply: usually text; None and NaN (an empty cell) are read as "None" and "nan", as in VLMEvalKit.
        options: the option texts by capital letter.
        alone: read "answer is X" only where X is a capital that stands alone. VLMEvalKit also takes the first letter of a word.

    Raises:
        ScoringError: an option's key is no capital letter.
    """
    wrong = [key for key in options if not isinstance(key, str) or len(key) != 1 or key not in string.ascii_uppercase]
    if wrong:
        raise ScoringError(f"options are named by one capital letter, not {str(wrong[0])[:40]!r}.")
    text = str(reply)
    return _option_by_letter(text, options, alone) or _option_by_text(text, options)


def _option_by_letter(text: str, options: Mapping[str, object], alone: bool) -> str | None:
    if _API_FAILURE in text:
        return None
    if any(refusal in text for refusal in _REFUSALS):
        return NO_OPTION
    pieces = text.translate(_PUNCTUATION).split()
    found = [letter for letter in options if letter in pieces]
    if len(found) == 1 and pieces.index(found[0]) >= len(pieces) - _LAST_PIECES:
        return found[0]
    if not found and NO_OPTION in pieces:
        return NO_OPTION
    sentence = (_SENTENCE_ALONE if alone else _SENTENCE).search(text)
    return sentence[1].upper() if sentence and sentence[1].upper() in options else None


def _option_by_text(text: str, options: Mapping[str, object]) -> str | None:
    text = text.lower()
    if len(text) > 2 * sum(len(str(option)) for option in options.values()):
        return None
    found = [letter for letter, option in options.items() if str(option).lower() in text]
    return found[0] if len(found) == 1 else None


def circular(hits: Mapping[int, bool | None]) -> dict[int, bool | None]:
    """CircularEval: whether each question is right in all its rotations.

    Rotations of question `index` are numbered `index` + k x 1,000,000. One wrong rotation makes the question wrong; without one, a rotation
    that has no verdict (None) leaves it without one.

    Args:
        hits: for every row's index whether it is right, None where that is not known.
    """
    rotations: dict[int, list[bool | None]] = defaultdict(list)
    for index, hit in hits.items():
        rotations[index % ROTATION].append(hit)
    return {question: _all_right(rotations[question]) for question in rotations if question in hits}


def _all_right(hits: Iterable[bool | None]) -> bool | None:
    hits = list(hits)
    if any(hit is False for hit in hits):
        return False
    return None if None in hits else True


@dataclass(frozen=True)
class Tally:
    """Questions by verdict. Those without one are in neither side of `accuracy`; `bounds` says what they could make of it."""

    right: int
    wrong: int
    unscored: int

    @property
    def n(self) -> int:
        return self.right + self.wrong + self.unscored

    @property
    def accuracy(self) -> float:
        """Fraction right of the questions with a verdict; 0 without any."""
        scored = self.right + self.wrong
        return self.right / scored if scored else 0.0

    @property
    def bounds(self) -> tuple[float, float]:
        """The accuracy if all questions without a verdict were wrong, and if all were right."""
        return (self.right / self.n, (self.right + self.unscored) / self.n) if self.n else (0.0, 0.0)


@dataclass(frozen=True)
class CircularScore:
    overall: Tally
    by_category: dict[str, Tally]
    by_l2_category: dict[str, Tally]


def score(rows: Iterable[Mapping[str, Any]], *, check_counts: bool = True) -> CircularScore:
    """CircularEval of answered rows: the mean over questions, overall and per `category` and `l2-category` of the unrotated row.

    Args:
        rows: the rows of the official table (`index`, `A` to `D`, `answer`, ...) with the model's reply in `prediction`.
        check_counts: refuse an index that comes twice and a rotation without its question; else the last one counts and the other is left
            out, as in VLMEvalKit.

    Raises:
        ScoringError: wrong counts, an index that is no number, or an answer that is none of the row's options.
    """
    table: dict[int, Mapping[str, Any]] = {}
    for row in rows:
        index = _index(row)
        if check_counts and index in table:
            raise ScoringError(f"index {index} comes twice.")
        table[index] = row
    orphans = [index for index in table if index % ROTATION not in table]
    if check_counts and orphans:
        raise ScoringError(f"{len(orphans)} rotations have no question of their own, the first is {orphans[0]}; the table is not complete.")
    verdicts = circular({index: _hit(index, row) for index, row in table.items()})
    return CircularScore(
        overall=_tally(verdicts.values()),
        by_category=_grouped(verdicts, table, "category"),
        by_l2_category=_grouped(verdicts, table, "l2-category"),
    )


def _index(row: Mapping[str, Any]) -> int:
    try:
        return int(row["index"])
    except (KeyError, TypeError, ValueError, OverflowError):
        raise ScoringError(f"a row's index must be a number, not {str(row.get('index'))[:40]!r}.") from None


def _hit(index: int, row: Mapping[str, Any]) -> bool | None:
    options = options_of(row)
    if row.get("answer") not in options:
        raise ScoringError(
            f"row {index}: the answer {str(row.get('answer'))[:40]!r} is none of its options {', '.join(options) or '(none)'}."
        )
    if "prediction" not in row:
        raise ScoringError(f"row {index} has no prediction; answer every row, or leave the whole question out.")
    found = infer_option(row["prediction"], options)
    return None if found is None else found == row["answer"]


def _grouped(verdicts: Mapping[int, bool | None], table: Mapping[int, Mapping[str, Any]], key: str) -> dict[str, Tally]:
    groups: dict[str, list[bool | None]] = defaultdict(list)
    for index, verdict in verdicts.items():
        if key in table[index]:
            groups[str(table[index][key])].append(verdict)
    return {name: _tally(group) for name, group in groups.items()}


def _tally(verdicts: Iterable[bool | None]) -> Tally:
    counts = Counter(verdicts)
    return Tally(counts[True], counts[False], counts[None])


# --- the questions ------------------------------------------------------------------------------------------------------------------------

FILES = {"en": "mmbench_dev_20230712.tsv", "cn": "mmbench_dev_cn_20231003.tsv"}
LETTER_ANSWER_CN = "请直接回答选项字母。"
_COLUMNS = ("index", "question", "hint", *LETTERS, "answer", "category", "l2-category", "image")


def load(folder: Path, protocol: str, *, check_counts: bool = True) -> list[Question]:
    """The rows of the development table, each question followed by its rotations; under `vanilla` the questions alone.

    Raises:
        DataError: the table, a column or a picture is missing, an index comes twice, a rotation has no question, an answer is no option, or
            the table has no rotations.
    """
    path = folder / FILES["cn" if protocol.endswith("cn") else "en"]
    rows = unique(tsv_rows(path, _COLUMNS), _index_of)
    rotations: dict[int, list[str]] = defaultdict(list)
    for name in rows:
        rotations[int(name) % ROTATION].append(name)
    orphans = [names[0] for question, names in rotations.items() if str(question) not in rows]
    if orphans:
        raise rows[orphans[0]].error(f"it is a rotation of question {int(orphans[0]) % ROTATION}, which is not in the table")
    vanilla = protocol.startswith("vanilla")
    if check_counts and not vanilla and len(rotations) == len(rows):
        raise DataError(f"{path} has no rotations (rows whose index is above {ROTATION:,}), which CircularEval needs. {SEE_LAYOUT}")
    pictures = EmbeddedPictures()
    wanted = [[str(question)] if vanilla else sorted(names, key=int) for question, names in rotations.items()]
    return [_question(name, rows, pictures, protocol, len(names)) for names in wanted for name in names]


def _index_of(row: Row) -> str:
    text = row.text("index")
    if not text.isdecimal():
        raise row.wrong("index", "a whole number")
    return str(int(text))


def _question(name: str, rows: Mapping[str, Row], pictures: EmbeddedPictures, protocol: str, n_rotations: int) -> Question:
    row = rows[name]
    options = options_of(row.values)
    hint = "" if row.get("hint") is None else f"{row.text('hint')}\n"
    closing = LETTER_ANSWER_CN if protocol.endswith("cn") else LETTER_ANSWER
    text = f"{hint}{row.text('question')}\n{lettered(list(options.values()))}\n{closing}"
    return Question(
        name,
        about_pictures(_picture(row, rows, pictures), text),
        answers=(row.choice("answer", tuple(options)),),
        choices=tuple(options.values()),
        category=row.text("category"),
        group=row.text("l2-category"),
        image_group=str(int(name) % ROTATION),
        facts={"rotations": n_rotations, "asked": f"{hint}{row.text('question')}"},
    )


def _picture(row: Row, rows: Mapping[str, Row], pictures: EmbeddedPictures) -> ImagePart:
    """The picture of a row; some tables give the index of the row that has it instead."""
    text = row.text("image")
    other = rows.get(text) if len(text) < 20 else None
    return pictures.from_base64(other or row, "image")


def score_reply(question: Question, reply: Reply, protocol: str) -> Score:
    """Whether one row is answered right."""
    return unanswered(reply) or chosen(infer_option(reply.text.strip(), _options(question)), question.answers[0])


def _options(question: Question) -> dict[str, object]:
    return dict(zip(LETTERS, question.choices, strict=False))


def summarise(graded: Sequence[Graded], protocol: str) -> tuple[Metric, ...]:
    """CircularEval over questions, overall and per category and L2 category; beside it the rows as if each were a question.

    A question with one wrong rotation is wrong; without one, all of its rotations must be scored for it to count.
    """
    rotations: dict[str, list[Graded]] = defaultdict(list)
    for item in graded:
        rotations[item.question.image_group].append(item)
    questions = [
        Graded(members[0].question, members[0].reply, Score(float(verdict)))
        for members in rotations.values()
        if (verdict := _verdict(members)) is not None
    ]
    metrics = (
        mean_percent("accuracy", questions, headline=True),
        *mean_percents("accuracy", questions, lambda item: item.question.category),
        *mean_percents("accuracy of L2", questions, lambda item: item.question.group),
    )
    rows = () if protocol.startswith("vanilla") else (mean_percent("accuracy of rows", graded),)
    return (*metrics, *rows, unreadable(graded))


def _verdict(members: Sequence[Graded]) -> bool | None:
    values = [item.score.value for item in members if item.score.value is not None]
    lacking: list[bool | None] = [None] * (members[0].question.facts["rotations"] - len(values))
    return _all_right([*(value == 1.0 for value in values), *lacking])


def ask_judge(question: Question, reply: Reply, protocol: str) -> Sequence[Conversation]:
    """What a language model is asked about a reply that the rules cannot read: which option it means. Nothing about other replies."""
    if infer_option(reply.text.strip(), _options(question)) is not None:
        return ()
    text = (
        "A reply to a question with several options has to be matched with the option it means. If it means none of them, the match is "
        f"{NO_OPTION}. Answer with one capital letter alone.\n\n"
        f"[Question]\n{question.facts['asked']}\n\n[Options]\n{lettered(question.choices)}\n\n[Reply]\n{reply.text.strip()}\n\n[Match]"
    )
    return (Conversation((Message("user", (TextPart(text),)),)),)


def read_judge(text: str, question: Question, protocol: str) -> Score:
    """The letter that the language model matched; prose and letters of no option are no match."""
    letter = infer_option(text.strip(), _options(question))  # a lone Z is none of them
    if letter is None:
        return Score(None, note=f"it names neither an option nor {NO_OPTION}")
    return Score(float(letter == question.answers[0]), extracted=letter, note="matched by a language model")


def settle(question: Question, reply: Reply, protocol: str) -> Score:
    """What the rules read; where they cannot, and the language model could not match the reply either, nothing (VLMEvalKit draws one)."""
    letter = infer_option(reply.text.strip(), _options(question))
    return chosen(letter, question.answers[0]) if letter else Score(None, note="neither the rules nor the judge found an option")


BENCHMARK = Benchmark(
    "mmbench",
    "1",
    about=About(
        title="MMBench: multiple choice over 20 abilities, every rotation of the options",
        source="https://github.com/open-compass/MMBench (development tables; the test tables have no public answers)",
        licence="Apache-2.0",
        layout="\n".join(FILES.values()),
        metric="accuracy by CircularEval: a question is right if it is in all rotations of its options",
        paper="https://arxiv.org/abs/2307.06281",
    ),
    protocols=(
        Protocol("llava", "English, LLaVA-1.5's prompt; options read by VLMEvalKit's rules, where it counts unreadable ones as wrong"),
        Protocol("llava-cn", "the same in Chinese"),
        Protocol("vanilla", "English, every question once, without rotations"),
        Protocol("vanilla-cn", "the same in Chinese"),
    ),
    load=load,
    score=score_reply,
    summarise=summarise,
    params=SamplingParams(max_new_tokens=1024),
)

MATCHED = replace(
    BENCHMARK,
    name="mmbench-matched",
    about=replace(BENCHMARK.about, title="MMBench, with a language model that matches what the rules cannot read"),
    protocols=(
        Protocol(
            "llava", "English, LLaVA-1.5's prompt; what VLMEvalKit's rules cannot read, the judge matches with an option or with none"
        ),
        Protocol("llava-cn", "the same in Chinese"),
    ),
    judge=JudgeRules(
        ask=ask_judge,
        parse=read_judge,
        params=SamplingParams(max_new_tokens=16),
        settle=settle,
        canaries=False,  # a reference answer is a letter, about which nobody is asked
    ),
)
