"""What a run keeps: where it stands, so that it goes on bit for bit, and the model that it leaves.

A run goes on only as the run that it was: config, data, tokenizer and frozen weights are compared by their fingerprints. With how many
processes it goes on is not among them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from vistune.checkpoint.resume import (
    TrainingState,
    load_latest,
    load_tensors,
    prune,
    read_state,
    save_state,
    saved_names,
    saved_steps,
    step_folder,
)
from vistune.errors import SaveError, UsageError
from vistune.model.llava import Llava
from vistune.train.config import FREE_ON_RESUME, TrainConfig, flat
from vistune.train.distributed import World, gathered
from vistune.train.features import digest_of
from vistune.train.parts import trained_tensors
from vistune.train.start import Start, save_result

_FAILED_SAVES = 3  # in a row before a run gives up: a full disk is often emptied within minutes


@dataclass
class Progress:
    """What a run remembers from step to step beside its tensors."""

    step: int = 0
    tokens: int = 0
    best_loss: float = math.inf
    best_step: int | None = None
    worse: int = 0
    """Validations in a row without a better loss."""
    validated: int = 0
    """The step after which the last validation was done."""
    losses: list[float] = field(default_factory=list)
    """Of the last steps that were taken: what a spike is measured by."""
    skipped: list[int] = field(default_factory=list)
    """The last steps that were left out."""


class Keeper:
    """Saves and takes up the state of a run. All its processes call the same methods; what is written once the first one writes.

    Args:
        start: the model in one piece (`parallelize` returns it), with its processor.
        model: the model that is trained: the same one, or divided among the processes.
        fingerprints: of what must be equal for a run to be the same run (`fingerprints_of`).
        say: shows a sentence to whoever watches.
    """

    def __init__(
        self,
        config: TrainConfig,
        start: Start,
        model: Llava,
        optimizer: torch.optim.Optimizer,
        world: World,
        *,
        fingerprints: Mapping[str, str],
        say: Callable[[str], None],
    ):
        self.config, self.start, self.model, self.optimizer, self.world, self.say = config, start, model, optimizer, world, say
        self.folder = Path(config.output)
        self.checkpoints = self.folder / "checkpoints"
        self.progress = Progress()
        self._names = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._fingerprints = fingerprints
        self._failed_saves = 0

    def take_up(self, resume: bool) -> bool:
        """Goes on from the newest good checkpoint; False where there is none and the run begins.

        Raises UsageError where there is one and `resume` was not asked for, ResumeMismatch where it is of another run, and CheckpointError
        where all are damaged.
        """
        begun = self.world.on_main(lambda: saved_steps(self.checkpoints))
        if begun and not resume:
            raise UsageError(
                f"{self.folder} holds a run that is {begun[-1]} steps old. Go on with it (resume), or choose another `output`; "
                f"nothing is overwritten."
            )
        self.world.on_main(lambda: self.checkpoints.mkdir(exist_ok=True))
        state, damaged = load_latest(self.checkpoints, self._fingerprints, self.world)
        for sentence in damaged:
            self.say(sentence)
        if state is None:
            return False
        self._load(step_folder(self.checkpoints, state.step), moments=True)
        self.progress = Progress(**state.progress)
        return True

    def save(self) -> bool:
        """Saves where the run stands, and says whether that worked. A failure is reported; the third in a row ends the run."""
        if self.world.on_main(lambda: self.progress.step in saved_steps(self.checkpoints)):
            return True
        moments = {
            f"{key}.{self._names[id(parameter)]}": moment
            for parameter, moments in self.optimizer.state.items()
            for key, moment in moments.items()
        }
        state = TrainingState(self.progress.step, self._fingerprints, asdict(self.progress))
        try:
            save_state(self.checkpoints, state, self._weights() | moments, self.world)
        except SaveError as error:
            self._failed_saves += 1
            self.say(f"ERROR: {error}")
            if self._failed_saves == _FAILED_SAVES:
                raise
            return False
        self.world.on_main(lambda: prune(self.checkpoints, keep=self.config.keep_checkpoints, protect=self.progress.best_step))
        self._failed_saves = 0
        return True

    def write_model(self) -> Path:
        """Writes the model: the best one where early stopping looked for it, else the last."""
        best = self.progress.best_step
        if self.config.early_stop is not None and self.world.on_main(lambda: best in saved_steps(self.checkpoints)):
            assert best is not None
            path = step_folder(self.checkpoints, best)
            self.world.on_main(lambda: read_state(path))
            self._load(path, moments=False)
        self.start.model.eval()
        with gathered(self.model, self.start.model, self.world, torch.device("cpu")):
            return self.world.on_main(lambda: save_result(self.start, self.config, self.folder / "model"))

    def _weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach() for name, tensor in trained_tensors(self.model, self.config.trainable)}

    def _load(self, path: Path, *, moments: bool) -> None:
        """Reads a checkpoint into the weights and, if asked, into moments made for it. A weight without a gradient yet had none."""
        tensors = self._weights()
        if moments:
            saved = self.world.on_main(lambda: saved_names(path))
            for group in self.optimizer.param_groups:
                for parameter in group["params"]:
                    name = self._names[id(parameter)]
                    if f"step.{name}" in saved:
                        # As AdamW makes them: shards like the weight's, and a step on its device, for the fused update reads it there.
                        step = torch.zeros((), device=parameter.device)
                        made = {"step": step, "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
                        self.optimizer.state[parameter] = made
                        tensors |= {f"{key}.{name}": moment.detach() for key, moment in made.items()}
        load_tensors(path, tensors, self.world)


def fingerprints_of(config: TrainConfig, start: Start, data_digest: str) -> dict[str, str]:
    """What must be equal for a run to be the same run; taken before the model is divided.

    Args:
        data_digest: of the rows that are trained on.
    """
    model, processor = start.model, start.processor
    trained = dict(trained_tensors(model, config.trainable))
    settings = {name: value for name, value in flat(config).items() if name not in FREE_ON_RESUME}
    tokenizer: str = processor.tokenizer.backend_tokenizer.to_str()  # type: ignore[attr-defined]
    return {
        **{f"setting {name}": repr(value) for name, value in settings.items()},
        "data": data_digest,
        "tokenizer": hashlib.sha256(tokenizer.encode()).hexdigest(),
        "frozen weights": digest_of((name, tensor) for name, tensor in model.state_dict().items() if name not in trained),
    }
