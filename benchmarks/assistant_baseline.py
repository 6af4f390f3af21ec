"""Trains the assistant's baseline: the recipe of the first trial, on the scenes of today, for as many minutes.

    python benchmarks/assistant_baseline.py [--work runs/baseline] [--hour]
    python benchmarks/assistant.py --model runs/baseline/stage-2/model --suites scenes-v1 --fast \
        --out benchmarks/results/assistant_baseline.json

    stage 0    100 s   the projector learns which name lies in each cell (7,500 scenes; no colours of things, no language model)
    stage 1    150 s   captions, language model frozen, 8 conversations a step, lr 5e-4
    stage 2    720 s   questions, projector (lr 3e-4) and the language model without its embeddings (2e-4), 6 conversations a step
    --hour    2520 s   stage 2 again, both at 2e-4, in another order

Each stage is a cosine over as many steps as its seconds hold: a few steps are timed first. Drawing and encoding are not counted. Everything
is the trainer of vistune, so what is compared is the recipe: data per picture, alignment, rates, adapters, and a projector without words,
neighbours and names of places, as the trial's was. The committed result is from before `grid_mlp` had them (b0312f7).
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

from torch import Tensor, nn

from vistune.journal import atomic_write
from vistune.model.config import LoraConfig
from vistune.model.llava import Llava
from vistune.model.projector import GridMLPProjector
from vistune.scenes.write import write_scenes
from vistune.train import trainer
from vistune.train.config import AlignConfig, BatchConfig, DataConfig, OptimConfig, Part, TrainConfig
from vistune.train.metrics import read_metrics
from vistune.train.objectives import Align
from vistune.train.parts import choose_parts
from vistune.train.recipes import smol_align, smol_pretrain

SCENES = 7_500
TIMED_STEPS = {"align": 60, "next_token": 12}


@contextmanager
def as_in_the_trial() -> Iterator[None]:
    """The trial left the word embeddings as they are, and its projector was an MLP alone. No recipe is like that; it is arranged here."""

    def choose(model: Llava, parts: Sequence[Part], lora: LoraConfig) -> None:
        choose_parts(model, parts, lora)
        model.causal_lm.get_input_embeddings().weight.requires_grad_(False)
        model.multi_modal_projector.neighbours.requires_grad_(False)  # they begin at zero, and stay there

    def fit(projector: GridMLPProjector, features: Tensor, word_embeddings: Tensor, places: Tensor) -> None:
        measure(projector, features, word_embeddings, places)
        nn.init.normal_(projector.position, std=0.02)

    measure = GridMLPProjector.fit
    with (
        mock.patch.object(trainer, "choose_parts", choose),
        mock.patch.object(GridMLPProjector, "fit", fit),
        mock.patch.object(Align, "give_words", return_value=None),
    ):
        yield


def run(config: TrainConfig, seconds: float) -> Path:
    """The model of a stage whose cosine ends after about so many seconds; trained once."""
    model = Path(config.output, "model")
    if model.exists():
        return model
    timed = replace(config, output=f"{config.output}-timed", max_steps=TIMED_STEPS[config.objective])
    shutil.rmtree(timed.output, ignore_errors=True)
    with as_in_the_trial():
        trainer.train(timed)
        # The first third are slower: memory is taken, caches are cold.
        rows = [row for row in read_metrics(Path(timed.output, "metrics.jsonl")) if "seconds" in row]
        step = statistics.mean(row["seconds"] for row in rows[len(rows) // 3 :])
        shutil.rmtree(timed.output)
        print(f"{config.output}: {step:.3f} s a step")
        return trainer.train(replace(config, max_steps=round(seconds / step)))


def plain_alignment(rows: Path) -> None:
    """Stage 0 of the trial knew names of things and colours of grounds only."""
    kept = []
    for line in rows.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        whole = [0.0, 0.0, 1.0, 1.0]
        named = {tuple(box["xyxy"]): box for box in reversed(row["boxes"]) if box["xyxy"] != whole}  # the name comes before the colour
        ground = [box for box in row["boxes"] if box["xyxy"] == whole and box["label"] != "background"]
        kept.append(json.dumps(row | {"boxes": [*named.values(), *ground]}))
    atomic_write(rows.with_name("plain_align.jsonl"), "\n".join(kept).encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/baseline"))
    parser.add_argument("--hour", action="store_true", help="also the longer second stage")
    arguments = parser.parse_args()
    work: Path = arguments.work
    scenes = work / "scenes"
    if not scenes.exists():
        write_scenes(scenes, SCENES, seed=7)
        plain_alignment(scenes / "align.jsonl")

    def data(file: str) -> DataConfig:
        return DataConfig(dataset=file, root=str(scenes), picture_check="header")

    stage0 = replace(
        smol_align(),
        output=str(work / "stage-0"),
        feature_cache=str(work / "features"),
        data=data("plain_align.jsonl"),
        align=AlignConfig(),
        optim=OptimConfig(lr=1e-3, weight_decay=0.01),
    )
    aligned = run(stage0, 100)
    stage1 = replace(
        smol_pretrain(),
        output=str(work / "stage-1"),
        feature_cache=stage0.feature_cache,
        data=data("captions.json"),
        model=replace(smol_pretrain().model, init_from=str(aligned)),
        save_every=10**6,
    )
    described = run(stage1, 150)
    stage2 = replace(
        stage1,
        output=str(work / "stage-2"),
        data=data("instruct.json"),
        model=replace(stage1.model, init_from=str(described)),
        trainable=("projector", "language_model"),
        batch=BatchConfig(conversations=6, tokens_per_forward=2048),
        optim=OptimConfig(lr=2e-4, projector_lr=3e-4),
    )
    tuned = run(stage2, 720)
    if arguments.hour:
        longer = replace(stage2, output=str(work / "stage-2-hour"), optim=OptimConfig(lr=2e-4), seed=43)
        tuned = run(replace(longer, model=replace(longer.model, init_from=str(tuned))), 2520)
    print(tuned)


if __name__ == "__main__":
    main()
