"""A training run as data: every choice that makes the run what it is, and nothing that it finds out on the way. No torch here.

A `TrainConfig` is complete. Recipes build one, `override` edits fields by their dotted names, and the trainer writes the one it ran with
beside the weights. The defaults are those that LLaVA's official scripts share (spec: AdamW, cosine, warm-up 3 %, clip 1.0, no decay).
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from vistune.errors import UnknownName, UsageError
from vistune.formats import ImagePlace
from vistune.model.config import ImageMode, LoraConfig, LossMask, ProjectorType

Objective = Literal["next_token", "align"]
"""`next_token`: the answers, token by token. `align`: no language model is run; each grid cell of the picture is led to the language
model's
own word embedding of what lies there (the short stage before stage 1)."""
Part = Literal["projector", "language_model", "lora", "vision_tower"]
Precision = Literal["bf16", "fp32"]
Quantisation = Literal["none", "nf4", "int8"]


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """Which model a run starts from, and how it sees and speaks during this stage."""

    init_from: str = ""
    """A LLaVA checkpoint (folder or name) to go on from. Empty: a new model is put together from the two backbones below."""
    language_model: str = ""
    vision_tower: str = ""
    projector: ProjectorType = "mlp2x_gelu"
    template: str = "vicuna_v1"
    image_mode: ImageMode = "pad"
    max_length: int = 2048
    quantise: Quantisation = "none"
    """Number format of a frozen language model's linear layers (QLoRA). Projector, tower, embeddings and head are never quantised."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is learned from. `dataset` is a key of DATASETS or a file; it and `images` are looked for under `root`."""

    dataset: str
    root: str = "."
    images: str = ""
    """Folder of the pictures, or a `.tar` of them, or a folder of tars; empty means the dataset's own, or the folder of the data file."""
    mask: LossMask = "answers"
    image_place: ImagePlace = "as_written"
    bad_rows: Literal["stop", "skip"] = "stop"
    """What to do when the check before training finds rows it cannot use; they are listed in `data.json` either way."""
    picture_check: Literal["decode", "header"] = "decode"
    """How the check before training looks at pictures. `header` is quicker by far, but a broken picture then stops the run when met."""
    validation_rows: int = 0
    """How many rows are held out for the validation loss (pictures are never shared with the training rows)."""
    workers: int = 2
    """Threads that read and decode ahead of the step. The order of the rows does not depend on them."""
    timeout: float = 300.0
    """Seconds after which a row that is still being read ends the run with an error that names it."""


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """An optimizer step learns from `conversations`; they go through the model in pieces of at most `tokens_per_forward`.

    The second number is about memory only: the gradient is that of the whole batch however it is cut.
    """

    conversations: int = 128
    tokens_per_forward: int = 8192
    order: Literal["shuffled", "modality_length"] = "shuffled"
    """`modality_length` is the official grouping (text-only rows apart, like lengths together), for comparison: nothing is padded here."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW. `projector_lr` and `tower_lr` None give the projector and the vision tower the learning rate of the rest."""

    lr: float
    projector_lr: float | None = None
    tower_lr: float | None = None
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_ratio: float = 0.03
    max_grad_norm: float = 1.0


@dataclass(frozen=True, kw_only=True)
class AlignConfig:
    """The `align` objective: cells that no box covers are `background`; logits are cosines times `logit_scale`."""

    background: str = "background"
    background_weight: float = 1.0
    logit_scale: float = 20.0


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How the processes that `torchrun` started share one run. The rows of a step do not depend on it."""

    shard: Literal["trained", "all"] = "trained"
    """What FSDP2 divides among the processes: `trained` what learns (each holds the frozen weights whole), `all` frozen weights too."""
    replicas: int = 1
    """Groups of processes that each hold all shards (HSDP): set it to the number of nodes where links between nodes are slow."""
    timeout: float = 600.0
    """Seconds after which a process that waits for another one in vain ends the run."""


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """What happens at a step whose loss or gradient is not finite, or whose loss jumps.

    The step is computed again first. What comes out bad twice is the data's or the model's doing: `stop` ends the run with the rows named,
    `skip` writes the rows to `quarantine.jsonl`, leaves the weights as they are and goes on.
    """

    bad_step: Literal["stop", "skip"] = "stop"
    spike: float | None = None
    """A loss above this many times the median of the last 50 steps is bad too."""
    max_skips: int = 10
    """More skipped steps than this among the last 100 end the run."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One stage of training, complete."""

    recipe: str
    output: str
    """Folder of the run: metrics, checkpoints to resume from, and the finished `model/`."""
    model: ModelChoice
    trainable: tuple[Part, ...]
    """Exactly these parts change. `lora` puts adapters on the language model, whose own weights stay as they are."""
    data: DataConfig
    optim: OptimConfig
    objective: Objective = "next_token"
    batch: BatchConfig = field(default_factory=BatchConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    align: AlignConfig = field(default_factory=AlignConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    epochs: float = 1.0
    max_steps: int | None = None
    max_minutes: float | None = None
    """Stop after so many minutes of this call, with a checkpoint to resume from and a model to try."""
    seed: int = 42
    precision: Precision = "bf16"
    """`bf16`: forward in bf16 where that is safe, frozen weights held in bf16, trained weights and optimizer in fp32."""
    save_as: Precision = "fp32"
    """In which format a projector or adapter is saved for use. Checkpoints to resume from are always exact."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    feature_cache: str = ""
    """Folder in which a frozen tower's features are kept between epochs, stages and runs. Empty: pictures are encoded when met."""
    feature_cache_gb: float | None = None
    """The most that the cache may hold; pictures beyond it are encoded when met."""
    feature_cache_when: Literal["always", "measured"] = "always"
    """`measured`: only if reading features is found quicker than encoding pictures, given how often each picture is met."""
    activation_checkpointing: bool = False
    """Recompute each layer in the backward pass: less memory, a third more arithmetic, the same result."""
    compile: bool = False
    """Compile the norms, MLPs and projections of each layer with torch.compile."""
    tensorboard: bool = False
    """Also write the metrics as TensorBoard events to `tensorboard/` in the run's folder."""
    save_every: int = 500
    keep_checkpoints: int = 2
    validate_every: int = 100
    early_stop: int | None = None
    """Stop after this many validations in a row without a better loss, and keep the weights of the best one."""
    sample_every: int | None = None
    """Every so many steps a few held-out questions are answered, for people to read."""


# What may differ when a run goes on: where it lies, how long this call may take, and how often it looks around.
FREE_ON_RESUME = frozenset(
    {
        "output",
        "max_minutes",
        "feature_cache",
        "save_every",
        "keep_checkpoints",
        "sample_every",
        "feature_cache_gb",
        "feature_cache_when",
        "activation_checkpointing",
        "tensorboard",
        "parallel.shard",
        "parallel.replicas",
        "parallel.timeout",
        "guard.bad_step",
        "guard.spike",
        "guard.max_skips",
        "batch.tokens_per_forward",
        "data.root",
        "data.workers",
        "data.timeout",
        "data.bad_rows",
        "data.picture_check",
    }
)


def to_json(config: TrainConfig) -> str:
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every leaf of a config by its dotted name: `{"optim.lr": 1e-3, ...}`."""
    leaves: dict[str, Any] = {}
    for each in dataclasses.fields(config):
        value, name = getattr(config, each.name), prefix + each.name
        leaves |= flat(value, f"{name}.") if is_dataclass(value) else {name: value}
    return leaves


def override(config: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig:
    """A config with some leaves changed by dotted name; text is read as the leaf's type, e.g. `{"optim.lr": "1e-3"}`.

    Raises:
        UnknownName: there is no such leaf, or a choice has no such value; the message lists the right ones.
        UsageError: the value does not fit the leaf's type.
    """
    known = flat(config)
    for name, value in changes.items():
        if name not in known:
            raise UnknownName("setting", name, known)
        config = _replaced(config, name.split("."), name, value)
    return config


def _replaced(config: Any, path: list[str], name: str, value: Any) -> Any:
    first, *rest = path
    if rest:
        return dataclasses.replace(config, **{first: _replaced(getattr(config, first), rest, name, value)})
    return dataclasses.replace(config, **{first: _coerce(value, get_type_hints(type(config))[first], name)})


def _coerce(value: Any, hint: Any, name: str) -> Any:
    """`value` as an instance of the annotation `hint`: str, int, float, bool, Literal, tuple, or one of these or None."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        if value is None or (isinstance(value, str) and value.lower() == "none"):
            return None
        return _coerce(value, next(each for each in get_args(hint) if each is not type(None)), name)
    if origin is Literal:
        if value not in get_args(hint):
            raise UnknownName(f"value for {name}", str(value), get_args(hint))
        return value
    if origin is tuple:
        return _coerce_tuple(value, get_args(hint), name)
    try:
        if hint is bool:
            return {"true": True, "false": False}[str(value).lower()]
        if hint is int and isinstance(value, bool | float):
            raise ValueError(value)
        if hint is str and not isinstance(value, str):
            raise ValueError(value)
        return hint(value)
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{name} takes {_spelled(hint)}, not {value!r}.") from None


def _coerce_tuple(value: Any, kinds: tuple[Any, ...], name: str) -> tuple[Any, ...]:
    items = [each.strip() for each in value.split(",") if each.strip()] if isinstance(value, str) else list(value)
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(items)
    if len(items) != len(kinds):
        raise UsageError(f"{name} takes {len(kinds)} values with commas between them, not {value!r}.")
    return tuple(_coerce(item, kind, name) for item, kind in zip(items, kinds, strict=True))


def _spelled(hint: Any) -> str:
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(hint, typing.cast(str, str(hint)))
