"""The card of a trained model: `README.md` in its folder, from what the run knows. What only people know is left to them, marked.

write_card(folder / "model", config, run=folder)
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import vistune
from vistune.data.datasets import DATASETS
from vistune.journal import atomic_write
from vistune.train.config import TrainConfig, flat
from vistune.train.curve import series, smoothed
from vistune.train.metrics import read_metrics

_PACKAGES = ("torch", "transformers", "peft")
_TO_FILL_IN = "*to be filled in*"
_TOLD = ("recipe", "output", "model.", "data.", "trainable", "seed", "precision")  # settings that the card says elsewhere, or names always


def write_card(folder: Path, config: TrainConfig, *, run: Path, data_digest: str = "", rows: int | None = None) -> Path:
    """Writes the card into `folder`, and returns its path. A card that is there is replaced: it belongs to the weights beside it.

    Args:
        run: the folder of the run, whose `metrics.jsonl` is read.
        data_digest: of the rows that were trained on (`Manifest.digest`).
        rows: how many they are.
    """
    metrics = read_metrics(run / "metrics.jsonl")
    sections = [
        _front_matter(config),
        f"# {config.recipe}",
        _introduction(config),
        "## Training\n\n" + _facts(config, metrics, data_digest, rows),
        "## Settings\n\n" + _settings(config),
        _open_fields(config),
    ]
    path = folder / "README.md"
    atomic_write(path, ("\n\n".join(sections) + "\n").encode())
    return path


def _front_matter(config: TrainConfig) -> str:
    """What the hub reads. No licence is named: it depends on the bases, the data and the one who publishes."""
    lines = ["---", "library_name: vistune", "pipeline_tag: image-text-to-text", "tags:", "- llava", "- vistune"]
    if "/" in config.model.language_model and not config.model.init_from:
        lines.append(f"base_model: {json.dumps(config.model.language_model)}")
    return "\n".join([*lines, "---"])


def _introduction(config: TrainConfig) -> str:
    model = config.model
    begun = f"`{model.init_from}`" if model.init_from else f"`{model.language_model}` and `{model.vision_tower}`"
    learned = {"projector": "projector", "language_model": "language model", "lora": "LoRA adapters", "vision_tower": "vision tower"}
    parts = ", ".join(learned[part] for part in config.trainable)
    return (
        f"A LLaVA (Large Language and Vision Assistant), trained with vistune {vistune.__version__} by the recipe `{config.recipe}` "
        f'from {begun}. What learned: {parts}.\n\nTry it: `vistune chat --model . photo.jpg "What is this?"`'
    )


def _facts(config: TrainConfig, metrics: Sequence[dict[str, Any]], data_digest: str, rows: int | None) -> str:
    training, validation = smoothed(series(metrics, "loss")), series(metrics, "validation_loss")
    source = DATASETS.get(config.data.dataset)
    facts = [("data", f"`{config.data.dataset}`" + (f", {source.address} ({source.licence})" if source else ""))]
    if rows is not None:
        facts.append(("rows", f"{rows:,}"))
    if data_digest:
        facts.append(("sha256 of the rows that were used", f"`{data_digest}`"))
    facts.append(("steps", f"{max((row['step'] for row in metrics), default=0):,} of {config.batch.conversations} conversations"))
    facts.append(("tokens", f"{sum(row.get('tokens', 0) for row in metrics):,}"))
    if training:
        facts.append(("training loss", f"{training[0][1]:.4f} at first, {training[-1][1]:.4f} at the end (smoothed)"))
    if validation:
        step, best = min(validation, key=lambda point: point[1])
        kept = " (kept)" if config.early_stop is not None else ""
        facts.append(("validation loss", f"{validation[-1][1]:.4f} at the end, best {best:.4f} at step {step:,}{kept}"))
    if skipped := sum("skipped" in row for row in metrics):
        facts.append(("steps left out as bad", f"{skipped:,}"))
    facts.append(("hours", f"{sum(row.get('seconds', 0.0) for row in metrics) / 3600:.2f}"))
    facts.append(("seed, number format", f"{config.seed}, {config.precision}"))
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)
    facts.append(("made with", f"Python {platform.python_version()}, {versions}"))
    return _table(facts)


def _settings(config: TrainConfig) -> str:
    told = [(f"`{name}`", f"`{value}`") for name, value in flat(config).items() if not name.startswith(_TOLD)]
    return _table([("`model.template`", f"`{config.model.template}`"), ("`model.image_mode`", f"`{config.model.image_mode}`"), *told])


def _table(rows: Sequence[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)])


def _open_fields(config: TrainConfig) -> str:
    fields = ("Licence", "Intended use", "Known limits and biases", "Results on benchmarks (`vistune eval`)", "Contact")
    open_fields = "\n".join(f"- {field}: {_TO_FILL_IN}" for field in fields)
    return (
        f"## For the publisher\n\n{open_fields}\n\nThe licence has to agree with those of the bases "
        f"(`{config.model.language_model or config.model.init_from}`, `{config.model.vision_tower or 'its tower'}`) and of the data."
    )
