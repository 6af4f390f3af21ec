"""From blocks to rows, and from rows to the page: medians, ratios, the table and the plot. Nothing is measured here, and no torch."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from peers.cells import CONFIGS, GPU_CONFIGS, PIPELINES, gate_name

PAGE = Path(__file__).resolve().parents[2] / "docs" / "performance.md"
PLOT = PAGE.with_name("performance.svg")
FIRST_LOSS_TOLERANCE = 1e-2
"""At full size and in the timed format the losses of the first step agree to bf16's rounding; a larger difference is a mistake."""
METRICS = ("tokens_per_s", "samples_per_s", "peak_memory", "peak_memory_over_import")
Block = dict[str, Any]
Blocks = dict[str, list[Block]]
Row = dict[str, Any]

# --- rows ---


def rows(blocks: Blocks) -> list[Row]:
    """{config, peer, metric, ours, theirs, ratio, equal, ours_of_limit, ...} of all that was measured. No ratio where losses differ."""
    good = {name: [block for block in each if "error" not in block] for name, each in blocks.items()}
    good = {name: each for name, each in good.items() if each}
    found = [row for config in CONFIGS | GPU_CONFIGS for row in _training_rows(config, good)]
    found += [row for config in PIPELINES for row in _pipeline_rows(config, good)]
    return found + list(_cache_rows(good, found))


def _training_rows(config: str, good: Blocks) -> Iterator[Row]:
    peers = [name.split("/")[1] for name in good if name.startswith(f"{config}/")]
    tuned = [peer for peer in peers if peer.startswith("hf_tuned")]
    if len(tuned) > 1:
        best = max(tuned, key=lambda peer: median(good[f"{config}/{peer}"], "tokens_per_s"))
        peers.append(f"hf_tuned_best={best}")
    for peer in peers:
        measured = peer.removeprefix("hf_tuned_best=")
        theirs = good[f"{config}/{measured}"]
        base = "ours_grouped" if peer == "hf_length_grouped" else "ours"
        ours = good.get(f"{config}/{base}")
        if peer == base or not ours or peer == "ours_grouped":
            continue
        equal = peer.startswith("ours") or _equal(config, measured, ours, theirs, good)
        notes = ours[-1]["notes"]
        limit = statistics.median(sum(block["notes"]["floor_seconds"]) for block in ours if "floor_seconds" in block["notes"])
        for metric in METRICS:
            row = _row(config, peer.split("=hf")[0], metric, ours, theirs, equal)
            if metric == "tokens_per_s":
                row["ours_of_limit"] = round(statistics.median(limit / sum(block["seconds"]) for block in ours), 3)
                row["theirs_of_limit"] = round(statistics.median(limit / sum(block["seconds"]) for block in theirs), 3)
                if notes.get("published_flops"):  # model FLOPs' utilisation: what the step needs, of what the card's datasheet promises
                    needed = sum(notes["flops"]) / notes["published_flops"]
                    row["ours_mfu"], row["theirs_mfu"] = (
                        round(statistics.median(needed / sum(block["seconds"]) for block in side), 3) for side in (ours, theirs)
                    )
                row["padding"] = round(theirs[-1]["padding"], 2)
            if peer.startswith("hf_tuned_best"):
                row["settings"] = measured
            yield row


def _row(config: str, peer: str, metric: str, ours: Sequence[Block], theirs: Sequence[Block], equal: bool) -> Row:
    mine, other = median(ours, metric), median(theirs, metric)
    return {
        "config": config,
        "peer": peer,
        "metric": metric,
        "ours": round(mine, 2),
        "theirs": round(other, 2),
        "ratio": round(mine / other, 3) if equal else None,
        "equal": equal,
        "ours_of_limit": None,
        "quartiles": {"ours": quartiles(ours, metric), "theirs": quartiles(theirs, metric)},
        "blocks": [len(ours), len(theirs)],
    }


def _equal(config: str, peer: str, ours: Sequence[Block], theirs: Sequence[Block], good: Blocks) -> bool:
    """Whether the peer passed its gate, and began at ours' loss at full size."""
    gate = good.get(gate_name(*(CONFIGS | GPU_CONFIGS)[config], peer))
    first, other = ours[-1]["losses"][0], theirs[-1]["losses"][0]
    return bool(gate and gate[-1]["equal"]) and abs(first - other) <= FIRST_LOSS_TOLERANCE * abs(other)


def _pipeline_rows(config: str, good: Blocks) -> Iterator[Row]:
    ours, theirs = good.get(f"{config}/ours"), good.get(f"{config}/hf_processor")
    if not ours or not theirs:
        return
    notes = [block["notes"] for block in ours]
    floor = statistics.median(each["pictures"] / each["floor_seconds"] for each in notes)
    draft = statistics.median(each["pictures"] / each["draft_seconds"] for each in notes)
    row = _row(config, "hf_processor", "samples_per_s", ours, theirs, theirs[-1]["notes"]["equal_pixels"])
    row["ours_of_limit"] = round(median(ours, "samples_per_s") / floor, 3)
    row["theirs_of_limit"] = round(median(theirs, "samples_per_s") / floor, 3)
    yield row | {"equal_ids": theirs[-1]["notes"]["equal_ids"]}
    plain = {"config": config, "metric": "samples_per_s", "ours": row["ours"], "equal": None, "ours_of_limit": None, "quartiles": None}
    yield {**plain, "peer": "decode_and_resize", "theirs": round(floor, 2), "ratio": row["ours_of_limit"], "equal": None}
    error = round(statistics.median(each["draft_error"] for each in notes), 2)
    yield {**plain, "peer": "draft_decode_and_resize", "theirs": round(draft, 2), "ratio": None, "equal": False, "pixel_error": error}


def _cache_rows(good: Blocks, found: Sequence[Row]) -> Iterator[Row]:
    """What filling the feature cache costs, and a single epoch with that cost against a peer that encodes at each step."""
    for name, each in good.items():
        if not name.startswith("cache/"):
            continue
        notes = each[-1]["notes"]
        speed = statistics.median(block["notes"]["pictures"] / block["seconds"][0] for block in each)
        row: Row = {"config": f"cache_build_{name.removeprefix('cache/')}", "peer": None, "metric": "samples_per_s"}
        row |= {"ours": round(speed, 2), "theirs": None, "ratio": None, "equal": None, "ours_of_limit": None, "quartiles": None}
        yield row | {"megabytes_per_picture": round(notes["cache_bytes"] / notes["pictures"] / 1e6, 3)}
        shape, rows_name = name.removeprefix("cache/").split("-")
        for config in (f"stage1_{shape}_cached", f"stage2_{shape}"):
            kind = "captions" if config.startswith("stage1") else "mixture"
            cached = [row for row in found if row["config"] == config and row["peer"] == "hf_tuned" and row["metric"] == "samples_per_s"]
            if rows_name == kind and cached:
                with_build = 1 / (1 / cached[0]["ours"] + 1 / speed)
                ratio = round(with_build / cached[0]["theirs"], 3) if cached[0]["equal"] else None
                once = {
                    "config": f"{config}_one_epoch_with_cache_build",
                    "ours": round(with_build, 2),
                    "ratio": ratio,
                    "ours_of_limit": None,
                }
                yield {**cached[0], **once, "quartiles": None}


# --- numbers ---

_VALUES: dict[str, Callable[[Block], float]] = {
    "tokens_per_s": lambda block: sum(block["tokens"]) / sum(block["seconds"]),
    "samples_per_s": lambda block: _samples(block) / sum(block["seconds"]),
    "peak_memory": lambda block: block["peak_bytes"] / 1e6,
    "peak_memory_over_import": lambda block: (block["peak_bytes"] - block["import_bytes"]) / 1e6,
}


def _samples(block: Block) -> float:
    return block["samples"] if "samples" in block else block["notes"]["pictures"] * len(block["seconds"])


def median(blocks: Sequence[Block], metric: str) -> float:
    return statistics.median(_VALUES[metric](block) for block in blocks)


def quartiles(blocks: Sequence[Block], metric: str) -> list[float]:
    """First and third; of two blocks the two themselves."""
    values = sorted(_VALUES[metric](block) for block in blocks)
    if len(values) > 2:
        values = statistics.quantiles(values, n=4, method="inclusive")
    return [round(values[0], 2), round(values[-1], 2)]


def spread(blocks: Sequence[Block]) -> float:
    """How far the fastest and the slowest block are apart, of the median."""
    values = [_VALUES["samples_per_s"](block) for block in blocks]
    return (max(values) - min(values)) / statistics.median(values)


def in_short(block: Block) -> str:
    if "error" in block:
        return "FAILED " + " ".join(block["error"].split())[-300:]
    if "largest_relative_difference" in block:
        verdict = "equal" if block["equal"] else "NOT EQUAL"
        return f"{verdict}, losses within {block['largest_relative_difference']:.1e} over {block['steps']} steps"
    if "tokens" not in block:
        return f"{_samples(block) / sum(block['seconds']):.1f} pictures/s"
    limit = f", {block['notes']['of_limit']:.0%} of the limit" if "of_limit" in block["notes"] else ""
    speed, memory = _VALUES["tokens_per_s"](block), _VALUES["peak_memory"](block)
    return f"{speed:.0f} tokens/s, {memory:.0f} MB{limit}, loss {block['losses'][0]:.4f} -> {block['losses'][-1]:.4f}"


# --- the page ---


def tables(found: Sequence[Row]) -> dict[str, str]:
    return {"training": training_table(found, swept=False), "others": other_table(found), "swept": training_table(found, swept=True)}


def training_table(found: Sequence[Row], *, swept: bool) -> str:
    """A line for each peer of each config; `swept`: those that change one setting of a side."""
    lines = [
        "| config | peer | tokens/s: ours | theirs | ratio | peak MB: ours | theirs | ratio | over imports | of limit | theirs | blocks |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for speed in found:
        if speed["metric"] != "tokens_per_s" or swept != (":" in speed["peer"]):
            continue
        memory, over = (_beside(found, speed, metric) for metric in ("peak_memory", "peak_memory_over_import"))
        settings = speed.get("settings", "").removeprefix("hf_tuned").removeprefix(":")
        peer = speed["peer"] + (f" ({settings or 'as hf_tuned'})" if "settings" in speed else "")
        numbers = [_number(speed["ours"]), _number(speed["theirs"]), _ratio(speed)]
        numbers += [_number(memory["ours"]), _number(memory["theirs"]), _ratio(memory), _ratio(over)]
        numbers += [_share(speed, "ours"), _share(speed, "theirs"), " + ".join(map(str, speed["blocks"]))]
        lines.append(f"| {' | '.join([speed['config'], peer, *numbers])} |")
    return "\n".join(lines)


def other_table(found: Sequence[Row]) -> str:
    """The pipelines, their floor, and what filling the feature cache costs."""
    lines = [
        "| config | beside | samples/s: ours | theirs | ratio | of floor: ours | theirs |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in found:
        if row["config"] in CONFIGS | GPU_CONFIGS:
            continue
        extra = f" (pixels differ by {row['pixel_error']} of 255)" if "pixel_error" in row else ""
        extra += f" ({row['megabytes_per_picture']} MB a picture)" if "megabytes_per_picture" in row else ""
        limits = [f"{row[side]:.0%}" if row.get(side) else "" for side in ("ours_of_limit", "theirs_of_limit")]
        cells = [row["config"], (row["peer"] or "–") + extra, _number(row["ours"]), _number(row["theirs"]), _ratio(row), *limits]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _beside(found: Sequence[Row], row: Row, metric: str) -> Row:
    return next(each for each in found if (each["config"], each["peer"], each["metric"]) == (row["config"], row["peer"], metric))


def _share(row: Row, side: str) -> str:
    utilised = f" (MFU {row[f'{side}_mfu']:.0%})" if f"{side}_mfu" in row else ""
    return f"{row[f'{side}_of_limit']:.0%}{utilised}"


def _ratio(row: Row) -> str:
    if row["ratio"] is not None:
        return f"**{row['ratio']:.2f}**"
    return "not equal" if row["equal"] is False else "–"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def gates_table(blocks: Blocks) -> str:
    lines = ["| stage, tower, peer | steps | losses differ by at most | |", "| --- | ---: | ---: | --- |"]
    for name, each in blocks.items():
        if name.startswith("gate/") and "error" not in each[-1]:
            verdict = "equal" if each[-1]["equal"] else "**not equal**"
            lines.append(
                f"| {name.removeprefix('gate/')} | {each[-1]['steps']} | {each[-1]['largest_relative_difference']:.1e} | {verdict} |"
            )
    return "\n".join(lines)


def machine_line(results: dict[str, Any]) -> str:
    machine = results["machine"]
    versions = ", ".join(f"{name} {machine[name]}" for name in ("torch", "transformers", "peft", "trl"))
    notes = [block["notes"] for each in results["blocks"].values() for block in each if "gflops_attainable" in block.get("notes", {})]
    reached = ""
    if notes:
        speed, memory = (statistics.median(note[key] for note in notes) for key in ("gflops_attainable", "gb_per_second"))
        reached = f" Reached by products of the model's own shapes in bf16: {speed:.0f} GFLOP/s; by a copy: {memory:.0f} GB/s (medians)."
    return f"{machine['cpu']}, {machine['cores']} cores; {versions}, Python {machine['python']}.{reached}"


def write_page(results: dict[str, Any]) -> None:
    """Writes the generated parts of docs/performance.md, each between its two marks, and the plot. The words around them stay."""
    found = rows(results["blocks"])
    parts = {"machine": machine_line(results), "gates": gates_table(results["blocks"]), **tables(found)}
    page = PAGE.read_text(encoding="utf-8")
    for name, text in parts.items():
        begin, end = f"<!-- {name}: written by benchmarks/train.py --table -->", f"<!-- {name}: end -->"
        page, count = re.subn(
            f"{re.escape(begin)}.*?{re.escape(end)}", lambda _, b=begin, t=text, e=end: f"{b}\n{t}\n{e}", page, flags=re.S
        )
        if count != 1:
            raise SystemExit(f"{PAGE} has no place for the part {name!r}; it stands between {begin!r} and {end!r}.")
    PAGE.write_text(page, encoding="utf-8")
    plot(found, PLOT)


def plot(found: Sequence[Row], path: Path) -> None:
    """Ratios of speed and of memory, a bar for each peer of each config."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "vistune"  # the same rows, the same file
    kept = [
        row
        for row in found
        if row["ratio"] and row["peer"] and ":" not in row["peer"] and "decode" not in row["peer"] and "epoch" not in row["config"]
    ]
    speed = [row for row in kept if row["metric"] == "tokens_per_s" or row["config"] in PIPELINES]
    memory = [row for row in kept if row["metric"] == "peak_memory" and row["config"] not in PIPELINES]
    figure, axes = pyplot.subplots(1, 2, figsize=(12, 0.9 + 0.3 * max(len(speed), len(memory))), layout="constrained")
    for axis, part, title in zip(
        axes, (speed, memory), ("speed, ours / theirs (higher is better)", "peak memory, ours / theirs"), strict=True
    ):
        labels = [f"{row['config']} · {row['peer']}" for row in part]
        bars = axis.barh(labels, [row["ratio"] for row in part], color="tab:blue" if part is speed else "tab:orange")
        axis.bar_label(bars, fmt="%.2f", padding=3)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.invert_yaxis()
        axis.margins(x=0.15)
        axis.set_title(title)
        axis.tick_params(axis="y", labelsize=8)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
