"""Two models on the same questions: is one better, on which questions do they differ, and what did each say?

The answer is a test over pairs, for most of what makes a score go up and down is the questions, which both share. The page is one HTML
file with the pictures in it, no scripts and no addresses; what models said is text in it, never markup.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vistune.errors import DataError, ImageError, UsageError
from vistune.eval.benchmark import Benchmark
from vistune.eval.intervals import Paired, paired
from vistune.eval.results import BenchmarkResult, read_result
from vistune.eval.runner import questions_digest
from vistune.eval.samples import Sample
from vistune.eval.tables import as_printed, remarks
from vistune.media import open_image
from vistune.types import ImagePart, Question, TextPart

MOST_SHOWN = 200
PICTURE_SIDE = 384


@dataclass(frozen=True)
class Pair:
    """What both said to one question."""

    a: Sample
    b: Sample

    @property
    def difference(self) -> float:
        """How much higher B's score is. Only for pairs in which both have one."""
        assert self.a.score.value is not None
        assert self.b.score.value is not None
        return self.b.score.value - self.a.score.value


@dataclass(frozen=True)
class Comparison:
    """`test` is about the mean of the items' scores; `flips` are the questions with different scores, the largest differences first."""

    a: BenchmarkResult
    b: BenchmarkResult
    test: Paired
    flips: tuple[Pair, ...]
    ids: tuple[str, ...]
    """Of all questions that were asked."""
    one_unscored: int
    """Questions that just one of them has a score for: they are in no part of the test."""

    @property
    def better(self) -> tuple[int, int]:
        """On how many questions A, and on how many B, got more."""
        return sum(pair.difference < 0 for pair in self.flips), sum(pair.difference > 0 for pair in self.flips)


def result_files(a: Path, b: Path) -> list[tuple[Path, Path]]:
    """The pairs of results under two files, or of the same name in two folders.

    Raises:
        UsageError: there are none.
    """
    if a.is_file() and b.is_file():
        return [(a, b)]
    names = sorted({path.name for path in a.glob("*.json")} & {path.name for path in b.glob("*.json")})
    if not names:
        raise UsageError(f"{a} and {b} hold no results of the same name; give two folders of vistune eval, or two NAME.json.")
    return [(a / name, b / name) for name in names]


def compare(a: Path, b: Path) -> Comparison:
    """Compares two written results.

    Raises:
        DataError: they are not of the same questions, asked and scored in the same way.
    """
    (result_a, samples_a), (result_b, samples_b) = read_result(a), read_result(b)
    for name in ("benchmark", "version", "protocol", "scorer", "questions", "judge"):
        one, other = getattr(result_a, name), getattr(result_b, name)
        if one != other:
            raise DataError(f"{a} and {b} cannot be compared: their {name} differs ({one!r} and {other!r}).")
    others = {sample.id: sample for sample in samples_b}
    if [sample.id for sample in samples_a] != [sample.id for sample in samples_b]:
        raise DataError(f"The samples beside {a} and {b} are not of the same questions; run vistune eval again.")
    pairs = [Pair(sample, others[sample.id]) for sample in samples_a]
    both = [pair for pair in pairs if pair.a.score.value is not None and pair.b.score.value is not None]
    flips = sorted((pair for pair in both if pair.difference), key=lambda pair: -abs(pair.difference))
    return Comparison(
        result_a,
        result_b,
        paired([(pair.a.cluster, pair.difference) for pair in both]),
        tuple(flips),
        tuple(sample.id for sample in samples_a),
        sum((pair.a.score.value is None) != (pair.b.score.value is None) for pair in pairs),
    )


def in_words(found: Comparison) -> str:
    """The comparison in a few lines for a terminal."""
    test, (better_a, better_b) = found.test, found.better
    span = f" [{test.interval[0]:+.4f}, {test.interval[1]:+.4f}]" if test.interval else ""
    lines = [
        f"{found.a.benchmark} ({found.a.protocol}{', PARTIAL' if found.a.partial else ''}), {test.n} questions, {test.clusters} pictures",
        f"  A  {_headline(found.a)}   {found.a.model}",
        f"  B  {_headline(found.b)}   {found.b.model}",
        f"  B - A, mean score of a question: {test.difference:+.4f}{span}, p = {test.p:.4f} (paired, by picture)",
        f"  better: A on {better_a} questions, B on {better_b}; the same on {test.n - better_a - better_b}",
    ]
    if found.one_unscored:
        lines.append(f"  {found.one_unscored} questions have a score of only one of them and are left out")
    return "\n".join(lines)


def _headline(result: BenchmarkResult) -> str:
    return f"{result.headline.name} {as_printed(result.headline, interval=True)}" if result.headline else "no score"


def questions_of(found: Comparison, benchmark: Benchmark, data: Path | None = None) -> dict[str, Question]:
    """The questions that both answered, by id, from the data folder of the results unless another is given.

    Raises:
        DataError: they are not the questions that were asked, or what `Benchmark.questions` says.
    """
    asked = set(found.ids)
    folder = data or (Path(found.a.data) if found.a.data else None)
    questions = [question for question in benchmark.questions(folder, found.a.protocol) if question.id in asked]
    if questions_digest(questions) != found.a.questions:
        raise DataError(f"The questions of {benchmark.name} are not those that were asked; give --data with the files of then.")
    return {question.id: question for question in questions}


# --- the page -----------------------------------------------------------------------------------------------------------------------------

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
article { display: flex; gap: 1rem; border-top: 1px solid #ccc; padding: 1rem 0 } article > div { flex: 1; min-width: 0 }
img { max-width: 16rem; max-height: 16rem; margin: 0 .3rem .3rem 0 } p, blockquote { white-space: pre-wrap; overflow-wrap: anywhere }
blockquote { margin: .3rem 0; padding: .3rem .7rem; border-left: .3rem solid #ccc } .up { border-color: #2a7 } .down { border-color: #c44 }
small { color: #666 } pre { white-space: pre-wrap }
"""


def page(found: Comparison, questions: Mapping[str, Question], *, most: int = MOST_SHOWN) -> str:
    """The disagreements as a self-contained HTML page, up to `most` of them.

    Args:
        questions: by id, for words and pictures; of a question that is not in it only the replies are shown.
    """
    shown = found.flips[:most]
    articles = "\n".join(_article(pair, questions.get(pair.a.id)) for pair in shown)
    left_out = f"<p>{len(found.flips) - most} smaller differences are left out.</p>" if len(found.flips) > most else ""
    title = html.escape(f"{found.a.benchmark}: {found.a.model} and {found.b.model}")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        f"<title>{title}</title>\n<style>{_STYLE}</style></head>\n<body>\n<h1>{title}</h1>\n<pre>{html.escape(in_words(found))}\n"
        f"  A: {html.escape(remarks(found.a))}\n  B: {html.escape(remarks(found.b))}</pre>\n{articles}\n{left_out}</body></html>\n"
    )


def _article(pair: Pair, question: Question | None) -> str:
    better = pair.difference > 0
    pictures = "".join(map(_picture, question.conversation.images)) if question else ""
    words = _words(question) if question else ""
    return (
        f"<article><div>{pictures}</div><div><p><small>{html.escape(pair.a.id)}</small></p>{words}"
        f"{_said('A', pair.a, 'down' if better else 'up')}{_said('B', pair.b, 'up' if better else 'down')}</div></article>"
    )


def _words(question: Question) -> str:
    asked = "\n".join(part.text for message in question.conversation.messages for part in message.parts if isinstance(part, TextPart))
    right = f"<p><small>right: {html.escape(' | '.join(question.answers))}</small></p>" if question.answers else ""
    return f"<p>{html.escape(asked.strip())}</p>{right}"


def _said(name: str, sample: Sample, kind: str) -> str:
    note = f" ({html.escape(sample.score.note)})" if sample.score.note else ""
    return f'<blockquote class="{kind}"><small>{name}, score {sample.score.value:g}{note}</small>\n{html.escape(sample.reply)}</blockquote>'


def _picture(image: ImagePart) -> str:
    """The picture, small, as an address of its own; a word in its place where it cannot be opened."""
    try:
        opened = open_image(image.source)
    except ImageError as error:
        return f"<p><small>{html.escape(error.reason)} picture</small></p>"
    opened.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    file = io.BytesIO()
    opened.save(file, "JPEG", quality=80)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode("ascii")}">'
