"""One optimizer step: the gradient of a global batch, and what it does to the weights.

The two halves are apart so that a step whose gradient is not to be trusted can be computed again, or left out: `compute` changes no weight,
`update` applies what `compute` left behind.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from vistune.data.sampler import Sampler, pack
from vistune.errors import OutOfMemory
from vistune.model.llava import Llava
from vistune.train.config import TrainConfig
from vistune.train.objectives import Objective, Prepared
from vistune.train.optim import schedule_factor, set_learning_rates


@dataclass(frozen=True)
class Computed:
    """A step's loss and gradient norm, and the rows they come from. The gradient itself lies in the parameters."""

    loss: float
    gradient_norm: float
    """Before clipping."""
    ids: tuple[str, ...]
    tokens: int
    count: float
    """What the loss was divided by: for the answers' loss, supervised tokens."""
    seconds: float


class Stepper:
    """Takes the steps of a run, each a pure function of its number and the weights."""

    def __init__(self, config: TrainConfig, model: Llava, objective: Objective, optimizer: torch.optim.Optimizer, *, device: torch.device):
        self.config, self.model, self.objective, self.optimizer, self.device = config, model, objective, optimizer, device
        self.order = Sampler(len(objective), config.batch.conversations, config.seed)

    def compute(self, step: int) -> Computed:
        """The gradient of the summed loss over all examples of the step, divided once by all they count."""
        began = time.monotonic()
        torch.manual_seed(_step_seed(self.config.seed, step))  # dropout, the only chance in a step
        self.model.train()
        examples = [self.objective.prepare(place) for place in self.order.rows(step).rows]
        count = sum(example.count for example in examples)
        self.optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=self.device)
        for group in self.forwards(examples):
            with self._out_of_memory_explained(group), autocast(self.config, self.device):
                part = self.objective.loss(self.model, group, self.device) / count
            if part.requires_grad:  # a forward of text alone, while only the projector learns, has nothing to teach it
                with self._out_of_memory_explained(group):
                    part.backward()
            loss += part.detach()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters(), self.config.optim.max_grad_norm)
        tokens = sum(example.length for example in examples)
        ids = tuple(example.id for example in examples)
        return Computed(loss.item(), norm.item(), ids, tokens, count, time.monotonic() - began)

    def update(self, step: int, total_steps: int) -> float:
        """Changes the weights by the gradient at hand, and returns the highest learning rate."""
        rate = set_learning_rates(self.optimizer, schedule_factor(step, total_steps, self.config.optim))
        self.optimizer.step()
        return rate

    def forwards(self, examples: Sequence[Prepared]) -> Iterator[list[Prepared]]:
        """The examples in pieces that fit the token budget of one forward."""
        for places in pack([example.length for example in examples], self.config.batch.tokens_per_forward):
            yield [examples[place] for place in places]

    def parameters(self) -> list[Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    @contextmanager
    def _out_of_memory_explained(self, group: Sequence[Prepared]) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(
                f"A forward of {len(group)} conversations with {sum(example.length for example in group)} tokens does not fit into the "
                f"memory of {self.device}. Lower batch.tokens_per_forward (now {self.config.batch.tokens_per_forward}), or set "
                "activation_checkpointing=true; neither changes what is learned."
            ) from error


def autocast(config: TrainConfig, device: torch.device) -> AbstractContextManager[object]:
    return torch.autocast(device.type, torch.bfloat16) if config.precision == "bf16" else nullcontext()


def _step_seed(seed: int, step: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}:{step}".encode(), digest_size=7).digest(), "little")
