"""The verbs of `vistune data`: a part of `cli.py`, by the same rules; it wires the data room to models and benchmarks."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vistune.errors import DataError, UsageError

if TYPE_CHECKING:
    from vistune.data.overlap import EvaluationItem
    from vistune.types import InstructionExample

data_app = typer.Typer(help="Make, check, convert, look at and mix instruction data.", no_args_is_help=True, rich_markup_mode=None)

FormatName = Literal["llava", "messages", "sharegpt"]
PicturePolicy = Literal["auto", "embed", "paths"]

FileArgument = Annotated[Path, typer.Argument(help="LLaVA JSON, messages or ShareGPT, as .json, .jsonl or .parquet.")]
ImagesOption = Annotated[Path | None, typer.Option(help="Folder that the rows' picture names start from; default: the file's own.")]
SeedOption = Annotated[int, typer.Option(help="Another seed chooses otherwise.")]
FormatOption = Annotated[FormatName | None, typer.Option("--to", help="Format to write; default: messages for .parquet, else llava.")]
LossesOption = Annotated[
    bool,
    typer.Option("--allow-losses", help="Leave out what records do not hold: an answer before the first question, more keys of turns."),
]
RejectsOption = Annotated[Path | None, typer.Option(help="Write the rows that cannot be used, with reasons, as JSON Lines.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ModelOption = Annotated[str | None, typer.Option("--model", "-m", help="Also count tokens, pictures expanded, as this model does.")]


@data_app.command("scenes")
def data_scenes(
    out: Annotated[Path, typer.Option(help="The folder to write; must not exist.")],
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="How many scenes.")] = 1000,
    seed: Annotated[int, typer.Option(help="Another seed draws other scenes.")] = 0,
    turns: Annotated[int, typer.Option(min=1, help="Questions about each scene.")] = 7,
) -> None:
    """Draw annotated scenes: pictures, boxes, captions and instructions that are true by construction."""
    from vistune.scenes.write import write_scenes

    typer.echo(write_scenes(out, count, seed=seed, turns=turns))


@data_app.command("check")
def data_check(
    file: FileArgument,
    images: ImagesOption = None,
    pictures: Annotated[Literal["decode", "header", "none"], typer.Option(help="How closely to look at pictures.")] = "decode",
    model: ModelOption = None,
    report: Annotated[Path | None, typer.Option(help="Write everything that was found as JSON.")] = None,
    rejects: RejectsOption = None,
    shown: Annotated[int, typer.Option(min=0, help="How many rejected rows, and remarks, to print.")] = 10,
    preview: Annotated[str | None, typer.Option(metavar="MODEL", help="Show what MODEL would learn from the first three rows.")] = None,
) -> None:
    """Check every row of an instruction file and every picture in it; exit code 21 if some cannot be used."""
    from vistune.data.check import check_file, rejects_file
    from vistune.data.stats import printable
    from vistune.journal import atomic_write

    root = images or file.parent
    with rejects_file(rejects) as reject:
        found = check_file(file, root, pictures=pictures, measure=_measure(model), reject=reject)
    if report is not None:
        atomic_write(report, json.dumps(found.as_json(), indent=1).encode())
    for rejection in found.rejected[:shown]:
        typer.echo(f"row {rejection.row}: {rejection.reason}: {rejection.message}")
    for remark in found.remarks[:shown]:
        typer.echo(f"remark: {printable(remark.message)}")
    if preview is not None:
        _preview(file, root, preview)
    if found.remark_counts:
        typer.echo(f"Remarks: {_counts(found.remark_counts)}.")
    if found.tokens.n:
        tokens = found.tokens
        typer.echo(f"Tokens in a row: median {tokens.at(0.5):,}, 99 of 100 rows up to {tokens.at(0.99):,}, longest {tokens.at(1):,}.")
    typer.echo(f"{found.usable} rows can be used.")
    if found.rejected:
        raise DataError(
            f"{len(found.rejected)} rows of {file} cannot be used: {_counts(found.reasons)}. Training leaves them out if told to."
        )


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())


def _measure(model: str | None) -> Callable[[InstructionExample], int] | None:
    """How many tokens a record is for a model in training, as a function; None for no model."""
    if model is None:
        return None
    from vistune.checkpoint.folder import load_model
    from vistune.pull import pull

    _, processor = load_model(pull(model))
    return lambda example: processor(example.conversation, train=True, load_pixels=False).num_tokens


def _preview(file: Path, root: Path, model: str) -> None:
    """Rows as the model reads them in training: what is supervised in green, or in ⟦brackets⟧ where there is no colour."""
    from vistune.checkpoint.folder import load_model
    from vistune.data.pictures import absolute_folder
    from vistune.data.view import select_rows
    from vistune.pull import pull

    _, processor = load_model(pull(model))
    for row in select_rows(file, absolute_folder(root), count=3):
        if row.example is not None:
            inputs = processor(row.example.conversation, train=True, load_pixels=False)
            shown = processor.masked_preview(inputs, colour=sys.stdout.isatty())
            typer.echo(f"--- {row.example.id}: {inputs.num_tokens} tokens\n{shown}\n")


@data_app.command("stats")
def data_stats(
    file: FileArgument,
    images: ImagesOption = None,
    sizes: Annotated[bool, typer.Option(help="Read the sizes of pictures.")] = True,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Count what is in an instruction file: rows, turns, words, pictures and their sizes, kinds, sources, licences."""
    from vistune.data.stats import dataset_stats

    found = dataset_stats(file, images or file.parent, sizes=sizes, measure=_measure(model))
    typer.echo(json.dumps(found.as_json(), indent=1, ensure_ascii=False) if as_json else found.as_text())


@data_app.command("view")
def data_view(
    file: FileArgument,
    images: ImagesOption = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="How many rows.")] = 50,
    random: Annotated[bool, typer.Option("--random", help="Random rows, not the first.")] = False,
    containing: Annotated[str | None, typer.Option(metavar="TEXT", help="Only rows that have this text somewhere.")] = None,
    out: Annotated[Path | None, typer.Option(help="The page to write; default: FILE.html beside it.")] = None,
    serve: Annotated[bool, typer.Option("--serve", help="Write no file; serve the page to this machine until Ctrl-C.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="For --serve; 0 takes a free one.")] = 0,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    seed: SeedOption = 0,
) -> None:
    """Look at rows with their pictures, on one self-contained page."""
    import webbrowser

    from vistune.data.view import ViewServer, render_view, select_rows
    from vistune.journal import atomic_write

    root = images or file.parent
    rows = select_rows(file, root, count=count, choice="random" if random else "first", seed=seed, containing=containing)
    page = "".join(render_view(rows, title=file.name, images=root)).encode()
    if not serve:
        out = out or file.with_name(f"{file.name}.html")
        atomic_write(out, page)
        typer.echo(out)
        if open_browser:
            webbrowser.open(out.absolute().as_uri())
        return
    with ViewServer(page, port) as server:
        typer.echo(f"{server.address} (Ctrl-C ends)")
        if open_browser:
            webbrowser.open(server.address)
        server.serve_forever()


@data_app.command("convert")
def data_convert(
    file: FileArgument,
    out: Annotated[Path, typer.Argument(help="The file to write: .json, .jsonl or .parquet.")],
    to: FormatOption = None,
    images: ImagesOption = None,
    out_images: Annotated[Path | None, typer.Option(help="Folder that names in OUT start from and embedded pictures are saved to.")] = None,
    pictures: Annotated[PicturePolicy, typer.Option(help="embed (Parquet only) or paths; auto embeds in Parquet.")] = "auto",
    skip: Annotated[
        bool, typer.Option("--skip-invalid", help="Leave rows out that cannot be converted; else the first one stops.")
    ] = False,
    rejects: RejectsOption = None,
    allow_losses: LossesOption = False,
) -> None:
    """Write an instruction file in another format; what that format cannot hold is refused, never changed."""
    from vistune.data.check import rejects_file
    from vistune.data.convert import convert

    with rejects_file(rejects) as reject:
        done = convert(
            file, out, images=images or file.parent, out_images=out_images, format=to, pictures=pictures,
            bad_rows="skip" if skip else "stop", losses="allow" if allow_losses else "refuse", reject=reject,
        )  # fmt: skip
    if done.pictures_saved:
        typer.echo(f"{done.pictures_saved} pictures were saved under {out_images or images or file.parent}.")
    if done.spelled_marks:
        typer.echo(f"{done.spelled_marks} rows are plain text that spells <image>; LLaMA-Factory stops at such rows.")
    if done.rejected:
        counts = Counter(rejection.reason for rejection in done.rejected)
        typer.echo(f"{len(done.rejected)} rows were left out: {_counts(counts)}. The first: {done.rejected[0].message}")
    typer.echo(f"{done.rows} rows are in {out}.")


@data_app.command("mix")
def data_mix(
    out: Annotated[Path, typer.Argument(help="The file to write: .json, .jsonl or .parquet.")],
    parts: Annotated[
        list[str] | None, typer.Argument(metavar="FILE[=HOW]...", help="HOW: all, first:N, end:N, random:N (or P%), weight:W.")
    ] = None,
    mixture: Annotated[Path | None, typer.Option("--yaml", help="Take the parts from a LLaVA-NeXT yaml file.")] = None,
    total: Annotated[
        int | None, typer.Option(min=1, help="Rows of all weighted parts together; default: as many as need no repeats.")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of all parts' pictures; default: beside each file.")] = None,
    out_images: Annotated[Path | None, typer.Option(help="Folder that names in OUT start from; default: what all have in common.")] = None,
    to: FormatOption = None,
    pictures: Annotated[PicturePolicy, typer.Option(help="embed (Parquet only) or paths; auto embeds in Parquet.")] = "auto",
    seed: SeedOption = 0,
    allow_losses: LossesOption = False,
) -> None:
    """Mix several instruction files into one, by weights or as LLaVA-NeXT's yaml files say."""
    from vistune.data.convert import rewriting
    from vistune.data.mix import common_folder, mix, parse_part, read_mixture

    if bool(parts) == bool(mixture):
        raise UsageError("Name the files to mix, or a --yaml file that names them, not both.")
    chosen = read_mixture(mixture) if mixture else [parse_part(part, images=images) for part in parts or []]
    root = common_folder(chosen)
    with rewriting(out, root, out_images=out_images, format=to, pictures=pictures) as (write, _):
        done = mix(chosen, write, total=total, seed=seed, losses="allow" if allow_losses else "refuse")
    for part in done:
        typer.echo(f"{part.taken:>9,} of {part.rows:>9,} rows of {part.part.path} ({part.part.strategy})")
    typer.echo(f"{sum(part.taken for part in done):,} rows are in {out}; picture names start from {out_images or root}.")


@data_app.command("split")
def data_split(
    file: FileArgument,
    out: Annotated[Path, typer.Argument(help="The folder to write; must not exist.")],
    parts: Annotated[str, typer.Option(help="Names and shares.")] = "train=0.9,validation=0.1",
    images: ImagesOption = None,
    same: Annotated[Literal["bytes", "pixels", "name"], typer.Option(help="What makes two pictures the same one.")] = "bytes",
    seed: SeedOption = 0,
    allow_losses: LossesOption = False,
) -> None:
    """Split an instruction file such that no picture is in two parts."""
    from vistune.data.split import parse_shares, split

    root = images or file.parent
    counts = split(
        file, out, parse_shares(parts), images=root, identity=same, seed=seed, losses="allow" if allow_losses else "refuse"
    )  # fmt: skip
    for name, count in counts.items():
        typer.echo(f"{count:>9,} rows  {out / (name + file.suffix)}")
    typer.echo(f"Picture names start from {root}.")


@data_app.command("concepts")
def data_concepts(
    file: Annotated[Path, typer.Argument(help="Captions, one a line: .tsv (first column), .jsonl (field caption), or plain text.")],
    out: Annotated[Path, typer.Option(help="The folder to write; must not exist.")],
    min_frequency: Annotated[int, typer.Option(min=1, help="Phrases in fewer captions choose none.")] = 3,
    cap: Annotated[int, typer.Option(min=1, help="Most captions that one phrase chooses.")] = 100,
    keep_case: Annotated[bool, typer.Option("--keep-case", help="Dog and dog are two phrases.")] = False,
    keep_determiners: Annotated[bool, typer.Option("--keep-determiners", help="A dog and two dogs are two phrases.")] = False,
    keep_plurals: Annotated[bool, typer.Option("--keep-plurals", help="Dog and dogs are two phrases.")] = False,
    counted: Annotated[
        Literal["all", "unpooled", "fill"],
        typer.Option(help="What a common phrase chooses from: all its captions, those not chosen yet, or of these as many as are missing."),
    ] = "all",
    seed: SeedOption = 0,
    compare: Annotated[bool, typer.Option("--compare", help="Also print the size under every combination of these settings.")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default: one for each core.")] = None,
) -> None:
    """Choose captions so that no concept is too common: the filter that made LLaVA's 595 thousand pairs of CC3M."""
    from vistune.datagen.concept_filter import ConceptSettings, filter_captions

    settings = ConceptSettings(min_frequency, cap, not keep_case, not keep_determiners, not keep_plurals, counted, seed)
    with typer.progressbar(length=1000, label=str(file), file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:
        report = filter_captions(
            file, out, settings, compare=compare, workers=workers, progress=lambda part: bar.update(int(1000 * part) - bar.pos)
        )
    typer.echo(report.as_text())
    typer.echo(out)


@data_app.command("overlap")
def data_overlap(
    file: FileArgument,
    against: Annotated[str, typer.Option(help="A benchmark's name, a data file, or a folder with a benchmark's pictures and questions.")],
    images: ImagesOption = None,
    against_images: Annotated[Path | None, typer.Option(help="Folder of a data file's pictures; default: its own.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder that holds a folder of a benchmark's official files.")] = None,
    distance: Annotated[int, typer.Option(min=0, max=64, help="Bits of 128 in which two looks of one picture may differ.")] = 16,
    report: Annotated[Path | None, typer.Option(help="Write all pairs as JSON.")] = None,
    shown: Annotated[int, typer.Option(min=0, help="How many pairs to print.")] = 10,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 21 if anything but short questions is found.")] = False,
) -> None:
    """Find evaluation pictures and questions in training data, by look and by 13 words in a row."""
    from vistune.data.overlap import find_overlap, first_lines
    from vistune.journal import atomic_write

    found = find_overlap(file, images or file.parent, _evaluation_items(against, against_images, data), distance=distance)
    if report is not None:
        atomic_write(report, json.dumps(found.as_json(), indent=1, ensure_ascii=True).encode())
    for line in first_lines(found, shown):
        typer.echo(line)
    typer.echo(found.as_text())
    if strict and (found.items_with_picture or found.items_with_text):
        raise DataError(f"{file} has pictures or texts of {against}; take out the rows that --report lists.")


def _evaluation_items(against: str, images: Path | None, data: Path | None) -> Sequence[EvaluationItem]:
    from vistune.data.overlap import items_of_file, items_of_folder, items_of_questions

    path = Path(against)
    if path.is_dir():
        return list(items_of_folder(path))
    if path.is_file():
        return list(items_of_file(path, images or path.parent))
    from vistune.eval.benchmarks import benchmark_named

    return list(items_of_questions(benchmark_named(against).questions(data)))
