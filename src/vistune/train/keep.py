"""What a run keeps: where it stands, so that it goes on bit for bit, and the model that it leaves.

A run goes on only as the run that it was: config, data, tokenizer and frozen weights are compared by their fingerprints.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from vistune.checkpoint.resume import TrainingState, load_latest, load_state, prune, save_state, saved_steps
from vistune.errors import SaveError, UsageError
from vistune.train.config import FREE_ON_RESUME, TrainConfig, flat
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


class Keeper:
    """Saves and takes up the state of a run.

    Args:
        data_digest: of the rows that are trained on.
        say: shows a sentence to whoever watches.
    """

    def __init__(
        self, config: TrainConfig, start: Start, optimizer: torch.optim.Optimizer, *, data_digest: str, say: Callable[[str], None]
    ):
        self.config, self.start, self.optimizer, self.say = config, start, optimizer, say
        self.folder = Path(config.output)
        self.checkpoints = self.folder / "checkpoints"
        self.progress = Progress()
        self._names = {id(parameter): name for name, parameter in start.model.named_parameters() if parameter.requires_grad}
        self._data_digest = data_digest
        self._failed_saves = 0

    def take_up(self, resume: bool) -> bool:
        """Goes on from the newest good checkpoint; False where there is none and the run begins.

        Raises UsageError where there is one and `resume` was not asked for, ResumeMismatch where it is of another run, and CheckpointError
        where all are damaged.
        """
        begun = saved_steps(self.checkpoints)
        if begun and not resume:
            raise UsageError(
                f"{self.folder} holds a run that is {begun[-1]} steps old. Go on with it (resume), or choose another `output`; "
                f"nothing is overwritten."
            )
        self.checkpoints.mkdir(exist_ok=True)
        self._fingerprints = self._fingerprints_now()
        state, damaged = load_latest(self.checkpoints, self._fingerprints)
        for sentence in damaged:
            self.say(sentence)
        if state is None:
            return False
        self._restore(state)
        return True

    def save(self) -> bool:
        """Saves where the run stands, and says whether that worked. A failure is reported; the third in a row ends the run."""
        if self.progress.step in saved_steps(self.checkpoints):
            return True
        optimizer = {
            f"{key}.{self._names[id(parameter)]}": moment
            for parameter, moments in self.optimizer.state.items()
            for key, moment in moments.items()
        }
        weights = dict(trained_tensors(self.start.model, self.config.trainable))
        state = TrainingState(self.progress.step, weights, optimizer, self._fingerprints, asdict(self.progress))
        try:
            save_state(self.checkpoints, state)
        except SaveError as error:
            self._failed_saves += 1
            self.say(f"ERROR: {error}")
            if self._failed_saves == _FAILED_SAVES:
                raise
            return False
        prune(self.checkpoints, keep=self.config.keep_checkpoints, protect=self.progress.best_step)
        self._failed_saves = 0
        return True

    def write_model(self) -> Path:
        """Writes the model: the best one where early stopping looked for it, else the last."""
        best = self.progress.best_step
        if self.config.early_stop is not None and best is not None and best in saved_steps(self.checkpoints):
            self._load_weights(load_state(self.checkpoints / f"step-{best:08d}"))
        self.start.model.eval()
        return save_result(self.start, self.config, self.folder / "model")

    def _fingerprints_now(self) -> dict[str, str]:
        """What must be equal for a run to be the same run."""
        model, processor = self.start.model, self.start.processor
        trained = dict(trained_tensors(model, self.config.trainable))
        settings = {name: value for name, value in flat(self.config).items() if name not in FREE_ON_RESUME}
        tokenizer: str = processor.tokenizer.backend_tokenizer.to_str()  # type: ignore[attr-defined]
        return {
            **{f"setting {name}": repr(value) for name, value in settings.items()},
            "data": self._data_digest,
            "tokenizer": hashlib.sha256(tokenizer.encode()).hexdigest(),
            "frozen weights": digest_of((name, tensor) for name, tensor in model.state_dict().items() if name not in trained),
        }

    def _restore(self, state: TrainingState) -> None:
        self._load_weights(state)
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                name = self._names[id(parameter)]
                moments = {
                    key: state.optimizer[f"{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}.{name}" in state.optimizer
                }
                self.optimizer.state[parameter] = {
                    key: moment if key == "step" and parameter.device.type == "cpu" else moment.to(parameter.device)
                    for key, moment in moments.items()
                }
        self.progress = Progress(**state.progress)

    def _load_weights(self, state: TrainingState) -> None:
        saved: dict[str, Tensor] = dict(state.weights)
        with torch.no_grad():
            for name, tensor in trained_tensors(self.start.model, self.config.trainable):
                tensor.copy_(saved[name])
