"""Runs one stage of training: from a config to a folder with a model in it.

One process, one device. A run is a function of its config and its data: the rows of step n, the randomness of step n and the learning rate
of step n depend on n alone, so a run that was stopped goes on from its last checkpoint with the very losses it would have had.

    output/config.json        what was run, complete
           data.json          which rows were used, and why others were not
           metrics.jsonl      a line per step; loss.png draws it
           samples.jsonl      held-out questions and the answers along the way
           checkpoints/       to go on from
           model/             the result
"""

from __future__ import annotations

import fcntl
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from vistune.checkpoint.resume import saved_steps
from vistune.errors import Locked, NonFiniteError
from vistune.journal import atomic_write
from vistune.model.backbones import tokens_per_view, vision_width
from vistune.model.llava import Llava
from vistune.model.processor import Processor
from vistune.model.projector import GridMLPProjector
from vistune.train.config import TrainConfig, to_json
from vistune.train.features import FrozenFeatures, open_store
from vistune.train.keep import Keeper, Progress
from vistune.train.lessons import Lessons, load_lessons
from vistune.train.metrics import Display, MetricsLog, draw_loss_curve, read_metrics
from vistune.train.objectives import Align, CellNames, NextToken, Objective, cell_places
from vistune.train.optim import make_optimizer
from vistune.train.parts import choose_parts, hold_in_precision
from vistune.train.start import Start, start_model
from vistune.train.step import Computed, Stepper, autocast
from vistune.types import Conversation

SampleAnswers = Callable[[Llava, Processor, Sequence[Conversation]], Sequence[str]]
"""Answers conversations with the model as it stands; the command line gives the engine's."""

_PICTURES_TO_FIT = 256  # enough to measure the tower's channels by
_SAMPLES = 4


def train(config: TrainConfig, *, resume: bool = False, sampler: SampleAnswers | None = None, display: Display | None = None) -> Path:
    """Runs one stage and returns the folder of its model.

    Args:
        resume: go on from the newest good checkpoint in `config.output`; without one, begin.
        sampler: answers a few held-out questions every `config.sample_every` steps.

    Raises:
        UsageError: `config.output` holds a run that has begun, and `resume` was not asked for.
        DataError: rows that cannot be used (see `data.bad_rows`), and its children.
        ResumeMismatch: `config.output` holds a run with another config, data, tokenizer or frozen weights.
        NonFiniteError: a loss or gradient was NaN or infinite; the weights were not touched by it.
        SaveError: checkpoints could not be written three times in a row, or the result could not.
        Locked: another process is training into `config.output`.
    """
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    # Randomness inside is a function of the seed; what the caller draws afterwards is not disturbed.
    with _alone_in(folder), torch.random.fork_rng(), display or Display() as shown, ExitStack() as open_files:
        torch.manual_seed(config.seed)
        start = start_model(config.model)
        choose_parts(start.model, config.trainable, config.lora)
        hold_in_precision(start.model, config.precision)
        start.model.to(_device(config))
        lessons = load_lessons(config, start.model, start.processor, manifest_path=folder / "data.json")
        if isinstance(lessons.training, Align):
            lessons.training.give_words(start.model)
            start = replace(start, processor=Processor(start.processor.tokenizer, start.model.config))
        run = _Run(config, start, lessons, shown, deadline=_deadline(config, started))
        run.prepare_features(open_files)
        run.resume_or_begin(resume)
        run.learn(open_files.enter_context(closing(MetricsLog(folder / "metrics.jsonl", resume_step=run.progress.step))), sampler)
        return run.finish()


class _Run:
    """One stage while it runs."""

    def __init__(self, config: TrainConfig, start: Start, lessons: Lessons, display: Display, *, deadline: float):
        self.config, self.start, self.lessons, self.display, self.deadline = config, start, lessons, display, deadline
        self.model, self.processor = start.model, start.processor
        self.folder = Path(config.output)
        self.device = _device(config)
        optimizer = make_optimizer(self.model, config.optim)
        self.stepper = Stepper(config, self.model, lessons.training, optimizer, device=self.device)
        self.order = self.stepper.order
        self.total_steps = config.max_steps or max(1, math.ceil(config.epochs * self.order.steps_per_epoch))
        self.keeper = Keeper(config, start, optimizer, data_digest=lessons.manifest.digest, say=display.say)

    @property
    def progress(self) -> Progress:
        return self.keeper.progress

    # --- before the first step ---

    def prepare_features(self, open_files: ExitStack) -> None:
        """Encodes the pictures ahead, if the tower is frozen and there is a cache for them."""
        if not self.config.feature_cache or "vision_tower" in self.config.trainable:
            return
        dtype = torch.bfloat16 if self.config.precision == "bf16" else torch.float32
        shape = {"tokens": tokens_per_view(self.model.config), "width": vision_width(self.model.config)}
        store = open_store(Path(self.config.feature_cache), self.model.vision_tower, self.model.config, dtype=dtype, **shape)
        features = FrozenFeatures(self._encode, open_files.enter_context(closing(store)))
        for objective in self._objectives():
            objective.features = features
            bar = self.display.bar("pictures", total=len(objective))
            features.fill(objective.pictures(), on_done=bar.advance)
            bar.close()

    def _objectives(self) -> list[Objective]:
        return [each for each in (self.lessons.training, self.lessons.validation) if each is not None]

    def resume_or_begin(self, resume: bool) -> None:
        """Takes up the newest good checkpoint of this run, or writes down what begins."""
        if not self.keeper.take_up(resume) and not self.config.model.init_from:
            projector = self.model.multi_modal_projector
            if isinstance(projector, GridMLPProjector):
                self._fit_projector(projector)
        atomic_write(self.folder / "config.json", to_json(self.config).encode())

    def _fit_projector(self, projector: GridMLPProjector) -> None:
        """Measures the tower's channels on pictures in the order of training, so that the sample is as mixed as the data."""
        places = islice((place for step in range(self.order.steps_per_epoch) for place in self.order.rows(step).rows), _PICTURES_TO_FIT)
        features: list[Tensor] = []
        for place in places:
            inputs = self.lessons.training.inputs(place)
            if inputs.image_features is not None:
                features.append(inputs.image_features)
            elif inputs.pixel_values is not None:
                features.append(self._encode(inputs.pixel_values).cpu())
        if features:
            words = self.model.causal_lm.get_input_embeddings().weight
            places = CellNames.of(cell_places(projector.side), self.model, self.processor).directions
            projector.fit(torch.cat(features).to(self.device), words, places.to(self.device))

    # --- the steps ---

    def learn(self, metrics: MetricsLog, sampler: SampleAnswers | None) -> None:
        config, progress = self.config, self.progress
        bar = self.display.bar(config.recipe, total=self.total_steps, done=progress.step)
        while progress.step < self.total_steps and not self._stops_early() and time.monotonic() < self.deadline:
            row = self._step(progress.step)
            metrics.write(row)
            bar.advance(note=f"loss {row['loss']:.3f} · {row['tokens_per_second']:.0f} tokens/s")
            last = progress.step == self.total_steps
            if self.lessons.validation is not None and (last or progress.step % config.validate_every == 0):
                self._validate(metrics)
            if sampler is not None and config.sample_every and progress.step % config.sample_every == 0:
                self._show_samples(sampler)
            if progress.step % config.save_every == 0 and not self.keeper.save():
                metrics.write({"step": progress.step, "checkpoint_failed": 1})
        bar.close()

    def _step(self, step: int) -> dict[str, float]:
        began = time.monotonic()
        computed = self.stepper.compute(step)
        if not (math.isfinite(computed.loss) and math.isfinite(computed.gradient_norm)):
            self._refuse(step, computed)
        rate = self.stepper.update(step, self.total_steps)
        seconds = time.monotonic() - began
        self.progress.step, self.progress.tokens = step + 1, self.progress.tokens + computed.tokens
        return {
            "step": step + 1,
            "epoch": (step + 1) / self.order.steps_per_epoch,
            "loss": computed.loss,
            "learning_rate": rate,
            "gradient_norm": computed.gradient_norm,
            "tokens": computed.tokens,
            "supervised_tokens": computed.count,
            "tokens_per_second": computed.tokens / seconds,
            "seconds": seconds,
        }

    def _refuse(self, step: int, computed: Computed) -> NoReturn:
        steps = saved_steps(self.keeper.checkpoints)
        ids = ", ".join(computed.ids[:8]) + (", ..." if len(computed.ids) > 8 else "")
        raise NonFiniteError(
            f"Step {step + 1} has loss {computed.loss} and gradient norm {computed.gradient_norm}; the weights were not changed by it. "
            f"Its rows are {ids}. Lower optim.lr, or look at these rows; the run goes on "
            f"from {f'step {steps[-1]}' if steps else 'the beginning'}."
        )

    def _stops_early(self) -> bool:
        return self.config.early_stop is not None and self.progress.worse >= self.config.early_stop

    def _validate(self, metrics: MetricsLog) -> None:
        """The mean loss over the held-out rows; with early stopping, a checkpoint of each better model."""
        loss, progress = self._validation_loss(), self.progress
        metrics.write({"step": progress.step, "validation_loss": loss})
        self.display.say(f"step {progress.step}: validation loss {loss:.4f}")
        if loss < progress.best_loss:
            progress.best_loss, progress.best_step, progress.worse = loss, progress.step, 0
            if self.config.early_stop is not None:
                self.keeper.save()
        else:
            progress.worse += 1

    @torch.no_grad()
    def _validation_loss(self) -> float:
        validation = self.lessons.validation
        assert validation is not None
        self.model.eval()
        loss, count = torch.zeros((), dtype=torch.float64, device=self.device), 0.0
        examples = [validation.prepare(place) for place in range(len(validation))]
        for group in self.stepper.forwards(examples):
            with autocast(self.config, self.device):
                loss += validation.loss(self.model, group, self.device)
            count += sum(example.count for example in group)
        return loss.item() / count

    def _show_samples(self, sampler: SampleAnswers) -> None:
        """Answers a few held-out questions (of the training rows where none are held out), for people to read."""
        source = self.lessons.validation or self.lessons.training
        if not isinstance(source, NextToken):
            return
        asked = [source.conversation(place) for place in range(min(_SAMPLES, len(source)))]
        self.model.eval()
        with torch.no_grad(), autocast(self.config, self.device):
            answers = sampler(self.model, self.processor, [Conversation(each.messages[:-1]) for each in asked])
        with (self.folder / "samples.jsonl").open("a", encoding="utf-8") as file:
            for conversation, answer in zip(asked, answers, strict=True):
                question, expected = conversation.messages[-2].text.strip(), conversation.last_reply
                file.write(json.dumps({"step": self.progress.step, "question": question, "expected": expected, "answer": answer}) + "\n")
                self.display.say(f"  {question!r} → {answer!r}  (expected {expected!r})")

    def finish(self) -> Path:
        """Saves the last checkpoint, draws the loss curve, and writes the model."""
        self.keeper.save()
        draw_loss_curve(read_metrics(self.folder / "metrics.jsonl"), self.folder / "loss.png", title=self.config.recipe)
        return self.keeper.write_model()

    # --- small things ---

    def _encode(self, pixel_values: Tensor) -> Tensor:
        with torch.no_grad(), autocast(self.config, self.device):
            return self.model.encode_images(pixel_values.to(self.device))


def _device(config: TrainConfig) -> torch.device:
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(config.device)


def _deadline(config: TrainConfig, started: float) -> float:
    return math.inf if config.max_minutes is None else started + 60 * config.max_minutes


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Holds the run's folder; the kernel lets go of it when the process ends, however it ends."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Locked(f"Another process is training into {folder}. Wait for it, or choose another `output`.") from error
        yield
