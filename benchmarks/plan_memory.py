"""What a plan says of memory against the peaks of real steps: one fresh process for each cell.

    python benchmarks/plan_memory.py            all cells: tiny and SmolLM2-135M shapes, random weights
    python benchmarks/plan_memory.py --few      four of them

A cell builds a model, takes three steps and reports by how much the process grew from the moment that the model stood (its peak resident
memory over what was resident then). To that the weights are added, as they were counted, so that what the build itself once held does not
hide what the steps need. On a GPU the allocator's own peak is taken. The goal is every cell within 10 %.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "plan_memory.json"
STEPS = 3
VISUAL, SUPERVISED = 196, 60


@dataclass(frozen=True)
class Cell:
    shape: str
    trained: str
    precision: str
    checkpointing: bool
    budget: int
    length: int = 330

    @property
    def name(self) -> str:
        return f"{self.shape} {self.trained} {self.precision} {self.budget}{' checkpointing' if self.checkpointing else ''}"


ALL = [
    Cell(shape, trained, precision, checkpointing, budget)
    for shape, budgets in (("tiny", (2048, 8192)), ("smol", (1024, 4096)))
    for trained in ("projector", "projector,language_model", "projector,lora")
    for precision in ("bf16", "fp32")
    for checkpointing in (False, True)
    for budget in budgets
]
FEW = [
    Cell("smol", "projector", "bf16", False, 2048),
    Cell("smol", "projector", "bf16", True, 2048),
    Cell("smol", "projector,language_model", "bf16", False, 2048),
    Cell("smol", "projector,lora", "bf16", False, 2048),
]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--few", action="store_true")
    parser.add_argument("--cell", help="(one cell as JSON: what this script starts itself with)")
    options = parser.parse_args()
    if options.cell:
        print(json.dumps(measure(Cell(**json.loads(options.cell)))))
        return
    rows = []
    for cell in FEW if options.few else ALL:
        command = [sys.executable, __file__, "--cell", json.dumps(asdict(cell))]
        finished = subprocess.run(command, capture_output=True, text=True, check=True)
        row = {"cell": cell.name, **json.loads(finished.stdout.splitlines()[-1])}
        rows.append(row)
        print(f"{row['cell']:<56} plan {row['planned_mib']:8.0f}  measured {row['measured_mib']:8.0f} MiB  {row['ratio']:.3f}", flush=True)
    if not options.few:
        RESULTS.write_text(json.dumps(rows, indent=2) + "\n")
    worst = max(rows, key=lambda row: abs(row["ratio"] - 1))
    within = sum(abs(row["ratio"] - 1) <= 0.1 for row in rows)
    print(f"{within} of {len(rows)} within 10 %; worst {worst['ratio']:.3f}: {worst['cell']}")


def measure(cell: Cell) -> dict[str, Any]:
    import torch

    from vistune.model.llava import Llava
    from vistune.train import levers
    from vistune.train.config import AlignConfig, BatchConfig, DataConfig, ModelChoice, OptimConfig, TrainConfig
    from vistune.train.limits import SampleSize
    from vistune.train.memory import largest_forward, needed_memory
    from vistune.train.optim import make_optimizer
    from vistune.train.parts import choose_parts, hold_in_precision
    from vistune.train.shapes import model_shape, published_config

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model_config = published_config("smollm2-135m-instruct", "google/siglip-base-patch16-224", "mlp2x_gelu")
    assert model_config is not None
    text = dict(model_config.text_config)
    if cell.shape == "tiny":
        text |= {"hidden_size": 256, "num_hidden_layers": 6, "intermediate_size": 704, "num_attention_heads": 4, "num_key_value_heads": 4}
        text |= {"vocab_size": 32_000}
    model_config = replace(model_config, text_config=text, image_token_id=3)
    config = TrainConfig(
        recipe="memory",
        output="",
        model=ModelChoice(),
        trainable=tuple(cell.trained.split(",")),  # type: ignore[arg-type]
        data=DataConfig(dataset=""),
        optim=OptimConfig(lr=1e-4),
        batch=BatchConfig(conversations=2 * cell.budget // cell.length, tokens_per_forward=cell.budget),
        align=AlignConfig(),
        precision=cell.precision,  # type: ignore[arg-type]
        activation_checkpointing=cell.checkpointing,
        feature_cache="features",  # the tower is measured elsewhere: the batch brings its features
    )
    torch.manual_seed(0)
    model = Llava(model_config)
    choose_parts(model, config.trainable, config.lora)
    levers.apply(model, config)
    hold_in_precision(model, config.precision)
    model.to(device).train()
    optimizer = make_optimizer(model, config.optim)
    shape = model_shape(model_config)
    rows = [SampleSize(cell.length, SUPERVISED, VISUAL, 1)] * config.batch.conversations
    forward = largest_forward(rows, cell.budget)
    memory = needed_memory(config, shape, forward, rows=[], forwards=2, device=device)
    batch = make_batch(len(forward.lengths), cell.length, shape.tower.width).to(device)
    before = resident(device)
    for _ in range(STEPS):
        optimizer.zero_grad(set_to_none=True)
        for _ in range(2):
            with torch.autocast(device, torch.bfloat16, enabled=cell.precision == "bf16"):
                loss, count = model.loss(batch)
            (loss / count).backward()
        optimizer.step()
    measured = memory.weights + peak(device) - before
    mib = 2**20
    return {"planned_mib": memory.peak / mib, "measured_mib": measured / mib, "ratio": memory.peak / measured, "device": device}


def make_batch(conversations: int, length: int, width: int) -> Any:
    import torch

    from vistune.model.inputs import IGNORE_INDEX, RaggedBatch

    total = conversations * length
    starts = list(range(0, total + 1, length))
    labels, mask = torch.full((total,), IGNORE_INDEX), torch.zeros(total, dtype=torch.bool)
    for start, end in itertools.pairwise(starts):
        labels[end - SUPERVISED : end] = 5
        mask[start + 1 : start + 1 + VISUAL] = True
    return RaggedBatch(
        input_ids=torch.full((total,), 7),
        position_ids=torch.arange(length).repeat(conversations),
        cu_seqlens=torch.tensor(starts, dtype=torch.int32),
        image_mask=mask,
        labels=labels,
        views=(1,) * conversations,
        image_sizes=((224, 224),) * conversations,
        image_features=torch.randn(conversations, VISUAL, width, dtype=torch.bfloat16),
    )


def resident(device: str) -> int:
    """Bytes that are resident now, after what was freed has been given back; from here on the peak counts anew."""
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak(device: str) -> int:
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    return _status("VmHWM")


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    main()
