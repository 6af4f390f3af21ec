"""The equality gate: who does not learn the same is not compared.

vistune and a peer train the same small model on the same batches in fp32, each by its own trainer; the losses of every step may differ by
one part in ten thousand at most. They start from one file, so equal losses after many steps mean equal gradients too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peers import hf, ours
from peers.job import Job, files_for

TOLERANCE = 1e-4


def run(job: Job, root: Path, scratch: Path) -> dict[str, Any]:
    """Both sides' losses, and the largest relative difference."""
    files = files_for(job, root)
    with _adapters_start_alike():
        mine = ours.run(replace(job, peer="ours", options={}), files, scratch / "ours").losses
        theirs = hf.run(job, files, scratch / "peer").losses
    assert len(mine) == len(theirs) == job.warm + job.steps, (len(mine), len(theirs))
    worst = max(abs(one - other) / abs(other) for one, other in zip(mine, theirs, strict=True))
    return {
        "steps": len(mine),
        "largest_relative_difference": worst,
        "equal": worst <= TOLERANCE,
        "first_losses": [mine[0], theirs[0]],
        "last_losses": [mine[-1], theirs[-1]],
    }


@contextmanager
def _adapters_start_alike() -> Iterator[None]:
    """LoRA's A matrices are drawn at random, by each trainer at another moment; here a matrix of a shape is drawn alike wherever it is."""
    plain = torch.nn.init.kaiming_uniform_

    def by_shape(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        generator = torch.Generator().manual_seed(sum(tensor.shape))
        return plain(tensor, *args, **kwargs | {"generator": generator})

    torch.nn.init.kaiming_uniform_ = by_shape
    try:
        yield
    finally:
        torch.nn.init.kaiming_uniform_ = plain
