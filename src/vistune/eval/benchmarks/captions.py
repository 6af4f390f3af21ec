"""Caption metrics: BLEU, METEOR, ROUGE-L and CIDEr as `pycocoevalcap` computes them, with or without tokenising first.

COCO and ScanQA tokenise (`tokenise=True`); the scorer of LL3DA takes the texts as they are. METEOR is a program in Java and so is the
official tokeniser. Without Java METEOR is None and the tokens come from `vistune.eval.ptb`; `protocol` puts both into words, for a result
that has to say how it was made.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal, NamedTuple, overload

from vistune.errors import MissingDependency, ScoringError, optional_import
from vistune.eval.benchmark import Metric
from vistune.eval.ptb import tokenize
from vistune.types import Graded, Question, Score

Tokeniser = Literal["auto", "stanford", "python"]
_BETA = 1.2  # how much more recall counts than precision in pycocoevalcap's ROUGE-L
METRICS: tuple[str, ...] = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr")


class CaptionItem(NamedTuple):
    """One caption to score and the captions it is compared with. A plain pair will do."""

    hypothesis: str
    references: Sequence[str]


@dataclass(frozen=True)
class CaptionScores:
    """Scores of a set of captions. All are 0 to 1 except CIDEr, which goes to 10; a metric that was not computed is None.

    `corpus` is not always the mean of `per_item`: BLEU adds up counts and METEOR its own statistics before dividing.
    """

    corpus: dict[str, float | None]
    per_item: tuple[dict[str, float | None], ...]
    protocol: str


def java_reason() -> str:
    """Why the parts in Java cannot be used here; empty where they can."""
    if shutil.which("java") is None:
        return "Java was not found"
    if importlib.util.find_spec("pycocoevalcap") is None:
        return "pycocoevalcap is not installed"
    return ""


def protocol(tokenise: bool, tokeniser: Tokeniser = "auto", meteor: bool = True) -> str:
    """How `score` scores on this machine, for a result's protocol id: the tokeniser, and METEOR if it is missing."""
    tokens = f"ptb-{_chosen(tokeniser)}" if tokenise else "raw"
    if not meteor:
        return f"{tokens}, no METEOR"
    return f"{tokens}, no METEOR ({java_reason()})" if java_reason() else tokens


def _chosen(tokeniser: Tokeniser) -> Literal["stanford", "python"]:
    if tokeniser == "auto":
        return "python" if java_reason() else "stanford"
    if tokeniser == "stanford" and java_reason():
        raise MissingDependency(f"Stanford's tokeniser cannot run: {java_reason()}; install Java and pip install 'vistune[eval]'")
    return tokeniser


@overload
def ptb_tokenize(captions: str, tokeniser: Tokeniser = "python") -> str: ...  # pyright: ignore[reportOverlappingOverload]
@overload
def ptb_tokenize(captions: Sequence[str], tokeniser: Tokeniser = "python") -> list[str]: ...
def ptb_tokenize(captions: str | Sequence[str], tokeniser: Tokeniser = "python") -> str | list[str]:
    """Captions as the metrics of COCO see them: lower-case tokens with single blanks between them, most punctuation gone.

    Args:
        captions: one caption, or several, which with `stanford` share one start of Java.
        tokeniser: `python` (rules written after the official program's behaviour), `stanford` (that program; needs Java and the extra
            `eval`) or `auto` (`stanford` where it can run).

    Raises:
        MissingDependency: `stanford` where it cannot run.
    """
    if isinstance(captions, str):
        return ptb_tokenize([captions], tokeniser)[0]
    if _chosen(tokeniser) == "python":
        return [tokenize(caption) for caption in captions]
    module = optional_import("pycocoevalcap.tokenizer.ptbtokenizer", extra="eval")
    # The program answers line by line, so a caption must not hold what it takes for the end of a line; one that would come out empty
    # at the end of its input is lost unless something follows.
    lines = [" ".join(_encodable(caption).split()) for caption in captions]
    tokens = module.PTBTokenizer().tokenize({number: [{"caption": line}] for number, line in enumerate([*lines, "end"])})
    return [tokens[number][0] for number in range(len(lines))]


def _encodable(caption: str) -> str:
    return caption.encode("utf-8", "ignore").decode("utf-8")


def score(items: Sequence[tuple[str, Sequence[str]]], tokenise: bool = True, *, strict_official: bool = False) -> dict[str, float | None]:
    """BLEU-1 to 4, METEOR, ROUGE-L and CIDEr of a set of captions, under the names in `METRICS`; see `detail`."""
    return detail(items, tokenise, strict_official=strict_official).corpus


def detail(
    items: Sequence[tuple[str, Sequence[str]]],
    tokenise: bool = True,
    *,
    tokeniser: Tokeniser = "auto",
    meteor: bool = True,
    strict_official: bool = False,
) -> CaptionScores:
    """The metrics of a set of captions, together and one by one.

    Args:
        items: (caption, its references) pairs.
        tokenise: whether to tokenise first, as COCO and ScanQA do and LL3DA does not.
        tokeniser: see `ptb_tokenize`.
        meteor: False leaves METEOR out even where Java is there.
        strict_official: raise where the official code fails, which is where no reference has any word; CIDEr is 0.0 there otherwise.

    Raises:
        ScoringError: no items, or an item without references; see also `strict_official`.
        MissingDependency: pycocoevalcap is not installed.
    """
    if not items:
        raise ScoringError("there are no captions to score")
    for number, (_, references) in enumerate(items):
        if isinstance(references, str) or not references:
            raise ScoringError(f"caption {number} has no list of references; expected at least one")
    counts = [len(references) for _, references in items]
    texts = [_one_line(text) for hypothesis, references in items for text in (hypothesis, *references)]
    if tokenise:
        texts = ptb_tokenize(texts, tokeniser)
    remaining = iter(texts)
    result, expected = {}, {}
    for number, count in enumerate(counts):
        result[number] = [next(remaining)]
        expected[number] = [next(remaining) for _ in range(count)]
    corpus, columns = _metrics(expected, result, meteor=meteor and not java_reason(), strict_official=strict_official)
    per_item = tuple(dict(zip(METRICS, row, strict=True)) for row in zip(*columns, strict=True))
    return CaptionScores(dict(zip(METRICS, corpus, strict=True)), per_item, protocol(tokenise, tokeniser, meteor))


def _one_line(text: str) -> str:
    return text.replace("\n", " ")


def _metrics(
    expected: dict[int, list[str]], result: dict[int, list[str]], *, meteor: bool, strict_official: bool
) -> tuple[list[float | None], list[list[float | None]]]:
    """The corpus values and the values per item, both in the order of METRICS."""
    bleu, bleu_items = _scorer("bleu.bleu", "Bleu", 4).compute_score(expected, result, verbose=0)
    rouge_items = [_rouge(texts[0], expected[number]) for number, texts in result.items()]
    if any(text.split() for references in expected.values() for text in references):
        cider, cider_items = _scorer("cider.cider", "Cider").compute_score(expected, result)
    elif strict_official:
        raise ScoringError("no reference has any word, for which the official CIDEr fails")
    else:
        cider, cider_items = 0.0, [0.0] * len(result)
    missing: tuple[float | None, list[None]] = (None, [None] * len(result))
    meteor_value, meteor_items = _meteor(expected, result) if meteor else missing
    corpus = [*map(float, bleu), meteor_value, fmean(rouge_items), float(cider)]
    columns = [*bleu_items, meteor_items, rouge_items, cider_items]
    return corpus, [[None if value is None else float(value) for value in column] for column in columns]


def _scorer(module: str, name: str, *args: int) -> Any:
    return getattr(optional_import(f"pycocoevalcap.{module}", extra="eval"), name)(*args)


def _meteor(expected: dict[int, list[str]], result: dict[int, list[str]]) -> tuple[float, list[float]]:
    """METEOR's corpus value and its values per item, from the program in Java, which is ended again."""
    scorer = _scorer("meteor.meteor", "Meteor")
    try:
        # Bars separate the texts in what the program is sent, and it reads no line separators.
        clean = {number: [_for_meteor(text) for text in texts] for number, texts in expected.items()}
        return scorer.compute_score(clean, {number: [_for_meteor(text) for text in texts] for number, texts in result.items()})
    except (OSError, ValueError) as error:
        raise ScoringError(f"METEOR's program gave no score ({error}); score without it, or look at the captions") from error
    finally:
        program = scorer.meteor_p
        program.kill()
        program.wait()
        for stream in (program.stdin, program.stdout, program.stderr):
            with contextlib.suppress(OSError):  # what was still unsent cannot be sent
                stream.close()


def _for_meteor(text: str) -> str:
    return _encodable(text).replace("|||", "").replace("\r", " ").replace("\n", " ")


def as_metrics(items: Sequence[CaptionItem], *, tokenise: bool, java: bool) -> tuple[Metric, ...]:
    """The metrics as they are printed, each times 100, CIDEr first as the headline; METEOR only with Java."""
    found = detail(items, tokenise, tokeniser="stanford" if java else "python", meteor=java).corpus
    named = {name: value for name, value in found.items() if value is not None}
    return tuple(
        Metric(name, 100 * named[name], len(items), "score", headline=name == "CIDEr") for name in sorted(named, key=lambda n: n != "CIDEr")
    )


def require_tools(java: bool) -> None:
    """Raises MissingDependency where the metrics could not be computed in the end; before hours of asking."""
    optional_import("pycocoevalcap", extra="eval")
    if java and (reason := java_reason()):
        raise MissingDependency(f"This protocol uses programs in Java: {reason}. Install it, or take the protocol without -java.")


def rouge(said: str, references: Sequence[str], *, tokenise: bool = True) -> float:
    """ROUGE-L of one text, from 0 to 1."""
    said, *references = [tokenize(text) if tokenise else _one_line(text) for text in (said, *references)]
    return _rouge(said, references)


def _rouge(said: str, references: Sequence[str]) -> float:
    """pycocoevalcap's `Rouge.calc_score` to the bit, faster: the best precision and the best recall, of two references maybe."""
    words = said.split(" ")
    split = [reference.split(" ") for reference in references]
    common = [_common_subsequence(words, reference) for reference in split]
    precision = max(common) / len(words)
    recall = max(length / len(reference) for length, reference in zip(common, split, strict=True))
    if not precision:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """The length of the longest common subsequence, a row of the usual table at a time as the bits of one number (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for bit, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << bit
    everything = (1 << len(first)) - 1
    row = everything
    for word in second:
        matched = row & places.get(word, 0)
        row = (row + matched | row - matched) & everything
    return len(first) - row.bit_count()


def caption_items(graded: Sequence[Graded]) -> list[CaptionItem]:
    """What was read in the replies that have a score, and what it is compared with."""
    return [CaptionItem(item.score.extracted or "", item.question.answers) for item in graded if item.score.value is not None]


def extremes(question: Question) -> tuple[Score, Score]:
    """Nothing at all, and the first reference itself."""
    return Score(0.0, extracted=""), Score(1.0, extracted=question.answers[0])
