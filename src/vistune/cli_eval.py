"""`vistune eval`: measure a model on benchmarks, look through a data folder first, compare two results afterwards.

The options of a run are those of one verb, `run`, which is what `vistune eval` means unless `check` or `compare` follows.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from vistune import cli_model
from vistune.cli_model import BaseOption, Device, DeviceOption, DType, DTypeOption, TemplateOption, TowerOption, Weights, WeightsOption
from vistune.errors import EvaluationIncomplete, UsageError

if TYPE_CHECKING:
    from vistune.calls import Price
    from vistune.chat_model import ChatModel
    from vistune.eval.benchmark import Benchmark
    from vistune.eval.judge import Judge
    from vistune.eval.results import BenchmarkResult

TEXT_ONLY = "text-only"


class _RunUnlessSaid(TyperGroup):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args if args and args[0] in self.commands else ["run", *args])


eval_app = typer.Typer(
    cls=_RunUnlessSaid, help="Measure a model on benchmarks (run), check a data folder first, compare two results.", rich_markup_mode=None
)

DataOption = Annotated[Path | None, typer.Option(help="Folder that holds a folder of official files for each benchmark.")]


@eval_app.command()
def run(
    model: Annotated[str | None, typer.Argument(help="`assistant`, a folder or adapter, a hub name, or a server's address.")] = None,
    benchmarks: Annotated[str | None, typer.Option("--benchmarks", "-b", help="Names by commas; a .jsonl file is one of your own.")] = None,
    option_model: Annotated[str | None, typer.Option("--model", "-m", help="The model, where the benchmarks stand in its place.")] = None,
    data: DataOption = None,
    protocol: Annotated[list[str] | None, typer.Option(metavar="NAME=ID", help="How to ask and score one; default: its first.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for answers and results, resumed; default: one per model in runs/eval.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Ask only the first so many questions; the result is marked partial.")] = None,
    blind: Annotated[bool, typer.Option("--blind", help="Show grey pictures: what the questions alone give away.")] = False,
    concurrency: Annotated[int, typer.Option(min=1, help="Questions under way at once.")] = 16,
    deterministic: Annotated[bool, typer.Option("--deterministic/--fast", help="fast: answers may differ by their company.")] = True,
    model_name: Annotated[str | None, typer.Option(help="What the model is called at the server's address.")] = None,
    key_from: Annotated[str | None, typer.Option(metavar="VARIABLE", help="Environment variable with the server's key.")] = None,
    judge: Annotated[list[str] | None, typer.Option(metavar="MODEL[@ADDRESS]", help="Who scores free text; twice compares two.")] = None,
    judge_key_from: Annotated[str | None, typer.Option(metavar="VARIABLE", help="Environment variable with the judge's key.")] = None,
    judge_cap: Annotated[float | None, typer.Option(help="Stop before a judge costs more than this; needs its prices.")] = None,
    judge_price_in: Annotated[float | None, typer.Option(min=0, help="Money per million tokens that the judge reads.")] = None,
    judge_price_out: Annotated[float | None, typer.Option(min=0, help="Money per million tokens that it writes.")] = None,
    list_all: Annotated[
        bool, typer.Option("--list", help="List the benchmarks: where their data is from, its place, how they are scored.")
    ] = False,
    base: BaseOption = None,
    vision_tower: TowerOption = None,
    template: TemplateOption = None,
    dtype: DTypeOption = "auto",
    weights: WeightsOption = "full",
    device: DeviceOption = "auto",
) -> None:
    """Measure a model on benchmarks; every answer is kept, and the same command goes on where it stopped.

    vistune eval MODEL --benchmarks scenes-v1,pope --data ROOT measures MODEL; vistune eval scenes-v1 measures the bundled assistant.
    See also: vistune eval check --help, vistune eval compare --help.
    """
    from vistune.calls import Price

    if list_all:
        return typer.echo(listing())
    if benchmarks is None:  # the short form: what is measured is --model's
        model, benchmarks = option_model or "assistant", model
    elif model and option_model:
        raise UsageError(f"Which model, {model} or {option_model}? Leave one out.")
    model = model or option_model or "assistant"
    if benchmarks is None:
        raise UsageError("Which benchmarks? Name them with --benchmarks; vistune eval --list says what there is.")
    names = [name.strip() for name in benchmarks.split(",") if name.strip()]
    if names == [TEXT_ONLY]:
        if blind or limit or weights != "full":
            raise UsageError(f"{TEXT_ONLY} shows no pictures and is twenty prompts; leave --blind, --limit and --weights out.")
        return _text_only(model, out, dtype, device)
    if (judge_price_in is None) != (judge_price_out is None):
        raise UsageError("Both prices are needed, --judge-price-in and --judge-price-out, or neither.")
    chosen = [_benchmark(name) for name in names]
    protocols = _protocols(chosen, protocol or [])
    _require_model(model, model_name, key_from)
    for each in chosen:
        _require_ready(each, judge or [], data, protocols[each.name])
    with ExitStack() as opened:
        options = _ModelOptions(deterministic, dtype, weights, device, base, vision_tower, template, model_name, key_from, concurrency)
        measured = opened.enter_context(_measured(model, options, out))
        price = Price(judge_price_in, judge_price_out) if judge_price_in is not None and judge_price_out is not None else None
        judges = [
            opened.enter_context(_judge(each, measured.folder, options, key=judge_key_from, price=price, cap=judge_cap))
            for each in judge or []
        ]
        asyncio.run(_measure_all(chosen, measured, judges, protocols, data=data, limit=limit, blind=blind, concurrency=concurrency))


def _benchmark(name: str) -> Benchmark:
    from vistune.eval.benchmarks import benchmark_named
    from vistune.eval.own import own_benchmark

    if name.endswith(".jsonl"):
        return own_benchmark(Path(name))
    if Path(name).is_dir():
        raise UsageError(
            f"{name} is a folder, and a benchmark's name is wanted; to measure a model: vistune eval {name} --benchmarks NAME."
        )
    return benchmark_named(name)


def _protocols(chosen: Sequence[Benchmark], assignments: Sequence[str]) -> dict[str, str]:
    """Benchmark name → protocol id, which is checked before anything is loaded."""
    named = {benchmark.name: benchmark for benchmark in chosen}
    ids = {name: benchmark.protocol().id for name, benchmark in named.items()}
    for assignment in assignments:
        name, equals, id = assignment.partition("=")
        if not equals or name not in named:
            raise UsageError(f"--protocol {assignment}: write --protocol NAME=ID with one of {', '.join(named)}.")
        ids[name] = named[name].protocol(id).id
    return ids


def _require_model(name: str, model_name: str | None, key_from: str | None) -> None:
    """Says what is wrong with the model's name, and fetches what it stands for, before questions are read."""
    from vistune.pull import pull

    if "://" not in name:
        if model_name or key_from:
            raise UsageError(f"{name} is no address; --model-name and --key-from are for models of a server.")
        pull(name)
    elif not model_name:
        raise UsageError(f"What is the model called at {name}? Give --model-name.")


def _require_ready(benchmark: Benchmark, judges: Sequence[str], data: Path | None, protocol: str) -> None:
    """Says what is missing before a model is loaded, and before other benchmarks have run for hours."""
    if benchmark.judge and not judges:
        raise UsageError(f"{benchmark.name} is scored by a judge; name one with --judge MODEL or --judge MODEL@ADDRESS.")
    if len(judges) > 2:
        raise UsageError("One judge scores, and a second one is compared with it; leave the others out.")
    benchmark.questions(data, protocol)


# --- models and judges --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ModelOptions:
    deterministic: bool
    dtype: DType
    weights: Weights
    device: Device
    base: str | None
    vision_tower: str | None
    template: str | None
    model_name: str | None
    key_from: str | None
    concurrency: int


@dataclass(frozen=True)
class _Measured:
    """A model that is about to be measured: what it is called, what tells it from others, and where its results go."""

    model: ChatModel
    name: str
    checkpoint: str
    arithmetic: str
    folder: Path


@contextmanager
def _measured(name: str, options: _ModelOptions, out: Path | None) -> Iterator[_Measured]:
    if options.model_name:
        folder = out or _results_folder(options.model_name, hashlib.sha256(name.encode()).hexdigest())
        with _server(options.model_name, name, folder / "model.calls", key_from=options.key_from, concurrency=options.concurrency) as calls:
            yield _Measured(calls, options.model_name, name, "", folder)
        return
    from vistune.checkpoint.files import folder_digest
    from vistune.pull import pull

    checkpoint = folder_digest(pull(name))
    # Deterministic by default, so that an answer depends on its question alone, and a score on nothing but the model.
    with cli_model.loaded_model(
        name, options.dtype, options.device, deterministic=options.deterministic, base=options.base, vision_tower=options.vision_tower,
        template=options.template, weights=options.weights,
    ) as engine:  # fmt: skip
        yield _Measured(engine, name, checkpoint, engine.arithmetic, out or _results_folder(name, checkpoint, options.weights))


@contextmanager
def _server(
    name: str,
    address: str | None,
    log: Path,
    *,
    key_from: str | None,
    concurrency: int = 8,
    price: Price | None = None,
    cap: float | None = None,
) -> Iterator[Any]:
    """A model behind an address, with retries and a log of what was answered."""
    from vistune.calls import CallLimits, Calls
    from vistune.chat_model import OpenAIChatModel

    if key_from and not os.environ.get(key_from):
        raise UsageError(f"The environment variable {key_from} is not set; it should hold the key.")
    remote = OpenAIChatModel(name, base_url=address, api_key=os.environ[key_from] if key_from else None)
    log.parent.mkdir(parents=True, exist_ok=True)
    # Somebody waits at a terminal, and a run can be repeated: two minutes without any answer are enough.
    limits = CallLimits(concurrency, patience=120.0)
    with Calls(remote, name=name, version=remote.address, log=log, limits=limits, price=price, cap=cap) as calls:
        yield calls


@contextmanager
def _judge(spec: str, folder: Path, options: _ModelOptions, *, key: str | None, price: Price | None, cap: float | None) -> Iterator[Judge]:
    """`NAME@ADDRESS` at a server, a folder or `assistant` on this machine, or any other name at OpenAI (or OPENAI_BASE_URL)."""
    from vistune.calls import CallLimits, Calls
    from vistune.checkpoint.files import folder_digest
    from vistune.eval.judge import Judge
    from vistune.pull import pull

    name, _, address = (spec, "", "") if Path(spec).is_dir() else spec.partition("@")
    log = folder / f"judge-{hashlib.sha256(spec.encode()).hexdigest()[:8]}.calls"
    if address or not (name == "assistant" or Path(name).is_dir()):
        with _server(name, address or None, log, key_from=key, price=price, cap=cap) as calls:
            yield Judge(name, calls)
        return
    folder.mkdir(parents=True, exist_ok=True)
    with cli_model.loaded_model(name, options.dtype, options.device, deterministic=True) as engine:
        version = f"{folder_digest(pull(name))} {engine.arithmetic}"
        with Calls(engine, name=name, version=version, log=log, limits=CallLimits(options.concurrency), price=price, cap=cap) as calls:
            yield Judge(Path(name).name, calls)


def _results_folder(model: str, checkpoint: str, weights: Weights = "full") -> Path:
    """Where a model's results go unless --out says so: a model that was trained again has another digest, and another folder."""
    return Path("runs/eval") / "-".join([Path(model).name, checkpoint[:8], *([] if weights == "full" else [weights])])


# --- the run ------------------------------------------------------------------------------------------------------------------------------


async def _measure_all(
    chosen: Sequence[Benchmark], measured: _Measured, judges: Sequence[Judge], protocols: dict[str, str], *, data: Path | None,
    limit: int | None, blind: bool, concurrency: int,
) -> None:  # fmt: skip
    """One benchmark after the other. One that stays incomplete is printed, and complained of when the others are done."""
    from rich.console import Console

    from vistune.eval.results import evaluate
    from vistune.eval.tables import counting, table

    complaint: EvaluationIncomplete | None = None
    for benchmark in chosen:
        results: list[BenchmarkResult] = []
        try:
            with counting(benchmark.name) as progress:
                await evaluate(
                    measured.model, benchmark, measured.folder, model_name=measured.name, checkpoint=measured.checkpoint,
                    arithmetic=measured.arithmetic, data=data, protocol=protocols[benchmark.name], judges=judges if benchmark.judge else (),
                    blind=blind, limit=limit, concurrency=concurrency, progress=progress, on_result=results.append,
                )  # fmt: skip
        except EvaluationIncomplete as error:
            complaint = complaint or error
        for result in results:
            Console().print(table(result))
    if complaint:
        raise complaint


def _text_only(model: str, out: Path | None, dtype: DType, device: Device) -> None:
    """Writes the tuned model's and its base's answers to the text-only prompts side by side."""
    from vistune.checkpoint.files import folder_digest
    from vistune.eval.benchmarks.text_only import side_by_side, side_by_side_markdown
    from vistune.journal import atomic_write
    from vistune.pull import pull

    out = out or _results_folder(model, folder_digest(pull(model)))
    with cli_model.loaded_model(model, dtype, device, untuned=True) as base, cli_model.loaded_model(model, dtype, device) as tuned:
        rows = asyncio.run(side_by_side(base, tuned))
    text = side_by_side_markdown(rows, tuned_name=model)
    out.mkdir(parents=True, exist_ok=True)
    atomic_write(out / "text-only.md", text.encode())
    typer.echo(text)


# --- before and after ---------------------------------------------------------------------------------------------------------------------


@eval_app.command()
def check(
    benchmark: Annotated[str, typer.Argument(help="A benchmark's name, or a .jsonl file of your own.")],
    data: DataOption = None,
    protocol: Annotated[str, typer.Option(help="Only this one; default: all of them.")] = "",
) -> None:
    """Look through a benchmark's data folder before hours of running: every record, every picture."""
    from vistune.eval.check import check as look_through
    from vistune.eval.check import in_words, require_no_problem
    from vistune.eval.tables import counting

    chosen = _benchmark(benchmark)
    with counting(chosen.name) as progress:
        found = look_through(chosen, data, protocol, progress=progress)
    typer.echo(in_words(chosen.name, found))
    require_no_problem(chosen.name, found)


@eval_app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="A folder of results, or one NAME.json.")],
    b: Annotated[Path, typer.Argument(help="Another one, of another model.")],
    page: Annotated[Path | None, typer.Option("--html", help="Write the questions on which they differ, with the pictures.")] = None,
    data: DataOption = None,
    own: Annotated[Path | None, typer.Option(help="The .jsonl file, where the benchmark is one of your own.")] = None,
) -> None:
    """Say whether one of two models is better on the same questions, and where they differ."""
    from vistune.eval import compare as comparing
    from vistune.journal import atomic_write

    pairs = comparing.result_files(a, b)
    if page and len(pairs) > 1:
        raise UsageError(f"{len(pairs)} results can be compared, and a page shows one; give two NAME.json.")
    for one, other in pairs:
        found = comparing.compare(one, other)
        typer.echo(comparing.in_words(found))
        if page:
            benchmark = _benchmark(str(own) if own else found.a.benchmark)
            text = comparing.page(found, comparing.questions_of(found, benchmark, data))
            atomic_write(page, text.encode("utf-8", "replace"))
            typer.echo(page)


def listing() -> str:
    """All benchmarks with what is to be known before one is run."""
    from vistune.eval.benchmarks import BENCHMARKS

    texts = []
    for name, benchmark in BENCHMARKS.items():
        about = benchmark.about
        lines = [
            f"{name}: {about.title}",
            f"metric   {about.metric}{' (by a judge)' if benchmark.judge else ''}",
            f"data     {about.source}",
        ]
        lines += [f"licence  {about.licence}", *(f"file     ROOT/{name}/{line}" for line in about.layout.splitlines())]
        lines += [f"protocol {protocol.id}: {protocol.about}" for protocol in benchmark.protocols]
        texts.append("\n    ".join(lines))
    return "\n".join([*texts, f"{TEXT_ONLY}: twenty prompts without a picture, a tuned model beside its base; not scored"])
