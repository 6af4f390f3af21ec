"""Runs one stage of training: from a config to a folder with a model in it.

A run is a function of its config and its data: the rows of step n, the randomness of step n and the learning rate of step n depend on n
alone, so a run that was stopped goes on from its last checkpoint with the very losses it would have had. Several processes (torchrun) take
the same steps together.

    output/config.json        what was run, complete
           data.json          which rows were used, and why others were not
           metrics.jsonl      a line per step; loss.png and loss.html draw it
           quarantine.jsonl   the rows of steps that were left out, if any were
           samples.jsonl      held-out questions and the answers along the way
           checkpoints/       to go on from
           model/             the result
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NoReturn

import torch
from rich.console import Console
from torch import Tensor
from torch.distributed.tensor import DTensor

from vistune.checkpoint.resume import newest_fingerprints, saved_steps
from vistune.errors import Locked, NonFiniteError, UnknownName
from vistune.journal import atomic_write
from vistune.model.backbones import tokens_per_view, vision_width
from vistune.model.llava import Llava
from vistune.model.processor import Processor
from vistune.model.projector import GridMLPProjector
from vistune.train import levers
from vistune.train.card import write_card
from vistune.train.config import TrainConfig, to_json
from vistune.train.curve import write_curves
from vistune.train.distributed import World, gathered, move_whole, parallelize, start_world, waiting_to_be_divided
from vistune.train.features import FrozenFeatures, open_store
from vistune.train.guard import Guard
from vistune.train.keep import Keeper, Progress, fingerprints_of
from vistune.train.lessons import Lessons, load_lessons
from vistune.train.loader import Loader
from vistune.train.metrics import Display, Meter, MetricsLog, note_of, read_metrics
from vistune.train.objectives import Align, CellNames, NextToken, Objective, cell_places
from vistune.train.optim import make_optimizer
from vistune.train.parts import choose_parts, hold_in_precision
from vistune.train.plan import Plan, check_fits, this_device
from vistune.train.start import Start, start_model
from vistune.train.step import Stepper, autocast, order_of
from vistune.train.stopping import StopSignals
from vistune.types import Conversation

SampleAnswers = Callable[[Llava, Processor, Sequence[Conversation]], Sequence[str]]
"""Answers conversations with the model as it stands; the command line gives the engine's."""

_PICTURES_TO_FIT = 256  # enough to measure the tower's channels by
_SAMPLES = 4


def train(
    config: TrainConfig,
    *,
    resume: bool = False,
    allow_mismatch: Collection[str] = (),
    sampler: SampleAnswers | None = None,
    display: Display | None = None,
) -> Path:
    """Runs one stage and returns the folder of its model. Under torchrun, all processes call it alike.

    Args:
        resume: go on from the newest good checkpoint in `config.output`; without one, begin.
        allow_mismatch: what may differ from the run that is gone on with, by the names that a refusal gives (`data`, `optim.lr`). It is
            then neither that run nor another, and says so in its metrics; the next call has to allow it again.
        sampler: answers a few held-out questions every `config.sample_every` steps.

    Raises:
        UsageError: `config.output` holds a run that has begun, and `resume` was not asked for; and its children.
        DataError: rows that cannot be used (see `data.bad_rows`), and its children.
        ResumeMismatch: `config.output` holds a run with another config, data, tokenizer or frozen weights.
        NonFiniteError: a loss or gradient was NaN or infinite, or jumped, twice; the weights were not touched by it.
        WorkerError: a row took longer than `data.timeout`, or another process of the run died.
        OutOfMemory: a GPU cannot hold the run (said before it begins), or did not hold a forward.
        SaveError: checkpoints could not be written three times in a row, or the result could not.
        Preempted: SIGTERM or SIGUSR1 asked for an end; a checkpoint is saved. (Ctrl-C does the same, with KeyboardInterrupt.)
        Locked: another process is training into `config.output`.
    """
    levers.check_levers(config)
    folder = Path(config.output)
    started = time.monotonic()
    with ExitStack() as open_files:
        world = open_files.enter_context(start_world(config))
        world.on_main(lambda: open_files.enter_context(_alone_in(folder)))
        # Randomness inside is a function of the seed; what the caller draws afterwards is not disturbed.
        open_files.enter_context(torch.random.fork_rng())
        shown = open_files.enter_context(display or Display(None if world.main else Console(quiet=True)))
        torch.manual_seed(config.seed)
        start = start_model(config.model)
        choose_parts(start.model, config.trainable, config.lora)
        levers.apply(start.model, config)
        waiting = waiting_to_be_divided(start.model, config, world)
        hold_in_precision(start.model, config.precision, but=waiting)
        with world.main_first():
            lessons = load_lessons(config, start.model, start.processor, manifest_path=folder / "data.json")
        shown.say(_planned(config, start, lessons, world).summary())
        move_whole(start.model, waiting, world.device)
        if isinstance(lessons.training, Align):
            lessons.training.give_words(start.model)
            start = replace(start, processor=Processor(start.processor.tokenizer, start.model.config))
        run = _Run(config, start, lessons, world, shown, deadline=_deadline(config, started))
        run.prepare_features(open_files)
        run.resume_or_begin(resume, allow_mismatch)
        run.learn(sampler)
        return run.finish()


class _Run:
    """One stage while it runs."""

    def __init__(self, config: TrainConfig, start: Start, lessons: Lessons, world: World, display: Display, *, deadline: float):
        self.config, self.start, self.lessons, self.world, self.display, self.deadline = config, start, lessons, world, display, deadline
        self.model, self.processor = start.model, start.processor
        self.folder = Path(config.output)
        self.order = order_of(lessons.training, config)
        self.total_steps = config.max_steps or max(1, math.ceil(config.epochs * self.order.steps_per_epoch))
        self.asked_to_stop = StopSignals()
        self._metrics: MetricsLog | None = None  # of the process that writes, once the steps begin
        self._meter: Meter | None = None

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
        store = open_store(
            Path(self.config.feature_cache),
            self.model.vision_tower,
            self.model.config,
            dtype=dtype,
            max_gb=self.config.feature_cache_gb,
            **shape,
        )
        features = FrozenFeatures(self._encode, open_files.enter_context(closing(store)))
        if self.config.feature_cache_when == "measured" and not self.world.on_main(lambda: self._cache_pays(features)):
            return
        with self.world.main_first():
            for objective in self._objectives():
                objective.features = features
                bar = self.display.bar("pictures", total=len(objective))
                features.fill(objective.pictures(), on_done=bar.advance)
                bar.close()
        if features.full:
            self.display.say(
                f"The feature cache {self.config.feature_cache} holds as much as feature_cache_gb={self.config.feature_cache_gb:g} allows "
                f"({len(store)} pictures of this tower); the others are encoded when they are met."
            )

    def _cache_pays(self, features: FrozenFeatures) -> bool:
        passes = [(self.lessons.training.pictures(), self.total_steps * self.config.batch.conversations / len(self.lessons.training))]
        if self.lessons.validation is not None:
            passes.append((self.lessons.validation.pictures(), math.ceil(self.total_steps / self.config.validate_every)))
        costs = features.costs(*passes)
        self.display.say(str(costs))
        return costs.pays

    def _objectives(self) -> list[Objective]:
        return [each for each in (self.lessons.training, self.lessons.validation) if each is not None]

    def resume_or_begin(self, resume: bool, allow_mismatch: Collection[str]) -> None:
        """Takes up the newest good checkpoint of this run, or writes down what begins."""
        config = self.config
        fingerprints = self._allowing(allow_mismatch, fingerprints_of(config, self.start, self.lessons.manifest.digest))
        begins = not self.world.on_main(lambda: saved_steps(self.folder / "checkpoints"))
        projector = self.model.multi_modal_projector
        if begins and not config.model.init_from and isinstance(projector, GridMLPProjector):
            self._fit_projector(projector)
        self.world.agree(fingerprints)
        # From here on `self.model` may be divided among the processes; `self.start.model` is the one in one piece.
        self.start = replace(self.start, model=parallelize(self.model, config, self.world))
        optimizer = make_optimizer(self.model, config.optim)
        self.stepper = Stepper(config, self.model, self.lessons.training, optimizer, self.world)
        self.keeper = Keeper(config, self.start, self.model, optimizer, self.world, fingerprints=fingerprints, say=self.display.say)
        self.keeper.take_up(resume)
        self.world.on_main(lambda: atomic_write(self.folder / "config.json", to_json(config).encode()))

    def _allowing(self, names: Collection[str], fingerprints: dict[str, str]) -> dict[str, str]:
        """The fingerprints, those that may differ as the run has them. Raises UnknownName for what no run is known by."""
        known = {name.removeprefix("setting "): name for name in fingerprints}
        for name in names:
            if name not in known:
                raise UnknownName("thing to allow a mismatch of", name, known)
        saved = self.world.on_main(lambda: newest_fingerprints(self.folder / "checkpoints")) if names else {}
        own = {known[name]: saved[known[name]] for name in names if known[name] in saved}
        self._mismatches = [name for name, fingerprint in own.items() if fingerprints[name] != fingerprint]
        for name in self._mismatches:
            self.display.say(f"WARNING: {name} differs from what the run in {self.folder} began with; it goes on because that was allowed.")
        return fingerprints | own

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
            projector.fit(torch.cat(features).to(self.world.device), words.to(self.world.device), places.to(self.world.device))

    # --- the steps ---

    def learn(self, sampler: SampleAnswers | None) -> None:
        """Takes all steps that are left, or as many as it may, and saves where the run then stands.

        Raises Preempted or KeyboardInterrupt after a signal, between two steps and with a checkpoint.
        """
        config, progress = self.config, self.progress
        with ExitStack() as open_files:
            if self.world.main:
                log = MetricsLog(self.folder / "metrics.jsonl", resume_step=progress.step, tensorboard=config.tensorboard)
                self._metrics = open_files.enter_context(closing(log))
                cached = self.lessons.training.features is not None
                self._meter = Meter(config, self.model.config, self.world.device.type, processes=self.world.size, cached=cached)
            self._loader = open_files.enter_context(self._reader(progress.step))
            self._guard = Guard(
                config.guard,
                progress,
                self.folder / "quarantine.jsonl",
                anywhere=self.world.any,
                main=self.world.main,
                say=self.display.say,
            )
            for name in self._mismatches:
                self._log({"step": progress.step, f"mismatch of {name}": 1})
            open_files.enter_context(self.asked_to_stop)
            bar = self.display.bar(config.recipe, total=self.total_steps, done=progress.step)
            self._validate_if_due()  # the run may have been stopped between a step and its validation
            while not self._ends():
                row = self._step(progress.step)
                self._log(row)
                bar.advance(note=note_of(row))
                self._validate_if_due()
                if sampler is not None and config.sample_every and progress.step % config.sample_every == 0:
                    self._show_samples(sampler)
                if progress.step % config.save_every == 0:
                    self._save()
            bar.close()
            saved = self._save()
            if self.world.any(bool(self.asked_to_stop)):
                self._stop(saved)

    def _reader(self, first_step: int) -> Loader:
        data = self.config.data
        return Loader(self.lessons.training, self.stepper.plan, first_step, self.total_steps, data.workers, data.timeout)

    def _ends(self) -> bool:
        """Whether no further step is to be taken; processes have clocks and signals of their own, and have to agree."""
        if self.progress.step >= self.total_steps:
            return True
        stops_early = self.config.early_stop is not None and self.progress.worse >= self.config.early_stop
        return self.world.any(stops_early or bool(self.asked_to_stop) or time.monotonic() >= self.deadline)

    def _stop(self, saved: bool) -> NoReturn:
        stands = f"It stands at step {self.progress.step} of {self.total_steps}"
        where = f"{stands}, which is saved" if saved else f"{stands}, which could not be saved; it goes on from {self._last_checkpoint()}"
        self.display.say(f"{where}.")
        self.asked_to_stop.obey(f"{where}; --resume goes on.")

    def _step(self, step: int) -> dict[str, float]:
        began, progress = time.monotonic(), self.progress
        checked = self._guard.check(
            step, lambda step: self.stepper.compute(step, self._loader.take(step)), go_on_from=self._last_checkpoint
        )
        row: dict[str, float] = {"step": step + 1, "epoch": (step + 1) / self.order.steps_per_epoch}
        if checked.skipped:
            progress.step = step + 1
            return row | {"skipped": 1, "seconds": time.monotonic() - began}
        computed = checked.computed
        rate = self.stepper.update(step, self.total_steps)
        seconds = time.monotonic() - began
        progress.step, progress.tokens = step + 1, progress.tokens + computed.tokens
        row |= {
            "loss": computed.loss,
            "learning_rate": rate,
            "gradient_norm": computed.gradient_norm,
            "tokens": computed.tokens,
            "supervised_tokens": computed.count,
            "tokens_per_second": computed.tokens / seconds,
            "seconds": seconds,
        }
        if self._meter is not None:
            sizes = [self.lessons.training.size(place) for place in self.stepper.order.rows(step).rows]
            row |= self._meter.read(sizes, computed.count, seconds)
        return row | {"recomputed": 1} if checked.recomputed else row

    def _save(self) -> bool:
        """Saves a checkpoint and says whether that worked. What is not finite is no checkpoint: the ones before are better."""
        weights = (each.to_local() if isinstance(each, DTensor) else each for each in self.stepper.parameters())
        broken = not all(bool(each.isfinite().all()) for each in weights)
        if self.world.any(broken):
            raise NonFiniteError(
                f"After step {self.progress.step} the weights are not finite, though every loss and gradient was. They are not saved; is "
                f"optim.lr far too high? The run goes on from {self._last_checkpoint()}."
            )
        saved = self.keeper.save()
        if not saved:
            self._log({"step": self.progress.step, "checkpoint_failed": 1})
        return saved

    def _log(self, row: dict[str, float]) -> None:
        if self._metrics is not None:
            self._metrics.write(row)

    def _last_checkpoint(self) -> str:
        steps = saved_steps(self.keeper.checkpoints)
        return f"step {steps[-1]}" if steps else "the beginning"

    def _validate_if_due(self) -> None:
        """The mean loss over the held-out rows; with early stopping, a checkpoint of each better model.

        A run that is to end soon leaves it to the one that goes on from here.
        """
        progress, validation = self.progress, self.lessons.validation
        due = progress.step == self.total_steps or progress.step % self.config.validate_every == 0
        if validation is None or not due or progress.validated == progress.step or self.world.any(bool(self.asked_to_stop)):
            return
        loss = self.stepper.evaluate(validation)
        self._log({"step": progress.step, "validation_loss": loss})
        self.display.say(f"step {progress.step}: validation loss {loss:.4f}")
        progress.validated = progress.step
        if loss < progress.best_loss:
            progress.best_loss, progress.best_step, progress.worse = loss, progress.step, 0
            if self.config.early_stop is not None:
                self._save()
        else:
            progress.worse += 1

    def _show_samples(self, sampler: SampleAnswers) -> None:
        """Answers a few held-out questions (of the training rows where none are held out), for people to read."""
        source = self.lessons.validation or self.lessons.training
        if not isinstance(source, NextToken):
            return
        asked = [source.conversation(place) for place in range(min(_SAMPLES, len(source)))]
        self.model.eval()
        with gathered(self.model, self.start.model, self.world, self.world.device):
            self.world.on_main(lambda: self._show(asked, sampler))

    def _show(self, asked: Sequence[Conversation], sampler: SampleAnswers) -> None:
        model = self.start.model.eval()
        with torch.no_grad(), autocast(self.config, self.world.device):
            answers = sampler(model, self.processor, [Conversation(each.messages[:-1]) for each in asked])
        with (self.folder / "samples.jsonl").open("a", encoding="utf-8") as file:
            for conversation, answer in zip(asked, answers, strict=True):
                question, expected = conversation.messages[-2].text.strip(), conversation.last_reply
                file.write(json.dumps({"step": self.progress.step, "question": question, "expected": expected, "answer": answer}) + "\n")
                self.display.say(f"  {question!r} → {answer!r}  (expected {expected!r})")

    def finish(self) -> Path:
        """Draws how it went, and writes the model with its card."""
        config, lessons = self.config, self.lessons
        if self.world.main:
            write_curves(read_metrics(self.folder / "metrics.jsonl"), self.folder, title=config.recipe)
        model = self.keeper.write_model()
        if self.world.main:
            write_card(model, config, run=self.folder, data_digest=lessons.manifest.digest, rows=len(lessons.training))
        return model

    # --- small things ---

    def _encode(self, pixel_values: Tensor) -> Tensor:
        """A frozen tower's features, to the bit what a step would make of a batch of this size: hence without `torch.no_grad`, under
        which fp32 products are made even (`ragged.default_arithmetic`)."""
        with autocast(self.config, self.world.device):
            return self.model.encode_images(pixel_values.to(self.world.device)).detach()


def _planned(config: TrainConfig, start: Start, lessons: Lessons, world: World) -> Plan:
    """What the run will take, by its own rows. Raises OutOfMemory where a GPU cannot hold it."""
    count, kind = len(lessons.training), "cuda" if world.device.type == "cuda" else "cpu"
    rows = [lessons.training.size(place) for place in range(0, count, max(1, count // 1024))]
    return check_fits(config, start.processor.config, rows, count, this_device(kind), gpus=world.size)


def _deadline(config: TrainConfig, started: float) -> float:
    return math.inf if config.max_minutes is None else started + 60 * config.max_minutes


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Holds the run's folder; the kernel lets go of it when the process ends, however it ends.

    A run that failed before it had anything to leave behind leaves nothing behind.
    """
    found = folder.exists()
    with ExitStack() as held:
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            file = held.enter_context((folder / ".lock").open("w"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Locked(f"Another process is training into {folder}. Wait for it, or choose another `output`.") from error
            if os.fstat(file.fileno()).st_nlink:
                break  # else a run that failed has just removed it
        try:
            yield
        except BaseException:
            _remove_if_empty(folder, keep_folder=found)
            raise


def _remove_if_empty(folder: Path, *, keep_folder: bool) -> None:
    with suppress(OSError):
        if {each.name for each in folder.iterdir()} <= {".lock", "checkpoints"}:
            if (folder / "checkpoints").exists():
                (folder / "checkpoints").rmdir()
            (folder / ".lock").unlink()
            if not keep_folder:
                folder.rmdir()
