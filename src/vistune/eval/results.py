"""One measured benchmark as a record: run it, write it down, read it again.

NAME.answers   every answer verbatim, as the run goes on (a journal); given the same folder again, only what has none is asked
NAME.jsonl     one line per question when it is over: what was sent, what came back, what was read in it, its score and why
NAME.json      the figures, with everything that tells whether two results may be compared
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vistune import __version__
from vistune.chat_model import ChatModel
from vistune.errors import DataError, EvaluationIncomplete, ResumeMismatch, UsageError, VistuneError
from vistune.eval.benchmark import Benchmark, Metric
from vistune.eval.blind import BlindChatModel
from vistune.eval.intervals import cluster_of, with_intervals
from vistune.eval.judge import Agreement, Judge, Verdict, agreement, try_out, verdicts
from vistune.eval.runner import Prediction, Progress, grade, predict, questions_digest, unanswered
from vistune.eval.samples import Sample, read_samples, write_samples
from vistune.journal import atomic_write
from vistune.types import Graded, Question, SamplingParams

MOST_UNSCORED = 0.02
"""The share of questions that may go without a score before a run counts as failed."""


@dataclass(frozen=True)
class BenchmarkResult:
    """A model's figures on a benchmark with everything needed to tell whether two results may be compared."""

    benchmark: str
    version: str
    protocol: str
    scorer: str
    model: str
    checkpoint: str
    """Digest of the model's folder, or the address of its server."""
    blind: bool
    partial: bool
    """Other questions were asked than there officially are: fewer (`--limit`), or those of another folder."""
    questions: str
    """Digest of what was asked: texts, pictures, accepted answers."""
    params: SamplingParams
    arithmetic: str
    """Number format, and whether answers depend on their company; empty where it is not known."""
    judge: str
    """Whose the scores are; empty where a rule gives them."""
    agreement: Agreement | None
    """With a second judge, where there was one."""
    metrics: tuple[Metric, ...]
    """One of them the headline; none where nothing could be scored."""
    bounds: tuple[float, float] | None
    """The headline if all unscored answers were as bad, and as good, as can be; None if there are none, or no official value for that."""
    n: int
    n_unscored: int
    n_pictures: int
    """Groups of questions that share no picture: what the intervals rest on."""
    seconds: float | None
    """None where some answers are from an earlier run."""
    samples: str
    """Name of the file with every sample, in the result's folder."""
    data: str
    """The data folder; empty where the questions come with vistune."""
    revision: str
    """The commit of vistune's source, where it runs from a checkout."""
    vistune: str = __version__

    @property
    def headline(self) -> Metric | None:
        return next((metric for metric in self.metrics if metric.headline), None)

    def metric(self, name: str) -> float:
        """The value of a metric. Raises KeyError where it has none."""
        return {metric.name: metric.value for metric in self.metrics}[name]


async def evaluate(
    model: ChatModel, benchmark: Benchmark, folder: Path, *, model_name: str, checkpoint: str = "", arithmetic: str = "",
    data: Path | None = None, protocol: str = "", judges: Sequence[Judge] = (), blind: bool = False, limit: int | None = None,
    concurrency: int = 16, most_unscored: float = MOST_UNSCORED, progress: Progress | None = None,
    on_result: Callable[[BenchmarkResult], None] | None = None,
) -> tuple[BenchmarkResult, list[Graded]]:  # fmt: skip
    """Asks a benchmark's questions, scores the answers, and writes the three files of this module into `folder`.

    Args:
        checkpoint: the model's digest; answers of another checkpoint in the folder, or of another `arithmetic`, are refused.
        data: the folder that holds the benchmark's own folder of official files.
        protocol: how to ask and score; the benchmark's first unless said otherwise.
        judges: whoever scores a benchmark that wants a judge; a second one is compared with the first.
        blind: shows grey pictures instead of the benchmark's.
        limit: only the first so many questions; such a result has names of its own, and is marked partial.
        on_result: gets the result before any complaint about it.

    Raises:
        EvaluationIncomplete: a judge failed its canaries, or more than the share `most_unscored` has no score (all files are written).
        What `runner.predict` and `Benchmark.questions` raise.
    """
    protocol = benchmark.protocol(protocol).id
    if bool(benchmark.judge) != bool(judges) or len(judges) > 2:
        wanted = "is scored by a judge; name one, or two to compare them" if benchmark.judge else "is scored by a rule; leave the judge out"
        raise UsageError(f"{benchmark.name} {wanted}.")
    everything = benchmark.questions(data, protocol)
    questions = everything[:limit]
    asked = file_name(benchmark, protocol, blind=blind, limit=limit)
    name = ".".join([asked, *(f"by-{_as_file_name(judge.name)}" for judge in judges[:1])])
    answers = folder / f"{asked}.answers"
    if (folder / f"{asked}.jsonl").exists() and not answers.exists():
        raise ResumeMismatch(f"{folder / asked}.jsonl is there but {answers.name}, which it is made from, is not; move it away.")
    resumed, started = answers.exists(), time.perf_counter()
    predictions = await predict(
        BlindChatModel(model) if blind else model,
        benchmark,
        questions,
        answers,
        model_name=" ".join(filter(None, [model_name, checkpoint, arithmetic, "blind" if blind else ""])),
        protocol=protocol,
        concurrency=concurrency,
        progress=progress,
    )
    found = [await _judged(benchmark, judge, questions, predictions, protocol, progress) for judge in judges]
    graded = _with_scores(questions, predictions, found[0]) if found else grade(benchmark, questions, predictions, protocol)
    metrics, bounds = _figures(benchmark, graded, protocol)
    result = BenchmarkResult(
        benchmark=benchmark.name,
        version=benchmark.version,
        protocol=protocol,
        scorer=benchmark.scorer,
        model=model_name,
        checkpoint=checkpoint,
        blind=blind,
        partial=len(questions) != benchmark.sizes.get(protocol, len(everything)),
        questions=questions_digest(questions),
        params=benchmark.params,
        arithmetic=arithmetic,
        judge=judges[0].name if judges else "",
        agreement=_agreement(judges, found),
        metrics=metrics,
        bounds=bounds,
        n=len(graded),
        n_unscored=sum(item.score.value is None for item in graded),
        n_pictures=len({cluster_of(question) for question in questions}),
        seconds=None if resumed else round(time.perf_counter() - started, 2),
        samples=f"{name}.jsonl",
        data=str(data.resolve()) if data and benchmark.needs_data else "",
        revision=revision(),
    )
    write_samples(folder / result.samples, graded, found)
    atomic_write(folder / f"{name}.json", (json.dumps(dataclasses.asdict(result), indent=1, ensure_ascii=False) + "\n").encode())
    if on_result:
        on_result(result)
    _require_scores(result, graded, most_unscored)
    return result, graded


def file_name(benchmark: Benchmark, protocol: str, *, blind: bool, limit: int | None) -> str:
    """What the files of a run are called: each way of asking has files of its own."""
    parts = [benchmark.name]
    if protocol != benchmark.protocols[0].id:
        parts.append(protocol)
    if blind:
        parts.append("blind")
    if limit:
        parts.append(f"first-{limit}")
    return ".".join(map(_as_file_name, parts))


def _as_file_name(text: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in text)


async def _judged(
    benchmark: Benchmark, judge: Judge, questions: Sequence[Question], predictions: Mapping[str, Prediction], protocol: str,
    progress: Progress | None,
) -> dict[str, Verdict]:  # fmt: skip
    """A verdict on every reply that there is, by question id, of a judge that has passed its canaries."""
    rules = benchmark.judge
    assert rules is not None
    if rules.canaries:
        await try_out(judge, rules, questions, protocol)
    answered = [(question, reply) for question in questions if (reply := predictions[question.id].reply) is not None]
    found = await verdicts(judge, rules, answered, protocol, progress)
    return {question.id: each for (question, _), each in zip(answered, found, strict=True)}


def _with_scores(questions: Sequence[Question], predictions: Mapping[str, Prediction], found: Mapping[str, Verdict]) -> list[Graded]:
    graded = []
    for question in questions:
        prediction = predictions[question.id]
        if prediction.reply is None:
            graded.append(unanswered(question, prediction))
        else:
            graded.append(Graded(question, prediction.reply, found[question.id].score))
    return graded


def _agreement(judges: Sequence[Judge], found: Sequence[Mapping[str, Verdict]]) -> Agreement | None:
    if len(judges) < 2:
        return None
    first, second = ([verdict.score for _, verdict in sorted(each.items())] for each in found)
    return agreement((judges[0].name, judges[1].name), first, second)


def _figures(benchmark: Benchmark, graded: Sequence[Graded], protocol: str) -> tuple[tuple[Metric, ...], tuple[float, float] | None]:
    """The official metrics over the scored answers with their intervals, and the bounds of the headline."""

    def summarise(items: Sequence[Graded]) -> tuple[Metric, ...]:
        return benchmark.summarise(items, protocol) if items else ()

    scored = [item for item in graded if item.score.value is not None]
    metrics = summarise(scored)
    headlines = [metric for metric in metrics if metric.headline]
    if scored and len(headlines) != 1:
        raise DataError(f"The summary of {benchmark.name} has {len(headlines)} headlines; it must have one.")
    bounds = _bounds(benchmark, graded, summarise) if len(scored) < len(graded) else None
    return (with_intervals(metrics, scored, summarise) if benchmark.intervals else metrics), bounds


def _bounds(
    benchmark: Benchmark, graded: Sequence[Graded], summarise: Callable[[Sequence[Graded]], tuple[Metric, ...]]
) -> tuple[float, float] | None:
    values = []
    for side in (0, 1):
        filled = [
            item if item.score.value is not None else dataclasses.replace(item, score=benchmark.extremes(item.question)[side])
            for item in graded
        ]
        try:
            values.append(next(metric.value for metric in summarise(filled) if metric.headline))
        except VistuneError:
            return None
    return min(values), max(values)


def _require_scores(result: BenchmarkResult, graded: Sequence[Graded], most_unscored: float) -> None:
    if result.n_unscored <= most_unscored * result.n and result.n_unscored < result.n:
        return
    first = next(item.score.note for item in graded if item.score.value is None)
    kept = f"; what {result.judge} has said stays, though it could not be read" if result.judge else ""
    raise EvaluationIncomplete(
        f"{result.n_unscored} of {result.n} questions of {result.benchmark} have no score (at most {most_unscored:.0%} may be missing); "
        f"the first: {first} Run again to send requests anew that failed{kept}."
    )


def revision() -> str:
    """The commit that is checked out around this file, read without git; empty for an installed package."""
    git = Path(__file__).resolve().parents[3] / ".git"
    try:
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref: "):
            return head
        name = head.removeprefix("ref: ")
        if (git / name).is_file():
            return (git / name).read_text(encoding="utf-8").strip()
        packed = (git / "packed-refs").read_text(encoding="utf-8").splitlines()
        return next((line.split()[0] for line in packed if line.endswith(f" {name}")), "")
    except OSError:
        return ""


def read_result(path: Path) -> tuple[BenchmarkResult, list[Sample]]:
    """A written result and its samples. Raises DataError for anything else."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        record["metrics"] = tuple(Metric(**{**each, "interval": _pair(each["interval"])}) for each in record["metrics"])
        record["params"] = _sampling_params(record["params"])
        record["bounds"] = _pair(record["bounds"])
        if record["agreement"]:
            record["agreement"] = Agreement(**{**record["agreement"], "judges": _pair(record["agreement"]["judges"])})
        result = BenchmarkResult(**record)
        return result, read_samples(path.parent / Path(result.samples).name)
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read ({error.strerror}); give a NAME.json that vistune eval wrote.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is no result of vistune eval with its samples beside it ({type(error).__name__}: {error}).") from error


def _sampling_params(record: Mapping[str, Any]) -> SamplingParams:
    """As they were written; results from before `response_schema` have `response_format` in its place, always null."""
    fields = {name: value for name, value in record.items() if name != "response_format"}
    bias = tuple((token, added) for token, added in fields.get("logit_bias", ()))
    return SamplingParams(**fields | {"stop": tuple(fields["stop"]), "logit_bias": bias})


def _pair(value: Any) -> Any:
    return None if value is None else tuple(value)
