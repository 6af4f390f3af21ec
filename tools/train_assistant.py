"""Trains the bundled assistant: SmolLM2-135M-Instruct that sees through EfficientNet-Lite0 (`make assistant`).

    data      scenes drawn with the sprite bank, easy-VQA's train split, and the language model's own answers to plain prompts
              (so that learning to look does not cost it its conversation)
    align     recipe smol_align: the projector learns which words belong to which cell of the picture; no language model is run
    tune      recipe smol_tune: projector and LoRA adapters learn to answer
    install   projector and adapter go to src/vistune/assets/assistant

Every step is skipped when its result is there, and training goes on from its last checkpoint: the command can be stopped and given again.
`--blind` tunes by the same recipe with every picture replaced by a grey one: what questions alone give away.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

from vistune.eval.benchmarks import easy_vqa
from vistune.journal import atomic_write
from vistune.scenes import SceneSpec
from vistune.scenes.write import write_scenes
from vistune.train.config import DataConfig, TrainConfig
from vistune.train.recipes import smol_align, smol_tune
from vistune.types import Conversation, SamplingParams

ASSETS = Path(__file__).parent.parent / "src/vistune/assets"
SCENES = 12_000
DENSE_SCENES = 36_000  # four or five things each: only for alignment, which learns from every cell
EASY_VQA_CONVERSATIONS = 2_000
TEXT_REPEATS = 2
TUNE_STEPS = 900
BLANK = "blank.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/assistant"), help="folder for data and runs (about 5 GB)")
    parser.add_argument("--blind", action="store_true", help="tune with grey pictures, and install nothing")
    parser.add_argument("--steps", type=int, default=TUNE_STEPS, help="of the tune; another number installs nothing")
    arguments = parser.parse_args()
    data = arguments.work / "data"
    prepare_data(data)
    cache = str(arguments.work / "features")
    align = replace(smol_align(), output=str(arguments.work / "align"), feature_cache=cache)
    aligned = train_once(with_data(align, data, "align.jsonl"))
    tune = replace(smol_tune(), feature_cache=cache, max_steps=arguments.steps)
    tune = replace(tune, model=replace(tune.model, init_from=str(aligned)))
    name = "blind" if arguments.blind else "tune" if arguments.steps == TUNE_STEPS else f"tune-{arguments.steps}"
    tuned = train_once(with_data(replace(tune, output=str(arguments.work / name)), data, "blind.json" if arguments.blind else "mix.json"))
    if name == "tune":
        install(tuned)


def train_once(config: TrainConfig) -> Path:
    """The folder of the trained model, trained unless it is there."""
    model = Path(config.output, "model")
    if model.exists():
        return model
    # Torch comes in here: --help should not wait for it.
    from vistune.train.metrics import Display
    from vistune.train.trainer import train

    return train(config, resume=True, display=Display())


def with_data(config: TrainConfig, root: Path, dataset: str) -> TrainConfig:
    data: DataConfig = replace(config.data, dataset=dataset, root=str(root), picture_check="header")
    return replace(config, data=data)


def prepare_data(folder: Path) -> None:
    """Draws and collects everything that is trained on into one folder."""
    if (folder / "mix.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "scenes").exists():
        write_scenes(folder / "scenes", SCENES, seed=0)
    if not (folder / "dense").exists():
        write_scenes(folder / "dense", DENSE_SCENES, seed=1, spec=SceneSpec(counts=(4, 5)), turns=1)
    lines = [json.dumps(row) for part in ("scenes", "dense") for row in within(folder, part, read_lines(folder / part / "align.jsonl"))]
    rows = list(within(folder, "scenes", json.loads((folder / "scenes/instruct.json").read_text())))
    shapes = copy_easy_vqa(folder)
    atomic_write(folder / "align.jsonl", "\n".join([*lines, *easy_vqa_cells(folder, shapes)]).encode())
    rows += shapes
    rows += read_lines(base_answers(folder)) * TEXT_REPEATS
    for number, row in enumerate(rows):
        row_id = f"{row['id']}-{number}"
        rows[number] = {**row, "id": row_id}
    Image.new("RGB", (224, 224), (128, 128, 128)).save(folder / BLANK)
    blind = [{**row, "image": BLANK} if "image" in row else row for row in rows]
    atomic_write(folder / "blind.json", json.dumps(blind).encode())
    atomic_write(folder / "mix.json", json.dumps(rows).encode())


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def within(folder: Path, part: str, rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows of a part of the data, with picture names that start from `folder`."""
    for row in rows:
        yield {**row, "image": f"{part}/{row['image']}"}


def copy_easy_vqa(folder: Path) -> list[dict[str, Any]]:
    """A fixed sample of easy-VQA's train conversations; their pictures are copied beside the scenes."""
    rows = json.loads(easy_vqa.write_train(folder / "easy_vqa").read_text())
    chosen = random.Random("easy-vqa").sample(rows, EASY_VQA_CONVERSATIONS)
    for row in chosen:
        target = folder / "easy_vqa" / row["image"]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(easy_vqa.image_root() / row["image"], target)
    return list(within(folder, "easy_vqa", chosen))


def easy_vqa_cells(folder: Path, rows: list[dict[str, Any]]) -> Iterator[str]:
    """Rows for alignment: a picture's one shape, all that differs from its corner, and the words that its questions give for it."""
    words: dict[str, dict[str, None]] = {}
    for row in rows:
        answers = [turn["value"].rstrip(".").lower() for turn in row["conversations"] if turn["from"] == "gpt"]
        words.setdefault(row["image"], {}).update(dict.fromkeys(answer for answer in answers if answer not in ("yes", "no")))
    for image, labels in words.items():
        with Image.open(folder / image) as file:
            picture = file.convert("RGB")
        ground = Image.new("RGB", picture.size, picture.getpixel((0, 0)))
        left, top, right, bottom = ImageChops.difference(picture, ground).getbbox() or (0, 0, *picture.size)
        width, height = picture.size
        edges = [left / width, top / height, right / width, bottom / height]
        boxes = [{"label": label, "xyxy": edges} for label in labels]
        yield json.dumps({"image": image, "width": width, "height": height, "boxes": boxes, "source": "easy-vqa"})


def base_answers(folder: Path) -> Path:
    """What the language model itself answers to `assets/text_prompts.txt`, as rows without a picture."""
    path = folder / "text.jsonl"
    if path.exists():
        return path
    from vistune.engine.engine import Engine
    from vistune.train.start import start_model

    base = start_model(smol_align().model)
    prompts = [line for line in (ASSETS / "text_prompts.txt").read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]

    async def ask_all(engine: Engine) -> list[str]:
        params = SamplingParams(max_new_tokens=80)
        replies = await asyncio.gather(*(engine.generate(Conversation(()).then("user", prompt), params) for prompt in prompts))
        # An answer that was cut off would teach to stop in the middle of a sentence.
        return [reply.text if reply.finish_reason == "stop" else reply.text.rpartition(". ")[0] + "." for reply in replies]

    with Engine(base.model, base.processor) as engine:
        answers = asyncio.run(ask_all(engine))
    rows = [
        {"id": f"text-{number}", "conversations": [{"from": "human", "value": prompt}, {"from": "gpt", "value": answer}]}
        for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
        if len(answer) > 1
    ]
    atomic_write(path, "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode())
    return path


def install(model: Path) -> None:
    """Puts the trained projector and adapter where the package looks for its assistant; the card stays."""
    target = ASSETS / "assistant"
    target.mkdir(exist_ok=True)
    for file in model.iterdir():
        shutil.copyfile(file, target / file.name)
    size = sum(file.stat().st_size for file in target.iterdir())
    print(f"The assistant is in {target}: {size / 1e6:.1f} MB.")


if __name__ == "__main__":
    main()
