"""One optimizer step: the gradient of a global batch, and what it does to the weights.

The two halves are apart so that a step whose gradient is not to be trusted can be computed again, or left out: `compute` changes no weight,
`update` applies what `compute` left behind. Processes that train together each run their part of the step's rows (`plan`), as many forwards
as all the others; what they learn is summed, so a step is the same however many they are.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from vistune.data.grouping import modality_grouped
from vistune.data.planner import plan_step
from vistune.data.sampler import Sampler
from vistune.errors import OutOfMemory, tells_of_memory
from vistune.model.llava import Llava
from vistune.train.config import TrainConfig
from vistune.train.distributed import World, let_go
from vistune.train.loader import Forwards
from vistune.train.objectives import Objective, Prepared
from vistune.train.optim import clip_gradients, schedule_factor, set_learning_rates


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
    """Takes the steps of a run, each a pure function of its number and the weights. Its numbers are those of all processes together."""

    def __init__(self, config: TrainConfig, model: Llava, objective: Objective, optimizer: torch.optim.Optimizer, world: World):
        self.config, self.model, self.objective, self.optimizer, self.world = config, model, objective, optimizer, world
        self.order = order_of(objective, config)

    def plan(self, step: int) -> tuple[tuple[int, ...], ...]:
        """The places in the objective of each forward of this process in a step."""
        return self._part(self.objective, self.order.rows(step).rows)

    def compute(self, step: int, forwards: Forwards) -> Computed:
        """The gradient of the summed loss over all examples of the step, divided once by all they count.

        Args:
            forwards: the examples that `plan(step)` names.
        """
        began = time.monotonic()
        # Dropout is the only chance in a step. Processes whose dropout was alike would learn less from as many rows.
        torch.manual_seed(_step_seed(self.config.seed, step, self.world.rank))
        self.model.train()
        count, tokens = self._counted(forwards)
        self.optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=self.world.device)
        for group in forwards:
            with self._out_of_memory_explained(group), autocast(self.config, self.world.device):
                part = self.objective.loss(self.model, group, self.world.device) / count
            with self._out_of_memory_explained(group):
                part.backward()
            loss += part.detach()
        norm = clip_gradients(self.parameters(), self.config.optim.max_grad_norm)
        ids = tuple(self.objective.id(place) for place in self.order.rows(step).rows)
        return Computed(self.world.sum(loss).item(), norm, ids, int(tokens), count, time.monotonic() - began)

    def update(self, step: int, total_steps: int) -> float:
        """Changes the weights by the gradient at hand, and returns the highest learning rate."""
        rate = set_learning_rates(self.optimizer, schedule_factor(step, total_steps, self.config.optim))
        self.optimizer.step()
        return rate

    @torch.no_grad()
    def evaluate(self, objective: Objective) -> float:
        """The mean loss over all examples of an objective, which the processes share among them."""
        self.model.eval()
        loss, counted = torch.zeros((), dtype=torch.float64, device=self.world.device), torch.zeros((), dtype=torch.float64)
        for places in self._part(objective, range(len(objective))):
            group = [objective.prepare(place) for place in places]
            with self._out_of_memory_explained(group), autocast(self.config, self.world.device):
                loss += objective.loss(self.model, group, self.world.device)
            counted += sum(example.count for example in group)
        let_go(self.model)
        return self.world.sum(loss).item() / self.world.sum(counted).item()

    def parameters(self) -> list[Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _part(self, objective: Objective, places: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        sizes = [objective.size(place) for place in places]
        forwards = plan_step(sizes, self.world.size, self.config.batch.tokens_per_forward)[self.world.rank]
        return tuple(tuple(places[number] for number in forward) for forward in forwards)

    def _counted(self, forwards: Forwards) -> tuple[float, float]:
        """What all processes' examples count together, and their tokens."""
        examples = [example for group in forwards for example in group]
        own = [sum(example.count for example in examples), sum(example.length for example in examples)]
        count, tokens = self.world.sum(torch.tensor(own, dtype=torch.float64)).tolist()
        return count, tokens

    @contextmanager
    def _out_of_memory_explained(self, group: Sequence[Prepared]) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not tells_of_memory(error):
                raise
            raise OutOfMemory(
                f"A forward of {len(group)} conversations with {sum(example.length for example in group)} tokens does not fit into the "
                f"memory of {self.world.device}. Lower batch.tokens_per_forward (now {self.config.batch.tokens_per_forward}), or set "
                "activation_checkpointing=true; neither changes what is learned."
            ) from error


def order_of(objective: Objective, config: TrainConfig) -> Sampler:
    """Which rows go into which step."""
    size, batch, grouped = len(objective), config.batch.conversations, config.batch.order == "modality_length"
    return Sampler(size, batch, config.seed, partial(modality_grouped, objective.official_lengths(), batch) if grouped else None)


def autocast(config: TrainConfig, device: torch.device) -> AbstractContextManager[object]:
    return torch.autocast(device.type, torch.bfloat16) if config.precision == "bf16" else nullcontext()


def _step_seed(seed: int, step: int, rank: int) -> int:
    words = f"{seed}:{step}:{rank}" if rank else f"{seed}:{step}"
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=7).digest(), "little")
