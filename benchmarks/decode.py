"""Decoding beside transformers' `generate`, and beside the time to read the weights once a token; then company beside solitude.

    python benchmarks/decode.py [--tokens 64] [--repeats 5] [--rounds 2] [--replies 64] [--quick] [--out FILE]

    gate       in fp32 both continue a prompt with the same tokens, greedily; otherwise no row has a ratio
    decode     1 and 8 replies at once, bf16: what `tokens` new tokens take longer than 1, so that neither side's prompt is in it;
               the peer with its dynamic and with its static cache
    floor      the language model's weights once per token at this machine's STREAM triad: `theirs` is the limit, `ratio` our fraction of it
    company    greedy replies of `--replies` requests at once, and one by one: how many differ in fp32, in deterministic bf16, and in
               plain bf16, there with the margin in nats between the two likeliest tokens where a reply first turned elsewhere

One random model of the smol-224 shape for both (for `company` the bundled assistant), each cell in a fresh process, the sides in turns,
the best of all runs. Rows are {config, peer, metric, ours, theirs, ratio, equal} in the file of `benchmarks/serve.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peers.workload import model_folder

from vistune.pull import pull

RESULT = Path(__file__).resolve().parent / "results" / "serve.json"
PEERS = ("hf_generate_dynamic", "hf_generate_static")
BATCHES = (1, 8)
PROMPT = "Describe what there is to be seen, where it is, and what may happen next. " * 6
GATE_TOKENS = 48
COMPANY_TOKENS = 24


# --- cells: each runs in a process of its own and prints a line of JSON ---


def timed(run: Callable[[int], Any], tokens: int, repeats: int) -> float:
    """New tokens a second of each sequence, without the prompt: the best of several pairs of a long and a one-token reply."""
    run(4)
    long = one = float("inf")
    for _ in range(repeats):
        for count in (1, tokens):
            started = time.perf_counter()
            run(count)
            seconds = time.perf_counter() - started
            one, long = (min(one, seconds), long) if count == 1 else (one, min(long, seconds))
    return (tokens - 1) / (long - one)


def ours(folder: Path, dtype: str, tokens: int, repeats: int) -> dict[str, Any]:
    import torch

    from vistune.checkpoint.folder import load_model
    from vistune.engine.engine import Engine
    from vistune.types import Conversation, Reply, SamplingParams

    model, processor = load_model(folder, dtype=getattr(torch, dtype))
    conversation = Conversation(()).then("user", PROMPT)
    with Engine(model, processor) as engine:

        def run(count: int, batch: int = 1) -> list[Reply]:
            async def together() -> list[Reply]:
                params = SamplingParams(max_new_tokens=count, logprobs=0 if dtype == "float32" else None)
                return await asyncio.gather(*(engine.generate(conversation, params) for _ in range(batch)))

            replies = asyncio.run(together())
            assert all(reply.completion_tokens == count for reply in replies), "a random model ended its reply; change PROMPT"
            return replies

        if dtype == "float32":
            return {"tokens": [token.token for token in run(GATE_TOKENS)[0].logprobs or ()]}
        speeds = {batch: batch * timed(lambda count, batch=batch: run(count, batch), tokens, repeats) for batch in BATCHES}
    return {"tokens_per_s": speeds, "floor_tokens_per_s": floor(model)}


def floor(model: Any) -> dict[int, float]:
    """The most tokens a second if every weight of layers and head is read once a step, at the bandwidth of a triad."""
    import torch

    one, two = torch.ones(1 << 25), torch.ones(1 << 25)
    out = torch.empty_like(one)
    best = float("inf")
    for _ in range(7):
        started = time.perf_counter()
        torch.add(one, two, alpha=3.0, out=out)
        best = min(best, time.perf_counter() - started)
    causal_lm = model.causal_lm
    weights = sum(weight.nbytes for weight in causal_lm.model.layers.parameters()) + causal_lm.lm_head.weight.nbytes
    return {batch: batch * 3 * out.nbytes / best / weights for batch in BATCHES}


def theirs(peer: str, folder: Path, dtype: str, tokens: int, repeats: int) -> dict[str, Any]:
    import torch
    import transformers

    from vistune.checkpoint.folder import load_model
    from vistune.types import Conversation

    _, processor = load_model(folder)
    ids = processor(Conversation(()).then("user", PROMPT)).input_ids[None]
    model = transformers.LlavaForConditionalGeneration.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    cache = {"cache_implementation": "static"} if peer.endswith("static") else {}

    def run(count: int, batch: int = 1) -> torch.Tensor:
        rows = ids.expand(batch, -1)
        with torch.inference_mode():
            answer = model.generate(
                rows,
                attention_mask=torch.ones_like(rows),
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
                pad_token_id=0,
                **cache,
            )
        return answer[:, ids.shape[1] :]

    if dtype == "float32":
        return {"tokens": [processor.tokenizer.decode([token]) for token in run(GATE_TOKENS)[0].tolist()]}
    return {"tokens_per_s": {batch: batch * timed(lambda count, batch=batch: run(count, batch), tokens, repeats) for batch in BATCHES}}


def company(folder: Path, dtype: str, replies: int, deterministic: bool) -> dict[str, Any]:
    """How many of the replies are others at once than one by one, and the margins where they first differ."""
    import torch

    from vistune.checkpoint.folder import load_model
    from vistune.engine.engine import Engine
    from vistune.types import Conversation, Reply, SamplingParams

    model, processor = load_model(folder, dtype=getattr(torch, dtype))
    params = SamplingParams(max_new_tokens=COMPANY_TOKENS, logprobs=2)
    conversations = [Conversation(()).then("user", f"{number}: " + PROMPT[: 20 + 7 * number % 300]) for number in range(replies)]

    async def all_at_once(engine: Engine) -> list[Reply]:
        return await asyncio.gather(*(engine.generate(each, params) for each in conversations))

    with Engine(model, processor, max_sequences=replies, deterministic=deterministic) as engine:
        together = asyncio.run(all_at_once(engine))
    with Engine(model, processor, deterministic=deterministic) as engine:
        alone = [asyncio.run(engine.generate(each, params)) for each in conversations]
    margins = [margin for one, other in zip(alone, together, strict=True) if (margin := turned(one, other)) is not None]
    return {"differing": len(margins), "margins_nats": sorted(margins)}


def turned(alone: Any, together: Any) -> float | None:
    """By how much the likeliest token led, alone, where the reply in company first has another one; None if it never has."""
    for one, other in zip(alone.logprobs, together.logprobs, strict=False):
        if one.token != other.token:
            return round(one.top[0][1] - one.top[1][1], 5)
    return None if alone.text == together.text else 0.0


# --- the run ---


class Run:
    def __init__(self, options: argparse.Namespace):
        self._options = options
        self.rows: list[dict[str, Any]] = []

    def cell(self, name: str, dtype: str) -> dict[str, Any]:
        options = self._options
        numbers = ["--tokens", options.tokens, "--repeats", options.repeats, "--replies", options.replies]
        command = [sys.executable, __file__, "--root", options.root, *numbers, "--cell", name, "--dtype", dtype]
        command += ["--quick"] if options.quick else []
        found = subprocess.run([str(each) for each in command], stdout=subprocess.PIPE, text=True, check=True, timeout=3600)
        return json.loads(found.stdout.splitlines()[-1])

    def decode(self) -> None:
        said = {name: self.cell(name, "float32")["tokens"] for name in ("ours", PEERS[0])}
        equal = said["ours"] == said[PEERS[0]]
        best: dict[str, dict[str, float]] = {}
        floors: dict[str, float] = {}
        for _ in range(self._options.rounds):
            for name in ("ours", *PEERS):
                found = self.cell(name, "bfloat16")
                for batch, speed in found["tokens_per_s"].items():
                    best.setdefault(name, {})[batch] = max(speed, best.get(name, {}).get(batch, 0.0))
                for batch, limit in found.get("floor_tokens_per_s", {}).items():
                    floors[batch] = max(limit, floors.get(batch, 0.0))
        for batch, mine in best["ours"].items():
            for name in PEERS:
                self.keep(f"decode_smol_bf16_{batch}", name, "tokens_per_s", mine, best[name][batch], equal)
            self.keep(f"decode_smol_bf16_{batch}", "bandwidth_floor", "tokens_per_s", mine, floors[batch], True)

    def company(self) -> None:
        count = self._options.replies
        for name, dtype in (("company", "float32"), ("company_deterministic", "bfloat16"), ("company", "bfloat16")):
            found = self.cell(name, dtype)
            label = f"{dtype}{name.removeprefix('company')}"
            self.keep(f"company_{count}_{label}", "ours_alone", "differing_replies", found["differing"], 0, not found["differing"])
            self.rows[-1] |= {"ratio": None, "margins_nats": found["margins_nats"]}

    def keep(self, config: str, peer: str, metric: str, mine: float, other: float, equal: bool) -> None:
        ratio = round(mine / other, 3) if equal and other else None
        row = {"config": config, "peer": peer, "metric": metric, "ours": round(mine, 2), "theirs": round(other, 2), "ratio": ratio}
        self.rows.append(row | {"equal": equal})

    def write(self, out: Path) -> None:
        """Puts the rows in place of earlier ones of the same names; rows of other benchmarks stay."""
        report = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {"rows": []}
        mine = {(row["config"], row["peer"], row["metric"]) for row in self.rows}
        report["rows"] = [row for row in report["rows"] if (row["config"], row["peer"], row["metric"]) not in mine] + self.rows
        out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--replies", type=int, default=64)
    parser.add_argument("--quick", action="store_true", help="a model of a few thousand weights: whether it runs, not how fast")
    parser.add_argument("--root", type=Path, default=Path("runs/benchmark"), help="where the models are kept")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    parser.add_argument("--dtype", default="bfloat16", help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = model_folder("small224" if options.quick else "smol224", options.root).resolve()
    match options.cell:
        case None:
            run = Run(options)
            run.decode()
            run.company()
            run.write(options.out)
            for row in run.rows:
                print(row)
        case "ours":
            print(json.dumps(ours(folder, options.dtype, options.tokens, options.repeats)))
        case "company" | "company_deterministic" as name:
            # A random model repeats one word whatever happens; the bundled assistant has close calls between words.
            talker = folder if options.quick else pull("assistant")
            print(json.dumps(company(talker, options.dtype, options.replies, name != "company")))
        case peer:
            print(json.dumps(theirs(peer, folder, options.dtype, options.tokens, options.repeats)))


if __name__ == "__main__":
    main()
