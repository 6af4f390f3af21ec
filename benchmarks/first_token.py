"""Time to the first token of a first and of a second question about a picture, beside what this machine's arithmetic allows.

    python benchmarks/first_token.py [--model FOLDER] [--repeats 7] [--dtype bfloat16] [--out FILE]

Each repeat shows the engine a picture that it has never seen, asks about it, and asks again in the same conversation; the first repeat only
warms up, and leaves the system text in the cache as it is for every question to a running engine. The clock runs from the call to the first
piece of text: it holds the opening of the picture, the tower, the projector, the prompt and one token. The floor is the arithmetic of the
rows that are new, at the rate that this model's own matrix products reach here, or the time to read the weights once, whichever is longer;
a fraction above 1 would be a mistake in one of them and fails the run.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from vistune.checkpoint.folder import load_model
from vistune.doctor import describe_machine
from vistune.engine.engine import Engine, best_dtype
from vistune.engine.kv_cache import KVShape
from vistune.engine.scheduler import CHUNK
from vistune.model.images import prepare_image
from vistune.model.llava import Llava
from vistune.pull import pull
from vistune.scenes import SceneSpec, plan_scene, render_scene, sprite_bank
from vistune.types import Conversation, ImagePart, Reply, SamplingParams

RESULT = Path(__file__).resolve().parent / "results" / "first_token.json"
QUESTIONS = ("What is in the picture?", "Where is it in the picture?")
PARAMS = SamplingParams(max_new_tokens=12)


@dataclass(frozen=True)
class Turn:
    """One question's answer: how long until its first text, and how long altogether."""

    first_seconds: float
    seconds: float
    reply: Reply


@dataclass(frozen=True)
class Limits:
    """What this machine reaches with nothing but the work itself."""

    gflops: float
    gb_per_second: float


# --- the clock ---


async def ask(engine: Engine, conversation: Conversation) -> Turn:
    started, first = time.perf_counter(), None
    async for delta in engine.stream(conversation, PARAMS):
        if first is None and delta.text:
            first = time.perf_counter() - started
        if delta.reply is not None:
            seconds = time.perf_counter() - started
            return Turn(seconds if first is None else first, seconds, delta.reply)
    raise RuntimeError("the stream ended without a reply")


async def talk(engine: Engine, repeats: int) -> list[list[Turn]]:
    """[question][repeat]; every repeat has a picture of its own."""
    turns: list[list[Turn]] = [[] for _ in QUESTIONS]
    for number in range(repeats + 1):
        conversation = Conversation(())
        for place, question in enumerate(QUESTIONS):
            picture = (ImagePart(drawn(number)),) if place == 0 else ()
            conversation = conversation.then("user", *picture, f"\n{question}" if picture else question)
            turn = await ask(engine, conversation)
            conversation = conversation.then("assistant", turn.reply.text)
            if number > 0:
                turns[place].append(turn)
    return turns


def drawn(number: int) -> bytes:
    file = io.BytesIO()
    render_scene(plan_scene(f"first-token/{number}", SceneSpec(), sprite_bank())).save(file, "PNG")
    return file.getvalue()


# --- the floor ---


def linear_weights(model: Llava) -> list[Tensor]:
    """The decoder's matrices, in the order of their use."""
    return [module.weight for module in model.causal_lm.model.modules() if isinstance(module, torch.nn.Linear)]


def prefill_flops(model: Llava, tokens: int, cached: int) -> float:
    """F_lin + F_att + F_head of the rows after `cached`; the last layer's queries and MLP are needed at one row only."""
    shape, text = KVShape.of(model.config.text_config), model.config.text_config
    rows, heads = tokens - cached, int(text["num_attention_heads"])
    all_layers = sum(weight.numel() for weight in linear_weights(model))
    keys_and_values = 2 * int(text["hidden_size"]) * shape.heads * shape.head_dim
    attention = 2 * (tokens**2 - cached**2) * heads * shape.head_dim * shape.layers  # scores and weighted sum, causal
    pruned = 2 * (all_layers / shape.layers - keys_and_values) * (rows - 1) + attention / shape.layers - 4 * tokens * heads * shape.head_dim
    head = 2 * int(text["hidden_size"]) * int(text["vocab_size"])
    return 2 * all_layers * rows + attention + head - pruned


def vision_flops(model: Llava) -> float:
    """Counted, not derived: any tower and projector, on one picture."""
    pixels = prepare_image(render_scene(plan_scene("first-token/0", SceneSpec(), sprite_bank())), model.config).to(model.dtype)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model.multi_modal_projector(model.encode_images(pixels))
    return float(counter.get_total_flops())


def floor_seconds(model: Llava, limits: Limits, reply: Reply, seeing: float) -> float:
    """The least time for the rows of a prompt that were not kept, and for the `seeing` operations that a new picture takes."""
    flops = prefill_flops(model, reply.prompt_tokens, reply.cached_tokens) + seeing
    weights = sum(weight.numel() for weight in linear_weights(model)) + model.causal_lm.lm_head.weight.numel()
    return max(flops / limits.gflops / 1e9, weights * model.dtype.itemsize / limits.gb_per_second / 1e9)


def measured_limits(model: Llava) -> Limits:
    """The best rate of the decoder's own matrix products on a whole chunk of rows, and of a STREAM triad."""
    weights = linear_weights(model)
    inputs = {width: torch.randn(CHUNK, width).to(model.dtype) for width in {weight.shape[1] for weight in weights}}
    with torch.inference_mode():
        seconds = best(lambda: [F.linear(inputs[weight.shape[1]], weight) for weight in weights])
        one, two = torch.ones(1 << 25), torch.ones(1 << 25)
        out = torch.empty_like(one)
        triad = best(lambda: torch.add(one, two, alpha=3.0, out=out))
    flops = 2 * CHUNK * sum(weight.numel() for weight in weights)
    return Limits(gflops=flops / seconds / 1e9, gb_per_second=3 * out.nbytes / triad / 1e9)


def best(work: Callable[[], object], repeats: int = 5) -> float:
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


# --- the report ---


def row_of(what: str, turns: list[Turn], model: Llava, limits: Limits, seeing: float) -> dict[str, Any]:
    """Medians of one question; prompts differ by a few tokens from picture to picture, so the floor is the median repeat's."""
    floors = [floor_seconds(model, limits, turn.reply, seeing) for turn in turns]
    first = [turn.first_seconds for turn in turns]
    floor = statistics.median(floors)
    quartiles = statistics.quantiles(first, n=4) if len(first) > 1 else [first[0]] * 3
    return {
        "question": what,
        "first_token_ms": round(statistics.median(first) * 1e3, 1),
        "quartiles_ms": [round(quartiles[0] * 1e3, 1), round(quartiles[2] * 1e3, 1)],
        "whole_answer_ms": round(statistics.median(turn.seconds for turn in turns) * 1e3, 1),
        "prompt_tokens": statistics.median(turn.reply.prompt_tokens for turn in turns),
        "cached_tokens": statistics.median(turn.reply.cached_tokens for turn in turns),
        "floor_ms": round(floor * 1e3, 2),
        "fraction_of_attainable": round(floor / statistics.median(first), 3),
    }


def peak_megabytes() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="assistant", help="a folder, or a name that `vistune pull` knows")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    dtype = best_dtype("cpu") if options.dtype == "auto" else getattr(torch, options.dtype)
    started = time.perf_counter()
    model, processor = load_model(pull(options.model), dtype=dtype)
    load_seconds = time.perf_counter() - started
    limits = measured_limits(model)
    with Engine(model, processor) as engine:
        turns = asyncio.run(talk(engine, options.repeats))
    limits = Limits(*(max(pair) for pair in zip(vars(limits).values(), vars(measured_limits(model)).values(), strict=True)))
    seeing = (vision_flops(model), 0.0)  # the second question brings no picture
    rows = [row_of(*each, model, limits, flops) for *each, flops in zip(QUESTIONS, turns, seeing, strict=True)]
    machine = describe_machine(ask_torch=False)
    report = {
        "model": options.model,
        "dtype": str(dtype).removeprefix("torch."),
        "device": f"{machine.cpu}, {machine.cores} cores, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "measured_gflops": round(limits.gflops, 1),
        "measured_gb_per_second": round(limits.gb_per_second, 1),
        "load_seconds": round(load_seconds, 2),
        "peak_memory_mb": peak_megabytes(),
        "repeats": options.repeats,
        "questions": rows,
    }
    print(json.dumps(report, indent=1))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    if wrong := [row for row in rows if row["fraction_of_attainable"] > 1]:
        sys.exit(
            f"{len(wrong)} rows beat what this machine can do; the floor or the clock is wrong, or other programs slowed the limits down."
        )


if __name__ == "__main__":
    main()
