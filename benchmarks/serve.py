"""The server side by side with `transformers serve`: the same random model of the smol-224 shape, the same requests, one run.

    python benchmarks/serve.py [--clients 1 8 32] [--requests 4] [--repeats 2] [--quick] [--out FILE]

    gate     in fp32 both answer the same words to the same pictures, greedily; otherwise no row has a ratio
    load     1, 8 and 32 clients, each asking again as soon as it was answered, 60 words and a picture, 64 tokens back:
             `distinct` shows every request a picture of its own, `repeated` four in five requests one of two
    turns    one client's second question about a picture: beside its first, and beside transformers' stateless generate

Each side is a server in a process of its own, started as its users start it, in bf16; the sides take turns, and a warm-up goes before the
clock. transformers' server takes its requests one after the other: its continuous batching is for models without pictures. It is tried with
and without `--compile` on one client, and the better of the two goes on. Rows are {config, peer, metric, ours, theirs, ratio, equal}.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import itertools
import json
import math
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import httpx2
from peers.workload import draw_picture, model_folder

BENCHMARKS = Path(__file__).resolve().parent
RESULT = BENCHMARKS / "results" / "serve.json"
PEER, OUR_NAME = "transformers_serve", "ours"
WORDS, REPLY_TOKENS = 60, 64
SHARED_PICTURES, SHARE = 2, 5
"""`repeated`: every fifth request has a picture of its own, the others show one of these two."""
Mix = Literal["distinct", "repeated"]
MIXES: tuple[Mix, ...] = ("distinct", "repeated")
TEXT = (BENCHMARKS.parent / "docs" / "training.md").read_text(encoding="utf-8")
PROSE = [word for word in TEXT.split() if word.isalpha() and word.isascii()]


# --- the two servers ---


def ours(folder: Path, port: int, dtype: str) -> list[str]:
    return ["-m", "vistune", "serve", str(folder), "--port", str(port), "--dtype", dtype, "--device", "cpu", "--name", OUR_NAME]


def theirs(folder: Path, port: int, dtype: str, *options: str) -> list[str]:
    command = "from transformers.cli.transformers import main; main()"
    return ["-c", command, "serve", str(folder), "--host", "127.0.0.1", "--port", str(port), "--dtype", dtype, "--device", "cpu", *options]


@dataclass(frozen=True)
class Server:
    """Where one listens, what it calls its model, and the process to be measured."""

    url: str
    model: str
    pid: int

    @property
    def peak_mb(self) -> float:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024


@contextmanager
def serving(side: str, folder: Path, dtype: str, *options: str) -> Iterator[Server]:
    """A server that answers, ended when the block ends."""
    port = _free_port()
    command = (ours if side == "ours" else theirs)(folder, port, dtype, *options)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(os.cpu_count())}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([sys.executable, *command], stdout=log, stderr=log, env=environment)
        try:
            _wait_until_up(process, port, log)
            yield Server(f"http://127.0.0.1:{port}/v1", OUR_NAME if side == "ours" else str(folder), process.pid)
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_until_up(process: subprocess.Popen[bytes], port: int, log: Any) -> None:
    until = time.monotonic() + 180
    while time.monotonic() < until:
        if process.poll() is not None:
            log.seek(0)
            raise RuntimeError(f"A server ended before it answered:\n{log.read().decode(errors='replace')[-3000:]}")
        try:
            httpx2.get(f"http://127.0.0.1:{port}/health/ready", timeout=2)
            return  # both listen only once their model is loaded
        except httpx2.TransportError:
            time.sleep(0.3)
    raise RuntimeError("A server did not answer within three minutes.")


# --- the requests ---


def picture(number: int) -> str:
    """A JPEG of 640×480 as clients send it."""
    file = io.BytesIO()
    draw_picture(number).save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def words(start: int, count: int) -> str:
    return " ".join(PROSE[(start + place) % len(PROSE)] for place in range(count))


def question(image: str, text: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": text}]}


def plan(mix: Mix, clients: int, requests: int, first_picture: int) -> list[list[dict[str, Any]]]:
    """[client][request]: the messages of a cell, the same for both sides."""
    rows = []
    for number in range(clients * requests):
        own = mix == "distinct" or number % SHARE == 0
        shown = first_picture + (SHARED_PICTURES + number if own else number % SHARED_PICTURES)
        rows.append(question(picture(shown), words(37 * number, WORDS)))
    return [rows[client::clients] for client in range(clients)]


@dataclass(frozen=True)
class Timing:
    """One request: seconds from its sending to each piece of text, and to its end."""

    pieces: tuple[float, ...]
    seconds: float
    text: str
    usage: dict[str, Any]
    """Tokens as vistune counts them; transformers' server refuses to be asked in a stream."""

    @property
    def new_rows(self) -> int:
        """Rows of the prompt that had to be read."""
        return self.usage["prompt_tokens"] - self.usage["prompt_tokens_details"]["cached_tokens"]


async def ask(http: httpx2.AsyncClient, server: Server, messages: Sequence[dict[str, Any]], tokens: int = REPLY_TOKENS) -> Timing:
    body = {"model": server.model, "messages": list(messages), "max_tokens": tokens, "temperature": 0, "stream": True}
    if server.model == OUR_NAME:
        body["stream_options"] = {"include_usage": True}
    started, pieces, said, finish, usage = time.perf_counter(), [], [], None, {}
    async with http.stream("POST", f"{server.url}/chat/completions", json=body) as response:
        if response.status_code != 200:
            raise RuntimeError(f"{response.status_code}: {(await response.aread())[:500]!r}")
        async for event in _events(response):
            if "error" in event:
                raise RuntimeError(str(event["error"])[:500])
            usage = event.get("usage") or usage
            for choice in event["choices"]:
                if text := choice["delta"].get("content"):
                    pieces.append(time.perf_counter() - started)
                    said.append(text)
                finish = choice.get("finish_reason") or finish
    if finish != "length":
        raise RuntimeError(f"a reply ended by {finish!r}: its tokens cannot be counted")
    return Timing(tuple(pieces), time.perf_counter() - started, "".join(said), usage)


async def _events(response: httpx2.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line[6:])


# --- load ---


async def load(server: Server, requests: list[list[dict[str, Any]]]) -> dict[str, float]:
    """What a cell's clients see. They begin 50 ms after one another, and each asks again as soon as it was answered."""
    timings: list[Timing] = []

    async def client(number: int, own: list[dict[str, Any]]) -> None:
        await asyncio.sleep(0.05 * number)
        timings.extend([await ask(http, server, [message]) for message in own])

    async with httpx2.AsyncClient(timeout=900, limits=httpx2.Limits(max_connections=None)) as http:
        started = time.perf_counter()
        await asyncio.gather(*(client(number, own) for number, own in enumerate(requests)))
        seconds = time.perf_counter() - started
    firsts = [each.pieces[0] for each in timings]
    gaps = [after - before for each in timings for before, after in itertools.pairwise(each.pieces)]
    return {
        "requests_per_s": len(timings) / seconds,
        "output_tokens_per_s": len(timings) * REPLY_TOKENS / seconds,
        "first_token_p50_s": _percentile(firsts, 50),
        "first_token_p99_s": _percentile(firsts, 99),
        "token_gap_p99_s": _percentile(gaps, 99),
        "peak_memory_mb": server.peak_mb,
    }


def _percentile(values: Sequence[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


async def warm_up(server: Server) -> None:
    async with httpx2.AsyncClient(timeout=900) as http:
        for number in range(2):
            await ask(http, server, [question(picture(900 + number), words(number, WORDS))], 8)


async def greedy_words(server: Server) -> list[str]:
    async with httpx2.AsyncClient(timeout=900) as http:
        asked = [await ask(http, server, [question(picture(800 + number), words(number, 20))], 24) for number in range(4)]
    return [timing.text.strip() for timing in asked]  # ours leaves out a blank before the first word


# --- the run ---


class Run:
    """Measures cells, both sides in turn, and keeps what is done after each."""

    def __init__(self, folder: Path, out: Path):
        self._folder, self._out = folder, out
        self.rows: list[dict[str, Any]] = []
        self.equal = False
        self._options: tuple[str, ...] = ()

    def gate(self) -> None:
        said = {}
        for side in ("ours", "theirs"):
            with serving(side, self._folder, "float32") as server:
                said[side] = asyncio.run(greedy_words(server))
        self.equal = said["ours"] == said["theirs"]
        print(
            f"gate: {sum(a == b for a, b in zip(said['ours'], said['theirs'], strict=True))} of 4 greedy replies in fp32 are equal",
            flush=True,
        )

    def choose_settings(self) -> None:
        """The better of the peer's two ways on one client."""
        speed = {}
        for options in ((), ("--compile",)):
            try:
                with serving("theirs", self._folder, "bfloat16", *options) as server:
                    asyncio.run(warm_up(server))
                    speed[options] = asyncio.run(load(server, plan("distinct", 1, 3, 700)))["output_tokens_per_s"]
            except (RuntimeError, httpx2.HTTPError) as error:
                print(f"{PEER} {' '.join(options)}: {str(error)[-300:]}", flush=True)
        self._options = max(speed, key=lambda options: speed[options])
        tried = ", ".join(f"{' '.join(options) or 'default'} {value:.1f}" for options, value in speed.items())
        print(f"{PEER} on one client, tokens/s: {tried}", flush=True)

    def load(self, clients: Sequence[int], requests: int, repeats: int) -> None:
        cells: list[tuple[int, Mix]] = [(count, mix) for count in clients for mix in MIXES]
        found: dict[tuple[str, str], list[dict[str, float]]] = {}
        for repeat in range(repeats):
            for side in ("ours", "theirs"):
                with serving(side, self._folder, "bfloat16", *(self._options if side == "theirs" else ())) as server:
                    asyncio.run(warm_up(server))
                    for cell, (count, mix) in enumerate(cells):
                        # A cell's pictures are its own: what a server keeps of an earlier cell must not help it here.
                        rows = plan(mix, count, max(2, requests * 8 // max(count, 8)), 10_000 * (cell + 1) + 1_000_000 * repeat)
                        measured = asyncio.run(load(server, rows))
                        found.setdefault((f"load_smol224_{count}_clients_{mix}", side), []).append(measured)
                        print(f"{side:7}{count:3} {mix:9}", {name: round(value, 3) for name, value in measured.items()}, flush=True)
            self._compare(found)

    def _compare(self, found: dict[tuple[str, str], list[dict[str, float]]]) -> None:
        for config in dict.fromkeys(config for config, _ in found):
            mine, other = found.get((config, "ours"), []), found.get((config, "theirs"), [])
            for metric in mine[0] if mine and other else ():
                values = [statistics.median(each[metric] for each in side) for side in (mine, other)]
                self.keep(config, PEER, metric, *values, settings=" ".join(self._options) or "default")

    def turns(self, repeats: int) -> None:
        """A second question's first token, over HTTP, beside the first question's and beside `generate` of the whole conversation."""
        measured: dict[str, list[tuple[Timing, Timing]]] = {}
        for side in ("ours", "theirs"):
            with serving(side, self._folder, "bfloat16", *(self._options if side == "theirs" else ())) as server:
                asyncio.run(warm_up(server))
                measured[side] = asyncio.run(_two_turns(server, repeats))
        first, second = (
            {side: statistics.median(pair[turn].pieces[0] for pair in found) for side, found in measured.items()} for turn in (0, 1)
        )
        self.keep("turns_smol224", PEER, "first_turn_first_token_s", first["ours"], first["theirs"])
        work = self._work_of(measured["ours"][-1])
        self.keep("turns_smol224", PEER, "second_turn_first_token_s", second["ours"], second["theirs"], flop_ratio=work["whole"])
        self.keep("turns_smol224", "ours_first_turn", "second_turn_first_token_s", second["ours"], first["ours"], flop_ratio=work["first"])

    def _work_of(self, turns: tuple[Timing, Timing]) -> dict[str, float]:
        """How many times the work of a second turn it takes to read the whole conversation, picture and all, or the first turn.

        Two floating-point operations for each weight that a row meets: the products of attention, 1 % of it here, are left out.
        """
        text, tower, patches = _weights_met(self._folder)
        first, second = turns
        new = text * second.new_rows
        rows = {"whole": second.usage["prompt_tokens"], "first": first.new_rows}
        return {name: round((text * count + tower * patches) / new, 1) for name, count in rows.items()}

    def keep(self, config: str, peer: str, metric: str, mine: float, other: float, **more: Any) -> None:
        """A row; the ratio is how many times better ours is, whichever way the metric points."""
        better = other / mine if metric.endswith(("_s", "_mb")) and not metric.endswith("per_s") else mine / other
        row = {"config": config, "peer": peer, "metric": metric, "ours": round(mine, 4), "theirs": round(other, 4)}
        row |= {"ratio": round(better, 3) if self.equal else None, "equal": self.equal} | more
        name = ("config", "peer", "metric")
        self.rows = [each for each in self.rows if any(each[key] != row[key] for key in name)] + [row]
        kept = json.loads(self._out.read_text(encoding="utf-8"))["rows"] if self._out.exists() else []
        mine_now = {tuple(each[key] for key in name) for each in self.rows}
        others = [each for each in kept if tuple(each[key] for key in name) not in mine_now]
        self._out.write_text(json.dumps({"machine": _machine(), "rows": others + self.rows}, indent=1) + "\n", encoding="utf-8")


async def _two_turns(server: Server, repeats: int) -> list[tuple[Timing, Timing]]:
    """A picture and 60 words, a reply of 8 tokens, then 30 words more."""
    found = []
    async with httpx2.AsyncClient(timeout=900) as http:
        for number in range(repeats):
            messages = [question(picture(500 + number), words(11 * number, WORDS))]
            first = await ask(http, server, messages, 8)
            messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": words(number, 30)}]
            found.append((first, await ask(http, server, messages, 4)))
    return found


def visible_model(folder: Path) -> Path:
    """The same model, except that it only ever says printable ASCII, beside it: a clock that waits for text needs text.

    Rows of the tied embedding of all other tokens are zero, and so are their logits, which some token always beats. Speed is the same.
    """
    visible = folder.with_name("visible")
    if not visible.is_dir():
        import torch

        from vistune.checkpoint.folder import load_model, save_model

        model, processor = load_model(folder, dtype=torch.float32)
        tokenizer = processor.tokenizer
        said = [str(tokenizer.decode([token], skip_special_tokens=True)) for token in range(len(tokenizer))]
        mute = [token for token, text in enumerate(said) if not (text.strip() and text.isascii() and text.isprintable())]
        with torch.no_grad():
            embedding = model.causal_lm.get_input_embeddings().weight
            embedding[mute] = 0
            embedding[len(said) :] = 0
        save_model(model, processor, visible)
    return visible


def _weights_met(folder: Path) -> tuple[int, int, int]:
    """(weights of the language model's layers, weights of the tower's, patches of a picture)."""
    from safetensors import safe_open

    text = tower = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dictionary)
                size = math.prod(tensors.get_slice(name).get_shape())
                if ".layers." in name:
                    text, tower = (text, tower + size) if "vision" in name else (text + size, tower)
    vision = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vision_config"]
    return text, tower, (vision["image_size"] // vision["patch_size"]) ** 2


def _machine() -> dict[str, Any]:
    from importlib.metadata import version

    from vistune.doctor import describe_machine

    return {"machine": asdict(describe_machine(ask_torch=False)), **{name: version(name) for name in ("torch", "transformers", "uvicorn")}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--requests", type=int, default=4, help="of each client where there are 8; more clients ask less often")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a model of a few thousand weights: whether it runs, not how fast")
    parser.add_argument("--root", type=Path, default=Path("runs/benchmark"), help="where the models are kept")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    folder = model_folder("small224" if arguments.quick else "smol224", arguments.root).resolve()
    run = Run(visible_model(folder), arguments.out)
    run.gate()
    run.choose_settings()
    run.turns(2 if arguments.quick else 7)
    run.load(arguments.clients, arguments.requests, arguments.repeats)
    for row in run.rows:
        print(row)


if __name__ == "__main__":
    main()
