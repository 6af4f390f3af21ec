"""Training side by side: vistune, transformers' Trainer, PEFT and TRL on the same weights, data and supervised tokens.

    python benchmarks/train.py [--budget-minutes 45] [--cells stage2_smol224,...] [--fresh] [--quick] [--table] [--gpu]

First the equality gate (peers/gate.py): who does not learn the same gets no ratio. Then blocks of timed steps, each in a process of its
own, the sides of a config in turn; each is kept in the result file as soon as it is done, so a run that was stopped goes on where it was.
`--quick` runs every cell on a model of a few thousand weights within 90 seconds and compares nothing; `--table` only writes
docs/performance.md's table and plot anew from the results. `--gpu` measures LLaVA-1.5-7B on this machine's card (80 GB; 14 GB of disk)
into results/train_gpu.json, and model FLOPs' utilisation with it. The work is described in peers/workload.py.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from peers import cells, report
from peers.cells import Cell
from peers.job import Job, cache_folder

BENCHMARKS = Path(__file__).resolve().parent
RESULT = BENCHMARKS / "results" / "train.json"
GPU_RESULT = RESULT.with_name("train_gpu.json")
SPREAD = 0.05
"""Blocks of a cell that differ by more than this are repeated while there is time."""
MOST_BLOCKS, BLOCK_SECONDS = 5, 1200


# --- in a process of its own ---


def work(tasks: Path, answers: Path, root: Path) -> None:
    """Does the tasks of a file and writes an answer for each. Several are given only for the smoke test."""
    done = []
    for task in json.loads(tasks.read_text()):
        kind, job = task["kind"], Job(**task["job"])
        try:
            with tempfile.TemporaryDirectory(dir=root) as scratch:
                done.append(_do(kind, job, root, Path(scratch)))
        except Exception:  # whatever a peer's code raises is the result of its cell, and the other cells go on
            done.append({"error": traceback.format_exc(limit=-4)})
        answers.write_text(json.dumps(done))


def _do(kind: str, job: Job, root: Path, scratch: Path) -> dict[str, Any]:
    if kind == "gate":
        from peers import gate

        return gate.run(job, root, scratch)
    from peers.job import files_for, padding_of, tokens_of_steps

    files = files_for(job, root)
    examples = files.examples()
    if kind == "pipeline":
        from peers import pipeline

        return pipeline.run(job, files, scratch).as_json()
    if kind == "cache" or job.peer.startswith("ours"):
        from peers import ours

        if kind == "cache":
            return ours.fill_cache(job, files, scratch).as_json()
        measured = ours.run(job, files, scratch)
    else:
        from peers import hf

        measured = hf.run(job, files, scratch)
    if measured.notes.get("of_limit", 0.0) > 1.0:
        raise RuntimeError(
            f"{measured.notes['of_limit']:.0%} of the limit: the machine was busy when its speed was measured. Leave it alone."
        )
    tokens = tokens_of_steps(job, examples)
    assert len(tokens) == len(measured.seconds) == job.steps
    return measured.as_json() | {"tokens": tokens, "samples": job.batch * job.steps, "padding": padding_of(job, examples)}


# --- the run ---


class Run:
    """The results so far, and what is still to be measured within a budget."""

    def __init__(self, out: Path, root: Path, budget: float, gpu: bool):
        self.out, self.root, self.gpu = out, root, gpu
        self.ends = time.monotonic() + budget
        machine = _machine(gpu)
        self.results = json.loads(out.read_text()) if out.is_file() else {"machine": machine, "blocks": {}}
        if self.results["machine"] != machine:
            sys.exit(f"{out} was measured on another machine or with other versions; begin again with --fresh.")

    @property
    def blocks(self) -> dict[str, list[dict[str, Any]]]:
        return self.results["blocks"]

    def good(self, cell: Cell) -> list[dict[str, Any]]:
        return [block for block in self.blocks.get(cell.name, []) if "error" not in block]

    def measure(self, cell: Cell) -> None:
        """One more block of a cell, unless it would not fit into the time that is left or has failed twice."""
        failed = len(self.blocks.get(cell.name, [])) - len(self.good(cell))
        if failed >= 2 or not self.fits(cell):
            return
        if cell.kind == "train" and cell.job.peer.startswith("ours") and cell.job.options.get("cache", True):
            self._fill_cache(cell)
        self._keep(cell, self._in_a_process([cell])[0])

    def _fill_cache(self, cell: Cell) -> None:
        """Who measures ours is not to pay for the tower in time or memory: the cache has a process and a row of its own."""
        cache = cells.cache_cell(cell)
        if not self.good(cache) or not cache_folder(cache.job, self.root).is_dir():
            self._keep(cache, self._in_a_process([cache])[0])

    def fits(self, cell: Cell) -> bool:
        walls = [block["wall_seconds"] for block in self.good(cell)]
        return time.monotonic() + (walls[-1] if walls else cell.seconds) < self.ends

    def _in_a_process(self, chosen: Sequence[Cell]) -> list[dict[str, Any]]:
        began = time.perf_counter()
        self.root.mkdir(parents=True, exist_ok=True)
        tasks, answers, log = self.root / "tasks.json", self.root / "answers.json", self.root / "log.txt"
        tasks.write_text(json.dumps([{"kind": cell.kind, "job": asdict(cell.job)} for cell in chosen]))
        answers.unlink(missing_ok=True)
        with log.open("w") as told:
            command = [sys.executable, str(BENCHMARKS / "train.py"), "--worker", str(tasks), str(answers), str(self.root)]
            threads = os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))
            environment = os.environ | {"OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
            try:
                code = subprocess.run(command, stdout=told, stderr=told, env=environment, timeout=BLOCK_SECONDS).returncode
            except subprocess.TimeoutExpired:
                code = -1
        done: list[dict[str, Any]] = json.loads(answers.read_text()) if answers.is_file() else []
        ends = {-1: f"it took more than {BLOCK_SECONDS} s", -9: "it was killed, as a rule for memory"}
        ended = f"{ends.get(code, f'it ended with code {code}')}: {' '.join(log.read_text().split())[-300:]}"
        done += [{"error": ended} for _ in range(len(chosen) - len(done))]
        for block in done:
            block["wall_seconds"] = round(time.perf_counter() - began, 1)
        return done

    def _keep(self, cell: Cell, block: dict[str, Any]) -> None:
        self.blocks.setdefault(cell.name, []).append(block)
        self.results["rows"] = report.rows(self.blocks)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.out.write_text(json.dumps(self.results, indent=1) + "\n")
        print(f"{time.strftime('%H:%M:%S')} {cell.name}: {report.in_short(block)}", flush=True)

    def all_at_once(self, chosen: Sequence[Cell]) -> None:
        """The smoke test: every cell in one process, which imports once. Memory then means nothing."""
        for cell, block in zip(chosen, self._in_a_process(chosen), strict=True):
            self._keep(cell, block)

    def by_rounds(self, patterns: Sequence[str]) -> None:
        headline = cells.chosen(cells.headline(False, self.gpu), patterns)
        once = [] if self.gpu else cells.chosen(cells.once(False), patterns)
        needed = {cells.gate_name(cell.job.stage, cell.job.shape, cell.job.peer) for cell in (*headline, *once) if cell.kind == "train"}
        for gate in cells.gates(False):
            if gate.name in needed and not self.good(gate):
                self.measure(gate)
        for number in range(MOST_BLOCKS):
            for cell in headline:
                done = self.good(cell)
                if len(done) <= number and (number < 2 or (done and report.spread(done) > SPREAD)):
                    self.measure(cell)
            if number == 1:
                for cell in once:
                    if not self.good(cell):
                        self.measure(cell)


def _machine(gpu: bool = False) -> dict[str, Any]:
    cpu = platform.processor()
    if Path("/proc/cpuinfo").is_file():
        names = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        cpu = names[0] if names else cpu
    packages = ("torch", "transformers", "peft", "trl", "accelerate", "pillow")
    card: dict[str, Any] = {}
    if gpu:
        import torch

        if not torch.cuda.is_available():
            sys.exit("--gpu: torch sees no GPU here.")
        card = {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return card | {"cpu": cpu, "cores": os.cpu_count(), "python": platform.python_version(), **{name: _version(name) for name in packages}}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget-minutes", type=float, default=45.0, help="no block is begun that would not end within these")
    parser.add_argument("--cells", default="", help="only cells whose name contains one of these, with commas between them")
    parser.add_argument("--fresh", action="store_true", help="forget what was measured of the chosen cells")
    parser.add_argument("--gpu", action="store_true", help="the 7B shapes on this machine's GPU instead")
    parser.add_argument("--quick", action="store_true", help="a smoke test on tiny models, at most 90 seconds")
    parser.add_argument("--table", action="store_true", help="only write the table and the plot")
    parser.add_argument("--work", type=Path, default=BENCHMARKS.parent / "runs" / "benchmark", help="models, pictures and caches: 4 GB")
    parser.add_argument("--out", type=Path, help="the result file")
    parser.add_argument("--worker", nargs=3, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(*options.worker)
        return
    patterns = [each for each in options.cells.split(",") if each]
    out: Path = options.out or (options.work / "quick.json" if options.quick else GPU_RESULT if options.gpu else RESULT)
    if options.fresh or options.quick:
        _forget(out, patterns, options.gpu and not options.quick)
    if not options.table:
        run = Run(out, options.work, 60 * options.budget_minutes, options.gpu and not options.quick)
        if options.quick:
            every = [*cells.gates(True), *cells.headline(True), *cells.once(True), *cells.headline(True, gpu=True)]
            run.all_at_once(cells.chosen(every, patterns))
        else:
            run.by_rounds(patterns)
    results = json.loads(out.read_text())
    if options.quick:
        sys.exit(_complaints(results["blocks"]))
    for part in report.tables(report.rows(results["blocks"])).values():
        print(part, end="\n\n")
    if not options.gpu:
        report.write_page(results)


def _forget(out: Path, patterns: Sequence[str], gpu: bool) -> None:
    if not out.is_file():
        return
    results = json.loads(out.read_text())
    kept = {name: blocks for name, blocks in results["blocks"].items() if patterns and not any(each in name for each in patterns)}
    out.write_text(json.dumps({"machine": _machine(gpu) if not kept else results["machine"], "blocks": kept}))


def _complaints(blocks: dict[str, list[dict[str, Any]]]) -> str | None:
    wrong = [f"{name}: {block['error']}" for name, each in blocks.items() for block in each if "error" in block]
    wrong += [f"{name}: losses differ" for name, each in blocks.items() for block in each if block.get("equal") is False]
    return "\n".join(wrong) or None


if __name__ == "__main__":
    main()
