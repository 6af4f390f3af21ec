"""How good an assistant is: scenes-v1 and easy-VQA beside a blind-trained twin and the question-only majority, and its own words.

    python benchmarks/assistant.py [--model FOLDER] [--blind-model FOLDER] [--training FILE] [--limit N]

`--blind-model` is an assistant trained with grey pictures (`tools/train_assistant.py --blind`); it is asked with grey pictures too.
`--training` is the LLaVA JSON that the assistant was trained on: chance is the most frequent answer that it has to a question. What was not
measured is null. Answers are kept in --work, so a run that was stopped goes on; the result is benchmarks/results/assistant.json, or with
--limit a file in --work.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import importlib.metadata
import json
import platform
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from vistune import __version__
from vistune.checkpoint.files import folder_digest
from vistune.checkpoint.folder import load_model, load_untuned
from vistune.doctor import describe_machine
from vistune.engine.engine import Engine, best_dtype
from vistune.errors import CheckpointError
from vistune.eval.benchmark import Benchmark, BenchmarkReport, majority_replies, report
from vistune.eval.benchmarks import BENCHMARKS
from vistune.eval.benchmarks.scenes_v1 import DIGEST
from vistune.eval.benchmarks.text_only import side_by_side
from vistune.eval.results import BenchmarkResult, evaluate
from vistune.eval.tables import counting
from vistune.formats import read_examples
from vistune.journal import atomic_write
from vistune.pull import pull
from vistune.types import Graded, Reply

RESULT = Path(__file__).resolve().parent / "results" / "assistant.json"
SUITES = ("scenes-v1", "easy-vqa")
MEANS = ("overall", "every question")
EACH = 5
"""How many right and how many wrong answers are shown."""

Figures = dict[tuple[str, str], tuple[float, int]]
"""(group, kind) → exact match and number of questions; "overall" is the mean over kinds, "every question" the one over questions."""


def figures_of(result: BenchmarkReport) -> Figures:
    """Every figure of a result. Kinds without a scored question have none."""
    figures: Figures = {(kind.group, kind.kind): (kind.value, kind.n) for kind in result.kinds if kind.n}
    for group, overall in {"": result.overall, **result.by_group}.items():
        figures[group, "overall"] = (overall, sum(kind.n for kind in result.kinds if kind.group == group))
    figures["", "every question"] = (result.micro, result.n - result.n_unscored)
    return figures


def rows_of(suite: str, model: Figures, blind: Figures | None, chance: Figures | None) -> list[dict[str, Any]]:
    """One row per group and kind, overall rows first; null where nothing was measured."""

    def value(figures: Figures | None, key: tuple[str, str]) -> float | None:
        return None if figures is None or key not in figures else round(figures[key][0], 4)

    keys = sorted(model, key=lambda key: (key[0], key[1] not in MEANS, key[1]))
    return [
        {
            "suite": suite,
            "kind": kind,
            "group": group or "all",
            "n": model[group, kind][1],
            "exact_match": value(model, (group, kind)),
            "blind": value(blind, (group, kind)),
            "chance": value(chance, (group, kind)),
        }
        for group, kind in keys
    ]


def training_pairs(file: Path) -> Iterator[tuple[str, str]]:
    """(question, answer) for every turn of the training conversations about a picture."""
    for example in read_examples(file, file.parent):
        if not example.conversation.images:
            continue
        question = ""
        for message in example.conversation.messages:
            if message.role == "user":
                question = message.text.strip()
            elif message.role == "assistant":
                yield question, message.text


def chance_figures(benchmark: Benchmark, limit: int | None, pairs: Sequence[tuple[str, str]]) -> Figures:
    """What the question-only majority scores."""
    questions = list(benchmark.questions())[:limit]
    replies = majority_replies(questions, pairs)
    graded = []
    for question in questions:
        reply = Reply(replies[question.id], "stop")
        graded.append(Graded(question, reply, benchmark.score(question, reply, "")))
    return figures_of(report(benchmark.name, graded))


def sample_answers(graded: Sequence[Graded]) -> dict[str, list[dict[str, Any]]]:
    """Answers verbatim: right and wrong ones drawn by lot (the same on every run), taking the kinds in turn."""
    lots = list(graded)
    random.Random("answers").shuffle(lots)
    sample = {}
    for title, wanted in (("right", 1.0), ("wrong", 0.0)):
        by_kind: dict[str, list[Graded]] = defaultdict(list)
        for item in lots:
            if item.score.value == wanted:
                by_kind[item.question.category].append(item)
        in_turn = sorted((place, kind) for kind, items in by_kind.items() for place in range(len(items)))
        sample[title] = [as_shown(by_kind[kind][place]) for place, kind in in_turn[:EACH]]
    return sample


def as_shown(item: Graded) -> dict[str, Any]:
    question = item.question
    text = question.conversation.messages[-1].text.strip()
    return {"id": question.id, "question": text, "answer": item.reply.text, "accepted": list(question.answers)}


def measure(name: str, options: argparse.Namespace, *, blind: bool = False) -> dict[str, tuple[BenchmarkResult, list[Graded]]]:
    """A model's results and graded answers on every suite."""
    folder = pull(name)
    digest = folder_digest(folder)
    results = {}
    with Engine(*load_model(folder, dtype=precision(options)), deterministic=not options.fast) as engine:
        for suite in options.suites:
            with counting(f"{suite}{' (blind)' if blind else ''}") as progress:
                measuring = evaluate(
                    engine,
                    BENCHMARKS[suite],
                    options.work / digest[:12],
                    model_name=name,
                    checkpoint=digest,
                    arithmetic=engine.arithmetic,
                    blind=blind,
                    limit=options.limit,
                    progress=progress,
                )
                results[suite] = asyncio.run(measuring)
    return results


def text_answers(name: str, options: argparse.Namespace) -> list[dict[str, str]] | None:
    """The twenty prompts answered by the base and by the tuned model; None for a folder that does not name its base."""
    folder = pull(name)
    try:
        untuned = load_untuned(folder, dtype=precision(options))
    except CheckpointError as error:
        print(f"No text-only comparison: {error}")
        return None
    with Engine(*untuned) as base, Engine(*load_model(folder, dtype=precision(options))) as tuned:
        return [dataclasses.asdict(row) for row in asyncio.run(side_by_side(base, tuned))]


def precision(options: argparse.Namespace) -> torch.dtype:
    return best_dtype("cpu") if options.dtype == "auto" else getattr(torch, options.dtype)


def about(options: argparse.Namespace, results: dict[str, tuple[BenchmarkResult, list[Graded]]]) -> dict[str, Any]:
    """What was measured, with what, where, and how long it took."""
    machine = describe_machine(ask_torch=False)
    packages = ("torch", "transformers", "peft", "pillow", "easy-vqa")
    return {
        "model": options.model,
        "model_digest": folder_digest(pull(options.model)),
        "blind_model_digest": folder_digest(pull(options.blind_model)) if options.blind_model else None,
        "scenes_v1_digest": DIGEST,
        "questions": {suite: result.questions for suite, (result, _) in results.items()},
        "limit": options.limit,
        "seconds": {suite: result.seconds for suite, (result, _) in results.items()},
        "n_unscored": {suite: result.n_unscored for suite, (result, _) in results.items()},
        "device": f"{machine.cpu}, {machine.cores} cores, {torch.get_num_threads()} threads",
        "arithmetic": next(result.arithmetic for result, _ in results.values()),
        "versions": {"vistune": __version__, "python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in packages},
    }


def print_rows(rows: Sequence[dict[str, Any]]) -> None:
    def cell(value: Any) -> str:
        return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)

    heads = ("suite", "group", "kind", "n", "exact_match", "blind", "chance")
    widths = (11, 28, 16, 6, 12, 7, 7)
    for row in (dict(zip(heads, heads, strict=True)), *rows):
        print("".join(cell(row[head]).ljust(width) for head, width in zip(heads, widths, strict=True)).rstrip())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="assistant", help="a folder, or a name that `vistune pull` knows")
    parser.add_argument("--blind-model")
    parser.add_argument("--training", type=Path)
    parser.add_argument("--limit", type=int, help="only the first so many questions of each suite")
    parser.add_argument("--suites", nargs="+", default=list(SUITES), choices=SUITES)
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--fast", action="store_true", help="answers may differ by their company")
    parser.add_argument("--work", type=Path, default=Path("runs/eval"), help="folder that keeps every answer")
    parser.add_argument("--out", type=Path, help="the result's file")
    options = parser.parse_args()
    out = options.out or (options.work / f"assistant.first-{options.limit}.json" if options.limit else RESULT)
    pairs = list(training_pairs(options.training)) if options.training else None
    results = measure(options.model, options)
    blind = measure(options.blind_model, options, blind=True) if options.blind_model else None
    rows = []
    for suite, (_, graded) in results.items():
        chance = chance_figures(BENCHMARKS[suite], options.limit, pairs) if pairs else None
        rows += rows_of(suite, figures_of(report(suite, graded)), figures_of(report(suite, blind[suite][1])) if blind else None, chance)
    print_rows(rows)
    written = {
        "meta": about(options, results),
        "rows": rows,
        "answers": {suite: sample_answers(graded) for suite, (_, graded) in results.items()},
        "text_only": text_answers(options.model, options),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(out, (json.dumps(written, indent=1, ensure_ascii=False) + "\n").encode())


if __name__ == "__main__":
    main()
