"""What batch-independent bits cost: prefill and decode in each arithmetic mode, and which company changes which bits.

    python benchmarks/ragged.py [--dtype bfloat16] [--threads 2] [--repeats 5] [--out benchmarks/results/ragged.json]

The model has SmolLM2-135M's shape and random weights. Each figure is the best of several runs (the least disturbed one); modes take
turns, so that a busy machine disturbs all alike; on one thread it is processor time, which a busy machine disturbs little. The floor is
every linear layer once on the same number of rows, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vistune.engine.kv_cache import KVArena, KVShape
from vistune.model.config import ImageConfig, ModelConfig
from vistune.model.inputs import RaggedBatch
from vistune.model.llava import Llava
from vistune.model.ragged import fixed_row_tiles, steady_rows

SHAPE = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3}
TEXT = {"model_type": "llama", "vocab_size": 49152, "tie_word_embeddings": True, "max_position_embeddings": 2048, **SHAPE}
PROMPT, LENGTHS, ALONE = 200, (300, 100, 50), 100
MODES: dict[str, Callable[[], Any]] = {
    "plain": nullcontext,
    "steady_rows": steady_rows,
    "fixed_row_tiles(16)": fixed_row_tiles,
    "fixed_row_tiles(64)": lambda: fixed_row_tiles(64),
}


def batch_of(lengths: tuple[int, ...], past: int = 0, seed: int = 0) -> RaggedBatch:
    total = sum(lengths)
    return RaggedBatch(
        input_ids=torch.randint(0, 49152, (total,), generator=torch.Generator().manual_seed(seed)),
        position_ids=torch.cat([torch.arange(past, past + length) for length in lengths]),
        cu_seqlens=torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32),
        image_mask=torch.zeros(total, dtype=torch.bool),
    )


def logits(model: Llava, batch: RaggedBatch, kv: Any = None) -> Tensor:
    """The last position's logits of each sequence, under gradients (which nothing needs): `plain` is not to get inference's default."""
    return model(batch, select=batch.cu_seqlens[1:].long() - 1, kv=kv)


def best(run: Callable[[], object]) -> float:
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    started = clock()
    run()
    return (clock() - started) * 1e3


def floor_ms(model: Llava, rows: int) -> float:
    """Every linear layer of the language model once, on this many rows, and nothing else."""
    weights = [module.weight for name, module in model.language_model.named_modules() if isinstance(module, torch.nn.Linear)]
    inputs = {width: torch.randn(rows, width, dtype=model.dtype) for width in (576, 1536)}
    return min(best(lambda: [F.linear(inputs[weight.shape[1]], weight) for weight in weights]) for _ in range(3))


def measure(model: Llava, repeats: int) -> list[dict[str, Any]]:
    rows = []
    arena = KVArena(KVShape.of(TEXT), dtype=model.dtype)
    for count in (1, 4, 16):
        sequences = [arena.allocate(reserve=PROMPT + 1) for _ in range(count)]
        logits(model, batch_of((PROMPT,) * count), arena.view(sequences))
        step = batch_of((1,) * count, past=PROMPT)

        def decode(step: RaggedBatch = step, sequences: list[Any] = sequences) -> None:
            logits(model, step, arena.view(sequences))
            for sequence in sequences:
                arena.truncate(sequence, PROMPT)

        rows.append({"what": f"decode, {count} sequences after {PROMPT} tokens", **timed(decode, repeats), "floor": floor_ms(model, count)})
        for sequence in sequences:
            arena.free(sequence)
    together = batch_of(LENGTHS)
    what = f"prefill of {'+'.join(map(str, LENGTHS))} tokens"
    rows.append({"what": what, **timed(lambda: logits(model, together), repeats), "floor": floor_ms(model, sum(LENGTHS))})
    return rows


def timed(run: Callable[[], object], repeats: int) -> dict[str, float]:
    figures = dict.fromkeys(MODES, float("inf"))
    for _ in range(repeats + 1):  # the first round warms up
        for name, mode in MODES.items():
            with mode():
                figures[name] = min(figures[name], best(run))
    return figures


def bits(model: Llava) -> dict[str, bool]:
    """Whether a sequence's last logits are the same bits alone and beside neighbours of several lengths, per mode."""
    same = {}
    watched = batch_of((ALONE,))
    for name, mode in MODES.items():
        with mode():
            alone = logits(model, watched)[0]
            beside = []
            for other in (1, 2, 7, 33):
                batch = batch_of((ALONE, other))
                ids = torch.cat([watched.input_ids, batch.input_ids[ALONE:]])
                beside.append(logits(model, RaggedBatch(ids, batch.position_ids, batch.cu_seqlens, batch.image_mask))[0])
        same[name] = all(torch.equal(alone, each) for each in beside)
    return same


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    image = ImageConfig(size=224)
    config = ModelConfig(vision_tower="efficientnet_lite0", text_config=TEXT, projector="grid_mlp", image=image)
    model = Llava(config, dtype=getattr(torch, options.dtype)).eval().requires_grad_(False)
    figures, same = measure(model, options.repeats), bits(model)
    for row in figures:
        print(f"{row['what']} (ms; floor {row['floor']:.0f}):", ", ".join(f"{name} {row[name]:.0f}" for name in MODES))
    print("same bits alone and in company:", same)
    if options.out:
        machine = {"machine": platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__}
        report = {**machine, "dtype": options.dtype, "threads": options.threads, "milliseconds": figures, "same_bits": same}
        options.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
